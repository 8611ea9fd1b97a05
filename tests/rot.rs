//! Rotten bytes in a brick: never wrong data; another copy answers where there is one.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mortar_tests::real::{Daemon, Kind, Mount, tool};

const BLOCK: usize = 4096;
const BLOCKS: usize = 300;
/// The block that rots.
const ROTTEN: usize = 123;

fn contents() -> Vec<u8> {
    let mut state = 0x5eed_u64;
    let mut bytes = Vec::with_capacity(BLOCKS * BLOCK);
    while bytes.len() < BLOCKS * BLOCK {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes
}

/// Changes a byte of the block with these contents in a brick; false if it is not there.
fn rot(brick: &Path, block: &[u8]) -> bool {
    let file = File::options()
        .read(true)
        .write(true)
        .open(brick.join("mortar.brick"))
        .expect("open the brick");
    let len = file.metadata().expect("stat").len();
    let mut piece = vec![0; 1 << 20];
    for at in (0..len).step_by(piece.len()) {
        file.read_exact_at(&mut piece, at).expect("read the brick");
        if let Some(number) = piece.chunks(BLOCK).position(|found| found == block) {
            let at = at + (number * BLOCK) as u64 + 1_000;
            file.write_all_at(&[block[1_000] ^ 0x40], at)
                .expect("change a byte");
            return true;
        }
    }
    false
}

/// A volume with a file, of which a byte changes on its first bricks while nothing runs: of the same block on plain
/// volumes, of another one on each copy.
fn rotten(kind: Kind, copies: usize) -> (Daemon, Mount, PathBuf) {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let bricks = daemon.volume("vol", kind, "256M");
    let mount = Mount::new(&daemon, "vol");
    let data = contents();
    fs::write(mount.join("file"), &data).expect("write");
    mount.umount();
    let (code, _) = daemon.terminate();
    assert_eq!(code, Some(0));
    for (copy, brick) in bricks[..copies].iter().enumerate() {
        let at = (ROTTEN + copy) * BLOCK;
        let block = &data[at..at + BLOCK];
        assert!(rot(brick, block), "the block lies on the brick");
    }
    daemon.restart();
    daemon.wait_ready();
    let mount = Mount::new(&daemon, "vol");
    let path = mount.join("file");
    (daemon, mount, path)
}

/// The mount's line about the file, whose data cannot be read, names it and the place.
fn told(daemon: &Daemon, path: &Path, head: &str) -> String {
    let mut gfid = [0; 64];
    let len = rustix::fs::getxattr(path, "glusterfs.gfid.string", &mut gfid[..]).expect("gfid");
    let gfid = String::from_utf8_lossy(&gfid[..len]).into_owned();
    let log = fs::read_to_string(daemon.dir().join("mount.log")).expect("log");
    let line = log.lines().find(|line| line.contains(head));
    let line = line.unwrap_or_else(|| panic!("no {head} in {log}"));
    for part in [
        path.to_str().expect("text"),
        "brick ",
        &gfid[..18],
        "at offset ",
        "in volume vol",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    line.to_owned()
}

/// Lines of the daemon about data that cannot be read, and how many reads they stand for.
fn daemon_told(daemon: &Daemon) -> (usize, u32) {
    let (mut lines, mut reads) = (0, 0);
    for line in daemon.log().lines() {
        let head = line.contains("data cannot be read: ");
        lines += usize::from(head);
        reads += u32::from(head);
        if let Some((before, _)) = line.split_once(" more ") {
            let count = before.rsplit([' ', '(']).next().unwrap_or_default();
            reads += count.parse::<u32>().unwrap_or(0);
        }
    }
    (lines, reads)
}

#[test]
fn another_copy_answers_for_a_rotten_block() {
    // Whichever of them is asked has a rotten block.
    let (daemon, mount, path) = rotten(Kind::Replica(3), 3);
    let mut file = File::open(&path).expect("open");
    let mut read = Vec::new();
    file.read_to_end(&mut read).expect("read");
    assert!(read == contents());
    let line = told(&daemon, &path, "unreadable: ");
    assert!(line.contains("is asked"), "{line}");
    let brick = line.split("brick ").nth(1).expect("brick");
    let brick = &brick[..36];
    let log = daemon.log();
    let there = log
        .lines()
        .find(|line| line.contains("data cannot be read"));
    let there = there.unwrap_or_else(|| panic!("{log}"));
    assert!(
        there.contains(brick) && there.contains("offset="),
        "{there}"
    );
    drop(file);
    // Nor can any of them answer for the whole of this.
    let how = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let mut whole = vec![0; 1 << 20];
    let file = how.expect("open");
    file.read_exact_at(&mut whole, 0).expect("read");
    assert!(whole == contents()[..whole.len()]);
    drop(file);
    mount.umount();
}

#[test]
fn without_another_copy_that_block_alone_is_an_error() {
    let (daemon, mount, path) = rotten(Kind::Plain, 1);
    let file = File::open(&path).expect("open");
    let data = contents();
    let mut block = vec![0; BLOCK];
    for number in 0..BLOCKS {
        let at = number * BLOCK;
        let read = file.read_exact_at(&mut block, at as u64);
        if number == ROTTEN {
            let error = read.expect_err("a rotten block");
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        } else {
            read.unwrap_or_else(|error| panic!("block {number}: {error}"));
            assert!(block == data[at..at + BLOCK], "block {number}");
        }
    }
    let line = told(&daemon, &path, "EIO: read of ");
    let offset = format!("at offset {}", ROTTEN * BLOCK);
    assert!(line.contains(&offset), "{line}");
    // Repeats are counted.
    for _ in 0..50 {
        let read = file.read_exact_at(&mut block, (ROTTEN * BLOCK) as u64);
        read.expect_err("a rotten block");
    }
    drop(file);
    tool::wait_for("the count", Duration::from_secs(30), || {
        let (lines, reads) = daemon_told(&daemon);
        assert!(lines <= 4, "{}", daemon.log());
        (reads >= 51).then_some(())
    });
    // Written whole, it is sound again.
    let file = File::options().write(true).open(&path).expect("open");
    let place = (ROTTEN * BLOCK) as u64;
    file.write_all_at(&data[ROTTEN * BLOCK..][..BLOCK], place)
        .expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    assert!(fs::read(&path).expect("read") == data);
    mount.umount();
}
