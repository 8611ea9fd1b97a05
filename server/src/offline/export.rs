//! `brick export`: copies a volume's files out, with owners, modes, times, extended attributes, holes and hard links.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mortar_protocol::attr::{Attr, FileKind, Time};
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::BLOCK;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::volume::{FileError, Found, Node, PIECE, Volume};

/// Directories deeper than this are not followed.
const MAX_DEPTH: usize = 4096;
/// The directory for what lies in a directory of which only the id is known.
const LOST: &str = "lost+found";
/// Why something is not where its name says, or at all.
const NAME_ELSEWHERE: &str = "its name lies on bricks of a set that is not given";

/// What an export did.
#[derive(Default, Debug)]
pub(super) struct Summary {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) others: u64,
    pub(super) bytes: u64,
    /// What could not be taken along, one line each.
    pub(super) problems: Vec<String>,
    /// Properties that could not be set (owners without root, attributes the target does not have): kind -> how often.
    pub(super) lost: BTreeMap<&'static str, u64>,
}

/// A file with several names.
struct Linked {
    /// Where it was put.
    first: PathBuf,
    /// Names it was given.
    names: u32,
}

/// A copy under way.
struct Export<'a> {
    volume: &'a Volume,
    summary: Summary,
    /// Files with several names.
    links: BTreeMap<InodeId, Linked>,
    /// Directories from the root to the current one.
    above: Vec<InodeId>,
    /// What was taken along.
    seen: BTreeSet<InodeId>,
    /// Where directories were put.
    dirs: BTreeMap<InodeId, PathBuf>,
    /// Directories in which something was put after their times had been set.
    touched: BTreeSet<InodeId>,
}

impl<'a> Export<'a> {
    fn new(volume: &'a Volume) -> Self {
        Self {
            volume,
            summary: Summary::default(),
            links: BTreeMap::new(),
            above: Vec::new(),
            seen: BTreeSet::new(),
            dirs: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }
}

/// Copies `node` to `target`, which must not exist, or be an empty directory if `node` is one.
pub(super) fn export(volume: &Volume, node: &Node, target: &Path) -> Summary {
    let mut export = Export::new(volume);
    export.node(node, target);
    export.summary
}

/// Copies everything on the given bricks to `target`, which must not exist, or be an empty directory: also what no name
/// on them leads to, because bricks of other sets are missing. That goes where its inode says it was, or below
/// `lost+found`.
pub(super) fn export_all(volume: &Volume, target: &Path) -> Summary {
    let mut export = Export::new(volume);
    let root = volume.node(InodeId::ROOT);
    export.directory(InodeId::ROOT, root.as_ref().ok(), target);
    if let Err(error) = root {
        export.problem(target, error);
    }
    // Nothing else is put into a directory that is not the volume's.
    if export.dirs.contains_key(&InodeId::ROOT) {
        match volume.inodes() {
            Ok(ids) => ids.into_iter().for_each(|id| export.unnamed(id, target)),
            Err(error) => export.problem(target, error),
        }
        export.times_again();
    }
    export.summary
}

impl Export<'_> {
    fn problem(&mut self, path: &Path, what: impl std::fmt::Display) {
        let line = format!("{}: {what}", path.display());
        self.summary.problems.push(line);
    }

    fn node(&mut self, node: &Node, target: &Path) {
        let made = match node.attr.kind {
            FileKind::Dir => return self.directory(node.attr.gfid.id, Some(node), target),
            FileKind::File => self.file(node, target),
            _ => self.special(node, target),
        };
        self.seen.insert(node.attr.gfid.id);
        match made {
            Ok(()) => self.properties(node, target),
            Err(error) => self.problem(target, error),
        }
    }

    /// Copies a directory; without `node` only the names in it are known.
    fn directory(&mut self, id: InodeId, node: Option<&Node>, target: &Path) {
        if self.above.contains(&id) || self.above.len() >= MAX_DEPTH {
            return self.problem(target, "the directory lies within itself");
        }
        match std::fs::create_dir(target) {
            Err(error) if !(self.above.is_empty() && is_empty(target)) => {
                return self.problem(target, error);
            }
            _ => {}
        }
        self.summary.directories += 1;
        self.above.push(id);
        self.seen.insert(id);
        self.dirs.insert(id, target.to_owned());
        let mut odd = Vec::new();
        match self.volume.list(id, &mut odd) {
            Ok(entries) => {
                for (name, found) in entries {
                    let path = target.join(OsStr::from_bytes(&name));
                    self.entry(&found, &path);
                }
            }
            Err(error) => self.problem(target, error),
        }
        self.summary.problems.append(&mut odd);
        self.above.pop();
        // Last, because what is created in it changes its times.
        if let Some(node) = node {
            self.properties(node, target);
        }
    }

    fn entry(&mut self, found: &Found, path: &Path) {
        let id = found.gfid.id;
        if let Some(linked) = self.links.get_mut(&id) {
            linked.names += 1;
            if let Err(error) = std::fs::hard_link(&linked.first, path) {
                self.problem(path, error);
            }
            return;
        }
        match self.volume.node(id) {
            Ok(node) => self.first_name(&node, path),
            Err(error) => {
                self.problem(path, error);
                if found.kind == FileKind::Dir {
                    self.directory(id, None, path);
                }
            }
        }
    }

    fn first_name(&mut self, node: &Node, path: &Path) {
        self.node(node, path);
        if node.attr.nlink > 1 && !node.inode.is_dir() {
            let first = path.to_owned();
            let linked = Linked { first, names: 1 };
            self.links.insert(node.attr.gfid.id, linked);
        }
    }

    /// Takes along what names on the given bricks do not lead to: an inode, or further names of one.
    fn unnamed(&mut self, id: InodeId, target: &Path) {
        let names = self.links.get(&id).map(|linked| linked.names);
        if self.seen.contains(&id) && names.is_none() {
            return;
        }
        let node = match self.volume.node(id) {
            Ok(node) => node,
            Err(error) => return self.problem(&target.join(LOST).join(id.to_string()), error),
        };
        // Unlinked, and only kept because somebody had it open.
        if node.inode.nlink == 0 || names.is_some_and(|names| names >= node.attr.nlink) {
            return;
        }
        if node.inode.links.is_empty() && names.is_none() {
            let lost = self.lost(target);
            return self.found(&node, &lost.join(id.to_string()));
        }
        for (parent, name) in &node.inode.links {
            if self.seen.contains(&id) && node.inode.is_dir() {
                return;
            }
            let dir = self.place(*parent, target, 0);
            let path = dir.join(OsStr::from_bytes(name));
            if std::fs::symlink_metadata(&path).is_err() {
                self.touched.insert(*parent);
                self.found(&node, &path);
            } else if !self.seen.contains(&id) {
                let lost = self.lost(target);
                self.found(&node, &lost.join(id.to_string()));
            }
        }
    }

    /// Puts something where no name that was read led.
    fn found(&mut self, node: &Node, path: &Path) {
        self.problem(path, NAME_ELSEWHERE);
        let found = Found {
            gfid: node.attr.gfid,
            kind: node.attr.kind,
        };
        self.entry(&found, path);
    }

    /// Where a directory is, which is put there if it was not met yet.
    fn place(&mut self, id: InodeId, target: &Path, depth: usize) -> PathBuf {
        if let Some(path) = self.dirs.get(&id) {
            return path.clone();
        }
        let node = self.volume.node(id).ok();
        let link = node.as_ref().and_then(|node| node.inode.links.first());
        let path = match link {
            Some((parent, name)) if depth < MAX_DEPTH => {
                let above = self.place(*parent, target, depth + 1);
                self.touched.insert(*parent);
                above.join(OsStr::from_bytes(name))
            }
            _ => self.lost(target).join(id.to_string()),
        };
        // Its names may lead back to where this began.
        if let Some(path) = self.dirs.get(&id) {
            return path.clone();
        }
        self.problem(&path, NAME_ELSEWHERE);
        self.directory(id, node.as_ref(), &path);
        self.dirs.entry(id).or_insert(path).clone()
    }

    fn lost(&mut self, target: &Path) -> PathBuf {
        let lost = target.join(LOST);
        match std::fs::create_dir(&lost) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                self.problem(&lost, error)
            }
            _ => {}
        }
        self.touched.insert(InodeId::ROOT);
        lost
    }

    /// Sets the times of directories again that changed after they were complete.
    fn times_again(&mut self) {
        for id in std::mem::take(&mut self.touched) {
            if let (Some(path), Ok(node)) = (self.dirs.get(&id), self.volume.node(id)) {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let set = rustix::fs::utimensat(CWD, path, &timestamps(&node.attr), flags);
                self.count("times", set);
            }
        }
    }

    fn file(&mut self, node: &Node, target: &Path) -> io::Result<()> {
        let mut how = OpenOptions::new();
        let file = how.write(true).create_new(true).mode(0o600).open(target)?;
        file.set_len(node.attr.size)?;
        self.summary.files += 1;
        let mut at = 0;
        loop {
            match self.volume.next_data(node, at) {
                Ok(Some((start, end))) => {
                    self.copy(node, &file, target, start, end)?;
                    at = end;
                }
                Ok(None) => break,
                Err(error) => {
                    self.problem(target, error);
                    break;
                }
            }
        }
        if node.inode.sharded {
            match self.volume.allocated(node) {
                Ok(found) if found < node.attr.blocks.saturating_mul(512) => {
                    self.problem(
                        target,
                        "parts of it lie on bricks of sets that are not given",
                    );
                }
                Ok(_) => {}
                Err(error) => self.problem(target, error),
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        node: &Node,
        file: &File,
        target: &Path,
        mut at: u64,
        end: u64,
    ) -> io::Result<()> {
        while at < end {
            let len = (end - at).min(PIECE);
            match self.volume.read(node, at, len) {
                Ok(data) if !data.is_empty() => {
                    file.write_all_at(&data, at)?;
                    self.summary.bytes += data.len() as u64;
                    at += data.len() as u64;
                }
                Err(FileError::Data { offset, error }) if len <= BLOCK => {
                    self.problem(target, format!("{len} bytes at {offset} are lost: {error}"));
                    at += len;
                }
                // Something in this piece is lost: what is around it is not.
                Err(FileError::Data { .. }) => {
                    let mut block = at;
                    while block < at + len {
                        let part = (BLOCK - block % BLOCK).min(at + len - block);
                        self.copy(node, file, target, block, block + part)?;
                        block += part;
                    }
                    at += len;
                }
                Ok(_) => return Ok(()),
                Err(error) => {
                    self.problem(target, error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn special(&mut self, node: &Node, target: &Path) -> io::Result<()> {
        let attr = &node.attr;
        let kind = match attr.kind {
            FileKind::Symlink => {
                std::os::unix::fs::symlink(OsStr::from_bytes(&node.inode.target), target)?;
                self.summary.others += 1;
                return Ok(());
            }
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::File | FileKind::Dir => return Ok(()),
        };
        let (major, minor) = (
            (attr.rdev >> 8) & 0xfff,
            (attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xf_ff00),
        );
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, target, kind, Mode::from_raw_mode(0o600), device)?;
        self.summary.others += 1;
        Ok(())
    }

    /// Sets owner, attributes, mode and times, in this order: each may change the ones before.
    fn properties(&mut self, node: &Node, target: &Path) {
        let attr = &node.attr;
        let owner = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let chown = rustix::fs::chownat(CWD, target, Some(owner.0), Some(owner.1), flags);
        self.count("owners", chown);
        match self.volume.xattrs(node) {
            Ok(xattrs) => {
                for (name, value) in xattrs {
                    let name = OsStr::from_bytes(&name);
                    let set = rustix::fs::lsetxattr(target, name, &value, XattrFlags::empty());
                    self.count("extended attributes", set);
                }
            }
            Err(error) => self.problem(target, error),
        }
        if attr.kind != FileKind::Symlink {
            let mode = Mode::from_raw_mode(attr.perm & 0o7777);
            let chmod = rustix::fs::chmodat(CWD, target, mode, AtFlags::empty());
            self.count("permissions", chmod);
        }
        let times = rustix::fs::utimensat(CWD, target, &timestamps(attr), flags);
        self.count("times", times);
    }

    fn count(&mut self, what: &'static str, result: rustix::io::Result<()>) {
        if result.is_err() {
            *self.summary.lost.entry(what).or_default() += 1;
        }
    }
}

fn timestamps(attr: &Attr) -> Timestamps {
    let spec = |time: Time| Timespec {
        tv_sec: time.secs,
        tv_nsec: i64::from(time.nanos.min(999_999_999)),
    };
    Timestamps {
        last_access: spec(attr.atime),
        last_modification: spec(attr.mtime),
    }
}

/// Whether there is an empty directory, not a link to one.
fn is_empty(path: &Path) -> bool {
    let is_dir = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    is_dir && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
