//! mortard, the node daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use mortar_server::brick::Namespace;
use mortar_server::node::bricks::Backend;
use mortar_server::node::daemon::{self, Options};
use mortar_server::node::data_dir::DataDir;
use mortar_server::node::stores::FileStores;
use mortar_server::offline;

/// Requests are many small allocations, and memory freed after a burst goes back to the system soon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Mortar's node daemon: serves bricks and the control plane.
#[derive(Parser, Debug)]
#[command(
    name = "mortard",
    version,
    about,
    after_help = "`mortard brick ...` looks into bricks without a daemon: see `mortard brick --help`."
)]
struct Arguments {
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
    log_level: tracing::level_filters::LevelFilter,
    /// Append messages to this file instead of standard error; SIGHUP opens it again
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Threads that serve bricks
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
}

/// Logs to standard error; libraries only from warnings on.
fn start_log(level: tracing::level_filters::LevelFilter) {
    let mut filter = tracing_subscriber::EnvFilter::default().add_directive(level.into());
    for library in ["quinn", "quinn_proto", "quinn_udp", "rustls"] {
        if let Ok(directive) = format!("{library}=warn").parse() {
            filter = filter.add_directive(directive);
        }
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
}

/// Sends messages to a file; gives its absolute path.
fn log_to(path: &std::path::Path) -> Result<PathBuf, String> {
    let told = |error| format!("log {}: {error}", path.display());
    let absolute = std::path::absolute(path).map_err(told)?;
    mortar_protocol::logfile::take_stderr(&absolute).map_err(told)?;
    Ok(absolute)
}

fn main() -> ExitCode {
    let words = || std::env::args_os().skip(1);
    if words().next().is_some_and(|word| word == "brick") {
        return offline::run(offline::Args::parse_from(words()));
    }
    let arguments = Arguments::parse();
    let log_file = match arguments.log_file.as_deref().map(log_to).transpose() {
        Ok(log_file) => log_file,
        Err(error) => {
            eprintln!("mortard: {error}");
            return ExitCode::FAILURE;
        }
    };
    start_log(arguments.log_level);
    // Where damaged data can make a library panic, the panic is caught and becomes an error of that brick.
    mortar_protocol::ending::end_on_panic(mortar_server::guard::is_caught);
    let options = Options {
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        api: arguments.api,
        threads: arguments.threads.into(),
        log_file,
    };
    let backend = |data: &DataDir| Backend {
        stores: FileStores::new(data.cluster, data.node),
        rules: Arc::new(Namespace::new()),
    };
    match daemon::run(&options, backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mortard: {error}");
            ExitCode::FAILURE
        }
    }
}
