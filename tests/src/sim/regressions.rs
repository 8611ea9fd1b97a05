//! Seeds that once failed, each with what it showed. They run before the fresh ones.

/// Seed and reason.
pub const SEEDS: &[(u64, &str)] = &[];
