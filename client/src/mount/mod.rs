//! `mortar mount`: from the command line to a process that serves the kernel until it is unmounted.

mod background;
mod connect;
mod log;
mod options;
mod place;
mod serve;
mod watch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use background::Progress;
use options::{MountOptions, Source, default_log, parse_options, parse_source};

/// Arguments of `mortar mount`.
#[derive(clap::Args, Clone, Debug)]
pub struct MountArgs {
    /// The volume: HOST:/NAME
    pub source: String,
    /// Where to mount it
    pub dir: PathBuf,
    /// Options, separated by commas (attribute-timeout=SECONDS, entry-timeout=SECONDS, negative-timeout=SECONDS,
    /// log-file=FILE, log-level=LEVEL, backup-volfile-servers=HOST:HOST, server-port=PORT, ro, noexec, ...)
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay in front and log to standard error
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// What the command starts: serves, and reports to its parent over standard output.
    #[arg(long, hide = true)]
    pub background: bool,
    /// The file that standard error of the background leads to.
    #[arg(long, hide = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// A mount that was asked for, checked.
#[derive(Clone, Debug)]
struct Request {
    source: Source,
    /// Absolute.
    dir: PathBuf,
    options: MountOptions,
    /// The file that takes its messages; none: standard error.
    log: Option<PathBuf>,
}

/// Mounts a volume. Returns when the mount answers; with `-f`, when it is unmounted.
pub fn run(args: MountArgs) -> ExitCode {
    match try_run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err((why, code)) => {
            eprintln!("mortar mount: {why}");
            ExitCode::from(code)
        }
    }
}

fn try_run(args: &MountArgs) -> Result<(), (String, u8)> {
    if args.background {
        return in_background(args);
    }
    let request = check(args)?;
    if args.foreground {
        let mut request = request;
        if let Some(log) = &request.options.log_file {
            let log = std::path::absolute(log).map_err(|error| (error.to_string(), 1))?;
            watch::log_to(&log).map_err(|why| (why, 1))?;
            request.log = Some(log);
        }
        log::start(request.options.log_level);
        return serve::serve(&request, |_| {}).map_err(|why| (why, 1));
    }
    let log = request
        .options
        .log_file
        .clone()
        .unwrap_or_else(|| default_log(&request.dir));
    let log = std::path::absolute(&log).map_err(|error| (error.to_string(), 1))?;
    background::start(&child_args(args, &request.dir, &log), &log).map_err(|why| (why, 1))
}

fn check(args: &MountArgs) -> Result<Request, (String, u8)> {
    let one = |why| (why, 1);
    let source = parse_source(&args.source).map_err(one)?;
    let options = parse_options(&args.options).map_err(one)?;
    let dir = place::prepare(&args.dir)?;
    Ok(Request {
        source,
        dir,
        options,
        log: args.log.clone(),
    })
}

/// Arguments of the process in the background.
fn child_args(args: &MountArgs, dir: &Path, log: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["mount".into()];
    for options in &args.options {
        words.extend(["-o".into(), options.into()]);
    }
    words.extend([
        "--background".into(),
        "--log".into(),
        log.into(),
        "--".into(),
    ]);
    words.extend([args.source.clone().into(), dir.into()]);
    words
}

fn in_background(args: &MountArgs) -> Result<(), (String, u8)> {
    let outcome = background::detach()
        .map_err(|error| (error.to_string(), 1))
        .and_then(|()| check(args))
        .and_then(|request| {
            log::start(request.options.log_level);
            serve::serve(&request, background::report).map_err(|why| (why, 1))
        });
    if let Err((why, _)) = &outcome {
        // Does nothing if the parent was told before: its pipe is gone then.
        background::report(Progress::Failed(why));
    }
    outcome
}
