//! The control plane's state as the library sees it: entries in order, snapshots.

use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{Entry, EntryPayload, ErrorSubject, OptionalSend, RaftSnapshotBuilder, Snapshot};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::log::{File, Saved};
use super::{LogId, SnapshotMeta, StorageError, StoredMembership, Types};
use crate::control::machine::{Outcome, State};

/// The newest state, for everybody.
pub(super) struct Shared {
    state: RwLock<Arc<State>>,
    changed: watch::Sender<u64>,
}

impl Shared {
    fn new(state: State) -> Arc<Self> {
        let (changed, _) = watch::channel(state.applied);
        Arc::new(Self {
            state: RwLock::new(Arc::new(state)),
            changed,
        })
    }

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn set(&self, state: State) {
        let applied = state.applied;
        *self.state.write() = Arc::new(state);
        self.changed.send_replace(applied);
    }
}

/// See the module.
pub(super) struct Machine {
    pub(super) shared: Arc<Shared>,
    file: Arc<File>,
    applied: Option<LogId>,
    membership: StoredMembership,
    saved: Arc<Mutex<Option<Saved>>>,
}

impl Machine {
    /// As of the newest snapshot.
    pub(super) fn new(file: Arc<File>, saved: Option<Saved>) -> Result<Self, String> {
        let (state, applied, membership) = match &saved {
            Some(saved) => (
                State::read(&saved.data)?,
                saved.meta.last_log_id,
                saved.meta.last_membership.clone(),
            ),
            None => (State::default(), None, StoredMembership::default()),
        };
        Ok(Self {
            shared: Shared::new(state),
            file,
            applied,
            membership,
            saved: Arc::new(Mutex::new(saved)),
        })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = (*self.shared.state()).clone();
        let mut outcomes = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Done,
                EntryPayload::Normal(command) => state.apply(&command),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::Done
                }
            });
        }
        self.shared.set(state);
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.shared.state(),
            applied: self.applied,
            membership: self.membership.clone(),
            file: Arc::clone(&self.file),
            saved: Arc::clone(&self.saved),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Bytes>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: Box<Bytes>,
    ) -> Result<(), StorageError> {
        let subject = ErrorSubject::Snapshot(Some(meta.signature()));
        let state = State::read(&data).map_err(|why| self.file.failed(subject, &why))?;
        let saved = Saved {
            meta: meta.clone(),
            data: *data,
        };
        self.file.save_snapshot(&saved).await?;
        *self.saved.lock() = Some(saved);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.shared.set(state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let saved = self.saved.lock().clone();
        Ok(saved.map(|saved| Snapshot {
            meta: saved.meta,
            snapshot: Box::new(saved.data),
        }))
    }
}

/// Makes a snapshot of the state as it was when it was asked for.
pub(super) struct Builder {
    state: Arc<State>,
    applied: Option<LogId>,
    membership: StoredMembership,
    file: Arc<File>,
    saved: Arc<Mutex<Option<Saved>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let data = postcard::to_stdvec(self.state.as_ref()).map_err(|error| {
            self.file
                .failed(ErrorSubject::StateMachine, &error.to_string())
        })?;
        let saved = Saved {
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
                snapshot_id: self
                    .applied
                    .map_or_else(String::new, |applied| applied.to_string()),
            },
            data: data.into(),
        };
        self.file.save_snapshot(&saved).await?;
        *self.saved.lock() = Some(saved.clone());
        Ok(Snapshot {
            meta: saved.meta,
            snapshot: Box::new(saved.data),
        })
    }
}
