//! Locks after an opening that may have lost some.

use mortar_protocol::fop::{LockHeld, LockKind, LockOutcome, LockRequest};

use super::*;
use LockKind::{Read, Unlock, Write};
use LockOutcome::{Busy, Granted, Queued};

/// Sessions 1 and 2 have the owners 1x and 2x.
struct Opened {
    v: Sets,
    id: InodeId,
}

type Range = (u64, LockKind, u64, u64);

impl Opened {
    fn new() -> Self {
        let mut v = Sets::new(1);
        v.sessions = vec![SessionId(1), SessionId(2)];
        let id = v.file(b"file").gfid.id;
        Self { v, id }
    }

    /// The set opens: these sessions are alive.
    fn open(&mut self, opening: u64, sessions: &[u64]) {
        let sessions = sessions.iter().copied().map(SessionId).collect();
        let executed = Executed {
            effects: vec![super::super::opening(Opening(opening), sessions)],
            body: Bytes::new(),
            reply: Reply::Done,
        };
        self.v.apply(0, &executed);
    }

    fn request(&self, (owner, kind, start, end): Range, wait: bool) -> LockRequest {
        LockRequest {
            id: self.id,
            owner,
            start,
            end,
            kind,
            pid: 1,
            wait,
        }
    }

    fn lock(&mut self, range: Range, wait: bool) -> Result<LockOutcome, Fault> {
        let request = self.request(range, wait);
        self.v.session = SessionId(range.0 / 10);
        self.v
            .run(0, Fop::Lock(request), b"")
            .map(|reply| match reply {
                Reply::Locked { outcome, .. } => outcome,
                other => panic!("{other:?}"),
            })
    }

    fn claim(
        &mut self,
        session: u64,
        opening: u64,
        ranges: &[Range],
    ) -> Result<Vec<(InodeId, u64)>, Fault> {
        let locks = ranges
            .iter()
            .map(|range| self.request(*range, false))
            .collect();
        self.v.session = SessionId(session);
        let opening = Opening(opening);
        let claimed = self.v.run(0, Fop::Claim { opening, locks }, b"");
        claimed.map(|reply| match reply {
            Reply::Claimed { lost } => lost,
            other => panic!("{other:?}"),
        })
    }

    /// What the set asks of a session.
    fn wanted(&mut self, session: u64) -> Option<Opening> {
        self.v.session = SessionId(session);
        let renew = Fop::Renew {
            open: Vec::new(),
            released: Vec::new(),
        };
        match self.v.ask(0, renew).unwrap().0 {
            Reply::Renewed { claim, .. } => claim,
            other => panic!("{other:?}"),
        }
    }

    fn in_the_way(&mut self, range: Range) -> Result<Option<LockHeld>, Fault> {
        let request = self.request(range, false);
        self.v.session = SessionId(range.0 / 10);
        let told = self.v.ask(0, Fop::LockTest(request));
        told.map(|(reply, _)| match reply {
            Reply::Lock(held) => held,
            other => panic!("{other:?}"),
        })
    }

    fn end(&mut self, session: u64) {
        self.v.session = SessionId(session);
        self.v.run(0, Fop::SessionEnd, b"").unwrap();
    }
}

const WAITED_FOR: Result<LockOutcome, Fault> = Err(Fault::NotServing);

#[test]
fn no_lock_is_granted_until_every_session_has_claimed() {
    let mut o = Opened::new();
    o.lock((11, Write, 0, 9), false).unwrap();
    o.open(2, &[1, 2]);
    assert_eq!(
        (o.wanted(1), o.wanted(2)),
        (Some(Opening(2)), Some(Opening(2)))
    );
    // Session 3 began after the opening: it has nothing to claim, and waits like everybody.
    for owner in [11, 21, 31] {
        assert_eq!(o.lock((owner, Read, 50, 59), false), WAITED_FOR);
        assert_eq!(o.lock((owner, Read, 50, 59), true), WAITED_FOR);
        assert_eq!(o.in_the_way((owner, Read, 50, 59)), Err(Fault::NotServing));
    }
    assert_eq!(
        o.lock((11, Unlock, 0, 4), false),
        WAITED_FOR,
        "what is released is part of what is claimed"
    );
    assert_eq!(o.claim(1, 2, &[(11, Write, 0, 9)]), Ok(vec![]));
    assert_eq!((o.wanted(1), o.wanted(2)), (None, Some(Opening(2))));
    assert_eq!(o.lock((11, Unlock, 0, 4), false), Ok(Granted));
    assert_eq!(o.lock((11, Write, 0, 4), false), WAITED_FOR);
    assert_eq!(o.claim(2, 2, &[]), Ok(vec![]));
    assert_eq!(o.lock((21, Write, 0, 9), false), Ok(Busy));
    assert_eq!(o.lock((21, Write, 0, 4), false), Ok(Granted));
    let left = o.v.sets[0].records.keys().filter(|key| key[0] == b'W');
    assert_eq!(left.count(), 0);
}

#[test]
fn what_is_claimed_counts_and_not_what_the_log_still_says() {
    let mut o = Opened::new();
    // Session 1 released this and session 2 took it; the log lost both.
    o.lock((11, Write, 0, 9), false).unwrap();
    o.open(2, &[1, 2]);
    assert_eq!(o.claim(2, 2, &[(21, Write, 0, 9)]), Ok(vec![]));
    assert_eq!(o.claim(1, 2, &[]), Ok(vec![]));
    let held = o.in_the_way((12, Read, 0, 0)).unwrap().expect("a lock");
    assert_eq!((held.session, held.start, held.end), (SessionId(2), 0, 9));
    assert_eq!(o.lock((12, Write, 10, 19), false), Ok(Granted));
}

#[test]
fn what_cannot_be_claimed_is_lost() {
    let mut o = Opened::new();
    o.open(2, &[1, 2]);
    assert_eq!(o.claim(1, 2, &[(11, Write, 0, 9)]), Ok(vec![]));
    // Of two that claim the same, the second has lost it; what it also holds there stays.
    let claims = [(21, Write, 5, 14), (22, Read, 20, 29)];
    assert_eq!(o.claim(2, 2, &claims), Ok(vec![(o.id, 21)]));
    assert_eq!(o.claim(2, 2, &claims), Ok(vec![(o.id, 21)]), "repeated");
    assert_eq!(o.lock((12, Write, 20, 20), false), Ok(Busy));
    // A file that is not there any more has no locks.
    o.open(3, &[1]);
    let gone = std::mem::replace(&mut o.id, InodeId(0x77));
    assert_eq!(
        o.claim(1, 3, &[(11, Write, 0, 9)]),
        Ok(vec![(InodeId(0x77), 11)])
    );
    o.id = gone;
    assert_eq!(o.lock((21, Write, 0, 9), false), Ok(Granted));
}

#[test]
fn who_has_ended_is_not_waited_for_and_nobody_gets_its_locks_meanwhile() {
    let mut o = Opened::new();
    o.lock((11, Write, 0, 9), false).unwrap();
    assert_eq!(o.lock((21, Write, 0, 9), true), Ok(Queued));
    o.open(2, &[1, 2, 3]);
    o.end(1);
    // Session 3 may have been given the lock before the opening.
    assert_eq!(o.claim(3, 2, &[(31, Write, 0, 9)]), Ok(vec![]));
    assert_eq!(o.claim(2, 2, &[]), Ok(vec![]));
    assert_eq!(o.lock((21, Write, 0, 9), true), Ok(Queued), "asked again");
    assert_eq!(o.lock((31, Unlock, 0, 9), false), Ok(Granted));
    assert_eq!(o.lock((22, Read, 0, 9), false), Ok(Busy));
}

#[test]
fn a_claim_counts_for_its_opening_alone() {
    let mut o = Opened::new();
    o.open(2, &[1, 2]);
    o.open(3, &[1, 2]);
    assert_eq!(o.wanted(1), Some(Opening(3)));
    assert_eq!(o.claim(1, 2, &[]), Err(Fault::Refused(Errno::EAGAIN)));
    assert_eq!(o.claim(1, 3, &[]), Ok(vec![]));
    // A late copy of the first claim takes nothing away.
    assert_eq!(o.claim(1, 2, &[]), Ok(vec![]));
    assert_eq!(o.claim(2, 3, &[(21, Write, 0, 9)]), Ok(vec![]));
    assert_eq!(o.claim(2, 3, &[]), Ok(vec![]));
    assert_eq!(o.lock((11, Write, 0, 9), false), Ok(Busy));
    o.open(4, &[]);
    assert_eq!(o.lock((11, Write, 20, 29), false), Ok(Granted));
}

#[test]
fn a_claim_that_is_no_list_of_locks_is_refused() {
    let mut o = Opened::new();
    o.open(2, &[1]);
    let refused = Err(Fault::Refused(Errno::EINVAL));
    assert_eq!(o.claim(1, 2, &[(11, Write, 5, 4)]), refused);
    assert_eq!(o.claim(1, 2, &[(11, Unlock, 0, 4)]), refused);
    let many = vec![(11, Read, 0, 4); mortar_protocol::limits::MAX_CLAIMS + 1];
    assert_eq!(o.claim(1, 2, &many), refused);
}
