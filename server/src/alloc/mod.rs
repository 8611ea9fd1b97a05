//! Space of the extent area: which 4 KiB blocks are free.
//!
//! Two things are kept apart: what the *tree* refers to (saved at checkpoints, one bitmap record per segment of
//! 128 MiB) and what is *busy* in memory: that, stages not attached yet, chunks of the tree itself, and freed blocks
//! that the last durable checkpoint still refers to. Blocks are handed out only if they are not busy, so a block that
//! was freed is used again only after a durable checkpoint without it, and after every read that may still look at it.
//! While another brick may lack entries that the log keeps, blocks are kept back longer: such an entry may name them.
//!
//! Whole chunks are set aside for the tree, which data never touches: a full brick has no 16 free blocks in a row, but
//! the tree must still be able to grow, also to remove something.

mod regions;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

pub use regions::REGION_BLOCKS;
use regions::Regions;

/// Blocks of a segment (128 MiB).
pub const SEGMENT_BLOCKS: u64 = 32_768;
/// Blocks of a metadata chunk (64 KiB).
pub const CHUNK_BLOCKS: u32 = 16;
/// Longest run handed out, in blocks (1 MiB).
pub const MAX_RUN: u32 = 256;

const WORDS: usize = (SEGMENT_BLOCKS / 64) as usize;

/// A contiguous range of blocks of the extent area.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
pub struct Run {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub len: u32,
}

/// A bitmap over the extent area.
#[derive(Clone)]
struct Bitmap {
    words: Vec<u64>,
    set: u64,
}

impl Bitmap {
    fn new(blocks: u64) -> Self {
        Self {
            words: vec![0; blocks.div_ceil(64) as usize],
            set: 0,
        }
    }

    fn get(&self, block: u64) -> bool {
        self.words
            .get((block / 64) as usize)
            .is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Sets a bit; tells whether that changed it.
    fn put(&mut self, block: u64, value: bool) -> bool {
        let Some(word) = self.words.get_mut((block / 64) as usize) else {
            return false;
        };
        let bit = 1 << (block % 64);
        let changed = (*word & bit != 0) != value;
        if changed {
            *word ^= bit;
            match value {
                true => self.set += 1,
                false => self.set -= 1,
            }
        }
        changed
    }

    /// Next clear bit at or after `from`, below `end`.
    fn next_clear(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let word = !self.words[(at / 64) as usize] >> (at % 64);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

/// Keeps the blocks that a read looks at from being used again; give it back by dropping it.
#[derive(Clone, Debug)]
pub struct ReadPin {
    _token: Arc<()>,
}

/// What the tree refers to no more: blocks of files, and its own chunks.
#[derive(Default)]
struct Freed {
    blocks: Vec<Run>,
    chunks: Vec<Run>,
}

/// The allocator of one brick.
pub struct Allocator {
    blocks: u64,
    /// Blocks of the tree's chunks.
    tree_blocks: u64,
    tree: Bitmap,
    busy: Bitmap,
    dirty: Vec<bool>,
    /// Freed since the last checkpoint began.
    freed: Freed,
    /// Freed before the checkpoint that runs.
    freeing: Freed,
    /// Free on the medium, but entries of the log up to a number may name them: oldest first.
    kept: VecDeque<(u64, Vec<Run>)>,
    /// Free on the medium, but reads that began earlier may still look at them.
    limbo: Vec<(Arc<()>, Vec<Run>)>,
    waiting: u64,
    token: Arc<()>,
    cursor: u64,
    /// Chunks set aside for the tree, busy, by first block.
    aside: BTreeSet<u64>,
    /// Free blocks whose space is being given back to the host, busy.
    returning: u64,
    /// What has space on the host, where that is a question.
    regions: Option<Regions>,
}

impl Allocator {
    /// An allocator over `blocks` blocks, all free.
    pub fn new(blocks: u64) -> Self {
        let segments = blocks.div_ceil(SEGMENT_BLOCKS) as usize;
        Self {
            blocks,
            tree_blocks: 0,
            tree: Bitmap::new(blocks),
            busy: Bitmap::new(blocks),
            dirty: vec![false; segments],
            freed: Freed::default(),
            freeing: Freed::default(),
            kept: VecDeque::new(),
            limbo: Vec::new(),
            waiting: 0,
            token: Arc::new(()),
            cursor: 0,
            aside: BTreeSet::new(),
            returning: 0,
            regions: None,
        }
    }

    /// From now on data goes only where the host has promised space. Before anything is loaded.
    pub fn track_host(&mut self) {
        self.regions = Some(Regions::new(self.blocks));
    }

    fn set_busy(&mut self, block: u64, busy: bool) {
        if self.busy.put(block, busy)
            && let Some(regions) = &mut self.regions
        {
            regions.changed(block, busy);
        }
    }

    /// Blocks that are set aside for the tree.
    pub fn aside(&self) -> u64 {
        self.aside.len() as u64 * u64::from(CHUNK_BLOCKS)
    }

    /// Blocks that data can be written to now: free, not set aside, and with space on the host.
    pub fn ready(&self) -> u64 {
        match &self.regions {
            Some(regions) => regions.backed_free(),
            None => self.blocks - self.busy.set,
        }
    }

    /// Regions for which the host is to promise space next, as (first, number), at most `most`.
    pub fn next_unbacked(&self, most: usize) -> Option<(usize, usize)> {
        self.regions.as_ref()?.next_unbacked(most)
    }

    /// Whether the host has promised space for a block.
    pub fn is_backed(&self, block: u64) -> bool {
        self.regions
            .as_ref()
            .is_none_or(|regions| regions.is_backed(block))
    }

    /// The host has promised space for these regions.
    pub fn back(&mut self, first: usize, count: usize) {
        if let Some(regions) = &mut self.regions {
            regions.back(first, count);
        }
    }

    /// Regions whose space can be given back to the host, as long as `keep` free blocks stay ready. They are not used
    /// until [`Allocator::returned`].
    pub fn take_free_regions(&mut self, keep: u64) -> Vec<usize> {
        self.sweep();
        let regions = self.regions.as_mut();
        let taken = regions.map(|regions| regions.take_free(keep));
        let taken = taken.unwrap_or_default();
        self.returning += self.mark_regions(&taken, true);
        taken
    }

    /// Free blocks whose space is being given back to the host.
    pub fn returning(&self) -> u64 {
        self.returning
    }

    /// The space of these regions has been given back.
    pub fn returned(&mut self, list: &[usize]) {
        self.returning -= self.mark_regions(list, false);
        if let Some(regions) = &mut self.regions {
            regions.returned(list);
        }
    }

    fn mark_regions(&mut self, list: &[usize], busy: bool) -> u64 {
        let before = self.busy.set;
        for region in list {
            let first = *region as u64 * REGION_BLOCKS;
            for block in first..self.blocks.min(first + REGION_BLOCKS) {
                self.busy.put(block, busy);
            }
        }
        self.busy.set.abs_diff(before)
    }

    /// Up to which region the host has promised space.
    pub fn backed_end(&self) -> usize {
        let regions = self.regions.as_ref();
        regions.map_or(0, |regions| (regions.end() / REGION_BLOCKS) as usize)
    }

    /// The topmost whole free chunk.
    pub fn free_chunk_at_top(&self) -> Option<u64> {
        let per_word = 64 / CHUNK_BLOCKS;
        let words = self.busy.words.iter().enumerate().rev();
        for (at, word) in words.filter(|(_, word)| **word != u64::MAX) {
            for part in (0..per_word).rev() {
                let start = at as u64 * 64 + u64::from(part * CHUNK_BLOCKS);
                let chunk = Run {
                    start,
                    len: CHUNK_BLOCKS,
                };
                if word >> (part * CHUNK_BLOCKS) & 0xffff == 0 && self.contains(chunk) {
                    return Some(start);
                }
            }
        }
        None
    }

    /// Sets a free chunk aside for the tree.
    pub fn set_aside(&mut self, start: u64) {
        let len = CHUNK_BLOCKS;
        self.hold(Run { start, len });
        self.aside.insert(start);
    }

    /// Number of blocks in all.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks that can be handed out now, to data or to the tree.
    pub fn free_now(&self) -> u64 {
        self.blocks - self.busy.set + self.aside() + self.returning
    }

    /// Blocks that can be handed out now, after the next checkpoint, or once the log names them no more.
    pub fn free(&self) -> u64 {
        self.free_now() + self.waiting
    }

    /// Blocks that wait for the next checkpoint, or for reads.
    pub fn freed(&self) -> u64 {
        self.waiting - self.kept()
    }

    /// Blocks that are kept back because entries of the log may name them.
    pub fn kept(&self) -> u64 {
        let runs = self.kept.iter().flat_map(|(_, runs)| runs);
        runs.map(|run| u64::from(run.len)).sum()
    }

    /// Takes a saved segment bitmap (4 KiB) into account.
    ///
    /// # Errors
    /// If it is no bitmap of that segment.
    pub fn load(&mut self, segment: u32, bitmap: &[u8]) -> Result<(), DamagedBitmap> {
        let first = u64::from(segment) * SEGMENT_BLOCKS;
        if bitmap.len() != WORDS * 8 || first >= self.blocks {
            return Err(DamagedBitmap(segment));
        }
        for (byte_at, byte) in bitmap.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let block = first + byte_at as u64 * 8 + bit;
                if block >= self.blocks {
                    return Err(DamagedBitmap(segment));
                }
                self.tree.put(block, true);
                self.set_busy(block, true);
            }
        }
        Ok(())
    }

    /// Hands out `blocks` blocks in as few runs as it finds (of up to [`MAX_RUN`] each); nothing if they are not there.
    pub fn allocate(&mut self, blocks: u32) -> Option<Vec<Run>> {
        self.sweep();
        if u64::from(blocks) > self.ready() {
            return None;
        }
        let end = self.regions.as_ref().map_or(self.blocks, Regions::end);
        let mut runs = Vec::new();
        let mut left = blocks;
        let mut wrapped = false;
        while left > 0 {
            let Some(start) = self.busy.next_clear(self.cursor, end) else {
                if wrapped {
                    runs.iter().for_each(|run| self.release(*run));
                    return None;
                }
                wrapped = true;
                self.cursor = 0;
                continue;
            };
            let usable = self
                .regions
                .as_ref()
                .map_or(start, |regions| regions.skip(start));
            if usable != start {
                self.cursor = usable;
                continue;
            }
            let mut len = 0;
            while len < left.min(MAX_RUN)
                && start + u64::from(len) < end
                && !self.busy.get(start + u64::from(len))
                && self.is_backed(start + u64::from(len))
            {
                len += 1;
            }
            let run = Run { start, len };
            self.mark(run, true);
            self.cursor = start + u64::from(len);
            runs.push(run);
            left -= len;
        }
        Some(runs)
    }

    /// Hands out one aligned chunk of 16 blocks, of those set aside if there are any; gives its first block.
    pub fn allocate_chunk(&mut self) -> Option<u64> {
        self.sweep();
        if let Some(start) = self.aside.pop_last() {
            self.tree_blocks += u64::from(CHUNK_BLOCKS);
            return Some(start);
        }
        let start = self.free_chunk_at_top()?;
        self.hold_chunk(start);
        Some(start)
    }

    fn mark(&mut self, run: Run, busy: bool) {
        for block in run.start..run.start + u64::from(run.len) {
            self.set_busy(block, busy);
        }
    }

    /// Marks a chunk of the tree busy.
    pub fn hold_chunk(&mut self, start: u64) {
        self.tree_blocks += u64::from(CHUNK_BLOCKS);
        self.hold(Run {
            start,
            len: CHUNK_BLOCKS,
        });
    }

    /// Blocks that the tree's chunks take.
    pub fn tree_blocks(&self) -> u64 {
        self.tree_blocks
    }

    /// Marks blocks busy that something outside the tree refers to (a stage of the WAL).
    pub fn hold(&mut self, run: Run) {
        self.mark(run, true);
    }

    /// Whether all of a run lies within the area.
    pub fn contains(&self, run: Run) -> bool {
        run.start
            .checked_add(u64::from(run.len))
            .is_some_and(|end| end <= self.blocks)
    }

    /// The tree refers to these blocks from now on.
    pub fn attach(&mut self, run: Run) {
        for block in run.start..run.start + u64::from(run.len) {
            self.tree.put(block, true);
            self.set_busy(block, true);
            self.dirty[(block / SEGMENT_BLOCKS) as usize] = true;
        }
    }

    /// Whether the tree refers to a block.
    pub fn attached(&self, block: u64) -> bool {
        self.tree.get(block)
    }

    /// The tree refers to these blocks no more; they become free with the next durable checkpoint.
    pub fn free_run(&mut self, run: Run) {
        for block in run.start..run.start + u64::from(run.len) {
            self.tree.put(block, false);
            if let Some(dirty) = self.dirty.get_mut((block / SEGMENT_BLOCKS) as usize) {
                *dirty = true;
            }
        }
        self.waiting += u64::from(run.len);
        self.freed.blocks.push(run);
    }

    /// A chunk of the tree is used no more; it becomes free with the next durable checkpoint.
    pub fn free_chunk(&mut self, start: u64) {
        self.waiting += u64::from(CHUNK_BLOCKS);
        self.tree_blocks = self.tree_blocks.saturating_sub(u64::from(CHUNK_BLOCKS));
        self.freed.chunks.push(Run {
            start,
            len: CHUNK_BLOCKS,
        });
    }

    /// Gives back blocks that were never attached: free at once.
    pub fn release(&mut self, run: Run) {
        self.mark(run, false);
    }

    /// Begins a checkpoint: gives the segments whose bitmaps changed, as (number, bitmap).
    pub fn begin_checkpoint(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.freeing.blocks.append(&mut self.freed.blocks);
        self.freeing.chunks.append(&mut self.freed.chunks);
        let mut saved = Vec::new();
        for (segment, dirty) in self.dirty.iter_mut().enumerate() {
            if std::mem::take(dirty) {
                let first = segment * WORDS;
                let mut bitmap: Vec<u8> = self
                    .tree
                    .words
                    .iter()
                    .skip(first)
                    .take(WORDS)
                    .flat_map(|word| word.to_le_bytes())
                    .collect();
                bitmap.resize(WORDS * 8, 0);
                saved.push((segment as u32, bitmap));
            }
        }
        saved
    }

    /// The checkpoint is durable: what was freed before it began is free. With `keep`, blocks of files are kept back
    /// until [`Allocator::let_go`] of that number: entries of the log up to it may name them.
    pub fn checkpoint_done(&mut self, keep: Option<u64>) {
        let Freed { blocks, mut chunks } = std::mem::take(&mut self.freeing);
        match keep {
            Some(upto) => self.kept.push_back((upto, blocks)),
            None => chunks.extend(blocks),
        }
        self.free_after_reads(chunks);
    }

    /// Frees blocks once all reads that have begun have ended.
    fn free_after_reads(&mut self, runs: Vec<Run>) {
        let token = std::mem::replace(&mut self.token, Arc::new(()));
        self.limbo.push((token, runs));
        self.sweep();
    }

    /// Keeps these blocks back, as far as nothing uses them, until [`Allocator::let_go`] of `upto`. Before anything is
    /// handed out or freed.
    pub fn keep_back(&mut self, blocks: impl Iterator<Item = u64>, upto: u64) {
        let mut runs = Vec::new();
        let end = self.blocks;
        for start in blocks.filter(|block| *block < end) {
            if !self.busy.get(start) {
                self.set_busy(start, true);
                self.waiting += 1;
                runs.push(Run { start, len: 1 });
            }
        }
        self.kept.push_back((upto, runs));
    }

    /// The log names no blocks any more for the sake of entries up to this number: what was kept back for them is free.
    pub fn let_go(&mut self, upto: u64) {
        let kept = self.kept.partition_point(|(last, _)| *last <= upto);
        if kept > 0 {
            let runs = self.kept.drain(..kept).flat_map(|(_, runs)| runs);
            let runs = runs.collect();
            self.free_after_reads(runs);
        }
    }

    /// The blocks freed by a checkpoint whose readers are gone become free.
    fn sweep(&mut self) {
        while let Some((token, _)) = self.limbo.first() {
            if Arc::strong_count(token) > 1 {
                return;
            }
            let (_, runs) = self.limbo.remove(0);
            for run in runs {
                self.waiting -= u64::from(run.len);
                self.mark(run, false);
            }
        }
    }

    /// Keeps every block from being used again until the pin is dropped.
    pub fn pin(&self) -> ReadPin {
        ReadPin {
            _token: self.token.clone(),
        }
    }
}

/// A saved bitmap that does not fit its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the saved bitmap of segment {0} is damaged")]
pub struct DamagedBitmap(pub u32);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn freed_blocks_return_after_the_checkpoint_and_the_readers() {
        let mut alloc = Allocator::new(64);
        let runs = alloc.allocate(64).unwrap();
        runs.iter().for_each(|run| alloc.attach(*run));
        assert_eq!(alloc.allocate(1), None);
        alloc.free_run(Run { start: 5, len: 3 });
        assert_eq!((alloc.free(), alloc.free_now()), (3, 0));
        let pin = alloc.pin();
        alloc.begin_checkpoint();
        alloc.free_run(Run { start: 20, len: 1 });
        alloc.checkpoint_done(None);
        assert_eq!(alloc.allocate(1), None, "a reader may still look");
        drop(pin);
        assert_eq!(alloc.allocate(3).unwrap(), vec![Run { start: 5, len: 3 }]);
        assert_eq!(alloc.allocate(1), None, "freed after the checkpoint began");
    }

    #[test]
    fn what_the_log_names_is_kept_back() {
        let mut alloc = Allocator::new(64);
        let runs = alloc.allocate(64).unwrap();
        runs.iter().for_each(|run| alloc.attach(*run));
        for (at, upto) in [(5, 10), (20, 30)] {
            alloc.free_run(Run { start: at, len: 2 });
            alloc.begin_checkpoint();
            alloc.checkpoint_done(Some(upto));
        }
        assert_eq!((alloc.free(), alloc.free_now(), alloc.kept()), (4, 0, 4));
        alloc.free_run(Run { start: 40, len: 1 });
        assert_eq!((alloc.free(), alloc.freed()), (5, 1));
        alloc.let_go(9);
        assert_eq!(alloc.allocate(1), None);
        alloc.let_go(10);
        assert_eq!(alloc.allocate(2).unwrap(), vec![Run { start: 5, len: 2 }]);
        let pin = alloc.pin();
        alloc.let_go(30);
        assert_eq!((alloc.kept(), alloc.allocate(2)), (0, None));
        drop(pin);
        assert_eq!(alloc.allocate(2).unwrap(), vec![Run { start: 20, len: 2 }]);

        // After a restart: only what nothing uses.
        let mut alloc = Allocator::new(64);
        alloc.hold(Run { start: 0, len: 8 });
        alloc.keep_back([6, 7, 8, 9, 200].into_iter(), 5);
        assert_eq!((alloc.free(), alloc.free_now(), alloc.kept()), (56, 54, 2));
        alloc.let_go(5);
        assert_eq!((alloc.free(), alloc.free_now()), (56, 56));
    }

    #[test]
    fn what_is_set_aside_is_the_trees_alone() {
        let mut alloc = Allocator::new(100);
        for _ in 0..2 {
            let start = alloc.free_chunk_at_top().unwrap();
            alloc.set_aside(start);
        }
        assert_eq!((alloc.free(), alloc.aside(), alloc.ready()), (100, 32, 68));
        assert_eq!(alloc.allocate(69), None);
        let runs = alloc.allocate(68).unwrap();
        runs.iter().for_each(|run| alloc.attach(*run));
        // Every second block is free: no chunk is left but those.
        (0..64)
            .step_by(2)
            .for_each(|start| alloc.free_run(Run { start, len: 1 }));
        alloc.begin_checkpoint();
        alloc.checkpoint_done(None);
        assert_eq!(alloc.free_chunk_at_top(), None);
        assert_eq!(alloc.allocate_chunk(), Some(80));
        assert_eq!(alloc.allocate_chunk(), Some(64));
        assert_eq!(alloc.allocate_chunk(), None);
        assert_eq!((alloc.tree_blocks(), alloc.free()), (32, 32));
    }

    #[test]
    fn data_goes_only_where_the_host_has_space() {
        let mut alloc = Allocator::new(10 * REGION_BLOCKS + 10);
        alloc.track_host();
        assert_eq!(alloc.allocate(1), None);
        assert_eq!(alloc.next_unbacked(3), Some((0, 3)));
        alloc.back(2, 2);
        alloc.back(10, 1);
        assert_eq!(alloc.ready(), 2 * REGION_BLOCKS + 10);
        assert_eq!(alloc.next_unbacked(3), Some((0, 2)));
        let runs = alloc.allocate(2 * REGION_BLOCKS as u32 + 10).unwrap();
        let found: Vec<(u64, u32)> = runs.iter().map(|run| (run.start, run.len)).collect();
        assert_eq!(found, [(512, 256), (768, 256), (2_560, 10)]);
        assert_eq!((alloc.ready(), alloc.allocate(1)), (0, None));
        assert_eq!(alloc.take_free_regions(0), [] as [usize; 0]);
        alloc.release(runs[0]);
        alloc.release(runs[2]);
        assert_eq!(alloc.ready(), 266);
        // The small one may go, both may not.
        assert_eq!(alloc.take_free_regions(256), [10]);
        assert_eq!(alloc.ready(), 256);
        assert_eq!(alloc.take_free_regions(0), [2]);
        assert_eq!((alloc.ready(), alloc.allocate(1)), (0, None));
        assert_eq!(alloc.free(), 9 * REGION_BLOCKS + 10);
        assert_eq!(alloc.free_chunk_at_top(), Some(10 * REGION_BLOCKS - 16));
        alloc.returned(&[2, 10]);
        assert_eq!(alloc.free(), 9 * REGION_BLOCKS + 10);
        assert_eq!(alloc.next_unbacked(10), Some((0, 3)));
        assert_eq!(alloc.take_free_regions(0), [] as [usize; 0]);
    }

    #[test]
    fn chunks_come_from_the_top() {
        let mut alloc = Allocator::new(100);
        assert_eq!(alloc.allocate_chunk(), Some(80));
        assert_eq!(alloc.allocate_chunk(), Some(64));
        assert_eq!(
            alloc
                .allocate(68)
                .unwrap()
                .iter()
                .map(|run| run.len)
                .sum::<u32>(),
            68
        );
    }

    proptest! {
        #[test]
        fn never_hands_out_a_block_twice(ops in proptest::collection::vec((0u8..7, 1u32..40), 1..200)) {
            let mut alloc = Allocator::new(1_000);
            let (mut ours, mut dead, mut dying) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let mut kept: Vec<(u64, BTreeSet<u64>)> = Vec::new();
            for (number, (op, n)) in ops.into_iter().enumerate() {
                match op {
                    0 | 1 => if let Some(runs) = alloc.allocate(n) {
                        for run in runs {
                            for block in run.start..run.start + u64::from(run.len) {
                                prop_assert!(!dead.contains(&block) && !dying.contains(&block));
                                prop_assert!(kept.iter().all(|(_, blocks)| !blocks.contains(&block)));
                                prop_assert!(ours.insert(block), "block {} twice", block);
                            }
                            alloc.attach(run);
                        }
                    },
                    2 => for block in ours.iter().copied().take(n as usize).collect::<Vec<u64>>() {
                        ours.remove(&block);
                        dead.insert(block);
                        alloc.free_run(Run { start: block, len: 1 });
                    },
                    3 => { alloc.begin_checkpoint(); dying.append(&mut dead); }
                    4 => { alloc.checkpoint_done(None); dying.clear(); }
                    5 => {
                        alloc.checkpoint_done(Some(number as u64));
                        kept.push((number as u64, std::mem::take(&mut dying)));
                    }
                    _ => {
                        let upto = (number as u64).saturating_sub(n.into());
                        alloc.let_go(upto);
                        kept.retain(|(last, _)| *last > upto);
                    }
                }
                prop_assert_eq!(alloc.kept(), kept.iter().map(|(_, blocks)| blocks.len() as u64).sum::<u64>());
                prop_assert_eq!(alloc.free(), 1_000 - ours.len() as u64);
            }
            let mut saved = Allocator::new(1_000);
            alloc.dirty.iter_mut().for_each(|dirty| *dirty = true);
            for (segment, bitmap) in alloc.begin_checkpoint() {
                saved.load(segment, &bitmap).unwrap();
            }
            prop_assert_eq!(saved.free_now(), 1_000 - ours.len() as u64);
        }
    }
}
