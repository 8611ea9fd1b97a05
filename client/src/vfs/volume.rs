//! The real [`Backend`]: a connected volume.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, Time};
use mortar_protocol::fop::{LockHeld, LockOutcome, LockRequest};
use mortar_protocol::ids::{InodeId, SessionId};

use super::backend::{Backend, SentAhead};
use crate::volume::{
    Changed, FileOp, Found, Listing, LockLoss, NewInode, OpenCheck, Opened, RenameMode, Res, Space,
    Volume,
};

impl Backend for Volume {
    fn lookup(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
    ) -> impl Future<Output = Res<Found>> + Send {
        self.lookup(cred, parent, name)
    }

    fn recent_dir(&self, id: InodeId, max: Duration) -> Option<(Attr, Duration)> {
        self.recent_dir(id, max)
    }

    fn getattr(&self, id: InodeId) -> impl Future<Output = Res<Attr>> + Send {
        self.getattr(id)
    }

    fn parent(&self, id: InodeId) -> impl Future<Output = Res<InodeId>> + Send {
        self.parent(id)
    }

    fn readlink(&self, id: InodeId) -> impl Future<Output = Res<Bytes>> + Send {
        self.readlink(id)
    }

    fn create(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        new: NewInode,
    ) -> impl Future<Output = Res<Attr>> + Send {
        self.create(cred, parent, name, new)
    }

    fn remove(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        dir: bool,
    ) -> impl Future<Output = Res<Vec<Attr>>> + Send {
        self.remove(cred, parent, name, dir)
    }

    fn rename(
        &self,
        cred: Cred,
        from: (InodeId, Bytes),
        to: (InodeId, Bytes),
        mode: RenameMode,
    ) -> impl Future<Output = Res<Vec<Attr>>> + Send {
        self.rename(cred, from, to, mode)
    }

    fn link(
        &self,
        cred: Cred,
        id: InodeId,
        parent: InodeId,
        name: Bytes,
    ) -> impl Future<Output = Res<Attr>> + Send {
        self.link(cred, id, parent, name)
    }

    fn readdir(
        &self,
        dir: InodeId,
        after: u64,
        max: u32,
        plus: bool,
    ) -> impl Future<Output = Res<Listing>> + Send {
        self.readdir(dir, after, max, plus)
    }

    fn open(
        &self,
        cred: Cred,
        id: InodeId,
        known: Option<u64>,
        data: bool,
    ) -> impl Future<Output = Res<Opened>> + Send {
        self.open(cred, id, known, data)
    }

    fn read(&self, id: InodeId, offset: u64, len: u32) -> impl Future<Output = Res<Bytes>> + Send {
        self.read(id, offset, len)
    }

    fn change(
        &self,
        cred: Cred,
        id: InodeId,
        ops: Vec<FileOp>,
        time: Time,
        sync: bool,
    ) -> impl Future<Output = Res<Changed>> + Send {
        self.change(cred, id, ops, time, sync)
    }

    fn send_ahead(&self, id: InodeId, ops: &[FileOp]) -> Option<SentAhead> {
        Self::send_ahead(self, id, ops).map(|sent| Box::new(sent) as SentAhead)
    }

    fn copy(
        &self,
        cred: Cred,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> impl Future<Output = Res<(u64, Changed)>> + Send {
        self.copy(cred, from, to, len)
    }

    fn seek(&self, id: InodeId, offset: u64, hole: bool) -> impl Future<Output = Res<u64>> + Send {
        self.seek(id, offset, hole)
    }

    fn fsync(&self, id: InodeId) -> impl Future<Output = Res<()>> + Send {
        self.fsync(id)
    }

    fn getxattr(&self, id: InodeId, name: Bytes) -> impl Future<Output = Res<Bytes>> + Send {
        self.getxattr(id, name)
    }

    fn listxattr(&self, id: InodeId) -> impl Future<Output = Res<Bytes>> + Send {
        self.listxattr(id)
    }

    fn statfs(&self) -> impl Future<Output = Res<Space>> + Send {
        self.statfs()
    }

    fn lock(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<(LockOutcome, Option<Attr>)>> + Send {
        self.lock(cred, request)
    }

    fn lock_wait(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<(LockOutcome, Option<Attr>)>> + Send {
        self.lock_wait(cred, request)
    }

    fn lock_test(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<Option<LockHeld>>> + Send {
        self.lock_test(cred, request)
    }

    fn close(&self) -> impl Future<Output = ()> + Send {
        self.close()
    }

    fn set_open_check(&self, check: OpenCheck) {
        self.set_open_check(check);
    }

    fn set_lock_loss(&self, told: LockLoss) {
        self.set_lock_loss(told);
    }

    fn shard_size(&self) -> u64 {
        self.shard_size()
    }

    fn is_distributed(&self) -> bool {
        self.is_distributed()
    }

    fn session(&self) -> SessionId {
        self.session()
    }
}
