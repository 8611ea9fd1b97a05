//! Seeds that once failed, each with what it showed. They run before the fresh ones.

use super::world::SEVERAL_SETS;

/// Seed and reason.
pub const SEEDS: &[(u64, &str)] = &[
    (
        11 | SEVERAL_SETS,
        "clients that died left a prepared share and records of decisions for ever",
    ),
    (
        25,
        "after a lossy opening a truncation that raised the size was done although an append came in between",
    ),
    (
        27 | SEVERAL_SETS,
        "a client that closed left the record of a decision for ever",
    ),
];
