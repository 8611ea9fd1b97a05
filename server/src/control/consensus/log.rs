//! What the consensus library wants kept: its log, its vote and the newest snapshot, in `control.redb`. Beside them the
//! sessions that this node has opened and the cluster may not have heard of.
//!
//! The log's entries are also kept in memory (there are few between two snapshots), so that only writes touch the file.
//! Writes are made one after the other where [`ControlDisk`] runs them.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{Entry, ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::{LogId, SnapshotMeta, StorageError, Types, Vote, sane};
use crate::control::sessions::Given;
use crate::control::store::ControlError;

/// Version of the records in the file. 1 was a log without consensus, 2 counted the sessions of each volume; in the
/// volumes of 3, shards lie elsewhere.
const FORMAT: u64 = 4;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const NOTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");

/// Where what writes to the control plane's file runs: in order, one at a time.
pub trait ControlDisk: Send + Sync + 'static {
    /// Runs a piece of work that may block.
    fn run(&self, job: Box<dyn FnOnce() + Send>);
}

/// Runs it in place.
#[derive(Debug)]
pub struct Direct;

impl ControlDisk for Direct {
    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

/// What is kept beside the log.
#[derive(Default)]
struct Kept {
    entries: BTreeMap<u64, Entry<Types>>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    given: Vec<Given>,
}

/// The control plane's file.
pub(super) struct File {
    path: PathBuf,
    database: Database,
    disk: Arc<dyn ControlDisk>,
    kept: Mutex<Kept>,
    /// A write of the committed position is on its way.
    committing: AtomicBool,
}

/// The newest snapshot.
#[derive(Clone)]
pub(super) struct Saved {
    pub(super) meta: SnapshotMeta,
    pub(super) data: Bytes,
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(value).map_err(text)
}

fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|error| format!("{what} is damaged: {error}"))
}

fn checked<T>(what: &str, value: T, sound: impl FnOnce(&T) -> bool) -> Result<T, String> {
    match sound(&value) {
        true => Ok(value),
        false => Err(format!("{what} is damaged: it makes no sense")),
    }
}

impl File {
    /// Reads the file, or begins one. Also gives the newest snapshot.
    pub(super) fn open(
        path: PathBuf,
        database: Database,
        disk: Arc<dyn ControlDisk>,
    ) -> Result<(Arc<Self>, Option<Saved>), ControlError> {
        let fail = |why: String| ControlError::File {
            path: path.clone(),
            why,
        };
        let found = format_of(&database).map_err(fail)?;
        if found != FORMAT {
            return Err(ControlError::Format {
                path,
                found,
                known: FORMAT,
            });
        }
        let (kept, saved) = load(&database).map_err(fail)?;
        let file = Arc::new(Self {
            path,
            database,
            disk,
            kept: Mutex::new(kept),
            committing: AtomicBool::new(false),
        });
        Ok((file, saved))
    }

    fn write(
        &self,
        job: impl FnOnce(&WriteTransaction) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut write = self.database.begin_write().map_err(text)?;
        write.set_durability(Durability::Immediate).map_err(text)?;
        job(&write)?;
        write.commit().map_err(text)
    }

    /// Makes a change durable, behind all that came before it.
    async fn durably(
        self: &Arc<Self>,
        subject: ErrorSubject<super::NodeId>,
        job: impl FnOnce(&WriteTransaction) -> Result<(), String> + Send + 'static,
    ) -> Result<(), StorageError> {
        let done = self.in_order(job).await;
        done.map_err(|why| self.failed(subject, &why))
    }

    /// Has a change written behind all that came before it; completes when it is durable.
    fn in_order<J>(self: &Arc<Self>, job: J) -> impl Future<Output = Result<(), String>> + use<J>
    where
        J: FnOnce(&WriteTransaction) -> Result<(), String> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let file = Arc::clone(self);
        self.disk.run(Box::new(move || {
            // Who waits may have been ended with its process.
            let _ = tell.send(file.write(job));
        }));
        async {
            told.await
                .unwrap_or_else(|_| Err("the thread that writes has ended".to_owned()))
        }
    }

    /// The sessions this node has opened, as noted last before this process.
    pub(super) fn given(&self) -> Vec<Given> {
        self.kept.lock().given.clone()
    }

    /// Notes the sessions this node has opened.
    pub(super) fn note_given(
        self: &Arc<Self>,
        given: &[Given],
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let bytes = encode(&given);
        let noted =
            bytes.map(|bytes| self.in_order(move |write| insert_note(write, "given", &bytes)));
        let path = self.path.clone();
        async move {
            let done = match noted {
                Ok(noted) => noted.await,
                Err(why) => Err(why),
            };
            done.map_err(|why| format!("{}: {why}", path.display()))
        }
    }

    pub(super) fn failed(&self, subject: ErrorSubject<super::NodeId>, why: &str) -> StorageError {
        let why = format!("{}: {why}", self.path.display());
        StorageError::from_io_error(subject, ErrorVerb::Write, std::io::Error::other(why))
    }

    /// Keeps a snapshot in place of the one before.
    pub(super) async fn save_snapshot(self: &Arc<Self>, saved: &Saved) -> Result<(), StorageError> {
        let subject = ErrorSubject::Snapshot(Some(saved.meta.signature()));
        let meta = encode(&saved.meta).map_err(|why| self.failed(subject.clone(), &why))?;
        let data = saved.data.clone();
        self.durably(subject, move |write| {
            let mut notes = write.open_table(NOTES).map_err(text)?;
            notes.insert("snapshot", meta.as_slice()).map_err(text)?;
            notes.insert("state", data.as_ref()).map_err(text)?;
            Ok(())
        })
        .await
    }

    async fn note<T: Serialize>(
        self: &Arc<Self>,
        subject: ErrorSubject<super::NodeId>,
        name: &'static str,
        value: &T,
    ) -> Result<(), StorageError> {
        let bytes = encode(value).map_err(|why| self.failed(subject.clone(), &why))?;
        self.durably(subject, move |write| insert_note(write, name, &bytes))
            .await
    }

    /// Writes the committed position as it is by then.
    fn write_committed(&self) {
        self.committing.store(false, Ordering::Release);
        let committed = self.kept.lock().committed;
        let written = encode(&committed)
            .and_then(|bytes| self.write(|write| insert_note(write, "committed", &bytes)));
        if let Err(error) = written {
            // It only makes the next start slower; a log that cannot be written is found elsewhere.
            tracing::warn!(path = %self.path.display(), error, "the committed position cannot be written");
        }
    }
}

fn insert_note(write: &WriteTransaction, name: &str, bytes: &[u8]) -> Result<(), String> {
    let mut notes = write.open_table(NOTES).map_err(text)?;
    notes.insert(name, bytes).map_err(text)?;
    Ok(())
}

/// The file's format; a new file gets the newest.
fn format_of(database: &Database) -> Result<u64, String> {
    let write = database.begin_write().map_err(text)?;
    let found = {
        let mut meta = write.open_table(META).map_err(text)?;
        let found = meta.get("format").map_err(text)?.map(|value| value.value());
        if found.is_none() {
            meta.insert("format", FORMAT).map_err(text)?;
        }
        write.open_table(LOG).map_err(text)?;
        if found.is_none_or(|found| found == FORMAT) {
            write.open_table(NOTES).map_err(text)?;
        }
        found.unwrap_or(FORMAT)
    };
    write.commit().map_err(text)?;
    Ok(found)
}

fn load(database: &Database) -> Result<(Kept, Option<Saved>), String> {
    let read = database.begin_read().map_err(text)?;
    let notes = read.open_table(NOTES).map_err(text)?;
    let note = |name: &'static str| -> Result<Option<Vec<u8>>, String> {
        let bytes = notes.get(name).map_err(text)?;
        Ok(bytes.map(|bytes| bytes.value().to_vec()))
    };
    let mut kept = Kept::default();
    if let Some(bytes) = note("vote")? {
        let vote: Vote = decode("the vote", &bytes)?;
        kept.vote = Some(checked("the vote", vote, sane::vote)?);
    }
    if let Some(bytes) = note("purged")? {
        let purged: Option<LogId> = decode("the log's beginning", &bytes)?;
        let sound = |purged: &Option<LogId>| purged.as_ref().is_none_or(sane::position);
        kept.purged = checked("the log's beginning", purged, sound)?;
    }
    if let Some(bytes) = note("committed")? {
        kept.committed = decode("the committed position", &bytes)?;
    }
    if let Some(bytes) = note("given")? {
        kept.given = decode("the list of sessions", &bytes)?;
    }
    let log = read.open_table(LOG).map_err(text)?;
    for record in log.iter().map_err(text)? {
        let (number, bytes) = record.map_err(text)?;
        let number = number.value();
        let entry: Entry<Types> = decode(&format!("entry {number} of the log"), bytes.value())?;
        if entry.log_id.index != number {
            return Err(format!("entry {number} of the log says it is another one"));
        }
        kept.entries.insert(number, entry);
    }
    if !sane::entries(None, kept.entries.values()) {
        return Err("the log is damaged: its entries do not follow each other".to_owned());
    }
    let saved = match (note("snapshot")?, note("state")?) {
        (Some(meta), Some(data)) => Some(Saved {
            meta: checked(
                "the snapshot",
                decode("the snapshot", &meta)?,
                sane::snapshot_meta,
            )?,
            data: data.into(),
        }),
        _ => None,
    };
    Ok((kept, saved))
}

/// [`File`] as the library sees it.
#[derive(Clone)]
pub(super) struct LogStore(pub(super) Arc<File>);

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError> {
        let kept = self.0.kept.lock();
        Ok(kept
            .entries
            .range(range)
            .map(|(_, entry)| entry.clone())
            .collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let kept = self.0.kept.lock();
        let last = kept.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState {
            last_purged_log_id: kept.purged,
            last_log_id: last.or(kept.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.0.note(ErrorSubject::Vote, "vote", vote).await?;
        self.0.kept.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.0.kept.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.0.kept.lock().committed = committed;
        if !self.0.committing.swap(true, Ordering::AcqRel) {
            let file = Arc::clone(&self.0);
            self.0.disk.run(Box::new(move || file.write_committed()));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let kept = self.0.kept.lock();
        // It may have been written before a part of the log that it names was.
        let last = kept.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(kept.committed.min(last.or(kept.purged)))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut kept = self.0.kept.lock();
            for entry in entries {
                let bytes =
                    encode(&entry).map_err(|why| self.0.failed(ErrorSubject::Logs, &why))?;
                records.push((entry.log_id.index, bytes));
                kept.entries.insert(entry.log_id.index, entry);
            }
        }
        let file = Arc::clone(&self.0);
        self.0.disk.run(Box::new(move || {
            let done = file.write(|write| {
                let mut log = write.open_table(LOG).map_err(text)?;
                for (number, bytes) in &records {
                    log.insert(number, bytes.as_slice()).map_err(text)?;
                }
                Ok(())
            });
            let done = done
                .map_err(|why| std::io::Error::other(format!("{}: {why}", file.path.display())));
            callback.log_io_completed(done);
        }));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        self.0.kept.lock().entries.split_off(&from.index);
        self.0
            .durably(ErrorSubject::Logs, move |write| {
                let mut log = write.open_table(LOG).map_err(text)?;
                log.retain(|number, _| number < from.index).map_err(text)?;
                Ok(())
            })
            .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        {
            let mut kept = self.0.kept.lock();
            kept.entries = kept.entries.split_off(&(upto.index + 1));
            kept.purged = Some(upto);
        }
        let bytes = encode(&Some(upto)).map_err(|why| self.0.failed(ErrorSubject::Logs, &why))?;
        self.0
            .durably(ErrorSubject::Logs, move |write| {
                let mut notes = write.open_table(NOTES).map_err(text)?;
                notes.insert("purged", bytes.as_slice()).map_err(text)?;
                let mut log = write.open_table(LOG).map_err(text)?;
                log.retain(|number, _| number > upto.index).map_err(text)?;
                Ok(())
            })
            .await
    }
}
