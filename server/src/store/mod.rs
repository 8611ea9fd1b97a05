//! A brick's state: pending map over tree and extents, checkpoints, recovery.
//!
//! Entries are appended to the log and enter the pending map; reads look through it as of a position; what every
//! member has flushed is applied to the tree in batches; checkpoints make the tree durable and release the log.

mod apply;
mod applying;
mod checkpoint;
mod compaction;
mod entries;
pub mod extents;
mod host;
mod log;
mod pending;
mod query;
mod read;
mod recover;
mod room;
mod stages;
#[cfg(test)]
mod tests;
mod unreadable;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::entry::{Entry, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Pos, Seq, StageId};
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::alloc::Allocator;
use crate::device::Device;
use crate::superblock::{Stored, Superblock, SuperblockError};
use crate::tree::{Snapshot, Tree, TreeError};
use crate::wal::{StageAt, WalPosition};

use checkpoint::Checkpoint;
use compaction::Compaction;
use extents::DamagedExtent;
use host::Host;
use log::Log;
use pending::Pending;
pub use pending::StagedBlock;
use read::Reader;
pub use recover::{FormatError, FormatParams, OpenError};
use room::Room;
use stages::Stage;
pub use stages::StageInfo;
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

/// Records to store (`None`: to remove) together with all entries up to a place.
pub type Extra<'a> = &'a mut dyn FnMut(Seq) -> Vec<(Bytes, Option<Bytes>)>;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Meta {
    applied: Pos,
    /// Where replay starts: behind the last applied entry.
    wal: WalPosition,
}

struct Held {
    entry: Arc<Entry>,
    stages: Vec<StageAt>,
    weight: usize,
    blocks: u64,
    /// Whether it may give blocks back.
    frees: bool,
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
    /// Stages for which there was no space, and the newest entry then.
    short: BTreeMap<StageId, Seq>,
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
    /// Whether changes wait rather than that blocks are used again which these entries name.
    insists: bool,
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
    compaction: Compaction,
    unreadable: Arc<Unreadable>,
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

    /// The medium has failed: from now on the store refuses changes and makes no checkpoint. What a failed flush was
    /// to cover may be lost, and a later flush would not say so.
    pub fn poison(&mut self, reason: &str) {
        self.tree.fail();
        if self.poisoned.is_none() {
            self.poisoned = Some(reason.to_owned());
        }
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
        self.watch_compaction();
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

    /// First byte of the extent area.
    fn extents_at(&self) -> u64 {
        self.superblock.block.geometry.extents.offset
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
