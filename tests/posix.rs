//! POSIX suites on a mount: pjdfstest and fsx (the Rust ones), installed by `tests/run`.

use std::fs;
use std::process::Command;

use mortar_tests::real::{Daemon, Kind, Mount, tool};

/// Tests of pjdfstest that do not pass, each with its reason.
const EXCLUDED: &[(&str, &str)] = &[(
    "open::etxtbsy",
    "with FUSE's ATOMIC_O_TRUNC the kernel has the file truncated by open(O_RDONLY|O_TRUNC) before it looks whether \
     the program runs; where that kills the program first, the open succeeds",
)];

#[test]
fn pjdfstest_is_complete() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: pjdfstest changes users, which needs root");
        return;
    }
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    let config = daemon.dir().join("pjdfstest.toml");
    fs::write(
        &config,
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [ [\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"games\", \"games\"] ]\n",
    )
    .expect("config");
    let out = Command::new("pjdfstest")
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(mount.path())
        .output()
        .expect("pjdfstest runs (tests/run installs it)");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let failed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("FAILED"))
        .filter(|line| !EXCLUDED.iter().any(|(name, _)| line.contains(name)))
        .collect();
    eprintln!("{}", tool::tail(&out.stdout));
    assert!(
        out.status.success() || (failed.is_empty() && text.contains("Summary:")),
        "pjdfstest: {}\n{}",
        failed.join("\n"),
        tool::tail(&out.stderr)
    );
}

/// In parts, with a seed each: fsx keeps every mapping it makes, and slows down with their number.
#[test]
fn fsx_finds_no_difference() {
    const PARTS: u32 = 8;
    let operations = std::env::var("FSX_OPERATIONS").unwrap_or_else(|_| "200000".into());
    let operations: u32 = operations.parse().expect("FSX_OPERATIONS is a number");
    let part = operations.div_ceil(PARTS).to_string();
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    let config = daemon.dir().join("fsx.toml");
    fs::write(&config, "flen = 262144\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ntruncate = 3\n\
        invalidate = 1\nclose_open = 1\nfsync = 1\nfdatasync = 1\npunch_hole = 2\nposix_fallocate = 1\ncopy_file_range = 2\n")
        .expect("config");
    for seed in 42..42 + PARTS {
        let (seed, file) = (seed.to_string(), format!("fsx-file-{seed}"));
        let config = config.to_str().expect("text");
        let words = ["-f", config, "-N", &part, "-S", &seed, &file];
        tool::run_in(mount.path(), "fsx", &words);
    }
}
