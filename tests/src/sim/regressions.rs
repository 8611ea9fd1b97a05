//! Seeds that once failed, each with what it showed. They run before the fresh ones.

/// Seed and reason.
pub const SEEDS: &[(u64, &str)] = &[
    (
        11,
        "clients that died left a prepared share and records of decisions for ever",
    ),
    (
        25,
        "after a lossy opening a truncation that raised the size was done although an append came in between",
    ),
    (
        27,
        "a client that closed left the record of a decision for ever",
    ),
];
