//! Range locks. An owner is a number within a session; a session's locks end with it.

use std::ops::ControlFlow;

use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{LockHeld, LockKind, LockOutcome, LockRequest, Reply};
use mortar_protocol::ids::{InodeId, SessionId};
use mortar_protocol::locks as ranges;

use super::records::{self, Locks, Waiting};
use super::working::Working;
use super::{Context, Executed, State, claims};

/// Most locks and waiting requests of one file.
pub(super) const MAX_LOCKS: usize = 4_096;

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
    let claiming = claims::pending(&work, request.kind == LockKind::Unlock)?;
    let attr = work.attr(request.id)?;
    let attr = attr.ok_or(Fault::Refused(Errno::ESTALE))?;
    let before = load(&work, request.id)?;
    let mut locks = before.clone();
    let outcome = locks.request(cx.session, request);
    if !claiming {
        locks.promote();
    }
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
    claims::pending(&work, false)?;
    let locks = load(&work, request.id)?;
    let wanted = lock(cx.session, request);
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
    claims::pending(&work, false)?;
    let attr = work.attr(request.id)?;
    let attr = attr.ok_or(Fault::Refused(Errno::ESTALE))?;
    let locks = load(&work, request.id)?;
    let outcome = if locks.waiting.contains(&waiting(cx.session, request)) {
        LockOutcome::Queued
    } else if ranges::covers(&locks.held, &lock(cx.session, request)) {
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
    let claiming = claims::settled(work)?;
    for id in drop_all_of(work, work.cx.session)? {
        let mut locks = load(work, id)?;
        if !claiming {
            locks.promote();
            store(work, id, &locks);
        }
    }
    Ok(())
}

/// Removes all locks and waiting requests of a session; gives the files that had some.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn drop_all_of(
    work: &mut Working<'_>,
    session: SessionId,
) -> Result<Vec<InodeId>, Fault> {
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
    let mut changed = Vec::new();
    for (id, mut locks) in found {
        let before = locks.held.len() + locks.waiting.len();
        locks.held.retain(|held| held.session != session);
        locks.waiting.retain(|waiting| waiting.session != session);
        if locks.held.len() + locks.waiting.len() < before {
            store(work, id, &locks);
            changed.push(id);
        }
    }
    Ok(changed)
}

pub(super) fn load(work: &Working<'_>, id: InodeId) -> Result<Locks, Fault> {
    match work.get(&records::locks_key(id))? {
        Some(value) => records::decode(&value),
        None => Ok(Locks::default()),
    }
}

pub(super) fn store(work: &mut Working<'_>, id: InodeId, locks: &Locks) {
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

/// A request as the lock it asks for.
pub(super) fn lock(session: SessionId, request: &LockRequest) -> LockHeld {
    held(&waiting(session, request))
}

fn held(wanted: &Waiting) -> LockHeld {
    LockHeld {
        session: wanted.session,
        owner: wanted.owner,
        start: wanted.start,
        end: wanted.end,
        kind: wanted.kind,
        pid: wanted.pid,
    }
}

impl Locks {
    /// Does a request; what it lets others have is [`Self::promote`]'s to give.
    fn request(&mut self, session: SessionId, request: &LockRequest) -> LockOutcome {
        let (queued, wanted) = (waiting(session, request), lock(session, request));
        let same = |other: &Waiting| {
            (other.session, other.owner, other.start, other.end)
                == (session, request.owner, request.start, request.end)
        };
        if request.kind == LockKind::Unlock {
            let before = self.waiting.len();
            self.waiting.retain(|other| !same(other));
            if request.wait {
                let held = self.waiting.len() == before && self.holds_any(&wanted);
                return if held {
                    LockOutcome::Granted
                } else {
                    LockOutcome::Busy
                };
            }
            ranges::free(&mut self.held, &wanted);
            return LockOutcome::Granted;
        }
        if self.conflict(&wanted).is_some() {
            if !request.wait {
                return LockOutcome::Busy;
            }
            if !self.waiting.contains(&queued) {
                self.waiting.push(queued);
            }
            return LockOutcome::Queued;
        }
        self.waiting.retain(|other| *other != queued);
        // A lock that becomes weaker may let others in.
        ranges::take(&mut self.held, wanted);
        LockOutcome::Granted
    }

    fn conflict(&self, wanted: &LockHeld) -> Option<&LockHeld> {
        self.held.iter().find(|held| ranges::exclude(held, wanted))
    }

    fn holds_any(&self, wanted: &LockHeld) -> bool {
        self.held
            .iter()
            .any(|held| ranges::same_owner(held, wanted) && ranges::overlap(held, wanted))
    }

    /// Grants waiting requests, oldest first, as far as nothing is in their way.
    fn promote(&mut self) {
        for wanted in std::mem::take(&mut self.waiting) {
            let lock = held(&wanted);
            match self.conflict(&lock) {
                Some(_) => self.waiting.push(wanted),
                None => ranges::take(&mut self.held, lock),
            }
        }
    }
}
