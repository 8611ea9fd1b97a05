//! Lines that a stranger can cause: one per second is written.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::env_real::mono_now;

/// Lets one line through per second and counts the others.
#[derive(Default, Debug)]
pub struct LogGate {
    last: AtomicU64,
    held: AtomicU64,
}

impl LogGate {
    /// The number of lines held back since the last one, if another may be written now.
    pub fn pass(&self) -> Option<u64> {
        let now = mono_now().0;
        let last = self.last.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= 1_000_000_000;
        if due
            && self
                .last
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            Some(self.held.swap(0, Ordering::Relaxed))
        } else {
            self.held.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}
