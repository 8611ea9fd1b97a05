//! Data that cannot be read: another member may have it, but a person should know of it. Repeats are gathered.

use std::sync::atomic::{AtomicU64, Ordering};

use mortar_protocol::entry::Object;
use mortar_protocol::env::Mono;
use mortar_protocol::ids::BrickId;
use mortar_protocol::watch::{Gather, and_more, place_of};
use parking_lot::Mutex;

use super::ReadError;

/// What a brick has told of its unreadable data. Reads end on many threads.
#[derive(Debug)]
pub(crate) struct Unreadable {
    brick: BrickId,
    /// The time as of the last [`Self::tick`].
    now: AtomicU64,
    told: Mutex<Gather<u64>>,
}

impl Unreadable {
    pub(super) fn new(brick: BrickId) -> Self {
        Self {
            brick,
            now: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// A range could not be read.
    pub(crate) fn met(&self, object: Object, offset: u64, len: usize, error: &ReadError) {
        if let Some(line) = self.line(object, offset, len, error) {
            tracing::error!("{line}");
        }
    }

    /// The line, unless one like it was written a moment ago.
    fn line(&self, object: Object, offset: u64, len: usize, error: &ReadError) -> Option<String> {
        let (brick, gfid, inode) = (self.brick, object.id.gfid_half(), object.id.0);
        let now = Mono(self.now.load(Ordering::Relaxed));
        let more = self.told.lock().offer(&place_of(inode), now)?;
        let (shard, more) = (object.shard, and_more(more));
        Some(format!(
            "data cannot be read: brick={brick} gfid={gfid} inode={inode} shard={shard} offset={offset} len={len}: \
             {error}{more}"
        ))
    }

    /// Tells what was only counted, once its time has come.
    pub(super) fn tick(&self, now: Mono) {
        self.now.fetch_max(now.0, Ordering::Relaxed);
        for more in self.due(now) {
            tracing::error!(brick = %self.brick, "{more} more reads met data that cannot be read");
        }
    }

    fn due(&self, now: Mono) -> Vec<u64> {
        let due = self.told.lock().due(now);
        due.into_iter().map(|(_, more)| more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::ids::InodeId;

    #[test]
    fn one_line_in_ten_seconds_for_a_file() {
        let unreadable = Unreadable::new(BrickId(7));
        let line = |id, offset| {
            let object = Object {
                id: InodeId(id),
                shard: 2,
            };
            unreadable.line(object, offset, 512, &ReadError::Corrupt)
        };
        let at = |secs: u64| Mono(secs * 1_000_000_000);
        unreadable.tick(at(1));
        let first = line(4, 4_096).expect("a line");
        for part in [
            &BrickId(7).to_string(),
            &InodeId(4).gfid_half(),
            "shard=2",
            "offset=4096",
        ] {
            assert!(first.contains(part), "{part} in {first}");
        }
        assert!(line(4, 8_192).is_none() && line(4, 4_096).is_none());
        assert!(line(5, 0).is_some(), "another file");
        assert!(unreadable.due(at(10)).is_empty());
        assert_eq!(unreadable.due(at(11)), [2]);
        unreadable.tick(at(12));
        line(4, 0).expect("a line");
        assert!(line(4, 0).is_none());
        unreadable.now.store(at(30).0, Ordering::Relaxed);
        let next = line(4, 0).expect("a line");
        assert!(next.contains("(1 more"), "{next}");
    }
}
