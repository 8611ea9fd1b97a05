//! Backup tools, re-export and what programs rely on beyond the POSIX suites, on one mount and on two.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mortar_tests::real::{Daemon, Kind, Mount, tool};
use rustix::fs::{FallocateFlags, FlockOperation, XattrFlags, fallocate, flock};
use rustix::io::Errno;

const SOON: Duration = Duration::from_secs(10);

fn volume() -> (Daemon, Mount) {
    let daemon = Daemon::with_volume(Kind::Replica(3), "1G");
    let mount = Mount::new(&daemon, "vol");
    (daemon, mount)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn sh(dir: &Path, script: &str) -> String {
    let out = tool::run_in(dir, "sh", &["-ec", script]);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A tree with everything that backup tools carry. Made on the machine's own file system.
fn backup_tree(dir: &Path) {
    sh(
        dir,
        "mkdir -p plain/deep/er 'odd names' team\n\
         for n in $(seq 200); do echo \"file $n\" > plain/deep/f$n; done\n\
         dd if=/dev/urandom of=plain/large bs=64k count=40 status=none\n\
         truncate -s 60M sparse; printf data | dd of=sparse bs=1 seek=40000000 conv=notrunc status=none\n\
         printf x | dd of=sparse bs=1 seek=12345 conv=notrunc status=none\n\
         ln plain/deep/f1 plain/one; ln plain/deep/f1 team/two\n\
         ln -s ../plain/one team/link; ln -s /nowhere/at/all dangling\n\
         mkfifo pipe; mknod null c 1 3\n\
         printf a > 'odd names/two\nlines'; printf b > 'odd names/ spaces '; printf c > 'odd names/-rf'\n\
         chmod 2775 team; chgrp 777 team; chmod 0 plain/deep/f2; chmod 4711 plain/deep/f3\n\
         chown 1234:777 plain/deep/f4\n\
         setfacl -m u:1234:rw,g:777:r plain/deep/f5; setfacl -d -m u:1234:rwx team\n\
         setfattr -n user.note -v 'some value' plain/deep/f6; setfattr -n user.empty plain/deep/f6\n\
         setfattr -n trusted.secret -v x plain/deep/f6\n\
         cp /bin/true plain/capable; setcap cap_net_raw+ep plain/capable\n\
         touch -h -d '1999-12-31 23:59:59.123456789' plain/deep/f7 dangling\n\
         touch -d '2001-02-03 04:05:06' plain/deep/er plain/deep plain team",
    );
    fs::write(
        dir.join(OsStr::from_bytes(b"odd names/not\xff\xfeutf-8")),
        b"d",
    )
    .expect("write");
    fs::write(dir.join("odd names").join("n".repeat(255)), b"e").expect("write");
    sh(dir, "touch -d '1985-01-01' 'odd names'");
}

/// What `rsync -n` would still do.
fn differences(from: &Path, to: &Path, more: &[&str]) -> String {
    let (from, to) = (format!("{}/", from.display()), format!("{}/", to.display()));
    let mut args = vec!["-naHAXSi", "--delete"];
    args.extend(more);
    args.extend([from.as_str(), to.as_str()]);
    let out = tool::run_in(Path::new("/"), "rsync", &args);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn assert_same(from: &Path, to: &Path, how: &str) {
    for more in [&[][..], &["--checksum"][..]] {
        let left = differences(from, to, more);
        assert_eq!(left, "", "{how}, {more:?}");
    }
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").blocks()
}

#[test]
fn backup_tools_carry_a_tree_in_and_out_unchanged() {
    if !is_root() {
        eprintln!("skipped: device nodes, owners and trusted attributes need root");
        return;
    }
    let (daemon, mount) = volume();
    let own = tempfile::tempdir().expect("directory");
    let tree = own.path().join("tree");
    fs::create_dir(&tree).expect("mkdir");
    backup_tree(&tree);
    let (inside, out) = (mount.join("tree"), own.path().join("out"));
    let copies: [(&str, &str); 3] = [
        ("rsync", "rsync -aHAXS --delete \"$1/\" \"$2/\""),
        (
            "tar",
            "mkdir \"$2\"; tar -C \"$1\" --xattrs --xattrs-include='*' --acls -S -cf - . | \
             tar -C \"$2\" --xattrs --xattrs-include='*' --acls -S -xpf -",
        ),
        ("cp", "cp -a --sparse=always \"$1\" \"$2\""),
    ];
    for (tool, script) in copies {
        let copy = |from: &Path, to: &Path| {
            tool::run_in(
                Path::new("/"),
                "sh",
                &["-ec", script, "sh", path(from), path(to)],
            )
        };
        copy(&tree, &inside);
        assert_same(&tree, &inside, tool);
        let sparse = blocks(&inside.join("sparse"));
        assert!(sparse < 1_000, "{tool}: holes are kept, {sparse} blocks");
        let linked = |name: &str| fs::metadata(inside.join(name)).expect("stat");
        let one = linked("plain/one");
        assert_eq!((one.nlink(), one.ino()), (3, linked("team/two").ino()));
        // Nothing changes by being written out later, or by another look at it.
        mount.umount();
        mount.mount(&daemon, "vol", "");
        assert_same(&tree, &inside, &format!("{tool}, after remount"));
        copy(&inside, &out);
        assert_same(&tree, &out, &format!("{tool}, and out again"));
        for dir in [&inside, &out] {
            fs::remove_dir_all(dir).expect("rm -r");
        }
    }
}

#[test]
fn rsync_deletes_and_updates_what_changed_only() {
    let (_daemon, mount) = volume();
    let own = tempfile::tempdir().expect("directory");
    let (tree, inside) = (own.path().join("tree"), mount.join("tree"));
    sh(
        own.path(),
        "mkdir -p tree/a tree/b; for n in $(seq 50); do echo $n > tree/a/$n; done",
    );
    let sync = || {
        let (from, to) = (
            format!("{}/", tree.display()),
            format!("{}/", inside.display()),
        );
        let out = tool::run_in(Path::new("/"), "rsync", &["-ai", "--delete", &from, &to]);
        String::from_utf8_lossy(&out.stdout).lines().count()
    };
    assert!(sync() > 50);
    assert_eq!(sync(), 0, "nothing is new");
    sh(
        own.path(),
        "rm tree/a/7; echo changed > tree/a/8; mv tree/a/9 tree/b/9; touch -d 2000-01-01 tree/a tree/b",
    );
    assert!((3..=6).contains(&sync()));
    assert_eq!(sync(), 0);
    assert_eq!(tool::tree_hash(&tree), tool::tree_hash(&inside));
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn times_set_before_close_stay_and_make_rebuilds_nothing() {
    let (daemon, mount) = volume();
    let file = File::create(mount.join("old")).expect("create");
    (&file).write_all(b"text").expect("write");
    let then = std::fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789));
    file.set_times(then).expect("utimensat");
    drop(file);
    let dir = mount.join("project");
    fs::create_dir(&dir).expect("mkdir");
    fs::write(
        dir.join("Makefile"),
        "all: a.out b.out\n%.out: %.in\n\tsed s/x/y/ $< > $@\n",
    )
    .expect("write");
    fs::write(dir.join("a.in"), "x\n").expect("write");
    fs::write(dir.join("b.in"), "xx\n").expect("write");
    assert!(sh(&dir, "make").contains("sed"));
    let check = |when: &str| {
        let meta = fs::metadata(mount.join("old")).expect("stat");
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (1_000_000_000, 123_456_789),
            "{when}"
        );
        let made = sh(&dir, "make");
        assert!(made.contains("Nothing to be done"), "{when}: {made}");
    };
    check("at once");
    std::thread::sleep(Duration::from_millis(1_500));
    check("after write-behind");
    mount.umount();
    mount.mount(&daemon, "vol", "");
    check("after remount");
    // A built tree stays built when it is carried out and in again: times are kept to the nanosecond.
    let own = tempfile::tempdir().expect("directory");
    let built = own.path().join("built");
    let places = [
        ("out by cp", "cp -a \"$1\" \"$2\"", &dir, &built),
        (
            "in by rsync",
            "rsync -a \"$1/\" \"$2\"",
            &built,
            &mount.join("in-again"),
        ),
        ("within", "cp -a \"$1\" \"$2\"", &dir, &mount.join("copy")),
        (
            "out by rsync",
            "rsync -a \"$1/\" \"$2\"",
            &mount.join("copy"),
            &own.path().join("back"),
        ),
    ];
    for (how, script, from, to) in places {
        tool::run_in(
            Path::new("/"),
            "sh",
            &["-ec", script, "sh", path(from), path(to)],
        );
        let made = sh(to, "make");
        assert!(made.contains("Nothing to be done"), "{how}: {made}");
    }
    // What did change is made again, and only that.
    std::thread::sleep(Duration::from_millis(20));
    fs::write(mount.join("in-again/a.in"), "y\n").expect("write");
    let made = sh(&mount.join("in-again"), "make");
    assert!(made.contains("a.in") && !made.contains("b.in"), "{made}");
}

/// Appends `lines` lines with O_APPEND from a process of its own.
const APPENDER: &str = "import os, sys\n\
    f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n\
    for n in range(int(sys.argv[3])):\n\
    \u{20}   line = ('%s %06d ' % (sys.argv[2], n)).encode() + b'x' * (n % 90) + b'\\n'\n\
    \u{20}   assert os.write(f, line) == len(line)\n\
    os.close(f)\n";

#[test]
fn eight_writers_on_two_mounts_append_every_line_once_and_whole() {
    let lines: usize = std::env::var("APPEND_LINES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2_000);
    let daemon = Daemon::with_volume(Kind::Replica(3), "1G");
    for write_behind in ["on", "off"] {
        daemon.mortar_ok(&[
            "volume",
            "set",
            "vol",
            "performance.write-behind",
            write_behind,
        ]);
        let mounts = [Mount::new(&daemon, "vol"), Mount::new(&daemon, "vol")];
        let name = format!("log-{write_behind}");
        File::create(mounts[0].join(&name)).expect("create");
        let mut writers = Vec::new();
        for writer in 0..8 {
            let log = mounts[writer % 2].join(&name);
            let child = Command::new("python3")
                .args([
                    "-c",
                    APPENDER,
                    path(&log),
                    &writer.to_string(),
                    &lines.to_string(),
                ])
                .spawn()
                .expect("python3");
            writers.push(child);
        }
        for mut writer in writers {
            assert!(writer.wait().expect("wait").success());
        }
        for mount in &mounts {
            let text = fs::read_to_string(mount.join(&name)).expect("read");
            let mut next = [0; 8];
            for line in text.lines() {
                let mut words = line.split(' ');
                let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
                let (Some(writer), Some(n)) = (number(), number()) else {
                    panic!("torn: {line:?}");
                };
                assert_eq!(
                    n, next[writer],
                    "writer {writer}, write-behind {write_behind}"
                );
                assert_eq!(words.next(), Some("x".repeat(n % 90).as_str()));
                next[writer] += 1;
            }
            assert_eq!(next, [lines; 8], "write-behind {write_behind}");
        }
    }
}

#[test]
fn what_one_mount_makes_the_other_finds_at_once() {
    let (daemon, one) = volume();
    let two = Mount::new(&daemon, "vol");
    for n in 0..50 {
        let name = format!("f{n}");
        // A look-up before leaves nothing behind that would hide the name.
        assert!(!two.join(&name).exists());
        let contents = vec![n as u8; 1 + n * 700];
        fs::write(one.join(&name), &contents).expect("write");
        assert_eq!(fs::read(two.join(&name)).expect("read"), contents);
        let longer = vec![!(n as u8); 2 + n * 900];
        fs::write(two.join(&name), &longer).expect("write");
        let file = File::open(one.join(&name)).expect("open after close");
        assert_eq!(file.metadata().expect("stat").len(), longer.len() as u64);
        assert_eq!(fs::read(one.join(&name)).expect("read"), longer);
    }
}

#[test]
fn setgid_directories_and_default_acls() {
    if !is_root() {
        return; // only root can become somebody else
    }
    let (daemon, one) = volume();
    let two = Mount::new(&daemon, "vol");
    std::os::unix::fs::chown(one.path(), None, Some(777)).expect("chgrp");
    fs::set_permissions(one.path(), fs::Permissions::from_mode(0o2775)).expect("chmod");
    let script = "umask 027; echo x > by-user; mkdir dir; echo y > dir/deeper; mkdir dir/sub";
    let as_user = [
        "--reuid=1234",
        "--regid=1234",
        "--groups=777",
        "sh",
        "-ec",
        script,
    ];
    tool::run_in(one.path(), "setpriv", &as_user);
    for mount in [&one, &two] {
        let meta = |name: &str| fs::metadata(mount.join(name)).expect("stat");
        for (name, mode) in [
            ("by-user", 0o640),
            ("dir", 0o2750),
            ("dir/deeper", 0o640),
            ("dir/sub", 0o2750),
        ] {
            let meta = meta(name);
            assert_eq!((meta.uid(), meta.gid()), (1234, 777), "{name}");
            assert_eq!(meta.mode() & 0o7777, mode, "{name}");
        }
    }
    // A default ACL takes the place of the umask.
    sh(
        one.path(),
        "mkdir acl; setfacl -d -m u::rwx,g::rwx,o::r,u:1234:rwx,m::rwx acl; umask 077; echo > acl/file; mkdir acl/dir",
    );
    let acl = sh(
        two.path(),
        "getfacl -cE acl/file; stat -c %a acl/file; getfacl -cEd acl/dir",
    );
    for line in ["user:1234:rwx", "mask::rw-", "other::r--", "664"] {
        assert!(
            acl.lines().any(|found| found == line),
            "no {line} in:\n{acl}"
        );
    }
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn writes_clear_capabilities_and_suid() {
    if !is_root() {
        return; // capabilities need root
    }
    let (daemon, one) = volume();
    let two = Mount::new(&daemon, "vol");
    for (writer, reader, name) in [(&one, &two, "one"), (&two, &one, "two")] {
        sh(
            writer.path(),
            &format!("cp /bin/true {name}; setcap cap_net_raw+ep {name}; chmod 6777 {name}"),
        );
        let caps = |mount: &Mount| sh(mount.path(), &format!("getcap {name}"));
        // chmod keeps capabilities; both mounts show them.
        assert!(caps(writer).contains("cap_net_raw"), "{}", caps(writer));
        assert!(caps(reader).contains("cap_net_raw"), "{}", caps(reader));
        let append = format!("echo x >> {name}");
        let write = [
            "--reuid=1234",
            "--regid=1234",
            "--clear-groups",
            "sh",
            "-ec",
            &append,
        ];
        tool::run_in(writer.path(), "setpriv", &write);
        // The other mount may show attributes of a second ago.
        std::thread::sleep(Duration::from_millis(1_200));
        for mount in [writer, reader] {
            assert_eq!(caps(mount), "");
            let mode = fs::metadata(mount.join(name)).expect("stat").mode();
            assert_eq!(mode & 0o7777, 0o777);
        }
    }
}

#[test]
fn locks_of_all_kinds_between_mounts() {
    let (daemon, one) = volume();
    let two = Mount::new(&daemon, "vol");
    fs::write(one.join("lock"), vec![0; 100]).expect("write");
    // Each kind is taken by a process on one mount while another process on the other mount tries.
    let script = "import fcntl, struct, sys\n\
        kind, name, how = sys.argv[1:4]\n\
        f = open(name, 'r+b')\n\
        def take(wait):\n\
        \u{20}   if kind == 'flock': fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))\n\
        \u{20}   elif kind == 'posix': fcntl.lockf(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 10, 20)\n\
        \u{20}   else:\n\
        \u{20}       l = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 20, 10, 0)\n\
        \u{20}       fcntl.fcntl(f, 38 if wait else 37, l)\n\
        if how == 'try':\n\
        \u{20}   try: take(False)\n\
        \u{20}   except (BlockingIOError, PermissionError): sys.exit(3)\n\
        \u{20}   sys.exit(0)\n\
        take(True); print('held', flush=True); sys.stdin.readline()\n";
    for kind in ["flock", "posix", "ofd"] {
        let attempt = |mount: &Mount| {
            let status = Command::new("python3")
                .args(["-c", script, kind, path(&mount.join("lock")), "try"])
                .status()
                .expect("python3");
            status.code()
        };
        assert_eq!(attempt(&two), Some(0), "{kind}: free");
        let mut holder = Command::new("python3")
            .args(["-c", script, kind, path(&one.join("lock")), "hold"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3");
        let mut said = String::new();
        let output = holder.stdout.take().expect("output");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said).expect("line");
        assert_eq!(said, "held\n", "{kind}");
        assert_eq!(attempt(&two), Some(3), "{kind}: held on the other mount");
        assert_eq!(attempt(&one), Some(3), "{kind}: held on the same mount");
        holder.kill().expect("kill");
        holder.wait().expect("wait");
        tool::wait_for("the lock is free again", SOON, || {
            (attempt(&two) == Some(0)).then_some(())
        });
    }
}

#[test]
fn locks_of_a_killed_mount_are_freed_within_the_session_timeout() {
    let (daemon, one) = volume();
    daemon.mortar_ok(&["volume", "set", "vol", "network.session-timeout", "5"]);
    let two = Mount::new(&daemon, "vol");
    fs::write(one.join("lock"), b"x").expect("write");
    let open = |mount: &Mount| File::open(mount.join("lock")).expect("open");
    let (held, other) = (open(&one), open(&two));
    flock(&held, FlockOperation::LockExclusive).expect("lock");
    assert_eq!(
        flock(&other, FlockOperation::NonBlockingLockExclusive),
        Err(Errno::WOULDBLOCK)
    );
    one.kill_client();
    tool::wait_for("the lock", Duration::from_secs(12), || {
        flock(&other, FlockOperation::NonBlockingLockExclusive).ok()
    });
}

#[test]
fn attributes_of_every_length() {
    let (daemon, one) = volume();
    let two = Mount::new(&daemon, "vol");
    fs::write(one.join("f"), b"x").expect("write");
    let file = one.join("f");
    for len in [0usize, 1, 4_096, 65_536] {
        let value: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
        rustix::fs::setxattr(&file, "user.v", &value, XattrFlags::empty()).expect("set");
        let mut got = vec![0; 70_000];
        let found = rustix::fs::getxattr(two.join("f"), "user.v", got.as_mut_slice()).expect("get");
        assert_eq!(&got[..found], value, "{len} bytes");
    }
    let long = vec![0; 65_537];
    let refused = rustix::fs::setxattr(&file, "user.v", &long, XattrFlags::empty());
    assert_eq!(refused, Err(Errno::TOOBIG));
    // What answers questions about a file is never listed, and cannot be set.
    let ask = |name: &str| {
        let mut got = vec![0; 4_096];
        let found = rustix::fs::getxattr(two.join("f"), name, got.as_mut_slice()).expect(name);
        String::from_utf8_lossy(&got[..found]).into_owned()
    };
    let gfid = ask("glusterfs.gfid.string");
    let ino = fs::metadata(&file).expect("stat").ino();
    assert!(
        gfid.replace('-', "").starts_with(&format!("{ino:016x}")),
        "{gfid}"
    );
    assert_eq!(gfid.len(), 36);
    if is_root() {
        let brick = |n: u32| {
            let dir = daemon.dir().join(format!("vol-b{n}"));
            format!("<POSIX({0}):127.0.0.1:{0}/f>", dir.display())
        };
        assert_eq!(
            ask("trusted.glusterfs.pathinfo"),
            format!(
                "(<REPLICATE:vol-replicate-0> {} {} {})",
                brick(1),
                brick(2),
                brick(3)
            )
        );
    }
    for name in ["glusterfs.gfid.string", "trusted.glusterfs.pathinfo"] {
        let refused = rustix::fs::setxattr(&file, name, b"x", XattrFlags::empty());
        assert!(refused.is_err(), "{name}");
    }
    let mut names = vec![0; 1_000];
    let len = rustix::fs::listxattr(&file, names.as_mut_slice()).expect("list");
    assert_eq!(&names[..len], b"user.v\0");
}

#[test]
fn every_mode_of_fallocate_and_holes() {
    let (_daemon, mount) = volume();
    let name = mount.join("f");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&name)
        .expect("open");
    file.write_all_at(&[1; 100_000], 0).expect("write");
    let modes = FallocateFlags::COLLAPSE_RANGE;
    for refused in [modes, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, refused, 0, 4_096), Err(Errno::OPNOTSUPP));
    }
    let keep = FallocateFlags::KEEP_SIZE;
    fallocate(&file, FallocateFlags::ZERO_RANGE | keep, 90_000, 100_000).expect("zero and keep");
    assert_eq!(file.metadata().expect("stat").len(), 100_000);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 90_000, 20_000).expect("zero");
    assert_eq!(file.metadata().expect("stat").len(), 110_000);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 0, 8_192).expect("punch");
    let contents = fs::read(&name).expect("read");
    assert!(contents[..8_192].iter().all(|byte| *byte == 0));
    assert!(contents[8_192..90_000].iter().all(|byte| *byte == 1));
    assert!(contents[90_000..].iter().all(|byte| *byte == 0));
    use rustix::fs::{SeekFrom, seek};
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(8_192));
    assert_eq!(seek(&file, SeekFrom::Data(110_000)), Err(Errno::NXIO));
    let end = seek(&file, SeekFrom::Hole(8_192)).expect("a hole");
    assert!((90_000..=110_000).contains(&end), "{end}");
}

#[test]
fn copies_by_range_over_shards_and_a_program_run_from_the_mount() {
    let daemon = Daemon::start();
    daemon.wait_ready();
    let bricks: Vec<String> = (1..=2)
        .map(|n| format!("127.0.0.1:{}", daemon.dir().join(format!("b{n}")).display()))
        .collect();
    daemon.mortar_ok(&[
        "volume",
        "create",
        "vol",
        &bricks[0],
        &bricks[1],
        "--brick-size",
        "512M",
        "force",
    ]);
    daemon.mortar_ok(&["volume", "set", "vol", "features.shard-block-size", "4MB"]);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let mount = Mount::new(&daemon, "vol");
    let data: Vec<u8> = (0..21_000_000u32)
        .map(|at| (at ^ (at >> 8)) as u8)
        .collect();
    fs::write(mount.join("from"), &data).expect("write");
    let (from, to) = (
        File::open(mount.join("from")).expect("open"),
        File::create(mount.join("to")).expect("create"),
    );
    let (mut at, mut into) = (1_234_567, 777);
    let mut left = 15_000_000;
    while left > 0 {
        let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), left)
            .expect("copy");
        assert!(copied > 0);
        left -= copied;
    }
    let copied = fs::read(mount.join("to")).expect("read");
    assert!(copied[..777].iter().all(|byte| *byte == 0));
    assert!(copied[777..] == data[1_234_567..16_234_567]);
    drop((from, to));
    // Shared pages with msync, over a shard's end.
    let script = "import mmap\n\
        f = open('to', 'r+b'); m = mmap.mmap(f.fileno(), 0)\n\
        m[4194300:4194310] = b'0123456789'; m.flush(); m.close()\n";
    tool::run_in(mount.path(), "python3", &["-c", script]);
    mount.umount();
    mount.mount(&daemon, "vol", "");
    let mut ten = [0; 10];
    File::open(mount.join("to"))
        .and_then(|file| file.read_exact_at(&mut ten, 4_194_300))
        .expect("read");
    assert_eq!(&ten, b"0123456789");
    sh(mount.path(), "cp /bin/ls prog; ./prog -d . > out");
    assert_eq!(fs::read(mount.join("out")).expect("read"), b".\n");
}

#[test]
fn names_are_bytes() {
    let (daemon, one) = volume();
    let two = Mount::new(&daemon, "vol");
    let mut names: Vec<Vec<u8>> = vec![
        b"not\xff\x80utf-8".to_vec(),
        b"two\nlines".to_vec(),
        b"\x01\x7f\x1b[31m".to_vec(),
        b" ".to_vec(),
        b"-".to_vec(),
        vec![0xf0; 255],
        b"\\x41".to_vec(),
    ];
    for name in &names {
        let name = OsStr::from_bytes(name);
        fs::create_dir(one.path().join(name)).expect("mkdir");
        let file = one.path().join(name).join(name);
        fs::write(&file, name.as_bytes()).expect("write");
        std::os::unix::fs::symlink(name, one.path().join(name).join("link")).expect("symlink");
        let read = fs::read(two.path().join(name).join(name)).expect("read");
        assert_eq!(read, name.as_bytes());
        let link = fs::read_link(two.path().join(name).join("link")).expect("readlink");
        assert_eq!(link.as_os_str(), name);
    }
    let listed = fs::read_dir(two.path()).expect("list");
    let mut listed: Vec<Vec<u8>> = listed
        .map(|entry| entry.expect("entry").file_name().into_vec())
        .collect();
    listed.sort();
    names.sort();
    assert_eq!(listed, names);
    let long = one.path().join(OsStr::from_bytes(&[b'a'; 256]));
    let refused = File::create(long).expect_err("256 bytes");
    assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
    // The offline tools name them too.
    one.umount();
    two.umount();
    daemon.mortar_ok(&["--mode=script", "volume", "stop", "vol"]);
    let brick = daemon.dir().join("vol-b1/mortar.brick");
    let out = daemon.mortar(&["brick", "ls", path(&brick)]);
    assert!(out.status.success(), "{}", tool::tail(&out.stderr));
    assert!(
        out.stdout
            .windows(9)
            .any(|part| part == b"not\\xff\\x" || part == b"not\xff\x80utf")
    );
}

/// Opens files by handles that another process took, as an NFS server does.
const BY_HANDLE: &str = "import ctypes, os, sys\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    class H(ctypes.Structure): _fields_ = [('n', ctypes.c_uint), ('t', ctypes.c_int), ('b', ctypes.c_ubyte * 128)]\n\
    how, root, names = sys.argv[1], sys.argv[2], sys.argv[3:]\n\
    def check(r, what):\n\
    \u{20}   if r < 0: sys.exit('%s: %s' % (what, os.strerror(ctypes.get_errno())))\n\
    \u{20}   return r\n\
    if how == 'take':\n\
    \u{20}   for name in names:\n\
    \u{20}       h, m = H(128), ctypes.c_int()\n\
    \u{20}       p = os.path.join(root, name).encode()\n\
    \u{20}       check(libc.name_to_handle_at(-100, p, ctypes.byref(h), ctypes.byref(m), 0), name)\n\
    \u{20}       print(h.t, bytes(h.b[:h.n]).hex())\n\
    else:\n\
    \u{20}   mount = os.open(root, os.O_RDONLY)\n\
    \u{20}   for handle in names:\n\
    \u{20}       t, b = handle.split(':'); b = bytes.fromhex(b)\n\
    \u{20}       h = H(len(b), int(t)); ctypes.memmove(h.b, b, len(b))\n\
    \u{20}       f = check(libc.open_by_handle_at(mount, ctypes.byref(h), os.O_RDONLY), handle)\n\
    \u{20}       s = os.fstat(f)\n\
    \u{20}       print(s.st_ino, s.st_size, os.read(f, 100).decode() if s.st_mode & 0o100000 else '')\n";

#[test]
fn handles_open_files_after_caches_mounts_and_daemons_are_gone() {
    if !is_root() {
        return; // open_by_handle_at needs CAP_DAC_READ_SEARCH
    }
    for kind in [Kind::Replica(3), Kind::Distribute(2)] {
        let mut daemon = Daemon::with_volume(kind, "512M");
        let mount = Mount::new(&daemon, "vol");
        sh(
            mount.path(),
            "mkdir -p d/e; echo one > d/e/one; echo two > two; mv two d/three; ln d/e/one four",
        );
        let names = ["d/e/one", "d/three", "four", "d/e", "d"];
        let root = path(mount.path());
        let mut args = vec!["-c", BY_HANDLE, "take", root];
        args.extend(names);
        let taken = tool::run_in(Path::new("/"), "python3", &args);
        let taken = String::from_utf8_lossy(&taken.stdout).into_owned();
        let handles: Vec<String> = taken.lines().map(|line| line.replace(' ', ":")).collect();
        assert_eq!(handles.len(), names.len());
        let open = || {
            let mut args = vec!["-c", BY_HANDLE, "open", root];
            args.extend(handles.iter().map(String::as_str));
            let out = tool::run_in(Path::new("/"), "python3", &args);
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        let ino = |name: &str| fs::metadata(mount.join(name)).expect("stat").ino();
        let before = open();
        let lines: Vec<&str> = before.lines().filter(|line| !line.is_empty()).collect();
        assert!(
            lines[0].starts_with(&format!("{} 4 one", ino("d/e/one"))),
            "{before}"
        );
        assert!(
            lines[1].starts_with(&format!("{} 4 two", ino("d/three"))),
            "{before}"
        );
        fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
        assert_eq!(open(), before, "{kind:?}: after drop_caches");
        mount.umount();
        mount.mount(&daemon, "vol", "");
        assert_eq!(open(), before, "{kind:?}: after a remount");
        daemon.terminate();
        daemon.restart();
        fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
        assert_eq!(open(), before, "{kind:?}: after a restart of mortard");
        daemon.kill();
        daemon.restart();
        mount.umount();
        mount.mount(&daemon, "vol", "");
        assert_eq!(open(), before, "{kind:?}: after kill -9 and a remount");
    }
}
