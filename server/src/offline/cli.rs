//! The command line of `mortard brick`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use mortar_protocol::attr::{FileKind, Time};
use serde_json::json;

use super::brick::{Brick, LookError, Upto};
use super::check::{Report, check};
use super::export::{export, export_all};
use super::info;
use super::volume::{FileError, Found, Node, PIECE, Volume};
use super::wipe::{WipeError, wipe};
use crate::device::{Engine, TargetError};

/// Looks at a brick in use that changes meanwhile.
const LOOKS: u32 = 3;

/// Looks into bricks without a running daemon. Devices are only read, except by `wipe`.
#[derive(Parser, Debug)]
#[command(name = "mortard brick", bin_name = "mortard brick", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Shows what bricks say about themselves
    Info {
        #[command(flatten)]
        bricks: Bricks,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Reads everything on bricks and verifies it; of a brick in use, what its last checkpoint holds
    Check {
        #[command(flatten)]
        bricks: Bricks,
    },
    /// Lists a directory, or one file
    Ls {
        #[command(flatten)]
        bricks: Bricks,
        /// Path within the volume
        #[arg(long, default_value = "/")]
        path: String,
        /// List directories below, too
        #[arg(short = 'R', long)]
        recursive: bool,
    },
    /// Writes a file's contents to standard output
    Cat {
        #[command(flatten)]
        bricks: Bricks,
        /// Path within the volume
        #[arg(long)]
        path: String,
    },
    /// Copies files out, with owners, modes, times, attributes, holes and hard links
    Export {
        /// Bricks' directories, files or block devices, one of each set; and, last, where to: a new or empty
        /// directory (or, for one file, its new name)
        #[arg(required = true, value_names = ["DEVICE", "DIR"])]
        devices: Vec<PathBuf>,
        /// Show the state after this entry of the log (SEQ or EPOCH.SEQ) instead of the newest
        #[arg(long)]
        upto: Option<Upto>,
        /// Path within the volume
        #[arg(long, default_value = "/")]
        path: String,
        /// Where to, if it is not the last word
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Frees the space of bricks of deleted volumes: removes the file in a brick's directory, empties a file, discards
    /// what is on a block device
    Wipe {
        /// A brick's directory, file or block device
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
        /// Also a brick whose volume was not deleted
        #[arg(long)]
        force: bool,
    },
}

#[derive(clap::Args, Debug)]
struct Bricks {
    /// A brick's directory, file or block device; to see a whole volume, one of each of its sets
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// Show the state after this entry of the log (SEQ or EPOCH.SEQ) instead of the newest
    #[arg(long)]
    upto: Option<Upto>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Look(#[from] LookError),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{0}")]
    Wipe(#[from] WipeError),
    #[error("say where to: export DEVICE... DIR")]
    NoTarget,
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Runs a command. Exit code 0: done and sound; 1: problems were found; 2: it could not be done.
pub fn run(args: Args) -> ExitCode {
    // Damaged metadata can make the tree's library panic; that is caught and reported as damage.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !crate::guard::is_caught() {
            report(info);
        }
    }));
    let mut out = io::stdout().lock();
    let mut err = io::stderr().lock();
    match execute(args.command, &mut out, &mut err) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::from(2)
        }
        Err(failure) => {
            let _ = writeln!(err, "mortard brick: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Runs a command with its output elsewhere. Says whether all was well.
///
/// # Errors
/// Why it could not be done.
pub fn execute_args(args: Args, out: &mut dyn Write, err: &mut dyn Write) -> Result<bool, String> {
    execute(args.command, out, err).map_err(|failure| failure.to_string())
}

/// Runs a command and says whether all was well.
fn execute(command: Command, out: &mut dyn Write, err: &mut dyn Write) -> Result<bool, Failure> {
    match command {
        Command::Info { bricks, json } => show_info(bricks.open()?, json, out),
        Command::Check { bricks } => show_check(&bricks, out),
        Command::Ls {
            bricks,
            path,
            recursive,
        } => {
            let volume = bricks.volume(err)?;
            let node = volume.resolve(&path)?;
            let mut list = Listing {
                volume: &volume,
                recursive,
                odd: Vec::new(),
            };
            list.show(&node, path.trim_end_matches('/'), &mut Vec::new(), out)?;
            for line in &list.odd {
                writeln!(err, "{line}")?;
            }
            Ok(list.odd.is_empty())
        }
        Command::Cat { bricks, path } => {
            let volume = bricks.volume(err)?;
            cat(&volume, &path, out)?;
            Ok(true)
        }
        Command::Export {
            mut devices,
            upto,
            path,
            to,
        } => {
            let to = match to {
                Some(to) => to,
                None => devices.pop().ok_or(Failure::NoTarget)?,
            };
            if devices.is_empty() {
                return Err(Failure::NoTarget);
            }
            let volume = Bricks { devices, upto }.volume(err)?;
            let summary = match path.split('/').all(|name| matches!(name, "" | ".")) {
                true => export_all(&volume, &to),
                false => export(&volume, &volume.resolve(&path)?, &to),
            };
            for line in &summary.problems {
                writeln!(err, "{line}")?;
            }
            for (what, count) in &summary.lost {
                writeln!(err, "{what} of {count} files could not be set (root may)")?;
            }
            writeln!(
                out,
                "{} files ({}), {} directories, {} links and others to {}; {} problems",
                summary.files,
                info::size(summary.bytes),
                summary.directories,
                summary.others,
                to.display(),
                summary.problems.len()
            )?;
            Ok(summary.problems.is_empty() && summary.lost.is_empty())
        }
        Command::Wipe { devices, force } => {
            for path in &devices {
                writeln!(out, "{}", wipe(path, force)?)?;
            }
            Ok(true)
        }
    }
}

impl Bricks {
    fn open(&self) -> Result<Vec<Brick>, LookError> {
        let engine = Engine::with_threads();
        self.devices
            .iter()
            .map(|path| Brick::open(path, self.upto, &engine))
            .collect()
    }

    /// The volume of the bricks; says which state is shown.
    fn volume(&self, err: &mut dyn Write) -> Result<Volume, Failure> {
        let volume = Volume::new(self.open()?)?;
        for (set, bricks) in &volume.sets {
            for brick in bricks {
                let damaged = brick.store.log_damaged() || brick.store.superblock().damaged;
                writeln!(
                    err,
                    "volume {} set {set} as of {} on {}{}",
                    volume.name,
                    brick.at,
                    brick.path.display(),
                    if damaged { " (damaged)" } else { "" }
                )?;
            }
        }
        Ok(volume)
    }
}

fn show_info(bricks: Vec<Brick>, as_json: bool, out: &mut dyn Write) -> Result<bool, Failure> {
    if as_json {
        let facts: Vec<_> = bricks.iter().map(info::facts).collect();
        writeln!(out, "{:#}", json!(facts))?;
        return Ok(true);
    }
    for (number, brick) in bricks.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        for line in info::lines(brick) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(true)
}

fn show_check(bricks: &Bricks, out: &mut dyn Write) -> Result<bool, Failure> {
    let engine = Engine::with_threads();
    let mut sound = true;
    for path in &bricks.devices {
        let shown = path.display();
        let report = match Brick::open(path, bricks.upto, &engine) {
            Ok(brick) => check(&brick.store),
            Err(LookError::Target(in_use @ TargetError::InUse { .. })) => {
                writeln!(out, "{in_use}: its last checkpoint is judged, not its log")?;
                check_in_use(path, &engine)?
            }
            Err(error) => return Err(error.into()),
        };
        for problem in &report.problems {
            writeln!(out, "{shown}: {problem}")?;
        }
        let verdict = match report.count {
            0 => "sound".to_owned(),
            count => format!("{count} problems"),
        };
        writeln!(
            out,
            "{shown}: {} records, {} blocks of data ({}), {} entries to be applied: {verdict}",
            report.records,
            report.blocks,
            info::size(report.blocks * 4096),
            report.entries,
        )?;
        sound &= report.count == 0;
    }
    Ok(sound)
}

/// Checks a brick that a daemon has open. A checkpoint that is made meanwhile lets go of what the one before refers
/// to: then only problems count that several looks have in common.
fn check_in_use(path: &Path, engine: &Arc<Engine>) -> Result<Report, LookError> {
    let mut before: Option<Report> = None;
    for look in 1.. {
        let found = Brick::of_checkpoint(path, engine).and_then(|brick| {
            let report = check(&brick.store);
            let now = Brick::of_checkpoint(path, engine)?;
            Ok((report, now.store.applied() == brick.store.applied()))
        });
        let (mut report, still) = match found {
            Ok(found) => found,
            Err(error) if look >= LOOKS => return Err(error),
            Err(_) => continue,
        };
        if report.count == 0 || still {
            return Ok(report);
        }
        if let Some(before) = &before {
            let common = |problem: &String| before.problems.contains(problem);
            report.problems.retain(common);
            report.count = report.problems.len() as u64;
        }
        if look >= LOOKS || report.count == 0 {
            return Ok(report);
        }
        before = Some(report);
    }
    Ok(before.unwrap_or_default())
}

fn cat(volume: &Volume, path: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let node = volume.resolve(path)?;
    if node.attr.kind != FileKind::File {
        return Err(FileError::NotFile(path.to_owned()).into());
    }
    let mut at = 0;
    while at < node.attr.size {
        let data = volume.read(&node, at, PIECE.min(node.attr.size - at))?;
        out.write_all(&data)?;
        at += data.len() as u64;
    }
    out.flush()?;
    Ok(())
}

/// `ls`.
struct Listing<'a> {
    volume: &'a Volume,
    recursive: bool,
    /// What could not be shown.
    odd: Vec<String>,
}

impl Listing<'_> {
    fn show(
        &mut self,
        node: &Node,
        path: &str,
        above: &mut Vec<mortar_protocol::ids::InodeId>,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        if !node.inode.is_dir() {
            let name = path.rsplit('/').next().unwrap_or(path);
            return Ok(writeln!(out, "{}", line(node, name.as_bytes()))?);
        }
        if self.recursive {
            writeln!(out, "{}:", if path.is_empty() { "/" } else { path })?;
        }
        let id = node.attr.gfid.id;
        let mut below = Vec::new();
        for (name, found) in self.volume.list(id, &mut self.odd)? {
            match self.volume.node(found.gfid.id) {
                Ok(node) => {
                    writeln!(out, "{}", line(&node, &name))?;
                    if node.inode.is_dir() {
                        below.push((name, node));
                    }
                }
                Err(error) => writeln!(out, "{}", unknown(&found, &name, &error))?,
            }
        }
        above.push(id);
        for (name, node) in below {
            if self.recursive && !above.contains(&node.attr.gfid.id) {
                writeln!(out)?;
                let path = format!("{path}/{}", String::from_utf8_lossy(&name));
                self.show(&node, &path, above, out)?;
            }
        }
        above.pop();
        Ok(())
    }
}

/// One line, as `ls -l` has it.
fn line(node: &Node, name: &[u8]) -> String {
    let attr = &node.attr;
    let mut line = format!(
        "{}{} {:>3} {:>5} {:>5} {:>12} {} {}",
        letter(attr.kind),
        permissions(attr.perm),
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.size,
        date(attr.mtime),
        printable(name)
    );
    if attr.kind == FileKind::Symlink {
        line.push_str(" -> ");
        line.push_str(&printable(&node.inode.target));
    }
    line
}

fn unknown(found: &Found, name: &[u8], error: &FileError) -> String {
    let name = printable(name);
    format!("{}????????? {name}: {error}", letter(found.kind))
}

/// A name for a terminal: control characters and what is no UTF-8 are escaped.
fn printable(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    }
}

fn permissions(perm: u32) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = String::with_capacity(9);
    for (group, (bit, with, without)) in special.into_iter().enumerate() {
        let bits = perm >> (6 - 3 * group);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, perm & bit != 0) {
            (true, true) => with,
            (false, true) => without,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Date and time in UTC.
fn date(time: Time) -> String {
    let (days, secs) = (time.secs.div_euclid(86_400), time.secs.rem_euclid(86_400));
    // Days to a date of the Gregorian calendar, in eras of 400 years that begin in March.
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_modes_look_as_usual() {
        let at = |secs| date(Time { secs, nanos: 0 });
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59");
        assert_eq!(at(-1), "1969-12-31 23:59:59");
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o7640), "rwSr-S--T");
        assert_eq!(permissions(0o6711), "rws--s--x");
    }

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(
            printable(b"a b\x1b[2J\n\xff\xc3\xa4"),
            "a b\\u{1b}[2J\\n\\xff\u{e4}"
        );
    }
}
