//! Shared parts of the tests above the crates.
//!
//! - [`sim`]: a cluster in one process, on virtual time, from one seed.
//! - [`real`]: real processes: a daemon, a volume, mounts, with clean-up that also runs when a test fails.

pub mod real;
pub mod sim;
