//! Shared parts of the tests above the crates.
//!
//! - [`real`]: real processes: a daemon, a volume, mounts, with clean-up that also runs when a test fails.

pub mod real;
