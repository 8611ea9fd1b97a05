//! Space that the metadata tree no longer needs. The tree keeps the chunks that it has grown by. As many as are kept
//! back for it anyway do not show; those beyond them are missing elsewhere. So once the brick is idle, or has little
//! space left, the tree's pages are counted on a worker, and where enough of its chunks hold nothing the tree is
//! compacted with the next checkpoint. Nothing is read or applied meanwhile.

use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::Seq;
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use super::{Store, kept_back, metadata_reserve};
use crate::tree::{CHUNK, TreeError};

/// How long nothing must have been applied for the brick to be idle.
const IDLE: Duration = Duration::from_secs(1);
/// Least time between two counts ...
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// ... which is so many times as long as the last one took.
const COUNT_SHARE: u32 = 20;
/// Chunks that a compacted tree may need beside its pages: its header, and records of what is free.
const BESIDE: u64 = 8;

type Counted = Arc<Mutex<Option<Result<u64, TreeError>>>>;

/// What is known of it.
#[derive(Default)]
pub(super) struct Compaction {
    /// Pages are being counted, since when.
    counting: Option<(Counted, Mono)>,
    /// The last entry applied when they were last counted.
    counted: Option<Seq>,
    /// When they may be counted again.
    next: Option<Mono>,
    /// The next checkpoint compacts.
    wanted: bool,
}

/// Whether compacting a tree gains enough, all in bytes: what its chunks take, its pages, and how much of it does not
/// show. An eighth does, or that nothing of it shows any more.
fn is_worth_it(held: u64, in_use: u64, hidden: u64) -> bool {
    let then = in_use + in_use / 8 + BESIDE * CHUNK;
    then < held && (held - then >= held / 8 || then <= hidden)
}

impl Store {
    /// Looks whether the tree holds space in vain.
    pub(super) fn watch_compaction(&mut self) {
        self.finish_counting();
        let state = &self.compaction;
        let too_early = state.next.is_some_and(|next| self.now < next);
        let seen = state.counted == Some(self.applied.seq);
        if state.counting.is_some() || state.wanted || too_early || seen {
            return;
        }
        let quiet = self.announced <= self.applied.seq && self.now.since(self.last_apply) >= IDLE;
        let (shows, short) = {
            let alloc = self.alloc.lock();
            let reserve = metadata_reserve(alloc.blocks());
            let left = alloc.free().saturating_sub(kept_back(&alloc));
            (alloc.tree_blocks() > reserve / 2, left < reserve)
        };
        if !shows || !(quiet || short) || self.checkpoint.is_some() {
            return;
        }
        let Ok(snapshot) = self.tree.snapshot() else {
            return;
        };
        let done = Counted::default();
        self.compaction.counted = Some(self.applied.seq);
        self.compaction.counting = Some((done.clone(), self.now));
        self.device.start_work(Box::new(move || {
            let counted = snapshot.bytes_in_use();
            // A reader is in the way of compaction.
            drop(snapshot);
            *done.lock() = Some(counted);
        }));
    }

    fn finish_counting(&mut self) {
        let Some((counted, began)) = &self.compaction.counting else {
            return;
        };
        let Some(counted) = counted.lock().take() else {
            return;
        };
        let pause = (self.now.since(*began) * COUNT_SHARE).max(COUNT_EVERY);
        self.compaction.next = Some(self.now.after(pause));
        self.compaction.counting = None;
        // An error means that the tree has failed, which shows elsewhere.
        let Ok(in_use) = counted else {
            return;
        };
        let alloc = self.alloc.lock();
        let held = alloc.tree_blocks() * BLOCK;
        let hidden = metadata_reserve(alloc.blocks()) / 2 * BLOCK;
        drop(alloc);
        self.compaction.wanted = is_worth_it(held, in_use, hidden);
        self.checkpoint_wanted |= self.compaction.wanted;
        tracing::debug!(
            held,
            in_use,
            compact = self.compaction.wanted,
            "metadata tree counted"
        );
    }

    /// Whether the checkpoint that begins now is to compact the tree.
    pub(super) fn takes_compaction(&mut self) -> bool {
        std::mem::take(&mut self.compaction.wanted)
    }

    /// A checkpoint that was to compact the tree is done; `compacted` says whether it could.
    pub(super) fn compaction_done(&mut self, compacted: bool) {
        if compacted {
            // What it gave back is free once the next one is durable.
            self.checkpoint_wanted = true;
        } else {
            self.compaction.counted = None;
        }
        tracing::debug!(
            compacted,
            held = self.alloc.lock().tree_blocks() * BLOCK,
            "metadata tree compacted"
        );
    }
}

#[cfg(test)]
mod tests;
