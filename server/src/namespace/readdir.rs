//! Listings of a set's part of a directory.

use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{DirEntry, Reply};
use mortar_protocol::ids::InodeId;

use super::lookup::reading;
use super::records::{self, Dirent};
use super::{Context, State, access};

/// Bounds of the bytes of one answer: it must fit a frame's head.
const MAX_REPLY: usize = 160 << 10;
const MIN_REPLY: usize = 512;
/// About what an entry takes beside its name, without and with attributes.
const PLAIN_SIZE: usize = 40;
const PLUS_SIZE: usize = 150;

pub(super) fn readdir(
    state: &dyn State,
    cx: &Context<'_>,
    dir: InodeId,
    after: u64,
    max: u32,
    plus: bool,
) -> Result<Reply, Fault> {
    let mut work = reading(state, cx);
    work.claim(records::part_key(dir), true)?;
    if cx.layout.inode_set(dir) == cx.own {
        let inode = work.inode(dir)?.ok_or(Fault::Refused(Errno::ESTALE))?;
        if !inode.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        access::check(&mut work, dir, access::READ)?;
    }
    let budget = (max as usize).clamp(MIN_REPLY, MAX_REPLY);
    let fixed = if plus { PLUS_SIZE } else { PLAIN_SIZE };
    let mut entries: Vec<DirEntry> = Vec::new();
    let (mut size, mut end, mut fault) = (0, true, None);
    let from = records::dirents_from(dir, after.saturating_add(1));
    let to = records::prefix_end(&records::dirents_from(dir, u64::MAX)[..9]);
    state.scan(&from, &to, &mut |key, value| {
        let parsed = records::parse_dirent_key(key).ok_or(Fault::Corrupt);
        let decoded = parsed.and_then(|parsed| Ok((parsed, records::decode::<Dirent>(value)?)));
        let ((offset, name), dirent) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                fault = Some(error);
                return ControlFlow::Break(());
            }
        };
        // Entries of one offset stay together: the next piece starts behind it.
        if size + fixed + name.len() > budget
            && entries.last().is_some_and(|last| last.offset != offset)
        {
            end = false;
            return ControlFlow::Break(());
        }
        size += fixed + name.len();
        entries.push(DirEntry {
            name: Bytes::copy_from_slice(name),
            gfid: dirent.gfid,
            kind: dirent.kind,
            offset,
            attr: None,
        });
        ControlFlow::Continue(())
    })?;
    if let Some(fault) = fault {
        return Err(fault);
    }
    if plus {
        for entry in &mut entries {
            // An inode under an intent is left out; the client asks for it when it is needed.
            if work.claim(records::inode_key(entry.gfid.id), true).is_ok() {
                let attr = work.attr(entry.gfid.id)?;
                entry.attr = attr.filter(|attr| attr.gfid == entry.gfid);
            }
        }
    }
    Ok(Reply::Entries { entries, end })
}
