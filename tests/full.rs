//! Full file systems under bricks: a full host is a full volume, nothing more.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mortar_tests::real::{Daemon, Kind, Mount, tool};

const MIB: usize = 1 << 20;

/// A small file system of its own.
struct Host(PathBuf);

impl Host {
    fn new(daemon: &Daemon, size: &str) -> Self {
        Self::on(daemon.dir().join("host"), size)
    }

    /// On a new directory.
    fn on(dir: PathBuf, size: &str) -> Self {
        fs::create_dir(&dir).expect("mkdir");
        let path = dir.to_str().expect("text");
        let options = format!("mode=0700,size={size}");
        let args = ["-t", "tmpfs", "-o", &options, "tmpfs", path];
        tool::run_in(Path::new("/"), "mount", &args);
        Self(dir)
    }

    fn brick(&self, number: u32) -> String {
        format!("127.0.0.1:{}", self.0.join(format!("b{number}")).display())
    }

    /// Somebody else takes all but `left` bytes.
    fn take(&self, name: &str, left: u64) {
        let mut file = File::create(self.0.join(name)).expect("create");
        while available(&self.0) > left {
            let piece = (available(&self.0) - left).min(MIB as u64);
            match file.write_all(&vec![1; piece as usize]) {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    return;
                }
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let _ = umount.arg("-l").arg(&self.0).status();
    }
}

fn available(path: &Path) -> u64 {
    let space = rustix::fs::statvfs(path).expect("statvfs");
    space.f_bavail * space.f_frsize
}

fn contents(number: usize) -> Vec<u8> {
    (0..MIB).map(|at| (at / 512 + number) as u8).collect()
}

fn write_file(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(data)?;
    file.sync_all()
}

/// Writes files of 1 MiB until there is no space; gives how many are whole.
fn fill(dir: &Path, name: &str) -> usize {
    for number in 0..2_000 {
        let path = dir.join(format!("{name}{number}"));
        if let Err(error) = write_file(&path, &contents(number)) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
            if path.exists() {
                fs::remove_file(&path).expect("rm of what did not fit");
            }
            return number;
        }
    }
    panic!("the volume was never full");
}

#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_full_host_is_a_full_volume() {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let host = Host::new(&daemon, "400m");
    let brick = host.brick(1);
    daemon.mortar_ok(&[
        "volume",
        "create",
        "vol",
        &brick,
        "--brick-size",
        "1G",
        "force",
    ]);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let mount = Mount::new(&daemon, "vol");
    let free = available(mount.path());
    assert!(
        free < 400 << 20,
        "the volume shows {free} bytes, the host has less"
    );
    host.take("other", 150 << 20);
    let files = fill(mount.path(), "f");
    assert!((20..250).contains(&files), "{files} files");
    // Not a byte is left there.
    host.take("rest", 0);
    let more = fill(mount.path(), "g");
    assert!(more < 40, "{more} more");
    for number in 0..files {
        let read = fs::read(mount.join(&format!("f{number}"))).expect("read");
        assert!(read == contents(number), "f{number}");
    }
    // Removal works, and what it frees goes back to the host and can be used again.
    for number in 0..files / 2 {
        fs::remove_file(mount.join(&format!("f{number}"))).expect("rm");
    }
    let freed = (files / 2) as u64 * MIB as u64;
    let back = || available(&host.0) + available(mount.path()) > freed / 2;
    wait_until("space comes back", back);
    assert!(fill(mount.path(), "h") >= files / 8);
    for number in files / 2..files {
        let read = fs::read(mount.join(&format!("f{number}"))).expect("read");
        assert!(read == contents(number), "f{number}");
    }
    let log = daemon.log();
    assert!(!log.contains("poisoned"), "{log}");
    mount.umount();
    let (code, _) = daemon.terminate();
    assert_eq!(code, Some(0));
    // Somebody makes room: the brick is as large as before.
    fs::remove_file(host.0.join("other")).expect("rm");
    daemon.restart();
    daemon.wait_ready();
    let mount = Mount::new(&daemon, "vol");
    assert!(fill(mount.path(), "i") > 100);
    let last = files - 1;
    let read = fs::read(mount.join(&format!("f{last}"))).expect("read");
    assert!(read == contents(last));
    mount.umount();
    let _ = daemon.terminate();
}

#[test]
fn bricks_on_one_host_share_its_space() {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let host = Host::new(&daemon, "500m");
    let (one, two) = (host.brick(1), host.brick(2));
    daemon.mortar_ok(&[
        "volume",
        "create",
        "vol",
        &one,
        &two,
        "--brick-size",
        "1G",
        "force",
    ]);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let mount = Mount::new(&daemon, "vol");
    let shown = available(mount.path());
    assert!(shown > 100 << 20 && shown < 500 << 20, "{shown}");
    let before = available(&host.0);
    host.take("other", before / 2);
    wait_until("the volume shows it", || {
        available(mount.path()) < shown * 3 / 4
    });
    mount.umount();
    let _ = daemon.terminate();
}

/// The daemon's own directory lies on a disk that others fill.
#[test]
fn a_full_disk_under_the_control_plane_stops_commands_and_nothing_else() {
    let mut host = None;
    let mut daemon = Daemon::start_with(|dir| {
        host = Some(Host::on(dir.join("data"), "8m"));
        Vec::new()
    });
    let host = host.expect("made");
    daemon.wait_ready();
    daemon.volume("vol", Kind::Replica(2), "256M");
    let mount = Mount::new(&daemon, "vol");
    write_file(&mount.join("before"), b"before").expect("write");
    host.take("other", 0);
    let mut number = 0;
    let refused = loop {
        number += 1;
        assert!(number < 2_000, "the disk was never full");
        let brick = format!(
            "127.0.0.1:{}",
            daemon.dir().join(format!("more-{number}")).display()
        );
        let words = [
            "volume",
            "create",
            &format!("more-{number}"),
            &brick,
            "force",
        ];
        let out = daemon.mortar(&words);
        if !out.status.success() {
            break String::from_utf8_lossy(&out.stderr).into_owned();
        }
    };
    println!("after {number}: {refused}");
    assert!(refused.contains("no space left on the disk"), "{refused}");
    assert!(refused.contains("control.redb"), "{refused}");
    // Another mount is refused with the reason, too; the one there is goes on.
    let other = Mount::unmounted();
    let out = other.try_mount(&daemon, "vol", "");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && said.contains("no space left"),
        "{said}"
    );
    write_file(&mount.join("during"), b"during").expect("write");
    assert_eq!(fs::read(mount.join("before")).expect("read"), b"before");
    // It also ends in time.
    let (code, took) = daemon.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    daemon.restart();
    daemon.wait_ready();
    fs::remove_file(host.0.join("other")).expect("rm");
    wait_until("commands work again", || {
        let out = daemon.mortar(&["volume", "set", "vol", "storage.reserve", "2"]);
        out.status.success()
    });
    assert_eq!(fs::read(mount.join("during")).expect("read"), b"during");
    other.mount(&daemon, "vol", "");
    assert_eq!(fs::read(other.join("during")).expect("read"), b"during");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    other.umount();
    mount.umount();
    let _ = daemon.terminate();
}
