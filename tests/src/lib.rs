//! Shared parts of the tests above the crates.
