//! Errors that travel: a fault is what a brick or the control plane answers instead of a result.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Opening, SetIndex, TxnId};
use crate::view::View;

/// POSIX errors that a file operation may be refused with. Every value has an errno ([`Errno::raw`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[allow(missing_docs)] // the names are POSIX's
#[rustfmt::skip]
pub enum Errno {
    EPERM, ENOENT, EIO, ENXIO, EBADF, EAGAIN, ENOMEM, EACCES, EBUSY, EEXIST, EXDEV, ENODEV, ENOTDIR, EISDIR, EINVAL,
    EFBIG, ENOSPC, EROFS, EMLINK, ERANGE, EDEADLK, ENAMETOOLONG, ENOLCK, ENOSYS, ENOTEMPTY, ELOOP, ENODATA,
    EOVERFLOW, EOPNOTSUPP, ENOTCONN, ETIMEDOUT, ESTALE, EDQUOT, EINTR, E2BIG,
}

impl Errno {
    /// All values, for tests of totality.
    #[rustfmt::skip]
    pub const ALL: [Self; 35] = {
        use Errno::*;
        [
            EPERM, ENOENT, EIO, ENXIO, EBADF, EAGAIN, ENOMEM, EACCES, EBUSY, EEXIST, EXDEV, ENODEV, ENOTDIR, EISDIR,
            EINVAL, EFBIG, ENOSPC, EROFS, EMLINK, ERANGE, EDEADLK, ENAMETOOLONG, ENOLCK, ENOSYS, ENOTEMPTY, ELOOP,
            ENODATA, EOVERFLOW, EOPNOTSUPP, ENOTCONN, ETIMEDOUT, ESTALE, EDQUOT, EINTR, E2BIG,
        ]
    };

    /// The platform's number.
    pub fn raw(self) -> i32 {
        match self {
            Self::EPERM => libc::EPERM,
            Self::ENOENT => libc::ENOENT,
            Self::EIO => libc::EIO,
            Self::ENXIO => libc::ENXIO,
            Self::EBADF => libc::EBADF,
            Self::EAGAIN => libc::EAGAIN,
            Self::ENOMEM => libc::ENOMEM,
            Self::EACCES => libc::EACCES,
            Self::EBUSY => libc::EBUSY,
            Self::EEXIST => libc::EEXIST,
            Self::EXDEV => libc::EXDEV,
            Self::ENODEV => libc::ENODEV,
            Self::ENOTDIR => libc::ENOTDIR,
            Self::EISDIR => libc::EISDIR,
            Self::EINVAL => libc::EINVAL,
            Self::EFBIG => libc::EFBIG,
            Self::ENOSPC => libc::ENOSPC,
            Self::EROFS => libc::EROFS,
            Self::EMLINK => libc::EMLINK,
            Self::ERANGE => libc::ERANGE,
            Self::EDEADLK => libc::EDEADLK,
            Self::ENAMETOOLONG => libc::ENAMETOOLONG,
            Self::ENOLCK => libc::ENOLCK,
            Self::ENOSYS => libc::ENOSYS,
            Self::ENOTEMPTY => libc::ENOTEMPTY,
            Self::ELOOP => libc::ELOOP,
            Self::ENODATA => libc::ENODATA,
            Self::EOVERFLOW => libc::EOVERFLOW,
            Self::EOPNOTSUPP => libc::EOPNOTSUPP,
            Self::ENOTCONN => libc::ENOTCONN,
            Self::ETIMEDOUT => libc::ETIMEDOUT,
            Self::ESTALE => libc::ESTALE,
            Self::EDQUOT => libc::EDQUOT,
            Self::EINTR => libc::EINTR,
            Self::E2BIG => libc::E2BIG,
        }
    }
}

/// Why a brick did not do what was asked.
///
/// Only [`Fault::Refused`] is an answer to the application; the others tell the client what to do next.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Fault {
    /// The operation was decided and refused.
    Refused(Errno),
    /// This brick is not the primary of its set in this view; ask there. `None`: no view is known yet, ask again.
    NotPrimary(Option<Box<View>>),
    /// The set does not serve at the moment (opening, view change, too few members); ask again.
    NotServing,
    /// The brick is not on this node.
    UnknownBrick,
    /// The session is not known to this set or has ended; open a new one (or open it on this set first).
    UnknownSession,
    /// A record is locked by a transaction in progress: resolve it, then ask again.
    Intent {
        /// The transaction.
        txn: TxnId,
        /// The set that decides it.
        decider: SetIndex,
        /// How long the brick has known of it, in milliseconds.
        age_ms: u32,
    },
    /// The 64-bit id drawn for a new inode is taken: draw again.
    IdTaken,
    /// A stage that the request attaches is not held here: send it again.
    NoStage,
    /// The request is malformed or breaks a rule of the protocol; a bug or an attack, never retried.
    Protocol,
    /// The set has lost acknowledged but unflushed entries since the named opening (P8): EIO once per handle.
    Lost(Opening),
    /// A block failed its checksum here; another member may have it.
    Corrupt,
    /// The caller is not allowed to talk to this volume at all.
    NotAuthorised,
    /// Request of an older view than the brick's; here is the newer epoch.
    StaleView(Epoch),
}

impl Fault {
    /// The errno an application gets if the client can do nothing better with this fault.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused(errno) => *errno,
            Self::NotPrimary(_) | Self::NotServing | Self::UnknownBrick | Self::StaleView(_) => {
                Errno::ENOTCONN
            }
            Self::UnknownSession | Self::Lost(_) | Self::Corrupt | Self::NoStage => Errno::EIO,
            Self::Intent { .. } => Errno::EBUSY,
            Self::IdTaken => Errno::EEXIST,
            Self::Protocol => Errno::EINVAL,
            Self::NotAuthorised => Errno::EACCES,
        }
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_errno_has_its_own_number() {
        let raw: BTreeSet<i32> = Errno::ALL.iter().map(|e| e.raw()).collect();
        assert_eq!(raw.len(), Errno::ALL.len());
        assert!(raw.iter().all(|n| *n > 0));
    }
}
