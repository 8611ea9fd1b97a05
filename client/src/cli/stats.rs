//! `mortar stats DIR|VOLUME`: counts and latencies of a mount's calls, or of what a node's bricks of a volume were asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::watch::OpStats;

use super::admin::Admin;
use super::flags::{Form, Globals};
use crate::fuse::STATS_XATTRS;

/// Largest answer of a mount.
const MAX_ANSWER: usize = 64 << 10;

/// Arguments of `mortar stats`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StatsArgs {
    /// A mount point (or a directory below one), or the name of a volume
    what: std::ffi::OsString,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs `mortar stats`.
pub(crate) fn run(globals: &Globals, args: &StatsArgs) -> ExitCode {
    match stats(globals, args) {
        Ok(text) => {
            // A closed pipe (| head) is no error of ours.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("mortar stats: {why}");
            ExitCode::FAILURE
        }
    }
}

fn stats(globals: &Globals, args: &StatsArgs) -> Result<String, String> {
    let path = Path::new(&args.what);
    let all = if args.what.as_bytes().contains(&b'/') || path.is_dir() {
        of_mount(path)?
    } else {
        of_volume(globals, &args.what.to_string_lossy())?
    };
    if args.json || globals.form == Form::Json {
        let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
        return Ok(text + "\n");
    }
    Ok(table(&all))
}

/// Asks the mount itself, by an attribute that only it has.
fn of_mount(dir: &Path) -> Result<Vec<OpStats>, String> {
    let mut answer = vec![0; MAX_ANSWER];
    let mut last = rustix::io::Errno::NODATA;
    for name in STATS_XATTRS {
        match rustix::fs::getxattr(dir, *name, answer.as_mut_slice()) {
            Ok(len) => {
                return serde_json::from_slice(&answer[..len])
                    .map_err(|error| format!("{}: {error}", dir.display()));
            }
            Err(error) => last = error,
        }
    }
    Err(match last {
        rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP => {
            format!("{} is not on a mount of Mortar", dir.display())
        }
        error => format!("{}: {error}", dir.display()),
    })
}

fn of_volume(globals: &Globals, volume: &str) -> Result<Vec<OpStats>, String> {
    let request = AdminRequest::Stats {
        volume: volume.to_owned(),
    };
    match Admin::connect(globals)?.ask(&request)? {
        AdminReply::Stats(all) => Ok(all),
        AdminReply::Refused { message } => Err(message),
        _ => Err("the daemon gave an answer to another question".to_owned()),
    }
}

fn table(all: &[OpStats]) -> String {
    let mut text = format!(
        "{:<16} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "Operation", "Count", "Errors", "Mean", "p50", "p90", "p99", "p99.9", "Max"
    );
    for op in all {
        let _ = writeln!(
            text,
            "{:<16} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            op.name,
            op.count,
            op.failed,
            time(op.mean_ns),
            time(op.p50_ns),
            time(op.p90_ns),
            time(op.p99_ns),
            time(op.p999_ns),
            time(op.max_ns)
        );
    }
    text
}

/// A latency with a unit.
fn time(nanos: u64) -> String {
    let micros = nanos as f64 / 1e3;
    match nanos {
        0..100_000 => format!("{micros:.1}us"),
        100_000..1_000_000 => format!("{micros:.0}us"),
        1_000_000..1_000_000_000 => format!("{:.1}ms", micros / 1e3),
        _ => format!("{:.2}s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_have_units() {
        for (nanos, text) in [
            (0, "0.0us"),
            (1_500, "1.5us"),
            (250_000, "250us"),
            (12_340_000, "12.3ms"),
            (5_000_000_000, "5.00s"),
        ] {
            assert_eq!(time(nanos), text);
        }
    }
}
