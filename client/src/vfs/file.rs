//! Open files: open, read, write, attributes, fsync, close, and what else is done to a file's inode.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, SetAttr};
use mortar_protocol::error::Errno;
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::MAX_FILE_SIZE;

use super::backend::{Backend, FileOp, NewInode, Res};
use super::node::Node;
use super::{Core, Handle, Vfs};

/// What the kernel is told of an opened file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFile {
    /// Handle.
    pub handle: u64,
    /// The kernel's pages of it are right.
    pub keep_pages: bool,
    /// Reads and writes go past the kernel's pages.
    pub direct: bool,
}

/// What a write call says beside its data.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteHow {
    /// Flags of the file at the time (O_APPEND, O_SYNC, O_DSYNC, O_DIRECT).
    pub flags: i32,
    /// It writes back pages of a mapping.
    pub mapped: bool,
    /// The writer may not keep setuid and setgid.
    pub kill_suid: bool,
}

impl WriteHow {
    fn sync(self) -> bool {
        self.flags & (libc::O_SYNC | libc::O_DSYNC) != 0
    }

    fn append(self) -> bool {
        self.flags & libc::O_APPEND != 0 && !self.mapped
    }

    fn direct(self) -> bool {
        self.flags & libc::O_DIRECT != 0 || self.mapped
    }
}

impl<B: Backend> Vfs<B> {
    /// Opens a file. `flags` are those of open(2), O_CREAT and O_EXCL excepted.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn open(&self, cred: Cred, id: InodeId, flags: i32) -> Res<OpenFile> {
        let core = &self.0;
        core.settle_id(id).await;
        let known = match core.node(id) {
            Some(node) => node.state.lock().pages(),
            None => core.recent.fact(id).and_then(|fact| fact.pages),
        };
        let truncate = flags & libc::O_TRUNC != 0;
        let direct = flags & libc::O_DIRECT != 0;
        let data = !truncate && !direct && flags & libc::O_ACCMODE != libc::O_WRONLY;
        let opened = core.backend.open(cred.clone(), id, known, data).await?;
        let now = core.now();
        let attr = opened.attr;
        if attr.nlink == 0 && !core.is_open(id) {
            // Another client has removed the name that the kernel still knows; it looks that up again.
            return Err(Errno::ESTALE);
        }
        let (handle, ()) = core.add_handle(id, cred.clone(), flags, |state| {
            state.opened(attr, opened.data, now);
        });
        if truncate {
            // The kernel has asked for what ftruncate does; whoever may open for writing may do it.
            let kill_suid = cred.uid != 0;
            let result = self
                .setattr(
                    cred,
                    id,
                    SetAttr {
                        kill_suid,
                        ..SetAttr::default()
                    },
                    Some(0),
                )
                .await;
            if let Err(errno) = result {
                self.drop_handle(handle);
                return Err(errno);
            }
        }
        Ok(OpenFile {
            handle,
            keep_pages: known == Some(attr.change) && !truncate,
            direct,
        })
    }

    /// The kernel has dropped an inode, and its pages with it: the next open is to bring the contents again.
    pub fn kernel_forgot(&self, id: InodeId) {
        self.0.recent.pages_gone(id);
    }

    /// Makes and opens a file; opens it if it exists and `flags` lacks O_EXCL.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn create(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        (perm, umask): (u32, u32),
        flags: i32,
    ) -> Res<(Attr, OpenFile)> {
        let core = &self.0;
        let new = NewInode {
            kind: FileKind::File,
            perm,
            umask,
            rdev: 0,
            target: Bytes::new(),
        };
        let made = core
            .backend
            .create(cred.clone(), parent, name.clone(), new)
            .await;
        match made {
            Ok(attr) => {
                let now = core.now();
                core.recent.named(parent, &name, &attr);
                let (handle, ()) = core.add_handle(attr.gfid.id, cred, flags, |state| {
                    state.opened(attr, Some(Bytes::new()), now);
                });
                let direct = flags & libc::O_DIRECT != 0;
                let file = OpenFile {
                    handle,
                    keep_pages: false,
                    direct,
                };
                Ok((attr, file))
            }
            Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => {
                let found = core.backend.lookup(cred.clone(), parent, name).await?;
                if found.attr.kind != FileKind::File {
                    return Err(Errno::EEXIST);
                }
                let id = found.attr.gfid.id;
                let file = self.open(cred, id, flags).await?;
                let attr = core.settled_attr(found.attr).await?;
                Ok((self.try_getattr(id).map_or(attr, |(attr, _)| attr), file))
            }
            Err(errno) => Err(errno),
        }
    }

    /// Holds a write, if it may be held and there is room.
    pub fn try_write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Option<Res<()>> {
        let core = &self.0;
        let handle = core.handle(handle).ok()?;
        if !core.tuning.write_behind() || how.direct() || how.sync() {
            return None;
        }
        if !core.has_room(&handle.node, data.len()) {
            return None;
        }
        core.hold_write(&handle, offset, data, how)
    }

    /// Writes.
    ///
    /// # Errors
    ///
    /// Those of the volume; also one that held changes of this file met earlier.
    pub async fn write(&self, handle: u64, offset: u64, data: Bytes, how: WriteHow) -> Res<()> {
        let core = &self.0;
        let handle = core.handle(handle)?;
        let node = &handle.node;
        core.usable(node)?;
        if how.direct() || !core.tuning.write_behind() {
            if offset.saturating_add(data.len() as u64) > MAX_FILE_SIZE {
                return Err(Errno::EFBIG);
            }
            core.settle(node).await;
            if let Some(errno) = node.state.lock().take_error(handle.number) {
                return Err(errno);
            }
            let mut ops = Vec::new();
            if how.kill_suid {
                ops.push(FileOp::Set(SetAttr {
                    kill_suid: true,
                    ..SetAttr::default()
                }));
            }
            ops.push(match how.append() {
                true => FileOp::Append { data },
                false => FileOp::Write { offset, data },
            });
            let cred = handle.cred.clone();
            return core
                .change_now(cred, node.id, ops, how.sync())
                .await
                .map(drop);
        }
        loop {
            core.wait_for_room(node, data.len()).await;
            if let Some(result) = core.hold_write(&handle, offset, &data, how) {
                result?;
                break;
            }
            core.fetch_attr(node.id).await?;
        }
        if how.sync() {
            core.flush_durably(node).await?;
            if let Some(errno) = node.state.lock().take_error(handle.number) {
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Holds an attribute change, if the file is open here and the change may be held.
    pub fn try_setattr(
        &self,
        cred: &Cred,
        id: InodeId,
        set: SetAttr,
        size: Option<u64>,
    ) -> Option<Res<(Attr, Duration)>> {
        let core = &self.0;
        let node = core.node(id)?;
        let first;
        let more;
        {
            let mut state = node.state.lock();
            let (attr, _) = state.shown()?;
            if !core.tuning.write_behind()
                || state.handles.is_empty()
                || state.handles.values().any(Option::is_some)
                || attr.kind != FileKind::File
                || size.is_some_and(|size| size.max(attr.size) > core.backend.shard_size())
            {
                return None;
            }
            let (time, now) = (core.env.wall(), core.now());
            first = state.held_since.is_none();
            more = state.hold(cred, now, |held| {
                if let Some(size) = size {
                    held.truncate(size, time);
                }
                if set != SetAttr::default() || size.is_none() {
                    held.set(set, time);
                }
            });
            if size.is_some() {
                state.forget_data();
            }
        }
        core.held_more(&node, more, first);
        core.shown(&node).map(Ok)
    }

    /// Changes attributes and size.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn setattr(
        &self,
        cred: Cred,
        id: InodeId,
        mut set: SetAttr,
        size: Option<u64>,
    ) -> Res<(Attr, Duration)> {
        let core = &self.0;
        if size.is_some_and(|size| size > MAX_FILE_SIZE) {
            return Err(Errno::EFBIG);
        }
        if let Some(done) = self.try_setattr(&cred, id, set.clone(), size) {
            return done;
        }
        if set.kill_suid && size.is_none() && self.kind(id).await? == FileKind::Dir {
            // A directory keeps its setgid bit when its owner changes.
            set.kill_suid = false;
        }
        let mut ops = Vec::new();
        if let Some(size) = size {
            ops.push(FileOp::Truncate { size });
        }
        if set != SetAttr::default() || size.is_none() {
            ops.push(FileOp::Set(set));
        }
        let attr = core.change_now(cred, id, ops, false).await?;
        Ok((attr, core.options.attr_ttl))
    }

    async fn kind(&self, id: InodeId) -> Res<FileKind> {
        match self.0.recent.fact(id) {
            Some(fact) => Ok(fact.kind),
            None => Ok(self.getattr(id).await?.0.kind),
        }
    }

    /// What close does, if there is nothing to wait for.
    pub fn try_flush(&self, handle: u64, owner: u64) -> Option<Res<()>> {
        let handle = self.0.handle(handle).ok()?;
        let mut state = handle.node.state.lock();
        if state.unanswered() || state.lock_owners.contains(&owner) {
            return None;
        }
        Some(state.take_error(handle.number).map_or(Ok(()), Err))
    }

    /// Close of one descriptor: sends what is held and releases the owner's locks.
    ///
    /// # Errors
    ///
    /// What held changes of this file met.
    pub async fn flush(&self, cred: Cred, handle: u64, owner: u64) -> Res<()> {
        let handle = self.0.handle(handle)?;
        let node = &handle.node;
        self.0.settle(node).await;
        self.unlock_all(cred, node, owner).await;
        match node.state.lock().take_error(handle.number) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    /// The last descriptor of a handle is gone, and with it all locks taken through it: those of an open file
    /// description have no other end (those of processes ended with the processes' own descriptors). `owner`: a flock
    /// goes with it.
    pub async fn release(&self, cred: Cred, handle: u64, owner: Option<u64>) {
        if let Ok(handle) = self.0.handle(handle) {
            let mut owners = std::mem::take(&mut *handle.lockers.lock());
            owners.extend(owner);
            if !owners.is_empty() {
                self.0.settle(&handle.node).await;
            }
            for owner in owners {
                self.unlock_all(cred.clone(), &handle.node, owner).await;
            }
        }
        self.drop_handle(handle);
    }

    /// Says that `owner` takes a lock through a handle.
    pub fn locks_through(&self, handle: u64, owner: u64) {
        if let Ok(handle) = self.0.handle(handle) {
            handle.lockers.lock().insert(owner);
        }
    }

    /// Whether locks may have been taken through a handle.
    pub fn may_hold_locks(&self, handle: u64) -> bool {
        let handle = self.0.handle(handle);
        handle.is_ok_and(|handle| !handle.lockers.lock().is_empty())
    }

    /// The same without locks; never waits.
    pub fn drop_handle(&self, handle: u64) {
        let core = &self.0;
        let Some(handle) = core.handles.write().remove(&handle) else {
            return;
        };
        let to_send = {
            let mut state = handle.node.state.lock();
            state.handles.remove(&handle.number);
            state.unanswered() || state.has_read()
        };
        if to_send {
            core.start_flush(&handle.node);
        }
        core.forget_if_idle(&handle.node);
    }

    /// Sends and flushes everything of a file.
    ///
    /// # Errors
    ///
    /// Those of the volume, and what held changes met.
    pub async fn fsync(&self, handle: u64) -> Res<()> {
        let handle = self.0.handle(handle)?;
        let result = self.0.flush_durably(&handle.node).await;
        match handle.node.state.lock().take_error(handle.number) {
            Some(errno) => Err(errno),
            None => result,
        }
    }

    /// Flushes the names of a directory.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn fsync_dir(&self, id: InodeId) -> Res<()> {
        self.0.backend.fsync(id).await
    }

    /// fallocate(2).
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP for collapsing and inserting ranges; those of the volume.
    pub async fn fallocate(&self, handle: u64, offset: u64, len: u64, mode: i32) -> Res<()> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let handle = self.0.handle(handle)?;
        if offset.saturating_add(len) > MAX_FILE_SIZE {
            return Err(Errno::EFBIG);
        }
        let reserve = |zero| FileOp::Reserve {
            offset,
            len,
            keep_size: mode & KEEP != 0,
            zero,
        };
        let op = match mode {
            PUNCH => FileOp::Punch { offset, len },
            0 | KEEP => reserve(false),
            mode if mode & !KEEP == ZERO => reserve(true),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let cred = handle.cred.clone();
        self.0
            .change_now(cred, handle.node.id, vec![op], false)
            .await
            .map(drop)
    }

    /// Next data, or hole.
    ///
    /// # Errors
    ///
    /// ENXIO behind the end; those of the volume.
    pub async fn seek(&self, handle: u64, offset: u64, hole: bool) -> Res<u64> {
        let handle = self.0.handle(handle)?;
        self.0.settle(&handle.node).await;
        self.0.backend.seek(handle.node.id, offset, hole).await
    }

    /// copy_file_range(2): gives how much was copied.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn copy(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Res<u64> {
        let core = &self.0;
        let (source, target) = (core.handle(from.0)?, core.handle(to.0)?);
        core.settle(&source.node).await;
        core.settle(&target.node).await;
        target.node.state.lock().direct_begins();
        let result = core
            .backend
            .copy(
                target.cred.clone(),
                (source.node.id, from.1),
                (target.node.id, to.1),
                len,
            )
            .await;
        let changed = result.map(|(_, changed)| changed);
        core.direct_answered(&target.node, changed)?;
        result.map(|(copied, _)| copied)
    }
}

impl<B: Backend> Core<B> {
    /// How old data may be that is given without asking.
    pub(super) fn fresh(&self) -> Duration {
        self.options.attr_ttl.min(Duration::from_secs(1))
    }

    /// EIO for a file whose locks went with the session.
    pub(super) fn usable(&self, node: &Node) -> Res<()> {
        match node.state.lock().lost_locks(self.backend.session()) {
            true => Err(Errno::EIO),
            false => Ok(()),
        }
    }

    /// Holds a write. `None` if the attributes to show are not known.
    fn hold_write(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Option<Res<()>> {
        let node = &handle.node;
        let (first, more);
        let mut moved = false;
        {
            let mut state = node.state.lock();
            if let Some(errno) = state.take_error(handle.number) {
                return Some(Err(errno));
            }
            if state.lost_locks(self.backend.session()) {
                return Some(Err(Errno::EIO));
            }
            let (attr, _) = state.shown()?;
            let at = if how.append() { attr.size } else { offset };
            if at.saturating_add(data.len() as u64) > MAX_FILE_SIZE {
                return Some(Err(Errno::EFBIG));
            }
            let (time, now) = (self.env.wall(), self.now());
            first = state.held_since.is_none();
            let special = attr.perm & (libc::S_ISUID | libc::S_ISGID) != 0 || attr.has_xattr;
            more = state.hold(&handle.cred, now, |held| {
                if how.kill_suid && special {
                    let kill_suid = true;
                    held.set(
                        SetAttr {
                            kill_suid,
                            ..SetAttr::default()
                        },
                        time,
                    );
                }
                match how.append() {
                    true => held.append(at, data, time),
                    false => held.write(at, data, time),
                }
            });
            if how.append() && at != offset {
                // The kernel has put the data into its pages at the end it knew.
                state.forget_pages();
                moved = true;
            }
        }
        if moved {
            self.invalidate(node.id);
        }
        self.held_more(node, more, first);
        Some(Ok(()))
    }
}
