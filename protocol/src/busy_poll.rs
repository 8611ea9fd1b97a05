//! Whether a thread that drives connections looks for work once more or goes to sleep: the pure core.
//!
//! A request that comes alone passes through four threads, and a wake-up of a sleeping one costs as much as all that is
//! done for it (`docs/performance.md`). So while at most one request is on its way the thread goes on looking for a
//! short while. It stops at once when others want its processor, which shows by the gap between two looks.

use std::time::Duration;

use crate::env::Mono;

/// Most requests on their way: with more, one that comes finds the thread awake.
const MOST: usize = 1;
/// A longer gap between two looks means that another thread had the processor.
const GAP: Duration = Duration::from_micros(150);
/// For so long nothing is looked for then.
const PAUSE: Duration = Duration::from_millis(20);

/// The decision, and what it stands on.
#[derive(Debug)]
pub struct BusyPoll {
    window: Duration,
    worked: Mono,
    looked: Mono,
    sleeps_until: Mono,
}

impl BusyPoll {
    /// Looks for at most `window` after each request that came; 0: never.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            worked: Mono(0),
            looked: Mono(0),
            sleeps_until: Mono(0),
        }
    }

    /// A request came at this time.
    pub fn came(&mut self, now: Mono) {
        self.worked = now;
        self.looked = now;
    }

    /// Whether to look once more, with so many requests on their way.
    pub fn looks_again(&mut self, now: Mono, on_their_way: usize) -> bool {
        if on_their_way > MOST || now < self.sleeps_until {
            return false;
        }
        if now.since(self.looked) > GAP {
            self.sleeps_until = now.after(PAUSE);
            return false;
        }
        self.looked = now;
        now.since(self.worked) < self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Mono = Mono(1_000_000_000);

    fn micros(count: u64) -> Mono {
        START.after(Duration::from_micros(count))
    }

    fn polling() -> BusyPoll {
        let mut poll = BusyPoll::new(Duration::from_micros(300));
        poll.came(START);
        poll
    }

    #[test]
    fn it_looks_for_the_window_after_the_last_request() {
        let mut poll = polling();
        assert!((0..3).all(|look| poll.looks_again(micros(look * 100), 1)));
        assert!(!poll.looks_again(micros(300), 1));
        poll.came(micros(350));
        assert!(poll.looks_again(micros(400), 0));
        let mut never = BusyPoll::new(Duration::ZERO);
        never.came(START);
        assert!(!never.looks_again(START, 0));
    }

    #[test]
    fn it_sleeps_while_several_requests_are_on_their_way() {
        assert!(!polling().looks_again(micros(1), 2));
    }

    #[test]
    fn it_lets_others_have_the_processor() {
        let mut poll = polling();
        assert!(poll.looks_again(micros(10), 1));
        assert!(!poll.looks_again(micros(200), 1), "it was preempted");
        poll.came(micros(5_000));
        assert!(!poll.looks_again(micros(5_001), 1), "it sleeps");
        poll.came(micros(30_000));
        assert!(poll.looks_again(micros(30_001), 1), "it tries again");
    }
}
