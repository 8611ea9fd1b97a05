//! The locks this client holds on one set: what it claims again when the set may have lost some (P8). Pure.
//!
//! A lock counts from when the answer that grants it is taken in, and no longer from when its release is asked for. A
//! claim says everything that counts; what an answer grants that was asked for before a claim was made, the set may
//! have dropped with it. Such an answer does not count: the lock is asked for again.

use std::collections::BTreeMap;

use mortar_protocol::fop::{LockHeld, LockKind, LockRequest};
use mortar_protocol::ids::{InodeId, SessionId};
use mortar_protocol::limits::MAX_CLAIMS;
use mortar_protocol::locks;

/// See the module.
#[derive(Default, Debug)]
pub struct Book {
    session: SessionId,
    files: BTreeMap<InodeId, Vec<LockHeld>>,
    claims: u64,
}

/// When a lock was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    session: SessionId,
    claims: u64,
}

/// Everything held, to be claimed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Locks to claim.
    pub locks: Vec<LockRequest>,
    /// What is too much to be claimed, and lost: inodes and owners.
    pub lost: Vec<(InodeId, u64)>,
}

impl Book {
    /// A session's locks end with it.
    fn follow(&mut self, session: SessionId) {
        if self.session != session {
            self.session = session;
            self.files.clear();
        }
    }

    fn change(&mut self, id: InodeId, change: impl FnOnce(&mut Vec<LockHeld>)) {
        let held = self.files.entry(id).or_default();
        change(held);
        if held.is_empty() {
            self.files.remove(&id);
        }
    }

    /// A lock call is about to be sent, or sent again after its answer did not count.
    pub fn asks(&mut self, session: SessionId, request: &LockRequest) -> Asked {
        self.follow(session);
        // With `wait` it withdraws a queued request.
        if request.kind == LockKind::Unlock && !request.wait {
            let range = lock(session, request);
            self.change(request.id, |held| locks::free(held, &range));
        }
        Asked {
            session,
            claims: self.claims,
        }
    }

    /// The call was answered with "granted". Says whether that counts.
    pub fn granted(&mut self, session: SessionId, asked: Asked, request: &LockRequest) -> bool {
        self.follow(session);
        let now = Asked {
            session,
            claims: self.claims,
        };
        if request.kind == LockKind::Unlock {
            return true;
        }
        if asked == now {
            let new = lock(session, request);
            self.change(request.id, |held| locks::take(held, new));
        }
        asked == now
    }

    /// Makes a claim of everything held.
    pub fn claim(&mut self, session: SessionId) -> Claim {
        self.follow(session);
        self.claims += 1;
        let all = self.files.iter();
        let mut all = all.flat_map(|(id, held)| held.iter().map(move |held| (*id, held)));
        let claimed = all.by_ref().take(MAX_CLAIMS);
        let locks = claimed.map(|(id, held)| request(id, held)).collect();
        let lost = all.map(|(id, held)| (id, held.owner)).collect();
        Claim { locks, lost }
    }

    /// These are lost.
    pub fn lost(&mut self, lost: &[(InodeId, u64)]) {
        for (id, owner) in lost {
            self.change(*id, |held| held.retain(|lock| lock.owner != *owner));
        }
    }
}

fn lock(session: SessionId, request: &LockRequest) -> LockHeld {
    LockHeld {
        session,
        owner: request.owner,
        start: request.start,
        end: request.end,
        kind: request.kind,
        pid: request.pid,
    }
}

fn request(id: InodeId, held: &LockHeld) -> LockRequest {
    LockRequest {
        id,
        owner: held.owner,
        start: held.start,
        end: held.end,
        kind: held.kind,
        pid: held.pid,
        wait: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: SessionId = SessionId(7);

    fn call(owner: u64, kind: LockKind, start: u64, end: u64) -> LockRequest {
        LockRequest {
            id: InodeId(9),
            owner,
            start,
            end,
            kind,
            pid: 1,
            wait: false,
        }
    }

    fn take(book: &mut Book, request: &LockRequest) {
        let asked = book.asks(ME, request);
        assert!(book.granted(ME, asked, request));
    }

    fn ranges(book: &mut Book) -> Vec<(u64, u64, u64)> {
        let claim = book.claim(ME).locks;
        claim
            .iter()
            .map(|lock| (lock.owner, lock.start, lock.end))
            .collect()
    }

    #[test]
    fn what_is_held_is_claimed_and_what_is_being_released_is_not() {
        let mut book = Book::default();
        take(&mut book, &call(1, LockKind::Write, 0, 99));
        take(&mut book, &call(2, LockKind::Read, 200, 299));
        book.asks(ME, &call(1, LockKind::Unlock, 40, 49));
        assert_eq!(ranges(&mut book), [(1, 0, 39), (1, 50, 99), (2, 200, 299)]);
        // A request that waits is withdrawn: what is held stays.
        let mut withdraw = call(2, LockKind::Unlock, 0, u64::MAX);
        withdraw.wait = true;
        book.asks(ME, &withdraw);
        book.asks(ME, &call(1, LockKind::Unlock, 0, u64::MAX));
        assert_eq!(ranges(&mut book), [(2, 200, 299)]);
    }

    #[test]
    fn a_lock_asked_for_before_a_claim_and_answered_after_it_does_not_count() {
        let mut book = Book::default();
        let request = call(1, LockKind::Write, 0, 9);
        let asked = book.asks(ME, &request);
        assert_eq!(ranges(&mut book), []);
        assert!(!book.granted(ME, asked, &request));
        assert_eq!(ranges(&mut book), []);
        take(&mut book, &request);
        assert_eq!(ranges(&mut book), [(1, 0, 9)]);
    }

    #[test]
    fn locks_go_with_their_session_or_when_the_set_says_so() {
        let mut book = Book::default();
        take(&mut book, &call(1, LockKind::Write, 0, 9));
        take(&mut book, &call(2, LockKind::Write, 20, 29));
        book.lost(&[(InodeId(9), 1)]);
        assert_eq!(ranges(&mut book), [(2, 20, 29)]);
        let request = call(3, LockKind::Read, 50, 59);
        let asked = book.asks(ME, &request);
        let next = SessionId(8);
        assert!(!book.granted(next, asked, &request));
        assert_eq!(book.claim(next).locks, []);
    }

    #[test]
    fn more_than_a_claim_can_say_is_lost() {
        let mut book = Book::default();
        for at in 0..MAX_CLAIMS as u64 + 3 {
            take(&mut book, &call(at, LockKind::Read, at, at));
        }
        let claim = book.claim(ME);
        assert_eq!((claim.locks.len(), claim.lost.len()), (MAX_CLAIMS, 3));
    }
}
