//! The positions of a log, compressed by epoch, and how two logs are compared.
//!
//! An entry is identified by its (epoch, seq): within an epoch only its primary makes entries, and an append is taken
//! only behind an entry that both sides hold. So two logs that hold the same position agree on everything before it.

#[cfg(test)]
use mortar_protocol::ids::Epoch;
use mortar_protocol::ids::{Pos, Seq};
use mortar_protocol::peer::{History, MAX_HISTORY};

/// What can be asked of a [`History`].
pub trait Positions {
    /// The position of the entry at `seq`, if the history reaches there.
    fn at(&self, seq: Seq) -> Option<Pos>;
    /// Takes one entry in behind the newest one; false if it does not follow.
    fn push(&mut self, pos: Pos) -> bool;
    /// Drops everything behind `seq`.
    fn cut(&mut self, seq: Seq);
    /// Forgets what lies at or below `seq`, but that entry's own position.
    fn forget(&mut self, seq: Seq);
    /// The newest entry that both logs hold; `None` if they do not overlap or differ from their first on.
    fn common(&self, other: &History) -> Option<Pos>;
    /// Whether it is one that a sane brick can have.
    fn is_valid(&self) -> bool;
}

impl Positions for History {
    fn at(&self, seq: Seq) -> Option<Pos> {
        if seq == self.base.seq {
            return Some(self.base);
        }
        if seq < self.base.seq || seq > self.head.seq {
            return None;
        }
        let after = self.starts.partition_point(|start| start.seq <= seq);
        let epoch = self.starts.get(after.checked_sub(1)?)?.epoch;
        Some(Pos { epoch, seq })
    }

    fn push(&mut self, pos: Pos) -> bool {
        if pos.seq != self.head.seq.next() || pos.epoch < self.head.epoch {
            return false;
        }
        if self.head == self.base || pos.epoch > self.head.epoch {
            self.starts.push(pos);
        }
        self.head = pos;
        if self.starts.len() > MAX_HISTORY
            && let Some(first) = self.starts.get(MAX_HISTORY / 2)
        {
            self.forget(Seq(first.seq.0 - 1));
        }
        true
    }

    fn cut(&mut self, seq: Seq) {
        if let Some(head) = self.at(seq) {
            self.head = head;
            self.starts.retain(|start| start.seq <= seq);
        }
    }

    fn forget(&mut self, seq: Seq) {
        let Some(base) = self.at(seq) else { return };
        let epoch_after = self.at(seq.next()).map(|pos| pos.epoch);
        self.base = base;
        self.starts.retain(|start| start.seq > seq);
        if let Some(epoch) = epoch_after
            && self
                .starts
                .first()
                .is_none_or(|start| start.seq > seq.next())
        {
            self.starts.insert(
                0,
                Pos {
                    epoch,
                    seq: seq.next(),
                },
            );
        }
    }

    fn common(&self, other: &History) -> Option<Pos> {
        let from = self.base.seq.max(other.base.seq);
        let to = self.head.seq.min(other.head.seq);
        let mut agreed = None;
        // Positions change their epoch only at starts: it is enough to look at both sides of each.
        let mut points = vec![from, to];
        for start in self.starts.iter().chain(&other.starts) {
            points.extend([Seq(start.seq.0 - 1), start.seq]);
        }
        points.retain(|seq| (from..=to).contains(seq));
        points.sort_unstable();
        for seq in points {
            match (self.at(seq), other.at(seq)) {
                (Some(mine), Some(theirs)) if mine == theirs => agreed = Some(mine),
                _ => break,
            }
        }
        agreed
    }

    fn is_valid(&self) -> bool {
        let rises = self
            .starts
            .windows(2)
            .all(|pair| pair[0].epoch < pair[1].epoch && pair[0].seq < pair[1].seq);
        let first = self.starts.first();
        rises
            && self.starts.len() <= MAX_HISTORY
            && first.is_none_or(|first| {
                first.seq == self.base.seq.next() && first.epoch >= self.base.epoch
            })
            && match self.starts.last() {
                None => self.head == self.base,
                Some(last) => self.head.epoch == last.epoch && self.head.seq >= last.seq,
            }
            && self.head.seq.0 < u64::MAX / 2
    }
}

/// A history of these epochs, one entry each, from seq 1 on. For tests.
#[cfg(test)]
pub(crate) fn history_of(epochs: &[u64]) -> History {
    let mut history = History::default();
    for (index, epoch) in epochs.iter().enumerate() {
        assert!(history.push(pos(*epoch, index as u64 + 1)));
    }
    history
}

/// A position. For tests.
#[cfg(test)]
pub(crate) fn pos(epoch: u64, seq: u64) -> Pos {
    Pos {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_are_found_cut_and_forgotten() {
        let mut history = history_of(&[1, 1, 2, 2, 5]);
        assert_eq!(history.at(Seq(4)), Some(pos(2, 4)));
        history.forget(Seq(3));
        assert_eq!(history.at(Seq(2)), None);
        assert_eq!(history.at(Seq(3)), Some(pos(2, 3)));
        assert_eq!(history.at(Seq(4)), Some(pos(2, 4)));
        assert!(history.is_valid());
        history.cut(Seq(4));
        assert_eq!(history.head, pos(2, 4));
        assert!(history.is_valid() && history.push(pos(7, 5)));
        assert_eq!(history.at(Seq(5)), Some(pos(7, 5)));
    }

    #[test]
    fn common_point_of_logs_that_differ() {
        let mine = history_of(&[1, 1, 2, 2]);
        assert_eq!(mine.common(&history_of(&[1, 1, 1])), Some(pos(1, 2)));
        assert_eq!(mine.common(&history_of(&[])), Some(pos(0, 0)));
        let mut late = history_of(&[1, 1, 2, 2, 2]);
        late.forget(Seq(3));
        assert_eq!(mine.common(&late), Some(pos(2, 4)));
        assert_eq!(history_of(&[1, 1]).common(&late), None);
    }

    proptest! {
        #[test]
        fn common_is_what_comparing_entries_gives(
            shared in proptest::collection::vec(0u64..2, 0..6),
            mine in proptest::collection::vec(0u64..2, 0..5),
            theirs in proptest::collection::vec(0u64..2, 0..5),
            forget in 0u64..6,
        ) {
            // Epochs rise by the given steps; the tails take epochs of their own, as logs of different views do.
            let mut epoch = 1;
            let mut base: Vec<u64> = Vec::new();
            for step in shared { epoch += step; base.push(epoch); }
            let tail = |steps: &[u64], first: u64| {
                let mut log = base.clone();
                let mut epoch = epoch + first;
                for step in steps { epoch += step * 2; log.push(epoch); }
                log
            };
            let (a, b) = (tail(&mine, 1), tail(&theirs, 2));
            let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count() as u64;
            let (first, mut second) = (history_of(&a), history_of(&b));
            prop_assert_eq!(first.common(&second).map(|pos| pos.seq.0), Some(same));
            let kept = forget.min(second.head.seq.0);
            second.forget(Seq(kept));
            prop_assert!(second.is_valid());
            let expected = (kept <= same).then_some(same);
            prop_assert_eq!(first.common(&second).map(|pos| pos.seq.0), expected);
        }
    }
}
