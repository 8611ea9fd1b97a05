//! The calls in progress on a connection, and how often it is to be looked at for their sake.
//!
//! Silence must be noticed soon after a call was made. A call that has waited for long, while the other side answers
//! probes (a request for news may take 15 s), is looked after ever less often, up to a bound. A connection without calls
//! costs next to nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// First look after a call.
const SOON: Duration = Duration::from_millis(100);
/// While a probe is on its way.
const DOUBT: Duration = Duration::from_millis(250);
/// By how much pauses grow.
const GROWTH: u32 = 4;
/// Last of the growing pauses, and while there is no call.
const REST: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Calls {
    running: AtomicUsize,
    begun: AtomicU64,
    /// The newest call that has ended.
    ended: AtomicU64,
    rests: AtomicBool,
    woken: Notify,
}

/// A call in progress.
pub(super) struct Call<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.ended.fetch_max(self.number, Ordering::Relaxed);
        self.calls.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How whoever looks after a connection goes about it.
#[derive(Default)]
pub(super) struct Pace {
    begun: u64,
    pause: Duration,
}

impl Calls {
    /// A call begins.
    pub(super) fn begin(&self) -> Call<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        if self.rests.swap(false, Ordering::Relaxed) {
            self.woken.notify_one();
        }
        Call {
            calls: self,
            number,
        }
    }

    /// The next pause; `doubtful`: a probe is on its way.
    fn pause(&self, pace: &mut Pace, doubtful: bool) -> Duration {
        let begun = self.begun.load(Ordering::Relaxed);
        pace.pause = match self.running.load(Ordering::Relaxed) {
            0 => REST,
            // Those that wait are older than one that was answered.
            _ if self.ended.load(Ordering::Relaxed) >= begun => REST,
            _ if begun != pace.begun => SOON,
            _ => (pace.pause * GROWTH).clamp(SOON, REST),
        };
        pace.begun = begun;
        match doubtful {
            true => pace.pause.min(DOUBT),
            false => pace.pause,
        }
    }

    /// Waits until the connection is to be looked at again. Whether an answer is owed by then, so that silence is worth
    /// a probe; `None` if a call has just begun.
    pub(super) async fn next_look(&self, pace: &mut Pace, doubtful: bool) -> Option<bool> {
        let pause = self.pause(pace, doubtful);
        self.rests.store(pause > SOON, Ordering::Relaxed);
        tokio::select! {
            biased;
            () = self.woken.notified() => None,
            () = sleep(pause) => Some(self.running.load(Ordering::Relaxed) > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_another_call_begins() {
        let (calls, mut pace) = (Calls::default(), Pace::default());
        let mut next = |doubtful| calls.pause(&mut pace, doubtful).as_millis();
        assert_eq!(next(false), 10_000);
        let first = calls.begin();
        let pauses: Vec<u128> = (0..5).map(|_| next(false)).collect();
        assert_eq!(pauses, [100, 400, 1_600, 6_400, 10_000]);
        assert_eq!(next(true), 250);
        let second = calls.begin();
        assert_eq!((next(true), next(true), next(false)), (100, 250, 1_600));
        let third = calls.begin();
        drop(third);
        assert_eq!(next(false), 10_000, "the newest was answered");
        drop((first, second));
        assert_eq!(next(false), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_the_rest() {
        let (calls, mut pace) = (Calls::default(), Pace::default());
        let looks = calls.next_look(&mut pace, false);
        let begins = async {
            tokio::task::yield_now().await;
            calls.begin()
        };
        let (owed, call) = tokio::join!(looks, begins);
        assert_eq!(owed, None);
        assert_eq!(calls.next_look(&mut pace, false).await, Some(true));
        drop(call);
        assert_eq!(calls.next_look(&mut pace, false).await, Some(false));
    }
}
