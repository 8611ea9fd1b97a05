//! A brick's state: pending map over tree and extents, checkpoints, recovery.
//!
//! Entries are appended to the log and enter the pending map; reads look through it as of a position; what every
//! member has flushed is applied to the tree in batches; checkpoints make the tree durable and release the log.

mod apply;
pub mod extents;
mod host;
mod log;
mod pending;
mod read;
mod recover;
mod room;
#[cfg(test)]
mod tests;
mod unreadable;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, Object, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{InodeId, Pos, Seq, SessionId, StageId};
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::alloc::{Allocator, Run};
use crate::device::{Device, Done};
use crate::superblock::{Stored, Superblock, SuperblockError};
use crate::tree::{Snapshot, Tree, TreeError};
use crate::wal::{StageAt, WalError, WalPosition};

use apply::{Committed, Plan};
use extents::{CHUNK_BLOCKS, DamagedExtent};
use host::Host;
use log::Log;
use pending::Pending;
pub use pending::StagedBlock;
use read::Reader;
pub use recover::{FormatError, FormatParams, OpenError};
use room::Room;
use unreadable::Unreadable;

/// Key of the store's own record.
const META: &[u8] = b"M";
/// Key of the place from which the log holds entries for bricks that lack them; before the one where replay starts.
const KEPT: &[u8] = b"Mk";
/// Apply when so many entries wait ...
const APPLY_ENTRIES: usize = 512;
/// ... or so many bytes ...
const APPLY_BYTES: usize = 4 << 20;
/// ... or after so long.
const APPLY_AFTER: Duration = Duration::from_millis(50);
/// Checkpoint after so many entries ...
const CHECKPOINT_ENTRIES: usize = 20_000;
/// ... or after so long.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(30);
/// Most bytes that wait to be applied before admission waits.
pub const MAX_PENDING: usize = 16 << 20;
/// A stage that no entry has attached after this time is given back.
const STAGE_LIFE: Duration = Duration::from_secs(30);

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The brick can neither read nor write its metadata, or a write failed: it is poisoned.
    #[error("{0}")]
    Damaged(String),
    /// The device failed.
    #[error("device: {0}")]
    Io(#[source] io::Error),
    /// No space, in the extent area, the ring or the host's file system.
    #[error("no space left on the brick")]
    NoSpace,
    /// The ring of the log is full until a checkpoint releases some of it.
    #[error("the log is full until the next checkpoint")]
    LogFull,
    /// A stage that an entry attaches is not here.
    #[error("a stage is missing")]
    NoStage,
    /// An entry does not follow the newest one.
    #[error("an entry is out of order")]
    Order,
}

impl From<TreeError> for StoreError {
    fn from(err: TreeError) -> Self {
        Self::Damaged(err.to_string())
    }
}

impl From<DamagedExtent> for StoreError {
    fn from(err: DamagedExtent) -> Self {
        Self::Damaged(err.to_string())
    }
}

/// Why a read of data failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A block fails its checksum here (another member may have it).
    #[error("a block fails its checksum")]
    Corrupt,
    /// The device failed.
    #[error("device: {0}")]
    Io(#[source] io::Error),
    /// The metadata cannot be read.
    #[error("{0}")]
    Metadata(#[source] StoreError),
}

/// The log no longer reaches back that far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log no longer reaches back that far")]
pub struct LogGone;

/// What is known of a stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StageInfo {
    /// crc32 of each block.
    pub crcs: Vec<u32>,
    /// Length in bytes.
    pub len: u64,
}

/// Records to store (`None`: to remove) together with all entries up to a place.
pub type Extra<'a> = &'a mut dyn FnMut(Seq) -> Vec<(Bytes, Option<Bytes>)>;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Meta {
    applied: Pos,
    /// Where replay starts: behind the last applied entry.
    wal: WalPosition,
}

struct Stage {
    runs: Vec<Run>,
    blocks: Arc<[StagedBlock]>,
    written: Arc<AtomicBool>,
    attached: bool,
    /// When it arrived, as of the last [`Store::poll`].
    since: Mono,
}

struct Held {
    entry: Arc<Entry>,
    stages: Vec<StageAt>,
    weight: usize,
    blocks: u64,
    /// Whether it gives blocks back.
    frees: bool,
}

struct Checkpoint {
    result: Arc<Mutex<Option<Result<(), String>>>>,
    wal: WalPosition,
}

/// The state of one brick.
pub struct Store {
    device: Arc<dyn Device>,
    superblock: Stored,
    alloc: Arc<Mutex<Allocator>>,
    tree: Arc<Tree>,
    wal: Log,
    pending: Pending,
    held: VecDeque<Held>,
    stages: BTreeMap<StageId, Stage>,
    applied: Pos,
    applied_wal: WalPosition,
    announced: Seq,
    flushed: Pos,
    reserved: u64,
    checkpoint: Option<Checkpoint>,
    checkpoint_wanted: bool,
    /// The flush before a checkpoint; its result.
    warming: Option<Arc<Mutex<Option<io::Result<()>>>>>,
    /// What the last durable checkpoint holds.
    checkpointed: WalPosition,
    /// Whether entries that a checkpoint holds stay in the log while there is room.
    keep_log: bool,
    /// When the last checkpoint began, or when the first [`Store::poll`] was.
    last_checkpoint: Option<Mono>,
    since_checkpoint: usize,
    /// How far entries were applied when [`Store::go_on_settling`] last began a checkpoint.
    settled: Option<Seq>,
    last_apply: Mono,
    now: Mono,
    /// Whether the tree may hold blocks with more than one reference.
    shares: bool,
    damaged_log: bool,
    poisoned: Option<String>,
    host: Host,
    room: Room,
    unreadable: Arc<Unreadable>,
}

/// Blocks that an entry's inline effects may need when they are applied.
fn blocks_needed(entry: &Entry) -> u64 {
    let span = |offset: u64, len: u64| (offset + len).div_ceil(BLOCK) - offset / BLOCK;
    entry
        .effects
        .iter()
        .map(|effect| match effect {
            Effect::Write { offset, len, .. } => span(*offset, u64::from(*len)),
            Effect::Reserve { offset, len, .. } => span(*offset, *len),
            Effect::Punch { .. } => 2,
            Effect::Share { len, .. } => len / BLOCK,
            _ => 0,
        })
        .sum()
}

impl Store {
    /// What the brick says about itself.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock.block
    }

    /// Changes the superblock durably. Blocks for a flush.
    ///
    /// # Errors
    /// If it cannot be written: the brick is poisoned.
    pub fn write_superblock(
        &mut self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), StoreError> {
        let result = self.superblock.update(&*self.device, change);
        result.map_err(|err| match err {
            SuperblockError::Io(err) => self.fail(StoreError::Io(err)),
            err => self.fail(StoreError::Damaged(err.to_string())),
        })
    }

    /// Notes the first failure; from then on the store refuses changes.
    fn fail(&mut self, err: StoreError) -> StoreError {
        if self.poisoned.is_none() {
            self.poisoned = Some(err.to_string());
        }
        err
    }

    /// Why the brick is poisoned, if it is.
    pub fn poisoned(&self) -> Option<&str> {
        match &self.poisoned {
            Some(why) => Some(why),
            None if self.tree.has_failed() => Some("the metadata tree failed"),
            None => None,
        }
    }

    /// Whether the log was damaged below its flushed mark when it was opened.
    pub fn log_damaged(&self) -> bool {
        self.damaged_log
    }

    /// Position of the newest entry.
    pub fn head(&self) -> Pos {
        self.wal.head()
    }

    /// Position up to which the log survives the loss of power.
    pub fn flushed(&self) -> Pos {
        self.flushed
    }

    /// Position up to which entries are in the tree.
    pub fn applied(&self) -> Pos {
        self.applied
    }

    /// Position up to which entries may be applied.
    pub fn announced(&self) -> Seq {
        self.announced
    }

    /// Position of the entry at `seq`, if the log still holds it.
    pub fn position_at(&self, seq: Seq) -> Option<Pos> {
        self.wal.position_at(seq)
    }

    /// Position of the entry before the oldest one the log holds.
    pub fn log_start(&self) -> Pos {
        self.wal.start()
    }

    /// Positions of all entries the log holds, oldest first, and of the one before them.
    pub fn positions(&self) -> (Pos, Vec<Pos>) {
        (self.wal.start(), self.wal.positions().collect())
    }

    /// Appends entries that follow the newest one: one write to the log.
    ///
    /// # Errors
    /// [`StoreError::NoStage`], [`StoreError::Order`], [`StoreError::LogFull`], [`StoreError::NoSpace`] without effect; any other means that
    /// the brick is poisoned.
    pub fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), StoreError> {
        if let Some(why) = self.poisoned() {
            return Err(StoreError::Damaged(why.to_owned()));
        }
        let mut last = self.head();
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.pos.seq != last.seq.next() || entry.pos.epoch < last.epoch {
                return Err(StoreError::Order);
            }
            last = entry.pos;
            records.push((entry.clone(), self.places(entry)?));
        }
        self.release_log();
        let mut appended = self.wal.append(&records);
        if let Err(WalError::Full { .. }) = appended {
            self.wal.release(self.checkpointed);
            appended = self.wal.append(&records);
        }
        match appended {
            Ok(()) => {}
            Err(WalError::Full { .. }) => {
                self.checkpoint_wanted = true;
                return Err(StoreError::LogFull);
            }
            Err(WalError::HostFull(_)) => return Err(StoreError::NoSpace),
            Err(WalError::Io(err)) => return Err(self.fail(StoreError::Io(err))),
            Err(err) => return Err(self.fail(StoreError::Damaged(err.to_string()))),
        }
        for (entry, stages) in records {
            self.hold(entry, stages);
        }
        Ok(())
    }

    fn places(&self, entry: &Entry) -> Result<Vec<StageAt>, StoreError> {
        let mut places = Vec::new();
        for effect in &entry.effects {
            if let Effect::Attach { stage, crcs, .. } = effect {
                let held = self.stages.get(stage).ok_or(StoreError::NoStage)?;
                let same = held.blocks.len() == crcs.len()
                    && held
                        .blocks
                        .iter()
                        .zip(crcs)
                        .all(|(block, crc)| block.crc == *crc);
                if !same || !held.written.load(Ordering::Acquire) {
                    return Err(StoreError::NoStage);
                }
                places.push((
                    *stage,
                    held.runs.iter().map(|run| (run.start, run.len)).collect(),
                ));
            }
        }
        Ok(places)
    }

    fn hold(&mut self, entry: Arc<Entry>, stages: Vec<StageAt>) {
        for (id, _) in &stages {
            if let Some(stage) = self.stages.get_mut(id) {
                stage.attached = true;
            }
        }
        let known = &self.stages;
        self.pending.add(&entry, |id| {
            known.get(&id).map(|stage| stage.blocks.clone())
        });
        let weight = Pending::weight(&entry);
        let blocks = blocks_needed(&entry);
        self.reserved += blocks;
        let punches = |effect: &Effect| matches!(effect, Effect::Punch { .. });
        self.held.push_back(Held {
            frees: entry.effects.iter().any(punches),
            entry,
            stages,
            weight,
            blocks,
        });
    }

    /// Starts a flush of everything appended so far; `done` gets the position it covers.
    pub fn start_flush(&mut self, done: Box<dyn FnOnce(io::Result<Pos>) + Send>) {
        let pos = self.head();
        self.device
            .start_flush(Box::new(move |result| done(result.map(|()| pos))));
    }

    /// A flush has completed.
    pub fn on_flushed(&mut self, pos: Pos) {
        let pos = pos.min(self.head());
        if pos > self.flushed {
            self.flushed = pos;
            self.wal.note_flushed(pos);
        }
    }

    /// The medium has failed: from now on the store refuses changes and makes no checkpoint. What a failed flush was
    /// to cover may be lost, and a later flush would not say so.
    pub fn poison(&mut self, reason: &str) {
        self.tree.fail();
        if self.poisoned.is_none() {
            self.poisoned = Some(reason.to_owned());
        }
    }

    /// Entries behind `pos`, at least one if there is any, about `max_bytes` of them.
    ///
    /// # Errors
    /// If the log no longer reaches back to `pos`.
    pub fn entries_after(&self, pos: Pos, max_bytes: usize) -> Result<Vec<Arc<Entry>>, LogGone> {
        if self.position_at(pos.seq) != Some(pos) {
            return Err(LogGone);
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut seq = pos.seq.next();
        let first_held = self.held.front().map(|held| held.entry.pos.seq);
        while seq <= self.head().seq && (found.is_empty() || bytes < max_bytes) {
            let held = first_held
                .and_then(|first| seq.0.checked_sub(first.0))
                .and_then(|at| self.held.get(at as usize))
                .map(|held| held.entry.clone());
            let entry = match held {
                Some(entry) => entry,
                None => Arc::new(self.wal.read_entry(seq).map_err(|_| LogGone)?.entry),
            };
            bytes += entry.body.len() + 256;
            found.push(entry);
            seq = seq.next();
        }
        Ok(found)
    }

    /// Drops everything behind `pos`, which must not be applied yet.
    ///
    /// # Errors
    /// If it is.
    pub fn cut_after(&mut self, pos: Pos) -> Result<(), StoreError> {
        if pos < self.applied || (pos >= self.head()) {
            return if pos >= self.head() {
                Ok(())
            } else {
                Err(StoreError::Order)
            };
        }
        self.wal
            .cut(pos)
            .map_err(|err| self.fail(StoreError::Damaged(err.to_string())))?;
        self.flushed = self.flushed.min(pos);
        let mut alloc = self.alloc.lock();
        while self.held.back().is_some_and(|held| held.entry.pos > pos) {
            let Some(held) = self.held.pop_back() else {
                break;
            };
            self.reserved -= held.blocks;
            for (id, runs) in held.stages {
                self.stages.remove(&id);
                // The medium may still name these blocks until something is appended over the tail.
                runs.into_iter()
                    .for_each(|(start, len)| alloc.free_run(Run { start, len }));
            }
        }
        drop(alloc);
        self.rebuild_pending();
        Ok(())
    }

    fn rebuild_pending(&mut self) {
        let mut pending = Pending::default();
        let stages = &self.stages;
        for held in &self.held {
            pending.add(&held.entry, |id| {
                stages.get(&id).map(|stage| stage.blocks.clone())
            });
        }
        self.pending = pending;
    }

    /// Every member has flushed the log up to `seq`: it may be applied.
    pub fn announce(&mut self, seq: Seq) {
        self.announced = self.announced.max(seq.min(self.head().seq));
        self.wal.note_announced(self.announced);
    }

    /// Who is told of data that cannot be read.
    pub(crate) fn unreadable(&self) -> &Arc<Unreadable> {
        &self.unreadable
    }

    /// Applies what is due and starts or finishes checkpoints. Call it often.
    ///
    /// # Errors
    /// If the brick is poisoned.
    pub fn poll(&mut self, now: Mono, extra: Extra<'_>) -> Result<(), StoreError> {
        self.unreadable.tick(now);
        if let Some(why) = self.poisoned() {
            let why = why.to_owned();
            return Err(self.fail(StoreError::Damaged(why)));
        }
        self.now = self.now.max(now);
        if !self.stages.is_empty() {
            self.drop_old_stages();
        }
        self.finish_checkpoint()?;
        self.keep_stock();
        self.watch_room();
        if self.checkpoint.is_some() {
            return Ok(());
        }
        let ready = self.announced.0.saturating_sub(self.applied.seq.0) as usize;
        let due = ready >= APPLY_ENTRIES
            || self.pending.bytes() >= APPLY_BYTES
            || now.since(self.last_apply) >= APPLY_AFTER
            || self.checkpoint_wanted;
        if ready > 0 && due {
            self.last_apply = now;
            let upto = self.applicable();
            if upto > self.applied.seq {
                self.apply(upto, extra)?;
            }
        }
        let half = self.wal.bytes_behind(self.checkpointed) > self.wal.size() / 2;
        let last = *self.last_checkpoint.get_or_insert(now);
        let due = self.since_checkpoint >= CHECKPOINT_ENTRIES
            || (self.since_checkpoint > 0 && now.since(last) >= CHECKPOINT_AFTER)
            || half
            || self.checkpoint_wanted;
        if due && (self.since_checkpoint > 0 || self.checkpoint_wanted) && self.warm()? {
            self.last_checkpoint = Some(now);
            self.start_checkpoint();
        }
        Ok(())
    }

    /// Whether a checkpoint may begin: what has been written is flushed before it, while entries are still applied, so
    /// that little is left for the time in which none are. One that somebody waits for begins at once.
    fn warm(&mut self) -> Result<bool, StoreError> {
        match &self.warming {
            None if self.checkpoint_wanted => return Ok(true),
            None => {
                let result = Arc::new(Mutex::new(None));
                let shared = result.clone();
                self.warming = Some(result);
                self.device
                    .start_flush(Box::new(move |result| *shared.lock() = Some(result)));
                return Ok(false);
            }
            Some(_) => {}
        }
        let done = self
            .warming
            .as_ref()
            .and_then(|result| result.lock().take());
        let Some(result) = done else {
            return Ok(false);
        };
        self.warming = None;
        match result {
            Ok(()) => Ok(true),
            Err(error) => Err(self.fail(StoreError::Io(error))),
        }
    }

    /// Applies what is announced and has a checkpoint hold it, blocking.
    ///
    /// # Errors
    /// If the brick is poisoned.
    pub fn settle(&mut self, extra: Extra<'_>) -> Result<(), StoreError> {
        while !self.go_on_settling(self.now, extra)? {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The same, a step at a time: for an orderly stop, after which nothing is appended. True once it is done; call it
    /// again until then.
    ///
    /// # Errors
    /// If the brick is poisoned.
    pub fn go_on_settling(&mut self, now: Mono, extra: Extra<'_>) -> Result<bool, StoreError> {
        if let Some(why) = self.poisoned() {
            let why = why.to_owned();
            return Err(self.fail(StoreError::Damaged(why)));
        }
        self.now = self.now.max(now);
        self.finish_checkpoint()?;
        if self.checkpoint.is_some() {
            return Ok(false);
        }
        let upto = self.applicable();
        if upto > self.applied.seq {
            self.apply(upto, extra)?;
        }
        // A checkpoint may give the space that the rest needs; what has no space even then stays in the log.
        let more = self.applied.seq < self.announced && self.settled != Some(self.applied.seq);
        if self.since_checkpoint == 0 && !more {
            return Ok(true);
        }
        self.settled = Some(self.applied.seq);
        self.start_checkpoint();
        Ok(false)
    }

    /// Whether what is announced needs more blocks than the host has space for.
    fn host_is_short(&self) -> bool {
        let alloc = self.alloc.lock();
        alloc.ready() < self.reserved && alloc.ready() + alloc.aside() < alloc.free_now()
    }

    /// The newest announced entry that can be applied now. Admission counts freed blocks as free, but they can be
    /// handed out only after a checkpoint: where entries need those, what comes before them is applied, and a
    /// checkpoint is asked for.
    fn applicable(&mut self) -> Seq {
        self.have_ready(self.reserved);
        let (free, helps, short) = {
            let alloc = self.alloc.lock();
            let tree = metadata_reserve(alloc.blocks()) / 2;
            let now = alloc.free_now();
            let free = now.saturating_sub(tree).min(alloc.ready());
            (free, alloc.free() > now, self.tree_is_short(&alloc))
        };
        let mut need = 0;
        let mut upto = self.applied.seq;
        for (count, held) in self.held.iter().enumerate() {
            need += held.blocks;
            let full = need > free || (short && count >= APPLY_ENTRIES);
            if held.entry.pos.seq > self.announced || full {
                break;
            }
            upto = held.entry.pos.seq;
        }
        self.checkpoint_wanted |= short && self.since_checkpoint > 0;
        if upto < self.announced {
            if upto == self.applied.seq && !helps {
                return match self.host_is_short() {
                    true => upto,
                    false => self.announced,
                };
            }
            self.checkpoint_wanted = true;
        }
        upto
    }

    /// Applies all entries up to `upto`, which is announced, to the tree.
    fn apply(&mut self, upto: Seq, extra: Extra<'_>) -> Result<(), StoreError> {
        let batch: Vec<Arc<Entry>> = self
            .held
            .iter()
            .take_while(|held| held.entry.pos.seq <= upto)
            .map(|held| held.entry.clone())
            .collect();
        let Some(last) = batch.last().map(|entry| entry.pos) else {
            return Ok(());
        };
        let wal = self.wal.behind(last).ok_or(StoreError::Order)?;
        let records = extra(last.seq);
        let committed = match self.apply_batch(last, wal, &records) {
            Ok(committed) => committed,
            Err(StoreError::NoSpace) => {
                // Nothing has changed; the host may have space later.
                tracing::debug!("applying waits for space");
                self.checkpoint_wanted |= self.since_checkpoint > 0;
                return Ok(());
            }
            Err(err) => return Err(self.fail(err)),
        };
        self.shares |= committed.shares;
        self.applied = last;
        self.applied_wal = wal;
        self.since_checkpoint += batch.len();
        self.pending.forget_upto(upto, &batch);
        let mut alloc = self.alloc.lock();
        while self
            .held
            .front()
            .is_some_and(|held| held.entry.pos.seq <= upto)
        {
            let Some(held) = self.held.pop_front() else {
                break;
            };
            self.reserved -= held.blocks;
            for (id, runs) in held.stages {
                self.stages.remove(&id);
                for (start, len) in runs {
                    for at in start..start + u64::from(len) {
                        // A staged block that was overwritten within the batch: the log still names it.
                        if committed.attached.binary_search(&at).is_err() && !alloc.attached(at) {
                            alloc.free_run(Run { start: at, len: 1 });
                        }
                    }
                }
            }
        }
        drop(alloc);
        let held = self.held.iter().map(|held| held.weight).sum();
        self.pending.recount(held);
        Ok(())
    }

    fn apply_batch(
        &self,
        last: Pos,
        wal: WalPosition,
        extra: &[(Bytes, Option<Bytes>)],
    ) -> Result<Committed, StoreError> {
        let upto = last.seq;
        let reader = self.reader()?;
        let mut plan = Plan::make(&self.pending, &reader, upto)?;
        plan.write(&self.alloc, &*self.device, self.extents_at())?;
        let meta = postcard::to_stdvec(&Meta { applied: last, wal })
            .map_err(|err| StoreError::Damaged(err.to_string()))?;
        let mut failure = None;
        let result = self.tree.apply(|batch| {
            let extra = extra.iter().map(|(key, value)| (key, value.as_ref()));
            for (key, value) in self.pending.records_upto(upto).chain(extra) {
                match value {
                    Some(value) => batch.put(key, value)?,
                    None => batch.del(key)?,
                }
            }
            batch.put(META, &meta)?;
            // The tree takes chunks from the allocator whenever its cache is full, not only when it commits: no lock is
            // held over a put.
            plan.commit(batch, &self.alloc, self.shares).map_err(|err| {
                let text = err.to_string();
                failure = Some(err);
                TreeError::Failed(text)
            })
        });
        match (result, failure) {
            (Ok(committed), _) => Ok(committed),
            (Err(_), Some(err)) => Err(err),
            (Err(err), None) => Err(err.into()),
        }
    }

    fn start_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.since_checkpoint = 0;
        let segments = self.alloc.lock().begin_checkpoint();
        let kept = self.keep_log.then(|| self.wal.tail());
        let result = Arc::new(Mutex::new(None));
        let tree = self.tree.clone();
        let shared = result.clone();
        self.checkpoint = Some(Checkpoint {
            result,
            wal: self.applied_wal,
        });
        self.device.start_work(Box::new(move || {
            let outcome = save(&tree, &segments, kept);
            *shared.lock() = Some(outcome);
        }));
    }

    fn finish_checkpoint(&mut self) -> Result<(), StoreError> {
        let Some(checkpoint) = &self.checkpoint else {
            return Ok(());
        };
        let Some(outcome) = checkpoint.result.lock().take() else {
            return Ok(());
        };
        let wal = checkpoint.wal;
        self.checkpoint = None;
        outcome.map_err(|err| self.fail(StoreError::Damaged(err)))?;
        let mut alloc = self.alloc.lock();
        alloc.checkpoint_done();
        tracing::debug!(
            free = alloc.free(),
            free_now = alloc.free_now(),
            applied = self.applied.seq.0,
            announced = self.announced.0,
            "checkpoint done"
        );
        drop(alloc);
        self.checkpointed = wal;
        self.release_log();
        self.return_space();
        Ok(())
    }

    /// Whether entries that a checkpoint holds stay in the log, for a brick that lacks them, until half the ring is
    /// used.
    pub fn keep_log(&mut self, keep: bool) {
        self.keep_log = keep;
        self.release_log();
    }

    /// Gives up what the log need not hold.
    fn release_log(&mut self) {
        let most = match self.keep_log {
            true => self.wal.size() / 2,
            false => 0,
        };
        self.wal.trim(self.checkpointed, most);
    }

    /// Whether there are removals that have not given back their space yet.
    fn frees_soon(&self) -> bool {
        self.held.iter().any(|held| held.frees)
    }

    /// Starts a checkpoint at the next [`Store::poll`], unless one runs.
    pub fn want_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    /// Whether a checkpoint runs.
    pub fn checkpoint_runs(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Writes bulk data, a whole number of blocks, to new blocks; an entry attaches it later.
    pub fn stage(&mut self, id: StageId, data: Bytes, done: Done<()>) {
        if self.stages.contains_key(&id) {
            return done(Ok(())); // a repeat; the entry that attaches it checks that it is written
        }
        let count = data.len() as u64 / BLOCK;
        if data.is_empty() || !(data.len() as u64).is_multiple_of(BLOCK) {
            return done(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a stage is whole blocks",
            )));
        }
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        // Bulk data does not wait for the log or the pending map, only for space.
        let cushion = self.space().cushion() / BLOCK;
        let (free, free_now, kept) = {
            let alloc = self.alloc.lock();
            let limited = self.host.limit(&alloc);
            (limited.free, limited.free_now, kept_back(&alloc))
        };
        let need = count + cushion + self.reserved + kept;
        if free_now < need {
            if free < need && !self.frees_soon() {
                return done(Err(full()));
            }
            tracing::debug!(free, free_now, need, "bulk data waits for a checkpoint");
            self.checkpoint_wanted |= !self.is_returning();
            return done(Err(io::ErrorKind::WouldBlock.into()));
        }
        if !self.have_ready(count + self.reserved) {
            if self.is_returning() || self.frees_soon() {
                self.checkpoint_wanted |= !self.is_returning();
                return done(Err(io::ErrorKind::WouldBlock.into()));
            }
            return done(Err(full()));
        }
        let Some(runs) = self.alloc.lock().allocate(count as u32) else {
            return done(Err(full()));
        };
        let places = runs
            .iter()
            .flat_map(|run| run.start..run.start + u64::from(run.len));
        let blocks: Arc<[StagedBlock]> = places
            .zip(data.chunks_exact(BLOCK as usize))
            .map(|(at, bytes)| StagedBlock {
                at,
                crc: crc32fast::hash(bytes),
            })
            .collect();
        let written = Arc::new(AtomicBool::new(false));
        let stage = Stage {
            runs: runs.clone(),
            blocks,
            written: written.clone(),
            attached: false,
            since: self.now,
        };
        self.stages.insert(id, stage);
        let state = Arc::new(Mutex::new((runs.len(), None::<io::Error>, Some(done))));
        let mut from = 0;
        for run in runs {
            let bytes = run.len as usize * BLOCK as usize;
            let (state, written) = (state.clone(), written.clone());
            let at = self.extents_at() + run.start * BLOCK;
            let finished: Done<()> = Box::new(move |result| {
                let mut state = state.lock();
                state.0 -= 1;
                if let Err(err) = result {
                    state.1 = Some(err);
                }
                if state.0 == 0
                    && let Some(done) = state.2.take()
                {
                    let outcome = state.1.take();
                    drop(state);
                    match outcome {
                        Some(err) => done(Err(err)),
                        None => {
                            written.store(true, Ordering::Release);
                            done(Ok(()));
                        }
                    }
                }
            });
            self.device
                .start_write(at, data.slice(from..from + bytes), finished);
            from += bytes;
        }
    }

    /// What is known of a stage that is held and written.
    pub fn stage_info(&self, id: StageId) -> Option<StageInfo> {
        let stage = self
            .stages
            .get(&id)
            .filter(|stage| stage.written.load(Ordering::Acquire))?;
        Some(StageInfo {
            crcs: stage.blocks.iter().map(|block| block.crc).collect(),
            len: stage.blocks.len() as u64 * BLOCK,
        })
    }

    /// Whether a stage is held and written.
    pub fn has_stage(&self, id: StageId) -> bool {
        self.stages
            .get(&id)
            .is_some_and(|stage| stage.written.load(Ordering::Acquire))
    }

    /// The bytes of a stage that is held, for a peer that lacks it.
    ///
    /// # Errors
    /// If it is not held, or cannot be read.
    pub fn read_stage(&self, id: StageId) -> Result<Bytes, ReadError> {
        let stage = self.stages.get(&id).ok_or(ReadError::Corrupt)?;
        let mut out = vec![0; stage.blocks.len() * BLOCK as usize];
        for (block, part) in stage
            .blocks
            .iter()
            .zip(out.chunks_exact_mut(BLOCK as usize))
        {
            let at = self.extents_at() + block.at * BLOCK;
            self.device.read_at(at, part).map_err(ReadError::Io)?;
            if crc32fast::hash(part) != block.crc {
                return Err(ReadError::Corrupt);
            }
        }
        Ok(out.into())
    }

    /// The bytes that the entry `seq` attached, for a peer that lacks them. They are there until a checkpoint holds the
    /// entry: till then blocks that later entries freed are not used again. Of entries that the log holds longer they
    /// may have gone.
    ///
    /// # Errors
    /// If the log no longer holds the entry, it attaches no such stage, or its blocks cannot be read.
    pub fn read_attached(&self, seq: Seq, id: StageId) -> Result<Bytes, ReadError> {
        let read = self.wal.read_entry(seq).map_err(|_| ReadError::Corrupt)?;
        let found = read.stages.iter().find(|(found, _)| *found == id);
        let (_, runs) = found.ok_or(ReadError::Corrupt)?;
        let crcs = read.entry.effects.iter().find_map(|effect| match effect {
            Effect::Attach { stage, crcs, .. } if *stage == id => Some(crcs),
            _ => None,
        });
        let mut out = Vec::new();
        for (start, len) in runs {
            let from = out.len();
            out.resize(from + *len as usize * BLOCK as usize, 0);
            let at = self.extents_at() + start * BLOCK;
            self.device
                .read_at(at, &mut out[from..])
                .map_err(ReadError::Io)?;
        }
        let sound = |crcs: &Vec<u32>| {
            let held = out.chunks_exact(BLOCK as usize).map(crc32fast::hash);
            held.eq(crcs.iter().copied())
        };
        match crcs {
            Some(crcs) if sound(crcs) => Ok(out.into()),
            _ => Err(ReadError::Corrupt),
        }
    }

    /// Gives a stage back that failed or will not be attached.
    pub fn drop_stage(&mut self, id: StageId) {
        if self.stages.get(&id).is_some_and(|stage| !stage.attached)
            && let Some(stage) = self.stages.remove(&id)
        {
            let mut alloc = self.alloc.lock();
            // A write may still be on its way: not before the next checkpoint.
            stage.runs.into_iter().for_each(|run| alloc.free_run(run));
        }
    }

    /// Gives back stages that no entry has attached for long: their change was refused, or its client has gone. One
    /// that is still wanted is sent again.
    fn drop_old_stages(&mut self) {
        let now = self.now;
        self.drop_unattached(|_, stage| now.since(stage.since) >= STAGE_LIFE);
    }

    /// Gives back all stages of a session that no entry attaches.
    pub fn drop_stages(&mut self, session: SessionId) {
        self.drop_unattached(|id, _| id.session == session);
    }

    fn drop_unattached(&mut self, which: impl Fn(&StageId, &Stage) -> bool) {
        let ids: Vec<StageId> = self
            .stages
            .iter()
            .filter(|(id, stage)| !stage.attached && which(id, stage))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().for_each(|id| self.drop_stage(id));
    }

    /// First byte of the extent area.
    fn extents_at(&self) -> u64 {
        self.superblock.block.geometry.extents.offset
    }

    fn reader(&self) -> Result<Reader<'_>, StoreError> {
        Ok(Reader::new(
            self.tree.snapshot()?,
            &*self.device,
            self.extents_at(),
        ))
    }

    /// The record under `key` as of `at`.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn get(&self, key: &[u8], at: Seq) -> Result<Option<Bytes>, StoreError> {
        match self.pending.get(key, at) {
            Some(value) => Ok(value),
            None => Ok(self.tree.snapshot()?.get(key)?),
        }
    }

    /// Calls `f` for the records from `from` up to, not including, `to`, as of `at`, in order, until it breaks.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        at: Seq,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut over: VecDeque<(Bytes, Option<Bytes>)> = VecDeque::new();
        self.pending.range_of(from, to, at, &mut |key, value| {
            over.push_back((key.clone(), value.cloned()));
            ControlFlow::Continue(())
        });
        let mut stopped = false;
        self.tree.snapshot()?.range(from, to, &mut |key, value| {
            while let Some((pending, _)) = over.front() {
                if &pending[..] >= key {
                    break;
                }
                if let Some((pending, Some(value))) = over.pop_front()
                    && f(&pending, &value).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match over.front() {
                Some((pending, _)) if &pending[..] == key => match over.pop_front() {
                    Some((_, Some(value))) => f(key, &value),
                    _ => ControlFlow::Continue(()),
                },
                _ => f(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        while !stopped && let Some((key, value)) = over.pop_front() {
            stopped = value.is_some_and(|value| f(&key, &value).is_break());
        }
        Ok(())
    }

    /// Reads data as of `at`; holes read as zeros. A small read that the page cache can answer is done before this
    /// returns; so is one that a quick device can answer, if the caller is `idle`: has nothing else to do meanwhile.
    pub fn start_read(
        &self,
        (object, offset, len): (Object, u64, usize),
        at: Seq,
        idle: bool,
        done: Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>,
    ) {
        let extents_at = self.extents_at();
        let plan = self
            .reader()
            .and_then(|reader| reader.plan(&self.pending, object, offset, len, at));
        let plan = match plan {
            Ok(plan) => plan,
            Err(err) => return done(Err(ReadError::Metadata(err))),
        };
        if plan.is_small() {
            match plan.try_read(&*self.device, extents_at, idle) {
                Ok(Some(data)) => return done(Ok(data)),
                Ok(None) => {}
                Err(error) => return done(Err(error)),
            }
        }
        let pin = self.alloc.lock().pin();
        plan.start(&*self.device, extents_at, pin, done);
    }

    /// Reads data as of `at` through the page cache.
    ///
    /// # Errors
    /// If a block fails its checksum or the device fails.
    pub fn read_now(
        &self,
        object: Object,
        offset: u64,
        len: usize,
        at: Seq,
    ) -> Result<Bytes, ReadError> {
        let reader = self.reader().map_err(ReadError::Metadata)?;
        let plan = reader
            .plan(&self.pending, object, offset, len, at)
            .map_err(ReadError::Metadata)?;
        plan.read_now(&*self.device, self.extents_at())
    }

    /// Blocks of 4 KiB that an object takes within a range (`len` `u64::MAX`: to its end), as of `at`.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn allocated(
        &self,
        object: Object,
        offset: u64,
        len: u64,
        at: Seq,
    ) -> Result<u64, StoreError> {
        let reader = self.reader()?;
        let from = offset / BLOCK;
        let to = if len == u64::MAX {
            u64::from(u32::MAX)
        } else {
            (offset + len).div_ceil(BLOCK)
        };
        let first = (from / u64::from(CHUNK_BLOCKS)) as u32;
        let last = to.div_ceil(u64::from(CHUNK_BLOCKS));
        let chunks = if last - u64::from(first) <= 4 {
            (first..last as u32).collect()
        } else {
            read::chunks_of(&reader, &self.pending, object, first)?
        };
        let touched = self.pending.touches(object);
        let mut count = 0;
        for chunk in chunks
            .into_iter()
            .take_while(|chunk| u64::from(*chunk) < last)
        {
            let base = reader.chunk(object, chunk)?;
            for (bit, block) in base.iter().enumerate() {
                let number = u64::from(chunk) * u64::from(CHUNK_BLOCKS) + bit as u64;
                if number < from || number >= to {
                    continue;
                }
                count += u64::from(if touched {
                    reader
                        .resolve(&self.pending, object, number as u32, at, pending::NEWEST)?
                        .is_allocated()
                } else {
                    *block != extents::Block::Hole
                });
            }
        }
        Ok(count)
    }

    /// Offset of the next data (or, with `hole`, of the next hole) at or behind `offset`; `None` if only holes follow
    /// (a hole is always found: behind the last data at the latest).
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn seek(
        &self,
        object: Object,
        offset: u64,
        hole: bool,
        at: Seq,
    ) -> Result<Option<u64>, StoreError> {
        let reader = self.reader()?;
        let first = offset / BLOCK;
        let mut next = first;
        for chunk in read::chunks_of(
            &reader,
            &self.pending,
            object,
            (first / u64::from(CHUNK_BLOCKS)) as u32,
        )? {
            let start = u64::from(chunk) * u64::from(CHUNK_BLOCKS);
            if hole && start > next {
                return Ok(Some(offset.max(next * BLOCK))); // a gap between chunks
            }
            for number in start.max(first)..start + u64::from(CHUNK_BLOCKS) {
                let block =
                    reader.resolve(&self.pending, object, number as u32, at, pending::NEWEST)?;
                if block.is_zero() == hole {
                    return Ok(Some(offset.max(number * BLOCK)));
                }
                next = number + 1;
            }
        }
        Ok(hole.then(|| offset.max(next * BLOCK)))
    }

    /// The next shard of a file behind `shard` of which anything is stored or pending (as of any position).
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn next_shard(&self, id: InodeId, shard: u32) -> Result<Option<u32>, StoreError> {
        let Some(shard) = shard.checked_add(1) else {
            return Ok(None);
        };
        let (first, last) = (
            Object { id, shard },
            Object {
                id,
                shard: u32::MAX,
            },
        );
        let mut found = self.pending.next_object(first, last);
        let (from, to) = (extents::key(first, 0), extents::key(last, u32::MAX));
        self.tree.snapshot()?.range(&from, &to, &mut |key, _| {
            let next = extents::parse_key(key).map(|(object, _)| object.shard);
            found = found.into_iter().chain(next).min();
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The tree's newest state, for checks of the whole brick.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, StoreError> {
        Ok(self.tree.snapshot()?)
    }

    /// The allocator, for checks of the whole brick.
    pub fn allocator(&self) -> &Mutex<Allocator> {
        &self.alloc
    }

    /// First blocks of the chunks that the tree lies in, as of the last durable checkpoint.
    pub fn tree_chunks(&self) -> Vec<u64> {
        crate::tree::mapped_chunks(
            &*self.device,
            recover::place(&self.superblock.block.geometry),
        )
    }

    /// Blocks of all stages that are held.
    pub fn held_blocks(&self) -> Vec<u64> {
        let runs = self.stages.values().flat_map(|stage| &stage.runs);
        runs.flat_map(|run| run.start..run.start + u64::from(run.len))
            .collect()
    }

    /// Space of the brick.
    pub fn space(&self) -> Space {
        let alloc = self.alloc.lock();
        let kept = kept_back(&alloc);
        let kept = match self.tree_is_short(&alloc) {
            true => u64::MAX - self.reserved,
            false => kept,
        };
        let less = |blocks: u64| blocks.saturating_sub(kept + self.reserved) * BLOCK;
        let limited = self.host.limit(&alloc);
        Space {
            total: alloc
                .blocks()
                .saturating_sub(metadata_reserve(alloc.blocks()) + limited.lost)
                * BLOCK,
            free: less(limited.free),
            free_now: less(limited.free_now),
            ring_free: self.wal.sure(self.checkpointed),
            inodes: 0,
        }
    }

    /// Bytes that wait to be applied.
    pub fn pending_bytes(&self) -> usize {
        self.pending.bytes()
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

/// Blocks kept back for the tree, for unlink and for overwriting what a file owns.
fn metadata_reserve(blocks: u64) -> u64 {
    (blocks / 32).clamp(2_048, 65_536)
}

/// What is left of the reserve: the tree's own blocks come out of it first, down to half.
fn kept_back(alloc: &Allocator) -> u64 {
    let reserve = metadata_reserve(alloc.blocks());
    reserve - alloc.tree_blocks().min(reserve / 2)
}

/// Commits the tree durably with the allocator's changed bitmaps, and where the log begins that is kept beyond it.
fn save(tree: &Tree, segments: &[(u32, Vec<u8>)], kept: Option<WalPosition>) -> Result<(), String> {
    let kept = kept.and_then(|kept| postcard::to_stdvec(&kept).ok());
    tree.checkpoint(|batch| {
        match &kept {
            Some(kept) => batch.put(KEPT, kept)?,
            None => batch.del(KEPT)?,
        }
        for (segment, bitmap) in segments {
            batch.put(&recover::segment_key(*segment), bitmap)?;
        }
        Ok(())
    })
    .map_err(|err| err.to_string())
}
