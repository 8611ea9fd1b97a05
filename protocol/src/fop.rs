//! File operations on the wire: what a client asks a set, and the answers.
//!
//! Reads carry number 0 and may be answered by any in-sync member. Everything else is numbered: the primary decides
//! it, writes one entry, and a repeat of the same number gets the first answer again (exactly once). All fops address
//! inodes by their 64-bit id.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attr::{Attr, Cred, FileKind, SetAttr, Time};
use crate::error::Fault;
use crate::ids::{
    BrickId, Epoch, Gfid, InodeId, Mark, Opening, Seq, SessionId, SetIndex, StageId, TxnId,
};

/// One request to one brick.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Call {
    /// The brick asked: the primary of its set, or any member for a read.
    pub brick: BrickId,
    /// Epoch of the view the client knows.
    pub epoch: Epoch,
    /// The client's session.
    pub session: SessionId,
    /// Number of the request in this session on this set; 0 for reads. Rises from 1 without gaps.
    pub number: u64,
    /// All numbers below this one have been answered.
    pub answered_below: u64,
    /// Whether the request may have been sent before.
    pub repeat: bool,
    /// Number of this client's previous change of the same inode on this set, 0 for none: the primary runs this one
    /// only after it, and refuses it (EIO) if that one was refused.
    pub after: u64,
    /// Who asks.
    pub cred: Cred,
    /// The change is answered only once it is flushed on every member.
    pub durable: bool,
    /// What is asked.
    pub fop: Fop,
}

/// The number of cuts (truncations, last unlinks) a file has had: the opening of its inode's set and a count. A
/// request for a shard with an older one than the shard's set knows is refused with ESTALE.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default, Debug)]
pub struct Cut {
    /// Opening of the inode's set.
    pub opening: Opening,
    /// Count.
    pub count: u64,
}

impl Cut {
    /// The cut of a file that is gone for good: its shards are never written again.
    pub const GONE: Self = Self {
        opening: Opening(u64::MAX),
        count: u64::MAX,
    };
}

/// What a file operation does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Fop {
    /// Directory entry and, if the inode lies on this set, its attributes. Answer: [`Reply::Found`].
    Lookup {
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Bytes,
    },
    /// Attributes. Answer: [`Reply::Attr`], or [`Reply::DirAttr`] for a directory whose mtime was set by hand together
    /// with [`InodeOp::DirTimes`]. ESTALE if the inode is not there (so for every fop that names an inode by id).
    GetAttr {
        /// Inode.
        id: InodeId,
    },
    /// This set's part of a directory. Answer: [`Reply::DirPart`].
    DirPart {
        /// Directory.
        dir: InodeId,
    },
    /// The (parent, name) pairs of an inode. Answer: [`Reply::Links`].
    Links {
        /// Inode.
        id: InodeId,
    },
    /// Entries of this set's part of a directory, in order of their offsets. Answer: [`Reply::Entries`].
    ReadDir {
        /// Directory.
        dir: InodeId,
        /// Entries with an offset greater than this are given.
        after: u64,
        /// At most so many bytes of encoded reply, about.
        max: u32,
        /// With attributes of the inodes that lie on this set.
        plus: bool,
    },
    /// Target of a symbolic link. Answer: [`Reply::Bytes`].
    ReadLink {
        /// Inode.
        id: InodeId,
    },
    /// Value of an extended attribute (ENODATA if absent). Answer: [`Reply::Bytes`].
    GetXattr {
        /// Inode.
        id: InodeId,
        /// Name.
        name: Bytes,
    },
    /// Names of all extended attributes, each followed by a zero byte. Answer: [`Reply::Bytes`].
    ListXattr {
        /// Inode.
        id: InodeId,
    },
    /// Data of a shard. Answer: [`Reply::Data`]; holes and what is not written read as zeros. For shard 0 the answer
    /// ends at the file's size.
    Read {
        /// File.
        id: InodeId,
        /// Shard.
        shard: u32,
        /// Offset in the shard.
        offset: u64,
        /// Length, at most 1 MiB.
        len: u32,
        /// The cut the client knows.
        cut: Cut,
    },
    /// Next data or hole in a shard. Answer: [`Reply::Seek`]. In shard 0 offsets at or beyond the file's size are never
    /// answered: the hole at the end of the file is the client's to add.
    Seek {
        /// File.
        id: InodeId,
        /// Shard.
        shard: u32,
        /// Offset in the shard.
        offset: u64,
        /// Look for a hole (else for data).
        hole: bool,
    },
    /// ESTALE for an unlinked file that this session has let go. Attributes and, for a regular file of up to [`crate::limits::OPEN_DATA_MAX`] bytes whose change counter is not
    /// `known`, its contents. Answer: [`Reply::Opened`].
    Open {
        /// File.
        id: InodeId,
        /// Change counter of what the client has cached.
        known: Option<u64>,
        /// Whether contents are wanted.
        data: bool,
    },
    /// Blocks that a file's shards on this set have at or beyond `size` bytes of the file: for `other_blocks` of
    /// [`Part::InodeCut`]. Answer: [`Reply::Blocks`].
    Blocks {
        /// File.
        id: InodeId,
        /// Bytes of the whole file that do not count.
        size: u64,
    },
    /// Space of the set. Answer: [`Reply::StatFs`].
    StatFs,
    /// Waits until everything up to the mark is flushed on every member. Answer: [`Reply::Done`], or
    /// [`Fault::Lost`] if the set has opened below it since.
    Sync {
        /// Highest mark the client was given on this set.
        upto: Mark,
    },
    /// The lock that would conflict. Answer: [`Reply::Lock`].
    LockTest(LockRequest),
    /// Waits until a queued lock is granted (answered after at most 1 s either way). Answer: [`Reply::Locked`];
    /// `Busy`: it is neither held nor queued (withdrawn, or the session ended).
    LockWait(LockRequest),
    /// How a transaction stands on its deciding set. Answer: [`Reply::Txn`].
    TxnState {
        /// The transaction.
        txn: TxnId,
    },
    /// Renews the session on this set. `open` names the unlinked inodes (of those the set told about in
    /// [`Reply::Renewed`]) that this client still holds open; they stay. A removed directory counts as released once
    /// the client treats it as removed. Answer: [`Reply::Renewed`].
    Renew {
        /// Orphans that are open here.
        open: Vec<InodeId>,
        /// Orphans that this client knows of and does not hold open.
        released: Vec<InodeId>,
    },

    /// Begins the session on this set (durably). Number 0: may be repeated, the session's numbers are not touched.
    /// [`Fault::UnknownSession`] if the session has ended. Answer: [`Reply::Done`].
    SessionBegin,
    /// Ends the session on this set: its locks go, its orphans go. Number 0, may be repeated. Answer: [`Reply::Done`].
    SessionEnd,
    /// Namespace changes, all or none. Answer: [`Reply::Parts`].
    Commit {
        /// What to do.
        parts: Vec<Part>,
        /// Time of the change.
        time: Time,
    },
    /// Changes of one inode or shard, all or none. Answer: [`Reply::Changed`]. The bytes of its writes are in the
    /// frame's body, in order.
    Change(Change),
    /// First step of a transaction over several sets: checks and locks the records of `parts`. Answer: [`Reply::Done`].
    Prepare {
        /// The transaction.
        txn: TxnId,
        /// The set that decides (the highest index).
        decider: SetIndex,
        /// This set's share.
        parts: Vec<Part>,
        /// Time of the change.
        time: Time,
    },
    /// Second step, on the deciding set: does its own share and records the decision. Answer: [`Reply::Parts`] (empty if
    /// it was decided before); EAGAIN if somebody aborted it: start again as a new transaction.
    Decide {
        /// The transaction.
        txn: TxnId,
        /// The other sets.
        sets: Vec<SetIndex>,
        /// The deciding set's share.
        parts: Vec<Part>,
        /// Time of the change.
        time: Time,
    },
    /// Third step, on each other set: does the prepared share. Idempotent. Answer: [`Reply::Parts`] (empty if done before).
    Finish {
        /// The transaction.
        txn: TxnId,
    },
    /// On the deciding set: records "aborted" unless decided; elsewhere: drops the intent (or refuses one that comes
    /// later). Ask the deciding set first. Answer: [`Reply::Txn`].
    Abort {
        /// The transaction.
        txn: TxnId,
    },
    /// Once all shares are done and flushed: drops the record of the decision, or of the abort (only the session of the
    /// transaction does that, when none of its requests is under way any more). Answer: [`Reply::Done`].
    Forget {
        /// The transaction.
        txn: TxnId,
    },
    /// Takes, queues or releases a lock. Answer: [`Reply::Locked`].
    Lock(LockRequest),
    /// Claims the session's locks on this set again, all that it holds, after the set opened and may have lost some
    /// ([`Reply::Renewed`] asks for it). They replace what the set knows of the session's. Until every session has
    /// claimed or ended, the set grants no lock ([`Fault::NotServing`]). EAGAIN if the set has opened once more since.
    /// Answer: [`Reply::Claimed`], the same for a repeat.
    Claim {
        /// The opening after which they are claimed.
        opening: Opening,
        /// The locks, at most [`crate::limits::MAX_CLAIMS`].
        locks: Vec<LockRequest>,
    },
}

impl Fop {
    /// Whether it is a read: not numbered, writes no entry.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::Lookup { .. }
                | Self::GetAttr { .. }
                | Self::DirPart { .. }
                | Self::Links { .. }
                | Self::ReadDir { .. }
                | Self::ReadLink { .. }
                | Self::GetXattr { .. }
                | Self::ListXattr { .. }
                | Self::Read { .. }
                | Self::Seek { .. }
                | Self::Open { .. }
                | Self::Blocks { .. }
                | Self::StatFs
                | Self::Sync { .. }
                | Self::LockTest(_)
                | Self::LockWait(_)
                | Self::TxnState { .. }
                | Self::Renew { .. }
        )
    }

    /// Names of all kinds, for statistics: what is asked for often comes first.
    pub const NAMES: &[&str] = &[
        "read",
        "change",
        "commit",
        "lookup",
        "open",
        "getattr",
        "readdir",
        "sync",
        "renew",
        "dirpart",
        "links",
        "readlink",
        "getxattr",
        "listxattr",
        "seek",
        "blocks",
        "statfs",
        "locktest",
        "lockwait",
        "lock",
        "claim",
        "txnstate",
        "prepare",
        "decide",
        "finish",
        "abort",
        "forget",
        "sessionbegin",
        "sessionend",
    ];

    /// Index of the kind in [`Self::NAMES`].
    pub fn kind(&self) -> usize {
        let name = self.name();
        let at = Self::NAMES.iter().position(|known| *known == name);
        at.unwrap_or(Self::NAMES.len())
    }

    /// The inode it names, if it names one.
    pub fn inode(&self) -> Option<InodeId> {
        match self {
            Self::Lookup { parent: id, .. }
            | Self::GetAttr { id }
            | Self::DirPart { dir: id }
            | Self::Links { id }
            | Self::ReadDir { dir: id, .. }
            | Self::ReadLink { id }
            | Self::GetXattr { id, .. }
            | Self::ListXattr { id }
            | Self::Read { id, .. }
            | Self::Seek { id, .. }
            | Self::Open { id, .. }
            | Self::Blocks { id, .. } => Some(*id),
            Self::Change(change) => Some(change.id),
            Self::LockTest(lock) | Self::LockWait(lock) | Self::Lock(lock) => Some(lock.id),
            _ => None,
        }
    }

    /// Short name for statistics and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "lookup",
            Self::GetAttr { .. } => "getattr",
            Self::DirPart { .. } => "dirpart",
            Self::Links { .. } => "links",
            Self::ReadDir { .. } => "readdir",
            Self::ReadLink { .. } => "readlink",
            Self::GetXattr { .. } => "getxattr",
            Self::ListXattr { .. } => "listxattr",
            Self::Read { .. } => "read",
            Self::Seek { .. } => "seek",
            Self::Open { .. } => "open",
            Self::Blocks { .. } => "blocks",
            Self::StatFs => "statfs",
            Self::Sync { .. } => "sync",
            Self::LockTest(_) => "locktest",
            Self::LockWait(_) => "lockwait",
            Self::TxnState { .. } => "txnstate",
            Self::Renew { .. } => "renew",
            Self::SessionBegin => "sessionbegin",
            Self::SessionEnd => "sessionend",
            Self::Commit { .. } => "commit",
            Self::Change(_) => "change",
            Self::Prepare { .. } => "prepare",
            Self::Decide { .. } => "decide",
            Self::Finish { .. } => "finish",
            Self::Abort { .. } => "abort",
            Self::Forget { .. } => "forget",
            Self::Lock(_) => "lock",
            Self::Claim { .. } => "claim",
        }
    }
}

/// What a new inode takes from its parent directory when the parent's record lies on another set.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct ParentHint {
    /// The parent has the setgid bit; the new inode gets this group.
    pub setgid: Option<u32>,
    /// The parent's default ACL (value of `system.posix_acl_default`).
    pub default_acl: Option<Bytes>,
}

/// One namespace change with its condition; several make a create, unlink, rename, link or rmdir.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Part {
    /// Creates an inode ([`Fault::IdTaken`] if the id is in use here). Its perm, gid and ACLs follow the parent's setgid bit and
    /// default ACL: from the parent's record if it lies on this set, else from `hint`. Without a default ACL `umask`
    /// is taken off.
    InodeNew {
        /// Identity, drawn by the client.
        gfid: Gfid,
        /// Type.
        kind: FileKind,
        /// Permission bits asked for.
        perm: u32,
        /// The caller's umask.
        umask: u32,
        /// Owner.
        uid: u32,
        /// Group, unless the parent's setgid bit gives another.
        gid: u32,
        /// Device number.
        rdev: u32,
        /// Target of a symbolic link, else empty.
        target: Bytes,
        /// Directory it is created in.
        parent: InodeId,
        /// Name it is created under.
        name: Bytes,
        /// What the parent gives, if it lies elsewhere.
        hint: Option<ParentHint>,
    },
    /// Adds a directory entry. Refused with ENOENT if the directory is removed or being removed.
    DirentAdd {
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Bytes,
        /// What it names.
        gfid: Gfid,
        /// Its type.
        kind: FileKind,
        /// What must be there before: nothing (EEXIST otherwise), or this inode, which it replaces (else [`Errno`
        /// EAGAIN](crate::error::Errno::EAGAIN): the client looks again).
        replaces: Option<Gfid>,
    },
    /// Removes a directory entry (EAGAIN if it names another inode by now, ENOENT if there is none).
    DirentRemove {
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Bytes,
        /// What it must name.
        expect: Gfid,
    },
    /// The inode gets another name: nlink + 1 (EMLINK, and ENOENT if it has none left).
    LinkAdd {
        /// Inode.
        id: InodeId,
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Bytes,
    },
    /// One of the inode's names changes: ctime, and the recorded pair.
    LinkMove {
        /// Inode.
        id: InodeId,
        /// Old directory and name.
        from: (InodeId, Bytes),
        /// New directory and name.
        to: (InodeId, Bytes),
    },
    /// The inode loses a name: nlink - 1. At 0 it goes with its data on this set, or becomes an orphan while another
    /// session is alive or `held_open`.
    LinkRemove {
        /// Inode.
        id: InodeId,
        /// Directory.
        parent: InodeId,
        /// Name.
        name: Bytes,
        /// Whether the client itself holds it open.
        held_open: bool,
    },
    /// Removes this set's part of a directory for good; ENOTEMPTY if it has entries, ENOTDIR if it is none, EBUSY for
    /// the root. On the inode's set the inode goes too (or becomes an orphan as with [`Part::LinkRemove`]).
    DirClose {
        /// Directory.
        dir: InodeId,
        /// Whether the client itself holds it open.
        held_open: bool,
    },
    /// Checks that a directory's recorded parent is still this one (for moves of directories: no cycles; EAGAIN if it
    /// is another). It locks nothing: moves of directories hold [`Part::TreeLock`].
    ParentIs {
        /// Directory.
        dir: InodeId,
        /// Its parent.
        parent: InodeId,
    },
    /// Locks the volume's directory tree against other moves of directories, on the set of the root's record. Within one
    /// [`Fop::Commit`] it only checks that no transaction holds the lock.
    TreeLock,
    /// Cuts the shards of a file on a set that does not have its inode: drops data from `size` on and refuses requests
    /// with an older cut. With [`Cut::GONE`] and size 0 on behalf of [`Reply::Renewed`]'s `garbage`.
    ShardCut {
        /// File.
        id: InodeId,
        /// New size of the whole file, in bytes.
        size: u64,
        /// The volume's shard size, in bytes.
        shard_size: u64,
        /// The new cut number.
        cut: Cut,
    },
    /// On the inode's set: sets size and cut number, drops what lies beyond in all shards here, applies `set`. mtime and
    /// ctime become the change's time.
    InodeCut {
        /// File.
        id: InodeId,
        /// New size, in bytes.
        size: u64,
        /// The new cut number; must be greater than the one [`Reply::Attr`] tells (EAGAIN otherwise): the same opening,
        /// count + 1.
        cut: Cut,
        /// Attribute changes that go with it.
        set: SetAttr,
        /// Blocks (512 bytes) that the other sets give back ([`Fop::Blocks`]).
        other_blocks: u64,
    },
    /// On the inode's set: removes an unlinked file of several shards (one of [`Reply::Renewed`]'s `garbage`) after its
    /// shards on all other sets were cut with [`Cut::GONE`]. Nothing happens if it is gone.
    Purge {
        /// File.
        id: InodeId,
    },
}

/// Changes of one inode or one of its shards.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Change {
    /// Inode.
    pub id: InodeId,
    /// Whether its record lies on this set. If not, only data is written here, and the client tells the inode's set.
    pub inode: bool,
    /// The cut the client knows (ignored while a file never had a second shard).
    pub cut: Cut,
    /// Time of the change as shown to the application (mtime and ctime of writes, ctime of the rest).
    pub time: Time,
    /// What to do, in order.
    pub ops: Vec<InodeOp>,
}

/// How `setxattr` treats an existing attribute.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Create only (EEXIST).
    Create,
    /// Replace only (ENODATA).
    Replace,
}

/// One change of an inode.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum InodeOp {
    /// Writes the next `len` bytes of the body. Raises the size if `shard` is 0; for other shards an [`InodeOp::Extend`]
    /// goes to the inode's set first. Like every change of data it clears `security.capability`, and makes mtime and
    /// ctime the change's time.
    Write {
        /// Shard.
        shard: u32,
        /// Offset in the shard.
        offset: u64,
        /// Length.
        len: u32,
    },
    /// Writes the next `len` bytes of the body at the end of the file (shard 0 only; E2BIG if it would leave it).
    Append {
        /// Length.
        len: u32,
    },
    /// Attaches a stage of whole blocks. Raises the size like a write.
    Attach {
        /// Shard.
        shard: u32,
        /// Block-aligned offset in the shard.
        offset: u64,
        /// The stage.
        stage: StageId,
        /// Length in bytes, a multiple of 4,096.
        len: u32,
    },
    /// Raises the file's size to at least this; mtime and ctime become the change's time.
    Extend {
        /// Size in bytes.
        size: u64,
    },
    /// Sets the size of a file that never had a second shard (EAGAIN otherwise: look again; those need a transaction of
    /// `InodeCut` and `ShardCut`).
    Truncate {
        /// Size in bytes.
        size: u64,
    },
    /// Reserves space for every block that the range touches; `zero` also zeroes what is there. The size stays:
    /// `Extend` goes with it where it is to grow.
    Reserve {
        /// Shard.
        shard: u32,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Zero existing data.
        zero: bool,
    },
    /// Punches a hole.
    Punch {
        /// Shard.
        shard: u32,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Copies from a file on the same set, by reference where both offsets are equal modulo a block. The source is read as
    /// it was before this request. EOPNOTSUPP where more than [`crate::limits::MAX_INLINE`] bytes had to be copied
    /// bytewise, or the source is too fragmented; EINVAL if the ranges overlap within one shard. Raises the size like a
    /// write.
    CopyFrom {
        /// Source file.
        from: InodeId,
        /// Source shard.
        from_shard: u32,
        /// Offset in the source shard.
        from_offset: u64,
        /// Destination shard.
        shard: u32,
        /// Offset in the destination shard.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Changes attributes.
    SetAttr(SetAttr),
    /// Sets an extended attribute. `system.posix_acl_access` also changes the permission bits, and is not kept if it says
    /// no more than these.
    SetXattr {
        /// Name.
        name: Bytes,
        /// Value.
        value: Bytes,
        /// Create, replace or both.
        mode: XattrMode,
    },
    /// Removes an extended attribute (ENODATA, except that an absent ACL is no error).
    RemoveXattr {
        /// Name.
        name: Bytes,
    },
    /// Blocks (512 bytes) that a write of this client allocated (or gave back) on other sets.
    AddBlocks {
        /// Difference.
        blocks: i64,
    },
    /// The data has changed (on another set): mtime and ctime become the change's time.
    Modified,
    /// Beside a `SetAttr` of a directory's mtime where the volume has several sets: the time holds until a part of the
    /// directory changes.
    DirTimes {
        /// Sum of the change counters of the parts on the other sets.
        others: u64,
    },
    /// Raises the file's size by `len`; the old size is answered as `appended_at`. The client then writes there: an
    /// append of which a part lies on another set.
    Grow {
        /// Bytes.
        len: u64,
    },
    /// Refuses the whole change with EAGAIN unless the file has this size: an append of which data went ahead, or that
    /// leaves shard 0.
    SizeIs {
        /// Size in bytes.
        size: u64,
    },
    /// The file was read: its atime becomes this, if it is earlier. Neither ctime nor the change counter moves: nobody's
    /// pages are outdated. Left out, without an error, where the caller may not read the file.
    Accessed {
        /// When.
        time: Time,
    },
}

/// Kind of a lock. fuser does not tell flock from fcntl locks, so owners tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Release. With `wait` set: withdraw the queued request of this owner and range; outcome `Busy` if it was withdrawn
    /// (or never known), `Granted` if it is held by now.
    Unlock,
}

/// A lock call.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LockRequest {
    /// Inode.
    pub id: InodeId,
    /// Owner within the session, as the kernel names it.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte (`u64::MAX`: to the end).
    pub end: u64,
    /// What is asked.
    pub kind: LockKind,
    /// Process id, for F_GETLK.
    pub pid: u32,
    /// Queue it if it cannot be granted at once.
    pub wait: bool,
}

/// A lock that is held.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LockHeld {
    /// Session of the holder.
    pub session: SessionId,
    /// Owner within the session.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// Process id.
    pub pid: u32,
}

/// What became of a lock request.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum LockOutcome {
    /// Granted (or released).
    Granted,
    /// Queued: ask with [`Fop::LockWait`].
    Queued,
    /// Would block, and waiting was not asked for.
    Busy,
}

/// One entry of a listing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DirEntry {
    /// Name.
    pub name: Bytes,
    /// What it names.
    pub gfid: Gfid,
    /// Type.
    pub kind: FileKind,
    /// Its offset ([`crate::placement::dir_offset`]).
    pub offset: u64,
    /// Attributes, if asked for and the inode lies on this set.
    pub attr: Option<Attr>,
}

/// What an ended session has left of a transaction on a set.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum LeftTxn {
    /// A share that was prepared.
    Intent {
        /// The transaction.
        txn: TxnId,
        /// The set that decides it.
        decider: SetIndex,
    },
    /// The record that it was decided: the others finish it, then it is forgotten.
    Decided {
        /// The transaction.
        txn: TxnId,
        /// The other sets.
        sets: Vec<SetIndex>,
    },
}

/// How a transaction stands.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum TxnStatus {
    /// Decided; these other sets finish it.
    Decided(Vec<SetIndex>),
    /// Recorded as aborted.
    Aborted,
    /// Neither is recorded.
    Unknown,
}

/// A brick's answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Answer {
    /// Where the set's log stood: for a change its own entry, for a read the newest entry it shows.
    pub mark: Mark,
    /// Up to where the set's log is flushed on every member.
    pub flushed: Seq,
    /// Result.
    pub result: Result<Reply, Fault>,
}

/// Results of file operations.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// A directory entry.
    Found {
        /// What it names.
        gfid: Gfid,
        /// Type.
        kind: FileKind,
        /// Attributes, if the inode lies on this set; `missing` tells an inode that should but does not.
        attr: Option<Attr>,
        /// The inode belongs to this set but is not there (the name then dangles).
        missing: bool,
    },
    /// Attributes, and the file's cut number. A directory's come with this set's part merged in.
    Attr(Attr, Cut),
    /// This set's part of a directory.
    DirPart {
        /// Entries.
        entries: u64,
        /// Subdirectories among them.
        subdirs: u64,
        /// Last change of this part.
        mtime: Time,
        /// Change counter of this part.
        change: u64,
    },
    /// (parent, name) pairs; `many` if the record no longer lists them all.
    Links {
        /// Pairs.
        links: Vec<(InodeId, Bytes)>,
        /// Whether there are more.
        many: bool,
    },
    /// A piece of a listing.
    Entries {
        /// Entries in order.
        entries: Vec<DirEntry>,
        /// Whether this set has no more.
        end: bool,
    },
    /// Bytes, small.
    Bytes(Bytes),
    /// Data in the body. `change` is the inode's counter if it lies on this set, else 0.
    Data {
        /// Change counter.
        change: u64,
    },
    /// Offset found, or none in this shard.
    Seek(Option<u64>),
    /// Open file; contents in the body if `data`.
    Opened {
        /// Attributes.
        attr: Attr,
        /// Cut number.
        cut: Cut,
        /// Whether the contents are in the body.
        data: bool,
    },
    /// Allocated blocks of 512 bytes.
    Blocks(u64),
    /// Space of the set, in bytes, and inodes.
    StatFs {
        /// All that files can use.
        total: u64,
        /// Free.
        free: u64,
        /// Free for ordinary writers (less the reserve).
        avail: u64,
        /// Inodes in use.
        inodes: u64,
    },
    /// The conflicting lock, if any.
    Lock(Option<LockHeld>),
    /// What became of a lock request; with size and change counter of the inode when it was granted.
    Locked {
        /// Outcome.
        outcome: LockOutcome,
        /// Attributes, so that caches can be checked.
        attr: Option<Attr>,
    },
    /// How a transaction stands.
    Txn(TxnStatus),
    /// The session is alive; orphans the set wants to hear about (is one of them open at your side?).
    Renewed {
        /// Unlinked inodes and removed directories.
        orphans: Vec<InodeId>,
        /// What nobody holds open any more, with sizes: unlinked files of several shards, and the marks of removed
        /// directories that were locked. Whoever reads this cuts the shards on the other sets of a file whose inode is
        /// on this set ([`Part::ShardCut`] to 0 with [`Cut::GONE`]), then sends [`Part::Purge`] to this set.
        garbage: Vec<(InodeId, u64)>,
        /// The set waits for this session's [`Fop::Claim`] after that opening.
        claim: Option<Opening>,
        /// Transactions that sessions left behind which have ended: whoever reads this resolves them.
        left: Vec<LeftTxn>,
    },
    /// Attributes after a namespace change: one for each `InodeNew`, `LinkAdd`, `LinkMove`, `LinkRemove` and
    /// `InodeCut` of an inode that still exists, in order.
    Parts(Vec<Attr>),
    /// After a change of an inode.
    Changed {
        /// Change counter before (0 if the inode lies elsewhere).
        before: u64,
        /// Attributes after, if the inode lies here.
        attr: Option<Attr>,
        /// Where appended bytes went, if the change appended.
        appended_at: Option<u64>,
        /// Blocks (512 bytes) allocated here by this change (negative: given back), if the inode lies elsewhere.
        blocks: i64,
    },
    /// Attributes of a directory whose mtime was set by hand: they hold while the change counters of its parts on the
    /// other sets add up to `others`, else its mtime and ctime are the latest of its parts' and `otherwise`.
    DirAttr {
        /// Attributes, with this set's part merged in.
        attr: Attr,
        /// Sum of the counters of the parts on the other sets when the time was set.
        others: u64,
        /// What mtime is without the time set by hand.
        otherwise: Time,
    },
    /// What of the claimed locks the session does not hold: their inodes and owners. They are lost for good.
    Claimed {
        /// Lost ones.
        lost: Vec<(InodeId, u64)>,
    },
}

/// Bulk data for several bricks of one node, ahead of the entry that attaches it. The bytes are the frame's body.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Stage {
    /// Identity of the stage; the same on every member of the set.
    pub stage: StageId,
    /// Bricks of this node that keep it.
    pub bricks: Vec<BrickId>,
}

/// Everything a brick server can be asked by a client or a peer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Request {
    /// A file operation. Answered with an [`Answer`].
    Fop(Call),
    /// Bulk data. Answered with [`StageAnswer`].
    Stage(Stage),
    /// A message between members of a set; not answered (an empty frame ends the stream).
    Peer(crate::peer::PeerEnvelope),
    /// Management, and what mounts need to know. Answered with an [`crate::admin::AdminReply`].
    Admin(crate::admin::AdminRequest),
    /// Between nodes. Answered with a [`crate::node::NodeReply`].
    Node(crate::node::NodeRequest),
}

/// Answer to a [`Stage`]: per brick, in the order asked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct StageAnswer {
    /// Results.
    pub results: Vec<Result<(), Fault>>,
}
