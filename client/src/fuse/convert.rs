//! Between Mortar's types and the kernel's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::LockKind;
use mortar_protocol::ids::InodeId;

/// Block size that stat shows: what programs read and write at once.
const BLOCK_SIZE: u32 = 128 << 10;

/// Who asks. The kernel does not tell supplementary groups; it has checked permissions itself.
pub(super) fn cred(request: &Request) -> Cred {
    Cred {
        uid: request.uid(),
        gid: request.gid(),
        groups: Vec::new(),
    }
}

/// The inode of a node id.
pub(super) fn id(ino: INodeNo) -> InodeId {
    InodeId(ino.0)
}

/// The kernel's error.
pub(super) fn errno(errno: Errno) -> fuser::Errno {
    super::watched::refused(errno);
    fuser::Errno::from_i32(errno.raw())
}

/// The kernel's type.
pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The type that mknod's mode asks for.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => FileKind::File,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

/// The kernel's attributes.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.gfid.id.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: kind(attr.kind),
        perm: (attr.perm & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes of which only inode and type are known, for listings.
pub(super) fn bare_attr(inode: InodeId, file_kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind(file_kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = match time.secs < 0 {
        true => UNIX_EPOCH.checked_sub(whole),
        false => UNIX_EPOCH.checked_add(whole),
    };
    let nanos = Duration::from_nanos(u64::from(time.nanos.min(999_999_999)));
    second
        .and_then(|second| second.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// A time of setattr.
pub(super) fn time(time: TimeOrNow, now: Time) -> Time {
    let TimeOrNow::SpecificTime(time) = time else {
        return now;
    };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        // fuser takes the nanoseconds of a time before 1970 off instead of adding them; this undoes it.
        Err(before) => Time {
            secs: 0i64.saturating_sub_unsigned(before.duration().as_secs()),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

/// A lock's kind.
pub(super) fn lock_kind(kind: i32) -> Option<LockKind> {
    match kind {
        libc::F_RDLCK => Some(LockKind::Read),
        libc::F_WRLCK => Some(LockKind::Write),
        libc::F_UNLCK => Some(LockKind::Unlock),
        _ => None,
    }
}

/// The kernel's number of a lock's kind.
pub(super) fn lock_number(kind: LockKind) -> i32 {
    match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    }
}

/// The kernel's last byte of a lock to the end of the file.
const LOCK_TO_END: u64 = i64::MAX as u64;

/// Last byte of a lock as Mortar counts: `u64::MAX` is the end of the file.
pub(super) fn lock_end(end: u64) -> u64 {
    if end >= LOCK_TO_END { u64::MAX } else { end }
}

/// Last byte of a lock as the kernel counts.
pub(super) fn kernel_lock_end(end: u64) -> u64 {
    end.min(LOCK_TO_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser makes of a time the kernel sends.
    fn as_fuser(secs: i64, nanos: u32) -> TimeOrNow {
        TimeOrNow::SpecificTime(match secs >= 0 {
            true => UNIX_EPOCH + Duration::new(secs as u64, nanos),
            false => UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos),
        })
    }

    #[test]
    fn times_before_1970_survive() {
        for (secs, nanos) in [
            (-1, 500_000_000),
            (-1, 0),
            (0, 1),
            (5, 999_999_999),
            (-77, 3),
        ] {
            let got = time(as_fuser(secs, nanos), Time::default());
            assert_eq!(got, Time { secs, nanos });
        }
        let shown = system_time(Time {
            secs: -2,
            nanos: 800_000_000,
        });
        assert_eq!(shown, UNIX_EPOCH - Duration::from_millis(1_200));
    }

    #[test]
    fn extreme_times_do_not_panic() {
        for secs in [i64::MIN, i64::MIN + 1, i64::MAX] {
            system_time(Time {
                secs,
                nanos: u32::MAX,
            });
        }
    }

    #[test]
    fn every_error_reaches_the_kernel_unchanged() {
        for error in Errno::ALL {
            assert_eq!(i32::from(errno(error)), error.raw());
        }
    }
}
