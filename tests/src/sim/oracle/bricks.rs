//! What bricks hold once all is quiet: members equal, no record that dangles, space accounted to the block.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::attr::FileKind;
use mortar_protocol::entry::Object;
use mortar_protocol::ids::{BrickId, InodeId};
use mortar_protocol::limits::BLOCK;
use mortar_server::brick::NEWEST;
use mortar_server::device::sim::SimDisk;
use mortar_server::namespace::records::{
    DirPart, Dirent, Inode, decode, parse_dirent_key, parse_id, parse_shard_key,
};
use mortar_server::offline;
use mortar_server::store::Store;

use super::super::world::SHARD;

type Records = BTreeMap<Bytes, Bytes>;

/// Bytes on each side of the end of a shard that are compared.
const COMPARED: u64 = 64 << 10;

/// A member's contents.
struct Contents {
    brick: BrickId,
    store: Store,
    records: Records,
}

/// Checks the members of all sets, none of which runs.
pub fn check(sets: &[Vec<(BrickId, Arc<SimDisk>)>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let firsts: Vec<Contents> = sets
        .iter()
        .filter_map(|disks| check_set(disks, &mut wrong))
        .collect();
    if firsts.len() == sets.len()
        && let Err(why) = references(&firsts, &mut wrong)
    {
        wrong.push(why);
    }
    wrong
}

/// Checks the members of one set; gives one of them.
fn check_set(disks: &[(BrickId, Arc<SimDisk>)], wrong: &mut Vec<String>) -> Option<Contents> {
    let mut members = Vec::new();
    for (brick, disk) in disks {
        disk.queue(false);
        match offline::problems(Arc::clone(disk) as _) {
            Ok(problems) => {
                wrong.extend(
                    problems
                        .iter()
                        .map(|what| format!("brick {}: {what}", brick.0)),
                );
            }
            Err(why) => wrong.push(format!("brick {}: {why}", brick.0)),
        }
        match open(*brick, disk) {
            Ok(contents) => members.push(contents),
            Err(why) => wrong.push(format!("brick {}: {why}", brick.0)),
        }
    }
    let (first, others) = members.split_first()?;
    for other in others {
        compare(first, other, wrong);
    }
    members.into_iter().next()
}

fn open(brick: BrickId, disk: &Arc<SimDisk>) -> Result<Contents, String> {
    let store = Store::open(Arc::clone(disk) as _).map_err(|error| error.to_string())?;
    let mut records = Records::new();
    // Letters of the namespace; the store and the brick have records of their own beside them.
    store
        .scan(b"B", b"\xf0", NEWEST, &mut |key, value| {
            if !matches!(key.first(), Some(b'E' | b'M' | b'R')) || key == b"R" {
                let pair = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                records.insert(pair.0, pair.1);
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| error.to_string())?;
    Ok(Contents {
        brick,
        store,
        records,
    })
}

fn compare(a: &Contents, b: &Contents, wrong: &mut Vec<String>) {
    let names = format!("bricks {} and {}", a.brick.0, b.brick.0);
    if a.store.head() != b.store.head() {
        let (one, other) = (a.store.head(), b.store.head());
        wrong.push(format!("{names} end at {one} and {other}"));
    }
    for (key, value) in &a.records {
        if b.records.get(key) != Some(value) {
            wrong.push(format!("{names} differ in record {key:02x?}"));
        }
    }
    if let Some(key) = b.records.keys().find(|key| !a.records.contains_key(*key)) {
        wrong.push(format!("{names} differ in record {key:02x?}"));
    }
    let firsts = inodes(a).into_iter().map(|(id, inode)| {
        let len = inode.size.min(SHARD).next_multiple_of(BLOCK);
        (Object { id, shard: 0 }, len)
    });
    let others = shards(a).into_iter().map(|object| (object, 2 * COMPARED));
    for (object, len) in firsts.chain(others) {
        // Of a wide file only the part before the end of its first shard is used.
        let from = len.saturating_sub(2 * COMPARED);
        let read = |contents: &Contents| {
            let read = contents
                .store
                .read_now(object, from, (len - from) as usize, NEWEST);
            read.map_err(|error| error.to_string())
        };
        match (read(a), read(b)) {
            (Ok(one), Ok(other)) if one == other => {}
            (Ok(_), Ok(_)) => wrong.push(format!("{names} differ in the data of {object:?}")),
            (one, other) => {
                let error = one.err().or(other.err()).unwrap_or_default();
                wrong.push(format!("{names}: {object:?}: {error}"));
            }
        }
    }
}

/// The later shards that a set has data of.
fn shards(contents: &Contents) -> Vec<Object> {
    let keys = contents.records.keys();
    keys.filter(|key| key.first() == Some(&b'S'))
        .filter_map(|key| {
            Some(Object {
                id: parse_id(key)?,
                shard: parse_shard_key(key)?,
            })
        })
        .collect()
}

fn inodes(contents: &Contents) -> Vec<(InodeId, Inode)> {
    let mut inodes = Vec::new();
    for (key, value) in &contents.records {
        if key.first() == Some(&b'I')
            && let (Some(id), Ok(inode)) = (parse_id(key), decode::<Inode>(value))
        {
            inodes.push((id, inode));
        }
    }
    inodes
}

/// Everything that refers to something finds it, on whatever set, and counters count what is there.
fn references(sets: &[Contents], wrong: &mut Vec<String>) -> Result<(), String> {
    let mut all: BTreeMap<InodeId, Inode> = BTreeMap::new();
    for contents in sets {
        for (id, inode) in inodes(contents) {
            if all.insert(id, inode).is_some() {
                wrong.push(format!("inode {id} is on two sets"));
            }
        }
    }
    let mut names = Names::new();
    for contents in sets {
        let parts = names_of(contents, &all, &mut names, wrong)?;
        left_over(contents, &all, &parts, wrong)?;
    }
    for contents in sets {
        for (id, inode) in inodes(contents) {
            let found = names.remove(&id).unwrap_or_default();
            check_inode(contents, id, &inode, found, wrong)?;
        }
    }
    Ok(())
}

/// (parent, name) pairs that lead to an inode.
type Names = BTreeMap<InodeId, Vec<(InodeId, Bytes)>>;
/// Entries of each directory on a set, and subdirectories among them.
type Parts = BTreeMap<InodeId, (u64, u64)>;

/// Notes the names that a set holds.
fn names_of(
    contents: &Contents,
    all: &BTreeMap<InodeId, Inode>,
    names: &mut Names,
    wrong: &mut Vec<String>,
) -> Result<Parts, String> {
    let mut parts = Parts::new();
    for (key, value) in &contents.records {
        if key.first() != Some(&b'D') {
            continue;
        }
        let dirent: Dirent = decode(value).map_err(|fault| format!("{key:02x?}: {fault:?}"))?;
        let parent = parse_id(&key[..9]).ok_or("a directory entry has no parent")?;
        let (_, name) = parse_dirent_key(key).ok_or("a directory entry has no name")?;
        let name = Bytes::copy_from_slice(name);
        let counts = parts.entry(parent).or_default();
        counts.0 += 1;
        counts.1 += u64::from(dirent.kind == FileKind::Dir);
        if !all.get(&parent).is_some_and(Inode::is_dir) {
            wrong.push(format!("{name:?} is in {parent}, which is no directory"));
        }
        match all.get(&dirent.gfid.id) {
            Some(inode) if inode.generation == dirent.gfid.generation => {
                let leading = names.entry(dirent.gfid.id).or_default();
                leading.push((parent, name));
            }
            _ => wrong.push(format!("{name:?} in {parent} leads to nothing")),
        }
    }
    Ok(parts)
}

fn check_inode(
    contents: &Contents,
    id: InodeId,
    inode: &Inode,
    mut found: Vec<(InodeId, Bytes)>,
    wrong: &mut Vec<String>,
) -> Result<(), String> {
    let mut links = inode.links.clone();
    links.sort();
    found.sort();
    if id != InodeId::ROOT && (found.is_empty() || (!inode.many_links && links != found)) {
        wrong.push(format!(
            "inode {id} has names {links:?}, {found:?} lead to it"
        ));
    }
    if !inode.is_dir() && inode.nlink as usize != found.len() {
        wrong.push(format!("inode {id} counts {} names", inode.nlink));
    }
    let object = Object { id, shard: 0 };
    let allocated = contents
        .store
        .allocated(object, 0, u64::MAX - BLOCK + 1, NEWEST)
        .map_err(|error| error.to_string())?;
    // What a file has on other sets is told by its writers, who may have died before they could.
    if !inode.is_dir() && !inode.sharded && inode.blocks != allocated * (BLOCK / 512) {
        wrong.push(format!(
            "inode {id} counts {} blocks, has {allocated}",
            inode.blocks
        ));
    }
    Ok(())
}

/// Directories count their entries; nothing is left of what is gone.
fn left_over(
    contents: &Contents,
    all: &BTreeMap<InodeId, Inode>,
    parts: &Parts,
    wrong: &mut Vec<String>,
) -> Result<(), String> {
    for (key, value) in &contents.records {
        match key.first() {
            Some(b'P') => {
                let part: DirPart = decode(value).map_err(|fault| format!("{fault:?}"))?;
                let dir = parse_id(key).ok_or("a directory's part has no id")?;
                let counts = parts.get(&dir).copied().unwrap_or_default();
                if (part.entries, part.subdirs) != counts || !all.contains_key(&dir) {
                    wrong.push(format!("directory {dir} counts {part:?}, has {counts:?}"));
                }
            }
            Some(b'O') => wrong.push(format!("orphan {key:02x?} is left over")),
            Some(b'L') => wrong.push(format!("locks {key:02x?} are left over")),
            Some(b'W') => wrong.push("claims are left over".to_owned()),
            Some(b'S') if parse_id(key).is_none_or(|id| !all.contains_key(&id)) => {
                wrong.push(format!("shard {key:02x?} is left over"));
            }
            Some(b'X') if parse_id(key).is_none_or(|id| !all.contains_key(&id)) => {
                wrong.push(format!("attribute {key:02x?} is left over"));
            }
            Some(b'T' | b'K' | b'C') => {
                wrong.push(format!("transaction record {key:02x?} is left over"));
            }
            _ => {}
        }
    }
    Ok(())
}
