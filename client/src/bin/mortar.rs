//! mortar, the command.

use std::process::ExitCode;

/// Requests are many small allocations, and memory freed after a burst goes back to the system soon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mortar_client::cli::main()
}
