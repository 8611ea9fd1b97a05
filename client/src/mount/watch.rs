//! "What is it doing" of a mount: SIGHUP, SIGUSR1, requests that take long, and a mount that was taken away while no
//! server answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::logfile::{take_stderr, write_whole};
use mortar_protocol::watch::{FlightState, OpStats};
use serde::Serialize;

use super::{Request, place};
use crate::fuse::Watched;
use crate::remote::SetState;
use crate::vfs::Vfs;
use crate::volume::Volume;

/// How often the mount is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A call that is older waits for something.
const WAITING: Duration = Duration::from_secs(1);
/// A set that answers is heard at least every second.
const SILENT_MS: u64 = 2_500;

#[derive(Serialize)]
struct State {
    pid: u32,
    version: &'static str,
    volume: String,
    mounted_on: String,
    session: u64,
    requests_in_flight: Vec<FlightState>,
    held_bytes: usize,
    read_ahead_bytes: usize,
    known_inodes: usize,
    open_handles: usize,
    sets: Vec<SetState>,
    operations: Vec<OpStats>,
}

/// What is watched of a mount.
#[derive(Clone)]
pub(super) struct MountWatch {
    pub(super) vfs: Vfs<Volume>,
    pub(super) watched: Arc<Watched>,
    pub(super) dir: PathBuf,
    /// The file that takes its messages.
    pub(super) log: Option<PathBuf>,
    /// Where its state is written.
    pub(super) dump: PathBuf,
}

/// Where a mount writes its state: beside its log.
pub(super) fn dump_path(request: &Request) -> PathBuf {
    let log = request.log.clone();
    let log = log.unwrap_or_else(|| super::options::default_log(&request.dir));
    log.with_extension("state.json")
}

impl MountWatch {
    fn state(&self) -> State {
        let volume = self.vfs.backend();
        let now = self.vfs.env().now();
        let watch = self.watched.watch();
        State {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            volume: volume.info().name.clone(),
            mounted_on: self.dir.display().to_string(),
            session: volume.session().0,
            requests_in_flight: watch.states(now),
            held_bytes: self.vfs.held_bytes(),
            read_ahead_bytes: self.vfs.read_ahead_bytes(),
            known_inodes: self.vfs.known_inodes(),
            open_handles: self.vfs.open_handles(),
            sets: volume.set_states(),
            operations: watch.stats(),
        }
    }

    fn write_state(&self) -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.state()).map_err(std::io::Error::other)?;
        text.push(b'\n');
        if let Some(dir) = self.dump.parent() {
            std::fs::create_dir_all(dir)?;
        }
        write_whole(&self.dump, &text)
    }

    /// Acts on SIGHUP and SIGUSR1.
    pub(super) async fn follow_signals(self) {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut hang_up), Ok(mut user)) = (
            signal(SignalKind::hangup()),
            signal(SignalKind::user_defined1()),
        ) else {
            return tracing::error!("signals cannot be waited for");
        };
        loop {
            tokio::select! {
                _ = hang_up.recv() => self.reopen(),
                _ = user.recv() => match self.write_state() {
                    Ok(()) => tracing::info!("wrote the state to {}", self.dump.display()),
                    Err(error) => {
                        tracing::error!("the state cannot be written to {}: {error}", self.dump.display());
                    }
                },
            }
        }
    }

    fn reopen(&self) {
        if let Some(path) = &self.log
            && let Err(error) = take_stderr(path)
        {
            tracing::error!("{} cannot be opened again: {error}", path.display());
        }
        tracing::info!("told to open the log again");
    }

    /// Looks at what is in flight from time to time.
    pub(super) async fn follow_requests(self) {
        loop {
            self.vfs.env().sleep(LOOK).await;
            self.watched.tick();
            if self.waits_in_vain() && !place::is_mounted(&self.dir) {
                tracing::error!(
                    "taken away from {} while no server answers: ends, with {} bytes not sent",
                    self.dir.display(),
                    self.vfs.held_bytes()
                );
                // The kernel ends every waiting call.
                std::process::exit(1);
            }
        }
    }

    /// Whether a call waits while a set is silent.
    fn waits_in_vain(&self) -> bool {
        let now = self.vfs.env().now();
        let oldest = self.watched.watch().in_flight().into_iter().next();
        oldest.is_some_and(|flight| now.since(flight.op.started) > WAITING)
            && self
                .vfs
                .backend()
                .set_states()
                .iter()
                .any(|set| set.heard_ms_ago > SILENT_MS)
    }
}

/// Sends messages to `log` from now on.
///
/// # Errors
///
/// One line for a person.
pub(super) fn log_to(log: &Path) -> Result<(), String> {
    take_stderr(log).map_err(|error| format!("log {}: {error}", log.display()))
}
