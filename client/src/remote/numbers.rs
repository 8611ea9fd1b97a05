//! Request numbers of one session on one set: they rise without gaps, and at most [`MAX_RESULTS`] are unanswered.

use std::collections::VecDeque;

use mortar_protocol::limits::MAX_RESULTS;

/// Which numbers are given out and which are answered. Pure.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// Lowest number that has no answer yet.
    below: u64,
    /// Whether the numbers from `below` on are answered.
    answered: VecDeque<bool>,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        Self {
            below: 1,
            answered: VecDeque::new(),
        }
    }

    /// All numbers below this one are answered.
    pub(crate) fn answered_below(&self) -> u64 {
        self.below
    }

    /// The next number; `None` while too many are unanswered.
    pub(crate) fn take(&mut self) -> Option<u64> {
        if self.answered.len() >= MAX_RESULTS {
            return None;
        }
        self.answered.push_back(false);
        Some(self.below + self.answered.len() as u64 - 1)
    }

    /// The answer to `number` has arrived, or is given up. Says whether there is room now that was not there before.
    pub(crate) fn done(&mut self, number: u64) -> bool {
        let was_full = self.answered.len() >= MAX_RESULTS;
        let Some(at) = number.checked_sub(self.below) else {
            return false;
        };
        if let Some(answered) = self.answered.get_mut(at as usize) {
            *answered = true;
        }
        while self.answered.front() == Some(&true) {
            self.answered.pop_front();
            self.below += 1;
        }
        was_full && self.answered.len() < MAX_RESULTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_the_window_follows_the_lowest() {
        let mut numbers = Numbers::new();
        let taken: Vec<u64> = (0..3).filter_map(|_| numbers.take()).collect();
        assert_eq!(taken, [1, 2, 3]);
        numbers.done(2);
        assert_eq!(numbers.answered_below(), 1);
        numbers.done(1);
        assert_eq!(numbers.answered_below(), 3);
        numbers.done(1);
        numbers.done(99);
        assert_eq!(numbers.answered_below(), 3);
        assert_eq!(numbers.take(), Some(4));
    }

    #[test]
    fn at_most_so_many_are_unanswered() {
        let mut numbers = Numbers::new();
        for _ in 0..MAX_RESULTS {
            assert!(numbers.take().is_some());
        }
        assert_eq!(numbers.take(), None);
        assert!(!numbers.done(2), "the lowest still stands in the way");
        assert_eq!(numbers.take(), None);
        assert!(numbers.done(1));
        assert_eq!(numbers.take(), Some(MAX_RESULTS as u64 + 1));
    }
}
