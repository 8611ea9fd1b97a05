//! What a client made or was shown on one set, and how far it is flushed: what fsync has to name (P8).

use std::collections::BTreeMap;

use mortar_protocol::ids::{InodeId, Mark, Opening, Seq};

/// Changed files remembered before those that are flushed meanwhile are forgotten.
const PRUNE_FROM: usize = 1_024;

/// Marks of one set. Pure.
///
/// A mark of an earlier opening than the newest known is kept as it is until it is synced: naming it is how a loss is
/// noticed.
#[derive(Default, Debug)]
pub struct Marks {
    seen: Mark,
    flushed: Mark,
    names: Mark,
    files: BTreeMap<InodeId, Mark>,
    prune_at: usize,
}

/// What a reply told about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Nothing that fsync is about.
    Other,
    /// Names were made or shown.
    Names,
    /// An inode was changed.
    File(InodeId),
}

impl Marks {
    /// Takes note of a reply: where the log stood and how far it was flushed.
    pub fn note(&mut self, mark: Mark, flushed: Seq, told: Told) {
        if mark.opening > self.seen.opening {
            self.prune();
        }
        self.seen = self.seen.max(mark);
        self.flushed = self.flushed.max(Mark {
            opening: mark.opening,
            seq: flushed,
        });
        if mark.seq == Seq(0) || self.is_flushed(mark) {
            return;
        }
        match told {
            Told::Other => {}
            Told::Names => self.names = raised(self.names, mark),
            Told::File(id) => {
                let file = self.files.entry(id).or_default();
                *file = raised(*file, mark);
                if self.files.len() >= self.prune_at.max(PRUNE_FROM) {
                    self.prune();
                }
            }
        }
    }

    fn prune(&mut self) {
        let flushed = self.flushed;
        self.files.retain(|_, mark| !covers(flushed, *mark));
        if covers(flushed, self.names) {
            self.names = Mark::default();
        }
        self.prune_at = self.files.len() * 2;
    }

    fn is_flushed(&self, mark: Mark) -> bool {
        covers(self.flushed, mark)
    }

    /// What fsync of a file has to wait for on a set that holds a part of it; `None` if all is flushed.
    pub fn of_file(&self, id: InodeId) -> Option<Mark> {
        let mark = match self.files.get(&id) {
            Some(file) if file.opening < self.seen.opening => *file,
            _ => self.seen,
        };
        self.pending(mark)
    }

    /// What has to be waited for so that all names made or shown are flushed; `None` if they are.
    pub fn of_names(&self) -> Option<Mark> {
        self.pending(self.names)
    }

    fn pending(&self, mark: Mark) -> Option<Mark> {
        (mark.seq > Seq(0) && !self.is_flushed(mark)).then_some(mark)
    }

    /// Everything up to `mark` is flushed, or known to be lost (which is told once).
    pub fn synced(&mut self, mark: Mark, lost: bool) {
        if !lost {
            self.flushed = self.flushed.max(mark);
        }
        if self.names <= mark {
            self.names = Mark::default();
        }
    }

    /// The same for a file's own mark.
    pub fn synced_file(&mut self, id: InodeId, mark: Mark) {
        if self.files.get(&id).is_some_and(|file| *file <= mark) {
            self.files.remove(&id);
        }
    }

    /// Highest mark seen.
    pub fn seen(&self) -> Mark {
        self.seen
    }

    /// Opening of the set as last seen.
    pub fn opening(&self) -> Opening {
        self.seen.opening
    }
}

/// A position of an earlier opening never counts as flushed by a later one.
fn covers(flushed: Mark, mark: Mark) -> bool {
    flushed.opening == mark.opening && mark.seq <= flushed.seq
}

fn raised(old: Mark, new: Mark) -> Mark {
    if old.seq > Seq(0) && old.opening < new.opening {
        old
    } else {
        old.max(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(opening: u64, seq: u64) -> Mark {
        Mark {
            opening: Opening(opening),
            seq: Seq(seq),
        }
    }

    #[test]
    fn flushed_changes_need_no_sync() {
        let mut marks = Marks::default();
        let id = InodeId(7);
        assert_eq!(marks.of_file(id), None);
        marks.note(mark(0, 5), Seq(3), Told::File(id));
        assert_eq!(marks.of_file(id), Some(mark(0, 5)));
        assert_eq!(marks.of_names(), None);
        marks.note(mark(0, 6), Seq(6), Told::Names);
        assert_eq!((marks.of_file(id), marks.of_names()), (None, None));
    }

    #[test]
    fn what_an_opening_lost_is_named_once() {
        let mut marks = Marks::default();
        let (mine, other) = (InodeId(7), InodeId(8));
        marks.note(mark(0, 5), Seq(3), Told::File(mine));
        marks.note(mark(0, 2), Seq(3), Told::File(other));
        // The set opens without entries 4 and 5, and goes on.
        marks.note(mark(1, 9), Seq(9), Told::Names);
        assert_eq!(marks.of_file(mine), Some(mark(0, 5)));
        assert_eq!(marks.of_file(other), None);
        marks.synced(mark(0, 5), true);
        marks.synced_file(mine, mark(0, 5));
        assert_eq!(marks.of_file(mine), None);
    }

    #[test]
    fn names_of_an_earlier_opening_stay_until_synced() {
        let mut marks = Marks::default();
        marks.note(mark(0, 5), Seq(0), Told::Names);
        marks.note(mark(1, 7), Seq(7), Told::Names);
        assert_eq!(marks.of_names(), Some(mark(0, 5)));
        marks.synced(mark(0, 5), true);
        assert_eq!(marks.of_names(), None);
    }

    #[test]
    fn the_table_of_changed_files_stays_small() {
        let mut marks = Marks::default();
        for seq in 1..100_000 {
            marks.note(mark(0, seq), Seq(seq - 1), Told::File(InodeId(seq)));
        }
        assert!(marks.files.len() <= PRUNE_FROM);
    }
}
