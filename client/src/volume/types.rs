//! What the methods of [`Volume`](super::Volume) take and give.

use bytes::Bytes;
use mortar_protocol::attr::{Attr, FileKind, SetAttr, Time};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{DirEntry, XattrMode};

/// Result of a call: errors are what the application gets.
pub type Res<T> = Result<T, Errno>;

pub use crate::remote::OpenCheck;

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

impl NewInode {
    /// A regular file.
    pub fn file(perm: u32) -> Self {
        Self {
            kind: FileKind::File,
            perm,
            umask: 0,
            rdev: 0,
            target: Bytes::new(),
        }
    }

    /// A directory.
    pub fn dir(perm: u32) -> Self {
        Self {
            kind: FileKind::Dir,
            ..Self::file(perm)
        }
    }

    /// A symbolic link.
    pub fn symlink(target: Bytes) -> Self {
        Self {
            kind: FileKind::Symlink,
            target,
            ..Self::file(0o777)
        }
    }
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
    /// The file was read then.
    Accessed(Time),
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
