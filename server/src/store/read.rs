//! Reading blocks: what the tree and the pending map say, and the bytes themselves, verified.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mortar_protocol::entry::Object;
use mortar_protocol::ids::Seq;
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use super::apply::Resolved;
use super::extents::{self, Block, CHUNK_BLOCKS, Chunk};
use super::pending::{NEWEST, Pending};
use super::{ReadError, StoreError};
use crate::alloc::ReadPin;
use crate::device::{Device, Done};
use crate::tree::Snapshot;

/// How deep a chain of pending copies of copies is followed.
const MAX_SHARES: u32 = 64;

/// A view of the tree and the device, for one operation.
pub(super) struct Reader<'a> {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) device: &'a dyn Device,
    pub(super) extents_at: u64,
    cached: Mutex<Option<(Object, u32, Chunk)>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(snapshot: Arc<Snapshot>, device: &'a dyn Device, extents_at: u64) -> Self {
        Self {
            snapshot,
            device,
            extents_at,
            cached: Mutex::new(None),
        }
    }

    /// A chunk as the tree has it.
    pub(super) fn chunk(&self, object: Object, number: u32) -> Result<Chunk, StoreError> {
        let mut cached = self.cached.lock();
        if let Some((of, at, chunk)) = &*cached
            && (*of, *at) == (object, number)
        {
            return Ok(*chunk);
        }
        let chunk = match self.snapshot.get(&extents::key(object, number))? {
            Some(bytes) => extents::decode(&bytes)?,
            None => Chunk::default(),
        };
        *cached = Some((object, number, chunk));
        Ok(chunk)
    }

    /// Numbers of the chunks that the tree has of an object, from `first` on.
    pub(super) fn chunks_from(&self, object: Object, first: u32) -> Result<Vec<u32>, StoreError> {
        let mut found = Vec::new();
        let mut end = extents::key(object, u32::MAX).to_vec();
        end.push(0);
        self.snapshot
            .range(&extents::key(object, first), &end, &mut |key, _| {
                found.extend(extents::parse_key(key).map(|(_, chunk)| chunk));
                ControlFlow::Continue(())
            })?;
        Ok(found)
    }

    /// What a block is as of `at`, seeing only steps of an order below `below`.
    pub(super) fn resolve(
        &self,
        pending: &Pending,
        object: Object,
        block: u32,
        at: Seq,
        below: u64,
    ) -> Result<Resolved, StoreError> {
        self.resolve_deep(pending, object, block, at, below, 0)
    }

    /// What a block is as of `at`, given the chunk of the tree in which it lies.
    pub(super) fn resolve_over(
        &self,
        pending: &Pending,
        object: Object,
        block: u32,
        at: Seq,
        chunk: &Chunk,
    ) -> Result<Resolved, StoreError> {
        let base = chunk[(block % CHUNK_BLOCKS) as usize];
        self.resolve_on(pending, (object, block), (at, NEWEST), 0, || Ok(base))
    }

    /// Lays the pending steps over a block's base, which is asked for only if it shows.
    fn resolve_on(
        &self,
        pending: &Pending,
        (object, block): (Object, u32),
        (at, below): (Seq, u64),
        depth: u32,
        base: impl FnOnce() -> Result<Block, StoreError>,
    ) -> Result<Resolved, StoreError> {
        let steps = pending.steps(object, block, at, below);
        let base = match Pending::covers(&steps) {
            true => Block::Hole,
            false => base()?,
        };
        Resolved::from_steps(base, &steps, &mut |from, block, order| {
            self.resolve_deep(pending, from, block, at, order.min(below), depth + 1)
        })
    }

    fn resolve_deep(
        &self,
        pending: &Pending,
        object: Object,
        block: u32,
        at: Seq,
        below: u64,
        depth: u32,
    ) -> Result<Resolved, StoreError> {
        if depth > MAX_SHARES {
            return Err(StoreError::Damaged(
                "copies of copies run in a circle".into(),
            ));
        }
        self.resolve_on(pending, (object, block), (at, below), depth, || {
            Ok(self.chunk(object, block / CHUNK_BLOCKS)?[(block % CHUNK_BLOCKS) as usize])
        })
    }

    /// Reads a block's base from the device and verifies it.
    fn base(&self, block: Block, out: &mut [u8]) -> Result<(), ReadError> {
        match block {
            Block::Hole | Block::Unwritten { .. } => {
                out.fill(0);
                Ok(())
            }
            Block::Lost => Err(ReadError::Corrupt),
            Block::Data { at, crc, .. } => {
                self.device
                    .read_at(self.extents_at + at * BLOCK, out)
                    .map_err(ReadError::Io)?;
                if crc32fast::hash(out) == crc {
                    Ok(())
                } else {
                    Err(ReadError::Corrupt)
                }
            }
        }
    }

    /// The merged contents of a block.
    pub(super) fn merge(&self, resolved: &Resolved) -> Result<Bytes, ReadError> {
        if resolved.bytes_cover() {
            return Ok(resolved.contents(None));
        }
        let mut base = vec![0; BLOCK as usize];
        self.base(resolved.base, &mut base)?;
        Ok(resolved.contents(Some(&base)))
    }

    /// What the blocks of a byte range are as of `at`.
    pub(super) fn plan(
        &self,
        pending: &Pending,
        object: Object,
        offset: u64,
        len: usize,
        at: Seq,
    ) -> Result<ReadPlan, StoreError> {
        let first = offset / BLOCK;
        let last = (offset + len as u64).div_ceil(BLOCK);
        let touched = pending.touches(object);
        let mut chunk = None;
        let blocks = (first..last)
            .map(|block| {
                let block = block as u32;
                if touched {
                    return self.resolve(pending, object, block, at, NEWEST);
                }
                let number = block / CHUNK_BLOCKS;
                let blocks = match chunk {
                    Some((known, blocks)) if known == number => blocks,
                    _ => chunk.insert((number, self.chunk(object, number)?)).1,
                };
                Ok(Resolved {
                    base: blocks[(block % CHUNK_BLOCKS) as usize],
                    bytes: Vec::new(),
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(ReadPlan {
            begins: offset == 0,
            blocks,
            skip: (offset - first * BLOCK) as usize,
            len,
        })
    }
}

/// Bytes fetched with the beginning of an object: what follows is its rest, or files written right after it.
const READ_AHEAD: u64 = 128 << 10;

/// Unit in which other small reads fetch what the page cache lacks: a medium takes hardly longer for it than for one
/// block, and what was written together is often read together.
const READ_AROUND: u64 = 16 << 10;

/// The blocks of a read.
pub(super) struct ReadPlan {
    /// Whether it is a read of an object's beginning.
    begins: bool,
    blocks: Vec<Resolved>,
    skip: usize,
    len: usize,
}

/// A run of blocks to be read: index of the first in the plan, physical block, crcs.
struct Fetch {
    first: usize,
    at: u64,
    crcs: Vec<u32>,
}

impl ReadPlan {
    fn fetches(&self) -> Result<Vec<Fetch>, ReadError> {
        let mut fetches: Vec<Fetch> = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            if block.bytes_cover() {
                continue;
            }
            match block.base {
                Block::Hole | Block::Unwritten { .. } => {}
                Block::Lost => return Err(ReadError::Corrupt),
                Block::Data { at, crc, .. } => match fetches.last_mut() {
                    Some(last)
                        if last.first + last.crcs.len() == index
                            && last.at + last.crcs.len() as u64 == at =>
                    {
                        last.crcs.push(crc);
                    }
                    _ => fetches.push(Fetch {
                        first: index,
                        at,
                        crcs: vec![crc],
                    }),
                },
            }
        }
        Ok(fetches)
    }

    /// Whether the device need not be asked for much: better read at once through the page cache.
    pub(super) fn is_small(&self) -> bool {
        self.blocks.len() < 16
    }

    /// Reads through the page cache.
    pub(super) fn read_now(
        &self,
        device: &dyn Device,
        extents_at: u64,
    ) -> Result<Bytes, ReadError> {
        let read = self.read_by(extents_at, |at, part| {
            device.read_at(at, part).map(|()| true)
        });
        Ok(read?.unwrap_or_default())
    }

    /// Reads what the page cache has; `None` if something is missing there. A quick device is waited for if the caller
    /// has nothing else to do.
    pub(super) fn try_read(
        &self,
        device: &dyn Device,
        extents_at: u64,
        idle: bool,
    ) -> Result<Option<Bytes>, ReadError> {
        self.read_by(extents_at, |at, part| {
            let around = match self.begins {
                true => at..at + READ_AHEAD,
                false => at / READ_AROUND * READ_AROUND..(at + 1).next_multiple_of(READ_AROUND),
            };
            device.read_soon(at, part, idle, around)
        })
    }

    fn read_by(
        &self,
        extents_at: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<bool>,
    ) -> Result<Option<Bytes>, ReadError> {
        let mut out = BytesMut::zeroed(self.blocks.len() * BLOCK as usize);
        for fetch in self.fetches()? {
            let start = fetch.first * BLOCK as usize;
            let part = &mut out[start..start + fetch.crcs.len() * BLOCK as usize];
            if !read(extents_at + fetch.at * BLOCK, part).map_err(ReadError::Io)? {
                return Ok(None);
            }
            verify(part, &fetch.crcs)?;
        }
        Ok(Some(self.finish(out)))
    }

    fn finish(&self, mut out: BytesMut) -> Bytes {
        for (index, block) in self.blocks.iter().enumerate() {
            if !block.bytes.is_empty() {
                let start = index * BLOCK as usize;
                block.overlay(&mut out[start..start + BLOCK as usize]);
            }
        }
        out.freeze().slice(self.skip..self.skip + self.len)
    }

    /// Reads without waiting, much past the page cache and little through it; `done` is called from another thread. `pin`
    /// keeps the blocks until then.
    pub(super) fn start(
        self,
        device: &dyn Device,
        extents_at: u64,
        pin: ReadPin,
        done: Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>,
    ) {
        let fetches = match self.fetches() {
            Ok(fetches) => fetches,
            Err(err) => return done(Err(err)),
        };
        if fetches.is_empty() {
            let out = BytesMut::zeroed(self.blocks.len() * BLOCK as usize);
            return done(Ok(self.finish(out)));
        }
        let whole = fetches.len() == 1
            && fetches[0].crcs.len() == self.blocks.len()
            && self.blocks.iter().all(|block| block.bytes.is_empty());
        let small = self.is_small();
        let left = fetches.len();
        let shared = Arc::new(Mutex::new(Assembly {
            parts: Vec::new(),
            left,
            failed: None,
            done: Some(done),
        }));
        let plan = Arc::new(self);
        for fetch in fetches {
            let (shared, plan, pin) = (shared.clone(), plan.clone(), pin.clone());
            let len = fetch.crcs.len() * BLOCK as usize;
            let at = extents_at + fetch.at * BLOCK;
            let done: Done<Bytes> = Box::new(move |result| {
                let result = result
                    .map_err(ReadError::Io)
                    .and_then(|data| verify(&data, &fetch.crcs).map(|()| data));
                drop(pin);
                Assembly::arrived(&shared, &plan, fetch.first, whole, result);
            });
            match small {
                true => device.start_small_read(at, len, done),
                false => device.start_read(at, len, done),
            }
        }
    }
}

struct Assembly {
    parts: Vec<(usize, Bytes)>,
    left: usize,
    failed: Option<ReadError>,
    done: Option<Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>>,
}

impl Assembly {
    fn arrived(
        shared: &Mutex<Self>,
        plan: &ReadPlan,
        first: usize,
        whole: bool,
        result: Result<Bytes, ReadError>,
    ) {
        let mut assembly = shared.lock();
        assembly.left -= 1;
        match result {
            Ok(data) => assembly.parts.push((first, data)),
            Err(err) => assembly.failed = Some(err),
        }
        if assembly.left > 0 {
            return;
        }
        let (Some(done), parts, failed) = (
            assembly.done.take(),
            std::mem::take(&mut assembly.parts),
            assembly.failed.take(),
        ) else {
            return;
        };
        drop(assembly);
        if let Some(err) = failed {
            return done(Err(err));
        }
        if whole && let [(_, data)] = &parts[..] {
            return done(Ok(data.slice(plan.skip..plan.skip + plan.len)));
        }
        let mut out = BytesMut::zeroed(plan.blocks.len() * BLOCK as usize);
        for (first, data) in parts {
            let start = first * BLOCK as usize;
            out[start..start + data.len()].copy_from_slice(&data);
        }
        done(Ok(plan.finish(out)));
    }
}

fn verify(data: &[u8], crcs: &[u32]) -> Result<(), ReadError> {
    let sound = data.len() == crcs.len() * BLOCK as usize
        && data
            .chunks_exact(BLOCK as usize)
            .zip(crcs)
            .all(|(block, crc)| crc32fast::hash(block) == *crc);
    if sound {
        Ok(())
    } else {
        Err(ReadError::Corrupt)
    }
}

/// Reads staged blocks and compares their checksums.
pub(super) fn staged_are_sound(
    device: &dyn Device,
    extents_at: u64,
    blocks: &[super::StagedBlock],
) -> io::Result<bool> {
    let mut data = vec![0; BLOCK as usize];
    for block in blocks {
        device.read_at(extents_at + block.at * BLOCK, &mut data)?;
        if crc32fast::hash(&data) != block.crc {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Chunks of an object that the tree or the pending map may have, in order, from `first` on.
pub(super) fn chunks_of(
    reader: &Reader<'_>,
    pending: &Pending,
    object: Object,
    first: u32,
) -> Result<BTreeSet<u32>, StoreError> {
    let mut chunks: BTreeSet<u32> = reader.chunks_from(object, first)?.into_iter().collect();
    if pending.touches(object) {
        chunks.extend(first..pending.last_block(object).div_ceil(CHUNK_BLOCKS).max(first));
    }
    Ok(chunks)
}
