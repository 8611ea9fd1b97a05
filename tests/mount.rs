//! A mounted volume used by ordinary calls: what every file operation does, on one mount and on two.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use mortar_tests::real::{Daemon, Kind, Mount, tool};

const KINDS: [Kind; 3] = [
    Kind::Replica(3),
    Kind::Distribute(2),
    Kind::DistributeReplica(2, 2),
];

fn each_kind(check: impl Fn(&Daemon, &Mount)) {
    for kind in KINDS {
        eprintln!("on {kind:?}");
        let daemon = Daemon::with_volume(kind, "512M");
        let mount = Mount::new(&daemon, "vol");
        check(&daemon, &mount);
        mount.umount();
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8) ^ ((at >> 8) as u8) ^ seed)
        .collect()
}

#[test]
fn a_real_tree_survives_remount_and_restart() {
    for kind in KINDS {
        let mut daemon = Daemon::with_volume(kind, "512M");
        let mount = Mount::new(&daemon, "vol");
        let copy = mount.join("sources");
        fs::create_dir(&copy).expect("mkdir");
        for part in ["protocol", "server", "client", "tests", "docs"] {
            tool::run_in(
                tool::source_tree(),
                "cp",
                &["-a", part, copy.to_str().expect("text")],
            );
        }
        let before = tool::tree_hash(&copy);
        mount.umount();
        mount.mount(&daemon, "vol", "");
        assert_eq!(tool::tree_hash(&copy), before, "after remount ({kind:?})");
        let (code, took) = daemon.terminate();
        assert_eq!(code, Some(0), "mortard's exit code");
        assert!(took.as_secs() < 10, "SIGTERM took {took:?}");
        daemon.restart();
        assert_eq!(
            tool::tree_hash(&copy),
            before,
            "after restart under the mount ({kind:?})"
        );
        fs::remove_dir_all(&copy).expect("rm -r");
        assert_eq!(fs::read_dir(mount.path()).expect("list").count(), 0);
        mount.umount();
    }
}

#[test]
fn names_links_and_renames() {
    each_kind(|_, mount| {
        let at = |name: &str| mount.join(name);
        fs::create_dir(at("d")).expect("mkdir");
        fs::write(at("d/f"), b"one").expect("write");
        fs::hard_link(at("d/f"), at("g")).expect("link");
        assert_eq!(fs::metadata(at("g")).expect("stat").nlink(), 2);
        assert_eq!(
            fs::metadata(at("g")).expect("stat").ino(),
            fs::metadata(at("d/f")).expect("stat").ino()
        );
        fs::rename(at("d/f"), at("h")).expect("rename");
        assert_eq!(fs::read(at("h")).expect("read"), b"one");
        assert_eq!(
            fs::metadata(at("d/f")).expect_err("gone").kind(),
            ErrorKind::NotFound
        );
        fs::write(at("i"), b"two").expect("write");
        fs::rename(at("i"), at("g")).expect("rename over a link");
        assert_eq!(fs::read(at("g")).expect("read"), b"two");
        assert_eq!(fs::metadata(at("h")).expect("stat").nlink(), 1);
        std::os::unix::fs::symlink("h", at("s")).expect("symlink");
        assert_eq!(fs::read_link(at("s")).expect("readlink"), Path::new("h"));
        assert_eq!(fs::read(at("s")).expect("read through"), b"one");

        for n in 0..60 {
            fs::create_dir(at(&format!("m{n}"))).expect("mkdir");
        }
        for n in 0..60 {
            fs::rename(at(&format!("m{n}")), at(&format!("d/k{n}"))).expect("move a directory");
        }
        assert_eq!(fs::read_dir(at("d")).expect("list").count(), 60);
        assert_eq!(fs::metadata(at("d")).expect("stat").nlink(), 62);
        let cycle = fs::rename(at("d"), at("d/k1/x")).expect_err("into itself");
        assert_eq!(cycle.raw_os_error(), Some(libc::EINVAL));
        let full = fs::remove_dir(at("d")).expect_err("not empty");
        assert_eq!(full.raw_os_error(), Some(libc::ENOTEMPTY));
        for n in 0..60 {
            fs::remove_dir(at(&format!("d/k{n}"))).expect("rmdir");
        }
        fs::remove_dir(at("d")).expect("rmdir");
        let long = "n".repeat(256);
        assert_eq!(
            fs::write(at(&long), b"")
                .expect_err("too long")
                .raw_os_error(),
            Some(libc::ENAMETOOLONG)
        );
        fs::write(at(&"n".repeat(255)), b"").expect("255 bytes");
    });
}

#[test]
fn exchange_and_noreplace() {
    each_kind(|_, mount| {
        for n in 0..12 {
            let (a, b) = (mount.join(&format!("a{n}")), mount.join(&format!("b{n}")));
            fs::write(&a, b"A").expect("write");
            fs::write(&b, b"B").expect("write");
            let rename =
                |flags| rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags);
            assert_eq!(
                rename(rustix::fs::RenameFlags::NOREPLACE),
                Err(rustix::io::Errno::EXIST)
            );
            rename(rustix::fs::RenameFlags::EXCHANGE).expect("exchange");
            assert_eq!(fs::read(&a).expect("read"), b"B");
            assert_eq!(fs::read(&b).expect("read"), b"A");
        }
    });
}

#[test]
fn data_at_every_offset() {
    each_kind(|_, mount| {
        let path = mount.join("data");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("open");
        let mut model = vec![0u8; 0];
        let mut random = 7u64;
        for round in 0..300u32 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = (random >> 33) as usize % 3_000_000;
            let len = 1 + (random >> 13) as usize % if round % 10 == 0 { 700_000 } else { 9_000 };
            let bytes = pattern(len, round as u8);
            file.write_all_at(&bytes, offset as u64).expect("write");
            if model.len() < offset + len {
                model.resize(offset + len, 0);
            }
            model[offset..offset + len].copy_from_slice(&bytes);
            if round % 7 == 0 {
                let cut = (random >> 20) as usize % (model.len() + 50_000);
                file.set_len(cut as u64).expect("truncate");
                model.resize(cut, 0);
            }
            if round % 5 == 0 {
                let mut back = vec![0; model.len()];
                file.read_exact_at(&mut back, 0).expect("read");
                assert!(back == model, "round {round}: contents differ");
                assert_eq!(file.metadata().expect("stat").len(), model.len() as u64);
            }
        }
        file.sync_all().expect("fsync");
        assert!(fs::read(&path).expect("read") == model);
    });
}

#[test]
fn files_over_several_shards() {
    each_kind(|_, mount| {
        let path = mount.join("big");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("open");
        let shard = 64 << 20;
        let bytes = pattern(3 << 20, 3);
        for base in [shard - (1 << 20), 2 * shard - 5] {
            file.write_all_at(&bytes, base)
                .expect("write across shards");
        }
        file.sync_all().expect("fsync");
        let end = 2 * shard - 5 + bytes.len() as u64;
        assert_eq!(file.metadata().expect("stat").len(), end);
        let mut back = vec![0; bytes.len()];
        file.read_exact_at(&mut back, shard - (1 << 20))
            .expect("read");
        assert!(back == bytes);
        file.read_exact_at(&mut back, 2 * shard - 5).expect("read");
        assert!(back == bytes);
        let mut hole = vec![1; 1000];
        file.read_exact_at(&mut hole, 1000).expect("read a hole");
        assert!(hole.iter().all(|byte| *byte == 0));
        file.set_len(shard + 10).expect("truncate over shards");
        file.set_len(3 * shard).expect("grow again");
        let mut gap = vec![1; 100];
        file.read_exact_at(&mut gap, shard + 10).expect("read");
        assert!(gap.iter().all(|byte| *byte == 0), "what was cut came back");
        drop(file);
        fs::remove_file(&path).expect("unlink");
    });
}

#[test]
fn unlinked_files_stay_open() {
    each_kind(|_, mount| {
        let path = mount.join("temporary");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("create");
        file.write_all(b"before").expect("write");
        fs::remove_file(&path).expect("unlink");
        file.write_all(b" and after")
            .expect("write to an unlinked file");
        file.seek(SeekFrom::Start(0)).expect("seek");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "before and after");
        assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    });
}

#[test]
fn open_flags_and_modes() {
    each_kind(|_, mount| {
        let path = mount.join("f");
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .custom_flags(flags)
                .open(&path)
        };
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&path)
            .expect("append");
        file.write_all(b"abc").expect("write");
        file.write_all(b"def").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"abcdef");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o640);
        let again = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .expect_err("O_EXCL");
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        open(libc::O_TRUNC).expect("O_TRUNC");
        assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
        let sync = open(libc::O_SYNC).expect("O_SYNC");
        sync.write_all_at(b"xyz", 0).expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"xyz");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).expect("chmod");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o4711);
        for (name, kind) in [("fifo", libc::S_IFIFO), ("sock", libc::S_IFSOCK)] {
            let at = mount.join(name);
            let kind = rustix::fs::FileType::from_raw_mode(kind);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &at,
                kind,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            )
            .expect("mknod");
        }
        assert!(
            fs::metadata(mount.join("fifo"))
                .expect("stat")
                .file_type()
                .is_fifo()
        );
        assert!(
            fs::metadata(mount.join("sock"))
                .expect("stat")
                .file_type()
                .is_socket()
        );
    });
}

#[test]
fn holes_reservations_and_copies() {
    use rustix::fs::{FallocateFlags, fallocate};
    each_kind(|_, mount| {
        let path = mount.join("f");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("open");
        file.write_all_at(&pattern(200_000, 1), 0).expect("write");
        file.sync_all().expect("fsync");
        let full = file.metadata().expect("stat").blocks();
        fallocate(
            &file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            40_960,
            81_920,
        )
        .expect("punch");
        let holed = file.metadata().expect("stat").blocks();
        assert_eq!(full - holed, 160, "blocks given back");
        let mut zeros = vec![1; 81_920];
        file.read_exact_at(&mut zeros, 40_960).expect("read");
        assert!(zeros.iter().all(|byte| *byte == 0));
        let seek = |offset, whence| rustix::fs::seek(&file, whence).map(|at| (offset, at).1);
        assert_eq!(seek(0, rustix::fs::SeekFrom::Hole(0)), Ok(40_960));
        assert_eq!(seek(0, rustix::fs::SeekFrom::Data(40_960)), Ok(122_880));
        fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 10_000).expect("zero range");
        let mut zeros = vec![1; 10_000];
        file.read_exact_at(&mut zeros, 0).expect("read");
        assert!(zeros.iter().all(|byte| *byte == 0));
        fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).expect("reserve");
        assert_eq!(file.metadata().expect("stat").len(), 1 << 20);
        assert!(file.metadata().expect("stat").blocks() >= 2048);
        fallocate(&file, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).expect("keep size");
        assert_eq!(file.metadata().expect("stat").len(), 1 << 20);
        let refused = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
        assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP));

        let copy = File::create(mount.join("copy")).expect("create");
        let mut from = 122_880;
        let copied =
            rustix::fs::copy_file_range(&file, Some(&mut from), &copy, None, 77_120).expect("copy");
        assert_eq!(copied, 77_120);
        assert_eq!(
            fs::read(mount.join("copy")).expect("read"),
            pattern(200_000, 1)[122_880..]
        );
        file.write_all_at(&[9; 5000], 122_880)
            .expect("overwrite the source");
        assert_eq!(
            fs::read(mount.join("copy")).expect("read"),
            pattern(200_000, 1)[122_880..],
            "the copy stays"
        );
    });
}

#[test]
fn extended_attributes_and_acls() {
    each_kind(|_, mount| {
        let path = mount.join("f");
        fs::write(&path, b"x").expect("write");
        let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
        let get = |name: &str| {
            let mut buf = vec![0; 70_000];
            rustix::fs::getxattr(&path, name, buf.as_mut_slice()).map(|len| buf[..len].to_vec())
        };
        assert_eq!(get("user.a"), Err(rustix::io::Errno::NODATA));
        set("user.a", b"1", rustix::fs::XattrFlags::CREATE).expect("create");
        assert_eq!(
            set("user.a", b"2", rustix::fs::XattrFlags::CREATE),
            Err(rustix::io::Errno::EXIST)
        );
        set("user.a", b"2", rustix::fs::XattrFlags::REPLACE).expect("replace");
        assert_eq!(get("user.a").expect("get"), b"2");
        assert_eq!(
            set("user.b", b"2", rustix::fs::XattrFlags::REPLACE),
            Err(rustix::io::Errno::NODATA)
        );
        let big = pattern(65_536, 5);
        set("user.big", &big, rustix::fs::XattrFlags::empty()).expect("64 KiB");
        assert_eq!(get("user.big").expect("get"), big);
        set("user.empty", b"", rustix::fs::XattrFlags::empty()).expect("empty");
        assert_eq!(get("user.empty").expect("get"), b"");
        rustix::fs::removexattr(&path, "user.big").expect("remove");
        assert_eq!(get("user.big"), Err(rustix::io::Errno::NODATA));
        let mut names = vec![0; 1000];
        let len = rustix::fs::listxattr(&path, names.as_mut_slice()).expect("list");
        let names = String::from_utf8_lossy(&names[..len]).into_owned();
        assert!(
            names.contains("user.a\0") && names.contains("user.empty\0"),
            "{names:?}"
        );

        fs::create_dir(mount.join("d")).expect("mkdir");
        tool::run_in(mount.path(), "setfacl", &["-m", "u:1234:rwx", "f"]);
        let acl = tool::run_in(mount.path(), "getfacl", &["-c", "f"]);
        assert!(String::from_utf8_lossy(&acl.stdout).contains("user:1234:rwx"));
        assert_eq!(
            fs::metadata(&path).expect("stat").mode() & 0o070,
            0o070,
            "the mask is the group's bits"
        );
        tool::run_in(mount.path(), "setfacl", &["-d", "-m", "u:1234:rx", "d"]);
        fs::write(mount.join("d/inherits"), b"").expect("create");
        let acl = tool::run_in(mount.path(), "getfacl", &["-c", "d/inherits"]);
        assert!(
            String::from_utf8_lossy(&acl.stdout).contains("user:1234:r-x"),
            "default ACL is inherited"
        );
    });
}

#[test]
fn writes_clear_setuid_and_directories_pass_on_their_group() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    if !rustix::process::geteuid().is_root() {
        return; // only root can become somebody else
    }
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let path = mount.join("suid");
    fs::write(&path, b"x").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).expect("chmod");
    let status = Command::new("setpriv")
        .args([
            "--reuid=4321",
            "--regid=4321",
            "--clear-groups",
            "sh",
            "-c",
            "echo y >> suid",
        ])
        .current_dir(mount.path())
        .status()
        .expect("setpriv");
    assert!(status.success());
    assert_eq!(
        fs::metadata(&path).expect("stat").mode() & 0o7777,
        0o777,
        "suid and sgid are cleared"
    );
    let dir = mount.join("team");
    fs::create_dir(&dir).expect("mkdir");
    std::os::unix::fs::chown(&dir, None, Some(777)).expect("chgrp");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).expect("chmod");
    fs::write(dir.join("f"), b"").expect("write");
    fs::create_dir(dir.join("sub")).expect("mkdir");
    assert_eq!(fs::metadata(dir.join("f")).expect("stat").gid(), 777);
    assert_eq!(fs::metadata(dir.join("sub")).expect("stat").gid(), 777);
    assert_eq!(
        fs::metadata(dir.join("sub")).expect("stat").mode() & 0o2000,
        0o2000
    );
}

#[test]
fn large_directories_are_listed_once_each() {
    each_kind(|_, mount| {
        let dir = mount.join("many");
        fs::create_dir(&dir).expect("mkdir");
        for n in 0..3_000 {
            File::create(dir.join(format!("entry-{n:05}"))).expect("create");
        }
        let mut names: Vec<_> = fs::read_dir(&dir)
            .expect("list")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect();
        names.sort();
        let expected: Vec<_> = (0..3_000).map(|n| format!("entry-{n:05}")).collect();
        assert!(names == expected, "{} of 3,000 names", names.len());
        // Removing while listing must not lose what stays.
        let mut removed = 0;
        for entry in fs::read_dir(&dir).expect("list") {
            fs::remove_file(entry.expect("entry").path()).expect("unlink");
            removed += 1;
        }
        assert_eq!(removed, 3_000);
        fs::remove_dir(&dir).expect("rmdir");
    });
}

#[test]
fn shared_mappings_reach_the_file() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    let script = "import mmap\n\
        f = open('m', 'w+b'); f.truncate(1 << 20)\n\
        m = mmap.mmap(f.fileno(), 1 << 20)\n\
        m[5000:5005] = b'hello'; m[1048570:1048576] = b'endend'\n\
        m.flush(); m.close(); f.close()\n\
        d = open('m', 'rb').read()\n\
        assert d[5000:5005] == b'hello' and d[-6:] == b'endend' and len(d) == 1 << 20\n";
    tool::run_in(mount.path(), "python3", &["-c", script]);
    mount.umount();
    mount.mount(&daemon, "vol", "");
    let data = fs::read(mount.join("m")).expect("read");
    assert_eq!(&data[5000..5005], b"hello");
}

#[test]
fn two_mounts_see_each_other() {
    each_kind(|daemon, one| {
        let two = Mount::new(daemon, "vol");
        fs::write(one.join("f"), b"from one").expect("write");
        assert_eq!(
            fs::read(two.join("f")).expect("read on the other"),
            b"from one"
        );
        let mut file = OpenOptions::new()
            .append(true)
            .open(two.join("f"))
            .expect("open");
        file.write_all(b" and two").expect("append");
        drop(file);
        assert_eq!(fs::read(one.join("f")).expect("read"), b"from one and two");
        fs::rename(two.join("f"), two.join("g")).expect("rename");
        assert_eq!(
            fs::read(one.join("g")).expect("read under the new name"),
            b"from one and two"
        );
        let open = File::open(one.join("g")).expect("open");
        fs::remove_file(two.join("g")).expect("unlink on the other mount");
        let mut text = String::new();
        (&open)
            .read_to_string(&mut text)
            .expect("an open file stays readable");
        assert_eq!(text, "from one and two");
        two.umount();
    });
}

#[test]
fn appends_of_two_mounts_interleave_whole() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mounts = [Mount::new(&daemon, "vol"), Mount::new(&daemon, "vol")];
    File::create(mounts[0].join("log")).expect("create");
    std::thread::scope(|scope| {
        for (writer, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                for n in 0..500 {
                    let mut file = OpenOptions::new()
                        .append(true)
                        .open(mount.join("log"))
                        .expect("open");
                    file.write_all(format!("{writer} {n:06} {}\n", "x".repeat(40)).as_bytes())
                        .expect("append");
                }
            });
        }
    });
    let text = fs::read_to_string(mounts[0].join("log")).expect("read");
    let mut expected = [0, 0];
    for line in text.lines() {
        assert_eq!(line.len(), 49, "torn line: {line:?}");
        let writer: usize = line[..1].parse().expect("writer");
        assert_eq!(
            line[2..8].parse::<usize>().expect("number"),
            expected[writer],
            "order within a writer"
        );
        expected[writer] += 1;
    }
    assert_eq!(expected, [500, 500]);
}

#[test]
fn locks_exclude_between_mounts() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let one = Mount::new(&daemon, "vol");
    let two = Mount::new(&daemon, "vol");
    fs::write(one.join("lock"), b"x").expect("write");
    let held = OpenOptions::new()
        .read(true)
        .write(true)
        .open(one.join("lock"))
        .expect("open");
    let other = OpenOptions::new()
        .read(true)
        .write(true)
        .open(two.join("lock"))
        .expect("open");
    use rustix::fs::{FlockOperation, flock};
    flock(&held, FlockOperation::LockExclusive).expect("lock");
    assert_eq!(
        flock(&other, FlockOperation::NonBlockingLockExclusive),
        Err(rustix::io::Errno::WOULDBLOCK)
    );
    let waiter = std::thread::spawn(move || flock(&other, FlockOperation::LockExclusive));
    flock(&held, FlockOperation::Unlock).expect("unlock");
    waiter
        .join()
        .expect("thread")
        .expect("the waiter gets the lock");
    let script = "import fcntl, sys\n\
        f = open(sys.argv[1], 'r+b')\n\
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)\n\
        g = sys.stdin.readline()\n";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .arg(one.join("lock"))
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let probe = "import fcntl, sys, time\n\
        f = open(sys.argv[1], 'r+b')\n\
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)\n\
        for _ in range(200):\n\
        \u{20}   try:\n\
        \u{20}       fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)\n\
        \u{20}       fcntl.lockf(f, fcntl.LOCK_UN, 10, 0)\n\
        \u{20}   except BlockingIOError:\n\
        \u{20}       sys.exit(0)\n\
        \u{20}   time.sleep(0.05)\n\
        sys.exit(9)\n";
    let status = Command::new("python3")
        .args(["-c", probe])
        .arg(two.join("lock"))
        .status()
        .expect("python3");
    assert!(
        status.success(),
        "the other mount could take a byte that is locked"
    );
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn a_full_volume_says_enospc_and_recovers() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    let mut file = File::create(mount.join("fill")).expect("create");
    let chunk = pattern(1 << 20, 9);
    let mut error = None;
    for _ in 0..400 {
        if let Err(err) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
            error = Some(err);
            break;
        }
    }
    let error = error.expect("400 MiB went into 256 MiB");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    drop(file);
    fs::write(mount.join("other"), b"").expect("metadata still fits");
    fs::remove_file(mount.join("fill")).expect("unlink on a full volume");
    for _ in 0..100 {
        fs::write(mount.join("again"), &chunk).expect("space is back");
    }
}

#[test]
fn bad_mounts_are_refused_with_the_reason() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().to_str().expect("text");
    let port = daemon.server().rsplit(':').next().expect("port").to_owned();
    let options = format!("server-port={port}");
    let out = daemon.mortar(&["mount", "127.0.0.1:/nope", path, "-o", &options]);
    assert!(!out.status.success());
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("nope"),
        "{}",
        tool::tail(&out.stderr)
    );
    let bad = format!("{options},badopt=1");
    let out = daemon.mortar(&["mount", "127.0.0.1:/vol", path, "-o", &bad]);
    assert!(!out.status.success());
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("badopt"),
        "{}",
        tool::tail(&out.stderr)
    );
    let out = daemon.mortar(&[
        "mount",
        "127.0.0.1:/vol",
        "/nonexistent/dir",
        "-o",
        &options,
    ]);
    assert!(!out.status.success());
}
