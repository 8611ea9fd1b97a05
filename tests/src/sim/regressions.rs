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
    (
        7232,
        "a set of one member refused changes, also such as it had done before",
    ),
    (
        412_428 | SEVERAL_SETS,
        "a change was sent in another session than the data it attaches, and refused as nonsense",
    ),
    (
        610_066 | SEVERAL_SETS,
        "a transaction of an ended session was decided in the next one, and refused as nonsense",
    ),
    (
        1_795_850_983_115 | SEVERAL_SETS,
        "a link was refused after it was made: its answer came after the file was gone",
    ),
    (
        20_786_274 | SEVERAL_SETS,
        "an append refused for lack of its data was done twice: a late copy of it found the data there",
    ),
    (
        1_795_850_983_194 | SEVERAL_SETS,
        "the mark of a removed directory stayed for ever: a transaction had locked it when its last user let it go",
    ),
];
