//! What a workload's names, attributes and contents ought to be after each operation.

use std::collections::BTreeMap;

use mortar_protocol::attr::FileKind;
use mortar_protocol::error::Errno;

use super::ops::{DIR, Name, Op};

/// Contents of `/a` when a workload starts, in bytes.
pub const FIRST_SIZE: usize = 12_345;
/// Where [`Op::Write`] writes, and how much.
pub const WRITE: (u64, usize) = (1_000, 9_000);
/// Where [`Op::Stage`] writes, and how much.
pub const STAGE: (u64, usize) = (4_096, 64 << 10);
/// Size that [`Op::Truncate`] gives.
pub const CUT_SIZE: u64 = 5_000;
/// First byte and length of the hole that [`Op::Allocate`] makes.
pub const HOLE: (u64, u64) = (3_000, 6_000);
/// First byte and length of what [`Op::Allocate`] reserves.
pub const RESERVED: (u64, u64) = (8_192, 20_000);
/// Where symbolic links lead to.
pub const TARGET: &[u8] = b"some/where";
/// The extended attribute.
pub const XATTR: &[u8] = b"user.k";

/// The bytes that the operation at a place in its sequence writes; no two blocks of them are equal.
pub fn pattern(place: usize, len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(place as u64 + 1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Value of the extended attribute that the operation at a place sets.
pub fn xattr_value(place: usize) -> Vec<u8> {
    pattern(place, 30 + place)
}

/// Permission bits that the operation at a place sets.
pub fn perm(place: usize) -> u32 {
    0o700 + place as u32
}

/// Time of the operation at a place, in seconds.
pub fn time(place: usize) -> i64 {
    1_000 + place as i64
}

/// A file, directory or symbolic link as a reader sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// Type.
    pub kind: FileKind,
    /// Permission bits.
    pub perm: u32,
    /// Number of names (of a directory, 2 and its subdirectories).
    pub nlink: u32,
    /// Seconds of the last change of its contents.
    pub mtime: i64,
    /// Contents of a file, target of a symbolic link.
    pub content: Vec<u8>,
    /// Value of the extended attribute.
    pub xattr: Option<Vec<u8>>,
    /// The first of its names.
    pub same_as: String,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let crc = crc32fast::hash(&self.content);
        write!(
            f,
            "{:?} {:o} nlink {} mtime {} {} bytes ({crc:08x}) as {}",
            self.kind,
            self.perm,
            self.nlink,
            self.mtime,
            self.content.len(),
            self.same_as
        )?;
        match &self.xattr {
            Some(value) => write!(f, " xattr {}:{:x?}", value.len(), value.first()),
            None => Ok(()),
        }
    }
}

/// Everything by its path.
pub type Tree = BTreeMap<String, Seen>;

#[derive(Clone)]
struct Node {
    kind: FileKind,
    perm: u32,
    mtime: i64,
    content: Vec<u8>,
    xattr: Option<Vec<u8>>,
}

/// The model.
#[derive(Clone)]
pub struct Model {
    nodes: Vec<Node>,
    names: BTreeMap<Name, usize>,
    root_time: i64,
    dir_time: i64,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// The state that workloads start with.
    pub fn new() -> Self {
        let mut model = Self {
            nodes: Vec::new(),
            names: BTreeMap::new(),
            root_time: 0,
            dir_time: 0,
        };
        model.add(Name::A, FileKind::File, 0o644, 0);
        model.nodes[0].content = pattern(99, FIRST_SIZE);
        model.add(Name::C, FileKind::Dir, 0o755, 0);
        model
    }

    fn add(&mut self, name: Name, kind: FileKind, perm: u32, mtime: i64) {
        let content = match kind {
            FileKind::Symlink => TARGET.to_vec(),
            _ => Vec::new(),
        };
        self.nodes.push(Node {
            kind,
            perm,
            mtime,
            content,
            xattr: None,
        });
        self.names.insert(name, self.nodes.len() - 1);
    }

    fn at(&self, name: Name) -> Result<usize, Errno> {
        self.names.get(&name).copied().ok_or(Errno::ENOENT)
    }

    fn kind(&self, name: Name) -> Result<FileKind, Errno> {
        Ok(self.nodes[self.at(name)?].kind)
    }

    fn file(&mut self, name: Name) -> Result<&mut Node, Errno> {
        let at = self.at(name)?;
        match self.nodes[at].kind {
            FileKind::File => Ok(&mut self.nodes[at]),
            _ => Err(Errno::EINVAL),
        }
    }

    /// A directory's entries change.
    fn touch(&mut self, name: Name, time: i64) {
        match name {
            Name::C => self.dir_time = time,
            _ => self.root_time = time,
        }
    }

    fn make(&mut self, name: Name, kind: FileKind, perm: u32, time: i64) -> Result<(), Errno> {
        if self.names.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        self.add(name, kind, perm, time);
        self.touch(name, time);
        Ok(())
    }

    fn remove(&mut self, name: Name, dir: bool, time: i64) -> Result<(), Errno> {
        match (self.kind(name)? == FileKind::Dir, dir) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.names.remove(&name);
        self.touch(name, time);
        Ok(())
    }

    fn rename(&mut self, from: Name, to: Name, time: i64) -> Result<(), Errno> {
        let source = self.at(from)?;
        if let Some(target) = self.names.get(&to).copied() {
            if source == target {
                return Err(Errno::EAGAIN); // nothing to do: nothing is asked
            }
            let is_dir = |at: usize| self.nodes[at].kind == FileKind::Dir;
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        self.names.remove(&from);
        self.names.insert(to, source);
        self.touch(from, time);
        self.touch(to, time);
        Ok(())
    }

    /// Does the operation at a place of a sequence.
    ///
    /// # Errors
    /// Why it is refused (EAGAIN: there is nothing to do); nothing changes then.
    pub fn apply(&mut self, place: usize, op: Op) -> Result<(), Errno> {
        let time = time(place);
        match op {
            Op::Create(name) => self.make(name, FileKind::File, 0o644, time),
            Op::Mkdir(name) => self.make(name, FileKind::Dir, 0o755, time),
            Op::Symlink(name) => self.make(name, FileKind::Symlink, 0o777, time),
            Op::Link(from, to) => {
                let source = self.at(from)?;
                if self.nodes[source].kind == FileKind::Dir {
                    return Err(Errno::EPERM);
                }
                if self.names.contains_key(&to) {
                    return Err(Errno::EEXIST);
                }
                self.names.insert(to, source);
                self.touch(to, time);
                Ok(())
            }
            Op::Rename(from, to) => self.rename(from, to, time),
            Op::Exchange(one, other) => {
                let (first, second) = (self.at(one)?, self.at(other)?);
                if first == second {
                    return Err(Errno::EAGAIN);
                }
                self.names.insert(one, second);
                self.names.insert(other, first);
                self.touch(one, time);
                self.touch(other, time);
                Ok(())
            }
            Op::Unlink(name) => self.remove(name, false, time),
            Op::Rmdir(name) => self.remove(name, true, time),
            Op::Write(name) => self.write(name, WRITE, place),
            Op::Stage(name) => self.write(name, STAGE, place),
            Op::Truncate(name) => {
                let node = self.file(name)?;
                node.content.resize(CUT_SIZE as usize, 0);
                node.mtime = time;
                Ok(())
            }
            Op::Allocate(name) => {
                let node = self.file(name)?;
                let size = node.content.len().max((RESERVED.0 + RESERVED.1) as usize);
                node.content.resize(size, 0);
                node.content[HOLE.0 as usize..(HOLE.0 + HOLE.1) as usize].fill(0);
                node.mtime = time;
                Ok(())
            }
            Op::SetXattr(name) => {
                let at = self.at(name)?;
                if self.nodes[at].kind == FileKind::Symlink {
                    return Err(Errno::EPERM);
                }
                self.nodes[at].xattr = Some(xattr_value(place));
                Ok(())
            }
            Op::Chmod(name) => {
                let at = self.at(name)?;
                if self.nodes[at].kind == FileKind::Symlink {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.nodes[at].perm = perm(place);
                Ok(())
            }
        }
    }

    fn write(
        &mut self,
        name: Name,
        (offset, len): (u64, usize),
        place: usize,
    ) -> Result<(), Errno> {
        let node = self.file(name)?;
        let end = offset as usize + len;
        if node.content.len() < end {
            node.content.resize(end, 0);
        }
        node.content[offset as usize..end].copy_from_slice(&pattern(place, len));
        node.mtime = time(place);
        Ok(())
    }

    /// Everything, as a reader ought to see it.
    pub fn tree(&self) -> Tree {
        let path = |name: Name| {
            let text = String::from_utf8_lossy(name.text());
            match name {
                Name::C => format!("/{}/{text}", String::from_utf8_lossy(DIR)),
                _ => format!("/{text}"),
            }
        };
        let mut tree = Tree::new();
        for (name, at) in &self.names {
            let node = &self.nodes[*at];
            let mut names = self.names.iter().filter(|(_, other)| *other == at);
            let count = names.clone().count() as u32;
            let first = names.next().map_or(*name, |(name, _)| *name);
            let seen = Seen {
                kind: node.kind,
                perm: node.perm,
                nlink: if node.kind == FileKind::Dir { 2 } else { count },
                mtime: node.mtime,
                content: node.content.clone(),
                xattr: node.xattr.clone(),
                same_as: path(first),
            };
            tree.insert(path(*name), seen);
        }
        let dirs = |names: &[Name]| {
            let kinds = names.iter().filter_map(|name| self.kind(*name).ok());
            2 + kinds.filter(|kind| *kind == FileKind::Dir).count() as u32
        };
        let dir = |path: &str, nlink: u32, mtime: i64| Seen {
            kind: FileKind::Dir,
            perm: 0o755,
            nlink,
            mtime,
            content: Vec::new(),
            xattr: None,
            same_as: path.to_owned(),
        };
        let below = format!("/{}", String::from_utf8_lossy(DIR));
        let root = dir("/", 1 + dirs(&[Name::A, Name::B]), self.root_time);
        tree.insert("/".to_owned(), root);
        let nlink = dirs(&[Name::C]);
        tree.insert(below.clone(), dir(&below, nlink, self.dir_time));
        tree
    }
}
