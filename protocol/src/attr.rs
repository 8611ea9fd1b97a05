//! Attributes of files and directories.

use serde::{Deserialize, Serialize};

use crate::ids::Gfid;

/// A point in time: seconds since 1970 (may be negative) and nanoseconds.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug,
)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub secs: i64,
    /// Nanoseconds, 0..=999,999,999.
    pub nanos: u32,
}

/// The type of an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl FileKind {
    /// The `S_IFMT` bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Dir => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::CharDevice => libc::S_IFCHR,
            Self::BlockDevice => libc::S_IFBLK,
        }
    }
}

/// What `stat` shows of an inode, and what the caches need beside it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Attr {
    /// Identity.
    pub gfid: Gfid,
    /// Type.
    pub kind: FileKind,
    /// Permission bits including setuid, setgid and sticky (`07777`).
    pub perm: u32,
    /// Number of hard links; a directory's is 2 + subdirectories **on this set** (the client merges the sets).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as Linux `dev_t` in 32 bits (`new_encode_dev`), else 0.
    pub rdev: u32,
    /// Size in bytes; for a directory its number of entries on this set.
    pub size: u64,
    /// Allocated blocks of one copy, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Counts every change of the inode or its data; what caches compare.
    pub change: u64,
    /// Whether the inode has any extended attribute or ACL (absence then costs no round trip).
    pub has_xattr: bool,
}

/// Who asks: the ids the kernel gave with a call.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Cred {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Supplementary groups, where known (empty otherwise).
    pub groups: Vec<u32>,
}

impl Cred {
    /// Whether one of the caller's groups is `gid`.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// A change of attributes: what is `None` stays.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct SetAttr {
    /// New permission bits (`07777`).
    pub perm: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New access time.
    pub atime: Option<Time>,
    /// New modification time.
    pub mtime: Option<Time>,
    /// Change time shown to the application when a held change was acknowledged.
    pub ctime: Option<Time>,
    /// Clear setuid (and setgid, if group-executable) and `security.capability`, as a write by a
    /// non-privileged caller does.
    pub kill_suid: bool,
}
