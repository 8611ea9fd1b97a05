//! A volume in memory, for tests: plain POSIX semantics, a log of what it was asked, errors on demand.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, SetAttr, Time};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{DirEntry, LockHeld, LockOutcome, LockRequest};
use mortar_protocol::ids::{Gfid, InodeId, SessionId};
use parking_lot::Mutex;

use super::backend::*;
use super::held::without_suid;

/// An inode.
#[derive(Clone, Debug)]
struct Inode {
    attr: Attr,
    data: Vec<u8>,
    entries: BTreeMap<Bytes, InodeId>,
    xattrs: BTreeMap<Bytes, Bytes>,
}

/// The volume's state.
#[derive(Default)]
struct Inner {
    inodes: BTreeMap<InodeId, Inode>,
    next: u64,
    log: Vec<String>,
    /// Errors to give to the next changes.
    fail: Vec<Errno>,
    open_check: Option<OpenCheck>,
    lock_loss: Option<LockLoss>,
    /// What to answer to those who wait for locks; nothing: they go on waiting.
    lock_waits: Vec<LockOutcome>,
    session: u64,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Mem(Arc<Mutex<Inner>>);

impl Mem {
    /// A volume with an empty root.
    pub(crate) fn new() -> Self {
        let mem = Self::default();
        let mut inner = mem.0.lock();
        inner.next = 100;
        inner.add(Gfid::ROOT, FileKind::Dir, 0o755);
        drop(inner);
        mem
    }

    /// Requests since the last call.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().log)
    }

    /// The session ends and another begins.
    pub(crate) fn new_session(&self) {
        self.0.lock().session += 1;
    }

    /// The set has lost an owner's lock.
    pub(crate) fn lose_lock(&self, id: InodeId, owner: u64) {
        let told = self.0.lock().lock_loss.clone();
        told.expect("somebody to tell")(id, owner);
    }

    /// The next waits for locks end so, the last first.
    pub(crate) fn answer_lock_waits(&self, outcomes: &[LockOutcome]) {
        self.0.lock().lock_waits = outcomes.to_vec();
    }

    /// The next change fails so.
    pub(crate) fn fail_next(&self, errno: Errno) {
        self.0.lock().fail.push(errno);
    }

    /// Contents as another client would read them.
    pub(crate) fn contents(&self, id: InodeId) -> Vec<u8> {
        self.0.lock().inodes[&id].data.clone()
    }

    /// Attributes as another client would read them.
    pub(crate) fn attr(&self, id: InodeId) -> Attr {
        self.0.lock().inodes[&id].attr
    }

    /// A write of another client.
    pub(crate) fn foreign_write(&self, id: InodeId, offset: u64, data: &[u8]) {
        let op = FileOp::Write {
            offset,
            data: Bytes::copy_from_slice(data),
        };
        let time = Time {
            secs: 900,
            nanos: 0,
        };
        self.0.lock().change(id, vec![op], time).unwrap();
    }

    /// Another client unlinks a file's last name, and somebody holds it open.
    pub(crate) fn foreign_unlink(&self, id: InodeId) {
        if let Some(inode) = self.0.lock().inodes.get_mut(&id) {
            inode.attr.nlink = 0;
        }
    }

    fn call<T: Send>(&self, name: String, run: impl FnOnce(&mut Inner) -> Res<T>) -> Res<T> {
        let mut inner = self.0.lock();
        inner.log.push(name);
        run(&mut inner)
    }
}

impl Inner {
    fn add(&mut self, gfid: Gfid, kind: FileKind, perm: u32) -> Attr {
        let time = Time { secs: 1, nanos: 0 };
        let attr = Attr {
            gfid,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change: 1,
            has_xattr: false,
        };
        let inode = Inode {
            attr,
            data: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        };
        self.inodes.insert(gfid.id, inode);
        attr
    }

    fn inode(&mut self, id: InodeId) -> Res<&mut Inode> {
        self.inodes.get_mut(&id).ok_or(Errno::ENOENT)
    }

    fn named(&mut self, parent: InodeId, name: &Bytes) -> Res<InodeId> {
        let dir = self.inode(parent)?;
        dir.entries.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn unlink(&mut self, parent: InodeId, name: &Bytes) -> Res<Vec<Attr>> {
        let id = self.named(parent, name)?;
        self.inode(parent)?.entries.remove(name);
        let open = self.open_check.clone();
        let inode = self.inode(id)?;
        inode.attr.nlink -= 1;
        inode.attr.change += 1;
        let attr = inode.attr;
        // The check looks at the client's own state, which never calls back into this one.
        if attr.nlink == 0 && !open.is_some_and(|open| open(id)) {
            self.inodes.remove(&id);
            return Ok(vec![]);
        }
        Ok(vec![attr])
    }

    fn change(&mut self, id: InodeId, ops: Vec<FileOp>, time: Time) -> Res<Changed> {
        if !self.fail.is_empty() {
            return Err(self.fail.remove(0));
        }
        let inode = self.inode(id)?;
        let before = inode.attr.change;
        let mut appended_at = None;
        let only_read = ops.iter().all(|op| matches!(op, FileOp::Accessed(_)));
        for op in ops {
            if !only_read {
                inode.attr.ctime = time;
            }
            match op {
                FileOp::Write { offset, data } => inode.write(offset, &data, time),
                FileOp::Append { data } => {
                    let end = inode.data.len() as u64;
                    appended_at.get_or_insert(end);
                    inode.write(end, &data, time);
                }
                FileOp::Truncate { size } => {
                    inode.data.resize(size as usize, 0);
                    inode.attr.mtime = time;
                }
                FileOp::Set(set) => inode.set(&set),
                FileOp::Accessed(time) => inode.attr.atime = inode.attr.atime.max(time),
                FileOp::Punch { offset, len } => {
                    let size = inode.data.len();
                    let last = ((offset + len) as usize).min(size);
                    inode.data[(offset as usize).min(size)..last].fill(0);
                }
                FileOp::Reserve {
                    offset,
                    len,
                    keep_size,
                    zero,
                } => {
                    let end = (offset + len) as usize;
                    let size = inode.data.len();
                    if zero {
                        inode.data[(offset as usize).min(size)..end.min(size)].fill(0);
                    }
                    if !keep_size {
                        inode.data.resize(size.max(end), 0);
                    }
                }
                FileOp::SetXattr { name, value, .. } => {
                    inode.xattrs.insert(name, value);
                }
                FileOp::RemoveXattr { name } => {
                    inode.xattrs.remove(&name).ok_or(Errno::ENODATA)?;
                }
            }
        }
        inode.attr.change += u64::from(!only_read);
        inode.attr.size = inode.data.len() as u64;
        inode.attr.blocks = inode.attr.size.div_ceil(4096) * 8;
        inode.attr.has_xattr = !inode.xattrs.is_empty();
        Ok(Changed {
            before,
            attr: inode.attr,
            appended_at,
        })
    }
}

impl Inode {
    fn write(&mut self, offset: u64, data: &[u8], time: Time) {
        let end = offset as usize + data.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset as usize..end].copy_from_slice(data);
        self.attr.mtime = time;
    }

    fn set(&mut self, set: &SetAttr) {
        let attr = &mut self.attr;
        if set.kill_suid {
            attr.perm = without_suid(attr.perm);
        }
        attr.perm = set.perm.unwrap_or(attr.perm);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.unwrap_or(attr.atime);
        attr.mtime = set.mtime.unwrap_or(attr.mtime);
    }
}

impl Backend for Mem {
    fn lookup(
        &self,
        _: Cred,
        parent: InodeId,
        name: Bytes,
    ) -> impl Future<Output = Res<Found>> + Send {
        ready(self.call("lookup".into(), |inner| {
            let id = inner.named(parent, &name)?;
            let attr = inner.inode(id)?.attr;
            Ok(Found { attr, whole: true })
        }))
    }

    fn getattr(&self, id: InodeId) -> impl Future<Output = Res<Attr>> + Send {
        ready(self.call("getattr".into(), |inner| Ok(inner.inode(id)?.attr)))
    }

    fn parent(&self, _: InodeId) -> impl Future<Output = Res<InodeId>> + Send {
        ready(Ok(InodeId::ROOT))
    }

    fn readlink(&self, id: InodeId) -> impl Future<Output = Res<Bytes>> + Send {
        ready(self.call("readlink".into(), |inner| {
            Ok(inner.inode(id)?.data.clone().into())
        }))
    }

    fn create(
        &self,
        _: Cred,
        parent: InodeId,
        name: Bytes,
        new: NewInode,
    ) -> impl Future<Output = Res<Attr>> + Send {
        ready(self.call("create".into(), |inner| {
            if inner.named(parent, &name).is_ok() {
                return Err(Errno::EEXIST);
            }
            inner.next += 1;
            let gfid = Gfid {
                id: InodeId(inner.next),
                generation: 1,
            };
            let attr = inner.add(gfid, new.kind, new.perm & !new.umask);
            inner.inode(parent)?.entries.insert(name, gfid.id);
            Ok(attr)
        }))
    }

    fn remove(
        &self,
        _: Cred,
        parent: InodeId,
        name: Bytes,
        _: bool,
    ) -> impl Future<Output = Res<Vec<Attr>>> + Send {
        ready(self.call("remove".into(), |inner| inner.unlink(parent, &name)))
    }

    fn rename(
        &self,
        _: Cred,
        from: (InodeId, Bytes),
        to: (InodeId, Bytes),
        _: RenameMode,
    ) -> impl Future<Output = Res<Vec<Attr>>> + Send {
        ready(self.call("rename".into(), |inner| {
            let id = inner.named(from.0, &from.1)?;
            if inner.named(to.0, &to.1).is_ok() {
                inner.unlink(to.0, &to.1)?;
            }
            inner.inode(from.0)?.entries.remove(&from.1);
            inner.inode(to.0)?.entries.insert(to.1, id);
            Ok(vec![inner.inode(id)?.attr])
        }))
    }

    fn link(
        &self,
        _: Cred,
        id: InodeId,
        parent: InodeId,
        name: Bytes,
    ) -> impl Future<Output = Res<Attr>> + Send {
        ready(self.call("link".into(), |inner| {
            inner.inode(parent)?.entries.insert(name, id);
            let attr = &mut inner.inode(id)?.attr;
            attr.nlink += 1;
            attr.change += 1;
            Ok(*attr)
        }))
    }

    fn readdir(
        &self,
        dir: InodeId,
        after: u64,
        _: u32,
        plus: bool,
    ) -> impl Future<Output = Res<Listing>> + Send {
        ready(self.call("readdir".into(), |inner| {
            let names = inner.inode(dir)?.entries.clone();
            let mut entries = Vec::new();
            for (i, (name, id)) in names.into_iter().enumerate() {
                let offset = i as u64 + 3;
                let attr = inner.inode(id)?.attr;
                if offset > after && entries.len() < 5 {
                    entries.push(DirEntry {
                        name,
                        gfid: attr.gfid,
                        kind: attr.kind,
                        offset,
                        attr: plus.then_some(attr),
                    });
                }
            }
            let end = entries.len() < 5;
            Ok(Listing { entries, end })
        }))
    }

    fn open(
        &self,
        _: Cred,
        id: InodeId,
        known: Option<u64>,
        data: bool,
    ) -> impl Future<Output = Res<Opened>> + Send {
        ready(self.call("open".into(), |inner| {
            let inode = inner.inode(id)?;
            let small = inode.data.len() <= 65_536;
            let give = data && small && known != Some(inode.attr.change);
            Ok(Opened {
                attr: inode.attr,
                data: give.then(|| inode.data.clone().into()),
            })
        }))
    }

    fn read(&self, id: InodeId, offset: u64, len: u32) -> impl Future<Output = Res<Bytes>> + Send {
        ready(self.call(format!("read {offset} {len}"), |inner| {
            let data = &inner.inode(id)?.data;
            let first = (offset as usize).min(data.len());
            let last = (first + len as usize).min(data.len());
            Ok(Bytes::copy_from_slice(&data[first..last]))
        }))
    }

    fn send_ahead(&self, _: InodeId, _: &[FileOp]) -> Option<SentAhead> {
        None
    }

    async fn change(
        &self,
        _: Cred,
        id: InodeId,
        ops: Vec<FileOp>,
        time: Time,
        sync: bool,
    ) -> Res<Changed> {
        // Others run between a request and its answer.
        tokio::task::yield_now().await;
        let name = format!("change {}{}", ops.len(), if sync { " sync" } else { "" });
        let result = self.call(name, |inner| inner.change(id, ops, time));
        tokio::task::yield_now().await;
        result
    }

    fn copy(
        &self,
        _: Cred,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> impl Future<Output = Res<(u64, Changed)>> + Send {
        ready(self.call("copy".into(), |inner| {
            let data = inner.inode(from.0)?.data.clone();
            let first = (from.1 as usize).min(data.len());
            let last = (first + len as usize).min(data.len());
            let op = FileOp::Write {
                offset: to.1,
                data: Bytes::copy_from_slice(&data[first..last]),
            };
            let changed = inner.change(to.0, vec![op], Time::default())?;
            Ok(((last - first) as u64, changed))
        }))
    }

    fn seek(&self, id: InodeId, offset: u64, hole: bool) -> impl Future<Output = Res<u64>> + Send {
        ready(self.call("seek".into(), |inner| {
            let size = inner.inode(id)?.data.len() as u64;
            match hole {
                _ if offset >= size => Err(Errno::ENXIO),
                true => Ok(size),
                false => Ok(offset),
            }
        }))
    }

    fn fsync(&self, _: InodeId) -> impl Future<Output = Res<()>> + Send {
        ready(self.call("fsync".into(), |_| Ok(())))
    }

    fn getxattr(&self, id: InodeId, name: Bytes) -> impl Future<Output = Res<Bytes>> + Send {
        ready(self.call("getxattr".into(), |inner| {
            let inode = inner.inode(id)?;
            inode.xattrs.get(&name).cloned().ok_or(Errno::ENODATA)
        }))
    }

    fn listxattr(&self, _: InodeId) -> impl Future<Output = Res<Bytes>> + Send {
        ready(self.call("listxattr".into(), |_| Ok(Bytes::new())))
    }

    fn statfs(&self) -> impl Future<Output = Res<Space>> + Send {
        ready(Ok(Space::default()))
    }

    fn lock(
        &self,
        _: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<(LockOutcome, Option<Attr>)>> + Send {
        ready(self.call(format!("lock {:?}", request.kind), |inner| {
            let attr = inner.inode(request.id)?.attr;
            // Owner 7 belongs to somebody who holds everything.
            Ok(match (request.owner, request.wait) {
                (7, true) => (LockOutcome::Queued, None),
                (7, false) => (LockOutcome::Busy, None),
                _ => (LockOutcome::Granted, Some(attr)),
            })
        }))
    }

    async fn lock_wait(&self, _: Cred, _: LockRequest) -> Res<(LockOutcome, Option<Attr>)> {
        let outcome = self.0.lock().lock_waits.pop();
        match outcome {
            Some(outcome) => Ok((outcome, None)),
            None => std::future::pending().await,
        }
    }

    fn lock_test(
        &self,
        _: Cred,
        _: LockRequest,
    ) -> impl Future<Output = Res<Option<LockHeld>>> + Send {
        ready(Ok(None))
    }

    fn close(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    fn set_open_check(&self, check: OpenCheck) {
        self.0.lock().open_check = Some(check);
    }

    fn set_lock_loss(&self, told: LockLoss) {
        self.0.lock().lock_loss = Some(told);
    }

    fn is_distributed(&self) -> bool {
        false
    }

    fn session(&self) -> SessionId {
        SessionId(self.0.lock().session)
    }

    fn shard_size(&self) -> u64 {
        64 << 20
    }
}
