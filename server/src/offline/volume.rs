//! A volume as its bricks show it: names, attributes and contents, from one brick of each set that is at hand.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, FileKind};
use mortar_protocol::entry::Object;
use mortar_protocol::ids::{Gfid, InodeId};
use mortar_protocol::limits::{BLOCK, MAX_NAME};

use super::brick::{Brick, LookError};
use crate::namespace::records::{
    DirPart, Dirent, Inode, decode, dirent_key, dirents_from, inode_key, parse_dirent_key,
    parse_id, part_key, prefix_end, xattr_key,
};
use crate::store::{ReadError, StoreError};

/// Most bytes read at once.
pub(super) const PIECE: u64 = 1 << 20;

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("{0}: no such file or directory")]
    Missing(String),
    #[error("{0}: not a directory")]
    NotDir(String),
    #[error("{0}: not a regular file")]
    NotFile(String),
    #[error("inode {0} is on none of the given bricks (a brick of another set is needed)")]
    Elsewhere(InodeId),
    #[error("a record is damaged on every given brick of its set")]
    DamagedRecord,
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("data at offset {offset}: {error}")]
    Data { offset: u64, error: ReadError },
}

/// Open bricks of one volume.
pub(super) struct Volume {
    pub(super) name: String,
    shard_size: u64,
    /// Bricks by set; of each set the one with the newest state first.
    pub(super) sets: BTreeMap<u32, Vec<Brick>>,
}

/// An inode with what it is called.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) gfid: Gfid,
    pub(super) kind: FileKind,
}

/// A file or directory.
pub(super) struct Node {
    pub(super) attr: Attr,
    pub(super) inode: Inode,
    /// The set that holds the inode.
    set: u32,
}

impl Volume {
    /// Puts bricks of one volume together.
    pub(super) fn new(bricks: Vec<Brick>) -> Result<Self, LookError> {
        let mut volume: Option<(mortar_protocol::ids::VolumeId, Self)> = None;
        for brick in bricks {
            let block = brick.store.superblock();
            let (id, set) = (block.volume, block.set.0);
            let (known, volume) = volume.get_or_insert_with(|| {
                let volume = Self {
                    name: block.volume_name.clone(),
                    shard_size: block.shard_size.max(1),
                    sets: BTreeMap::new(),
                };
                (id, volume)
            });
            if *known != id {
                let (path, name) = (brick.path.display(), &block.volume_name);
                return Err(LookError::Mixed(format!(
                    "{path} belongs to another volume ({name})"
                )));
            }
            volume.sets.entry(set).or_default().push(brick);
        }
        let Some((_, mut volume)) = volume else {
            return Err(LookError::Mixed("no brick given".to_owned()));
        };
        for bricks in volume.sets.values_mut() {
            bricks.sort_by_key(|brick| {
                let damaged = brick.store.log_damaged() || brick.store.superblock().damaged;
                (damaged, std::cmp::Reverse(brick.at))
            });
        }
        Ok(volume)
    }

    /// A record of a set, from its first brick that can read it.
    fn record(&self, set: u32, key: &[u8]) -> Result<Option<Bytes>, FileError> {
        let mut last = None;
        for brick in self.sets.get(&set).into_iter().flatten() {
            match brick.store.get(key, brick.at.seq) {
                Ok(value) => return Ok(value),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(None), |error| Err(error.into()))
    }

    /// Records of a set whose keys start with `prefix`.
    fn records(&self, set: u32, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, FileError> {
        let mut last = None;
        for brick in self.sets.get(&set).into_iter().flatten() {
            let mut found = Vec::new();
            let scanned = brick.store.scan(
                prefix,
                &prefix_end(prefix),
                brick.at.seq,
                &mut |key, value| {
                    found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                    ControlFlow::Continue(())
                },
            );
            match scanned {
                Ok(()) => return Ok(found),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(Vec::new()), |error| Err(error.into()))
    }

    /// An inode, wherever it is.
    pub(super) fn node(&self, id: InodeId) -> Result<Node, FileError> {
        for set in self.sets.keys() {
            let Some(value) = self.record(*set, &inode_key(id))? else {
                continue;
            };
            let inode: Inode = decode(&value).map_err(|_| FileError::DamagedRecord)?;
            let mut attr = inode.attr(id, None);
            if inode.is_dir() {
                self.merge_parts(*set, &inode, &mut attr)?;
            }
            return Ok(Node {
                attr,
                inode,
                set: *set,
            });
        }
        Err(FileError::Elsewhere(id))
    }

    /// Adds what the sets know of a directory; `set` has its inode.
    fn merge_parts(&self, set: u32, inode: &Inode, attr: &mut Attr) -> Result<(), FileError> {
        let id = attr.gfid.id;
        attr.size = 0;
        let (mut changed, mut own, mut others) = (None, 0, 0u64);
        for found in self.sets.keys() {
            if let Some(value) = self.record(*found, &part_key(id))? {
                let part: DirPart = decode(&value).map_err(|_| FileError::DamagedRecord)?;
                let merged = inode.attr(id, Some(&part));
                attr.size = attr.size.saturating_add(part.entries);
                attr.nlink = attr.nlink.saturating_add(merged.nlink.saturating_sub(2));
                if part.change > 0 {
                    changed = changed.max(Some(part.mtime));
                }
                match *found == set {
                    true => own = part.change,
                    false => others = others.wrapping_add(part.change),
                }
            }
        }
        // A time set by hand holds until any part changes.
        let holds = inode.hand.is_some_and(|hand| {
            hand.own == own && hand.others.is_none_or(|counted| counted == others)
        });
        if let Some(changed) = changed.filter(|_| !holds) {
            attr.mtime = changed;
        }
        Ok(())
    }

    /// A name in a directory.
    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Option<Found>, FileError> {
        for set in self.sets.keys() {
            if let Some(value) = self.record(*set, &dirent_key(parent, name))? {
                let entry: Dirent = decode(&value).map_err(|_| FileError::DamagedRecord)?;
                return Ok(Some(Found {
                    gfid: entry.gfid,
                    kind: entry.kind,
                }));
            }
        }
        Ok(None)
    }

    /// The inode at a path below the root; symbolic links are not followed.
    pub(super) fn resolve(&self, path: &str) -> Result<Node, FileError> {
        // The directories on the way may lie on bricks that are not given.
        let (mut id, mut kind) = (InodeId::ROOT, FileKind::Dir);
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if kind != FileKind::Dir {
                return Err(FileError::NotDir(path.to_owned()));
            }
            let found = self.lookup(id, name.as_bytes())?;
            let found = found.ok_or_else(|| FileError::Missing(path.to_owned()))?;
            (id, kind) = (found.gfid.id, found.kind);
        }
        self.node(id)
    }

    /// Ids of all inodes on the given bricks.
    pub(super) fn inodes(&self) -> Result<BTreeSet<InodeId>, FileError> {
        let mut ids = BTreeSet::new();
        let prefix = &inode_key(InodeId(0))[..1];
        for bricks in self.sets.values() {
            let mut outcome = Ok(());
            for brick in bricks {
                let upto = prefix_end(prefix);
                let scanned = brick
                    .store
                    .scan(prefix, &upto, brick.at.seq, &mut |key, _| {
                        ids.extend(parse_id(key));
                        ControlFlow::Continue(())
                    });
                outcome = scanned;
                if outcome.is_ok() {
                    break;
                }
            }
            outcome?;
        }
        Ok(ids)
    }

    /// Entries of a directory by name. Names that no directory can have are left out, with a word about each.
    pub(super) fn list(
        &self,
        dir: InodeId,
        odd: &mut Vec<String>,
    ) -> Result<BTreeMap<Vec<u8>, Found>, FileError> {
        let mut entries = BTreeMap::new();
        for set in self.sets.keys() {
            for (key, value) in self.records(*set, &dirents_from(dir, 0)[..9])? {
                let entry = decode::<Dirent>(&value);
                match (parse_dirent_key(&key), entry) {
                    (Some((_, name)), Ok(entry)) if is_name(name) => {
                        let found = Found {
                            gfid: entry.gfid,
                            kind: entry.kind,
                        };
                        entries.insert(name.to_vec(), found);
                    }
                    _ => odd.push(format!("directory {dir}: an entry is damaged")),
                }
            }
        }
        Ok(entries)
    }

    /// Extended attributes.
    pub(super) fn xattrs(&self, node: &Node) -> Result<Vec<(Bytes, Bytes)>, FileError> {
        let prefix = xattr_key(node.attr.gfid.id, b"");
        let records = self.records(node.set, &prefix)?;
        let strip = |(key, value): (Bytes, Bytes)| (key.slice(prefix.len()..), value);
        Ok(records.into_iter().map(strip).collect())
    }

    /// The next data of a file at or behind `from`: where it begins and ends. Ends are those of shards at the latest.
    pub(super) fn next_data(
        &self,
        node: &Node,
        mut from: u64,
    ) -> Result<Option<(u64, u64)>, FileError> {
        let size = node.attr.size;
        while from < size {
            let shard = from / self.shard_size;
            let Ok(number) = u32::try_from(shard) else {
                return Ok(None);
            };
            let start = shard * self.shard_size;
            let end = (start + self.shard_size).min(size);
            let object = Object {
                id: node.attr.gfid.id,
                shard: number,
            };
            for set in self.sets_of(node, number) {
                if let Some((first, last)) = self.data_in(set, object, from - start)? {
                    if start + first >= end {
                        continue;
                    }
                    return Ok(Some((start + first, (start + last).min(end))));
                }
            }
            from = match self.next_shard(node, number)? {
                Some(next) => u64::from(next) * self.shard_size,
                None => return Ok(None),
            };
        }
        Ok(None)
    }

    /// Bytes of the blocks that a file takes on the given bricks.
    pub(super) fn allocated(&self, node: &Node) -> Result<u64, FileError> {
        let (mut shard, mut blocks) = (Some(0), 0);
        while let Some(number) = shard {
            let object = Object {
                id: node.attr.gfid.id,
                shard: number,
            };
            for set in self.sets_of(node, number) {
                let brick = self.sets.get(&set).and_then(|bricks| bricks.first());
                if let Some(brick) = brick {
                    let at = brick.at.seq;
                    let taken = brick.store.allocated(object, 0, u64::MAX, at)?;
                    blocks += taken;
                }
            }
            shard = self.next_shard(node, number)?;
        }
        Ok(blocks * BLOCK)
    }

    /// The next shard behind `shard` of which any set has data.
    fn next_shard(&self, node: &Node, shard: u32) -> Result<Option<u32>, FileError> {
        let mut next = None;
        for bricks in self.sets.values() {
            for brick in bricks {
                let found = brick.store.next_shard(node.attr.gfid.id, shard)?;
                next = match (next, found) {
                    (Some(a), Some(b)) => Some(std::cmp::min(a, b)),
                    (a, b) => a.or(b),
                };
            }
        }
        Ok(next)
    }

    /// Sets that may hold a shard: the first lies with its inode.
    fn sets_of(&self, node: &Node, shard: u32) -> Vec<u32> {
        if shard == 0 {
            vec![node.set]
        } else {
            self.sets.keys().copied().collect()
        }
    }

    fn data_in(
        &self,
        set: u32,
        object: Object,
        from: u64,
    ) -> Result<Option<(u64, u64)>, FileError> {
        let mut last = None;
        for brick in self.sets.get(&set).into_iter().flatten() {
            let seek = |from, hole| brick.store.seek(object, from, hole, brick.at.seq);
            let found = seek(from, false).and_then(|start| match start {
                Some(start) => seek(start, true).map(|end| Some((start, end.unwrap_or(u64::MAX)))),
                None => Ok(None),
            });
            match found {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(None), |error| Err(error.into()))
    }

    /// Bytes of a file within one shard, at most [`PIECE`]; a block that one brick lost is taken from another.
    pub(super) fn read(&self, node: &Node, offset: u64, len: u64) -> Result<Bytes, FileError> {
        let within = offset % self.shard_size;
        let len = len.min(PIECE).min(self.shard_size - within) as usize;
        let shard = offset / self.shard_size;
        let object = Object {
            id: node.attr.gfid.id,
            shard: u32::try_from(shard).unwrap_or(u32::MAX),
        };
        for set in self.sets_of(node, object.shard) {
            if self.data_in(set, object, 0)?.is_some() {
                return self.read_in(set, object, within, len).or_else(|_| {
                    let mut whole = Vec::with_capacity(len);
                    while whole.len() < len {
                        let at = within + whole.len() as u64;
                        let part = (BLOCK - at % BLOCK).min((len - whole.len()) as u64) as usize;
                        let data = self.read_in(set, object, at, part);
                        whole.extend_from_slice(&data.map_err(|error| FileError::Data {
                            offset: shard * self.shard_size + at,
                            error,
                        })?);
                    }
                    Ok(whole.into())
                });
            }
        }
        Ok(Bytes::from(vec![0; len]))
    }

    /// Bytes of a shard from the first brick of a set that has all of them.
    fn read_in(
        &self,
        set: u32,
        object: Object,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, ReadError> {
        let mut last = ReadError::Corrupt;
        for brick in self.sets.get(&set).into_iter().flatten() {
            match brick.store.read_now(object, offset, len, brick.at.seq) {
                Ok(data) => return Ok(data),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Whether bytes can be a name in a directory.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}
