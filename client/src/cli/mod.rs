//! The commands of `mortar`.
//!
//! Words and outputs are gluster's where it has the command. Errors go to standard error as one line: what, why, what
//! to do; exit code 1.

mod admin;
mod brick;
mod stats;
mod volume;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::demo::DemoArgs;
use crate::mount::MountArgs;

/// Mortar: a distributed storage engine.
#[derive(Parser, Debug)]
#[command(name = "mortar", version, about, max_term_width = 100)]
struct Cli {
    /// The daemon to ask, HOST:PORT (default: MORTAR_SERVER, else 127.0.0.1:24007)
    #[arg(long, global = true)]
    server: Option<String>,
    /// `script` asks no questions
    #[arg(long, global = true)]
    mode: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Volumes: create, start, stop, delete, info, status, list, set, get, reset
    #[command(disable_help_flag = true)]
    Volume {
        /// The command's words; `mortar volume help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Mount a volume: HOST:/NAME DIR [-o OPTIONS] [-f]
    Mount(MountArgs),
    /// Counts and latencies of file operations: of a mount (DIR) or of what a volume's bricks were asked (VOLUME)
    Stats(stats::StatsArgs),
    /// Look into bricks offline, read-only: info, check, ls, cat, export
    #[command(disable_help_flag = true)]
    Brick {
        /// Handed to `mortard brick`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Try Mortar: a replicated volume of three file bricks, mounted, in one command
    Demo(DemoArgs),
}

/// The daemon's address: as given, else `MORTAR_SERVER`, else this node's default port.
pub(crate) fn server_address(given: Option<&str>) -> String {
    given
        .map(str::to_owned)
        .or_else(|| {
            std::env::var("MORTAR_SERVER")
                .ok()
                .filter(|text| !text.is_empty())
        })
        .unwrap_or_else(|| "127.0.0.1:24007".to_owned())
}

/// Runs `mortar`.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let server = server_address(cli.server.as_deref());
    match cli.command {
        Command::Volume { words } => {
            let script = cli.mode.as_deref() == Some("script");
            volume::run(&server, script, &words)
        }
        Command::Stats(args) => stats::run(&server, &args),
        Command::Mount(args) => crate::mount::run(args),
        Command::Brick { args } => brick::run(&args),
        Command::Demo(args) => crate::demo::run(&args),
    }
}
