//! Making, linking and removing names.

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Fop, ParentHint, Part, Reply};
use mortar_protocol::ids::{Gfid, InodeId, Slot};
use mortar_protocol::limits::{MAX_NAME, MAX_SYMLINK};
use mortar_protocol::placement;

use super::Volume;
use super::call::unexpected;
use super::hints::Target;
use super::questions::is_question;
use super::txn::Shares;
use super::types::{NewInode, Res};

/// Ids drawn for a new inode before it is given up (one in 2^48 is taken).
const DRAWS: usize = 16;
/// How often a change of names is made again because another client changed them meanwhile.
pub(super) const AGAIN: usize = 32;
const S_ISGID: u32 = 0o2000;
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// A name that can be made.
pub(super) fn check_name(name: &[u8]) -> Res<()> {
    match name {
        b"" => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EEXIST),
        name if name.len() > MAX_NAME => Err(Errno::ENAMETOOLONG),
        name if name.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

impl Volume {
    /// Makes an inode and its name.
    ///
    /// # Errors
    /// EEXIST, ENOENT (the directory is gone), ENOSPC.
    pub async fn create(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        new: NewInode,
    ) -> Res<Attr> {
        check_name(&name)?;
        if new.target.len() > MAX_SYMLINK {
            return Err(Errno::ENAMETOOLONG);
        }
        let info = self.info();
        let slot = placement::slot(parent, &name);
        let index = info.layout.set_of(slot);
        let hint = if info.layout.inode_set(parent) == index {
            None
        } else {
            Some(self.parent_hint(parent).await?)
        };
        for _ in 0..DRAWS {
            let gfid = self.draw(slot);
            let parts = vec![
                Part::InodeNew {
                    gfid,
                    kind: new.kind,
                    perm: new.perm & 0o7777,
                    umask: new.umask,
                    uid: cred.uid,
                    gid: cred.gid,
                    rdev: new.rdev,
                    target: new.target.clone(),
                    parent,
                    name: name.clone(),
                    hint: hint.clone(),
                },
                Part::DirentAdd {
                    parent,
                    name: name.clone(),
                    gfid,
                    kind: new.kind,
                    replaces: None,
                },
            ];
            let shares = Shares::from([(index, parts)]);
            let time = self.env().wall();
            match self.commit(shares, &cred, time, None).await {
                Ok(attrs) => {
                    let attr = attrs.into_iter().next().ok_or(Errno::EIO)?;
                    self.0.names.put(parent, &name, Some((gfid, new.kind)));
                    self.seen(&attr);
                    return Ok(attr);
                }
                Err(Fault::IdTaken) => {}
                Err(fault) => {
                    self.0.names.forget(parent, &name);
                    return Err(fault.errno());
                }
            }
        }
        Err(Errno::EIO)
    }

    /// An identity whose first 16 bits are the slot of its name; never 0 or the root's.
    fn draw(&self, slot: Slot) -> Gfid {
        loop {
            let id = (u64::from(slot) << 48) | (self.env().random() >> 16);
            if id > InodeId::ROOT.0 {
                return Gfid {
                    id: InodeId(id),
                    generation: self.env().random(),
                };
            }
        }
    }

    /// What a directory on another set gives to inodes made in it.
    async fn parent_hint(&self, dir: InodeId) -> Res<ParentHint> {
        let now = self.env().now();
        if let Some(hint) = self.0.parents.get(dir, now) {
            return Ok(hint);
        }
        let (attr, _) = match self.attr_and_cut(dir).await {
            Err(Errno::ESTALE) => return Err(Errno::ENOENT),
            other => other?,
        };
        if attr.kind != FileKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        let default_acl = if attr.has_xattr {
            match self.getxattr(dir, Bytes::from_static(DEFAULT_ACL)).await {
                Ok(acl) => Some(acl),
                Err(Errno::ENODATA) => None,
                Err(errno) => return Err(errno),
            }
        } else {
            None
        };
        let hint = ParentHint {
            setgid: (attr.perm & S_ISGID != 0).then_some(attr.gid),
            default_acl,
        };
        self.0.parents.put(dir, now, hint.clone());
        Ok(hint)
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// EPERM for a directory, EEXIST, EMLINK, ENOENT.
    pub async fn link(&self, cred: Cred, id: InodeId, parent: InodeId, name: Bytes) -> Res<Attr> {
        check_name(&name)?;
        let (attr, _) = match self.attr_and_cut(id).await {
            Err(Errno::ESTALE) => return Err(Errno::ENOENT),
            other => other?,
        };
        if attr.kind == FileKind::Dir {
            return Err(Errno::EPERM);
        }
        let info = self.info();
        let mut shares = Shares::new();
        shares
            .entry(info.layout.name_set(parent, &name))
            .or_default()
            .push(Part::DirentAdd {
                parent,
                name: name.clone(),
                gfid: attr.gfid,
                kind: attr.kind,
                replaces: None,
            });
        shares
            .entry(info.layout.inode_set(id))
            .or_default()
            .push(Part::LinkAdd {
                id,
                parent,
                name: name.clone(),
            });
        for _ in 0..AGAIN {
            let time = self.env().wall();
            match self.commit(shares.clone(), &cred, time, None).await {
                Ok(attrs) => {
                    self.0
                        .names
                        .put(parent, &name, Some((attr.gfid, attr.kind)));
                    if let Some(told) = attrs.into_iter().find(|attr| attr.gfid.id == id) {
                        return Ok(told);
                    }
                    return match self.getattr(id).await {
                        // Another has removed all its names since: the link was made all the same.
                        Err(Errno::ESTALE) => Ok(Attr {
                            nlink: attr.nlink.saturating_add(1),
                            ..attr
                        }),
                        told => told,
                    };
                }
                Err(Fault::Refused(Errno::EAGAIN)) => {}
                Err(fault) => {
                    self.0.names.forget(parent, &name);
                    return Err(fault.errno());
                }
            }
        }
        Err(Errno::EBUSY)
    }

    /// Removes a name: of a directory if `dir`, else of anything else. Gives the attributes of the inode if it still
    /// exists (as far as they are known).
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOTDIR, ENOTEMPTY.
    pub async fn remove(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        dir: bool,
    ) -> Res<Vec<Attr>> {
        if name[..] == b"."[..] || name[..] == b".."[..] {
            return Err(if dir { Errno::EINVAL } else { Errno::EISDIR });
        }
        let mut hinted = self.0.names.get(parent, &name).flatten();
        for _ in 0..AGAIN {
            let guessed = hinted.is_some();
            let (target, missing) = match hinted.take() {
                Some(target) => (target, false),
                None => self.removable(parent, &name).await?,
            };
            match (target.1 == FileKind::Dir, dir) {
                (is, wanted) if is != wanted && guessed => continue,
                (true, false) => return Err(Errno::EISDIR),
                (false, true) => return Err(Errno::ENOTDIR),
                _ => {}
            }
            let shares = self.removal(parent, &name, target, missing);
            let time = self.env().wall();
            match self.commit(shares, &cred, time, None).await {
                Ok(attrs) => {
                    self.0.names.put(parent, &name, None);
                    self.gives_back(&attrs);
                    return Ok(attrs);
                }
                // The guess was wrong, or the name led elsewhere by then: what it leads to now says whether it is there.
                Err(Fault::Refused(Errno::EAGAIN | Errno::ENOENT | Errno::ESTALE)) => {}
                Err(fault) => {
                    self.0.names.forget(parent, &name);
                    return Err(fault.errno());
                }
            }
        }
        Err(Errno::EBUSY)
    }

    /// What a name leads to, and whether that is missing (then only the name goes).
    async fn removable(&self, parent: InodeId, name: &Bytes) -> Res<(Target, bool)> {
        let dirent = self.dirent(parent, name).await?.ok_or(Errno::ENOENT)?;
        let target = dirent.target;
        if dirent.missing {
            return Ok((target, true));
        }
        if dirent.attr.is_some() {
            return Ok((target, false));
        }
        match self.attr_and_cut(target.0.id).await {
            Ok((attr, _)) => Ok((target, attr.gfid != target.0)),
            Err(Errno::ESTALE | Errno::ENOENT) => Ok((target, true)),
            Err(errno) => Err(errno),
        }
    }

    fn removal(&self, parent: InodeId, name: &Bytes, target: Target, missing: bool) -> Shares {
        let (gfid, kind) = target;
        let layout = &self.info().layout;
        let mut shares = Shares::new();
        shares
            .entry(layout.name_set(parent, name))
            .or_default()
            .push(Part::DirentRemove {
                parent,
                name: name.clone(),
                expect: gfid,
            });
        if !missing {
            self.add_unlink(&mut shares, gfid.id, kind, (parent, name));
        }
        shares
    }

    /// Adds what takes a name away from an inode: from a directory, on every set.
    pub(super) fn add_unlink(
        &self,
        shares: &mut Shares,
        id: InodeId,
        kind: FileKind,
        (parent, name): (InodeId, &Bytes),
    ) {
        let layout = &self.info().layout;
        let held_open = self.is_open(id);
        if kind == FileKind::Dir {
            for index in layout.sets() {
                let close = Part::DirClose { dir: id, held_open };
                shares.entry(index).or_default().push(close);
            }
        } else {
            shares
                .entry(layout.inode_set(id))
                .or_default()
                .push(Part::LinkRemove {
                    id,
                    parent,
                    name: name.clone(),
                    held_open,
                });
        }
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA.
    pub async fn getxattr(&self, id: InodeId, name: Bytes) -> Res<Bytes> {
        if is_question(&name) {
            return self.answer(id, &name).await;
        }
        self.bytes(id, Fop::GetXattr { id, name }).await
    }

    /// Names of all extended attributes, each followed by a zero byte.
    ///
    /// # Errors
    /// ESTALE if the inode is gone.
    pub async fn listxattr(&self, id: InodeId) -> Res<Bytes> {
        self.bytes(id, Fop::ListXattr { id }).await
    }

    async fn bytes(&self, id: InodeId, fop: Fop) -> Res<Bytes> {
        match self.look(&self.inode_set(id), fop).await?.reply {
            Reply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(check_name(b"a"), Ok(()));
        assert_eq!(check_name(&[b'x'; 255]), Ok(()));
        assert_eq!(check_name(&[b'x'; 256]), Err(Errno::ENAMETOOLONG));
        assert_eq!(check_name(b".."), Err(Errno::EEXIST));
        assert_eq!(check_name(b"a/b"), Err(Errno::EINVAL));
        assert_eq!(check_name(b""), Err(Errno::ENOENT));
    }
}
