//! What docs/operations.md and README promise an administrator, on real processes: stop and delete under mounts, what is
//! left of a deleted volume, offline tools, who owns the root, df and du, panics and dead mounts.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mortar_tests::real::{Daemon, Kind, Mount, bin_dir, tool};

const SOON: Duration = Duration::from_secs(10);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn sh(dir: &Path, script: &str) -> String {
    text(&tool::run_in(dir, "sh", &["-ec", script]).stdout)
}

/// The tool for bricks.
fn brick(words: &[&str]) -> Output {
    Command::new(bin_dir().join("mortar"))
        .arg("brick")
        .args(words)
        .output()
        .expect("mortar brick")
}

fn errno(result: std::io::Result<impl std::fmt::Debug>) -> Option<i32> {
    result.expect_err("an error").raw_os_error()
}

/// The call ends with ENOTCONN, and not only after the time for which calls wait for a server.
fn not_connected(call: impl FnOnce() -> Option<i32>) {
    let (refused, took) = tool::timed(call);
    assert_eq!(refused, Some(libc::ENOTCONN));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

fn mount_log(daemon: &Daemon) -> String {
    text(&fs::read(daemon.dir().join("mount.log")).unwrap_or_default())
}

#[test]
fn stop_ends_calls_at_once_and_start_revives_the_mounts() {
    let daemon = Daemon::with_volume(Kind::DistributeReplica(2, 2), "256M");
    // With its attributes known, the directory is not asked about before the name is.
    let one = Mount::with_options(&daemon, "vol", "attribute-timeout=600");
    let two = Mount::new(&daemon, "vol");
    for n in 0..20 {
        fs::write(one.join(&format!("f{n}")), format!("text {n}")).expect("write");
    }
    let open = File::open(two.join("f3")).expect("open");
    for round in 0..2 {
        fs::metadata(one.path()).expect("stat");
        let told = daemon.mortar_ok(&["--mode=script", "volume", "stop", "vol"]);
        assert!(told.contains("2 clients have vol mounted"), "{told}");
        let odd = one.path().join(OsStr::from_bytes(b"two\nlines and \xff"));
        not_connected(|| errno(fs::write(&odd, b"x")));
        not_connected(|| errno(fs::write(two.join("new"), b"x")));
        let log = mount_log(&daemon);
        let line = log.lines().find(|line| line.contains("lines and"));
        let line = line.unwrap_or_else(|| panic!("no line:\n{log}"));
        for part in [
            "ENOTCONN",
            "/two\\nlines and \\xff",
            "in volume vol",
            "is stopped",
        ] {
            assert!(line.contains(part), "no '{part}' in {line}");
        }
        daemon.mortar_ok(&["volume", "start", "vol"]);
        // The very first calls are answered again.
        fs::write(one.join("again"), format!("round {round}")).expect("write");
        let seen = fs::read_to_string(two.join("again")).expect("read");
        assert_eq!(seen, format!("round {round}"));
        let mut six = [0; 6];
        open.read_exact_at(&mut six, 0).expect("an old handle");
        assert_eq!(&six, b"text 3");
    }
}

#[test]
fn a_deleted_volume_is_gone_from_its_mounts_and_its_bricks_can_be_read_and_wiped() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    fs::write(mount.join("old"), b"of the old volume").expect("write");
    let bricks: Vec<PathBuf> = (1..=3)
        .map(|n| daemon.dir().join(format!("vol-b{n}")))
        .collect();
    let stop = ["--mode=script", "volume", "stop", "vol"];
    daemon.mortar_ok(&stop);
    let kept = brick(&["wipe", path(&bricks[0])]);
    assert_eq!(kept.status.code(), Some(2));
    assert!(text(&kept.stderr).contains("was not deleted"), "{kept:?}");
    daemon.mortar_ok(&["--mode=script", "volume", "delete", "vol"]);
    not_connected(|| errno(fs::metadata(mount.join("absent"))));

    // Another volume of the same name, on other bricks, is never shown by the old mount.
    let other: Vec<String> = (1..=2)
        .map(|n| {
            format!(
                "127.0.0.1:{}",
                daemon.dir().join(format!("other{n}")).display()
            )
        })
        .collect();
    let mut words = vec!["volume", "create", "vol", "replica", "2"];
    words.extend(other.iter().map(String::as_str));
    words.extend(["--brick-size", "256M", "force"]);
    daemon.mortar_ok(&words);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let new = Mount::new(&daemon, "vol");
    fs::write(new.join("new"), b"of the new volume").expect("write");
    for _ in 0..5 {
        assert_eq!(errno(fs::read(mount.join("new"))), Some(libc::ENOTCONN));
        assert!(fs::read(mount.join("old")).is_err());
    }
    let log = mount_log(&daemon);
    let told = log.matches("another one has its name: calls").count();
    assert_eq!(told, 1, "told once:\n{log}");
    mount.umount();

    // The old contents are still there.
    let out = daemon.dir().join("out");
    let exported = brick(&["export", path(&bricks[1]), path(&out)]);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    assert_eq!(
        fs::read(out.join("old")).expect("read"),
        b"of the old volume"
    );
    // force takes a brick again; wipe frees the others.
    let again = format!("127.0.0.1:{}", bricks[0].display());
    let create = ["volume", "create", "second", &again, "--brick-size", "256M"];
    assert!(!daemon.mortar(&create).status.success());
    let forced: Vec<&str> = create.iter().copied().chain(["force"]).collect();
    daemon.mortar_ok(&forced);
    let wiped = brick(&["wipe", path(&bricks[1]), path(&bricks[2])]);
    assert_eq!(wiped.status.code(), Some(0), "{wiped:?}");
    for dir in &bricks[1..] {
        assert_eq!(fs::read_dir(dir).expect("list").count(), 0);
    }
    // What is in use, and what never was a brick, stays.
    let used = daemon.dir().join("other1");
    let refused = brick(&["wipe", "--force", path(&used)]);
    assert!(
        text(&refused.stderr).contains("in use by process"),
        "{refused:?}"
    );
    let file = daemon.dir().join("file");
    fs::write(&file, vec![7; 1 << 20]).expect("write");
    let refused = brick(&["wipe", "--force", path(&file)]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert_eq!(fs::read(&file).expect("read"), vec![7; 1 << 20]);
    assert_eq!(
        fs::read(new.join("new")).expect("read"),
        b"of the new volume"
    );
}

/// A tree with everything an export has to keep. Made on the mount.
const TREE: &str = "mkdir -p dir/sub 'odd\nname'\n\
    printf text > dir/file; chmod 640 dir/file; chown 1234:777 dir/file\n\
    ln dir/file dir/sub/linked; ln -s ../file dir/sub/link; mkfifo dir/pipe; mknod dir/null c 1 3\n\
    setfattr -n user.note -v 'a value' dir/file; setfacl -m u:1234:rw,g:77:r dir/file\n\
    setfacl -d -m u:1234:rwx dir/sub\n\
    truncate -s 50M sparse; printf data | dd of=sparse bs=1 seek=40000000 conv=notrunc status=none\n\
    dd if=/dev/urandom of=large bs=1M count=30 status=none\n\
    touch -h -d '1999-12-31 23:59:59.123456789' dir/file dir/sub/link\n\
    touch -d '2001-02-03 04:05:06' dir/sub dir large sparse";

#[test]
fn an_export_keeps_everything_and_names_what_is_elsewhere() {
    if !is_root() {
        eprintln!("skipped: owners and device nodes need root");
        return;
    }
    let daemon = Daemon::start();
    daemon.wait_ready();
    let dirs: Vec<PathBuf> = (1..=2)
        .map(|n| daemon.dir().join(format!("b{n}")))
        .collect();
    let words: Vec<String> = dirs
        .iter()
        .map(|dir| format!("127.0.0.1:{}", dir.display()))
        .collect();
    daemon.mortar_ok(&[
        "volume",
        "create",
        "vol",
        &words[0],
        &words[1],
        "--brick-size",
        "256M",
        "force",
    ]);
    daemon.mortar_ok(&["volume", "set", "vol", "features.shard-block-size", "4MB"]);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let mount = Mount::new(&daemon, "vol");
    sh(mount.path(), TREE);
    let tree = daemon.dir().join("tree");
    sh(
        Path::new("/"),
        &format!(
            "cp -a --sparse=always {} {}",
            path(mount.path()),
            path(&tree)
        ),
    );
    mount.umount();
    daemon.mortar_ok(&["--mode=script", "volume", "stop", "vol"]);

    let out = daemon.dir().join("out");
    let whole = brick(&["export", path(&dirs[0]), path(&dirs[1]), path(&out)]);
    assert_eq!(whole.status.code(), Some(0), "{whole:?}");
    let (from, to) = (
        format!("{}/", tree.display()),
        format!("{}/", out.display()),
    );
    for how in ["-naHAXSi", "-naHAXSic"] {
        let left = tool::run_in(Path::new("/"), "rsync", &[how, "--delete", &from, &to]);
        assert_eq!(text(&left.stdout), "", "rsync {how}");
    }
    let sparse = fs::metadata(out.join("sparse")).expect("stat");
    assert!(sparse.blocks() < 1_000, "{} blocks", sparse.blocks());

    // Half of the devices: what lies on the others is named, and the exit code tells.
    let half = daemon.dir().join("half");
    let part = brick(&["export", path(&dirs[0]), path(&half)]);
    assert_eq!(part.status.code(), Some(1), "{part:?}");
    let said = text(&part.stderr);
    let large = said.lines().find(|line| line.contains("/large: "));
    let large = large.unwrap_or_else(|| panic!("large is not named:\n{said}"));
    assert!(
        large.contains("not given") || large.contains("brick of another set"),
        "{large}"
    );
    // The other half has the rest, with the root or without: between them every file, link and device is there.
    let other = daemon.dir().join("other-half");
    let part = brick(&["export", path(&dirs[1]), path(&other)]);
    assert_eq!(part.status.code(), Some(1), "{part:?}");
    let found = |dirs: &str| {
        let script = format!("find {dirs} ! -type d -printf '%i\\n' | sort -u | wc -l");
        sh(daemon.dir(), &script)
    };
    let listing = || sh(daemon.dir(), "find half other-half -ls");
    assert_eq!(found("half other-half"), found("tree"), "{}", listing());
}

#[test]
fn a_brick_in_use_is_checked_as_of_its_last_checkpoint() {
    let daemon = Daemon::with_volume(Kind::Replica(2), "256M");
    let mount = Mount::new(&daemon, "vol");
    let dir = daemon.dir().join("vol-b1");
    let check = || {
        let out = brick(&["check", path(&dir)]);
        let said = text(&out.stdout);
        let first = said.lines().next().unwrap_or_default().to_owned();
        let pid = format!("is in use by process {}", daemon.pid());
        assert!(first.contains(&pid), "{said}");
        assert!(first.ends_with("its last checkpoint is judged, not its log"));
        assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
        assert!(said.trim_end().ends_with("sound"), "{said}");
        said
    };
    check();
    // While it changes under the check, over several checkpoints (a ring of 8 MiB forces them).
    let data = vec![9; 3 << 20];
    let before = check();
    for n in 0..60 {
        let name = mount.join(&format!("f{}", n % 20));
        fs::write(&name, &data[..data.len() - n]).expect("write");
        for small in 0..30 {
            fs::write(mount.join(&format!("s{small}")), vec![n as u8; 30_000]).expect("write");
        }
        if n % 10 == 9 {
            check();
        }
    }
    assert_ne!(check(), before, "there was a checkpoint");
    fs::remove_file(mount.join("f1")).expect("rm");
}

#[test]
fn the_root_belongs_to_whom_the_options_name() {
    let mut daemon = Daemon::with_volume(Kind::Plain, "256M");
    if !is_root() {
        eprintln!("skipped: only root gives things away");
        return;
    }
    let wrong = daemon.mortar(&["volume", "set", "vol", "storage.owner-uid", "somebody"]);
    assert!(!wrong.status.success(), "{wrong:?}");
    daemon.mortar_ok(&["volume", "set", "vol", "storage.owner-uid", "36"]);
    let mount = Mount::new(&daemon, "vol");
    let owner = || {
        let root = fs::metadata(mount.path()).expect("stat");
        (root.uid(), root.gid(), root.mode() & 0o7777)
    };
    assert_eq!(owner(), (36, 0, 0o755));
    // While it is mounted.
    daemon.mortar_ok(&["volume", "set", "vol", "storage.owner-gid", "37"]);
    tool::wait_for("the new group", SOON, || (owner().1 == 37).then_some(()));
    fs::set_permissions(mount.path(), PermissionsExt::from_mode(0o2770)).expect("chmod");
    daemon.terminate();
    daemon.restart();
    mount.umount();
    mount.mount(&daemon, "vol", "");
    assert_eq!(owner(), (36, 37, 0o2770));
    // Without the options it stays as it is.
    daemon.mortar_ok(&["volume", "reset", "vol"]);
    std::os::unix::fs::chown(mount.path(), Some(5), Some(6)).expect("chown");
    mount.umount();
    mount.mount(&daemon, "vol", "");
    assert_eq!(owner(), (5, 6, 0o2770));
}

#[test]
fn df_and_du_agree_and_blocks_are_right_while_writes_are_held() {
    let daemon = Daemon::with_volume(Kind::DistributeReplica(2, 2), "512M");
    let mount = Mount::new(&daemon, "vol");
    let script = "mkdir -p a/b/c d e\n\
        for n in $(seq 150); do head -c $((n * 700)) /dev/urandom > a/b/f$n; done\n\
        head -c 80000000 /dev/urandom > d/large\n\
        truncate -s 1G sparse; printf x | dd of=sparse bs=1 seek=500000000 conv=notrunc status=none\n\
        fallocate -l 20M e/granted; ln d/large e/again";
    sh(mount.path(), script);
    // Also before what is held has been sent.
    let du = |what: &str| -> u64 {
        let out = sh(mount.path(), &format!("du -s -B1 {what}"));
        out.split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a number")
    };
    let large = fs::metadata(mount.join("d/large")).expect("stat");
    assert_eq!(large.blocks() * 512, 80_000_000u64.next_multiple_of(4096));
    assert_eq!(large.blksize(), 128 << 10);
    assert_eq!(
        fs::metadata(mount.join("sparse")).expect("stat").blocks(),
        8
    );
    assert_eq!(du("e/granted"), 20 << 20);
    for (dir, links) in [(".", 5), ("a", 3), ("a/b", 3), ("a/b/c", 2), ("e", 2)] {
        let meta = fs::metadata(mount.join(dir)).expect("stat");
        assert_eq!(meta.nlink(), links, "{dir}");
    }
    let used = || {
        let out = sh(mount.path(), "df -B1 --output=used . | tail -1");
        out.trim().parse::<u64>().expect("a number")
    };
    let whole = du(".");
    tool::wait_for("df and du within 2 %", SOON, || {
        let used = used();
        (used.abs_diff(whole) * 50 <= whole).then_some(())
    });
    let space = rustix::fs::statvfs(mount.path()).expect("statvfs");
    assert_eq!(space.f_bsize, space.f_frsize);
    assert!(space.f_files > space.f_ffree && space.f_ffree > 1_000);
    // All that was used comes back.
    sh(mount.path(), "rm -r a d e sparse");
    tool::wait_for("nothing is used", SOON, || (used() == 0).then_some(()));
}

#[test]
fn a_mount_point_may_have_any_name() {
    let mut daemon = Daemon::with_volume(Kind::Plain, "256M");
    daemon.mortar_ok(&["volume", "set", "vol", "network.frame-timeout", "2"]);
    let server = daemon.server();
    let (host, port) = server.rsplit_once(':').expect("host:port");
    let options = format!(
        "server-port={port},log-file={}",
        daemon.dir().join("odd.log").display()
    );
    let dir = daemon.dir().join(OsStr::from_bytes(b"a \\ b\n\xff"));
    fs::create_dir(&dir).expect("mkdir");
    let mortar = || {
        let mut command = Command::new(bin_dir().join("mortar"));
        command
            .args(["mount", &format!("{host}:/vol")])
            .arg(&dir)
            .args(["-o", &options]);
        command.output().expect("mortar")
    };
    assert!(mortar().status.success());
    fs::write(dir.join("file"), b"text").expect("write");
    let again = mortar();
    assert!(text(&again.stderr).contains("already mounted"), "{again:?}");
    // It knows that it is still mounted while its server is away.
    daemon.kill();
    assert_eq!(
        errno(fs::metadata(dir.join("absent"))),
        Some(libc::ENOTCONN)
    );
    daemon.restart();
    daemon.wait_ready();
    tool::wait_for("the server's return", SOON, || {
        fs::read(dir.join("file")).is_ok().then_some(())
    });
    let unmounted = Command::new("umount").arg(&dir).status().expect("umount");
    assert!(unmounted.success());
}

/// Panics on a thread of its own. Where the process goes on, it serves for a while longer, which the test notices.
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn panic_on_a_thread() {
    let worker = std::thread::Builder::new().name("unlucky".to_owned());
    let started = worker
        .spawn(|| panic!("as the test wants it"))
        .expect("thread");
    assert!(started.join().is_err());
    std::thread::sleep(Duration::from_secs(20));
}

/// Runs a test of this program that panics, in a process of its own; waits for its end, and looks into its log.
fn panics(test: &str, env: &[(&str, String)], log: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program again");
    let status = tool::wait_for("its end", SOON, || child.try_wait().expect("wait"));
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(signal, Some(libc::SIGABRT), "{status:?}");
    let said = text(&fs::read(log).expect("log"));
    for part in [
        "PANIC in thread unlucky",
        "as the test wants it",
        "operations.rs",
        "0: ",
    ] {
        assert!(said.contains(part), "no '{part}' in:\n{said}");
    }
}

/// Not a test of its own: a daemon served by this process, of which another thread then panics.
#[test]
#[ignore = "run by a_panic_ends_mortard_with_its_backtrace_in_the_log in a process of its own"]
fn serve_bricks_and_panic() {
    use clap::Parser;
    let words = std::env::var("PANIC_WORDS").expect("set by the test");
    let arguments = mortar_server::node::command::Arguments::parse_from(words.lines());
    std::thread::spawn(|| mortar_server::node::command::run(arguments));
    let log = std::env::var("PANIC_LOG").expect("set by the test");
    tool::wait_for("its bricks", SOON, || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        said.contains("effective=true").then_some(())
    });
    panic_on_a_thread();
}

#[test]
fn a_panic_ends_mortard_with_its_backtrace_in_the_log() {
    let mut daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    fs::write(mount.join("file"), b"text").expect("write");
    daemon.kill();
    let log = daemon.dir().join("panic.log");
    let words = format!(
        "mortard\n--secret-file\n{}\n--data-dir\n{}\n--listen\n{}\n--api\n{}\n--log-file\n{}",
        daemon.dir().join("secret").display(),
        daemon.dir().join("data").display(),
        daemon.server(),
        daemon.api(),
        log.display()
    );
    let env = [("PANIC_WORDS", words), ("PANIC_LOG", path(&log).to_owned())];
    panics("serve_bricks_and_panic", &env, &log);
    // Nothing is locked or lost, and the mount goes on.
    daemon.restart();
    daemon.wait_ready();
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"text");
    mount.umount();
}

/// Not a test of its own: a mount served by this process, of which another thread then panics.
#[test]
#[ignore = "run by a_panic_ends_a_mount_with_its_backtrace_in_the_log in a process of its own"]
fn serve_a_mount_and_panic() {
    let word = |name: &str| std::env::var(name).expect("set by the test");
    let dir = PathBuf::from(word("PANIC_DIR"));
    let args = mortar_client::mount::MountArgs {
        source: word("PANIC_SOURCE"),
        dir: dir.clone(),
        options: vec![word("PANIC_OPTIONS")],
        foreground: true,
        background: false,
        log: None,
    };
    std::thread::spawn(|| mortar_client::mount::run(args));
    tool::wait_for("the mount", SOON, || {
        dir.join("file").exists().then_some(())
    });
    panic_on_a_thread();
}

#[test]
fn a_panic_ends_a_mount_with_its_backtrace_in_the_log() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    fs::write(mount.join("file"), b"text").expect("write");
    mount.umount();
    let log = daemon.dir().join("panic.log");
    let server = daemon.server();
    let (host, port) = server.rsplit_once(':').expect("host:port");
    let env = [
        ("PANIC_DIR", path(mount.path()).to_owned()),
        ("PANIC_SOURCE", format!("{host}:/vol")),
        (
            "PANIC_OPTIONS",
            format!("server-port={port},log-file={}", log.display()),
        ),
    ];
    panics("serve_a_mount_and_panic", &env, &log);
    // Who uses the dead mount is told so, and mounting again clears it.
    let dead = tool::wait_for("the end of the connection", SOON, || {
        let refused = errno(fs::metadata(mount.join("never-seen")));
        (refused != Some(libc::ECONNABORTED)).then_some(refused)
    });
    assert_eq!(dead, Some(libc::ENOTCONN));
    mount.mount(&daemon, "vol", "");
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"text");
    let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let dir = path(mount.path());
    let ours = table
        .lines()
        .filter(|line| line.split(' ').nth(1) == Some(dir));
    assert_eq!(ours.count(), 1, "the dead mount is gone from below");
}

/// Waits until it is so; options reach clients and bricks soon.
fn comes_true(what: &str, mut is_so: impl FnMut() -> bool) {
    tool::wait_for(what, SOON, || is_so().then_some(()));
}

#[test]
fn a_read_only_volume_refuses_changes_and_serves_reads() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    fs::write(mount.join("file"), b"text").expect("write");
    let set = |value| daemon.mortar_ok(&["volume", "set", "vol", "features.read-only", value]);
    let refused = || {
        let made = fs::create_dir(mount.join("dir"));
        made.is_err_and(|error| {
            error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error())
        })
    };
    set("on");
    comes_true("EROFS", || {
        let refused = refused();
        // One that still came through must not stand in the way of the next.
        let _ = fs::remove_dir(mount.join("dir"));
        refused
    });
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"text");
    assert!(fs::remove_file(mount.join("file")).is_err());
    set("off");
    comes_true("a change", || fs::create_dir(mount.join("dir2")).is_ok());
    fs::remove_file(mount.join("file")).expect("rm");
}

#[test]
fn a_reserve_is_kept_free_of_new_data() {
    let daemon = Daemon::with_volume(Kind::Plain, "256M");
    let mount = Mount::new(&daemon, "vol");
    let avail = || {
        let space = rustix::fs::statvfs(mount.path()).expect("statfs");
        space.f_bavail * space.f_frsize
    };
    let before = avail();
    daemon.mortar_ok(&["volume", "set", "vol", "storage.reserve", "50"]);
    comes_true("the reserve", || avail() < before * 6 / 10);
    let kept = avail();
    let block = vec![1; 1 << 20];
    let mut file = File::create(mount.join("file")).expect("create");
    let mut written = 0;
    let full = loop {
        use std::io::Write;
        match file.write_all(&block).and_then(|()| file.sync_data()) {
            Ok(()) => written += 1u64 << 20,
            Err(error) => break error,
        }
        assert!(written <= kept + (8 << 20), "{written} bytes in {kept}");
    };
    assert_eq!(
        full.raw_os_error(),
        Some(rustix::io::Errno::NOSPC.raw_os_error()),
        "{full}"
    );
    assert!(written + (8 << 20) > kept, "{written} bytes in {kept}");
    daemon.mortar_ok(&["volume", "reset", "vol", "storage.reserve"]);
    comes_true("the space", || avail() > before / 3);
}
