//! Open files: open, read, write, attributes, fsync, close, and what else is done to a file's inode.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::FutureExt;
use mortar_protocol::attr::{Attr, Cred, FileKind, SetAttr};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::XattrMode;
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::{MAX_FILE_SIZE, MAX_XATTR_NAME, MAX_XATTR_VALUE};

use super::ahead::{Plan, assemble, ready};
use super::backend::{Backend, FileOp, NewInode, Res};
use super::held::Local;
use super::node::Node;
use super::{Core, Handle, Vfs};
use crate::volume::questions::is_question;

/// The extended attributes that hold ACLs.
const ACL_NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

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

    /// Data from what is known here.
    pub fn try_read(&self, handle: u64, offset: u64, len: u32) -> Option<Res<Bytes>> {
        let core = &self.0;
        let handle = core.handle(handle).ok()?;
        if let Err(errno) = core.usable(&handle.node) {
            return Some(Err(errno));
        }
        let read = core
            .local_read(&handle, offset, len)
            .or_else(|| core.ahead_read(&handle, offset, len));
        if let Some(Ok(_)) = read {
            core.was_read(&handle);
        }
        read
    }

    /// Reads; shorter at the end of the file.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn read(&self, handle: u64, offset: u64, len: u32) -> Res<Bytes> {
        let core = &self.0;
        let handle = core.handle(handle)?;
        let data = self.read_range(&handle, offset, len).await?;
        core.was_read(&handle);
        Ok(data)
    }

    async fn read_range(&self, handle: &Arc<Handle>, offset: u64, len: u32) -> Res<Bytes> {
        let core = &self.0;
        let node = handle.node.clone();
        core.usable(&node)?;
        if let Some(result) = core.local_read(handle, offset, len) {
            return result;
        }
        let (overlaps, len) = {
            let state = node.state.lock();
            let local = state.read_local(offset, len, core.now(), core.fresh());
            let overlaps = state.unanswered() && local != Local::Nothing;
            match state.shown() {
                // A held truncation hides what the servers still have.
                Some((attr, _)) if state.unanswered() && !overlaps => {
                    let left = attr.size.saturating_sub(offset);
                    (false, u64::from(len).min(left) as u32)
                }
                _ => (overlaps, len),
            }
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        if overlaps {
            core.settle(&node).await;
        }
        core.plan_ahead(handle, offset, len);
        if let Some(data) = core.wait_ahead(handle, offset, len).await {
            return data;
        }
        core.backend.read(node.id, offset, len).await
    }

    /// Reads what the servers have now, past everything known here (O_DIRECT).
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn read_direct(&self, handle: u64, offset: u64, len: u32) -> Res<Bytes> {
        let handle = self.0.handle(handle)?;
        self.0.usable(&handle.node)?;
        self.0.settle(&handle.node).await;
        let data = self.0.backend.read(handle.node.id, offset, len).await?;
        self.0.was_read(&handle);
        Ok(data)
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

    /// Whether it is known that an inode has no extended attributes.
    pub fn has_no_xattr(&self, id: InodeId) -> bool {
        let core = &self.0;
        if let Some(node) = core.node(id)
            && let Some((attr, _)) = core.shown(&node)
        {
            return !attr.has_xattr;
        }
        core.recent.fact(id).is_some_and(|fact| {
            !fact.has_xattr && core.now().since(fact.at) <= core.options.attr_ttl
        })
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    ///
    /// ENODATA if it is absent; those of the volume.
    pub async fn getxattr(&self, id: InodeId, name: Bytes) -> Res<Bytes> {
        if self.has_no_xattr(id) && !is_question(&name) {
            return Err(Errno::ENODATA);
        }
        self.0.backend.getxattr(id, name).await
    }

    /// Names of all extended attributes, each followed by a zero byte.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn listxattr(&self, id: InodeId) -> Res<Bytes> {
        if self.has_no_xattr(id) {
            return Ok(Bytes::new());
        }
        self.0.backend.listxattr(id).await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    ///
    /// ERANGE and E2BIG for sizes Linux does not allow; those of the volume.
    pub async fn setxattr(
        &self,
        cred: Cred,
        id: InodeId,
        name: Bytes,
        value: Bytes,
        mode: XattrMode,
    ) -> Res<()> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME {
            return Err(Errno::ERANGE);
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(Errno::E2BIG);
        }
        // ACLs change permission bits and what is checked, which the kernel keeps.
        let acl = ACL_NAMES.contains(&&name[..]);
        let op = FileOp::SetXattr { name, value, mode };
        self.0.change_now(cred, id, vec![op], false).await?;
        if acl {
            self.0.recent.forget(id);
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// ENODATA if it is absent; those of the volume.
    pub async fn removexattr(&self, cred: Cred, id: InodeId, name: Bytes) -> Res<()> {
        let op = FileOp::RemoveXattr { name };
        self.0.change_now(cred, id, vec![op], false).await.map(drop)
    }
}

impl<B: Backend> Core<B> {
    /// How old data may be that is given without asking.
    fn fresh(&self) -> Duration {
        self.options.attr_ttl.min(Duration::from_secs(1))
    }

    /// EIO for a file whose locks went with the session.
    fn usable(&self, node: &Node) -> Res<()> {
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

    /// Data from held changes and a small file's contents.
    fn local_read(&self, handle: &Handle, offset: u64, len: u32) -> Option<Res<Bytes>> {
        let (now, fresh) = (self.now(), self.fresh());
        let state = handle.node.state.lock();
        if let Some(data) = state.read_contents(offset, len, now, fresh) {
            return Some(Ok(data));
        }
        if !state.unanswered() {
            return None;
        }
        match state.read_local(offset, len, now, fresh) {
            Local::Full(data) => Some(Ok(data.into())),
            _ => None,
        }
    }

    /// Whether nothing held stands between a range and the servers' data; with the data's version and the size.
    fn plain_range(&self, node: &Node, offset: u64, len: u32) -> Option<(u64, u64)> {
        let state = node.state.lock();
        let (attr, _) = state.shown()?;
        let plain = !state.unanswered()
            || state.read_local(offset, len, self.now(), self.fresh()) == Local::Nothing;
        plain.then_some((state.version(), attr.size))
    }

    /// Data that was read ahead and has arrived. Also plans more.
    fn ahead_read(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        offset: u64,
        len: u32,
    ) -> Option<Res<Bytes>> {
        let (version, size) = self.plain_range(&handle.node, offset, len)?;
        let end = (offset + u64::from(len)).min(size);
        let parts = handle.ahead.lock().covering(offset, end, version)?;
        let parts = ready(&parts)?.ok()?;
        let data = assemble(&parts, offset, end, self.now(), self.fresh())?;
        self.plan_ahead(handle, offset, len);
        Some(Ok(data))
    }

    /// Waits for what was asked ahead, if it covers the range.
    async fn wait_ahead(&self, handle: &Handle, offset: u64, len: u32) -> Option<Res<Bytes>> {
        let (version, size) = self.plain_range(&handle.node, offset, len)?;
        let end = (offset + u64::from(len)).min(size);
        let waiting = handle.ahead.lock().covering(offset, end, version)?;
        let mut parts = Vec::with_capacity(waiting.len());
        for (start, reading) in waiting {
            let (data, at) = reading.await.ok()?;
            parts.push((start, data, at));
        }
        if handle.node.state.lock().version() != version {
            return None;
        }
        assemble(&parts, offset, end, self.now(), self.fresh()).map(Ok)
    }

    /// Notes a read and asks for what will be wanted next.
    fn plan_ahead(self: &Arc<Self>, handle: &Handle, offset: u64, len: u32) {
        if !self.options.read_ahead {
            return;
        }
        let Some((version, size)) = self.plain_range(&handle.node, offset, len) else {
            return;
        };
        let mut ahead = handle.ahead.lock();
        for plan in ahead.plan(offset, u64::from(len), size, version) {
            let reading = self.clone().read_plan(handle.node.id, plan);
            let Some(reading) = ahead.add(plan, version, &self.budget, Box::pin(reading)) else {
                break;
            };
            self.env.spawn(Box::pin(reading.map(drop)));
        }
    }

    async fn read_plan(
        self: Arc<Self>,
        id: InodeId,
        plan: Plan,
    ) -> Result<(Bytes, mortar_protocol::env::Mono), Errno> {
        let data = self.backend.read(id, plan.offset, plan.len as u32).await?;
        Ok((data, self.now()))
    }
}
