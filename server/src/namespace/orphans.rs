//! Unlinked files and removed directories that sessions may still use, and the end of sessions.

use std::ops::ControlFlow;

use mortar_protocol::entry::Object;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::Reply;
use mortar_protocol::ids::{InodeId, SessionId};

use super::records::{self, Decision, Orphan};
use super::working::Working;
use super::{Context, Executed, State, claims, locks, txn};

/// Most orphans of one renewal's answer, and most garbage.
const MAX_TOLD: usize = 1_024;
const MAX_GARBAGE: usize = 64;
/// Most transactions of ended sessions.
const MAX_LEFT: usize = 64;

/// The sessions that may hold open what the actor unlinks.
fn users(work: &Working<'_>, with_actor: bool) -> Vec<SessionId> {
    let mut sessions: Vec<SessionId> = work
        .cx
        .sessions
        .iter()
        .copied()
        .filter(|session| with_actor || *session != work.actor)
        .collect();
    sessions.sort_unstable();
    sessions
}

/// An inode has lost its last name: it goes, or becomes an orphan.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn abandon(work: &mut Working<'_>, id: InodeId, held_open: bool) -> Result<(), Fault> {
    let sessions = users(work, held_open);
    match sessions.is_empty() {
        true => settle(work, id),
        false => {
            let orphan = records::encode(&Orphan { sessions });
            work.put(records::orphan_key(id), orphan);
            Ok(())
        }
    }
}

/// A directory's part is closed. The mark stays until nobody can still believe in the directory; where the inode lies
/// its absence says the same.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn abandon_dir(
    work: &mut Working<'_>,
    dir: InodeId,
    here: bool,
    held_open: bool,
) -> Result<(), Fault> {
    let sessions = users(work, held_open || !here);
    if sessions.is_empty() {
        return settle(work, dir);
    }
    work.part_mut(dir)?.closed = true;
    let orphan = records::encode(&Orphan { sessions });
    work.put(records::orphan_key(dir), orphan);
    Ok(())
}

/// Nobody uses it any more: everything of it that lies here goes. A file with shards on other sets waits as garbage
/// until these are cut.
fn settle(work: &mut Working<'_>, id: InodeId) -> Result<(), Fault> {
    let spread = work.inode(id)?.is_some_and(|inode| inode.sharded);
    if spread && work.cx.layout.sets().len() > 1 {
        let garbage = records::encode(&Orphan::default());
        work.put(records::orphan_key(id), garbage);
        return Ok(());
    }
    wipe(work, id)
}

fn wipe(work: &mut Working<'_>, id: InodeId) -> Result<(), Fault> {
    if work.part(id)?.is_some() {
        work.remove_part(id);
    }
    let orphan = records::orphan_key(id);
    if work.get(&orphan)?.is_some() {
        work.del(orphan);
        // Only what was open can be locked.
        let locks = records::locks_key(id);
        if work.get(&locks)?.is_some() {
            work.del(locks);
        }
    }
    let Some(inode) = work.inode(id)? else {
        return Ok(());
    };
    let (xattrs, sharded) = (inode.xattrs > 0, inode.sharded);
    let data = !inode.is_dir() && inode.target.is_empty() && (inode.blocks > 0 || inode.size > 0);
    if xattrs {
        for key in work.keys(&records::xattr_key(id, b""))? {
            work.del(key);
        }
    }
    if data {
        work.punch(Object { id, shard: 0 }, 0, u64::MAX)?;
    }
    if sharded {
        for shard in work.shards(id)? {
            work.punch(Object { id, shard }, 0, u64::MAX)?;
            work.del(records::shard_key(id, shard));
        }
    }
    work.remove_inode(id)
}

/// [`Part::Purge`](mortar_protocol::fop::Part::Purge).
///
/// # Errors
/// EBUSY if the file still has a name or a user.
pub(super) fn purge(work: &mut Working<'_>, id: InodeId) -> Result<(), Fault> {
    work.claim(records::inode_key(id), true)?;
    match work.get(&records::orphan_key(id))? {
        Some(value) if records::decode::<Orphan>(&value)?.sessions.is_empty() => wipe(work, id),
        None if work.inode(id)?.is_none() => Ok(()),
        _ => Err(Errno::EBUSY.into()),
    }
}

/// All orphans.
fn all(state: &dyn State) -> Result<Vec<(InodeId, Orphan)>, Fault> {
    let mut found = Vec::new();
    let mut fault = None;
    state.scan(b"O", b"P", &mut |key, value| {
        let orphan = records::decode::<Orphan>(value);
        match (records::parse_id(key), orphan) {
            (Some(id), Ok(orphan)) => {
                found.push((id, orphan));
                ControlFlow::Continue(())
            }
            _ => {
                fault = Some(Fault::Corrupt);
                ControlFlow::Break(())
            }
        }
    })?;
    fault.map_or(Ok(found), Err)
}

/// What a renewing session is asked about.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn renew(state: &dyn State, cx: &Context<'_>) -> Result<Reply, Fault> {
    let mut work = Working::new(state, cx, cx.time);
    let (mut orphans, mut garbage) = (Vec::new(), Vec::new());
    for (id, orphan) in all(state)? {
        if orphan.sessions.contains(&cx.session) {
            if orphans.len() < MAX_TOLD {
                orphans.push(id);
            }
        } else if orphan.sessions.is_empty() && garbage.len() < MAX_GARBAGE {
            let size = work.inode(id)?.map_or(0, |inode| inode.size);
            garbage.push((id, size));
        }
    }
    let claim = claims::wanted(&work)?;
    Ok(Reply::Renewed {
        orphans,
        garbage,
        claim,
        left: txn::left(state, cx, MAX_LEFT)?,
    })
}

/// What follows from a session's word that it does not use these orphans: a change of the primary's own. No effects:
/// nothing follows.
///
/// # Errors
/// If the state cannot be read.
pub fn release(
    state: &dyn State,
    cx: &Context<'_>,
    released: &[InodeId],
) -> Result<Executed, Fault> {
    let mut work = Working::new(state, cx, cx.time);
    for id in released.iter().take(MAX_TOLD) {
        let Some(value) = work.get(&records::orphan_key(*id))? else {
            continue;
        };
        let_go(&mut work, *id, records::decode(&value)?)?;
    }
    Ok(work.finish_anyway(Reply::Done))
}

/// The session lets go an orphan. One that a transaction locks stays as garbage until it can be purged.
fn let_go(work: &mut Working<'_>, id: InodeId, mut orphan: Orphan) -> Result<(), Fault> {
    let session = work.cx.session;
    if !orphan.sessions.contains(&session) {
        return Ok(());
    }
    orphan.sessions.retain(|other| *other != session);
    if !orphan.sessions.is_empty() {
        work.put(records::orphan_key(id), records::encode(&orphan));
        return Ok(());
    }
    match work.claim(records::inode_key(id), true) {
        Ok(()) => settle(work, id),
        Err(Fault::Intent { .. }) => {
            work.put(records::orphan_key(id), records::encode(&orphan));
            Ok(())
        }
        Err(fault) => Err(fault),
    }
}

/// A session ends: its locks, its orphans, and the marks of its aborted transactions go.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn end_session(state: &dyn State, cx: &Context<'_>) -> Result<Executed, Fault> {
    let mut work = Working::new(state, cx, cx.time);
    locks::end_session(&mut work)?;
    for (id, orphan) in all(state)? {
        let_go(&mut work, id, orphan)?;
    }
    for key in work.keys(&records::decisions_prefix(cx.session))? {
        let value = work.get(&key)?.ok_or(Fault::Corrupt)?;
        if records::decode::<Decision>(&value)? == Decision::Aborted {
            work.del(key);
        }
    }
    Ok(work.finish_anyway(Reply::Done))
}
