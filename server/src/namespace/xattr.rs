//! Extended attributes.

use bytes::{BufMut, Bytes, BytesMut};
use mortar_protocol::attr::FileKind;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Reply, XattrMode};
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::{MAX_XATTR_NAME, MAX_XATTR_TOTAL, MAX_XATTR_VALUE};

use super::acl::{self, Acl};
use super::lookup::{live_inode, reading};
use super::records;
use super::working::Working;
use super::{Context, State, access};

/// File capabilities; every change of the file's data removes them.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

pub(super) fn get(
    state: &dyn State,
    cx: &Context<'_>,
    id: InodeId,
    name: &[u8],
) -> Result<Reply, Fault> {
    if name.len() > MAX_XATTR_NAME {
        return Err(Errno::ERANGE.into());
    }
    let mut work = reading(state, cx);
    let inode = live_inode(&mut work, id)?;
    if name.starts_with(b"user.") {
        access::check(&mut work, id, access::READ)?;
    }
    let hidden = access::matters(&work) && name.starts_with(b"trusted.");
    match inode.xattrs > 0 && !hidden {
        true => work
            .get(&records::xattr_key(id, name))?
            .map(Reply::Bytes)
            .ok_or(Fault::Refused(Errno::ENODATA)),
        false => Err(Errno::ENODATA.into()),
    }
}

pub(super) fn list(state: &dyn State, cx: &Context<'_>, id: InodeId) -> Result<Reply, Fault> {
    let mut work = reading(state, cx);
    let inode = live_inode(&mut work, id)?;
    let mut names = BytesMut::new();
    if inode.xattrs > 0 {
        for key in work.keys(&records::xattr_key(id, b""))? {
            let name = &key[9..];
            if cx.cred.uid == 0 || !name.starts_with(b"trusted.") {
                names.put_slice(name);
                names.put_u8(0);
            }
        }
    }
    Ok(Reply::Bytes(names.freeze()))
}

/// Puts or replaces an attribute and keeps the inode's count of them. The inode must be there.
///
/// # Errors
/// ENOSPC if the inode's attributes grow too large.
pub(super) fn store(
    work: &mut Working<'_>,
    id: InodeId,
    name: &[u8],
    value: &[u8],
) -> Result<(), Fault> {
    let key = records::xattr_key(id, name);
    let old = work.get(&key)?;
    let inode = work.inode_mut(id, Errno::ESTALE)?;
    let mut total = inode.xattr_bytes as usize;
    match &old {
        Some(old) => total = total.saturating_sub(old.len()),
        None => {
            inode.xattrs += 1;
            total += name.len();
        }
    }
    total += value.len();
    if total > MAX_XATTR_TOTAL {
        return Err(Errno::ENOSPC.into());
    }
    inode.xattr_bytes = u32::try_from(total).map_err(|_| Fault::Protocol)?;
    if value.len() > old.map_or(0, |old| old.len()) {
        work.note_growth();
    }
    work.put(key, Bytes::copy_from_slice(value));
    Ok(())
}

/// Removes an attribute; tells whether it was there. Without one the inode is not touched.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn erase(work: &mut Working<'_>, id: InodeId, name: &[u8]) -> Result<bool, Fault> {
    if work.inode(id)?.is_none_or(|inode| inode.xattrs == 0) {
        return Ok(false);
    }
    let key = records::xattr_key(id, name);
    let Some(old) = work.get(&key)? else {
        return Ok(false);
    };
    let inode = work.inode_mut(id, Errno::ESTALE)?;
    let bytes = u32::try_from(name.len() + old.len()).unwrap_or(u32::MAX);
    inode.xattrs = inode.xattrs.saturating_sub(1);
    inode.xattr_bytes = inode.xattr_bytes.saturating_sub(bytes);
    work.del(key);
    Ok(true)
}

/// setxattr.
///
/// # Errors
/// As Linux answers.
pub(super) fn set(
    work: &mut Working<'_>,
    id: InodeId,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<(), Fault> {
    check_name(name)?;
    if value.len() > MAX_XATTR_VALUE {
        return Err(Errno::E2BIG.into());
    }
    check_access(work, id, name)?;
    let inode = work.inode(id)?.ok_or(Fault::Refused(Errno::ESTALE))?;
    let (kind, any) = (inode.kind, inode.xattrs > 0);
    if name.starts_with(b"user.") && !matches!(kind, FileKind::File | FileKind::Dir) {
        return Err(Errno::EPERM.into());
    }
    let exists = any && work.get(&records::xattr_key(id, name))?.is_some();
    match mode {
        XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
        XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
        _ => {}
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        return set_acl(work, id, kind, name, value);
    }
    work.inode_mut(id, Errno::ESTALE)?;
    store(work, id, name, value)
}

/// removexattr.
///
/// # Errors
/// As Linux answers.
pub(super) fn remove(work: &mut Working<'_>, id: InodeId, name: &[u8]) -> Result<(), Fault> {
    check_name(name)?;
    check_access(work, id, name)?;
    match erase(work, id, name)? || name == acl::ACCESS || name == acl::DEFAULT {
        true => Ok(()),
        false => Err(Errno::ENODATA.into()),
    }
}

fn check_name(name: &[u8]) -> Result<(), Fault> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME {
        return Err(Errno::ERANGE.into());
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL.into());
    }
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let known = prefixes
        .iter()
        .any(|prefix| name.starts_with(prefix) && name.len() > prefix.len());
    match known || name == acl::ACCESS || name == acl::DEFAULT {
        true => Ok(()),
        false => Err(Errno::EOPNOTSUPP.into()),
    }
}

fn check_access(work: &mut Working<'_>, id: InodeId, name: &[u8]) -> Result<(), Fault> {
    if !access::matters(work) {
        return Ok(());
    }
    if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        return Err(Errno::EPERM.into());
    }
    match name.starts_with(b"user.") {
        true => access::check(work, id, access::WRITE),
        false => access::check_owner(work, id),
    }
}

fn set_acl(
    work: &mut Working<'_>,
    id: InodeId,
    kind: FileKind,
    name: &[u8],
    value: &[u8],
) -> Result<(), Fault> {
    let parsed = Acl::parse(value)?;
    if kind == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if name == acl::DEFAULT {
        return match parsed {
            Some(_) if kind != FileKind::Dir => Err(Errno::EACCES.into()),
            Some(_) => store(work, id, name, value),
            None => erase(work, id, name).map(|_| ()),
        };
    }
    let Some(parsed) = parsed else {
        return erase(work, id, name).map(|_| ());
    };
    let (bound, cred) = (access::matters(work), work.cx.cred);
    let inode = work.inode_mut(id, Errno::ESTALE)?;
    inode.perm = inode.perm & 0o7000 | parsed.mode();
    if bound && !cred.in_group(inode.gid) {
        inode.perm &= !libc::S_ISGID;
    }
    match parsed.is_plain() {
        true => erase(work, id, name).map(|_| ()),
        false => store(work, id, name, value),
    }
}
