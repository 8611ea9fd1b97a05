//! The operations of the crash tests and the sequences made of them.

use std::fmt;

use mortar_protocol::ids::InodeId;

/// The directory that every workload starts with, beside the root.
pub const DIR: &[u8] = b"d";

/// One of the three names that operations work on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Name {
    /// `/a`: a file with contents when a workload starts.
    A,
    /// `/b`: nothing when a workload starts.
    B,
    /// `/d/c`: an empty directory when a workload starts.
    C,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// Its last part.
    pub fn text(self) -> &'static [u8] {
        match self {
            Self::A => b"a",
            Self::B => b"b",
            Self::C => b"c",
        }
    }

    /// The directory it is in; `dir` is the id of the one below the root.
    pub fn parent(self, dir: InodeId) -> InodeId {
        match self {
            Self::C => dir,
            _ => InodeId::ROOT,
        }
    }
}

/// An operation. What it writes depends on its place in the sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Op {
    /// Makes a file.
    Create(Name),
    /// Makes a directory.
    Mkdir(Name),
    /// Makes a symbolic link.
    Symlink(Name),
    /// Gives what the first names the second name.
    Link(Name, Name),
    /// Renames, replacing what is there.
    Rename(Name, Name),
    /// Exchanges two names.
    Exchange(Name, Name),
    /// Removes a name of anything but a directory.
    Unlink(Name),
    /// Removes a directory.
    Rmdir(Name),
    /// Writes some bytes that ride in the log's entry, not aligned.
    Write(Name),
    /// Writes 64 KiB that go to their blocks before the entry.
    Stage(Name),
    /// Sets the size of a file.
    Truncate(Name),
    /// Punches a hole, and reserves space behind it.
    Allocate(Name),
    /// Sets an extended attribute.
    SetXattr(Name),
    /// Changes permission bits.
    Chmod(Name),
}

impl Op {
    /// Every operation on all names.
    pub fn all() -> Vec<Self> {
        let unary = [
            Self::Create,
            Self::Mkdir,
            Self::Symlink,
            Self::Unlink,
            Self::Rmdir,
            Self::Write,
            Self::Stage,
            Self::Truncate,
            Self::Allocate,
            Self::SetXattr,
            Self::Chmod,
        ];
        let mut all = Vec::new();
        for name in Name::ALL {
            all.extend(unary.iter().map(|op| op(name)));
            for other in Name::ALL.into_iter().filter(|other| *other != name) {
                all.push(Self::Link(name, other));
                all.push(Self::Rename(name, other));
                if name < other {
                    all.push(Self::Exchange(name, other));
                }
            }
        }
        all
    }
}

/// What happens between an operation and the next one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Then {
    /// Nothing: the next follows at once.
    Next,
    /// It is answered only once it is flushed, as by fsync.
    Sync,
    /// Time passes until it is flushed and in the tree.
    Apply,
    /// Time passes until a checkpoint holds it.
    Checkpoint,
}

impl Then {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Next, Self::Sync, Self::Apply, Self::Checkpoint];
}

/// An operation with what happens after it.
pub type Step = (Op, Then);

/// A sequence as people read it.
pub struct Shown<'a>(pub &'a [Step]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (op, then)) in self.0.iter().enumerate() {
            let gap = if at == 0 { "" } else { " " };
            let then = match then {
                Then::Next => "",
                Then::Sync => "+sync",
                Then::Apply => "+apply",
                Then::Checkpoint => "+checkpoint",
            };
            write!(f, "{gap}{op:?}{then}")?;
        }
        Ok(())
    }
}
