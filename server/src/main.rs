//! mortard, the node daemon.

use std::process::ExitCode;

use clap::Parser;
use mortar_server::node::command;
use mortar_server::offline;

/// Requests are many small allocations, and memory freed after a burst goes back to the system soon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let words = || std::env::args_os().skip(1);
    if words().next().is_some_and(|word| word == "brick") {
        return offline::run(offline::Args::parse_from(words()));
    }
    command::run(command::Arguments::parse())
}
