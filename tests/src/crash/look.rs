//! Reads everything a brick holds, and finds what does not fit together.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::entry::{Object, Space};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Cut, DirEntry, Fop, Reply};
use mortar_protocol::ids::{InodeId, Opening, SessionId};
use mortar_protocol::limits::BLOCK;
use mortar_server::brick::{Asked, NEWEST, Namespace, ReadAnswer, Rules, StateAt};
use mortar_server::namespace::records::{
    COUNTERS_KEY, Counters, Dirent, Inode, decode, parse_dirent_key, parse_id,
};
use mortar_server::offline;
use mortar_server::store::Store;
use mortar_server::store::extents;

use super::model::{Seen, Tree, XATTR};
use super::rig::{Rig, shape};

/// Whoever answers reads.
pub trait Reads {
    /// Answers a read.
    ///
    /// # Errors
    /// The fault.
    fn read(&mut self, fop: Fop) -> Result<(Reply, Bytes), Fault>;
}

impl Reads for Rig {
    fn read(&mut self, fop: Fop) -> Result<(Reply, Bytes), Fault> {
        self.get(fop)
    }
}

/// A store that no brick serves.
pub struct Plain<'a>(pub &'a Store);

impl Reads for Plain<'_> {
    fn read(&mut self, fop: Fop) -> Result<(Reply, Bytes), Fault> {
        let state = StateAt {
            storage: self.0,
            at: NEWEST,
            space: Space::default(),
        };
        let (cred, shape) = (Cred::default(), shape());
        let asked = Asked {
            session: SessionId(1),
            uid: 0,
            cred: &cred,
            wall: Time::default(),
            others: &[],
            opening: Opening(0),
            shape: &shape,
        };
        match Namespace::new().answer(&state, &asked, &fop)? {
            ReadAnswer::Reply(reply, body) => Ok((reply, body)),
            ReadAnswer::Data {
                object,
                offset,
                len,
                reply,
            } => {
                let data = self.0.read_now(object, offset, len, NEWEST);
                Ok((reply, data.map_err(|_| Fault::Corrupt)?))
            }
        }
    }
}

type Res<T> = Result<T, String>;

fn told(what: &str) -> impl Fn(Fault) -> String + '_ {
    move |fault| format!("{what}: {fault:?}")
}

/// Everything below the root as a reader sees it.
///
/// # Errors
/// The first thing that cannot be read or contradicts another.
pub fn tree(from: &mut dyn Reads) -> Res<Tree> {
    let mut tree = Tree::new();
    let mut first: BTreeMap<InodeId, String> = BTreeMap::new();
    let mut names: BTreeMap<InodeId, BTreeSet<(InodeId, Bytes)>> = BTreeMap::new();
    let root = attr(from, InodeId::ROOT)?;
    tree.insert("/".to_owned(), seen(from, &root, "/")?);
    let mut waiting = vec![(InodeId::ROOT, String::new())];
    while let Some((dir, path)) = waiting.pop() {
        for entry in list(from, dir, &path)? {
            let below = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let attr = looked_up(from, dir, &entry, &below)?;
            let id = attr.gfid.id;
            names.entry(id).or_default().insert((dir, entry.name));
            if attr.kind == FileKind::Dir {
                waiting.push((id, below.clone()));
            }
            first
                .entry(id)
                .and_modify(|name| *name = below.clone().min(name.clone()))
                .or_insert_with(|| below.clone());
            tree.insert(below.clone(), seen(from, &attr, &below)?);
        }
    }
    for (id, names) in names {
        let path = &first[&id];
        for node in tree
            .values_mut()
            .filter(|node| node.same_as == format!("#{id}"))
        {
            node.same_as.clone_from(path);
        }
        let (reply, _) = from.read(Fop::Links { id }).map_err(told(path))?;
        let Reply::Links { links, many: false } = reply else {
            return Err(format!("{path}: links: {reply:?}"));
        };
        let links: BTreeSet<(InodeId, Bytes)> = links.into_iter().collect();
        if links != names {
            return Err(format!(
                "{path}: is named {names:?}, its record says {links:?}"
            ));
        }
    }
    Ok(tree)
}

fn attr(from: &mut dyn Reads, id: InodeId) -> Res<Attr> {
    match from.read(Fop::GetAttr { id }).map_err(told("getattr"))? {
        (Reply::Attr(attr, _), _) => Ok(attr),
        (other, _) => Err(format!("getattr: {other:?}")),
    }
}

/// The entries of a directory, which must be as many as it counts.
fn list(from: &mut dyn Reads, dir: InodeId, path: &str) -> Res<Vec<DirEntry>> {
    let fop = Fop::ReadDir {
        dir,
        after: 0,
        max: 64 << 10,
        plus: true,
    };
    let (reply, _) = from.read(fop).map_err(told(path))?;
    let Reply::Entries { entries, end: true } = reply else {
        return Err(format!("{path}: {reply:?}"));
    };
    let (reply, _) = from.read(Fop::DirPart { dir }).map_err(told(path))?;
    let dirs = entries.iter().filter(|entry| entry.kind == FileKind::Dir);
    let (count, subdirs) = (entries.len() as u64, dirs.count() as u64);
    match reply {
        Reply::DirPart {
            entries: told,
            subdirs: told_dirs,
            ..
        } if (told, told_dirs) == (count, subdirs) => Ok(entries),
        reply => Err(format!(
            "{path}: {count} entries, {subdirs} directories, but {reply:?}"
        )),
    }
}

/// Attributes of what an entry names: the same by listing, by name and by id.
fn looked_up(from: &mut dyn Reads, parent: InodeId, entry: &DirEntry, path: &str) -> Res<Attr> {
    let listed = entry
        .attr
        .ok_or_else(|| format!("{path}: its inode is missing"))?;
    let name = entry.name.clone();
    let (reply, _) = from
        .read(Fop::Lookup { parent, name })
        .map_err(told(path))?;
    let Reply::Found {
        gfid,
        kind,
        attr: Some(found),
        missing: false,
    } = reply
    else {
        return Err(format!("{path}: lookup: {reply:?}"));
    };
    let known = attr(from, gfid.id)?;
    let same = gfid == entry.gfid && gfid == found.gfid && kind == found.kind && kind == entry.kind;
    if same && listed == found && found == known {
        Ok(known)
    } else {
        Err(format!(
            "{path}: listed {listed:?}, looked up {found:?}, by id {known:?}"
        ))
    }
}

fn seen(from: &mut dyn Reads, attr: &Attr, path: &str) -> Res<Seen> {
    let id = attr.gfid.id;
    let content = match attr.kind {
        FileKind::File => contents(from, attr, path)?,
        FileKind::Symlink => match from.read(Fop::ReadLink { id }).map_err(told(path))? {
            (Reply::Bytes(target), _) => target.to_vec(),
            (other, _) => return Err(format!("{path}: {other:?}")),
        },
        _ => Vec::new(),
    };
    let name = Bytes::from_static(XATTR);
    let xattr = match from.read(Fop::GetXattr { id, name }) {
        Ok((Reply::Bytes(value), _)) => Some(value.to_vec()),
        Ok((other, _)) => return Err(format!("{path}: {other:?}")),
        Err(Fault::Refused(Errno::ENODATA)) => None,
        Err(fault) => return Err(format!("{path}: xattr: {fault:?}")),
    };
    if attr.has_xattr != xattr.is_some() {
        return Err(format!("{path}: has_xattr is {}", attr.has_xattr));
    }
    Ok(Seen {
        kind: attr.kind,
        perm: attr.perm,
        nlink: attr.nlink,
        mtime: attr.mtime.secs,
        content,
        xattr,
        same_as: match attr.kind {
            FileKind::Dir => path.to_owned(),
            _ => format!("#{id}"),
        },
    })
}

fn contents(from: &mut dyn Reads, attr: &Attr, path: &str) -> Res<Vec<u8>> {
    let id = attr.gfid.id;
    if attr.size > 1 << 20 {
        return Err(format!("{path}: {} bytes", attr.size));
    }
    let fop = Fop::Read {
        id,
        shard: 0,
        offset: 0,
        len: attr.size as u32,
        cut: Cut::default(),
    };
    let (_, data) = from.read(fop).map_err(told(path))?;
    if data.len() as u64 != attr.size {
        return Err(format!("{path}: {} of {} bytes", data.len(), attr.size));
    }
    Ok(data.to_vec())
}

/// Problems of a store: what `brick check` finds, and records of the namespace that do not fit together.
pub fn problems(store: &Store) -> Vec<String> {
    let report = offline::check(store);
    let mut found = report.problems;
    if let Err(problem) = cross_check(store, &mut found) {
        found.push(problem);
    }
    found
}

#[derive(Default)]
struct Records {
    inodes: BTreeMap<InodeId, Inode>,
    /// Names of each inode.
    named: BTreeMap<InodeId, u32>,
    parts: BTreeSet<InodeId>,
    orphans: BTreeSet<InodeId>,
    xattrs: BTreeMap<InodeId, u32>,
    objects: BTreeSet<InodeId>,
    strange: Vec<String>,
}

impl Records {
    fn take(&mut self, key: &[u8], value: &[u8]) {
        let id = parse_id(key).unwrap_or_default();
        match key[0] {
            b'I' => match decode::<Inode>(value) {
                Ok(inode) => drop(self.inodes.insert(id, inode)),
                Err(_) => self.strange.push(format!("inode {id} is damaged")),
            },
            b'D' => match (decode::<Dirent>(value), parse_dirent_key(key)) {
                (Ok(dirent), Some(_)) => *self.named.entry(dirent.gfid.id).or_default() += 1,
                _ => self.strange.push(format!("an entry of {id} is damaged")),
            },
            b'P' => drop(self.parts.insert(id)),
            b'O' => drop(self.orphans.insert(id)),
            b'X' => *self.xattrs.entry(id).or_default() += 1,
            b'E' => match extents::parse_key(key) {
                Some((object, _)) => drop(self.objects.insert(object.id)),
                None => self.strange.push("an extent record is damaged".to_owned()),
            },
            // Transactions, locks of records, shards and cuts of other sets: this workload has none.
            b'T' | b'C' | b'K' | b'S' | b'U' | b'L' => {
                self.strange
                    .push(format!("a record that nobody made: {key:02x?}"));
            }
            _ => {}
        }
    }
}

fn cross_check(store: &Store, found: &mut Vec<String>) -> Result<(), String> {
    let mut records = Records::default();
    store
        .scan(&[0x01], &[0xf0], NEWEST, &mut |key, value| {
            records.take(key, value);
            ControlFlow::Continue(())
        })
        .map_err(|error| format!("records: {error}"))?;
    found.append(&mut records.strange);
    for (id, inode) in &records.inodes {
        let names = records.named.get(id).copied().unwrap_or(0);
        let kept = records.orphans.contains(id);
        let expected = if inode.is_dir() { 1 } else { inode.nlink };
        if *id != InodeId::ROOT && (names != expected || (names == 0 && !kept)) {
            found.push(format!(
                "inode {id} counts {expected} names, {names} lead to it"
            ));
        }
        if !inode.is_dir() {
            let object = Object { id: *id, shard: 0 };
            let blocks = store.allocated(object, 0, u64::MAX, NEWEST);
            let blocks = blocks.map_err(|error| error.to_string())? * (BLOCK / 512);
            if blocks != inode.blocks {
                found.push(format!(
                    "inode {id} counts {} blocks, has {blocks}",
                    inode.blocks
                ));
            }
        }
        let xattrs = records.xattrs.get(id).copied().unwrap_or(0);
        if xattrs != inode.xattrs {
            found.push(format!(
                "inode {id} counts {} attributes, has {xattrs}",
                inode.xattrs
            ));
        }
        if inode.is_dir() && !records.parts.contains(id) && !kept && *id != InodeId::ROOT {
            // A directory without entries may have no part yet.
            let entries = attr(&mut Plain(store), *id).map_or(1, |attr| attr.size);
            if entries > 0 {
                found.push(format!("directory {id} has no part"));
            }
        }
    }
    let lacks = |id: &&InodeId| !records.inodes.contains_key(id);
    for id in records.named.keys().filter(lacks) {
        found.push(format!("a name leads to {id}, which is not there"));
    }
    for id in records.xattrs.keys().filter(lacks) {
        found.push(format!("attributes of {id}, which is not there"));
    }
    for id in records.objects.iter().filter(lacks) {
        found.push(format!("data of {id}, which is not there"));
    }
    let counters = store
        .get(COUNTERS_KEY, NEWEST)
        .map_err(|error| error.to_string())?;
    let counters: Option<Counters> = counters.and_then(|value| decode(&value).ok());
    let inodes = counters.map(|counters| counters.inodes);
    if inodes != Some(records.inodes.len() as u64) {
        found.push(format!(
            "{inodes:?} inodes are counted, there are {}",
            records.inodes.len()
        ));
    }
    Ok(())
}
