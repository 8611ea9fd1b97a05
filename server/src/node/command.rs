//! The command line of `mortard`, and its process from there on.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use mortar_protocol::join::SECRET_FILE;
use tracing::level_filters::LevelFilter;

use super::bricks::Backend;
use super::daemon::{self, Ended, Options};
use super::data_dir::DataDir;
use super::log::{self, LogFormat};
use super::stores::FileStores;
use crate::brick::Namespace;

/// Mortar's node daemon: serves bricks and the control plane.
#[derive(Parser, Debug)]
#[command(
    name = "mortard",
    version,
    about,
    after_help = "`mortard brick ...` looks into bricks without a daemon: see `mortard brick --help`."
)]
pub struct Arguments {
    /// Directory of this node's identity, certificates and control plane (made if it is not there)
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// UDP address for clients and other nodes
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:24007")]
    listen: SocketAddr,
    /// TCP address of the HTTP port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    api: SocketAddr,
    /// What is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
    /// How messages are written: as lines for people, or one JSON object per line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Append messages to this file instead of standard error; SIGHUP opens it again
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// The secret that nodes of one cluster share: a node is taken in by one that has the same. Made if it is not there
    /// [default: /etc/mortar/secret, for users other than root DIR/secret]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Threads that serve bricks
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
}

/// Sends messages to a file; gives its absolute path.
fn log_to(path: &Path) -> Result<PathBuf, String> {
    let told = |error| format!("log {}: {error}", path.display());
    let absolute = std::path::absolute(path).map_err(told)?;
    mortar_protocol::logfile::take_stderr(&absolute).map_err(told)?;
    Ok(absolute)
}

/// Runs the daemon until it is told to end.
pub fn run(arguments: Arguments) -> ExitCode {
    match try_run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mortard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(arguments: Arguments) -> Result<(), String> {
    let log_file = arguments.log_file.as_deref().map(log_to).transpose()?;
    log::start(arguments.log_level, arguments.log_format);
    // Where damaged data can make a library panic, the panic is caught and becomes an error of that brick.
    mortar_protocol::ending::end_on_panic(crate::guard::is_caught);
    let secret_file = arguments.secret_file.unwrap_or_else(|| {
        if rustix::process::geteuid().is_root() {
            PathBuf::from(SECRET_FILE)
        } else {
            arguments.data_dir.join("secret")
        }
    });
    let options = Options {
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        api: arguments.api,
        threads: arguments.threads.into(),
        log_file,
        secret_file,
    };
    let backend = |data: &DataDir| Backend {
        stores: FileStores::new(data.cluster, data.node),
        rules: Arc::new(Namespace::new()),
    };
    match daemon::run(&options, backend).map_err(|error| error.to_string())? {
        Ended::Stopped => Ok(()),
        Ended::Moved => Err(start_over()),
    }
}

/// Starts this program anew in the same process: its node belongs to another cluster, and nothing of the old one must
/// go on. Returns only if that is not possible.
fn start_over() -> String {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| "mortard".into());
    let error = std::process::Command::new("/proc/self/exe")
        .arg0(name)
        .args(words)
        .exec();
    format!("cannot start over: {error}; start mortard again")
}
