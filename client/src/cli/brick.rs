//! `mortar brick ...` runs `mortard brick ...` beside it: what knows the disk format stays in the server.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Replaces this process by `mortard brick ARGS`.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("mortard")))
        .filter(|path| path.exists())
        .unwrap_or_else(|| "mortard".into());
    let err = Command::new(&beside).arg("brick").args(args).exec();
    eprintln!(
        "mortar: {} cannot be run: {err} (it must lie beside mortar or in PATH)",
        beside.display()
    );
    ExitCode::FAILURE
}
