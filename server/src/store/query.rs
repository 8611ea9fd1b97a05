//! What the tree and the pending map say, as of a position.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::entry::Object;
use mortar_protocol::ids::{InodeId, Seq};
use mortar_protocol::limits::BLOCK;

use super::extents::{self, CHUNK_BLOCKS};
use super::read::{self, Reader};
use super::{ReadError, Store, StoreError, pending};

impl Store {
    pub(super) fn reader(&self) -> Result<Reader<'_>, StoreError> {
        Ok(Reader::new(
            self.tree.snapshot()?,
            &*self.device,
            self.extents_at(),
        ))
    }

    /// The record under `key` as of `at`.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn get(&self, key: &[u8], at: Seq) -> Result<Option<Bytes>, StoreError> {
        match self.pending.get(key, at) {
            Some(value) => Ok(value),
            None => Ok(self.tree.snapshot()?.get(key)?),
        }
    }

    /// Calls `f` for the records from `from` up to, not including, `to`, as of `at`, in order, until it breaks.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        at: Seq,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut over: VecDeque<(Bytes, Option<Bytes>)> = VecDeque::new();
        self.pending.range_of(from, to, at, &mut |key, value| {
            over.push_back((key.clone(), value.cloned()));
            ControlFlow::Continue(())
        });
        let mut stopped = false;
        self.tree.snapshot()?.range(from, to, &mut |key, value| {
            while let Some((pending, _)) = over.front() {
                if &pending[..] >= key {
                    break;
                }
                if let Some((pending, Some(value))) = over.pop_front()
                    && f(&pending, &value).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match over.front() {
                Some((pending, _)) if &pending[..] == key => match over.pop_front() {
                    Some((_, Some(value))) => f(key, &value),
                    _ => ControlFlow::Continue(()),
                },
                _ => f(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        while !stopped && let Some((key, value)) = over.pop_front() {
            stopped = value.is_some_and(|value| f(&key, &value).is_break());
        }
        Ok(())
    }

    /// Reads data as of `at`; holes read as zeros. A small read that the page cache can answer is done before this
    /// returns; so is one that a quick device can answer, if the caller is `idle`: has nothing else to do meanwhile.
    pub fn start_read(
        &self,
        (object, offset, len): (Object, u64, usize),
        at: Seq,
        idle: bool,
        done: Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>,
    ) {
        let extents_at = self.extents_at();
        let plan = self
            .reader()
            .and_then(|reader| reader.plan(&self.pending, object, offset, len, at));
        let plan = match plan {
            Ok(plan) => plan,
            Err(err) => return done(Err(ReadError::Metadata(err))),
        };
        if plan.is_small() {
            match plan.try_read(&*self.device, extents_at, idle) {
                Ok(Some(data)) => return done(Ok(data)),
                Ok(None) => {}
                Err(error) => return done(Err(error)),
            }
        }
        let pin = self.alloc.lock().pin();
        plan.start(&*self.device, extents_at, pin, done);
    }

    /// Reads data as of `at` through the page cache.
    ///
    /// # Errors
    /// If a block fails its checksum or the device fails.
    pub fn read_now(
        &self,
        object: Object,
        offset: u64,
        len: usize,
        at: Seq,
    ) -> Result<Bytes, ReadError> {
        let reader = self.reader().map_err(ReadError::Metadata)?;
        let plan = reader
            .plan(&self.pending, object, offset, len, at)
            .map_err(ReadError::Metadata)?;
        plan.read_now(&*self.device, self.extents_at())
    }

    /// Blocks of 4 KiB that an object takes within a range (`len` `u64::MAX`: to its end), as of `at`.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn allocated(
        &self,
        object: Object,
        offset: u64,
        len: u64,
        at: Seq,
    ) -> Result<u64, StoreError> {
        let reader = self.reader()?;
        let from = offset / BLOCK;
        let to = if len == u64::MAX {
            u64::from(u32::MAX)
        } else {
            (offset + len).div_ceil(BLOCK)
        };
        let first = (from / u64::from(CHUNK_BLOCKS)) as u32;
        let last = to.div_ceil(u64::from(CHUNK_BLOCKS));
        let chunks = if last - u64::from(first) <= 4 {
            (first..last as u32).collect()
        } else {
            read::chunks_of(&reader, &self.pending, object, first)?
        };
        let touched = self.pending.touches(object);
        let mut count = 0;
        for chunk in chunks
            .into_iter()
            .take_while(|chunk| u64::from(*chunk) < last)
        {
            let base = reader.chunk(object, chunk)?;
            for (bit, block) in base.iter().enumerate() {
                let number = u64::from(chunk) * u64::from(CHUNK_BLOCKS) + bit as u64;
                if number < from || number >= to {
                    continue;
                }
                count += u64::from(if touched {
                    reader
                        .resolve(&self.pending, object, number as u32, at, pending::NEWEST)?
                        .is_allocated()
                } else {
                    *block != extents::Block::Hole
                });
            }
        }
        Ok(count)
    }

    /// Offset of the next data (or, with `hole`, of the next hole) at or behind `offset`; `None` if only holes follow
    /// (a hole is always found: behind the last data at the latest).
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn seek(
        &self,
        object: Object,
        offset: u64,
        hole: bool,
        at: Seq,
    ) -> Result<Option<u64>, StoreError> {
        let reader = self.reader()?;
        let first = offset / BLOCK;
        let mut next = first;
        for chunk in read::chunks_of(
            &reader,
            &self.pending,
            object,
            (first / u64::from(CHUNK_BLOCKS)) as u32,
        )? {
            let start = u64::from(chunk) * u64::from(CHUNK_BLOCKS);
            if hole && start > next {
                return Ok(Some(offset.max(next * BLOCK))); // a gap between chunks
            }
            for number in start.max(first)..start + u64::from(CHUNK_BLOCKS) {
                let block =
                    reader.resolve(&self.pending, object, number as u32, at, pending::NEWEST)?;
                if block.is_zero() == hole {
                    return Ok(Some(offset.max(number * BLOCK)));
                }
                next = number + 1;
            }
        }
        Ok(hole.then(|| offset.max(next * BLOCK)))
    }

    /// The next shard of a file behind `shard` of which anything is stored or pending (as of any position).
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn next_shard(&self, id: InodeId, shard: u32) -> Result<Option<u32>, StoreError> {
        let Some(shard) = shard.checked_add(1) else {
            return Ok(None);
        };
        let (first, last) = (
            Object { id, shard },
            Object {
                id,
                shard: u32::MAX,
            },
        );
        let mut found = self.pending.next_object(first, last);
        let (from, to) = (extents::key(first, 0), extents::key(last, u32::MAX));
        self.tree.snapshot()?.range(&from, &to, &mut |key, _| {
            let next = extents::parse_key(key).map(|(object, _)| object.shard);
            found = found.into_iter().chain(next).min();
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}
