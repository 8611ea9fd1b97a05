//! What every later build must read: a brick image and encoded messages of format 1, kept in `tests/golden`.
//!
//! - `brick-1.image`: a brick of 256 MiB with every kind of file, in the compact form of [`image`].
//! - `messages-1.txt`: a line for each message, its name and its bytes in hexadecimal ([`messages`]).
//!
//! `cargo test -p mortar-tests --test golden` checks that this build reads both. `cargo run -p mortar-tests --bin golden`
//! makes those that do not exist; it never overwrites one. Until the first release, whoever changes a format on purpose
//! deletes the file and makes it again in the same commit; from then on a change gets a new number, and the old files
//! stay.

pub mod brick;
pub mod image;
pub mod messages;
mod samples;

use std::path::PathBuf;

/// Where the files lie.
pub fn dir() -> PathBuf {
    crate::real::tool::source_tree().join("tests/golden")
}
