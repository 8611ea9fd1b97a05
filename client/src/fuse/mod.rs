//! The FUSE mount: fuser's callbacks over a [`Vfs`].
//!
//! What the Vfs can answer from its own memory is answered on the thread that took the request from the kernel.
//! Everything else becomes one task on the thread that drives the connections, which answers the kernel itself.

mod caller;
mod convert;
mod kernel;
mod listing;
mod reply;
mod watched;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use mortar_protocol::attr::{FileKind, SetAttr};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{DirEntry, LockRequest, XattrMode};
use mortar_protocol::ids::InodeId;

use crate::vfs::{Backend, NewInode, OpenFile, RenameMode, Vfs, WriteHow};
use crate::volume::questions::is_question;
use caller::Caller;
use convert::{attr, cred, errno, id};
pub use kernel::Caches;
use listing::list;
use reply::{
    generation, reply_attr, reply_data, reply_empty, reply_entry, reply_written, reply_xattr,
};
use watched::Kind;
pub use watched::{STATS_XATTRS, Watched};

/// Most bytes of one copy_file_range; the kernel asks again for the rest.
const MAX_COPY: u64 = 64 << 20;
/// Space is shown in blocks of this size.
const STATFS_BLOCK: u64 = 4_096;

/// A [`Vfs`] as a file system of the kernel's.
pub struct Adapter<B> {
    vfs: Vfs<B>,
    watched: Arc<Watched>,
    /// Whether files opened with O_DIRECT may bypass the page cache altogether and still be mapped.
    direct: bool,
    /// Whether that holds for every file.
    always_direct: bool,
}

impl<B: Backend> Adapter<B> {
    /// An adapter of `vfs`.
    pub fn new(vfs: Vfs<B>) -> Self {
        let watched = Arc::new(Watched::new(vfs.env().clone()));
        Self {
            vfs,
            watched,
            direct: false,
            always_direct: false,
        }
    }

    /// Whether every file is read and written past the kernel's pages.
    pub fn set_direct_io(&mut self, always: bool) {
        self.always_direct = always;
    }

    /// What is asked of it.
    pub fn watched(&self) -> Arc<Watched> {
        self.watched.clone()
    }

    /// Runs a task where the connections are driven.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.vfs.env().spawn(self.watched.task(task));
    }

    fn open_flags(&self, file: &OpenFile, opened: i32) -> FopenFlags {
        let mut flags = FopenFlags::empty();
        // The kernel cuts what is written through its pages where one page ends; another client's append could come
        // between. Past its pages it hands over an append whole.
        let write_only = opened & libc::O_ACCMODE == libc::O_WRONLY;
        if opened & libc::O_APPEND != 0 && (write_only || self.direct) {
            flags |= FopenFlags::FOPEN_DIRECT_IO;
        }
        if file.keep_pages {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        if self.always_direct {
            flags |= FopenFlags::FOPEN_DIRECT_IO;
        }
        if file.direct && self.direct {
            flags |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        }
        flags
    }
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

impl<B: Backend> Filesystem for Adapter<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.direct = kernel::negotiate(config);
        Ok(())
    }

    fn destroy(&mut self) {
        let (done, wait) = std::sync::mpsc::channel();
        let vfs = self.vfs.clone();
        self.spawn(async move {
            vfs.flush_all().await;
            // The receiver waits below.
            let _ = done.send(());
        });
        // An error means that the task was dropped with its runtime: there is nobody left to send anything.
        let _ = wait.recv();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _entered = self.watched.enter_name(Kind::Lookup, request, parent, name);
        let (vfs, cred, name) = (self.vfs.clone(), cred(request), bytes(name));
        let watched = self.watched();
        self.spawn(async move {
            let result = vfs.lookup(cred, id(parent), name.clone()).await;
            watched.saw_entry(&result, id(parent), &name);
            let ttl = vfs.options().negative_ttl;
            if matches!(result, Err(Errno::ENOENT)) && !ttl.is_zero() {
                let none = convert::bare_attr(InodeId(0), FileKind::File);
                return reply.entry(&ttl, &none, Generation(0));
            }
            reply_entry(reply, result);
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.vfs.kernel_forgot(id(ino));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _entered = self.watched.enter(Kind::GetAttr, request, ino);
        if let Some(found) = self.vfs.try_getattr(id(ino)) {
            return reply_attr(reply, Ok(found));
        }
        let vfs = self.vfs.clone();
        self.spawn(async move { reply_attr(reply, vfs.getattr(id(ino)).await) });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _entered = self.watched.enter(Kind::SetAttr, request, ino);
        let now = self.vfs.env().wall();
        let mut set = SetAttr {
            perm: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            atime: atime.map(|time| convert::time(time, now)),
            mtime: mtime.map(|time| convert::time(time, now)),
            ctime: None,
            kill_suid: false,
        };
        // The kernel leaves clearing of setuid and setgid to us: on a change of the owner (also to the one it has,
        // which arrives as no change at all), and on truncation by somebody who may not keep them.
        let nothing = set == SetAttr::default() && size.is_none();
        let owner = uid.is_some() || gid.is_some() || nothing;
        set.kill_suid = owner || size.is_some() && request.uid() != 0;
        let cred = cred(request);
        if size.is_none_or(|size| size <= mortar_protocol::limits::MAX_FILE_SIZE)
            && let Some(done) = self.vfs.try_setattr(&cred, id(ino), set.clone(), size)
        {
            return reply_attr(reply, done);
        }
        let vfs = self.vfs.clone();
        self.spawn(async move { reply_attr(reply, vfs.setattr(cred, id(ino), set, size).await) });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let _entered = self.watched.enter(Kind::ReadLink, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move { reply_data(reply, vfs.readlink(id(ino)).await) });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _entered = self.watched.enter_name(Kind::MkNod, request, parent, name);
        let Some(kind) = convert::kind_of_mode(mode) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let new = NewInode {
            kind,
            perm: mode & 0o7777,
            umask,
            rdev,
            target: Bytes::new(),
        };
        self.make(request, parent, name, new, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _entered = self.watched.enter_name(Kind::MkDir, request, parent, name);
        let new = NewInode {
            kind: FileKind::Dir,
            perm: mode & 0o7777,
            umask,
            rdev: 0,
            target: Bytes::new(),
        };
        self.make(request, parent, name, new, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _entered = self
            .watched
            .enter_name(Kind::Symlink, request, parent, link_name);
        let new = NewInode {
            kind: FileKind::Symlink,
            perm: 0o777,
            umask: 0,
            rdev: 0,
            target: bytes(target.as_os_str()),
        };
        self.make(request, parent, link_name, new, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _entered = self.watched.enter_name(Kind::Unlink, request, parent, name);
        self.remove(request, parent, name, false, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _entered = self.watched.enter_name(Kind::RmDir, request, parent, name);
        self.remove(request, parent, name, true, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter_name(Kind::Rename, request, parent, name);
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        let from = (id(parent), bytes(name));
        let to = (id(newparent), bytes(newname));
        self.spawn(async move { reply_empty(reply, vfs.rename(cred, from, to, mode).await) });
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let _entered = self.watched.enter(Kind::Link, request, ino);
        let (vfs, cred, name) = (self.vfs.clone(), cred(request), bytes(newname));
        self.spawn(async move {
            reply_entry(reply, vfs.link(cred, id(ino), id(newparent), name).await);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _entered = self.watched.enter(Kind::Open, request, ino);
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        let adapter = self.share();
        self.spawn(async move {
            match vfs.open(cred, id(ino), flags.0).await {
                Ok(file) => {
                    reply.opened(FileHandle(file.handle), adapter.open_flags(&file, flags.0))
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _entered = self.watched.enter(Kind::Read, request, ino);
        let direct = flags.0 & libc::O_DIRECT != 0;
        if !direct && let Some(data) = self.vfs.try_read(fh.0, offset, size) {
            return reply_data(reply, data);
        }
        let vfs = self.vfs.clone();
        self.spawn(async move {
            let result = match direct {
                true => vfs.read_direct(fh.0, offset, size).await,
                false => vfs.read(fh.0, offset, size).await,
            };
            reply_data(reply, result);
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _entered = self.watched.enter(Kind::Write, request, ino);
        let how = WriteHow {
            flags: flags.0,
            mapped: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kill_suid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let len = data.len() as u32;
        if let Some(done) = self.vfs.try_write(fh.0, offset, data, how) {
            return reply_written(reply, len, done);
        }
        let (vfs, data) = (self.vfs.clone(), Bytes::copy_from_slice(data));
        self.spawn(async move {
            reply_written(reply, len, vfs.write(fh.0, offset, data, how).await);
        });
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter(Kind::Flush, request, ino);
        if let Some(done) = self.vfs.try_flush(fh.0, lock_owner.0) {
            return reply_empty(reply, done);
        }
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        self.spawn(async move { reply_empty(reply, vfs.flush(cred, fh.0, lock_owner.0).await) });
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter(Kind::Release, request, ino);
        if lock_owner.is_none() && !self.vfs.may_hold_locks(fh.0) {
            self.vfs.drop_handle(fh.0);
            return reply.ok();
        }
        let owner = lock_owner.map(|owner| owner.0);
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        self.spawn(async move {
            vfs.release(cred, fh.0, owner).await;
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let _entered = self.watched.enter(Kind::Fsync, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move { reply_empty(reply, vfs.fsync(fh.0).await) });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _entered = self.watched.enter(Kind::OpenDir, request, ino);
        let handle = self.vfs.open_dir(cred(request), id(ino));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _entered = self.watched.enter(Kind::ReadDir, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move {
            let add = |entry: &DirEntry, _| {
                let ino = INodeNo(entry.gfid.id.0);
                let name = OsStr::from_bytes(&entry.name);
                reply.add(ino, entry.offset, convert::kind(entry.kind), name)
            };
            match list(&vfs, (id(ino), fh.0), offset, false, add).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _entered = self.watched.enter(Kind::ReadDirPlus, request, ino);
        let (vfs, watched) = (self.vfs.clone(), self.watched());
        self.spawn(async move {
            let ttl = vfs.options().attr_ttl.min(vfs.options().entry_ttl);
            let merged = vfs.backend().is_distributed();
            let dir = id(ino);
            let add = |entry: &DirEntry, age| {
                if entry.kind == FileKind::Dir && entry.attr.is_some() {
                    watched.saw_dir(entry.gfid.id, dir, &entry.name);
                }
                let (ttl, attr) = match &entry.attr {
                    // A directory's own set knows only its part.
                    Some(found) if merged && found.kind == FileKind::Dir => {
                        (Duration::ZERO, attr(found))
                    }
                    Some(found) => (ttl.saturating_sub(age), attr(found)),
                    None => (
                        Duration::ZERO,
                        convert::bare_attr(entry.gfid.id, entry.kind),
                    ),
                };
                let name = OsStr::from_bytes(&entry.name);
                let generation = Generation(entry.gfid.generation);
                reply.add(attr.ino, entry.offset, name, &ttl, &attr, generation)
            };
            match list(&vfs, (id(ino), fh.0), offset, true, add).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter(Kind::ReleaseDir, request, ino);
        self.vfs.drop_handle(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let _entered = self.watched.enter(Kind::FsyncDir, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move { reply_empty(reply, vfs.fsync_dir(id(ino)).await) });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _entered = self.watched.enter(Kind::StatFs, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move {
            match vfs.statfs().await {
                Ok(space) => {
                    let blocks = |bytes: u64| bytes / STATFS_BLOCK;
                    let free_inodes = blocks(space.free);
                    reply.statfs(
                        blocks(space.total),
                        blocks(space.free),
                        blocks(space.avail),
                        space.inodes + free_inodes,
                        free_inodes,
                        STATFS_BLOCK as u32,
                        mortar_protocol::limits::MAX_NAME as u32,
                        STATFS_BLOCK as u32,
                    );
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter(Kind::SetXattr, request, ino);
        if watched::is_stats(name) || is_question(name.as_bytes()) {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        let (name, value) = (bytes(name), Bytes::copy_from_slice(value));
        self.spawn(async move {
            reply_empty(reply, vfs.setxattr(cred, id(ino), name, value, mode).await);
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let _entered = self.watched.enter(Kind::GetXattr, request, ino);
        if watched::is_stats(name) {
            return reply_xattr(reply, size, self.watched.stats());
        }
        if self.vfs.has_no_xattr(id(ino)) && !is_question(name.as_bytes()) {
            return reply.error(fuser::Errno::NO_XATTR);
        }
        let (vfs, name) = (self.vfs.clone(), bytes(name));
        self.spawn(async move { reply_xattr(reply, size, vfs.getxattr(id(ino), name).await) });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _entered = self.watched.enter(Kind::ListXattr, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move { reply_xattr(reply, size, vfs.listxattr(id(ino)).await) });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _entered = self.watched.enter(Kind::RemoveXattr, request, ino);
        let (vfs, cred, name) = (self.vfs.clone(), cred(request), bytes(name));
        self.spawn(async move { reply_empty(reply, vfs.removexattr(cred, id(ino), name).await) });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _entered = self.watched.enter_name(Kind::Create, request, parent, name);
        let (vfs, cred, name) = (self.vfs.clone(), cred(request), bytes(name));
        let adapter = self.share();
        self.spawn(async move {
            let mode = (mode & 0o7777, umask);
            match vfs.create(cred, id(parent), name, mode, flags).await {
                Ok((made, file)) => reply.created(
                    &vfs.options().attr_ttl.min(vfs.options().entry_ttl),
                    &attr(&made),
                    generation(&made),
                    FileHandle(file.handle),
                    adapter.open_flags(&file, flags),
                ),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let _entered = self.watched.enter(Kind::TestLock, request, ino);
        let Some(ask) = lock_request(ino, lock_owner, (start, end), typ, pid, false) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        self.spawn(async move {
            match vfs.test_lock(cred, ask).await {
                Ok(Some(held)) => reply.locked(
                    held.start,
                    convert::kernel_lock_end(held.end),
                    convert::lock_number(held.kind),
                    held.pid,
                ),
                Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter(Kind::Lock, request, ino);
        let Some(ask) = lock_request(ino, lock_owner, (start, end), typ, pid, sleep) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        self.vfs.locks_through(fh.0, lock_owner.0);
        let (vfs, cred) = (self.vfs.clone(), cred(request));
        let caller = Caller { pid: request.pid() };
        self.spawn(async move { reply_empty(reply, vfs.lock(cred, ask, &caller).await) });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _entered = self.watched.enter(Kind::Fallocate, request, ino);
        let vfs = self.vfs.clone();
        self.spawn(async move {
            reply_empty(reply, vfs.fallocate(fh.0, offset, length, mode).await);
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _entered = self.watched.enter(Kind::Seek, request, ino);
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(fuser::Errno::ENXIO);
        };
        let vfs = self.vfs.clone();
        self.spawn(async move {
            match vfs.seek(fh.0, offset, hole).await {
                Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _entered = self.watched.enter(Kind::Copy, request, ino_in);
        let vfs = self.vfs.clone();
        self.spawn(async move {
            let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
            match vfs.copy(from, to, len.min(MAX_COPY)).await {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(errno(error)),
            }
        });
    }
}

impl<B: Backend> Adapter<B> {
    /// The same adapter, for a task.
    fn share(&self) -> Self {
        Self {
            vfs: self.vfs.clone(),
            watched: self.watched.clone(),
            direct: self.direct,
            always_direct: self.always_direct,
        }
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: NewInode,
        reply: ReplyEntry,
    ) {
        let (vfs, cred, name) = (self.vfs.clone(), cred(request), bytes(name));
        let watched = self.watched();
        self.spawn(async move {
            let made = vfs.make(cred, id(parent), name.clone(), new).await;
            watched.saw_entry(&made, id(parent), &name);
            reply_entry(reply, made);
        });
    }

    fn remove(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        dir: bool,
        reply: ReplyEmpty,
    ) {
        let (vfs, cred, name) = (self.vfs.clone(), cred(request), bytes(name));
        self.spawn(async move {
            reply_empty(reply, vfs.remove(cred, id(parent), name, dir).await);
        });
    }
}

fn lock_request(
    ino: INodeNo,
    owner: LockOwner,
    (start, end): (u64, u64),
    kind: i32,
    pid: u32,
    wait: bool,
) -> Option<LockRequest> {
    Some(LockRequest {
        id: id(ino),
        owner: owner.0,
        start,
        end: convert::lock_end(end),
        kind: convert::lock_kind(kind)?,
        pid,
        wait,
    })
}
