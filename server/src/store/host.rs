//! The host's file system under a file brick: space is promised before anything relies on it, and given back.
//!
//! A file brick is sparse. What is admitted must not fail when it is applied, so a stock of blocks that have space on
//! the host is kept ahead of what has been admitted, as are the chunks set aside for the tree. When the host is full,
//! the brick is: its free space is then that stock. Once a checkpoint has freed whole regions, their space goes back.

use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use super::{Store, metadata_reserve};
use crate::alloc::{Allocator, CHUNK_BLOCKS, REGION_BLOCKS};
use crate::device::is_full;

/// Most blocks with space on the host beyond those that are spoken for.
const AHEAD: u64 = 4_096;
/// Most regions for which space is asked for at once.
const STEP: usize = 64;
/// Free blocks beyond the stock that are kept before space is given back.
const SLACK: u64 = 16_384;
/// Most chunks set aside for the tree where the host has to give their space.
const ASIDE: u64 = 512;
/// How often the host is looked at, and asked again after it refused.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is known of the host.
#[derive(Default)]
pub(super) struct Host {
    /// Bytes it can still give; `None` if all space is the brick's own.
    left: Option<u64>,
    /// It has refused.
    full: bool,
    looked: Option<Mono>,
    /// Regions whose space is being given back; the list is put there when that is done.
    returning: Option<Arc<Mutex<Option<Vec<usize>>>>>,
    /// No whole chunk was free; there may be one after the next checkpoint.
    no_chunk: bool,
}

/// Blocks that can be given to data, as far as the host has them: all, and without a checkpoint.
pub(super) struct Limited {
    pub(super) free: u64,
    pub(super) free_now: u64,
    /// Free blocks for which the host has no space.
    pub(super) lost: u64,
}

impl Host {
    pub(super) fn limit(&self, alloc: &Allocator) -> Limited {
        let (free, free_now) = (alloc.free(), alloc.free_now());
        let Some(left) = self.left else {
            let lost = 0;
            return Limited {
                free,
                free_now,
                lost,
            };
        };
        let left = if self.full { 0 } else { left / BLOCK };
        let now = alloc.ready() + alloc.aside() + left;
        // What is being given back can be had again, unless somebody else takes it.
        let limited = free.min(now + (free - free_now) + alloc.returning());
        Limited {
            free: limited,
            free_now: free_now.min(now),
            lost: free - limited,
        }
    }
}

impl Store {
    /// Looks at the host and prepares for what may come; when a brick is opened, and then from time to time.
    pub(super) fn keep_stock(&mut self) {
        let now = self.now;
        self.finish_returning();
        if let Some(looked) = self.host.looked
            && now.since(looked) < LOOK_EVERY
        {
            return;
        }
        self.host.looked = Some(now);
        // Until all is given back the host shows some of what is still counted here.
        if self.host.returning.is_none() {
            self.host.left = self.device.host_left();
        }
        self.set_chunks_aside();
        // Also where nothing is promised: what the log counts as sure begins behind its head at each start.
        self.wal.keep_promised();
        if self.host.left.is_none() {
            return;
        }
        self.host.full = false;
        let blocks = self.alloc.lock().blocks();
        if !self.have_ready(self.reserved + AHEAD.min(blocks / 32)) {
            // What has been freed has its space already.
            let alloc = self.alloc.lock();
            let helps = alloc.free() > alloc.free_now();
            drop(alloc);
            if helps {
                self.want_blocks();
            }
        }
    }

    /// Has the host promise space until so many free blocks are ready; false if it has not that much.
    pub(super) fn have_ready(&mut self, wanted: u64) -> bool {
        let mut most = usize::MAX;
        loop {
            let next = {
                let alloc = self.alloc.lock();
                let ready = alloc.ready();
                if self.host.left.is_none() || ready >= wanted {
                    return ready >= wanted;
                }
                // The more a brick has taken, the more it takes at once.
                let step = (alloc.backed_end() / 8).clamp(1, STEP);
                let missing = (wanted - ready).div_ceil(REGION_BLOCKS) as usize;
                alloc.next_unbacked(most.min(step.max(missing)))
            };
            let Some((first, count)) = next.filter(|_| !self.host.full) else {
                return false;
            };
            if self.promise(first, count) {
                self.alloc.lock().back(first, count);
            } else if count == 1 {
                self.host.full = true;
            } else {
                most = (count / 4).max(1);
            }
        }
    }

    fn promise(&self, first: usize, count: usize) -> bool {
        let blocks = self.alloc.lock().blocks();
        let from = first as u64 * REGION_BLOCKS;
        let to = blocks.min((first + count) as u64 * REGION_BLOCKS);
        let at = self.extents_at() + from * BLOCK;
        match self.device.allocate(at, (to - from) * BLOCK) {
            Ok(()) => true,
            Err(error) => {
                if !is_full(&error) {
                    tracing::warn!(%error, "the host refuses space");
                }
                false
            }
        }
    }

    /// Blocks that are to be set aside for the tree: what admission keeps back for it at least.
    fn blocks_aside(&self, alloc: &Allocator) -> u64 {
        let most = match self.host.left {
            Some(_) => ASIDE,
            None => u64::MAX,
        };
        let chunks = metadata_reserve(alloc.blocks()) / 2 / u64::from(CHUNK_BLOCKS);
        chunks.min(most) * u64::from(CHUNK_BLOCKS)
    }

    /// Sets chunks aside for the tree, with space on the host.
    fn set_chunks_aside(&mut self) {
        while !self.host.no_chunk {
            let start = {
                let alloc = self.alloc.lock();
                if alloc.aside() >= self.blocks_aside(&alloc) {
                    return;
                }
                alloc.free_chunk_at_top()
            };
            let Some(start) = start else {
                self.host.no_chunk = true;
                return;
            };
            let region = (start / REGION_BLOCKS) as usize;
            if self.host.left.is_some() && !self.alloc.lock().is_backed(start) {
                if !self.promise(region, 1) {
                    return;
                }
                self.alloc.lock().back(region, 1);
            }
            self.alloc.lock().set_aside(start);
        }
    }

    /// Whether the tree has used up much of what is set aside for it, and there is nothing to replace it, or comes near
    /// the end of its map: the brick then counts as full, and a checkpoint after every few entries lets the tree use its
    /// pages again.
    pub(super) fn tree_is_short(&self, alloc: &Allocator) -> bool {
        let used_up = self.host.no_chunk && alloc.aside() < self.blocks_aside(alloc) / 2;
        used_up || self.tree_is_crowded()
    }

    /// After a checkpoint: gives space back to the host, on a worker.
    pub(super) fn return_space(&mut self) {
        (self.host.no_chunk, self.host.looked) = (false, None);
        self.finish_returning();
        if self.host.left.is_none() || self.host.returning.is_some() {
            return;
        }
        let (regions, blocks) = {
            let mut alloc = self.alloc.lock();
            let slack = if self.host.full {
                0
            } else {
                SLACK.min(alloc.blocks() / 32)
            };
            let keep = self.reserved + AHEAD.min(alloc.blocks() / 32) + slack;
            (alloc.take_free_regions(keep), alloc.blocks())
        };
        if regions.is_empty() {
            return;
        }
        let (device, extents_at) = (self.device.clone(), self.extents_at());
        let done = Arc::new(Mutex::new(None));
        self.host.returning = Some(done.clone());
        self.device.start_work(Box::new(move || {
            let mut from = 0;
            while from < regions.len() {
                let mut to = from + 1;
                while to < regions.len() && regions[to] == regions[to - 1] + 1 {
                    to += 1;
                }
                let first = regions[from] as u64 * REGION_BLOCKS;
                let end = blocks.min((regions[to - 1] as u64 + 1) * REGION_BLOCKS);
                device.discard(extents_at + first * BLOCK, (end - first) * BLOCK);
                from = to;
            }
            *done.lock() = Some(regions);
        }));
    }

    /// Whether space is on its way back to the host.
    pub(super) fn is_returning(&self) -> bool {
        self.host.returning.is_some()
    }

    fn finish_returning(&mut self) {
        let done = self
            .host
            .returning
            .as_ref()
            .and_then(|done| done.lock().take());
        if let Some(regions) = done {
            (self.host.returning, self.host.looked) = (None, None);
            self.alloc.lock().returned(&regions);
        }
    }
}

#[cfg(test)]
mod tests;
