//! Entries of a set log: what every member of a set applies, in order. The primary decides and writes *effects*;
//! backups take them over and never decide again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{BrickId, InodeId, Pos, SessionId, StageId};
use crate::view::View;

/// The data of one shard of one file on one set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct Object {
    /// The file.
    pub id: InodeId,
    /// Shard number.
    pub shard: u32,
}

/// One change of a brick's state. Offsets are in bytes within the object.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Effect {
    /// Stores a record.
    Put {
        /// Key, ordered bytewise.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Removes a record (no error if there is none).
    Del {
        /// Key.
        key: Bytes,
    },
    /// Writes `len` bytes found at `at` in the entry's body. Need not be aligned.
    Write {
        /// Where to.
        object: Object,
        /// Offset in the object.
        offset: u64,
        /// Offset in the entry's body.
        at: u32,
        /// Length.
        len: u32,
    },
    /// Attaches a stage of whole blocks: `crcs.len()` blocks of 4 KiB at a block-aligned offset.
    Attach {
        /// Where to.
        object: Object,
        /// Block-aligned offset in the object.
        offset: u64,
        /// The stage, held by each member.
        stage: StageId,
        /// crc32 of each block.
        crcs: Vec<u32>,
    },
    /// Makes a range read as zeros and gives whole blocks in it back; unaligned ends are zeroed in place (where there is
    /// a hole, it stays one).
    Punch {
        /// Where.
        object: Object,
        /// First byte.
        offset: u64,
        /// Length; `u64::MAX` means to the end of the object.
        len: u64,
    },
    /// Reserves space: holes of the block-aligned range become unwritten blocks (they read as zeros and can always
    /// be written); with `zero`, blocks with data become unwritten ones too and unaligned ends are zeroed in place.
    Reserve {
        /// Where.
        object: Object,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Whether existing data in the range is zeroed.
        zero: bool,
    },
    /// Makes the blocks of a range refer to the same data as another object's (reference-counted). Both offsets and
    /// the length are block-aligned, and every block of the source range has data.
    Share {
        /// Source.
        from: Object,
        /// Offset in the source.
        from_offset: u64,
        /// Destination.
        object: Object,
        /// Offset in the destination.
        offset: u64,
        /// Length.
        len: u64,
    },
}

/// What an entry is for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum EntryKind {
    /// A change asked for by a session.
    Change {
        /// The session.
        session: SessionId,
        /// The request's number in this session on this set.
        number: u64,
        /// All numbers below this one have been answered to the client: their results may be forgotten.
        answered_below: u64,
        /// The encoded [`crate::fop::Answer`], kept so that a repeated request gets it again.
        result: Bytes,
    },
    /// The beginning of a view: the first entry of its epoch.
    View(View),
    /// Announces a joiner: from here on nothing is acknowledged that it has not written.
    Joiner(BrickId),
    /// A session begins on this set.
    SessionBegin {
        /// The session.
        session: SessionId,
        /// uid that its certificate binds it to (0: none).
        uid: u32,
    },
    /// A session has ended; its locks and orphans are given up by the effects.
    SessionEnd(SessionId),
    /// A change the primary made by itself (orphan removal, transaction clean-up).
    Internal,
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Entry {
    /// Its position.
    pub pos: Pos,
    /// What it is for.
    pub kind: EntryKind,
    /// What it changes, in order.
    pub effects: Vec<Effect>,
    /// Bytes that its [`Effect::Write`]s refer to. Carried outside the head.
    #[serde(skip)]
    pub body: Bytes,
}

impl Entry {
    /// The bytes of an [`Effect::Write`] of this entry; empty if it points outside the body.
    pub fn bytes(&self, at: u32, len: u32) -> Bytes {
        let (start, end) = (at as usize, at as usize + len as usize);
        if end <= self.body.len() {
            self.body.slice(start..end)
        } else {
            Bytes::new()
        }
    }
}

/// Space of a brick, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Space {
    /// All that files can use.
    pub total: u64,
    /// Free, counting blocks that the next checkpoint gives back.
    pub free: u64,
    /// Free at once.
    pub free_now: u64,
    /// Free bytes of the WAL ring.
    pub ring_free: u64,
    /// Number of inodes in use.
    pub inodes: u64,
}

impl Space {
    /// Bytes that the data of ordinary writers leaves free, beside what the store keeps back for unlink, metadata and
    /// overwriting: a cushion for requests under way, half of it for names and attributes. 1/128 of the brick, 1 to
    /// 256 MiB.
    pub fn cushion(&self) -> u64 {
        (self.total / 128).clamp(1 << 20, 256 << 20)
    }
}
