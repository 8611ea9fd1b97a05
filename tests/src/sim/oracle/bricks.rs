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
    DirPart, Dirent, Inode, decode, parse_dirent_key, parse_id,
};
use mortar_server::offline;
use mortar_server::store::Store;

type Records = BTreeMap<Bytes, Bytes>;

/// A member's contents.
struct Contents {
    brick: BrickId,
    store: Store,
    records: Records,
}

/// Checks the members of one set, none of which runs.
pub fn check(disks: &[(BrickId, Arc<SimDisk>)]) -> Vec<String> {
    let mut wrong = Vec::new();
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
    if let Some((first, others)) = members.split_first() {
        for other in others {
            compare(first, other, &mut wrong);
        }
        if let Err(why) = references(first, &mut wrong) {
            wrong.push(why);
        }
    }
    wrong
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
    for (id, inode) in inodes(a) {
        let object = Object { id, shard: 0 };
        let len = inode.size.next_multiple_of(BLOCK) as usize;
        let read = |contents: &Contents| {
            let read = contents.store.read_now(object, 0, len, NEWEST);
            read.map_err(|error| error.to_string())
        };
        match (read(a), read(b)) {
            (Ok(one), Ok(other)) if one == other => {}
            (Ok(_), Ok(_)) => wrong.push(format!("{names} differ in the data of {id}")),
            (one, other) => {
                let error = one.err().or(other.err()).unwrap_or_default();
                wrong.push(format!("{names}: {id}: {error}"));
            }
        }
    }
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

/// Everything that refers to something finds it, and counters count what is there.
fn references(contents: &Contents, wrong: &mut Vec<String>) -> Result<(), String> {
    let inodes: BTreeMap<InodeId, Inode> = inodes(contents).into_iter().collect();
    let mut names: BTreeMap<InodeId, Vec<(InodeId, Bytes)>> = BTreeMap::new();
    let mut parts: BTreeMap<InodeId, (u64, u64)> = BTreeMap::new();
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
        match inodes.get(&dirent.gfid.id) {
            Some(inode) if inode.generation == dirent.gfid.generation => {
                names
                    .entry(dirent.gfid.id)
                    .or_default()
                    .push((parent, name));
            }
            _ => wrong.push(format!("{name:?} in {parent} leads to nothing")),
        }
    }
    for (id, inode) in &inodes {
        let mut links = inode.links.clone();
        let mut found = names.remove(id).unwrap_or_default();
        links.sort();
        found.sort();
        if *id != InodeId::ROOT && (found.is_empty() || (!inode.many_links && links != found)) {
            wrong.push(format!(
                "inode {id} has names {links:?}, {found:?} lead to it"
            ));
        }
        if !inode.is_dir() && inode.nlink as usize != found.len() {
            wrong.push(format!("inode {id} counts {} names", inode.nlink));
        }
        let object = Object { id: *id, shard: 0 };
        let allocated = contents
            .store
            .allocated(object, 0, u64::MAX - BLOCK + 1, NEWEST)
            .map_err(|error| error.to_string())?;
        if !inode.is_dir() && inode.blocks != allocated * (BLOCK / 512) {
            wrong.push(format!(
                "inode {id} counts {} blocks, has {allocated}",
                inode.blocks
            ));
        }
    }
    for (key, value) in &contents.records {
        match key.first() {
            Some(b'P') => {
                let part: DirPart = decode(value).map_err(|fault| format!("{fault:?}"))?;
                let dir = parse_id(key).ok_or("a directory's part has no id")?;
                let counts = parts.get(&dir).copied().unwrap_or_default();
                if (part.entries, part.subdirs) != counts || !inodes.contains_key(&dir) {
                    wrong.push(format!("directory {dir} counts {part:?}, has {counts:?}"));
                }
            }
            Some(b'O') => wrong.push(format!("orphan {key:02x?} is left over")),
            Some(b'T' | b'K' | b'C') => {
                wrong.push(format!("transaction record {key:02x?} is left over"));
            }
            _ => {}
        }
    }
    Ok(())
}
