//! Names: lookup, making, removing and renaming, listings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind};
use mortar_protocol::error::Errno;
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::{MAX_NAME, MAX_SYMLINK};

use super::backend::{Backend, NewInode, RenameMode, Res};
use super::{Core, Vfs};

/// A name's inode as the kernel is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Attributes.
    pub attr: Attr,
    /// How long they may be shown.
    pub attr_ttl: Duration,
    /// How long the name may be shown.
    pub entry_ttl: Duration,
}

impl<B: Backend> Vfs<B> {
    fn entry(&self, attr: Attr, whole: bool) -> Entry {
        let options = &self.0.options;
        Entry {
            attr,
            attr_ttl: if whole {
                options.attr_ttl
            } else {
                Duration::ZERO
            },
            entry_ttl: options.entry_ttl,
        }
    }

    /// Looks a name up; "." and ".." too, for any inode (exported mounts ask so).
    ///
    /// # Errors
    ///
    /// ENOENT; those of the volume.
    pub async fn lookup(&self, cred: Cred, parent: InodeId, name: Bytes) -> Res<Entry> {
        let core = &self.0;
        check_name(&name)?;
        match &name[..] {
            b"." => {
                let attr = core.fetch_attr(parent).await?;
                return Ok(self.entry(attr, true));
            }
            b".." => {
                let above = core.backend.parent(parent).await?;
                let attr = core.fetch_attr(above).await?;
                return Ok(self.entry(attr, true));
            }
            _ => {}
        }
        let found = core.backend.lookup(cred, parent, name.clone()).await?;
        core.recent.named(parent, &name, &found.attr);
        let attr = core.settled_attr(found.attr).await?;
        Ok(self.entry(attr, found.whole))
    }

    /// Makes a directory, symbolic link, device, pipe, socket or (closed) file.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn make(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        new: NewInode,
    ) -> Res<Entry> {
        check_name(&name)?;
        if new.kind == FileKind::Symlink && new.target.len() > MAX_SYMLINK {
            return Err(Errno::ENAMETOOLONG);
        }
        let core = &self.0;
        let attr = core.backend.create(cred, parent, name.clone(), new).await?;
        core.recent.named(parent, &name, &attr);
        core.recent.has_changed();
        core.outdated(parent);
        let attr = core.settled_attr(attr).await?;
        Ok(self.entry(attr, true))
    }

    /// Removes a name: of a directory if `dir`, else of anything else.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn remove(&self, cred: Cred, parent: InodeId, name: Bytes, dir: bool) -> Res<()> {
        let core = &self.0;
        let id = core.settle_name(&cred, parent, &name).await;
        let left = core.backend.remove(cred, parent, name.clone(), dir).await?;
        core.recent.unnamed(parent, &name);
        core.concerned(id, parent, left);
        Ok(())
    }

    /// Renames.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn rename(
        &self,
        cred: Cred,
        from: (InodeId, Bytes),
        to: (InodeId, Bytes),
        mode: RenameMode,
    ) -> Res<()> {
        check_name(&from.1)?;
        check_name(&to.1)?;
        let core = &self.0;
        let source = core.settle_name(&cred, from.0, &from.1).await;
        let target = core.settle_name(&cred, to.0, &to.1).await;
        let left = core
            .backend
            .rename(cred, from.clone(), to.clone(), mode)
            .await?;
        core.recent.unnamed(from.0, &from.1);
        core.recent.unnamed(to.0, &to.1);
        for attr in &left {
            core.recent.moved(attr.gfid.id);
        }
        core.concerned(source, from.0, left);
        core.concerned(target, to.0, Vec::new());
        Ok(())
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn link(&self, cred: Cred, id: InodeId, parent: InodeId, name: Bytes) -> Res<Entry> {
        check_name(&name)?;
        let core = &self.0;
        core.settle_id(id).await;
        let attr = core.backend.link(cred, id, parent, name.clone()).await?;
        core.recent.named(parent, &name, &attr);
        core.recent.has_changed();
        core.outdated(parent);
        let attr = core.settled_attr(attr).await?;
        Ok(self.entry(attr, true))
    }

    /// Opens a directory; only this client's own memory is touched.
    pub fn open_dir(&self, cred: Cred, id: InodeId) -> u64 {
        self.0.add_handle(id, cred, 0, |_| ()).0
    }

    /// The directory that holds `dir`, as a listing shows it.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn dir_parent(&self, dir: InodeId) -> Res<InodeId> {
        if dir == InodeId::ROOT {
            return Ok(dir);
        }
        match self.0.recent.parent(dir) {
            Some(parent) => Ok(parent),
            None => self.0.backend.parent(dir).await,
        }
    }
}

impl<B: Backend> Core<B> {
    /// Before a name changes, what is held of its inode is sent. Gives the inode, where it is known.
    async fn settle_name(
        self: &Arc<Self>,
        cred: &Cred,
        parent: InodeId,
        name: &Bytes,
    ) -> Option<InodeId> {
        let held = self.held.load(std::sync::atomic::Ordering::Relaxed) > 0;
        let id = match self.recent.lookup(parent, name) {
            Some(id) => id,
            None if held => {
                let found = self.backend.lookup(cred.clone(), parent, name.clone());
                found.await.ok()?.attr.gfid.id
            }
            None => return None,
        };
        if held {
            self.settle_id(id).await;
        }
        Some(id)
    }

    /// An inode's names or a directory's entries changed: its attributes are asked for before they are shown again.
    fn outdated(&self, id: InodeId) {
        if let Some(node) = self.node(id) {
            node.state.lock().outdated();
        }
    }

    /// A name changed: its inode, its directory, and the attributes that came with the answer.
    fn concerned(&self, id: Option<InodeId>, parent: InodeId, left: Vec<Attr>) {
        self.outdated(parent);
        if let Some(id) = id {
            self.outdated(id);
        }
        for attr in left {
            self.arrived(attr);
        }
    }
}

fn check_name(name: &[u8]) -> Res<()> {
    if name.len() > MAX_NAME {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok(())
}
