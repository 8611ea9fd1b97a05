//! Records of format 1: the keys and values of everything a brick keeps beside file data.
//!
//! A key is a letter and big-endian numbers, so that keys of one directory or file lie together and in order. A value
//! is the byte 1 (its version) and the postcard encoding of the struct named here. `docs/formats/disk.md` shows the
//! same as a table.
//!
//! | key | value |
//! |---|---|
//! | `I` id | [`Inode`] |
//! | `D` parent, offset, name | [`Dirent`] |
//! | `P` directory | [`DirPart`]: this set's part of a directory |
//! | `X` id, name | value of an extended attribute (raw, no version byte) |
//! | `S` id, shard (u32) | empty: this set has data of that shard (1 and above) |
//! | `U` id | [`Cut`]: cut number of a file whose inode is on another set |
//! | `L` id | [`Locks`] |
//! | `O` id | [`Orphan`]: unlinked file or removed directory that sessions may still use |
//! | `T` session, number | [`Intent`]: this set's share of an undecided transaction |
//! | `C` session, number | [`Decision`]: decided or aborted, on the deciding set |
//! | `K` key of a record | [`Vec<Holder>`](Holder): the intents that lock it |
//! | `N` | [`Counters`] |
//! | `W` | [`Claims`], while sessions have locks to claim again |
//!
//! The letters A, E, M and R belong to the store, bytes from 0xf0 on to the brick.

use bytes::Bytes;
use mortar_protocol::attr::{Attr, FileKind, Time};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Cut, LockHeld, LockKind, Part};
use mortar_protocol::ids::{Gfid, InodeId, Opening, SessionId, SetIndex, TxnId};
use mortar_protocol::placement::dir_offset;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version byte in front of every value.
const VERSION: u8 = 1;
/// Most (parent, name) pairs an inode record lists; with more it only knows their number.
pub const MAX_LISTED_LINKS: usize = 16;

/// A record's value as bytes.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    // Serialisation into memory of our own plain structs has no way to fail.
    postcard::to_extend(value, vec![VERSION]).map_or_else(|_| Bytes::new(), Bytes::from)
}

/// The value in a record's bytes.
///
/// # Errors
/// [`Fault::Corrupt`] if they are not one of this version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| Fault::Corrupt),
        _ => Err(Fault::Corrupt),
    }
}

fn key(letter: u8, numbers: &[u64], tail: &[u8]) -> Bytes {
    let mut key = Vec::with_capacity(1 + numbers.len() * 8 + tail.len());
    key.push(letter);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key.extend_from_slice(tail);
    Bytes::from(key)
}

/// Key of an inode.
pub fn inode_key(id: InodeId) -> Bytes {
    key(b'I', &[id.0], &[])
}

/// Key of a directory entry.
pub fn dirent_key(parent: InodeId, name: &[u8]) -> Bytes {
    key(b'D', &[parent.0, dir_offset(parent, name)], name)
}

/// First key of a directory's entries with at least this offset.
pub fn dirents_from(parent: InodeId, offset: u64) -> Bytes {
    key(b'D', &[parent.0, offset], &[])
}

/// Offset and name in the key of a directory entry.
pub fn parse_dirent_key(key: &[u8]) -> Option<(u64, &[u8])> {
    let offset = key.get(9..17)?.try_into().ok()?;
    Some((u64::from_be_bytes(offset), &key[17..]))
}

/// Key of this set's part of a directory.
pub fn part_key(dir: InodeId) -> Bytes {
    key(b'P', &[dir.0], &[])
}

/// Key of an extended attribute; with an empty name the prefix of all of an inode's.
pub fn xattr_key(id: InodeId, name: &[u8]) -> Bytes {
    key(b'X', &[id.0], name)
}

/// Key that tells that this set has data of a shard.
pub fn shard_key(id: InodeId, shard: u32) -> Bytes {
    key(b'S', &[id.0], &shard.to_be_bytes())
}

/// Prefix of the shards of a file.
pub fn shards_prefix(id: InodeId) -> Bytes {
    key(b'S', &[id.0], &[])
}

/// Shard in a [`shard_key`].
pub fn parse_shard_key(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(9..)?.try_into().ok()?))
}

/// Key of the cut number of a file whose inode is elsewhere.
pub fn cut_key(id: InodeId) -> Bytes {
    key(b'U', &[id.0], &[])
}

/// Key of a file's locks.
pub fn locks_key(id: InodeId) -> Bytes {
    key(b'L', &[id.0], &[])
}

/// Key of an orphan.
pub fn orphan_key(id: InodeId) -> Bytes {
    key(b'O', &[id.0], &[])
}

/// The id in a key of one letter and one id.
pub fn parse_id(key: &[u8]) -> Option<InodeId> {
    let id = key.get(1..9)?.try_into().ok()?;
    Some(InodeId(u64::from_be_bytes(id)))
}

/// Key of an intent.
pub fn intent_key(txn: TxnId) -> Bytes {
    key(b'T', &[txn.session.0, txn.number], &[])
}

/// Key of a decision.
pub fn decision_key(txn: TxnId) -> Bytes {
    key(b'C', &[txn.session.0, txn.number], &[])
}

/// The transaction in the key of an intent or a decision.
pub fn parse_txn(key: &[u8]) -> Option<TxnId> {
    let session = key.get(1..9)?.try_into().ok()?;
    let number = key.get(9..17)?.try_into().ok()?;
    Some(TxnId {
        session: SessionId(u64::from_be_bytes(session)),
        number: u64::from_be_bytes(number),
    })
}

/// Prefix of all decisions on a session's transactions.
pub fn decisions_prefix(session: SessionId) -> Bytes {
    key(b'C', &[session.0], &[])
}

/// Key under which the holders of a record are kept.
pub fn holders_key(record: &[u8]) -> Bytes {
    key(b'K', &[], record)
}

/// What a transaction that moves directories locks, beside the records it changes.
pub const TREE_LOCK: &[u8] = b"R";

/// Key of the counters.
pub const COUNTERS_KEY: &[u8] = b"N";
/// Key of the claims that are waited for.
pub const CLAIMS_KEY: &[u8] = b"W";

/// The end of the range of keys that start with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    Bytes::from(end)
}

/// A modification time of a directory that was set by hand.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct HandTime {
    /// Change counter of this set's part when it was set.
    pub own: u64,
    /// Sum of the change counters of the parts on the other sets, if the client told it.
    pub others: Option<u64>,
}

/// An inode.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Inode {
    /// Second half of the gfid.
    pub generation: u64,
    /// Type.
    pub kind: FileKind,
    /// Permission bits (`07777`).
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Names; a directory has 2 (its subdirectories are counted in its parts), 0 once removed.
    pub nlink: u32,
    /// Size in bytes (directories: 0).
    pub size: u64,
    /// Allocated blocks of 512 bytes, on all sets.
    pub blocks: u64,
    /// The allocated blocks (4 KiB) of shard 0 are exactly its first so many, if known: then nobody has to count them.
    pub dense: Option<u32>,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode; never falls.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Counts changes.
    pub change: u64,
    /// Flags, none defined yet.
    pub flags: u32,
    /// Project for quota.
    pub project: u32,
    /// (parent, name) pairs, up to [`MAX_LISTED_LINKS`].
    pub links: Vec<(InodeId, Bytes)>,
    /// Whether there are, or were, more names than `links` could list.
    pub many_links: bool,
    /// Cut number.
    pub cut: Cut,
    /// Whether the file was ever larger than one shard.
    pub sharded: bool,
    /// Target of a symbolic link.
    pub target: Bytes,
    /// Directories: number of sets its entries spread over, 0 for all.
    pub fan_out: u32,
    /// Number of extended attributes.
    pub xattrs: u32,
    /// Bytes of their names and values.
    pub xattr_bytes: u32,
    /// Directories: `mtime` was set by hand, and for how long it holds.
    pub hand: Option<HandTime>,
}

impl Inode {
    /// A new inode without names.
    pub fn new(gfid: Gfid, kind: FileKind, perm: u32, time: Time) -> Self {
        Self {
            generation: gfid.generation,
            kind,
            perm,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: if kind == FileKind::Dir { 2 } else { 0 },
            size: 0,
            blocks: 0,
            dense: Some(0),
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change: 1,
            flags: 0,
            project: 0,
            links: Vec::new(),
            many_links: false,
            cut: Cut::default(),
            sharded: false,
            target: Bytes::new(),
            fan_out: 0,
            xattrs: 0,
            xattr_bytes: 0,
            hand: None,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// Whether a time set by hand holds, as far as this set can tell.
    pub fn hand_holds(&self, part: Option<&DirPart>) -> bool {
        self.hand
            .is_some_and(|hand| hand.own == part.map_or(0, |part| part.change))
    }

    /// Its attributes; `part` is this set's part of it, if it is a directory.
    pub fn attr(&self, id: InodeId, part: Option<&DirPart>) -> Attr {
        let mut attr = Attr {
            gfid: Gfid {
                id,
                generation: self.generation,
            },
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            blocks: self.blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
            has_xattr: self.xattrs > 0,
        };
        if let Some(part) = part.filter(|_| self.is_dir()) {
            attr.size = part.entries;
            if self.nlink > 0 {
                attr.nlink = 2 + u32::try_from(part.subdirs).unwrap_or(u32::MAX - 2);
            }
            attr.change += part.change;
            if part.change > 0 && !self.hand_holds(Some(part)) {
                attr.mtime = part.mtime;
            }
            attr.ctime = attr.ctime.max(part.mtime);
        }
        attr
    }
}

/// A directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Dirent {
    /// What it names.
    pub gfid: Gfid,
    /// Its type.
    pub kind: FileKind,
}

/// One set's part of a directory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct DirPart {
    /// Entries.
    pub entries: u64,
    /// Subdirectories among them.
    pub subdirs: u64,
    /// Last change; never falls.
    pub mtime: Time,
    /// Counts changes.
    pub change: u64,
    /// Removed for good: nothing is added any more.
    pub closed: bool,
}

/// A lock request that waits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Waiting {
    /// Session.
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

/// Locks of a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Locks {
    /// Held, ordered by (start, session, owner).
    pub held: Vec<LockHeld>,
    /// Waiting, oldest first.
    pub waiting: Vec<Waiting>,
}

/// Who has not yet claimed its locks again after an opening that may have lost some.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Claims {
    /// The opening.
    pub opening: Opening,
    /// The sessions.
    pub sessions: Vec<SessionId>,
}

/// An unlinked file or a removed directory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Orphan {
    /// Sessions that may hold it open; rising. With none left it is garbage: a file of several shards whose data on
    /// other sets must go first.
    pub sessions: Vec<SessionId>,
}

/// This set's share of a transaction that another set decides.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Intent {
    /// The deciding set.
    pub decider: SetIndex,
    /// What is to be done.
    pub parts: Vec<Part>,
    /// Time of the change.
    pub time: Time,
    /// Keys under `K` that name it.
    pub locks: Vec<Bytes>,
}

/// How a transaction ended, on its deciding set.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Decision {
    /// Decided; these other sets finish it.
    Decided(Vec<SetIndex>),
    /// Aborted.
    Aborted,
}

/// An intent that locks a record.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Holder {
    /// The transaction.
    pub txn: TxnId,
    /// The set that decides it.
    pub decider: SetIndex,
    /// When the intent was made, by the primary's clock.
    pub since: Time,
    /// Whether the record itself is locked, or (for a directory's part) only its removal.
    pub exclusive: bool,
}

/// Counters of the set.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Counters {
    /// Inodes in use.
    pub inodes: u64,
    /// Intents; at 0 no record is locked and nobody looks.
    pub intents: u64,
}
