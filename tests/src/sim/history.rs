//! What clients did and what they were told, in the order of a clock that both sides of a call tick.

use mortar_client::volume::RenameMode;
use mortar_protocol::error::Errno;
use parking_lot::Mutex;

/// Names in each directory that clients use.
pub const NAMES: usize = 4;
/// Extended attributes that clients use.
pub const XATTRS: usize = 2;
/// Directories that clients use: the root and one below it.
pub const DIRS: usize = 2;

/// A name: directory times [`NAMES`] plus number.
pub type Name = usize;

/// What a client wants.
#[allow(missing_docs)] // the fields say it: names by number, inodes by id, sizes and offsets in blocks
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Makes a file or directory.
    Create { at: Name, dir: bool },
    /// Removes a file or directory.
    Remove { at: Name, dir: bool },
    /// Renames.
    Rename {
        from: Name,
        to: Name,
        mode: RenameMode,
    },
    /// Another name for a file.
    Link { id: u64, at: Name },
    /// What does a name lead to?
    Lookup { at: Name },
    /// The names of a directory.
    List { dir: usize },
    /// Writes blocks.
    Write { id: u64, offset: u64, count: u64 },
    /// Writes blocks at the end.
    Append { id: u64, count: u64 },
    /// Sets the size, in blocks.
    Truncate { id: u64, size: u64 },
    /// Reads blocks.
    Read { id: u64, offset: u64, count: u64 },
    /// The size, in blocks.
    Size { id: u64 },
    /// fsync.
    Sync { id: u64 },
    /// Locks a part of a file for an owner: both halves are 2.
    Lock {
        id: u64,
        owner: u64,
        part: u64,
        shared: bool,
        wait: bool,
    },
    /// Unlocks all of it.
    Unlock { id: u64, owner: u64 },
    /// Opens a file: from then on it stays, whatever its names.
    Open { id: u64, owner: u64 },
    /// Closes it.
    Close { id: u64, owner: u64 },
    /// Sets an extended attribute, to the number of the call.
    SetXattr { id: u64, name: usize },
    /// Reads one.
    GetXattr { id: u64, name: usize },
}

/// What it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// It is done.
    Done,
    /// The identity of what was made.
    Made(u64),
    /// What a name leads to, and whether that is a directory.
    Found(u64, bool),
    /// Names of a directory and what they lead to.
    Listed(Vec<(Name, u64)>),
    /// Where data was appended, in blocks.
    At(u64),
    /// Blocks.
    Got(Vec<u64>),
    /// Blocks of size.
    Size(u64),
    /// Taken hold of, or let go, in this session.
    Session(u64),
    /// Value of an extended attribute.
    Value(Option<u64>),
    /// An error.
    Failed(Errno),
}

impl Told {
    /// Whether the client does not know what has happened.
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Failed(Errno::EIO | Errno::ENOTCONN | Errno::ETIMEDOUT)
        )
    }
}

/// One call.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its client.
    pub client: u32,
    /// When it was made.
    pub start: u64,
    /// What was wanted.
    pub act: Act,
    /// When it was answered and how; `None` if it never was.
    pub answer: Option<(u64, Told)>,
}

impl Record {
    /// The answer, if it says what has happened.
    pub fn known(&self) -> Option<(u64, &Told)> {
        let (end, told) = self.answer.as_ref()?;
        (!told.is_unknown()).then_some((*end, told))
    }

    /// Whether it was refused because members were too few: then it has done nothing.
    pub fn is_refused(&self) -> bool {
        matches!(self.answer, Some((_, Told::Failed(Errno::EROFS))))
    }
}

/// All calls.
#[derive(Default)]
pub struct History(Mutex<Vec<Record>>);

impl History {
    /// A call is made; gives its number.
    pub fn begin(&self, client: u32, start: u64, act: Act) -> usize {
        let mut records = self.0.lock();
        records.push(Record {
            client,
            start,
            act,
            answer: None,
        });
        records.len() - 1
    }

    /// It is answered.
    pub fn end(&self, number: usize, end: u64, told: Told) {
        self.0.lock()[number].answer = Some((end, told));
    }

    /// Number of calls so far.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether nothing was called.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All calls so far.
    pub fn records(&self) -> Vec<Record> {
        self.0.lock().clone()
    }
}
