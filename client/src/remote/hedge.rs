//! Which member of a set is asked for a read, and when a second one is asked too. Pure.
//!
//! Reads go to the primary. One that is not answered for several times as long as reads took lately is also sent to
//! another member, and the first good answer counts; this is done for a small share of reads only, so that servers that
//! are slow because they have much to do do not get twice as much. Where the second member won, reads go to it alone from
//! then on, and now and then one of them looks whether the primary answers again.

use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::fop::Fop;
use mortar_protocol::ids::BrickId;

/// Shortest and longest wait before another member is asked.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// One of so many reads may be sent twice.
const SHARE: u32 = 20;
/// What is saved up of that at most, and at the beginning, in reads sent twice.
const SAVED: (u32, u32) = (32, 8);
/// A member that did not answer is left alone for so long, and twice as long each time it does not, up to the second.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Whether every in-sync member answers this, and it is asked for often.
pub(super) fn any_member_answers(fop: &Fop) -> bool {
    matches!(
        fop,
        Fop::Read { .. }
            | Fop::Open { .. }
            | Fop::Lookup { .. }
            | Fop::GetAttr { .. }
            | Fop::ReadDir { .. }
            | Fop::ReadLink { .. }
            | Fop::GetXattr { .. }
            | Fop::ListXattr { .. }
            | Fop::Seek { .. }
    )
}

/// A member that did not answer in time.
#[derive(Clone, Copy, Debug)]
struct Slow {
    member: BrickId,
    /// The one that did, and is asked now.
    instead: BrickId,
    /// When the slow one is tried again, and how long it was left alone before.
    until: Mono,
    rest: Duration,
}

/// What one client knows of the reads of one set.
#[derive(Debug)]
pub(super) struct Hedge {
    /// How long reads took lately, and by how much that differs, in nanoseconds.
    mean: u64,
    spread: u64,
    known: bool,
    /// Reads that may be sent twice, in parts of [`SHARE`].
    credit: u32,
    slow: Option<Slow>,
    /// Reads sent twice so far.
    count: u64,
}

impl Default for Hedge {
    fn default() -> Self {
        Self {
            mean: 0,
            spread: 0,
            known: false,
            credit: SAVED.1 * SHARE,
            slow: None,
            count: 0,
        }
    }
}

impl Hedge {
    /// The member to ask in place of `primary`, which is slow.
    pub(super) fn instead_of(&mut self, primary: BrickId, now: Mono) -> Option<BrickId> {
        let can_hedge = self.credit >= SHARE;
        let slow = self.slow.as_mut().filter(|slow| slow.member == primary)?;
        if now >= slow.until && can_hedge {
            // This read looks whether it answers again; the others do not wait for that.
            slow.rest = (slow.rest * 2).min(REST.1);
            slow.until = now.after(slow.rest);
            return None;
        }
        Some(slow.instead)
    }

    /// How long a read waits before another member is asked.
    pub(super) fn patience(&self) -> Duration {
        match self.known {
            true => {
                Duration::from_nanos(self.mean * 2 + self.spread * 4).clamp(PATIENCE.0, PATIENCE.1)
            }
            false => PATIENCE.1,
        }
    }

    /// A read waits too long for `first`: the member to ask too, if that may be done. The likeliest comes first in
    /// `others`.
    pub(super) fn second(
        &mut self,
        first: BrickId,
        others: impl Iterator<Item = BrickId>,
    ) -> Option<BrickId> {
        if self.credit < SHARE {
            return None;
        }
        let avoided = self.slow.map(|slow| slow.member);
        let mut chosen = None;
        for other in others.filter(|other| *other != first) {
            if Some(other) != avoided {
                chosen = Some(other);
                break;
            }
            chosen = chosen.or(Some(other));
        }
        if chosen.is_some() {
            self.credit -= SHARE;
            self.count += 1;
        }
        chosen
    }

    /// A member has answered a read so long after it was asked.
    pub(super) fn answered(&mut self, by: BrickId, took: Duration) {
        let took = took.as_nanos().min(1 << 40) as u64;
        match self.known {
            true => {
                let differs = took.abs_diff(self.mean);
                self.spread = self.spread - self.spread / 4 + differs / 4;
                self.mean = self.mean - self.mean / 8 + took / 8;
            }
            false => (self.mean, self.spread, self.known) = (took, took / 2, true),
        }
        self.credit = (self.credit + 1).min(SAVED.0 * SHARE);
        if self.slow.is_some_and(|slow| slow.member == by) {
            self.slow = None;
        }
    }

    /// Of two members asked, `by` was the one that answered, not `first`.
    pub(super) fn overtaken(&mut self, first: BrickId, by: BrickId, primary: BrickId, now: Mono) {
        if by == primary {
            self.slow = None;
            return;
        }
        let known = self.slow.filter(|slow| slow.member == primary);
        // The primary, or the one that was asked in its place.
        if first == primary || known.is_some() {
            let rest = known.map_or(REST.0, |slow| slow.rest);
            self.slow = Some(Slow {
                member: primary,
                instead: by,
                until: now.after(rest),
                rest,
            });
        }
    }

    /// A member asked in place of the primary had no answer.
    pub(super) fn refused(&mut self, by: BrickId) {
        if self.slow.is_some_and(|slow| slow.instead == by) {
            self.slow = None;
        }
    }

    /// Reads sent twice so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: BrickId = BrickId(1);
    const TWO: BrickId = BrickId(2);
    const THREE: BrickId = BrickId(3);
    const ALL: [BrickId; 3] = [ONE, TWO, THREE];

    fn at(millis: u64) -> Mono {
        Mono(1_000_000_000 + millis * 1_000_000)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// One that has seen reads of a millisecond.
    fn seasoned(reads: u32) -> Hedge {
        let mut hedge = Hedge::default();
        for _ in 0..reads {
            hedge.answered(ONE, ms(1));
        }
        hedge
    }

    #[test]
    fn patience_follows_what_reads_took_within_bounds() {
        assert_eq!(Hedge::default().patience(), PATIENCE.1);
        assert_eq!(seasoned(50).patience(), PATIENCE.0);
        let mut hedge = seasoned(50);
        for _ in 0..50 {
            hedge.answered(ONE, ms(40));
        }
        let patience = hedge.patience();
        assert!(patience > ms(75) && patience < ms(120), "{patience:?}");
        for _ in 0..50 {
            hedge.answered(ONE, Duration::from_secs(5));
        }
        assert_eq!(hedge.patience(), PATIENCE.1);
    }

    #[test]
    fn at_most_a_twentieth_of_many_reads_is_sent_twice() {
        let mut hedge = Hedge::default();
        for _ in 0..10_000 {
            // Every read is late, and every one is answered by the first.
            hedge.second(ONE, ALL.into_iter());
            hedge.answered(ONE, ms(3));
        }
        let sent = hedge.count();
        assert!((500..=508).contains(&sent), "{sent}");
        // Quiet times save up only so much.
        let mut hedge = seasoned(100_000);
        let burst = (0..1_000).filter(|_| hedge.second(ONE, ALL.into_iter()).is_some());
        assert_eq!(burst.count(), 32);
    }

    #[test]
    fn reads_leave_a_member_that_does_not_answer_and_one_looks_after_it() {
        let mut hedge = seasoned(1_000);
        assert_eq!(hedge.instead_of(ONE, at(0)), None);
        assert_eq!(hedge.second(ONE, ALL.into_iter()), Some(TWO));
        hedge.overtaken(ONE, TWO, ONE, at(10));
        assert_eq!(hedge.instead_of(ONE, at(11)), Some(TWO));
        assert_eq!(hedge.instead_of(THREE, at(11)), None, "another primary");
        // After a second one read is risked, then after two, four, ...
        let mut risked = Vec::new();
        for now in 11..40_000 {
            if hedge.instead_of(ONE, at(now)).is_none() {
                risked.push(now);
                assert_eq!(hedge.second(ONE, ALL.into_iter()), Some(TWO));
                hedge.overtaken(ONE, TWO, ONE, at(now));
            }
        }
        assert_eq!(risked, [1_010, 3_010, 7_010, 15_010, 31_010]);
        // It answers.
        hedge.answered(ONE, ms(1));
        assert_eq!(hedge.instead_of(ONE, at(40_000)), None);
    }

    #[test]
    fn a_member_asked_in_place_of_another_may_be_slow_too() {
        let mut hedge = seasoned(1_000);
        hedge.overtaken(ONE, TWO, ONE, at(0));
        // Not the one that is known to be slow.
        assert_eq!(hedge.second(TWO, ALL.into_iter()), Some(THREE));
        hedge.overtaken(TWO, THREE, ONE, at(5));
        assert_eq!(hedge.instead_of(ONE, at(6)), Some(THREE));
        // Unless there is no other.
        assert_eq!(hedge.second(TWO, [ONE, TWO].into_iter()), Some(ONE));
        hedge.overtaken(TWO, ONE, ONE, at(7));
        assert_eq!(hedge.instead_of(ONE, at(8)), None);
    }

    #[test]
    fn without_credit_nothing_is_risked() {
        let mut hedge = Hedge::default();
        hedge.overtaken(ONE, TWO, ONE, at(0));
        while hedge.second(THREE, ALL.into_iter()).is_some() {}
        assert_eq!(hedge.instead_of(ONE, at(60_000)), Some(TWO));
        assert_eq!(hedge.second(TWO, ALL.into_iter()), None);
    }
}
