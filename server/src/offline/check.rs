//! `brick check`: reads everything a brick holds and compares what describes the same thing twice.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use mortar_protocol::entry::{Effect, Object};
use mortar_protocol::limits::BLOCK;

use crate::store::extents::{self, Block};
use crate::store::{Store, StoreError};

/// At most so many problems are listed; the others are only counted.
const MAX_LISTED: usize = 1000;

/// What a check found.
#[derive(Default, Debug)]
pub struct Report {
    /// Problems, the first [`MAX_LISTED`].
    pub problems: Vec<String>,
    /// Number of all problems.
    pub count: u64,
    /// Records of the metadata tree.
    pub records: u64,
    /// Blocks of file data whose checksum was compared.
    pub blocks: u64,
    /// Entries of the log behind the applied position.
    pub entries: u64,
}

impl Report {
    fn problem(&mut self, what: String) {
        self.count += 1;
        if self.problems.len() < MAX_LISTED {
            self.problems.push(what);
        }
    }
}

/// A bit for each block of the brick.
struct Bits(Vec<u64>);

impl Bits {
    fn new(blocks: u64) -> Self {
        Self(vec![0; blocks.div_ceil(64) as usize])
    }

    fn get(&self, block: u64) -> bool {
        let word = self.0.get((block / 64) as usize);
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Sets a bit and says whether it was set.
    fn set(&mut self, block: u64) -> bool {
        let was = self.get(block);
        if let Some(word) = self.0.get_mut((block / 64) as usize) {
            *word |= 1 << (block % 64);
        }
        was
    }
}

/// References of the tree's extent records to blocks.
struct References {
    /// Blocks with a reference.
    used: Bits,
    /// Number of references of blocks that have several.
    several: BTreeMap<u64, u32>,
    /// Numbers above 1 as recorded.
    recorded: BTreeMap<u64, u32>,
    /// Blocks that some reference takes to be its own.
    unshared: Bits,
}

/// Checks a brick: every record of the tree, every block of data, the allocator, the log.
pub fn check(store: &Store) -> Report {
    let mut report = Report::default();
    if store.superblock().damaged {
        report.problem("the superblock says that the brick is damaged".to_owned());
    }
    if store.log_damaged() && !store.superblock().damaged {
        report.problem("the log is damaged below its flushed mark".to_owned());
    }
    match check_tree(store, &mut report) {
        Ok(references) => check_allocator(store, &references, &mut report),
        Err(error) => report.problem(format!("the metadata tree cannot be read: {error}")),
    }
    check_log(store, &mut report);
    report
}

fn check_tree(store: &Store, report: &mut Report) -> Result<References, StoreError> {
    let blocks = store.allocator().lock().blocks();
    let mut references = References {
        used: Bits::new(blocks),
        several: BTreeMap::new(),
        recorded: BTreeMap::new(),
        unshared: Bits::new(blocks),
    };
    let snapshot = store.snapshot()?;
    let mut found = Vec::new();
    snapshot.range(&[], &[0xff; 32], &mut |key, value| {
        report.records += 1;
        match key.first() {
            Some(b'E') => match (extents::parse_key(key), extents::decode(value)) {
                (Some((object, chunk)), Ok(blocks)) => found.push((object, chunk, blocks)),
                _ => report.problem(format!("extent record {} is damaged", hex(key))),
            },
            Some(b'R') => match (key[1..].try_into(), value.try_into()) {
                (Ok(block), Ok(count)) => {
                    let block = u64::from_be_bytes(block);
                    references.recorded.insert(block, u32::from_le_bytes(count));
                }
                _ => report.problem(format!("reference count {} is damaged", hex(key))),
            },
            _ => {
                if let Some(problem) = super::records::problem(key, value) {
                    report.problem(problem);
                }
            }
        }
        for (object, chunk, blocks) in found.drain(..) {
            for (bit, block) in blocks.iter().enumerate() {
                let number = u64::from(chunk) * blocks.len() as u64 + bit as u64;
                check_block(store, object, number, *block, &mut references, report);
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(references)
}

fn check_block(
    store: &Store,
    object: Object,
    number: u64,
    block: Block,
    references: &mut References,
    report: &mut Report,
) {
    let name = || format!("inode {} shard {} block {number}", object.id, object.shard);
    if let Some(at) = block.physical() {
        if at >= store.superblock().geometry.extents.len / BLOCK {
            return report.problem(format!("{}: block {at} lies beyond the brick", name()));
        }
        if references.used.set(at) {
            *references.several.entry(at).or_insert(1) += 1;
        }
    }
    match block {
        Block::Data { at, crc, shared } => {
            report.blocks += 1;
            let mut data = [0; BLOCK as usize];
            let place = store.superblock().geometry.extents.offset + at * BLOCK;
            match store.device().read_at(place, &mut data) {
                Err(error) => report.problem(format!("{}: {error}", name())),
                Ok(()) if crc32fast::hash(&data) != crc => {
                    report.problem(format!("{}: wrong checksum (at byte {place})", name()));
                }
                Ok(()) => {}
            }
            if !shared {
                references.unshared.set(at);
            }
        }
        Block::Lost => report.problem(format!("{}: its data was lost", name())),
        Block::Unwritten { at } => {
            references.unshared.set(at);
        }
        Block::Hole => {}
    }
}

fn check_allocator(store: &Store, references: &References, report: &mut Report) {
    for (block, count) in &references.several {
        let recorded = references.recorded.get(block).copied().unwrap_or(1);
        if recorded != *count {
            report.problem(format!(
                "block {block} has {count} references, {recorded} are recorded"
            ));
        }
        if references.unshared.get(*block) {
            report.problem(format!(
                "block {block} has {count} references, and one of them alone"
            ));
        }
    }
    for (block, count) in &references.recorded {
        if !references.several.contains_key(block) {
            report.problem(format!(
                "block {block} has less than the {count} references recorded"
            ));
        }
    }
    let alloc = store.allocator().lock();
    let mut lost = 0;
    for block in 0..alloc.blocks() {
        match (alloc.attached(block), references.used.get(block)) {
            (true, false) => lost += 1,
            (false, true) => report.problem(format!("block {block} is in use and marked free")),
            _ => {}
        }
    }
    if lost > 0 {
        report.problem(format!(
            "{lost} blocks are marked in use and nothing refers to them"
        ));
    }
    let mut busy = Bits(references.used.0.clone());
    for chunk in store.tree_chunks() {
        let end = chunk + u64::from(crate::alloc::CHUNK_BLOCKS);
        if let Some(block) = (chunk..end).find(|block| references.used.get(*block)) {
            report.problem(format!("block {block} holds file data and metadata"));
        }
        for block in chunk..end {
            busy.set(block);
        }
    }
    for block in store.held_blocks() {
        if busy.set(block) {
            report.problem(format!("block {block} is in use and staged for the log"));
        }
    }
    let free = alloc.blocks() - busy.count();
    if alloc.free() != free {
        report.problem(format!(
            "{} blocks are counted as free, nothing uses {free}",
            alloc.free()
        ));
    }
}

/// The entries that are not in the tree yet, and their staged blocks.
fn check_log(store: &Store, report: &mut Report) {
    let mut at = store.applied();
    while at < store.head() {
        let entries = match store.entries_after(at, 4 << 20) {
            Ok(entries) if !entries.is_empty() => entries,
            _ => return report.problem(format!("the log cannot be read behind {at}")),
        };
        for entry in entries {
            report.entries += 1;
            for effect in &entry.effects {
                if let Effect::Attach { stage, .. } = effect
                    && let Err(error) = store.read_stage(*stage)
                {
                    report.problem(format!("entry {}: its staged data: {error}", entry.pos));
                }
            }
            at = entry.pos;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
