//! Reads of file data.

use mortar_protocol::attr::FileKind;
use mortar_protocol::entry::Object;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Cut, Reply};
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::{MAX_INLINE, OPEN_DATA_MAX};

use super::lookup::{live_inode, reading, shown_cut};
use super::records::{self, Inode, Orphan};
use super::working::Working;
use super::{Context, ReadAnswer, State, access};

/// Checks a request for a shard: that it belongs to this set and names no older cut than is known. Gives the inode if
/// it lies here.
///
/// # Errors
/// ESTALE for an older cut or a missing inode; EISDIR or EINVAL if it is no file.
pub(super) fn shard_access(
    work: &mut Working<'_>,
    id: InodeId,
    shard: u32,
    cut: Cut,
) -> Result<Option<Inode>, Fault> {
    let layout = work.cx.layout;
    if layout.shard_set(id, shard) != work.cx.own {
        return Err(Fault::Protocol);
    }
    if layout.inode_set(id) == work.cx.own {
        let inode = live_inode(work, id)?;
        match inode.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if inode.sharded && cut < inode.cut {
            return Err(Errno::ESTALE.into());
        }
        return Ok(Some(inode));
    }
    let key = records::cut_key(id);
    work.claim(key.clone(), true)?;
    match work.get(&key)? {
        Some(value) if cut < records::decode::<Cut>(&value)? => Err(Errno::ESTALE.into()),
        _ => Ok(None),
    }
}

pub(super) fn read(
    state: &dyn State,
    cx: &Context<'_>,
    id: InodeId,
    shard: u32,
    offset: u64,
    len: u32,
    cut: Cut,
) -> Result<ReadAnswer, Fault> {
    let mut len = len as usize;
    if len > MAX_INLINE || offset > cx.shard_size {
        return Err(Fault::Protocol);
    }
    let mut work = reading(state, cx);
    let inode = shard_access(&mut work, id, shard, cut)?;
    access::check(&mut work, id, access::READ)?;
    len = len.min(usize::try_from(cx.shard_size - offset).unwrap_or(usize::MAX));
    if let Some(inode) = inode.as_ref().filter(|_| shard == 0) {
        let left = inode.size.saturating_sub(offset);
        len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
    }
    Ok(ReadAnswer::Data {
        object: Object { id, shard },
        offset,
        len,
        reply: Reply::Data {
            change: inode.map_or(0, |inode| inode.change),
        },
    })
}

pub(super) fn seek(
    state: &dyn State,
    cx: &Context<'_>,
    id: InodeId,
    shard: u32,
    offset: u64,
    hole: bool,
) -> Result<Reply, Fault> {
    let mut work = reading(state, cx);
    // A seek moves no data: it is harmless under an old cut.
    let inode = shard_access(&mut work, id, shard, Cut::GONE)?;
    access::check(&mut work, id, access::READ)?;
    let limit = match inode.filter(|_| shard == 0) {
        Some(inode) => inode.size.min(cx.shard_size),
        None => cx.shard_size,
    };
    if offset >= limit {
        return Ok(Reply::Seek(None));
    }
    let found = state.seek(Object { id, shard }, offset, hole)?;
    Ok(Reply::Seek(found.filter(|found| *found < limit)))
}

pub(super) fn open(
    state: &dyn State,
    cx: &Context<'_>,
    id: InodeId,
    known: Option<u64>,
    data: bool,
) -> Result<ReadAnswer, Fault> {
    let mut work = reading(state, cx);
    let inode = live_inode(&mut work, id)?;
    if inode.nlink == 0 {
        let orphan = match work.get(&records::orphan_key(id))? {
            Some(value) => records::decode::<Orphan>(&value)?,
            None => Orphan::default(),
        };
        if !orphan.sessions.contains(&cx.session) {
            return Err(Errno::ESTALE.into());
        }
    }
    let attr = work.attr(id)?.ok_or(Fault::Refused(Errno::ESTALE))?;
    let cut = shown_cut(&inode, cx.opening);
    let readable = access::check(&mut work, id, access::READ).is_ok();
    let data = data
        && readable
        && attr.kind == FileKind::File
        && attr.size <= OPEN_DATA_MAX.min(cx.shard_size)
        && known != Some(attr.change);
    let reply = Reply::Opened { attr, cut, data };
    Ok(match data {
        true => ReadAnswer::Data {
            object: Object { id, shard: 0 },
            offset: 0,
            len: usize::try_from(attr.size).unwrap_or(0),
            reply,
        },
        false => ReadAnswer::Reply(reply),
    })
}
