//! Claims (P8). An opening that may have lost entries may have lost locks that were granted, and releases. Until every
//! session that was alive then has claimed what it holds, or has ended, the set grants no lock: nobody else can know.
//!
//! The record of who has not claimed yet comes with the view's own entry, so every member has it.

use std::collections::{BTreeMap, BTreeSet};

use mortar_protocol::entry::Effect;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{LockKind, LockRequest, Reply};
use mortar_protocol::ids::{InodeId, Opening, SessionId};
use mortar_protocol::limits::MAX_CLAIMS;
use mortar_protocol::locks as ranges;

use super::locks::{self, MAX_LOCKS};
use super::records::{self, CLAIMS_KEY, Claims};
use super::working::Working;
use super::{Context, Executed, State};

/// What the entry of a view adds whose opening may have lost something: who has to claim.
pub fn opening(opening: Opening, sessions: Vec<SessionId>) -> Effect {
    let key = bytes::Bytes::from_static(CLAIMS_KEY);
    match sessions.is_empty() {
        true => Effect::Del { key },
        false => Effect::Put {
            key,
            value: records::encode(&Claims { opening, sessions }),
        },
    }
}

/// Who has not claimed yet; `None` if nobody is waited for.
fn load(work: &Working<'_>) -> Result<Option<Claims>, Fault> {
    let value = work.get(CLAIMS_KEY)?;
    value.map(|value| records::decode(&value)).transpose()
}

fn store(work: &mut Working<'_>, claims: &Claims) {
    let key = bytes::Bytes::from_static(CLAIMS_KEY);
    match claims.sessions.is_empty() {
        true => work.del(key),
        false => work.put(key, records::encode(claims)),
    }
}

/// Whether claims are waited for: locks may be released then, by sessions that have claimed, and nothing else.
///
/// # Errors
/// [`Fault::NotServing`] if the session has not claimed, or if claims are waited for and the request may grant a lock
/// or tells who holds one.
pub(super) fn pending(work: &Working<'_>, release: bool) -> Result<bool, Fault> {
    match load(work)? {
        None => Ok(false),
        Some(claims) if !release || claims.sessions.contains(&work.cx.session) => {
            Err(Fault::NotServing)
        }
        Some(_) => Ok(true),
    }
}

/// The opening after which the session has to claim, if it has to.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn wanted(work: &Working<'_>) -> Result<Option<Opening>, Fault> {
    let claims = load(work)?.filter(|claims| claims.sessions.contains(&work.cx.session));
    Ok(claims.map(|claims| claims.opening))
}

/// The session need not claim any more: it has, or it ends. Says whether others still have to.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn settled(work: &mut Working<'_>) -> Result<bool, Fault> {
    let Some(mut claims) = load(work)? else {
        return Ok(false);
    };
    let session = work.cx.session;
    claims.sessions.retain(|other| *other != session);
    store(work, &claims);
    Ok(!claims.sessions.is_empty())
}

/// [`Fop::Claim`](mortar_protocol::fop::Fop::Claim).
///
/// # Errors
/// EINVAL for what is no list of locks, EAGAIN if the set has opened again.
pub(super) fn execute(
    state: &dyn State,
    cx: &Context<'_>,
    opening: Opening,
    locks: &[LockRequest],
) -> Result<Executed, Fault> {
    let bad = |lock: &LockRequest| lock.start > lock.end || lock.kind == LockKind::Unlock;
    if locks.len() > MAX_CLAIMS || locks.iter().any(bad) {
        return Err(Errno::EINVAL.into());
    }
    let mut work = Working::new(state, cx, cx.time);
    let mut files: BTreeMap<InodeId, Vec<&LockRequest>> = BTreeMap::new();
    for lock in locks {
        files.entry(lock.id).or_default().push(lock);
    }
    let claims = load(&work)?.filter(|claims| claims.sessions.contains(&cx.session));
    if let Some(claims) = claims {
        if claims.opening != opening {
            return Err(Errno::EAGAIN.into());
        }
        locks::drop_all_of(&mut work, cx.session)?;
        for (id, wanted) in &files {
            take(&mut work, &claims, *id, wanted)?;
        }
        settled(&mut work)?;
    }
    let lost = missing(&work, &files)?;
    Ok(work.finish_anyway(Reply::Claimed { lost }))
}

/// Gives the session what it claims of a file. Locks of sessions that have not claimed do not count: what the set
/// knows of them may be outdated.
fn take(
    work: &mut Working<'_>,
    claims: &Claims,
    id: InodeId,
    wanted: &[&LockRequest],
) -> Result<(), Fault> {
    if work.attr(id)?.is_none() {
        return Ok(());
    }
    let mut file = locks::load(work, id)?;
    for wanted in wanted {
        let wanted = locks::lock(work.cx.session, wanted);
        let excluded = file.held.iter().any(|held| {
            let counts = held.session == wanted.session || !claims.sessions.contains(&held.session);
            counts && ranges::exclude(held, &wanted)
        });
        if !excluded && file.held.len() < MAX_LOCKS {
            ranges::take(&mut file.held, wanted);
        }
    }
    locks::store(work, id, &file);
    Ok(())
}

/// What of the claimed locks the session does not hold.
fn missing(
    work: &Working<'_>,
    files: &BTreeMap<InodeId, Vec<&LockRequest>>,
) -> Result<Vec<(InodeId, u64)>, Fault> {
    let mut lost = BTreeSet::new();
    for (id, wanted) in files {
        let file = locks::load(work, *id)?;
        for wanted in wanted {
            if !ranges::covers(&file.held, &locks::lock(work.cx.session, wanted)) {
                lost.insert((*id, wanted.owner));
            }
        }
    }
    Ok(lost.into_iter().collect())
}
