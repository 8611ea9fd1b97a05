//! What the Vfs needs of a volume. [`crate::volume::Volume`] is the real one; tests use one in memory.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, SetAttr, Time};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{DirEntry, LockHeld, LockOutcome, LockRequest, XattrMode};
use mortar_protocol::ids::InodeId;

/// Result of a call to the volume.
pub type Res<T> = Result<T, Errno>;

/// Tells whether this client holds an inode open.
pub type OpenCheck = Arc<dyn Fn(InodeId) -> bool + Send + Sync>;

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Attributes.
    pub attr: Attr,
    /// Whether they are whole: a directory over several sets is answered from its own set alone at first.
    pub whole: bool,
}

/// A new inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewInode {
    /// Type.
    pub kind: FileKind,
    /// Permission bits asked for.
    pub perm: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Device number (`new_encode_dev`).
    pub rdev: u32,
    /// Target of a symbolic link, else empty.
    pub target: Bytes,
}

/// How a rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails with EEXIST.
    NoReplace,
    /// Swaps both names.
    Exchange,
}

/// One change of a file, in offsets of the whole file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileOp {
    /// Writes.
    Write {
        /// First byte.
        offset: u64,
        /// Data.
        data: Bytes,
    },
    /// Writes at the end, wherever that is when the change is made.
    Append {
        /// Data.
        data: Bytes,
    },
    /// Sets the size.
    Truncate {
        /// Size in bytes.
        size: u64,
    },
    /// Changes attributes. `kill_suid` comes before `perm`.
    Set(SetAttr),
    /// Reserves space (fallocate).
    Reserve {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Leave the size alone.
        keep_size: bool,
        /// Zero what is there.
        zero: bool,
    },
    /// Punches a hole.
    Punch {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Sets an extended attribute.
    SetXattr {
        /// Name.
        name: Bytes,
        /// Value.
        value: Bytes,
        /// Create, replace or both.
        mode: XattrMode,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// Name.
        name: Bytes,
    },
}

/// What came of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// Change counter before it; 0 if another client's change came between parts of it.
    pub before: u64,
    /// Attributes after it.
    pub attr: Attr,
    /// Where the first appended byte went.
    pub appended_at: Option<u64>,
}

/// An open file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Attributes.
    pub attr: Attr,
    /// The whole contents, if the file is small, its counter is not the known one, and they were wanted.
    pub data: Option<Bytes>,
}

/// Part of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// Entries in order of their offsets.
    pub entries: Vec<DirEntry>,
    /// Whether the directory has no more.
    pub end: bool,
}

/// Space of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// All that files can use, in bytes.
    pub total: u64,
    /// Free, in bytes.
    pub free: u64,
    /// Free for ordinary writers, in bytes.
    pub avail: u64,
    /// Inodes in use.
    pub inodes: u64,
}

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
    /// Waits, at most about a second, for a queued lock.
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
    /// Tells the volume whom to ask whether an inode is open here.
    fn set_open_check(&self, check: OpenCheck);
    /// Size of a shard in bytes: files up to it lie on one set.
    fn shard_size(&self) -> u64;
}
