//! Applying entries to the tree: what is pending becomes records and extents.
//!
//! For each block that a batch touches, what the tree has and the pending steps give the new block. Inline data is
//! merged, checksummed and written to new blocks (or to unwritten ones that the file owns) before the tree's batch is
//! committed; staged blocks are attached; replaced ones are freed, which the allocator defers to the next checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;

use bytes::{Bytes, BytesMut};
use mortar_protocol::entry::Object;
use mortar_protocol::ids::Seq;
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use super::extents::{self, Block, CHUNK_BLOCKS, Chunk};
use super::pending::{NEWEST, Op, Pending};
use super::{Reader, StoreError};
use crate::alloc::{Allocator, Run};
use crate::device::{Device, is_full};
use crate::tree::Batch;

/// A block whose data must be written before the batch is committed.
struct Fresh {
    object: Object,
    block: u32,
    data: Bytes,
    crc: u32,
    /// The physical block it goes to, if the file owns an unwritten one.
    reuse: Option<u64>,
}

/// The new state of everything a batch of entries touches.
#[derive(Default)]
pub(super) struct Plan {
    chunks: BTreeMap<(Object, u32), (Chunk, Chunk)>,
    fresh: Vec<Fresh>,
    /// Blocks to be reserved: (object, block).
    reserve: Vec<(Object, u32)>,
}

impl Plan {
    /// Works out the new state of all blocks that pending entries up to `upto` touch.
    pub(super) fn make(
        pending: &Pending,
        reader: &Reader<'_>,
        upto: Seq,
    ) -> Result<Self, StoreError> {
        let mut plan = Self::default();
        let mut wanted: BTreeSet<(Object, u32)> = BTreeSet::new();
        for (object, from, to) in pending.touched(upto) {
            if to == u32::MAX {
                for chunk in reader.chunks_from(object, from / CHUNK_BLOCKS)? {
                    let first = chunk * CHUNK_BLOCKS;
                    wanted.extend(
                        (first.max(from)..first + CHUNK_BLOCKS).map(|block| (object, block)),
                    );
                }
            } else {
                wanted.extend((from..to).map(|block| (object, block)));
            }
        }
        for (object, block) in wanted {
            plan.block(pending, reader, upto, object, block)?;
        }
        Ok(plan)
    }

    fn block(
        &mut self,
        pending: &Pending,
        reader: &Reader<'_>,
        upto: Seq,
        object: Object,
        block: u32,
    ) -> Result<(), StoreError> {
        let number = block / CHUNK_BLOCKS;
        let at = (block % CHUNK_BLOCKS) as usize;
        if let std::collections::btree_map::Entry::Vacant(e) = self.chunks.entry((object, number)) {
            let old = reader.chunk(object, number)?;
            e.insert((old, old));
        }
        let old = self.chunks[&(object, number)].0[at];
        let resolved = reader.resolve(pending, object, block, upto, NEWEST)?;
        let new = if resolved.bytes.is_empty() {
            match resolved.base {
                Block::Unwritten { at: u64::MAX } => {
                    self.reserve.push((object, block));
                    match old {
                        // What the file owns already stays its own.
                        Block::Unwritten { at } => Block::Unwritten { at },
                        _ => Block::Hole,
                    }
                }
                base => base,
            }
        } else {
            match reader.merge(&resolved) {
                Ok(data) => {
                    let reuse = match (old, resolved.base) {
                        (Block::Unwritten { at }, Block::Unwritten { .. } | Block::Hole) => {
                            Some(at)
                        }
                        _ => None,
                    };
                    let crc = crc32fast::hash(&data);
                    self.fresh.push(Fresh {
                        object,
                        block,
                        data,
                        crc,
                        reuse,
                    });
                    old
                }
                Err(_) => Block::Lost,
            }
        };
        if let Some((_, chunk)) = self.chunks.get_mut(&(object, number)) {
            chunk[at] = new;
        }
        Ok(())
    }

    fn set(&mut self, object: Object, block: u32, new: Block) {
        if let Some((_, chunk)) = self.chunks.get_mut(&(object, block / CHUNK_BLOCKS)) {
            chunk[(block % CHUNK_BLOCKS) as usize] = new;
        }
    }

    /// Allocates and writes what must lie on the device before the commit.
    pub(super) fn write(
        &mut self,
        alloc: &mut Allocator,
        device: &dyn Device,
        extents_at: u64,
    ) -> Result<(), StoreError> {
        let reserve = std::mem::take(&mut self.reserve);
        let fresh = std::mem::take(&mut self.fresh);
        let reserve: Vec<_> = reserve
            .into_iter()
            .filter(|(object, block)| {
                let chunk = &self.chunks[&(*object, block / CHUNK_BLOCKS)].1;
                !matches!(
                    chunk[(block % CHUNK_BLOCKS) as usize],
                    Block::Unwritten { .. }
                )
            })
            .collect();
        let need = reserve.len() + fresh.iter().filter(|fresh| fresh.reuse.is_none()).count();
        let runs = alloc.allocate(need as u32).ok_or(StoreError::NoSpace)?;
        let mut blocks = runs
            .iter()
            .flat_map(|run| run.start..run.start + u64::from(run.len))
            .collect::<Vec<_>>()
            .into_iter();
        for (object, block) in reserve {
            if let Some(at) = blocks.next() {
                self.set(object, block, Block::Unwritten { at });
            }
        }
        let mut writes: Vec<(u64, Bytes)> = Vec::with_capacity(fresh.len());
        for fresh in fresh {
            if let Some(at) = fresh.reuse.or_else(|| blocks.next()) {
                self.set(
                    fresh.object,
                    fresh.block,
                    Block::Data {
                        at,
                        crc: fresh.crc,
                        shared: false,
                    },
                );
                writes.push((at, fresh.data));
            }
        }
        writes.sort_by_key(|(at, _)| *at);
        let mut from = 0;
        while from < writes.len() {
            let mut to = from + 1;
            while to < writes.len() && to - from < 256 && writes[to].0 == writes[to - 1].0 + 1 {
                to += 1;
            }
            let parts: Vec<IoSlice<'_>> = writes[from..to]
                .iter()
                .map(|(_, data)| IoSlice::new(data))
                .collect();
            let place = extents_at + writes[from].0 * BLOCK;
            if let Err(error) = device.write_vectored_at(place, &parts) {
                if is_full(&error) {
                    runs.iter().for_each(|run| alloc.release(*run));
                    return Err(StoreError::NoSpace);
                }
                return Err(StoreError::Io(error));
            }
            from = to;
        }
        Ok(())
    }

    /// Puts the extent records and reference counts, and tells the allocator what is attached and freed. Gives the
    /// physical blocks that the tree now refers to and did not before.
    pub(super) fn commit(
        mut self,
        batch: &mut Batch<'_>,
        alloc: &Mutex<Allocator>,
    ) -> Result<BTreeSet<u64>, StoreError> {
        let mut delta: BTreeMap<u64, i64> = BTreeMap::new();
        for (old, new) in self.chunks.values() {
            for (old, new) in old.iter().zip(new) {
                if old.physical() != new.physical() {
                    old.physical()
                        .into_iter()
                        .for_each(|at| *delta.entry(at).or_default() -= 1);
                    new.physical()
                        .into_iter()
                        .for_each(|at| *delta.entry(at).or_default() += 1);
                }
            }
        }
        let mut attached = BTreeSet::new();
        let mut shared = BTreeSet::new();
        for (at, delta) in delta {
            let key = extents::reference_key(at);
            let known = alloc.lock().attached(at);
            let before = if known {
                i64::from(extents::decode_count(batch.get(&key)?.as_ref())?)
            } else {
                0
            };
            let after = before + delta;
            let run = Run { start: at, len: 1 };
            if !known && after > 0 {
                alloc.lock().attach(run);
                attached.insert(at);
            } else if known && after <= 0 {
                alloc.lock().free_run(run);
            }
            if after > 1 {
                shared.insert(at);
                batch.put(&key, &(after as u32).to_le_bytes())?;
            } else if before > 1 {
                batch.del(&key)?;
            }
        }
        for ((object, number), (old, new)) in &mut self.chunks {
            for block in new.iter_mut() {
                if let Block::Data {
                    at, shared: flag, ..
                } = block
                {
                    *flag |= shared.contains(at);
                }
            }
            if old != new {
                let key = extents::key(*object, *number);
                match extents::encode(new) {
                    Some(value) => batch.put(&key, &value)?,
                    None => batch.del(&key)?,
                }
            }
        }
        Ok(attached)
    }
}

/// What a block is as of some position: what lies on the device, and bytes over it.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolved {
    /// The block below. An unwritten block at `u64::MAX` has not been given a physical block yet.
    pub(super) base: Block,
    /// Bytes over it, in order.
    pub(super) bytes: Vec<(u16, Bytes)>,
}

impl Resolved {
    /// Lays steps over `base`; `share` resolves another object's block.
    pub(super) fn from_steps(
        base: Block,
        steps: &[(u64, Op)],
        share: &mut dyn FnMut(Object, u32, u64) -> Result<Self, StoreError>,
    ) -> Result<Self, StoreError> {
        let mut resolved = Self {
            base,
            bytes: Vec::new(),
        };
        for (order, op) in steps {
            match op {
                Op::Bytes(start, data) => {
                    if *start == 0 && data.len() == BLOCK as usize {
                        resolved.bytes.clear();
                    }
                    resolved.bytes.push((*start, data.clone()));
                }
                Op::Zeros(start, data) => {
                    if !resolved.is_zero() {
                        resolved.bytes.push((*start, data.clone()));
                    }
                }
                Op::Staged(staged) => {
                    resolved = Self {
                        base: Block::Data {
                            at: staged.at,
                            crc: staged.crc,
                            shared: false,
                        },
                        bytes: Vec::new(),
                    };
                }
                Op::Hole => resolved = Self::default(),
                Op::Zero => {
                    let base = match resolved.base {
                        Block::Unwritten { at } if resolved.bytes.is_empty() => {
                            Block::Unwritten { at }
                        }
                        _ => Block::Unwritten { at: u64::MAX },
                    };
                    resolved = Self {
                        base,
                        bytes: Vec::new(),
                    };
                }
                Op::Reserve => {
                    if resolved.bytes.is_empty() && resolved.base == Block::Hole {
                        resolved.base = Block::Unwritten { at: u64::MAX };
                    }
                }
                Op::Share(object, block) => {
                    resolved = share(*object, *block, *order)?;
                    // Space reserved for the source is not shared: the copy of a reserved block is a hole.
                    if let Block::Unwritten { .. } = resolved.base {
                        resolved.base = Block::Hole;
                    }
                }
            }
        }
        Ok(resolved)
    }

    /// Whether the bytes cover all of the block, so that its base need not be read.
    pub(super) fn bytes_cover(&self) -> bool {
        self.bytes
            .first()
            .is_some_and(|(start, data)| *start == 0 && data.len() == BLOCK as usize)
    }

    /// Whether it takes space.
    pub(super) fn is_allocated(&self) -> bool {
        !self.bytes.is_empty() || self.base != Block::Hole
    }

    /// Whether it reads as zeros without looking.
    pub(super) fn is_zero(&self) -> bool {
        self.bytes.is_empty() && matches!(self.base, Block::Hole | Block::Unwritten { .. })
    }

    /// Lays the bytes over the base's contents.
    pub(super) fn overlay(&self, base: &mut [u8]) {
        for (start, data) in &self.bytes {
            let start = usize::from(*start);
            if let Some(place) = base.get_mut(start..start + data.len()) {
                place.copy_from_slice(data);
            }
        }
    }

    /// The contents, given those of the base (not needed where the bytes cover it).
    pub(super) fn contents(&self, base: Option<&[u8]>) -> Bytes {
        if let [(0, data)] = &self.bytes[..]
            && data.len() == BLOCK as usize
        {
            return data.clone();
        }
        let mut block = BytesMut::zeroed(BLOCK as usize);
        if let Some(base) = base {
            block.copy_from_slice(base);
        }
        self.overlay(&mut block);
        block.freeze()
    }
}
