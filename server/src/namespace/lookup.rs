//! Reads of names, attributes and links.

use bytes::Bytes;
use mortar_protocol::attr::FileKind;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Cut, Reply};
use mortar_protocol::ids::{InodeId, Opening};
use mortar_protocol::limits::MAX_NAME;

use super::records::{self, Inode};
use super::working::Working;
use super::{Context, State, access};

/// A [`Working`] for a read.
pub(super) fn reading<'a>(state: &'a dyn State, cx: &'a Context<'a>) -> Working<'a> {
    let mut work = Working::new(state, cx, cx.time);
    work.check_access = true;
    work
}

/// Claims an inode's record (and a directory's part) and gives the inode.
///
/// # Errors
/// ESTALE if it is not there.
pub(super) fn live_inode(work: &mut Working<'_>, id: InodeId) -> Result<Inode, Fault> {
    work.claim(records::inode_key(id), true)?;
    let inode = work.inode(id)?.cloned();
    let inode = inode.ok_or(Fault::Refused(Errno::ESTALE))?;
    if inode.is_dir() {
        work.claim(records::part_key(id), true)?;
    }
    Ok(inode)
}

/// The cut number that clients carry: never below the set's opening.
pub(super) fn shown_cut(inode: &Inode, opening: Opening) -> Cut {
    inode.cut.max(Cut { opening, count: 0 })
}

pub(super) fn lookup(
    state: &dyn State,
    cx: &Context<'_>,
    parent: InodeId,
    name: &Bytes,
) -> Result<Reply, Fault> {
    if name.len() > MAX_NAME {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let mut work = reading(state, cx);
    access::check(&mut work, parent, access::SEARCH)?;
    let key = records::dirent_key(parent, name);
    work.claim(key.clone(), true)?;
    let dirent = work.dirent(&key)?.ok_or(Fault::Refused(Errno::ENOENT))?;
    let id = dirent.gfid.id;
    work.claim(records::inode_key(id), true)?;
    if dirent.kind == FileKind::Dir {
        work.claim(records::part_key(id), true)?;
    }
    let attr = work.attr(id)?.filter(|attr| attr.gfid == dirent.gfid);
    Ok(Reply::Found {
        gfid: dirent.gfid,
        kind: dirent.kind,
        attr,
        missing: attr.is_none() && cx.layout.inode_set(id) == cx.own,
    })
}

pub(super) fn getattr(state: &dyn State, cx: &Context<'_>, id: InodeId) -> Result<Reply, Fault> {
    let mut work = reading(state, cx);
    let inode = live_inode(&mut work, id)?;
    let attr = work.attr(id)?.ok_or(Fault::Refused(Errno::ESTALE))?;
    if let Some(hand) = inode.hand {
        let part = work.part(id)?;
        if let (Some(others), true) = (hand.others, inode.hand_holds(part)) {
            return Ok(Reply::DirAttr {
                attr,
                others,
                otherwise: part.map_or(inode.btime, |part| part.mtime),
            });
        }
    }
    Ok(Reply::Attr(attr, shown_cut(&inode, cx.opening)))
}

pub(super) fn dir_part(state: &dyn State, cx: &Context<'_>, dir: InodeId) -> Result<Reply, Fault> {
    let mut work = reading(state, cx);
    work.claim(records::part_key(dir), true)?;
    let part = work.part(dir)?.cloned().unwrap_or_default();
    Ok(Reply::DirPart {
        entries: part.entries,
        subdirs: part.subdirs,
        mtime: part.mtime,
        change: part.change,
    })
}

pub(super) fn links(state: &dyn State, cx: &Context<'_>, id: InodeId) -> Result<Reply, Fault> {
    // Not the directory's part: whoever moves a directory walks up through one that its own transaction gives an entry.
    let mut work = reading(state, cx);
    work.claim(records::inode_key(id), true)?;
    let inode = work.inode(id)?.cloned();
    let inode = inode.ok_or(Fault::Refused(Errno::ESTALE))?;
    Ok(Reply::Links {
        links: inode.links,
        many: inode.many_links,
    })
}

pub(super) fn readlink(state: &dyn State, cx: &Context<'_>, id: InodeId) -> Result<Reply, Fault> {
    let inode = live_inode(&mut reading(state, cx), id)?;
    match inode.kind {
        FileKind::Symlink => Ok(Reply::Bytes(inode.target)),
        _ => Err(Errno::EINVAL.into()),
    }
}
