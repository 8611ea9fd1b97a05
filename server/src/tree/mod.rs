//! The metadata tree: redb on the brick's own device, one table of bytes to bytes.
//!
//! Changes are applied in batches without durability; a checkpoint makes all of them durable at once. Reads run on
//! snapshots, also while a checkpoint is under way on a worker thread.

mod backend;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redb::{
    CompactionError, Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition,
};

use crate::alloc::Allocator;
use crate::device::Device;

pub use backend::{CHUNK, Place, mapped_chunks};
use backend::{ChunkBackend, Extent};

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
/// redb's own cache; the page cache behind it is the real one.
const CACHE: usize = 4 << 20;

/// Why the tree did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A checkpoint runs; apply again when it is done.
    #[error("a checkpoint runs")]
    Busy,
    /// The tree can be neither read nor written any more: the brick is poisoned.
    #[error("metadata tree: {0}")]
    Failed(String),
}

fn failed(err: impl std::fmt::Display) -> TreeError {
    TreeError::Failed(err.to_string())
}

/// How far a tree reaches, in bytes of its address space. It grows by doubling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Its length, with what it does not use.
    pub len: u64,
    /// Most that the chunk map has room for: the tree fails if it wants more.
    pub capacity: u64,
    /// Written since the last checkpoint. Of so much there may be an older copy that is in use until the next.
    pub written: u64,
}

/// The tree of one brick.
pub struct Tree {
    /// Held for writing while it is compacted.
    db: RwLock<Database>,
    busy: AtomicBool,
    failed: Arc<AtomicBool>,
    extent: Arc<Extent>,
    ordered: Arc<AtomicBool>,
    capacity: u64,
    current: Mutex<Option<Arc<Snapshot>>>,
}

impl Drop for Tree {
    /// Lets the database go as a kill would. By itself it would make durable what was committed since the last
    /// checkpoint, but not which blocks that refers to: those are saved with checkpoints only, and the next run would
    /// give them out again.
    fn drop(&mut self) {
        self.fail();
    }
}

/// Runs what calls into redb; a panic there becomes an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, TreeError>) -> Result<T, TreeError> {
    crate::guard::catch(work)
        .unwrap_or_else(|| Err(TreeError::Failed("the tree's library panicked".into())))
}

impl Tree {
    /// Makes an empty tree, durably.
    ///
    /// # Errors
    /// If the device fails or has no space.
    pub fn create(
        device: Arc<dyn Device>,
        place: Place,
        alloc: Arc<Mutex<Allocator>>,
    ) -> Result<Self, TreeError> {
        let backend = ChunkBackend::create(device, place, alloc);
        let tree = Self::with_backend(backend, place.capacity())?;
        tree.checkpoint(|_| Ok(()))?;
        Ok(tree)
    }

    /// Opens the tree as of its last durable checkpoint and marks its chunks busy in `alloc`.
    ///
    /// # Errors
    /// If it is damaged or the device fails.
    pub fn open(
        device: Arc<dyn Device>,
        place: Place,
        alloc: Arc<Mutex<Allocator>>,
    ) -> Result<Self, TreeError> {
        let backend = ChunkBackend::open(device, place, alloc).map_err(failed)?;
        let tree = Self::with_backend(backend, place.capacity())?;
        tree.snapshot()?;
        Ok(tree)
    }

    fn with_backend(backend: ChunkBackend, capacity: u64) -> Result<Self, TreeError> {
        let (failed_flag, extent, ordered) =
            (backend.failed(), backend.extent(), backend.ordered());
        let db = guarded(|| {
            Database::builder()
                .set_cache_size(CACHE)
                .create_with_backend(backend)
                .map_err(failed)
        })?;
        Ok(Self {
            db: RwLock::new(db),
            busy: AtomicBool::new(false),
            failed: failed_flag,
            extent,
            ordered,
            capacity,
            current: Mutex::new(None),
        })
    }

    /// Whether any access of the tree to its device has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// The device has failed under another part of the brick: no checkpoint is completed any more, also one that runs.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// How far the tree reaches.
    pub fn reach(&self) -> Reach {
        Reach {
            len: self.extent.len.load(Ordering::Relaxed),
            capacity: self.capacity,
            written: self.extent.written.load(Ordering::Relaxed),
        }
    }

    /// Whether a checkpoint runs.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst)
    }

    /// The newest committed state.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, TreeError> {
        let mut current = self.current.lock();
        if let Some(snapshot) = &*current {
            return Ok(snapshot.clone());
        }
        let snapshot = guarded(|| {
            let read = self.db.read().begin_read().map_err(failed)?;
            let table = read.open_table(TABLE).map_err(failed)?;
            Ok(Arc::new(Snapshot { table }))
        })?;
        *current = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// Runs `work` on a batch and commits it without durability.
    ///
    /// # Errors
    /// [`TreeError::Busy`] while a checkpoint runs; otherwise the tree has failed.
    pub fn apply<T>(
        &self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        self.claim()?;
        let result = self.commit(Durability::None, work);
        self.busy.store(false, Ordering::SeqCst);
        result
    }

    /// Commits durably everything applied so far and what `work` adds. Blocks for the flush: call it on a worker.
    ///
    /// # Errors
    /// As [`Tree::apply`].
    pub fn checkpoint<T>(
        &self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        self.claim()?;
        let result = self.commit(Durability::Immediate, work);
        self.busy.store(false, Ordering::SeqCst);
        result
    }

    /// The same, and then moves the tree's pages together and gives back the chunks behind them, unless somebody reads
    /// just now; tells in the second place whether it did. Nobody reads or applies meanwhile.
    ///
    /// # Errors
    /// As [`Tree::apply`].
    pub fn checkpoint_and_compact<T>(
        &self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, TreeError>,
    ) -> Result<(T, bool), TreeError> {
        self.claim()?;
        let result = self.commit(Durability::Immediate, work);
        // Compaction commits what the tree holds. Between it and the commit before nothing is applied, or that would
        // become durable without the bitmaps that go with it.
        let result = result.and_then(|value| Ok((value, self.compact()?)));
        self.busy.store(false, Ordering::SeqCst);
        result
    }

    fn compact(&self) -> Result<bool, TreeError> {
        let mut db = {
            let mut current = self.current.lock();
            current.take();
            self.db.write()
        };
        self.ordered.store(true, Ordering::SeqCst);
        let done = guarded(|| match db.compact() {
            Ok(_) => Ok(true),
            Err(CompactionError::TransactionInProgress) => Ok(false),
            Err(error) => Err(failed(error)),
        });
        self.ordered.store(false, Ordering::SeqCst);
        drop(db);
        let done = done?;
        if done {
            // Compaction leaves out which pages are free: a start without that reads the whole tree.
            self.commit(Durability::Immediate, |_| Ok(()))?;
        }
        Ok(done)
    }

    fn claim(&self) -> Result<(), TreeError> {
        if self.busy.swap(true, Ordering::SeqCst) {
            Err(TreeError::Busy)
        } else {
            Ok(())
        }
    }

    fn commit<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        let result = guarded(|| {
            let mut write = self.db.read().begin_write().map_err(failed)?;
            write.set_durability(durability).map_err(failed)?;
            if matches!(durability, Durability::Immediate) {
                write.set_quick_repair(true);
            }
            let value = {
                let table = write.open_table(TABLE).map_err(failed)?;
                work(&mut Batch { table })?
            };
            write.commit().map_err(failed)?;
            Ok(value)
        });
        self.current.lock().take();
        result
    }
}

/// A consistent state of the tree.
pub struct Snapshot {
    table: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Snapshot {
    /// Bytes of its pages. Reads all of them.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn bytes_in_use(&self) -> Result<u64, TreeError> {
        guarded(|| {
            let stats = self.table.stats().map_err(failed)?;
            Ok(stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes())
        })
    }

    /// The record under `key`.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TreeError> {
        guarded(|| {
            let found = self.table.get(key).map_err(failed)?;
            Ok(found.map(|guard| Bytes::copy_from_slice(guard.value())))
        })
    }

    /// Calls `f` for the records from `from` up to, not including, `to`, in order, until it breaks.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        if from >= to {
            return Ok(());
        }
        guarded(|| {
            for record in self.table.range(from..to).map_err(failed)? {
                let (key, value) = record.map_err(failed)?;
                if f(key.value(), value.value()).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Changes that are committed together.
pub struct Batch<'t> {
    table: redb::Table<'t, &'static [u8], &'static [u8]>,
}

impl Batch<'_> {
    /// The record under `key`, with this batch's changes.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TreeError> {
        let found = self.table.get(key).map_err(failed)?;
        Ok(found.map(|guard| Bytes::copy_from_slice(guard.value())))
    }

    /// Stores a record.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), TreeError> {
        self.table.insert(key, value).map_err(failed).map(drop)
    }

    /// Removes a record.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn del(&mut self, key: &[u8]) -> Result<(), TreeError> {
        self.table.remove(key).map_err(failed).map(drop)
    }

    /// The records from `from` up to, not including, `to`: at most `limit`.
    ///
    /// # Errors
    /// If the tree has failed.
    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, TreeError> {
        if from >= to {
            return Ok(Vec::new());
        }
        self.table
            .range(from..to)
            .map_err(failed)?
            .take(limit)
            .map(|record| {
                let (key, value) = record.map_err(failed)?;
                Ok((
                    Bytes::copy_from_slice(key.value()),
                    Bytes::copy_from_slice(value.value()),
                ))
            })
            .collect()
    }
}
