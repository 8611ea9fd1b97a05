//! Checkpoints: the tree made durable, what it makes superfluous in the log released.

use std::sync::Arc;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::Seq;
use parking_lot::Mutex;

use super::{Extra, KEPT, Store, StoreError, recover};
use crate::tree::{Batch, Tree};
use crate::wal::WalPosition;

/// A checkpoint that runs.
pub(super) struct Checkpoint {
    /// When it is done: whether the tree was compacted.
    pub(super) result: Arc<Mutex<Option<Result<bool, String>>>>,
    /// Whether the tree was to be.
    pub(super) compacts: bool,
    pub(super) wal: WalPosition,
}

impl Store {
    /// Whether a checkpoint may begin: what has been written is flushed before it, while entries are still applied, so
    /// that little is left for the time in which none are. One that somebody waits for begins at once.
    pub(super) fn warm(&mut self) -> Result<bool, StoreError> {
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

    pub(super) fn start_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.since_checkpoint = 0;
        let segments = self.alloc.lock().begin_checkpoint();
        let kept = self.keep_log.then(|| self.wal.tail());
        let result = Arc::new(Mutex::new(None));
        let tree = self.tree.clone();
        let shared = result.clone();
        let compacts = self.takes_compaction();
        self.checkpoint = Some(Checkpoint {
            result,
            compacts,
            wal: self.applied_wal,
        });
        self.device.start_work(Box::new(move || {
            let outcome = save(&tree, &segments, kept, compacts);
            *shared.lock() = Some(outcome);
        }));
    }

    pub(super) fn finish_checkpoint(&mut self) -> Result<(), StoreError> {
        let Some(checkpoint) = &self.checkpoint else {
            return Ok(());
        };
        let Some(outcome) = checkpoint.result.lock().take() else {
            return Ok(());
        };
        let (wal, compacts) = (checkpoint.wal, checkpoint.compacts);
        self.checkpoint = None;
        let compacted = outcome.map_err(|err| self.fail(StoreError::Damaged(err)))?;
        let mut alloc = self.alloc.lock();
        // What the log keeps may name what was freed.
        alloc.checkpoint_done(self.keep_log.then_some(wal.seq.0));
        tracing::debug!(
            free = alloc.free(),
            free_now = alloc.free_now(),
            applied = self.applied.seq.0,
            announced = self.announced.0,
            "checkpoint done"
        );
        drop(alloc);
        if compacts {
            self.compaction_done(compacted);
        }
        self.checkpointed = wal;
        self.release_log();
        self.return_space();
        Ok(())
    }

    /// Whether entries that a checkpoint holds stay in the log, for a brick that lacks them, until half the ring is
    /// used; and with them the blocks they name, until these are wanted. With `insist` they stay even then, and changes
    /// wait.
    pub fn keep_log(&mut self, keep: bool, insist: bool) {
        self.keep_log = keep;
        self.insists = insist;
        self.release_log();
    }

    /// Gives up what the log need not hold.
    pub(super) fn release_log(&mut self) {
        let most = match self.keep_log {
            true => self.wal.size() / 2,
            false => 0,
        };
        self.wal.trim(self.checkpointed, most);
        self.alloc.lock().let_go(self.wal.start().seq.0);
    }

    /// More blocks are wanted than are free: gives up those that are kept back for the log's sake, else asks for the
    /// checkpoint that gives what was freed.
    pub(super) fn want_blocks(&mut self) {
        let mut alloc = self.alloc.lock();
        let kept = alloc.kept();
        if kept > 0 && !self.insists {
            tracing::info!(
                blocks = kept,
                "space is short: a brick that is away may not be able to follow by the log"
            );
            alloc.let_go(u64::MAX);
        } else {
            self.checkpoint_wanted |= kept == 0 || alloc.freed() > 0;
        }
    }

    /// Whether entries up to `upto` are to be applied that may give back space then: removals, and data in the place of
    /// blocks that a file has.
    pub fn may_free(&self, upto: Seq) -> bool {
        let held = self.held.iter();
        held.take_while(|held| held.entry.pos.seq <= upto)
            .any(|held| held.frees)
    }

    /// Starts a checkpoint at the next [`Store::poll`], unless one runs.
    pub fn want_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    /// Whether a checkpoint runs.
    pub fn checkpoint_runs(&self) -> bool {
        self.checkpoint.is_some()
    }
}

/// Commits the tree durably with the allocator's changed bitmaps, and where the log begins that is kept beyond it.
/// Compacts it then, if asked to; tells whether it did.
fn save(
    tree: &Tree,
    segments: &[(u32, Vec<u8>)],
    kept: Option<WalPosition>,
    compact: bool,
) -> Result<bool, String> {
    let kept = kept.and_then(|kept| postcard::to_stdvec(&kept).ok());
    let work = |batch: &mut Batch<'_>| {
        match &kept {
            Some(kept) => batch.put(KEPT, kept)?,
            None => batch.del(KEPT)?,
        }
        for (segment, bitmap) in segments {
            batch.put(&recover::segment_key(*segment), bitmap)?;
        }
        Ok(())
    };
    let result = match compact {
        true => tree
            .checkpoint_and_compact(work)
            .map(|((), compacted)| compacted),
        false => tree.checkpoint(work).map(|()| false),
    };
    result.map_err(|err| err.to_string())
}
