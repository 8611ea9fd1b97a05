//! fio as people run it: the job files of `benches/jobs`, with everything written verified at once, after a remount and
//! after a restart of `mortard`. Small sizes; `FIO_SCALE=8` makes them eight times as large (`tests/run fio`).

use mortar_tests::real::suites::{self, fio_scale as scale};
use mortar_tests::real::{Daemon, Kind, Mount, tool};

#[test]
fn what_jobs_write_is_verified_again_after_a_remount_and_a_restart() {
    let mut daemon = Daemon::with_volume(Kind::Replica(3), &format!("{}M", 512 * scale()));
    let mount = Mount::new(&daemon, "vol");
    suites::fio_jobs(mount.path(), daemon.dir(), &[]);
    mount.umount();
    mount.mount(&daemon, "vol", "");
    suites::fio_jobs(mount.path(), daemon.dir(), &["--verify_only"]);
    daemon.kill();
    daemon.restart();
    daemon.wait_ready();
    // The mount has kept pages; another one has none.
    mount.umount();
    mount.mount(&daemon, "vol", "");
    suites::fio_jobs(mount.path(), daemon.dir(), &["--verify_only"]);
}

#[test]
fn a_file_is_larger_than_a_brick() {
    let mut daemon = Daemon::start();
    daemon.wait_ready();
    let size = format!("{}M", 256 * scale().min(2));
    let bricks: Vec<String> = (1..=3)
        .map(|n| format!("127.0.0.1:{}", daemon.dir().join(format!("b{n}")).display()))
        .collect();
    let mut words = vec!["volume", "create", "vol"];
    words.extend(bricks.iter().map(String::as_str));
    words.extend(["--brick-size", &size, "force"]);
    daemon.mortar_ok(&words);
    daemon.mortar_ok(&["volume", "set", "vol", "features.shard-block-size", "4MB"]);
    daemon.mortar_ok(&["volume", "start", "vol"]);
    let mount = Mount::new(&daemon, "vol");
    let jobs = tool::source_tree().join("benches/jobs/large.fio");
    // Its space is granted, then written faster than it is applied; once more where the file before was just removed.
    for _ in 0..3 {
        suites::fio(mount.path(), daemon.dir(), &jobs, &[]);
        let file = mount.join("larger-than-a-brick.0.0");
        std::fs::remove_file(file).expect("rm");
    }
    suites::fio(mount.path(), daemon.dir(), &jobs, &[]);
    mount.umount();
    daemon.terminate();
    daemon.restart();
    daemon.wait_ready();
    mount.mount(&daemon, "vol", "");
    suites::fio(mount.path(), daemon.dir(), &jobs, &["--verify_only"]);
}
