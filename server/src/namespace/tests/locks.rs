//! Range locks.

use mortar_protocol::fop::{LockHeld, LockKind, LockOutcome, LockRequest};

use super::*;
use LockKind::{Read, Unlock, Write};
use LockOutcome::{Busy, Granted, Queued};

struct Locked {
    v: Sets,
    id: InodeId,
}

impl Locked {
    fn new() -> Self {
        let mut v = Sets::new(1);
        v.sessions = vec![SessionId(1), SessionId(2)];
        let id = v.file(b"file").gfid.id;
        Self { v, id }
    }

    fn request(&self, owner: u64, kind: LockKind, start: u64, end: u64, wait: bool) -> LockRequest {
        LockRequest {
            id: self.id,
            owner,
            start,
            end,
            kind,
            pid: 40 + owner as u32,
            wait,
        }
    }

    /// Sessions 1 and 2 have the owners 1x and 2x.
    fn lock(
        &mut self,
        owner: u64,
        kind: LockKind,
        start: u64,
        end: u64,
        wait: bool,
    ) -> LockOutcome {
        let request = self.request(owner, kind, start, end, wait);
        self.v.session = SessionId(owner / 10);
        match self.v.run(0, Fop::Lock(request), b"").unwrap() {
            Reply::Locked { outcome, attr } => {
                assert_eq!(attr.is_some(), outcome == Granted);
                outcome
            }
            other => panic!("{other:?}"),
        }
    }

    fn waits(&mut self, owner: u64, kind: LockKind, start: u64, end: u64) -> LockOutcome {
        let request = self.request(owner, kind, start, end, true);
        self.v.session = SessionId(owner / 10);
        match self.v.ask(0, Fop::LockWait(request)).unwrap().0 {
            Reply::Locked { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn in_the_way(&mut self, owner: u64, kind: LockKind, start: u64, end: u64) -> Option<LockHeld> {
        let request = self.request(owner, kind, start, end, false);
        self.v.session = SessionId(owner / 10);
        match self.v.ask(0, Fop::LockTest(request)).unwrap().0 {
            Reply::Lock(held) => held,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn readers_share_and_writers_exclude() {
    let mut l = Locked::new();
    assert_eq!(l.lock(11, Read, 0, 9, false), Granted);
    assert_eq!(l.lock(21, Read, 5, 20, false), Granted);
    assert_eq!(l.lock(12, Write, 9, 9, false), Busy);
    assert_eq!(l.lock(12, Write, 21, u64::MAX, false), Granted);
    let held = l.in_the_way(22, Read, 15, 30).unwrap();
    assert_eq!((held.owner, held.kind, held.pid), (12, Write, 52));
    assert_eq!(l.in_the_way(22, Read, 0, 20), None);
    let bad = l.request(11, Read, 5, 4, false);
    l.v.session = SessionId(1);
    assert_eq!(l.v.run(0, Fop::Lock(bad), b""), refused(Errno::EINVAL));
}

#[test]
fn an_owner_splits_merges_and_changes_its_ranges() {
    let mut l = Locked::new();
    l.lock(11, Write, 0, 99, false);
    l.lock(11, Unlock, 40, 49, false);
    assert_eq!(l.lock(21, Write, 40, 49, false), Granted);
    assert_eq!(l.lock(21, Write, 39, 49, false), Busy);
    l.lock(11, Read, 50, 99, false);
    assert_eq!(l.lock(22, Read, 60, 70, false), Granted);
    assert_eq!(l.lock(11, Write, 50, 99, false), Busy);
    l.lock(22, Unlock, 0, u64::MAX, false);
    l.lock(21, Unlock, 0, u64::MAX, false);
    l.lock(11, Write, 40, 99, false);
    let held = l.in_the_way(21, Read, 50, 50).unwrap();
    assert_eq!((held.start, held.end), (0, 99), "merged");
    l.lock(11, Unlock, 0, u64::MAX, false);
    let locks = l.v.sets[0].records.keys().filter(|key| key[0] == b'L');
    assert_eq!(locks.count(), 0);
}

#[test]
fn waiting_requests_are_granted_in_order() {
    let mut l = Locked::new();
    l.lock(11, Write, 0, 9, false);
    assert_eq!(l.lock(21, Write, 0, 9, true), Queued);
    assert_eq!(l.lock(21, Write, 0, 9, true), Queued, "asked again");
    assert_eq!(l.lock(22, Read, 5, 5, true), Queued);
    assert_eq!(l.waits(21, Write, 0, 9), Queued);
    l.lock(11, Unlock, 0, 9, false);
    assert_eq!(l.waits(21, Write, 0, 9), Granted);
    assert_eq!(l.waits(22, Read, 5, 5), Queued);
    l.lock(21, Read, 0, 9, false);
    assert_eq!(l.waits(22, Read, 5, 5), Granted, "the lock became weaker");
}

#[test]
fn a_wait_can_be_withdrawn() {
    let mut l = Locked::new();
    l.lock(11, Read, 0, 9, false);
    l.lock(21, Read, 0, 9, false);
    assert_eq!(l.lock(21, Write, 0, 9, true), Queued);
    assert_eq!(l.lock(21, Unlock, 0, 9, true), Busy, "withdrawn");
    assert_eq!(l.waits(21, Read, 0, 9), Granted, "what it held stays");
    assert_eq!(l.waits(21, Write, 0, 9), Busy);
    l.lock(21, Unlock, 0, 9, false);
    assert_eq!(l.lock(22, Write, 0, 9, true), Queued);
    l.lock(11, Unlock, 0, 9, false);
    assert_eq!(l.lock(22, Unlock, 0, 9, true), Granted, "too late");
}

#[test]
fn locks_end_with_their_session() {
    let mut l = Locked::new();
    l.lock(11, Write, 0, 9, false);
    l.lock(12, Write, 20, 29, true);
    assert_eq!(l.lock(21, Write, 0, 9, true), Queued);
    l.v.session = SessionId(1);
    l.v.run(0, Fop::SessionEnd, b"").unwrap();
    assert_eq!(l.waits(21, Write, 0, 9), Granted);
    assert_eq!(l.lock(22, Write, 20, 29, false), Granted);
}
