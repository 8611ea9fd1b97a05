//! What people run on a file system, on a volume of 2 x 3 bricks over three nodes. `tests/run` runs these by themselves:
//! they load the machine, and other tests look at times.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use mortar_tests::real::{Cluster, Mount, Net, suites, tool};

use crate::SOON;

/// Operations of fsx; `FSX_OPERATIONS` gives others.
const OPERATIONS: u32 = 20_000;

/// Three nodes, a volume of 2 x 3 bricks, and a mount through all of them.
fn spread(size: &str) -> (Cluster, Mount) {
    let cluster = Cluster::new(Net::Loopback, 3);
    cluster.volume(1, "vol", &["replica", "3"], 2, size);
    cluster.wait_whole(1, SOON);
    let mount = cluster.mount(&cluster.servers(), "vol");
    (cluster, mount)
}

/// Mounts on the directory again, through one node: what another process of the client has kept is gone.
fn remount(cluster: &Cluster, mount: &Mount, n: u8) {
    mount.umount();
    let out = cluster.try_mount(mount, &[cluster.server(n)], "vol", "");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "through node {n}: {said}");
}

#[test]
fn pjdfstest_is_complete() {
    let (cluster, mount) = spread("512M");
    suites::pjdfstest(mount.path(), cluster.dir(1));
}

#[test]
fn fsx_finds_no_difference() {
    let (cluster, mount) = spread("512M");
    suites::fsx(mount.path(), cluster.dir(1), OPERATIONS);
}

#[test]
fn what_fio_writes_is_verified_again_after_a_remount_and_restarts_of_nodes() {
    let size = format!("{}M", 512 * suites::fio_scale());
    let (mut cluster, mount) = spread(&size);
    let own = cluster.dir(1).to_owned();
    suites::fio_jobs(mount.path(), &own, &[]);
    remount(&cluster, &mount, 2);
    suites::fio_jobs(mount.path(), &own, &["--verify_only"]);
    for n in 1..=3 {
        cluster.kill(n);
        cluster.start(n);
        cluster.wait_whole(n % 3 + 1, SOON);
    }
    remount(&cluster, &mount, 3);
    suites::fio_jobs(mount.path(), &own, &["--verify_only"]);
}

#[test]
fn git_and_sqlite_keep_their_repositories_and_databases() {
    let (cluster, mount) = spread("512M");
    suites::git(mount.path());
    suites::sqlite(mount.path());
    suites::sqlite_in_two_processes([mount.path(); 2]);
    // On two mounts, with names that are asked for each time and with the usual options.
    for options in ["entry-timeout=0,attribute-timeout=0", ""] {
        let mounts = [1, 3].map(|n| cluster.mount_with(&[cluster.server(n)], "vol", options));
        fs::remove_file(mount.join("shared.db")).expect("unlink");
        suites::sqlite_in_two_processes([mounts[0].path(), mounts[1].path()]);
        mounts.iter().for_each(Mount::umount);
    }
    remount(&cluster, &mount, 2);
    tool::run_in(&mount.join("clone"), "git", &["fsck", "--full", "--strict"]);
    for name in ["delete.db", "wal.db", "shared.db"] {
        let words = [name, "pragma integrity_check"];
        let out = tool::run_in(mount.path(), "sqlite3", &words);
        assert_eq!(out.stdout, b"ok\n", "{name}");
    }
}

/// What is free on each brick.
fn free(cluster: &Cluster) -> Vec<(String, u64)> {
    let status = cluster.json(1, &["volume", "status", "vol"]);
    let bricks = status["volumes"][0]["bricks"].as_array().expect("bricks");
    let of = |brick: &serde_json::Value| {
        let path = brick["path"].as_str().expect("path").to_owned();
        (path, brick["space"]["free"].as_u64().expect("free space"))
    };
    bricks.iter().map(of).collect()
}

#[test]
fn a_file_of_many_shards_lies_over_all_sets() {
    const SHARD: u64 = 64 << 20;
    // A shard's set is drawn: that all fall on one happens once in 2^24 runs.
    const SHARDS: u64 = 24;
    let (cluster, mount) = spread("512M");
    let before = free(&cluster);
    let path = mount.join("large");
    let file = fs::File::create_new(&path).expect("create");
    // Over each border between two shards.
    let block = |at: u64| vec![at as u8 + 1; 1 << 20];
    let place = |at: u64| (at + 1) * SHARD - (512 << 10);
    for at in 0..SHARDS {
        file.write_all_at(&block(at), place(at)).expect("write");
    }
    file.sync_all().expect("fsync");
    let size = place(SHARDS - 1) + (1 << 20);
    assert_eq!(file.metadata().expect("stat").len(), size);
    drop(file);
    let after = free(&cluster);
    assert_eq!(before.len(), 6);
    for ((path, before), (_, after)) in before.iter().zip(&after) {
        let used = before.saturating_sub(*after);
        assert!(used >= 512 << 10, "{path}: only {used} bytes are there");
    }
    remount(&cluster, &mount, 3);
    let file = fs::File::options().read(true).write(true).open(&path);
    let file = file.expect("open");
    let mut found = vec![0; 1 << 20];
    for at in 0..SHARDS {
        file.read_exact_at(&mut found, place(at)).expect("read");
        assert!(found == block(at), "block {at}");
        file.read_exact_at(&mut found, place(at) - SHARD / 2)
            .expect("read");
        assert!(found.iter().all(|byte| *byte == 0), "hole {at}");
    }
    // Cut in the middle of one, and made longer again: what was behind is gone, on whatever set it was.
    let cut = place(SHARDS / 2) + (512 << 10) + 7;
    file.set_len(cut).expect("truncate");
    file.set_len(size).expect("truncate");
    file.read_exact_at(&mut found, place(SHARDS / 2))
        .expect("read");
    let kept = (512 << 10) + 7;
    assert!(
        found[..kept] == block(SHARDS / 2)[..kept] && found[kept..].iter().all(|byte| *byte == 0)
    );
    file.read_exact_at(&mut found, place(SHARDS - 1))
        .expect("read");
    assert!(found.iter().all(|byte| *byte == 0), "the end");
    drop(file);
    fs::remove_file(&path).expect("unlink");
    let freed =
        |(before, after): (&(String, u64), &(String, u64))| after.1 + (256 << 10) >= before.1;
    tool::wait_for("the space of all shards", SOON, || {
        before.iter().zip(&free(&cluster)).all(freed).then_some(())
    });
}

fn entries() -> u32 {
    let given = std::env::var("DIRECTORY_ENTRIES");
    given
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000)
}

/// Lists a directory with raw calls: names, in the order in which they come, with rising offsets.
fn listed(dir: &Path) -> Vec<String> {
    let fd = fs::File::open(dir).expect("open");
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut listing = rustix::fs::RawDir::new(&fd, buffer.spare_capacity_mut());
    let (mut names, mut last) = (Vec::new(), 0);
    while let Some(entry) = listing.next() {
        let entry = entry.expect("entry");
        let offset = entry.next_entry_cookie();
        assert!(offset >= last, "{:?} comes too late", entry.file_name());
        last = offset;
        names.push(entry.file_name().to_str().expect("text").to_owned());
    }
    names
}

/// Number of inodes on the bricks of each set, as the bricks count them.
fn inodes(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.json(1, &["volume", "status", "vol"]);
    let bricks = status["volumes"][0]["bricks"].as_array().expect("bricks");
    let count = |brick: &serde_json::Value| brick["space"]["inodes"].as_u64().expect("inodes");
    bricks.iter().map(count).collect()
}

#[test]
fn a_large_directory_is_listed_in_order_while_entries_come_and_go() {
    const THREADS: u32 = 4;
    let count = entries();
    let (cluster, mount) = spread("1G");
    let other = cluster.mount(&[cluster.server(2)], "vol");
    let dir = mount.join("many");
    fs::create_dir(&dir).expect("mkdir");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let dir = &dir;
            scope.spawn(move || {
                for n in (thread..count).step_by(THREADS as usize) {
                    fs::File::create_new(dir.join(format!("stays-{n:06}"))).expect("create");
                }
            });
        }
    });
    for (at, inodes) in inodes(&cluster).iter().enumerate() {
        let share = u64::from(count) / 2;
        assert!(
            (share / 2..share * 2).contains(inodes),
            "brick {at}: {inodes} inodes"
        );
    }
    let (far, done, came) = (
        other.join("many"),
        AtomicBool::new(false),
        AtomicU32::new(0),
    );
    std::thread::scope(|scope| {
        let (done, came) = (&done, &came);
        let mut churn = Vec::new();
        for (thread, dir) in [&far, &dir].into_iter().enumerate() {
            churn.push(scope.spawn(move || {
                let mut turn = 0;
                while !done.load(Ordering::Relaxed) {
                    let name = |n: u32| dir.join(format!("comes-{thread}-{}", n % 97));
                    fs::File::create_new(name(turn)).expect("create");
                    if turn >= 50 {
                        let (from, to) = (name(turn - 50), dir.join(format!("goes-{thread}")));
                        fs::rename(&from, &to).expect("rename");
                        fs::remove_file(&to).expect("unlink");
                    }
                    turn += 1;
                    came.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let mut round = 0;
        while round < 6 || came.load(Ordering::Relaxed) < 400 {
            let at = if round % 2 == 0 { &dir } else { &far };
            let names = listed(at);
            let unique: HashSet<&String> = names.iter().collect();
            assert_eq!(
                unique.len(),
                names.len(),
                "round {round}: a name came twice"
            );
            assert!(names[..2] == [".", ".."], "{:?}", &names[..2]);
            let stay = names.iter().filter(|name| name.starts_with("stays-"));
            assert_eq!(stay.count(), count as usize, "round {round}");
            assert!(
                churn.iter().all(|thread| !thread.is_finished()),
                "churn ended"
            );
            round += 1;
        }
        done.store(true, Ordering::Relaxed);
        let came = came.load(Ordering::Relaxed);
        eprintln!("{came} entries came and went beside {count}, in {round} listings");
    });
    // Once all is calm both mounts list the same, in the same order.
    assert!(listed(&dir) == listed(&far));
}
