//! Range locks. An owner is a number within a session; a session's locks end with it.

use std::ops::ControlFlow;

use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{LockHeld, LockKind, LockOutcome, LockRequest, Reply};
use mortar_protocol::ids::{InodeId, SessionId};

use super::records::{self, Locks, Waiting};
use super::working::Working;
use super::{Context, Executed, State};

/// Most locks and waiting requests of one file.
const MAX_LOCKS: usize = 4_096;

/// Takes, queues, withdraws or releases a lock.
///
/// # Errors
/// ESTALE without the inode, EINVAL for a bad range, ENOLCK if the file has too many.
pub(super) fn execute(
    state: &dyn State,
    cx: &Context<'_>,
    request: &LockRequest,
) -> Result<Executed, Fault> {
    if request.start > request.end {
        return Err(Errno::EINVAL.into());
    }
    let mut work = Working::new(state, cx, cx.time);
    let attr = work.attr(request.id)?;
    let attr = attr.ok_or(Fault::Refused(Errno::ESTALE))?;
    let before = load(&work, request.id)?;
    let mut locks = before.clone();
    let outcome = locks.request(cx.session, request);
    if locks.held.len() + locks.waiting.len() > MAX_LOCKS {
        return Err(Errno::ENOLCK.into());
    }
    if locks != before {
        store(&mut work, request.id, &locks);
    }
    let granted = outcome == LockOutcome::Granted;
    Ok(work.finish_anyway(Reply::Locked {
        outcome,
        attr: granted.then_some(attr),
    }))
}

/// The first lock in the way of a request.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn test(
    state: &dyn State,
    cx: &Context<'_>,
    request: &LockRequest,
) -> Result<Reply, Fault> {
    let work = Working::new(state, cx, cx.time);
    let locks = load(&work, request.id)?;
    let wanted = waiting(cx.session, request);
    Ok(Reply::Lock(locks.conflict(&wanted).cloned()))
}

/// How a queued request stands.
///
/// # Errors
/// ESTALE without the inode.
pub(super) fn wait(
    state: &dyn State,
    cx: &Context<'_>,
    request: &LockRequest,
) -> Result<Reply, Fault> {
    let mut work = Working::new(state, cx, cx.time);
    let attr = work.attr(request.id)?;
    let attr = attr.ok_or(Fault::Refused(Errno::ESTALE))?;
    let locks = load(&work, request.id)?;
    let wanted = waiting(cx.session, request);
    let outcome = if locks.waiting.contains(&wanted) {
        LockOutcome::Queued
    } else if locks.covers(&wanted) {
        LockOutcome::Granted
    } else {
        LockOutcome::Busy
    };
    let granted = outcome == LockOutcome::Granted;
    Ok(Reply::Locked {
        outcome,
        attr: granted.then_some(attr),
    })
}

/// Releases all locks of the ending session.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn end_session(work: &mut Working<'_>) -> Result<(), Fault> {
    let session = work.cx.session;
    let (mut found, mut fault) = (Vec::new(), None);
    work.state.scan(b"L", b"M", &mut |key, value| {
        match (records::parse_id(key), records::decode::<Locks>(value)) {
            (Some(id), Ok(locks)) => found.push((id, locks)),
            _ => {
                fault = Some(Fault::Corrupt);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(fault) = fault {
        return Err(fault);
    }
    for (id, mut locks) in found {
        let before = locks.held.len() + locks.waiting.len();
        locks.held.retain(|held| held.session != session);
        locks.waiting.retain(|waiting| waiting.session != session);
        if locks.held.len() + locks.waiting.len() < before {
            locks.promote();
            store(work, id, &locks);
        }
    }
    Ok(())
}

fn load(work: &Working<'_>, id: InodeId) -> Result<Locks, Fault> {
    match work.get(&records::locks_key(id))? {
        Some(value) => records::decode(&value),
        None => Ok(Locks::default()),
    }
}

fn store(work: &mut Working<'_>, id: InodeId, locks: &Locks) {
    let key = records::locks_key(id);
    match *locks == Locks::default() {
        true => work.del(key),
        false => work.put(key, records::encode(locks)),
    }
}

fn waiting(session: SessionId, request: &LockRequest) -> Waiting {
    Waiting {
        session,
        owner: request.owner,
        start: request.start,
        end: request.end,
        kind: request.kind,
        pid: request.pid,
    }
}

impl Locks {
    fn request(&mut self, session: SessionId, request: &LockRequest) -> LockOutcome {
        let wanted = waiting(session, request);
        let same = |other: &Waiting| {
            (other.session, other.owner, other.start, other.end)
                == (session, request.owner, request.start, request.end)
        };
        if request.kind == LockKind::Unlock {
            let queued = self.waiting.len();
            self.waiting.retain(|other| !same(other));
            if request.wait {
                let held = self.waiting.len() == queued && self.holds_any(&wanted);
                return if held {
                    LockOutcome::Granted
                } else {
                    LockOutcome::Busy
                };
            }
            self.free(&wanted);
            self.promote();
            return LockOutcome::Granted;
        }
        if self.conflict(&wanted).is_some() {
            if !request.wait {
                return LockOutcome::Busy;
            }
            if !self.waiting.contains(&wanted) {
                self.waiting.push(wanted);
            }
            return LockOutcome::Queued;
        }
        self.waiting.retain(|other| *other != wanted);
        self.take(&wanted);
        // A lock that became weaker may let others in.
        self.promote();
        LockOutcome::Granted
    }

    fn conflict(&self, wanted: &Waiting) -> Option<&LockHeld> {
        self.held.iter().find(|held| {
            (held.session, held.owner) != (wanted.session, wanted.owner)
                && held.start <= wanted.end
                && wanted.start <= held.end
                && (held.kind == LockKind::Write || wanted.kind == LockKind::Write)
        })
    }

    fn own(held: &LockHeld, wanted: &Waiting) -> bool {
        (held.session, held.owner) == (wanted.session, wanted.owner)
    }

    fn holds_any(&self, wanted: &Waiting) -> bool {
        self.held.iter().any(|held| {
            Self::own(held, wanted) && held.start <= wanted.end && wanted.start <= held.end
        })
    }

    /// Whether the owner holds the whole range with at least the wanted kind.
    fn covers(&self, wanted: &Waiting) -> bool {
        let mut next = wanted.start;
        for held in self.held.iter().filter(|held| Self::own(held, wanted)) {
            let enough = held.kind == LockKind::Write || wanted.kind == LockKind::Read;
            if held.start <= next && next <= held.end && enough {
                if held.end >= wanted.end {
                    return true;
                }
                next = held.end + 1;
            }
        }
        false
    }

    /// Removes a range from the owner's locks.
    fn free(&mut self, range: &Waiting) {
        for held in std::mem::take(&mut self.held) {
            if !Self::own(&held, range) || held.end < range.start || range.end < held.start {
                self.held.push(held);
                continue;
            }
            if held.start < range.start {
                self.held.push(LockHeld {
                    end: range.start - 1,
                    ..held.clone()
                });
            }
            if range.end < held.end {
                self.held.push(LockHeld {
                    start: range.end + 1,
                    ..held
                });
            }
        }
    }

    /// Gives the owner a range: replaces what it held there, merges with neighbours of the same kind.
    fn take(&mut self, wanted: &Waiting) {
        self.free(wanted);
        let mut new = LockHeld {
            session: wanted.session,
            owner: wanted.owner,
            start: wanted.start,
            end: wanted.end,
            kind: wanted.kind,
            pid: wanted.pid,
        };
        self.held.retain(|held| {
            let joins = Self::own(held, wanted)
                && held.kind == wanted.kind
                && (held.end.checked_add(1) == Some(new.start)
                    || new.end.checked_add(1) == Some(held.start));
            if joins {
                new.start = new.start.min(held.start);
                new.end = new.end.max(held.end);
            }
            !joins
        });
        self.held.push(new);
        self.held
            .sort_by_key(|held| (held.start, held.session, held.owner));
    }

    /// Grants waiting requests, oldest first, as far as nothing is in their way.
    fn promote(&mut self) {
        for wanted in std::mem::take(&mut self.waiting) {
            match self.conflict(&wanted) {
                Some(_) => self.waiting.push(wanted),
                None => self.take(&wanted),
            }
        }
    }
}
