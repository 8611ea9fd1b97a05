//! Bricks that are not what they were: missing, empty, another's, behind, in use, under another name.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mortar_tests::real::{Daemon, Kind, Mount, bin_dir, tool};

const SOON: Duration = Duration::from_secs(30);

/// What `volume status vol detail` says of a brick.
fn detail(daemon: &Daemon, brick: &Path) -> String {
    let text = daemon.mortar_ok(&["volume", "status", "vol", "detail"]);
    let name = format!("Brick 127.0.0.1:{}", brick.display());
    let found = text
        .split("-----\n")
        .find(|part| says(part, "Brick").as_deref() == Some(&name));
    found
        .unwrap_or_else(|| panic!("{name} in {text}"))
        .to_owned()
}

fn says(detail: &str, key: &str) -> Option<String> {
    let line = detail.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn wait_for_sync(daemon: &Daemon, brick: &Path, synced: &str) -> String {
    tool::wait_for("the brick", SOON, || {
        let said = detail(daemon, brick);
        (says(&said, "In sync").as_deref() == Some(synced)).then_some(said)
    })
}

/// Starts the daemon again; gives the length of its log before.
fn again(daemon: &mut Daemon) -> usize {
    let before = daemon.log().len();
    daemon.restart();
    daemon.wait_ready();
    before
}

fn end(daemon: &mut Daemon, mount: &Mount) {
    mount.umount();
    let (code, _) = daemon.terminate();
    assert_eq!(code, Some(0));
}

/// The brick is offline for this reason, with one line in the log; the others serve old data and take new.
fn offline(
    daemon: &Daemon,
    before: usize,
    bricks: &[PathBuf],
    why: &str,
    mount: &Mount,
    number: u32,
) {
    let brick = &bricks[0];
    wait_for_sync(daemon, &bricks[1], "Y");
    mount.mount(daemon, "vol", "");
    for earlier in 0..number {
        let read = fs::read(mount.join(&format!("f{earlier}"))).expect("read");
        assert_eq!(read, format!("contents {earlier}").as_bytes());
    }
    let name = mount.join(&format!("f{number}"));
    fs::write(name, format!("contents {number}")).expect("write");
    let said = detail(daemon, brick);
    assert_eq!(says(&said, "Online").as_deref(), Some("N"), "{said}");
    assert!(
        says(&said, "Reason").is_some_and(|reason| reason.contains(why)),
        "{said}"
    );
    let status = daemon.mortar_ok(&["volume", "status", "vol"]);
    assert!(status.contains("N/A"), "{status}");
    assert!(status.contains(why), "{status}");
    let log = daemon.log();
    let lines: Vec<&str> = log[before..]
        .lines()
        .filter(|line| line.contains(why))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("stays offline"), "{lines:?}");
    assert!(
        log[before..].contains("not in its set: it does not run"),
        "{log}"
    );
}

#[test]
fn a_missing_an_empty_and_anothers_brick_stay_offline_until_the_right_one_returns() {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let bricks = daemon.volume("vol", Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    fs::write(mount.join("f0"), b"contents 0").expect("write");
    end(&mut daemon, &mount);
    let (brick, kept) = (&bricks[0], daemon.dir().join("kept"));
    fs::rename(brick, &kept).expect("rename");

    let before = again(&mut daemon);
    offline(&daemon, before, &bricks, "does not exist", &mount, 1);
    assert!(!brick.exists(), "it was made again");
    end(&mut daemon, &mount);

    // Its file system is not mounted.
    fs::create_dir(brick).expect("mkdir");
    let before = again(&mut daemon);
    offline(
        &daemon,
        before,
        &bricks,
        "is its file system mounted?",
        &mount,
        2,
    );
    assert_eq!(fs::read_dir(brick).expect("list").count(), 0);
    end(&mut daemon, &mount);

    // Another brick of the same set.
    let (theirs, there) = (bricks[1].join("mortar.brick"), brick.join("mortar.brick"));
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([&theirs, &there])
        .status();
    assert!(copied.expect("cp").success());
    let superblock = |path: &Path| fs::read(path).expect("read")[..1 << 20].to_vec();
    let copy = superblock(&there);
    let before = again(&mut daemon);
    offline(&daemon, before, &bricks, "holds brick", &mount, 3);
    end(&mut daemon, &mount);
    assert!(superblock(&there) == copy, "it was written to");

    // The right one, which lacks three changes that the others have kept.
    fs::remove_dir_all(brick).expect("rm");
    fs::rename(&kept, brick).expect("rename");
    again(&mut daemon);
    let said = wait_for_sync(&daemon, brick, "Y");
    assert_eq!(says(&said, "Online").as_deref(), Some("Y"), "{said}");
    assert_eq!(says(&said, "Reason"), None, "{said}");
    mount.mount(&daemon, "vol", "");
    fs::write(mount.join("f4"), b"contents 4").expect("write");
    end(&mut daemon, &mount);

    // It has them all: the others are not needed any more.
    for other in &bricks[1..] {
        fs::rename(other, other.with_extension("away")).expect("rename");
    }
    again(&mut daemon);
    wait_for_sync(&daemon, brick, "Y");
    mount.mount(&daemon, "vol", "");
    for number in 0..5 {
        let read = fs::read(mount.join(&format!("f{number}"))).expect("read");
        assert_eq!(read, format!("contents {number}").as_bytes());
    }
    mount.umount();
}

#[test]
fn a_brick_that_lacks_more_than_the_log_holds_stays_out_and_says_so() {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let bricks = daemon.volume("vol", Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    mount.umount();
    daemon.mortar_ok(&["--mode=script", "volume", "stop", "vol"]);
    let kept = daemon.dir().join("kept");
    fs::rename(&bricks[2], &kept).expect("rename");
    // It starts without that brick, after the time for which its set waits, and says so.
    let said = daemon.mortar_ok(&["volume", "start", "vol"]);
    assert!(said.contains("does not exist"), "{said}");
    mount.mount(&daemon, "vol", "");
    // More than the ring of 8 MiB holds, in pieces that travel in it.
    for number in 0..400 {
        fs::write(
            mount.join(&format!("f{number}")),
            vec![number as u8; 48 << 10],
        )
        .expect("write");
    }
    fs::rename(&kept, &bricks[2]).expect("rename");
    let before = daemon.log().len();
    daemon.mortar_ok(&["volume", "start", "vol", "force"]);
    let why = "lacks changes";
    let said = tool::wait_for("the reason", SOON, || {
        let said = detail(&daemon, &bricks[2]);
        said.contains(why).then_some(said)
    });
    assert_eq!(says(&said, "Online").as_deref(), Some("Y"), "{said}");
    assert_eq!(says(&said, "In sync").as_deref(), Some("N"), "{said}");
    let log = daemon.log();
    let told = log[before..]
        .lines()
        .filter(|line| line.contains("stays out of its set"));
    assert_eq!(told.count(), 1, "{log}");
    // The mount went on all the time.
    for number in 0..400 {
        let read = fs::read(mount.join(&format!("f{number}"))).expect("read");
        assert!(read == vec![number as u8; 48 << 10], "f{number}");
    }
    end(&mut daemon, &mount);
}

#[test]
fn a_mount_waits_for_a_set_that_waits_for_members_and_not_for_a_server_that_is_away() {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let bricks = daemon.volume("vol", Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    fs::write(mount.join("f"), b"contents").expect("write");
    end(&mut daemon, &mount);

    let (out, took) = tool::timed(|| mount.try_mount(&daemon, "vol", ""));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{said}");
    let server = daemon.server();
    assert!(said.contains("mortard") && said.contains(&server), "{said}");
    assert!(took < Duration::from_secs(5), "{took:?}");

    fs::rename(&bricks[2], daemon.dir().join("kept")).expect("rename");
    again(&mut daemon);
    let (out, took) = tool::timed(|| mount.try_mount(&daemon, "vol", ""));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(
        took > Duration::from_secs(5),
        "it had not to wait: {took:?}"
    );
    assert!(took < Duration::from_secs(14), "{took:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let missing = format!("{}: ", bricks[2].display());
    assert!(
        said.contains("is opening") && said.contains(&missing),
        "{said}"
    );
    assert_eq!(fs::read(mount.join("f")).expect("read"), b"contents");
    end(&mut daemon, &mount);

    // A set that never opens: given up once it has had its time, with the reason.
    for brick in &bricks[..2] {
        fs::rename(brick, brick.with_extension("away")).expect("rename");
    }
    again(&mut daemon);
    daemon.mortar_ok(&["volume", "set", "vol", "cluster.open-wait", "1"]);
    let (out, took) = tool::timed(|| mount.try_mount(&daemon, "vol", ""));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && !mount.is_mounted(), "{said}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let last = said.lines().last().unwrap_or_default();
    let missing = format!("{}: ", bricks[0].display());
    assert!(
        last.contains("has not opened") && last.contains(&missing),
        "{said}"
    );

    // Who does not wait for it any more need not expect a mount.
    let mut asking = mount.start(&daemon, "vol", "");
    let mut line = String::new();
    let said = asking.stderr.take().expect("piped");
    BufReader::new(said).read_line(&mut line).expect("a line");
    assert!(line.contains("is opening"), "{line}");
    asking.kill().expect("kill");
    asking.wait().expect("wait");
    tool::wait_for(
        "the end of the mount process",
        Duration::from_secs(3),
        || mount.client_pids().is_empty().then_some(()),
    );
}

#[test]
fn a_data_directory_and_bricks_in_use_name_the_process_that_has_them() {
    let daemon = Daemon::with_volume(Kind::Plain, "256M");
    let pid = format!("process {}", daemon.pid());
    let second = Command::new(bin_dir().join("mortard"))
        .arg("--data-dir")
        .arg(daemon.dir().join("data"))
        .args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .expect("mortard");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&pid), "{said}");
    let brick = daemon.dir().join("vol-b1");
    let used = daemon.mortar(&["brick", "info", brick.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&used.stderr).into_owned();
    assert!(!used.status.success() && said.contains(&pid), "{said}");
    let other = Daemon::start();
    other.wait_ready();
    let place = format!("127.0.0.1:{}", brick.display());
    let taken = other.mortar(&["volume", "create", "thief", &place, "force"]);
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(!taken.status.success() && said.contains(&pid), "{said}");
}

/// A loop device.
struct Loop(PathBuf);

impl Loop {
    /// A free one, or one of this name.
    fn attach(image: &Path, at: Option<&Path>) -> Self {
        let mut losetup = Command::new("losetup");
        match at {
            Some(at) => losetup.arg(at).arg(image),
            None => losetup.args(["--find", "--show"]).arg(image),
        };
        let out = losetup.output().expect("losetup");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        Self(at.map_or_else(|| PathBuf::from(said), Path::to_owned))
    }

    fn detach(self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn bricks_on_block_devices_are_found_under_whatever_name_they_have() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: loop devices need root");
        return;
    }
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let images = [1, 2].map(|number| daemon.dir().join(format!("disk{number}")));
    for image in &images {
        let file = File::create(image).expect("create");
        file.set_len(300 << 20).expect("size");
    }
    let one = Loop::attach(&images[0], None);
    let two = Loop::attach(&images[1], None);
    let places = [&one, &two].map(|found| format!("127.0.0.1:{}", found.0.display()));
    daemon.mortar_ok(&["volume", "create", "vol", &places[0], &places[1], "force"]);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let mount = Mount::new(&daemon, "vol");
    for number in 0..20 {
        fs::write(mount.join(&format!("f{number}")), [number; 100_000]).expect("write");
    }
    end(&mut daemon, &mount);
    let names = [one.detach(), two.detach()];
    // As after a boot that found them in another order.
    let attached = tool::wait_for("free devices", SOON, || {
        let free = names.iter().all(|name| {
            let size = Command::new("blockdev")
                .arg("--getsize64")
                .arg(name)
                .output();
            size.is_ok_and(|size| size.stdout.starts_with(b"0"))
        });
        free.then(|| {
            let two = Loop::attach(&images[1], Some(&names[0]));
            (two, Loop::attach(&images[0], Some(&names[1])))
        })
    });
    again(&mut daemon);
    mount.mount(&daemon, "vol", "");
    for number in 0..20 {
        let read = fs::read(mount.join(&format!("f{number}"))).expect("read");
        assert!(read == [number; 100_000], "f{number}");
    }
    let log = daemon.log();
    let found = log
        .lines()
        .filter(|line| line.contains("found on /dev/loop"));
    assert_eq!(found.count(), 2, "{log}");
    end(&mut daemon, &mount);
    drop(attached);
}
