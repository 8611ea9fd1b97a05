//! Real processes on this machine: `mortard`, volumes and mounts in a temporary directory.
//!
//! Everything started here is ended by its guard's `Drop`, also when a test panics. The executables are looked for in
//! `MORTAR_BIN_DIR`, else beside the test executable.

pub mod admin;
pub mod cluster;
pub mod daemon;
pub mod manifest;
pub mod mount;
pub mod net;
pub mod power;
pub mod suites;
pub mod tool;

pub use cluster::Cluster;
pub use daemon::{Daemon, Kind};
pub use mount::Mount;
pub use net::Net;

use std::path::PathBuf;

/// Directory with the executables under test.
///
/// # Panics
/// If they have not been built; the message says how.
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("MORTAR_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let exe = std::env::current_exe().expect("path of the test executable");
            // target/PROFILE/deps/test-HASH
            let deps = exe.parent().expect("directory of the test executable");
            if deps.ends_with("deps") {
                deps.parent().unwrap_or(deps).to_owned()
            } else {
                deps.to_owned()
            }
        });
    for name in ["mortard", "mortar"] {
        assert!(
            dir.join(name).exists(),
            "{} is missing: run `cargo build --workspace` first, or set MORTAR_BIN_DIR",
            dir.join(name).display()
        );
    }
    dir
}

/// Whether this process can mount: there is a /dev/fuse, and it is root or has fusermount3.
pub fn can_mount() -> bool {
    std::path::Path::new("/dev/fuse").exists()
}
