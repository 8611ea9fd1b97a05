//! The seam for time, randomness and tasks. Production has one implementation, the simulation another; no other code
//! may read a clock, sleep or draw random numbers.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::attr::Time;

/// Nanoseconds on a clock that runs through suspend and never steps back (CLOCK_BOOTTIME).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Mono(pub u64);

impl Mono {
    /// Time from `earlier` to `self`; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment plus `span`.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_nanos() as u64))
    }
}

/// Time, randomness and tasks.
pub trait Env: Send + Sync + 'static {
    /// Monotonic time.
    fn now(&self) -> Mono;
    /// Wall-clock time.
    fn wall(&self) -> Time;
    /// A random number.
    fn random(&self) -> u64;
    /// Completes after `span`.
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()>;
    /// Runs a task to its end in the background.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}
