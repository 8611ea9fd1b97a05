//! Permission checks for sessions that are bound to a uid. Other clients have checked already (the kernel does).
//!
//! What is checked is what this set can see: the records that lie here. As with NFS, the owner of a file may always
//! read and write its data, because the server does not know which files were open before their mode changed.

use mortar_protocol::attr::{SetAttr, Time};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::ids::InodeId;

use super::acl::{self, Acl};
use super::records;
use super::working::Working;

/// Permission to read.
pub(super) const READ: u32 = 4;
/// Permission to write.
pub(super) const WRITE: u32 = 2;
/// Permission to search a directory.
pub(super) const SEARCH: u32 = 1;

/// Whether permissions are checked here at all.
pub(super) fn matters(work: &Working<'_>) -> bool {
    work.check_access && work.cx.uid_bound != 0
}

/// Checks that the caller may do `want` to an inode, if that lies here.
///
/// # Errors
/// EACCES.
pub(super) fn check(work: &mut Working<'_>, id: InodeId, want: u32) -> Result<(), Fault> {
    if !matters(work) {
        return Ok(());
    }
    let cred = work.cx.cred;
    let Some(inode) = work.inode(id)? else {
        return Ok(());
    };
    let (uid, gid, perm) = (inode.uid, inode.gid, inode.perm);
    let (is_dir, xattrs) = (inode.is_dir(), inode.xattrs);
    let granted = if uid == cred.uid {
        (!is_dir && want & SEARCH == 0) || (perm >> 6) & want == want
    } else {
        let acl = match xattrs {
            0 => None,
            _ => work.get(&records::xattr_key(id, acl::ACCESS))?,
        };
        match acl.map(|value| Acl::parse(&value)).transpose()?.flatten() {
            Some(acl) => acl.permits(gid, cred, want),
            None if cred.in_group(gid) => (perm >> 3) & want == want,
            None => perm & want == want,
        }
    };
    match granted {
        true => Ok(()),
        false => Err(Errno::EACCES.into()),
    }
}

/// Checks that the caller owns an inode, if that lies here.
///
/// # Errors
/// EPERM.
pub(super) fn check_owner(work: &mut Working<'_>, id: InodeId) -> Result<(), Fault> {
    let uid = work.cx.cred.uid;
    match matters(work) && work.inode(id)?.is_some_and(|inode| inode.uid != uid) {
        true => Err(Errno::EPERM.into()),
        false => Ok(()),
    }
}

/// Checks that the caller may remove or replace an entry of `parent` that names `victim`.
///
/// # Errors
/// EACCES, or EPERM under a sticky directory.
pub(super) fn check_removal(
    work: &mut Working<'_>,
    parent: InodeId,
    victim: InodeId,
) -> Result<(), Fault> {
    check(work, parent, WRITE | SEARCH)?;
    if !matters(work) {
        return Ok(());
    }
    let uid = work.cx.cred.uid;
    let sticky = work
        .inode(parent)?
        .is_some_and(|dir| dir.perm & libc::S_ISVTX != 0 && dir.uid != uid);
    match sticky && work.inode(victim)?.is_some_and(|inode| inode.uid != uid) {
        true => Err(Errno::EPERM.into()),
        false => Ok(()),
    }
}

/// Checks a change of attributes.
///
/// # Errors
/// EPERM or EACCES.
pub(super) fn check_setattr(
    work: &mut Working<'_>,
    id: InodeId,
    set: &SetAttr,
) -> Result<(), Fault> {
    if !matters(work) {
        return Ok(());
    }
    let cred = work.cx.cred;
    if set.uid.is_some_and(|uid| uid != cred.uid) || set.gid.is_some_and(|gid| !cred.in_group(gid))
    {
        return Err(Errno::EPERM.into());
    }
    if set.perm.is_some() || set.uid.is_some() || set.gid.is_some() {
        return check_owner(work, id);
    }
    let now = Some(set.ctime.unwrap_or(work.time));
    let by_hand = |time: Option<Time>| time != now && time.is_some();
    if by_hand(set.atime) || by_hand(set.mtime) {
        return check_owner(work, id);
    }
    check(work, id, WRITE)
}
