//! `mortard brick`: looking into bricks without a running cluster. Devices are only read; their logs are replayed in
//! memory, over a private overlay. (`wipe` alone writes: it frees what a deleted volume left.)

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
mod wipe;

pub use check::{Report, check};
pub use cli::{Args, execute_args, run};

use std::path::Path;
use std::sync::Arc;

use crate::device::Device;

/// What is wrong with the brick on a device: as `mortard brick check`, without changing anything on it.
///
/// # Errors
/// If it cannot be opened.
pub fn problems(device: Arc<dyn Device>) -> Result<Vec<String>, String> {
    let brick = brick::Brick::on(Path::new("brick"), device, None);
    let brick = brick.map_err(|error| error.to_string())?;
    Ok(check::check(&brick.store).problems)
}
