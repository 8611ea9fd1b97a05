//! Identities as newtypes, so that one number is never taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Defines a 128-bit id that prints as a UUID.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}(", stringify!($name))?;
                write_uuid(self.0, f)?;
                f.write_str(")")
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse_uuid(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A cluster: all nodes that share one certificate authority and one control plane.
    ClusterId
);
uuid_id!(
    /// A node: one machine that runs `mortard`. Lasts over restarts and address changes.
    NodeId
);
uuid_id!(
    /// A volume.
    VolumeId
);
uuid_id!(
    /// A brick: one extent store on one device or file.
    BrickId
);
uuid_id!(
    /// One run of one brick: drawn whenever a daemon opens the brick (promise P8).
    RunId
);
uuid_id!(
    /// One boot of a machine, from `/proc/sys/kernel/random/boot_id`.
    BootId
);

/// A text that is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id (expected a UUID of 32 hexadecimal digits)")]
pub struct InvalidId(pub String);

fn write_uuid(id: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hex = format!("{id:032x}");
    write!(
        f,
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn parse_uuid(text: &str) -> Result<u128, InvalidId> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(InvalidId(text.to_owned()));
    }
    u128::from_str_radix(&hex, 16).map_err(|_| InvalidId(text.to_owned()))
}

/// Defines a 64-bit number type.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The number after this one.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

number!(
    /// The number of a view of a set. The upper 16 bits are the cluster generation (raised by a rebuild).
    Epoch
);
number!(
    /// The place of an entry in a set log; the first is 1, 0 means "none".
    Seq
);
number!(
    /// How many lossy openings a set has had (promise P8).
    Opening
);
number!(
    /// A client's session with a volume, given by the control plane; rises.
    SessionId
);

/// Position of an entry in a set log. Logs are compared by it: first the epoch, then the place.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug,
)]
pub struct Pos {
    /// Epoch in which the entry was made.
    pub epoch: Epoch,
    /// Place in the log.
    pub seq: Seq,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

/// A position a client was given, with the opening under which it was given; fsync names the highest one (P8).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug,
)]
pub struct Mark {
    /// Opening number of the set when the position was given.
    pub opening: Opening,
    /// Place in the log.
    pub seq: Seq,
}

/// One of 65,536 hash values; a volume's layout maps ranges of them to sets.
pub type Slot = u16;

/// A set of a volume, by its place in the volume's list of sets.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug,
)]
pub struct SetIndex(pub u32);

/// A set of a volume anywhere in the cluster.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug,
)]
pub struct SetId {
    /// The volume.
    pub volume: VolumeId,
    /// Its place in the volume.
    pub index: SetIndex,
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.index.0)
    }
}

/// First 64 bits of a gfid: unique in the volume, never 0, the `st_ino` and FUSE node id of the inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct InodeId(pub u64);

impl InodeId {
    /// The root directory of every volume.
    pub const ROOT: Self = Self(1);

    /// The slot whose set owns the inode: its first 16 bits (the root, whose id is 1, belongs to slot 0).
    pub fn slot(self) -> Slot {
        (self.0 >> 48) as Slot
    }
}

impl fmt::Debug for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The 128-bit identity of a file or directory: its id and a generation by which a stale handle is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Gfid {
    /// Unique in the volume.
    pub id: InodeId,
    /// Random; differs between two inodes that had the same id one after the other.
    pub generation: u64,
}

impl Gfid {
    /// The root directory's gfid.
    pub const ROOT: Self = Self {
        id: InodeId::ROOT,
        generation: 1,
    };
}

impl InodeId {
    /// The first half of the gfid, as the gfid is written: unique in the volume.
    pub fn gfid_half(self) -> String {
        let whole = Gfid {
            id: self,
            generation: 0,
        };
        let mut text = whole.to_string();
        text.truncate(18);
        text
    }
}

impl fmt::Display for Gfid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(
            (u128::from(self.id.0) << 64) | u128::from(self.generation),
            f,
        )
    }
}

impl fmt::Debug for Gfid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfid({self})")
    }
}

/// Identity of a stage: bulk data that was sent to a node before the entry that attaches it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct StageId {
    /// The session it belongs to.
    pub session: SessionId,
    /// Drawn by the client; unique within the session.
    pub number: u64,
}

/// Identity of a transaction over several sets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct TxnId {
    /// The session that runs it.
    pub session: SessionId,
    /// Drawn by the client; unique within the session.
    pub number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips() {
        let id = BrickId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(id.to_string(), "01234567-89ab-cdef-0011-223344556677");
        assert_eq!(id.to_string().parse::<BrickId>().unwrap(), id);
        assert!("xyz".parse::<BrickId>().is_err());
    }

    #[test]
    fn positions_compare_epoch_first() {
        let low = Pos {
            epoch: Epoch(1),
            seq: Seq(9),
        };
        let high = Pos {
            epoch: Epoch(2),
            seq: Seq(3),
        };
        assert!(low < high);
    }
}
