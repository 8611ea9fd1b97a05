//! The mount process behind the command: started anew, detached from everything its parent had, and waited for until
//! it serves or says why it cannot.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the process says once it serves.
const READY: &str = "ready";
/// What it says before a line for the person who waits.
const WAITING: &str = "waiting: ";

/// How far the process is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress<'a> {
    /// It waits for this.
    Waiting(&'a str),
    /// It serves.
    Ready,
    /// It cannot serve, for this reason.
    Failed(&'a str),
}

/// Starts this executable again with `args` in the background, with its messages going to `log`, and waits until it is
/// ready or has failed. What it waits for meanwhile goes to standard error.
///
/// # Errors
///
/// What the process said, or why it could not be started.
pub(super) fn start(args: &[std::ffi::OsString], log: &Path) -> Result<(), String> {
    let log_file = open_log(log).map_err(|error| format!("log {}: {error}", log.display()))?;
    // The link serves where the file has been replaced meanwhile; else its path gives the process its name.
    let exe = std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into());
    let mut child = Command::new(exe)
        .arg0("mortar")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(|error| format!("the mount process cannot be started: {error}"))?;
    let mut said = String::new();
    if let Some(pipe) = &mut child.stdout {
        // What was read before an error is all there is.
        let lines = BufReader::new(pipe.take(64 << 10)).lines();
        for line in lines.map_while(Result::ok) {
            match line.strip_prefix(WAITING) {
                Some(what) => eprintln!("mortar mount: {what}"),
                None => said = said + &line + "\n",
            }
        }
    }
    match said.trim() {
        READY => Ok(()),
        "" => {
            let status = child
                .wait()
                .map_or_else(|e| e.to_string(), |s| s.to_string());
            Err(format!(
                "the mount process ended ({status}); see {}",
                log.display()
            ))
        }
        why => Err(why.to_owned()),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// In the new process: leaves the session, the directory and the descriptors of the caller. Until it is ready it ends
/// with the caller.
///
/// # Errors
///
/// The system's.
pub(super) fn detach() -> io::Result<()> {
    // SAFETY: closes only descriptors inherited from whoever started the command. This runs before the process has
    // opened any of its own (0, 1 and 2 stay).
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        tracing::debug!(
            "descriptors of the caller stay open: {}",
            io::Error::last_os_error()
        );
    }
    let with_parent = Some(rustix::process::Signal::TERM);
    if let Err(error) = rustix::process::set_parent_process_death_signal(with_parent) {
        tracing::debug!("it goes on without the caller: {error}");
    }
    // The process is no group leader unless it was started by hand with the hidden flag; then it is detached already.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")
}

/// In the new process: tells the waiting parent how far it is; with the outcome it lets go of it and of its pipe.
pub(super) fn report(progress: Progress<'_>) {
    let mut out = io::stdout();
    let said = match progress {
        Progress::Waiting(what) => writeln!(out, "{WAITING}{what}"),
        Progress::Ready => writeln!(out, "{READY}"),
        Progress::Failed(why) => writeln!(out, "{why}"),
    };
    // The parent may be gone; the mount goes on without it.
    let _ = said.and_then(|()| out.flush());
    if matches!(progress, Progress::Waiting(_)) {
        return;
    }
    if let Err(error) = rustix::process::set_parent_process_death_signal(None) {
        tracing::warn!("the mount may end with the command: {error}");
    }
    match File::options().write(true).open("/dev/null") {
        Ok(null) => {
            if let Err(error) = rustix::stdio::dup2_stdout(&null) {
                tracing::warn!("the starting command keeps waiting: {error}");
            }
        }
        Err(error) => tracing::warn!("/dev/null: {error}"),
    }
}
