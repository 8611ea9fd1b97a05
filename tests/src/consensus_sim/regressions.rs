//! Seeds that once failed, each with what it showed. They run before the fresh ones.

/// Seed and reason.
pub const SEEDS: &[(u64, &str)] = &[
    (
        108,
        "a brick was formatted after its creation had been given up and cleared: an orphan",
    ),
    (
        134,
        "a creation that was recorded after its leader had taken back what was left stayed for ever",
    ),
];
