//! mortar, the command.

use std::process::ExitCode;

fn main() -> ExitCode {
    mortar_client::cli::main()
}
