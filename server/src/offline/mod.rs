//! `mortard brick`: looking into bricks without a running cluster. Devices are only read; their logs are replayed in
//! memory, over a private overlay.

mod brick;
mod check;
mod cli;
mod export;
mod info;
mod overlay;
mod records;
#[cfg(test)]
mod tests;
mod volume;

pub use cli::{Args, run};
