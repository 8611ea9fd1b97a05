//! Room for the metadata tree. The map of its chunks has a fixed size, and the tree grows by doubling: once it cannot
//! double any more, the brick must be full before the space it has runs out. There is nothing to be done once the tree
//! cannot grow.

use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::env::Mono;
use parking_lot::Mutex;

use super::Store;
use crate::tree::{Reach, TreeError};

/// How often the pages are counted while the tree cannot double.
const COUNT_EVERY: Duration = Duration::from_secs(10);

type Counted = Arc<Mutex<Option<Result<u64, TreeError>>>>;

/// What is known of it.
#[derive(Default)]
pub(super) struct Room {
    counting: Option<Counted>,
    counted: Option<Mono>,
    /// Bytes of the tree's pages when they were last counted.
    in_use: u64,
}

/// Whether it cannot double any more.
fn is_last(reach: Reach) -> bool {
    reach.len.saturating_mul(2) > reach.capacity
}

/// What must not be passed by pages in use: the rest is for what is admitted already, for removals, for what comes until
/// the pages are counted again, and for pages that only the next checkpoint gives back.
fn most(reach: Reach) -> u64 {
    reach.len / 16 * 11
}

impl Store {
    /// Whether the tree comes near the end of its map: the brick then counts as full.
    pub(super) fn tree_is_crowded(&self) -> bool {
        let reach = self.tree.reach();
        is_last(reach) && self.room.in_use.saturating_add(reach.written) > most(reach)
    }

    /// Counts the tree's pages once it cannot double any more, on a worker, and lets no more of them wait for a
    /// checkpoint than there is space for.
    pub(super) fn watch_room(&mut self) {
        let counted = self.room.counting.as_ref();
        if let Some(counted) = counted.and_then(|done| done.lock().take()) {
            // An error means that the tree has failed, which shows elsewhere.
            self.room.in_use = counted.unwrap_or(self.room.in_use);
            self.room.counting = None;
        }
        let reach = self.tree.reach();
        if !is_last(reach) {
            self.room = Room::default();
            return;
        }
        if reach.written > reach.len / 16 && self.since_checkpoint > 0 {
            self.checkpoint_wanted = true;
        }
        let due = |at: Mono| self.now.since(at) >= COUNT_EVERY;
        if self.room.counting.is_some() || !self.room.counted.is_none_or(due) {
            return;
        }
        let Ok(snapshot) = self.tree.snapshot() else {
            return;
        };
        let done = Counted::default();
        self.room.counted = Some(self.now);
        self.room.counting = Some(done.clone());
        self.device.start_work(Box::new(move || {
            *done.lock() = Some(snapshot.bytes_in_use());
        }));
    }
}
