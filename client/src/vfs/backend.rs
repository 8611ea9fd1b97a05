//! What the Vfs needs of a volume. [`crate::volume::Volume`] is the real one; tests use one in memory.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, Time};
use mortar_protocol::fop::{LockHeld, LockOutcome, LockRequest};
use mortar_protocol::ids::{InodeId, SessionId};

pub use crate::volume::{
    Changed, FileOp, Found, Listing, LockLoss, NewInode, OpenCheck, Opened, RenameMode, Res, Space,
};

/// Keeps bulk data that was sent ahead of its change; dropped when that has been made.
pub type SentAhead = Box<dyn std::any::Any + Send + Sync>;

/// A volume as the Vfs sees it. Errors are what the application gets.
///
/// Changes of one inode must be made in the order in which the calls are first polled, if each is polled before the
/// next is made.
pub trait Backend: Send + Sync + 'static {
    /// Directory entry and attributes.
    fn lookup(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
    ) -> impl Future<Output = Res<Found>> + Send;
    /// Attributes of a directory that came with an answer less than `max` ago, and their age.
    fn recent_dir(&self, _id: InodeId, _max: Duration) -> Option<(Attr, Duration)> {
        None
    }
    /// Attributes, merged over the sets for a directory.
    fn getattr(&self, id: InodeId) -> impl Future<Output = Res<Attr>> + Send;
    /// The directory that holds this inode (the first of several; the root holds itself).
    fn parent(&self, id: InodeId) -> impl Future<Output = Res<InodeId>> + Send;
    /// Target of a symbolic link.
    fn readlink(&self, id: InodeId) -> impl Future<Output = Res<Bytes>> + Send;
    /// Makes an inode and its name.
    fn create(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        new: NewInode,
    ) -> impl Future<Output = Res<Attr>> + Send;
    /// Removes a name: of a directory if `dir`, else of anything else. Gives the attributes of the inode if it
    /// still exists.
    fn remove(
        &self,
        cred: Cred,
        parent: InodeId,
        name: Bytes,
        dir: bool,
    ) -> impl Future<Output = Res<Vec<Attr>>> + Send;
    /// Renames. Gives the attributes of the inodes concerned that still exist.
    fn rename(
        &self,
        cred: Cred,
        from: (InodeId, Bytes),
        to: (InodeId, Bytes),
        mode: RenameMode,
    ) -> impl Future<Output = Res<Vec<Attr>>> + Send;
    /// Gives an inode another name.
    fn link(
        &self,
        cred: Cred,
        id: InodeId,
        parent: InodeId,
        name: Bytes,
    ) -> impl Future<Output = Res<Attr>> + Send;
    /// Part of a listing: entries with offsets above `after`, of about `max` bytes, at least one unless that was all.
    fn readdir(
        &self,
        dir: InodeId,
        after: u64,
        max: u32,
        plus: bool,
    ) -> impl Future<Output = Res<Listing>> + Send;
    /// Opens a file; `known` is the change counter of the contents at hand.
    fn open(
        &self,
        cred: Cred,
        id: InodeId,
        known: Option<u64>,
        data: bool,
    ) -> impl Future<Output = Res<Opened>> + Send;
    /// Reads; shorter at the end of the file.
    fn read(&self, id: InodeId, offset: u64, len: u32) -> impl Future<Output = Res<Bytes>> + Send;
    /// Changes an inode: all operations in order, in one entry where they fit. With `sync` it is answered once
    /// everything this client did to the file is flushed.
    fn change(
        &self,
        cred: Cred,
        id: InodeId,
        ops: Vec<FileOp>,
        time: Time,
        sync: bool,
    ) -> impl Future<Output = Res<Changed>> + Send;
    /// Begins to send the bulk data of operations whose change will be made later, with the same buffers. What is given
    /// keeps it until it is dropped.
    fn send_ahead(&self, id: InodeId, ops: &[FileOp]) -> Option<SentAhead>;
    /// Copies a range between files; answers how much was copied, and the destination's change.
    fn copy(
        &self,
        cred: Cred,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> impl Future<Output = Res<(u64, Changed)>> + Send;
    /// Next data or hole at or after `offset` (ENXIO: none).
    fn seek(&self, id: InodeId, offset: u64, hole: bool) -> impl Future<Output = Res<u64>> + Send;
    /// Flushes everything this client did to the inode, or was shown of it; for a directory its names.
    fn fsync(&self, id: InodeId) -> impl Future<Output = Res<()>> + Send;
    /// Value of an extended attribute.
    fn getxattr(&self, id: InodeId, name: Bytes) -> impl Future<Output = Res<Bytes>> + Send;
    /// Names of all extended attributes, each followed by a zero byte.
    fn listxattr(&self, id: InodeId) -> impl Future<Output = Res<Bytes>> + Send;
    /// Space.
    fn statfs(&self) -> impl Future<Output = Res<Space>> + Send;
    /// Takes, queues or releases a lock.
    fn lock(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<(LockOutcome, Option<Attr>)>> + Send;
    /// Waits, at most about a second, for a queued lock. `Busy`: it is not queued any more, to be asked for again.
    fn lock_wait(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<(LockOutcome, Option<Attr>)>> + Send;
    /// The lock that would conflict.
    fn lock_test(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> impl Future<Output = Res<Option<LockHeld>>> + Send;
    /// Ends the session: gives back what the servers keep for this client.
    fn close(&self) -> impl Future<Output = ()> + Send;
    /// Tells the volume whom to ask whether an inode is open here.
    fn set_open_check(&self, check: OpenCheck);
    /// Tells the volume whom to tell of locks that are lost although the session goes on.
    fn set_lock_loss(&self, told: LockLoss);
    /// Size of a shard in bytes: files up to it lie on one set.
    fn shard_size(&self) -> u64;
    /// Whether there are several sets, so that a directory's attributes are merged from them.
    fn is_distributed(&self) -> bool;
    /// The session. Another number than before means that it ended, and its locks with it.
    fn session(&self) -> SessionId;
}
