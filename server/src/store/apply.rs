//! Applying entries to the tree: what is pending becomes records and extents.
//!
//! For each block that a batch touches, what the tree has and the pending steps give the new block. Inline data is
//! merged, checksummed and written to new blocks (or to unwritten ones that the file owns) before the tree's batch is
//! committed; staged blocks are attached; replaced ones are freed, which the allocator defers to the next checkpoint.

use std::collections::BTreeSet;
use std::io::IoSlice;

use bytes::{Bytes, BytesMut};
use mortar_protocol::entry::Object;
use mortar_protocol::ids::Seq;
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use super::extents::{self, Block, CHUNK_BLOCKS, Chunk};
use super::pending::{Op, Pending};
use super::{Reader, StoreError};
use crate::alloc::{Allocator, Run};
use crate::device::{Device, is_full};
use crate::tree::Batch;

/// A block whose data must be written before the batch is committed.
struct Fresh {
    place: Place,
    data: Bytes,
    crc: u32,
    /// The physical block it goes to, if the file owns an unwritten one.
    reuse: Option<u64>,
}

/// A block of a plan: index of its chunk, and which of the chunk's blocks it is.
#[derive(Clone, Copy)]
struct Place {
    chunk: usize,
    at: usize,
}

/// A chunk of extents that a batch touches, as it is and as it will be.
struct Touched {
    object: Object,
    number: u32,
    old: Chunk,
    new: Chunk,
}

/// The new state of everything a batch of entries touches.
#[derive(Default)]
pub(super) struct Plan {
    chunks: Vec<Touched>,
    fresh: Vec<Fresh>,
    /// Blocks to be reserved.
    reserve: Vec<Place>,
}

/// What a batch did to physical blocks.
pub(super) struct Committed {
    /// Those that the tree now refers to and did not before, in order.
    pub(super) attached: Vec<u64>,
    /// Whether it made blocks that are referred to more than once.
    pub(super) shares: bool,
}

impl Plan {
    /// Works out the new state of all blocks that pending entries up to `upto` touch.
    pub(super) fn make(
        pending: &Pending,
        reader: &Reader<'_>,
        upto: Seq,
    ) -> Result<Self, StoreError> {
        let mut plan = Self::default();
        let mut wanted: Vec<(Object, u32)> = Vec::new();
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
        wanted.sort_unstable();
        wanted.dedup();
        for (object, block) in wanted {
            plan.block(pending, reader, upto, object, block)?;
        }
        Ok(plan)
    }

    /// Takes the next block; they come in order.
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
        let known = self
            .chunks
            .last()
            .is_some_and(|last| last.object == object && last.number == number);
        if !known {
            let old = reader.chunk(object, number)?;
            self.chunks.push(Touched {
                object,
                number,
                old,
                new: old,
            });
        }
        let place = Place {
            chunk: self.chunks.len() - 1,
            at,
        };
        let chunk = &mut self.chunks[place.chunk];
        let old = chunk.old[at];
        let resolved = reader.resolve_over(pending, object, block, upto, &chunk.old)?;
        let new = if resolved.bytes.is_empty() {
            match resolved.base {
                Block::Unwritten { at: u64::MAX } => {
                    self.reserve.push(place);
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
                        place,
                        data,
                        crc,
                        reuse,
                    });
                    old
                }
                Err(_) => Block::Lost,
            }
        };
        chunk.new[at] = new;
        Ok(())
    }

    fn set(&mut self, place: Place, new: Block) {
        self.chunks[place.chunk].new[place.at] = new;
    }

    /// Allocates and writes what must lie on the device before the commit.
    pub(super) fn write(
        &mut self,
        alloc: &Mutex<Allocator>,
        device: &dyn Device,
        extents_at: u64,
    ) -> Result<(), StoreError> {
        let mut reserve = std::mem::take(&mut self.reserve);
        let fresh = std::mem::take(&mut self.fresh);
        reserve.retain(|place| {
            !matches!(
                self.chunks[place.chunk].new[place.at],
                Block::Unwritten { .. }
            )
        });
        let need = reserve.len() + fresh.iter().filter(|fresh| fresh.reuse.is_none()).count();
        let runs = alloc
            .lock()
            .allocate(need as u32)
            .ok_or(StoreError::NoSpace)?;
        let mut blocks = runs
            .iter()
            .flat_map(|run| run.start..run.start + u64::from(run.len));
        for place in reserve {
            if let Some(at) = blocks.next() {
                self.set(place, Block::Unwritten { at });
            }
        }
        let mut writes: Vec<(u64, Bytes)> = Vec::with_capacity(fresh.len());
        for fresh in fresh {
            if let Some(at) = fresh.reuse.or_else(|| blocks.next()) {
                let crc = fresh.crc;
                let shared = false;
                self.set(fresh.place, Block::Data { at, crc, shared });
                writes.push((at, fresh.data));
            }
        }
        writes.sort_unstable_by_key(|(at, _)| *at);
        for run in writes.chunk_by(|(one, _), (next, _)| *next == one + 1) {
            let mut at = run[0].0;
            for piece in run.chunks(256) {
                let parts: Vec<_> = piece.iter().map(|(_, data)| IoSlice::new(data)).collect();
                if let Err(error) = device.write_vectored_at(extents_at + at * BLOCK, &parts) {
                    if !is_full(&error) {
                        return Err(StoreError::Io(error));
                    }
                    let mut alloc = alloc.lock();
                    runs.iter().for_each(|run| alloc.release(*run));
                    return Err(StoreError::NoSpace);
                }
                at += piece.len() as u64;
            }
        }
        Ok(())
    }

    /// By how much the number of references to each physical block changes, in order of the blocks.
    fn references(&self) -> Vec<(u64, i64)> {
        let mut changes: Vec<(u64, i64)> = Vec::new();
        for chunk in &self.chunks {
            for (old, new) in chunk.old.iter().zip(&chunk.new) {
                let (old, new) = (old.physical(), new.physical());
                if old != new {
                    changes.extend(old.map(|at| (at, -1)));
                    changes.extend(new.map(|at| (at, 1)));
                }
            }
        }
        changes.sort_unstable();
        changes.dedup_by(|next, first| {
            let same = next.0 == first.0;
            if same {
                first.1 += next.1;
            }
            same
        });
        changes
    }

    /// Puts the extent records and reference counts, and tells the allocator what is attached and freed. `shares`:
    /// whether the tree may hold reference counts.
    pub(super) fn commit(
        mut self,
        batch: &mut Batch<'_>,
        alloc: &Mutex<Allocator>,
        shares: bool,
    ) -> Result<Committed, StoreError> {
        let changes = self.references();
        let known: Vec<bool> = {
            let alloc = alloc.lock();
            changes.iter().map(|(at, _)| alloc.attached(*at)).collect()
        };
        let (mut attached, mut freed) = (Vec::new(), Vec::new());
        let mut shared = BTreeSet::new();
        for ((at, change), known) in changes.into_iter().zip(known) {
            let key = extents::reference_key(at);
            let before = match known {
                false => 0,
                true if shares => i64::from(extents::decode_count(batch.get(&key)?.as_ref())?),
                true => 1,
            };
            let after = before + change;
            if !known && after > 0 {
                attached.push(at);
            } else if known && after <= 0 {
                freed.push(at);
            }
            if after > 1 {
                shared.insert(at);
                batch.put(&key, &(after as u32).to_le_bytes())?;
            } else if before > 1 {
                batch.del(&key)?;
            }
        }
        {
            let mut alloc = alloc.lock();
            runs(&attached).for_each(|run| alloc.attach(run));
            runs(&freed).for_each(|run| alloc.free_run(run));
        }
        for chunk in &mut self.chunks {
            if !shared.is_empty() {
                for block in &mut chunk.new {
                    if let Block::Data {
                        at, shared: flag, ..
                    } = block
                    {
                        *flag |= shared.contains(at);
                    }
                }
            }
            if chunk.old != chunk.new {
                let key = extents::key(chunk.object, chunk.number);
                match extents::encode(&chunk.new) {
                    Some(value) => batch.put(&key, &value)?,
                    None => batch.del(&key)?,
                }
            }
        }
        Ok(Committed {
            attached,
            shares: !shared.is_empty(),
        })
    }
}

/// Blocks, in order, as runs.
fn runs(blocks: &[u64]) -> impl Iterator<Item = Run> + '_ {
    blocks
        .chunk_by(|one, next| *next == one + 1)
        .map(|run| Run {
            start: run[0],
            len: run.len() as u32,
        })
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
