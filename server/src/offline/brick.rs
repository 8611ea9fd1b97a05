//! Bricks opened for looking: read-only, each as of a position of its set's log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mortar_protocol::ids::{Epoch, Pos, Seq};

use super::overlay::Overlay;
use crate::device::{Device, Engine, FileDevice, TargetError};
use crate::store::{OpenError, Store};
use crate::superblock::Stored;

/// Why a device cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{path}: {error}")]
    Open { path: PathBuf, error: OpenError },
    #[error("{path}: the log holds entries {from} to {to}, not {asked}")]
    NoSuchEntry {
        path: PathBuf,
        from: Pos,
        to: Pos,
        asked: String,
    },
    #[error("{0}")]
    Mixed(String),
}

/// How far to look: the state after this entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Upto {
    epoch: Option<Epoch>,
    seq: Seq,
}

impl std::str::FromStr for Upto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let wrong = |_| format!("'{text}' is no number (expected SEQ or EPOCH.SEQ)");
            text.parse::<u64>().map_err(wrong)
        };
        match text.split_once('.') {
            Some((epoch, seq)) => Ok(Self {
                epoch: Some(Epoch(number(epoch)?)),
                seq: Seq(number(seq)?),
            }),
            None => Ok(Self {
                epoch: None,
                seq: Seq(number(text)?),
            }),
        }
    }
}

impl std::fmt::Display for Upto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.epoch {
            Some(epoch) => write!(f, "{epoch}.{}", self.seq),
            None => write!(f, "{}", self.seq),
        }
    }
}

/// An open brick.
pub(super) struct Brick {
    pub(super) path: PathBuf,
    pub(super) store: Store,
    /// State to look at.
    pub(super) at: Pos,
}

impl Brick {
    /// Opens the brick on a device; its log is replayed in memory.
    pub(super) fn open(
        path: &Path,
        upto: Option<Upto>,
        engine: &Arc<Engine>,
    ) -> Result<Self, LookError> {
        let device = FileDevice::open_read_only(path, engine)?;
        Self::on(path, Arc::new(device), upto)
    }

    /// Opens a brick that a daemon has open, as of its last checkpoint: what is in its log is left out.
    pub(super) fn of_checkpoint(path: &Path, engine: &Arc<Engine>) -> Result<Self, LookError> {
        let device: Arc<dyn Device> = Arc::new(FileDevice::open_in_use(path, engine)?);
        let fail = |error| LookError::Open {
            path: path.to_owned(),
            error,
        };
        let found = Stored::load(&*device, false).map_err(|error| fail(error.into()))?;
        let log = found.block.geometry.wal;
        let still = Overlay::with_blank(device, log.offset..log.end());
        let store = Store::open(still).map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            at: store.head(),
            store,
        })
    }

    pub(super) fn on(
        path: &Path,
        device: Arc<dyn Device>,
        upto: Option<Upto>,
    ) -> Result<Self, LookError> {
        let path = path.to_owned();
        let store = Store::open(Overlay::new(device)).map_err(|error| LookError::Open {
            path: path.clone(),
            error,
        })?;
        let mut at = store.head();
        if let Some(upto) = upto {
            let found = (upto.seq >= store.applied().seq)
                .then(|| store.position_at(upto.seq))
                .flatten()
                .filter(|pos| upto.epoch.is_none_or(|epoch| epoch == pos.epoch));
            at = found.ok_or_else(|| LookError::NoSuchEntry {
                path: path.clone(),
                from: store.applied(),
                to: store.head(),
                asked: upto.to_string(),
            })?;
        }
        Ok(Self { path, store, at })
    }
}
