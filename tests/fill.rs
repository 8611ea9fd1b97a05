//! A volume filled to its last block by the programs people fill volumes with, from two mounts at once.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mortar_tests::real::{Daemon, Kind, Mount, tool};

const FULL: &str = "No space left on device";
/// So many files grow the metadata tree to several times what is kept back for it.
const FILES: usize = 24_000;

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Free bytes, as df counts them.
fn free(mount: &Mount) -> u64 {
    let space = rustix::fs::statvfs(mount.path()).expect("statvfs");
    space.f_bfree * space.f_frsize
}

/// What the mounts logged last.
fn log_of(daemon: &Daemon) -> String {
    tool::tail(&fs::read(daemon.dir().join("mount.log")).unwrap_or_default())
}

/// Runs a program that is to fail for want of space, and to say so.
fn runs_out(daemon: &Daemon, mount: &Mount, words: &[&str]) {
    let (dir, what) = (mount.path(), words[0]);
    let out = Command::new(words[0])
        .args(&words[1..])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("the program (tests/run installs it)");
    let said = format!("{}{}", tool::tail(&out.stdout), tool::tail(&out.stderr));
    assert!(!out.status.success(), "{what} noticed nothing: {said}");
    assert!(
        said.contains(FULL),
        "{what} says: {said}\n{}",
        log_of(daemon)
    );
}

fn fill_with_everything(daemon: &Daemon, one: &Mount, two: &Mount, source: &Path) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let words = ["dd", "if=/dev/zero", "of=by-dd", "bs=1M"];
            runs_out(daemon, one, &words);
        });
        scope.spawn(|| {
            for copy in ["copy1", "copy2"] {
                let words = ["cp", "--sparse=never", path(source), copy];
                let out = Command::new(words[0])
                    .args(&words[1..])
                    .current_dir(two.path())
                    .output()
                    .expect("cp");
                if !out.status.success() {
                    let said = tool::tail(&out.stderr);
                    assert!(said.contains(FULL), "cp says: {said}\n{}", log_of(daemon));
                    return;
                }
            }
            panic!("two copies fit");
        });
    });
    // What is left, in small pieces; then nothing more.
    let fio = [
        "fio",
        "--name=rest",
        "--rw=write",
        "--bs=4k",
        "--size=300M",
        "--fallocate=none",
        "--ioengine=psync",
    ];
    runs_out(daemon, one, &fio);
    runs_out(daemon, two, &["dd", "if=/dev/zero", "of=more", "bs=64k"]);
    runs_out(
        daemon,
        one,
        &["cp", "--sparse=never", path(source), "again"],
    );
}

/// Waits until df shows to the block what it showed before; it must not show more. (Bulk data that was sent ahead of a
/// write that was then refused is given up after 30 s.)
fn is_as_before(mounts: &[&Mount], before: u64) {
    let mut last = Vec::new();
    tool::wait_for("df is as before", Duration::from_secs(60), || {
        let now: Vec<u64> = mounts.iter().map(|mount| free(mount)).collect();
        assert!(
            now.iter().all(|now| *now <= before),
            "{now:?}: more than {before}"
        );
        let same = now.iter().all(|now| *now == before);
        if now != last {
            println!("{now:?} bytes free, {before} before");
            last = now;
        }
        same.then_some(())
    });
}

fn filled_and_emptied(kind: Kind) {
    let daemon = Daemon::with_volume(kind, "256M");
    let (one, two) = (Mount::new(&daemon, "vol"), Mount::new(&daemon, "vol"));
    let source = daemon.dir().join("source");
    let large = fs::File::create(&source).expect("create");
    large.set_len(600 << 20).expect("truncate");
    let before = free(&one);
    for round in 0..2 {
        fill_with_everything(&daemon, &one, &two, &source);
        // A full volume is left by what frees, always.
        let cut = fs::File::options()
            .write(true)
            .open(two.join("by-dd"))
            .expect("open");
        cut.set_len(10 << 20).expect("truncate");
        drop(cut);
        // Also at once, in the least piece there is, and by another mount.
        let tiny =
            fs::write(one.join("tiny"), b"x").and_then(|()| fs::write(two.join("tin"), b"x"));
        tiny.unwrap_or_else(|error| panic!("round {round}, right after truncate: {error}"));
        let freed = fs::write(one.join("small"), vec![1; 1 << 20]);
        freed.unwrap_or_else(|error| panic!("round {round}, after truncate: {error}"));
        for entry in fs::read_dir(one.path()).expect("list") {
            fs::remove_file(entry.expect("entry").path()).expect("rm");
        }
        is_as_before(&[&one, &two], before);
    }
    // What is written now is as good as on the first day.
    let mut data = Vec::new();
    fs::File::open("/dev/urandom")
        .and_then(|random| random.take(20 << 20).read_to_end(&mut data))
        .expect("random bytes");
    let mut file = fs::File::create(one.join("last")).expect("create");
    file.write_all(&data).expect("write");
    file.sync_all().expect("fsync");
    assert!(fs::read(two.join("last")).expect("read") == data);
}

#[test]
fn a_replicated_volume_is_filled_and_emptied_by_tools() {
    filled_and_emptied(Kind::Replica(2));
}

#[test]
fn a_plain_volume_is_filled_and_emptied_by_tools() {
    filled_and_emptied(Kind::Plain);
}

/// Very many files, whose metadata takes far more than is kept back for it; also a file that stays meanwhile.
#[test]
fn space_of_very_many_files_comes_back_to_the_block() {
    let daemon = Daemon::with_volume(Kind::Plain, "256M");
    let mount = Mount::new(&daemon, "vol");
    let stays = fs::File::create(mount.join("stays")).expect("create");
    let written = (&stays).write_all(&vec![7; 100_000]);
    written.and_then(|()| stays.sync_all()).expect("write");
    let before = free(&mount);
    for round in 0..2 {
        std::thread::scope(|scope| {
            for part in 0..4 {
                let dir = mount.join(&format!("dir{part}"));
                scope.spawn(move || {
                    fs::create_dir(&dir).expect("mkdir");
                    for n in 0..FILES / 4 {
                        let name = format!("a file with a rather long name, number {n:08}");
                        fs::write(dir.join(name), b"").expect("create");
                    }
                });
            }
        });
        assert!(free(&mount) < before, "round {round}: it does not show");
        for part in 0..4 {
            fs::remove_dir_all(mount.join(&format!("dir{part}"))).expect("rm -r");
        }
        is_as_before(&[&mount], before);
    }
    assert!(fs::read(mount.join("stays")).expect("read") == vec![7; 100_000]);
}

/// Also where a client that has been idle is the one to give back what lies on other sets.
#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn space_of_a_file_over_several_sets_comes_back_at_once() {
    let daemon = Daemon::with_volume(Kind::Distribute(3), "256M");
    let mount = Mount::new(&daemon, "vol");
    let before = free(&mount);
    let file = mount.join("large");
    let data = vec![1; 150 << 20];
    fs::write(&file, &data).expect("write");
    assert!(before - free(&mount) >= data.len() as u64);
    // Long enough for the mount to be idle.
    std::thread::sleep(Duration::from_secs(12));
    fs::remove_file(file).expect("rm");
    let ((), took) = tool::timed(|| {
        tool::wait_for("the space", Duration::from_secs(10), || {
            (free(&mount) == before).then_some(())
        })
    });
    // An idle mount asks every 4 s what there is to do.
    assert!(took < Duration::from_secs(2), "after {took:?}");
}
