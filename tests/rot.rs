//! Rotten bytes in a brick: never wrong data; another copy answers where there is one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mortar_tests::real::{Daemon, Kind, Mount};

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

/// A volume with a file, of which a byte changes on its first bricks while nothing runs.
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
    let block = &data[ROTTEN * BLOCK..(ROTTEN + 1) * BLOCK];
    for brick in &bricks[..copies] {
        assert!(rot(brick, block), "the block lies on the brick");
    }
    daemon.restart();
    daemon.wait_ready();
    let mount = Mount::new(&daemon, "vol");
    let path = mount.join("file");
    (daemon, mount, path)
}

#[test]
fn another_copy_answers_for_a_rotten_block() {
    let (daemon, mount, path) = rotten(Kind::Replica(3), 2);
    assert!(fs::read(&path).expect("read") == contents());
    let log = daemon.log();
    let told = log
        .lines()
        .find(|line| line.contains("data cannot be read"));
    // The set's reads go to its primary; if that is the sound one, nothing is met.
    if let Some(line) = told {
        assert!(line.contains("offset="), "{line}");
    }
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
    drop(file);
    let log = daemon.log();
    assert!(log.contains("data cannot be read"), "{log}");
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
