//! Shared parts of the tests above the crates.
//!
//! - [`crash`]: workloads on one brick, ended at every write and flush of a simulated disk.
//! - [`consensus_sim`]: the control plane of several nodes in one process, on virtual time, from one seed.
//! - [`golden`]: what every later build must read.
//! - [`real`]: real processes: a daemon, a volume, mounts, with clean-up that also runs when a test fails.
//! - [`sim`]: a cluster in one process, on virtual time, from one seed.

pub mod consensus_sim;
pub mod crash;
pub mod golden;
pub mod real;
pub mod sim;
