//! fio as people run it: the job files of `benches/jobs`, with everything written verified at once, after a remount and
//! after a restart of `mortard`. Small sizes; `FIO_SCALE=8` makes them eight times as large (`tests/run fio`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mortar_tests::real::{Daemon, Kind, Mount, tool};

fn scale() -> u64 {
    std::env::var("FIO_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// The job files, but for the one that needs a volume of its own.
fn job_files() -> Vec<PathBuf> {
    let dir = tool::source_tree().join("benches/jobs");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .expect("job files")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "fio"))
        .filter(|path| path.file_stem().is_some_and(|stem| stem != "large"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 6, "{files:?}");
    files
}

/// Runs a job file in a directory; panics with fio's words if it finds anything wrong. What fio keeps of its own goes
/// with the daemon's directory.
fn fio(daemon: &Daemon, dir: &Path, jobs: &Path, more: &[&str]) {
    let (scale, shown) = (scale(), jobs.display());
    let out = Command::new("fio")
        .arg(format!("--directory={}", dir.display()))
        .arg("--minimal")
        .arg(format!("--aux-path={}", daemon.dir().display()))
        .args(more)
        .arg(jobs)
        .env("SIZE", format!("{scale}M"))
        .env("FILES", (40 * scale).to_string())
        .env("LARGE", format!("{}M", 320 * scale.min(2)))
        .stdin(Stdio::null())
        .output()
        .expect("fio (tests/run installs it)");
    assert!(
        out.status.success(),
        "{shown} {more:?}:\n{}\n{}",
        tool::tail(&out.stderr),
        tool::tail(&out.stdout)
    );
}

#[test]
fn what_jobs_write_is_verified_again_after_a_remount_and_a_restart() {
    let mut daemon = Daemon::with_volume(Kind::Replica(3), &format!("{}M", 512 * scale()));
    let mount = Mount::new(&daemon, "vol");
    let files = job_files();
    let dir = |jobs: &Path| {
        let name = jobs.file_stem().and_then(|stem| stem.to_str());
        mount.join(name.expect("text"))
    };
    for jobs in &files {
        fs::create_dir(dir(jobs)).expect("mkdir");
        fio(&daemon, &dir(jobs), jobs, &[]);
    }
    mount.umount();
    mount.mount(&daemon, "vol", "");
    for jobs in &files {
        fio(&daemon, &dir(jobs), jobs, &["--verify_only"]);
    }
    daemon.kill();
    daemon.restart();
    daemon.wait_ready();
    // The mount has kept pages; another one has none.
    mount.umount();
    mount.mount(&daemon, "vol", "");
    for jobs in &files {
        fio(&daemon, &dir(jobs), jobs, &["--verify_only"]);
    }
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
    fio(&daemon, mount.path(), &jobs, &[]);
    mount.umount();
    daemon.terminate();
    daemon.restart();
    daemon.wait_ready();
    mount.mount(&daemon, "vol", "");
    fio(&daemon, mount.path(), &jobs, &["--verify_only"]);
}
