//! POSIX suites on a mount of one daemon: pjdfstest and fsx. `tests/cluster/files.rs` runs them over three nodes.

use mortar_tests::real::{Daemon, Kind, Mount, suites};

/// Operations of fsx; `FSX_OPERATIONS` gives others.
const OPERATIONS: u32 = 60_000;

#[test]
fn pjdfstest_is_complete() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    suites::pjdfstest(mount.path(), daemon.dir());
}

#[test]
fn fsx_finds_no_difference() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    suites::fsx(mount.path(), daemon.dir(), OPERATIONS);
}
