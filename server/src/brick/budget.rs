//! The bound on what all bricks of one daemon hold in their pending maps.
//!
//! Every brick counts what it holds. While the sum is within the bound a brick is limited by its own map only; beyond it,
//! changes wait in bricks that hold more than they have for themselves, and go on in all others: a set that cannot flush
//! stops no other. What waits is woken when any brick of the daemon, on whichever thread, has given something back.
//!
//! Admission is the primary's: what a backup must take in is counted here, but nothing asks this daemon first. Every entry
//! that is not applied is held whole, so the worst case is the bound and each brick's own part above it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mortar_protocol::ids::BrickId;
use parking_lot::Mutex;

use super::api::{Completion, Completions};

/// Most bytes that wait to be applied in all bricks of a daemon before admission waits.
pub const DAEMON_PENDING: usize = 64 << 20;
/// What each brick may hold whatever the others hold.
pub const OWN_PENDING: usize = 1 << 20;

/// The budget that the bricks of a daemon share.
pub struct PendingBudget {
    bound: usize,
    own: usize,
    used: AtomicUsize,
    /// Shares handed out.
    shares: AtomicU64,
    /// Bricks in which changes wait for what others hold, by the number of their share.
    waiting: Mutex<BTreeMap<u64, (BrickId, Arc<Completions>)>>,
}

impl PendingBudget {
    /// That of a daemon.
    pub fn new() -> Arc<Self> {
        Self::of(DAEMON_PENDING, OWN_PENDING)
    }

    /// One of `bound` bytes, of which each brick may hold `own` whatever the others hold.
    pub fn of(bound: usize, own: usize) -> Arc<Self> {
        Arc::new(Self {
            bound,
            own,
            used: AtomicUsize::new(0),
            shares: AtomicU64::new(0),
            waiting: Mutex::default(),
        })
    }

    /// Bytes held by all bricks, and the bound.
    pub fn state(&self) -> (usize, usize) {
        (self.used.load(Ordering::Relaxed), self.bound)
    }

    fn has_room(&self, more: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(more) <= self.bound
    }

    /// Has the bricks look again that wait, now that there is room.
    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (brick, completions) in waiting.into_values() {
            completions.push(brick, Completion::Room);
        }
    }
}

impl std::fmt::Debug for PendingBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (used, bound) = self.state();
        write!(f, "PendingBudget({used} of {bound})")
    }
}

/// What one brick holds of the budget; given back when it is dropped.
pub(super) struct BudgetShare {
    budget: Arc<PendingBudget>,
    number: u64,
    brick: BrickId,
    completions: Arc<Completions>,
    held: usize,
}

impl BudgetShare {
    pub(super) fn new(
        budget: Arc<PendingBudget>,
        brick: BrickId,
        completions: Arc<Completions>,
    ) -> Self {
        Self {
            number: budget.shares.fetch_add(1, Ordering::Relaxed),
            budget,
            brick,
            completions,
            held: 0,
        }
    }

    /// The brick now holds so many bytes.
    pub(super) fn count(&mut self, bytes: usize) {
        let budget = &self.budget;
        if bytes > self.held {
            budget.used.fetch_add(bytes - self.held, Ordering::Relaxed);
        } else if bytes < self.held {
            budget.used.fetch_sub(self.held - bytes, Ordering::Relaxed);
            if budget.has_room(0) {
                budget.wake();
            }
        }
        self.held = bytes;
    }

    /// Whether the brick may hold so many bytes more as far as the other bricks are concerned.
    pub(super) fn allows(&self, more: usize) -> bool {
        self.held + more <= self.budget.own || self.budget.has_room(more)
    }

    /// Whether the brick should flush soon: the daemon's bound is near (`part` of it is used) and the brick holds more
    /// than its own.
    pub(super) fn is_pressed(&self, part: usize) -> bool {
        self.held > self.budget.own && !self.budget.has_room(self.budget.bound / part * (part - 1))
    }

    /// Has the brick woken once there is room. False if there is room by now.
    pub(super) fn wait(&self, more: usize) -> bool {
        let woken = (self.brick, Arc::clone(&self.completions));
        self.budget.waiting.lock().insert(self.number, woken);
        // Whoever gave something back before this brick was entered has woken others only.
        !self.allows(more)
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.waiting.lock().remove(&self.number);
        self.count(0);
    }
}
