//! Namespace changes: creates, links, renames, removals and cuts, part by part against the working overlay.

use bytes::Bytes;
use mortar_protocol::attr::FileKind;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{ParentHint, Part, Reply};
use mortar_protocol::ids::{Gfid, InodeId};
use mortar_protocol::limits::{MAX_FILE_SIZE, MAX_LINKS, MAX_NAME, MAX_SYMLINK};

use super::acl::{self, Acl};
use super::records::{self, Dirent, Inode, MAX_LISTED_LINKS};
use super::working::Working;
use super::{access, change, orphans, xattr};

/// Most parts of one request.
const MAX_PARTS: usize = 64;

/// Checks and applies parts in order; each sees what the earlier ones did.
///
/// # Errors
/// The first refusal. The overlay is useless then.
pub(super) fn apply(work: &mut Working<'_>, parts: &[Part]) -> Result<(), Fault> {
    if parts.len() > MAX_PARTS {
        return Err(Fault::Protocol);
    }
    for part in parts {
        apply_one(work, part)?;
        if let Part::InodeNew { gfid, .. } = part {
            work.named.push(gfid.id);
        } else if let Part::LinkAdd { id, .. }
        | Part::LinkMove { id, .. }
        | Part::LinkRemove { id, .. }
        | Part::InodeCut { id, .. } = part
        {
            work.named.push(*id);
        }
    }
    Ok(())
}

/// Attributes of the inodes that the parts named, as they are now, and where one set holds everything, of the
/// directories that changed: the kernel asks for those next, and they come with no further round trip.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn reply(work: &mut Working<'_>) -> Result<Reply, Fault> {
    let mut attrs = Vec::new();
    for id in std::mem::take(&mut work.named) {
        attrs.extend(work.attr(id)?);
    }
    if work.cx.layout.sets().len() == 1 {
        for dir in work.changed_dirs() {
            attrs.extend(work.attr(dir)?);
        }
    }
    Ok(Reply::Parts(attrs))
}

fn apply_one(work: &mut Working<'_>, part: &Part) -> Result<(), Fault> {
    match part {
        Part::InodeNew { .. } => inode_new(work, part),
        Part::DirentAdd {
            parent,
            name,
            gfid,
            kind,
            replaces,
        } => {
            let dirent = Dirent {
                gfid: *gfid,
                kind: *kind,
            };
            dirent_add(work, *parent, name, dirent, *replaces)
        }
        Part::DirentRemove {
            parent,
            name,
            expect,
        } => dirent_remove(work, *parent, name, *expect),
        Part::LinkAdd { id, parent, name } => link_add(work, *id, *parent, name),
        Part::LinkMove { id, from, to } => link_move(work, *id, from, to),
        Part::LinkRemove {
            id,
            parent,
            name,
            held_open,
        } => link_remove(work, *id, *parent, name, *held_open),
        Part::DirClose { dir, held_open } => dir_close(work, *dir, *held_open),
        Part::ParentIs { dir, parent } => parent_is(work, *dir, *parent),
        Part::TreeLock => match work.cx.layout.inode_set(InodeId::ROOT) == work.cx.own {
            true => work.claim(Bytes::from_static(records::TREE_LOCK), true),
            false => Err(Fault::Protocol),
        },
        Part::ShardCut {
            id,
            size,
            shard_size,
            cut,
        } => {
            if *shard_size != work.cx.shard_size {
                return Err(Fault::Protocol);
            }
            change::shard_cut(work, *id, *size, *cut)
        }
        Part::InodeCut {
            id,
            size,
            cut,
            set,
            other_blocks,
        } => {
            if *size > MAX_FILE_SIZE {
                return Err(Errno::EFBIG.into());
            }
            change::inode_cut(work, *id, *size, *cut, set, *other_blocks)
        }
        Part::Purge { id } => orphans::purge(work, *id),
    }
}

fn check_name(name: &[u8]) -> Result<(), Fault> {
    if name.len() > MAX_NAME {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let bad = name.is_empty() || name == b"." || name == b"..";
    match bad || name.iter().any(|byte| *byte == b'/' || *byte == 0) {
        true => Err(Errno::EINVAL.into()),
        false => Ok(()),
    }
}

/// Claims the entry's record and that its directory stays, and checks that the entry belongs here.
fn claim_dirent(work: &mut Working<'_>, parent: InodeId, name: &[u8]) -> Result<Bytes, Fault> {
    check_name(name)?;
    if work.cx.layout.name_set(parent, name) != work.cx.own {
        return Err(Fault::Protocol);
    }
    work.claim(records::part_key(parent), false)?;
    let key = records::dirent_key(parent, name);
    work.claim(key.clone(), true)?;
    Ok(key)
}

/// Checks that a directory can take entries, as far as this set knows it.
fn check_directory(work: &mut Working<'_>, dir: InodeId) -> Result<(), Fault> {
    if work.part(dir)?.is_some_and(|part| part.closed) {
        return Err(Errno::ENOENT.into());
    }
    if work.cx.layout.inode_set(dir) == work.cx.own {
        match work.inode(dir)? {
            Some(inode) if !inode.is_dir() => return Err(Errno::ENOTDIR.into()),
            Some(inode) if inode.nlink > 0 => {}
            _ => return Err(Errno::ENOENT.into()),
        }
    }
    Ok(())
}

fn dirent_add(
    work: &mut Working<'_>,
    parent: InodeId,
    name: &Bytes,
    dirent: Dirent,
    replaces: Option<Gfid>,
) -> Result<(), Fault> {
    let key = claim_dirent(work, parent, name)?;
    check_directory(work, parent)?;
    let old = work.dirent(&key)?;
    match (old, replaces) {
        (Some(_), None) => return Err(Errno::EEXIST.into()),
        (None, Some(_)) => return Err(Errno::EAGAIN.into()),
        (Some(old), Some(expected)) if old.gfid != expected => return Err(Errno::EAGAIN.into()),
        (Some(old), Some(_)) => access::check_removal(work, parent, old.gfid.id)?,
        (None, None) => {
            access::check(work, parent, access::WRITE | access::SEARCH)?;
            work.note_growth();
        }
    }
    work.put(key, records::encode(&dirent));
    let part = work.part_mut(parent)?;
    match old {
        Some(old) => part.subdirs = part.subdirs.saturating_sub(is_dir(old.kind)),
        None => part.entries += 1,
    }
    part.subdirs += is_dir(dirent.kind);
    Ok(())
}

fn dirent_remove(
    work: &mut Working<'_>,
    parent: InodeId,
    name: &Bytes,
    expect: Gfid,
) -> Result<(), Fault> {
    let key = claim_dirent(work, parent, name)?;
    let old = work.dirent(&key)?.ok_or(Fault::Refused(Errno::ENOENT))?;
    if old.gfid != expect {
        return Err(Errno::EAGAIN.into());
    }
    access::check_removal(work, parent, expect.id)?;
    work.del(key);
    let part = work.part_mut(parent)?;
    part.entries = part.entries.saturating_sub(1);
    part.subdirs = part.subdirs.saturating_sub(is_dir(old.kind));
    Ok(())
}

fn is_dir(kind: FileKind) -> u64 {
    u64::from(kind == FileKind::Dir)
}

fn inode_new(work: &mut Working<'_>, part: &Part) -> Result<(), Fault> {
    let Part::InodeNew {
        gfid,
        kind,
        perm,
        umask,
        uid,
        gid,
        rdev,
        target,
        parent,
        name,
        hint,
    } = part
    else {
        return Err(Fault::Protocol);
    };
    check_name(name)?;
    check_target(*kind, target)?;
    if gfid.id.0 == 0 || work.cx.layout.inode_set(gfid.id) != work.cx.own {
        return Err(Fault::Protocol);
    }
    work.claim(records::inode_key(gfid.id), true)?;
    if work.inode(gfid.id)?.is_some() {
        return Err(Fault::IdTaken);
    }
    if access::matters(work) {
        let cred = work.cx.cred;
        let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        if *uid != cred.uid || !cred.in_group(*gid) || device {
            return Err(Errno::EPERM.into());
        }
        access::check(work, *parent, access::WRITE | access::SEARCH)?;
    }
    let given = parent_gives(work, *parent, hint.as_ref())?;
    let mut inode = Inode::new(*gfid, *kind, perm & 0o7777, work.time);
    inode.uid = *uid;
    inode.gid = given.setgid.unwrap_or(*gid);
    if given.setgid.is_some() && inode.is_dir() {
        inode.perm |= libc::S_ISGID;
    }
    if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
        inode.rdev = *rdev;
    }
    inode.nlink = if inode.is_dir() { 2 } else { 1 };
    inode.links = vec![(*parent, name.clone())];
    inode.size = target.len() as u64;
    inode.target = target.clone();
    let default = match given.default_acl.filter(|_| *kind != FileKind::Symlink) {
        Some(value) => Acl::parse(&value)?.map(|acl| (acl, value)),
        None => None,
    };
    let Some((mut acl, value)) = default else {
        if *kind != FileKind::Symlink {
            inode.perm &= !(umask & 0o777);
        }
        return work.insert_inode(gfid.id, inode);
    };
    acl.restrict(inode.perm);
    inode.perm = inode.perm & 0o7000 | acl.mode();
    let is_dir = inode.is_dir();
    work.insert_inode(gfid.id, inode)?;
    if !acl.is_plain() {
        xattr::store(work, gfid.id, acl::ACCESS, &acl.encode())?;
    }
    if is_dir {
        xattr::store(work, gfid.id, acl::DEFAULT, &value)?;
    }
    Ok(())
}

fn check_target(kind: FileKind, target: &[u8]) -> Result<(), Fault> {
    match kind {
        FileKind::Symlink if target.is_empty() => Err(Errno::ENOENT.into()),
        FileKind::Symlink if target.len() > MAX_SYMLINK => Err(Errno::ENAMETOOLONG.into()),
        FileKind::Symlink => Ok(()),
        _ if target.is_empty() => Ok(()),
        _ => Err(Fault::Protocol),
    }
}

/// What a new inode takes from its parent directory.
fn parent_gives(
    work: &mut Working<'_>,
    parent: InodeId,
    hint: Option<&ParentHint>,
) -> Result<ParentHint, Fault> {
    let Some(dir) = work.inode(parent)? else {
        return Ok(hint.cloned().unwrap_or_default());
    };
    let setgid = (dir.perm & libc::S_ISGID != 0).then_some(dir.gid);
    let default_acl = match dir.xattrs {
        0 => None,
        _ => work.get(&records::xattr_key(parent, acl::DEFAULT))?,
    };
    Ok(ParentHint {
        setgid,
        default_acl,
    })
}

fn link_add(
    work: &mut Working<'_>,
    id: InodeId,
    parent: InodeId,
    name: &Bytes,
) -> Result<(), Fault> {
    check_name(name)?;
    work.claim(records::inode_key(id), true)?;
    access::check(work, parent, access::WRITE | access::SEARCH)?;
    match work.inode(id)? {
        Some(inode) if inode.is_dir() => return Err(Errno::EPERM.into()),
        Some(inode) if inode.nlink == 0 => return Err(Errno::ENOENT.into()),
        Some(inode) if inode.nlink >= MAX_LINKS => return Err(Errno::EMLINK.into()),
        _ => {}
    }
    let inode = work.inode_mut(id, Errno::ENOENT)?;
    inode.nlink += 1;
    add_pair(inode, parent, name);
    Ok(())
}

fn add_pair(inode: &mut Inode, parent: InodeId, name: &Bytes) {
    if inode.links.len() < MAX_LISTED_LINKS {
        inode.links.push((parent, name.clone()));
    } else {
        inode.many_links = true;
    }
}

fn link_move(
    work: &mut Working<'_>,
    id: InodeId,
    from: &(InodeId, Bytes),
    to: &(InodeId, Bytes),
) -> Result<(), Fault> {
    check_name(&to.1)?;
    work.claim(records::inode_key(id), true)?;
    access::check(work, from.0, access::WRITE | access::SEARCH)?;
    if work.inode(id)?.is_some_and(|inode| inode.nlink == 0) {
        return Err(Errno::ENOENT.into());
    }
    let inode = work.inode_mut(id, Errno::ENOENT)?;
    if inode.is_dir() {
        inode.links.clear();
    }
    match inode.links.iter_mut().find(|pair| *pair == from) {
        Some(pair) => *pair = to.clone(),
        None => add_pair(inode, to.0, &to.1),
    }
    Ok(())
}

fn link_remove(
    work: &mut Working<'_>,
    id: InodeId,
    parent: InodeId,
    name: &Bytes,
    held_open: bool,
) -> Result<(), Fault> {
    work.claim(records::inode_key(id), true)?;
    access::check_removal(work, parent, id)?;
    match work.inode(id)? {
        Some(inode) if inode.is_dir() => return Err(Errno::EISDIR.into()),
        Some(inode) if inode.nlink == 0 => return Err(Errno::ENOENT.into()),
        _ => {}
    }
    let inode = work.inode_mut(id, Errno::ENOENT)?;
    inode.nlink -= 1;
    inode
        .links
        .retain(|pair| !(pair.0 == parent && pair.1 == *name));
    match inode.nlink {
        0 => orphans::abandon(work, id, held_open),
        _ => Ok(()),
    }
}

fn dir_close(work: &mut Working<'_>, dir: InodeId, held_open: bool) -> Result<(), Fault> {
    if dir == InodeId::ROOT {
        return Err(Errno::EBUSY.into());
    }
    work.claim(records::part_key(dir), true)?;
    work.claim(records::inode_key(dir), true)?;
    let here = work.cx.layout.inode_set(dir) == work.cx.own;
    if here {
        match work.inode(dir)? {
            Some(inode) if !inode.is_dir() => return Err(Errno::ENOTDIR.into()),
            Some(inode) if inode.nlink > 0 => {}
            _ => return Err(Errno::ENOENT.into()),
        }
    }
    if work.part(dir)?.is_some_and(|part| part.entries > 0) {
        return Err(Errno::ENOTEMPTY.into());
    }
    if here {
        let parent = work.inode(dir)?.and_then(|inode| inode.links.first());
        if let Some(parent) = parent.map(|pair| pair.0) {
            access::check_removal(work, parent, dir)?;
        }
        let inode = work.inode_mut(dir, Errno::ENOENT)?;
        inode.nlink = 0;
        inode.links.clear();
    }
    orphans::abandon_dir(work, dir, here, held_open)
}

fn parent_is(work: &mut Working<'_>, dir: InodeId, parent: InodeId) -> Result<(), Fault> {
    // Looks without keeping a claim: whoever moves directories holds the tree lock.
    work.claim(records::inode_key(dir), true)?;
    work.claimed.pop();
    match work.inode(dir)? {
        None => Err(Errno::ENOENT.into()),
        Some(inode) if inode.links.first().map(|pair| pair.0) == Some(parent) => Ok(()),
        Some(_) => Err(Errno::EAGAIN.into()),
    }
}
