//! Rename, as POSIX and Linux have it, over any number of sets.

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::Part;
use mortar_protocol::ids::{InodeId, SetIndex};
use mortar_protocol::placement::Layout;

use super::Volume;
use super::hints::Target;
use super::make::{AGAIN, check_name};
use super::txn::Shares;
use super::types::{RenameMode, Res};

/// Directories above each other before a path is taken for a circle.
const MAX_DEPTH: usize = 4_096;
/// A directory and a name in it.
type Name = (InodeId, Bytes);

impl Volume {
    /// Renames. Gives the attributes of the inodes concerned that still exist, as far as they are known.
    ///
    /// # Errors
    /// ENOENT; EEXIST; ENOTDIR, EISDIR, ENOTEMPTY for a target that cannot be replaced; EINVAL for a directory moved
    /// below itself.
    pub async fn rename(
        &self,
        cred: Cred,
        from: (InodeId, Bytes),
        to: (InodeId, Bytes),
        mode: RenameMode,
    ) -> Res<Vec<Attr>> {
        for (_, name) in [&from, &to] {
            match check_name(name) {
                Err(Errno::EEXIST) => return Err(Errno::EBUSY),
                other => other?,
            }
        }
        for round in 0..AGAIN {
            let guess = round == 0;
            let Some((source, target)) = self.both(&from, &to, guess).await? else {
                continue;
            };
            match self.is_settled(&from, &to, source, target, mode) {
                Ok(false) => {}
                _ if guess => continue,
                Ok(true) if from == to || self.still_the_same(&from, &to, source).await? => {
                    return Ok(Vec::new());
                }
                Ok(true) => continue,
                Err(errno) => return Err(errno),
            }
            match self
                .move_name(&cred, &from, &to, (source, target), mode)
                .await
            {
                Ok(attrs) => {
                    let left = match mode {
                        RenameMode::Exchange => target,
                        _ => None,
                    };
                    self.0.names.put(from.0, &from.1, left);
                    self.0.names.put(to.0, &to.1, Some(source));
                    self.gives_back(&attrs);
                    return Ok(attrs);
                }
                // A lookup was overtaken: what the names lead to now says more.
                Err(Fault::Refused(Errno::EAGAIN | Errno::ENOENT | Errno::ESTALE)) => {}
                // The guess was wrong.
                Err(Fault::Refused(Errno::EEXIST | Errno::ENOTEMPTY)) if guess => {}
                Err(Fault::Refused(Errno::EEXIST)) if mode == RenameMode::Replace => {}
                Err(fault) => {
                    self.0.names.forget(from.0, &from.1);
                    self.0.names.forget(to.0, &to.1);
                    return Err(fault.errno());
                }
            }
        }
        Err(Errno::EBUSY)
    }

    /// What both names lead to; `None` if nothing was to be guessed.
    async fn both(
        &self,
        from: &Name,
        to: &Name,
        guess: bool,
    ) -> Res<Option<(Target, Option<Target>)>> {
        if guess {
            let source = self.0.names.get(from.0, &from.1).flatten();
            let target = self.0.names.get(to.0, &to.1);
            return Ok(match (source, target) {
                // A directory as a target must be known to be there: its removal is refused for other reasons.
                (Some(source), Some(target)) => Some((source, target)),
                _ => None,
            });
        }
        let source = self.dirent(from.0, &from.1);
        let target = self.dirent(to.0, &to.1);
        let (source, target) = futures_util::future::join(source, target).await;
        let source = source?.ok_or(Errno::ENOENT)?.target;
        Ok(Some((source, target?.map(|dirent| dirent.target))))
    }

    /// Whether both names lead to one inode at the same moment: each was looked up at a time of its own, and a rename
    /// in between shows an inode under its old and its new name.
    async fn still_the_same(&self, from: &Name, to: &Name, source: Target) -> Res<bool> {
        for name in [from, to] {
            let dirent = self.dirent(name.0, &name.1).await?;
            if dirent.is_none_or(|dirent| dirent.target.0 != source.0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether nothing is to be done; or why it cannot be done.
    fn is_settled(
        &self,
        from: &Name,
        to: &Name,
        source: Target,
        target: Option<Target>,
        mode: RenameMode,
    ) -> Res<bool> {
        if mode == RenameMode::NoReplace && (target.is_some() || from == to) {
            return Err(Errno::EEXIST);
        }
        let Some(target) = target else {
            return match mode {
                RenameMode::Exchange => Err(Errno::ENOENT),
                _ => Ok(false),
            };
        };
        if from == to || source.0 == target.0 {
            return Ok(true);
        }
        if mode == RenameMode::Replace {
            match (source.1 == FileKind::Dir, target.1 == FileKind::Dir) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        Ok(false)
    }

    async fn move_name(
        &self,
        cred: &Cred,
        from: &Name,
        to: &Name,
        (source, target): (Target, Option<Target>),
        mode: RenameMode,
    ) -> Result<Vec<Attr>, Fault> {
        let info = self.info();
        let layout = &info.layout;
        let mut shares = self.shares(layout, from, to, (source, target), mode);
        // Directories that get another parent, and where to.
        let mut moved: Vec<(InodeId, InodeId)> = Vec::new();
        if from.0 != to.0 {
            if source.1 == FileKind::Dir {
                moved.push((source.0.id, to.0));
            }
            if let (RenameMode::Exchange, Some((gfid, FileKind::Dir))) = (mode, target) {
                moved.push((gfid.id, from.0));
            }
        }
        let time = self.env().wall();
        if moved.is_empty() {
            return self.commit(shares, cred, time, None).await;
        }
        let root = layout.inode_set(InodeId::ROOT);
        let lock = shares.entry(root).or_default();
        lock.insert(0, Part::TreeLock);
        if !self.is_distributed() {
            // One entry: the set checks that the path found is still there.
            for (dir, new_parent) in moved {
                for (dir, parent) in self.path_up(dir, new_parent).await? {
                    lock.push(Part::ParentIs { dir, parent });
                }
            }
            return self.commit(shares, cred, time, None).await;
        }
        if shares.len() == 1
            && let Some(other) = layout.sets().into_iter().find(|set| *set != root)
        {
            // The lock must be held while the path is looked at: somebody else decides.
            shares.insert(other, Vec::new());
        }
        let check = Box::pin(async move {
            for (dir, new_parent) in moved {
                self.path_up(dir, new_parent).await?;
            }
            Ok(())
        });
        self.commit(shares, cred, time, Some((root, check))).await
    }

    /// Each set's share of a rename.
    fn shares(
        &self,
        layout: &Layout,
        from: &Name,
        to: &Name,
        (source, target): (Target, Option<Target>),
        mode: RenameMode,
    ) -> Shares {
        let mut shares = Shares::new();
        let mut add = |set: SetIndex, part: Part| shares.entry(set).or_default().push(part);
        let from_set = layout.name_set(from.0, &from.1);
        let to_set = layout.name_set(to.0, &to.1);
        let dirent = |name: &Name, new: Target, old: Option<Target>| Part::DirentAdd {
            parent: name.0,
            name: name.1.clone(),
            gfid: new.0,
            kind: new.1,
            replaces: old.map(|old| old.0),
        };
        let link = |id: InodeId, from: &Name, to: &Name| Part::LinkMove {
            id,
            from: from.clone(),
            to: to.clone(),
        };
        let source_set = layout.inode_set(source.0.id);
        match (mode, target) {
            (RenameMode::Exchange, Some(target)) => {
                add(from_set, dirent(from, target, Some(source)));
                add(to_set, dirent(to, source, Some(target)));
                add(source_set, link(source.0.id, from, to));
                add(layout.inode_set(target.0.id), link(target.0.id, to, from));
            }
            (_, target) => {
                let remove = Part::DirentRemove {
                    parent: from.0,
                    name: from.1.clone(),
                    expect: source.0,
                };
                add(from_set, remove);
                add(to_set, dirent(to, source, target));
                add(source_set, link(source.0.id, from, to));
                if let Some((gfid, kind)) = target {
                    self.add_unlink(&mut shares, gfid.id, kind, (to.0, &to.1));
                }
            }
        }
        shares
    }

    /// The way from `dir`'s future parent up to the root, as (directory, its parent) pairs.
    ///
    /// # Errors
    /// EINVAL if it leads through `dir`.
    async fn path_up(&self, dir: InodeId, new_parent: InodeId) -> Res<Vec<(InodeId, InodeId)>> {
        let mut path = Vec::new();
        let mut at = new_parent;
        loop {
            if at == dir {
                return Err(Errno::EINVAL);
            }
            if at == InodeId::ROOT {
                return Ok(path);
            }
            if path.len() >= MAX_DEPTH {
                return Err(Errno::ELOOP);
            }
            let parent = match self.parent(at).await {
                // Removed meanwhile: nothing can be moved into it.
                Err(Errno::ESTALE | Errno::ENOENT) => return Err(Errno::ENOENT),
                other => other?,
            };
            path.push((at, parent));
            at = parent;
        }
    }
}
