//! The pending map: the effects of entries that are written but not applied to the tree yet.
//!
//! Several versions of a record or block may be pending; a look-up names the newest [`Seq`] it wants to see. Dropping a
//! tail of the log means dropping what is above a position; the tree below never has to be undone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, Object};
use mortar_protocol::ids::{Seq, StageId};
use mortar_protocol::limits::BLOCK;

/// One block of a stage as it lies on this device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StagedBlock {
    /// Physical block.
    pub at: u64,
    /// crc32 of its contents.
    pub crc: u32,
}

/// What happens to one block.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Bytes at an offset within the block.
    Bytes(u16, Bytes),
    /// Zeros at an offset within the block, unless it reads as zeros anyway: a hole stays one.
    Zeros(u16, Bytes),
    /// The whole block is a staged one.
    Staged(StagedBlock),
    /// The whole block becomes a hole.
    Hole,
    /// A hole becomes an unwritten block.
    Reserve,
    /// Whatever it is becomes an unwritten block.
    Zero,
    /// The whole block becomes what another was at that moment.
    Share(Object, u32),
}

impl Op {
    fn replaces_all(&self) -> bool {
        match self {
            Self::Bytes(start, data) => *start == 0 && data.len() == BLOCK as usize,
            Self::Staged(_) | Self::Hole | Self::Share(..) => true,
            Self::Zeros(..) | Self::Reserve | Self::Zero => false,
        }
    }
}

/// An op with its place in the order of all pending ones.
#[derive(Clone, Debug)]
struct Step {
    seq: Seq,
    order: u64,
    op: Op,
}

/// An op over a range of whole blocks.
#[derive(Clone, Debug)]
struct Range {
    step: Step,
    from: u32,
    /// First block after it; `u32::MAX`: to the end.
    to: u32,
    /// For [`Op::Share`]: the source's block that belongs to `from`.
    shift: u32,
}

#[derive(Default, Debug)]
struct PendingObject {
    blocks: BTreeMap<u32, Vec<Step>>,
    ranges: Vec<Range>,
}

/// Steps of one block, oldest first, ready to be laid over what the tree has.
pub(super) type Steps = Vec<(u64, Op)>;

/// The map.
#[derive(Default, Debug)]
pub(super) struct Pending {
    records: BTreeMap<Bytes, Vec<(Seq, Option<Bytes>)>>,
    objects: BTreeMap<Object, PendingObject>,
    order: u64,
    bytes: usize,
}

/// Newest of everything.
pub(super) const NEWEST: u64 = u64::MAX;

impl Pending {
    /// Bytes held, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes an entry's effects in. `stage` gives the blocks of a stage on this device.
    pub(super) fn add(
        &mut self,
        entry: &Entry,
        stage: impl Fn(StageId) -> Option<Arc<[StagedBlock]>>,
    ) {
        let seq = entry.pos.seq;
        self.bytes += entry.body.len() + 64;
        for effect in &entry.effects {
            self.order += 1;
            match effect {
                Effect::Put { key, value } => self.record(seq, key, Some(value.clone())),
                Effect::Del { key } => self.record(seq, key, None),
                Effect::Write {
                    object,
                    offset,
                    at,
                    len,
                } => {
                    self.write(seq, *object, *offset, &entry.bytes(*at, *len));
                }
                Effect::Attach {
                    object,
                    offset,
                    stage: id,
                    ..
                } => {
                    let first = (offset / BLOCK) as u32;
                    for (n, block) in stage(*id)
                        .iter()
                        .flat_map(|blocks| blocks.iter())
                        .enumerate()
                    {
                        self.step(seq, *object, first + n as u32, Op::Staged(*block));
                    }
                }
                Effect::Punch {
                    object,
                    offset,
                    len,
                } => self.punch(seq, *object, *offset, *len),
                Effect::Reserve {
                    object,
                    offset,
                    len,
                    zero,
                } => {
                    self.reserve(seq, *object, *offset, *len, *zero);
                }
                Effect::Share {
                    from,
                    from_offset,
                    object,
                    offset,
                    len,
                } => {
                    let first = (offset / BLOCK) as u32;
                    let count = (len / BLOCK) as u32;
                    let op = Op::Share(*from, 0);
                    self.range(
                        seq,
                        *object,
                        first,
                        first.saturating_add(count),
                        op,
                        (from_offset / BLOCK) as u32,
                    );
                }
            }
        }
    }

    fn record(&mut self, seq: Seq, key: &Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len) + 64;
        let versions = self.records.entry(key.clone()).or_default();
        match versions.last_mut() {
            Some(last) if last.0 == seq => last.1 = value,
            _ => versions.push((seq, value)),
        }
    }

    fn step(&mut self, seq: Seq, object: Object, block: u32, op: Op) {
        let step = Step {
            seq,
            order: self.order,
            op,
        };
        self.bytes += 48;
        self.objects
            .entry(object)
            .or_default()
            .blocks
            .entry(block)
            .or_default()
            .push(step);
    }

    fn range(&mut self, seq: Seq, object: Object, from: u32, to: u32, op: Op, shift: u32) {
        if from < to {
            self.bytes += 64;
            let step = Step {
                seq,
                order: self.order,
                op,
            };
            self.objects.entry(object).or_default().ranges.push(Range {
                step,
                from,
                to,
                shift,
            });
        }
    }

    fn write(&mut self, seq: Seq, object: Object, offset: u64, data: &Bytes) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let part = (BLOCK as usize - within).min(data.len() - done);
            let op = Op::Bytes(within as u16, data.slice(done..done + part));
            self.step(seq, object, (at / BLOCK) as u32, op);
            done += part;
        }
    }

    fn zero_part(&mut self, seq: Seq, object: Object, from: u64, to: u64) {
        static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        if from < to {
            let data = Bytes::from_static(&ZEROS[..(to - from) as usize]);
            self.step(
                seq,
                object,
                (from / BLOCK) as u32,
                Op::Zeros((from % BLOCK) as u16, data),
            );
        }
    }

    /// Zeroes the unaligned ends of a range in place and gives the whole blocks between them.
    fn whole_blocks(&mut self, seq: Seq, object: Object, offset: u64, len: u64) -> (u32, u32) {
        let first = offset.div_ceil(BLOCK);
        if len == u64::MAX {
            self.zero_part(seq, object, offset, first * BLOCK);
            return (first as u32, u32::MAX);
        }
        let end = offset + len;
        if first * BLOCK >= end {
            // All within one block, or up to its end.
            self.zero_part(seq, object, offset, end);
            return (0, 0);
        }
        self.zero_part(seq, object, offset, first * BLOCK);
        self.zero_part(seq, object, end / BLOCK * BLOCK, end);
        (first as u32, (end / BLOCK) as u32)
    }

    fn punch(&mut self, seq: Seq, object: Object, offset: u64, len: u64) {
        let (from, to) = self.whole_blocks(seq, object, offset, len);
        self.range(seq, object, from, to, Op::Hole, 0);
    }

    fn reserve(&mut self, seq: Seq, object: Object, offset: u64, len: u64, zero: bool) {
        if zero {
            let (from, to) = self.whole_blocks(seq, object, offset, len);
            self.range(seq, object, from, to, Op::Zero, 0);
        }
        self.order += 1;
        let (from, to) = (offset / BLOCK, offset.saturating_add(len).div_ceil(BLOCK));
        self.range(seq, object, from as u32, to as u32, Op::Reserve, 0);
    }

    /// The record's newest pending version as of `at`; the inner `None` says it is removed.
    pub(super) fn get(&self, key: &[u8], at: Seq) -> Option<Option<Bytes>> {
        let versions = self.records.get(key)?;
        versions
            .iter()
            .rev()
            .find(|(seq, _)| *seq <= at)
            .map(|(_, value)| value.clone())
    }

    /// Pending records of a range as of `at`, in order.
    pub(super) fn range_of(
        &self,
        from: &[u8],
        to: &[u8],
        at: Seq,
        f: &mut dyn FnMut(&Bytes, Option<&Bytes>) -> ControlFlow<()>,
    ) {
        use std::ops::Bound::{Excluded, Included};
        if from >= to {
            return;
        }
        for (key, versions) in self
            .records
            .range::<[u8], _>((Included(from), Excluded(to)))
        {
            if let Some((_, value)) = versions.iter().rev().find(|(seq, _)| *seq <= at)
                && f(key, value.as_ref()).is_break()
            {
                return;
            }
        }
    }

    /// Shard of the first object from `first` to `last` of which anything is pending.
    pub(super) fn next_object(&self, first: Object, last: Object) -> Option<u32> {
        let (object, _) = self.objects.range(first..=last).next()?;
        Some(object.shard)
    }

    /// Whether anything of the object is pending.
    pub(super) fn touches(&self, object: Object) -> bool {
        self.objects.contains_key(&object)
    }

    /// Steps of a block with an order below `below` and a seq up to `at`, from the last that replaces all of it on.
    pub(super) fn steps(&self, object: Object, block: u32, at: Seq, below: u64) -> Steps {
        let Some(pending) = self.objects.get(&object) else {
            return Vec::new();
        };
        let mut steps: Steps = Vec::new();
        let fits = |step: &Step| step.seq <= at && step.order < below;
        if let Some(own) = pending.blocks.get(&block) {
            steps.extend(
                own.iter()
                    .filter(|step| fits(step))
                    .map(|step| (step.order, step.op.clone())),
            );
        }
        for range in pending.ranges.iter().filter(|range| fits(&range.step)) {
            if range.from <= block && block < range.to {
                let op = match &range.step.op {
                    Op::Share(object, _) => Op::Share(*object, range.shift + (block - range.from)),
                    op => op.clone(),
                };
                steps.push((range.step.order, op));
            }
        }
        steps.sort_by_key(|(order, _)| *order);
        if let Some(last) = steps.iter().rposition(|(_, op)| op.replaces_all()) {
            steps.drain(..last);
        }
        steps
    }

    /// Whether the first of `steps` makes what lies below irrelevant.
    pub(super) fn covers(steps: &Steps) -> bool {
        steps.first().is_some_and(|(_, op)| op.replaces_all())
    }

    /// Blocks of an object that entries up to `at` touch, as ranges (the end `u32::MAX` is open).
    pub(super) fn touched(&self, at: Seq) -> Vec<(Object, u32, u32)> {
        let mut touched = Vec::new();
        for (object, pending) in &self.objects {
            for (block, steps) in &pending.blocks {
                if steps.iter().any(|step| step.seq <= at) {
                    touched.push((*object, *block, *block + 1));
                }
            }
            for range in pending.ranges.iter().filter(|range| range.step.seq <= at) {
                touched.push((*object, range.from, range.to));
            }
        }
        touched
    }

    /// End of the last pending block of an object (open ranges aside), for listings of data.
    pub(super) fn last_block(&self, object: Object) -> u32 {
        self.objects.get(&object).map_or(0, |pending| {
            let own = pending
                .blocks
                .keys()
                .next_back()
                .map_or(0, |block| block + 1);
            let ranges = pending
                .ranges
                .iter()
                .map(|range| if range.to == u32::MAX { 0 } else { range.to });
            ranges.max().unwrap_or(0).max(own)
        })
    }

    /// Records changed up to `at`: their last value as of it.
    pub(super) fn records_upto(&self, at: Seq) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        self.records.iter().filter_map(move |(key, versions)| {
            let (_, value) = versions.iter().rev().find(|(seq, _)| *seq <= at)?;
            Some((key, value.as_ref()))
        })
    }

    /// Forgets what is in the tree now: everything up to `at`.
    pub(super) fn forget_upto(&mut self, at: Seq, entries: &[Arc<Entry>]) {
        for entry in entries {
            for effect in &entry.effects {
                if let Effect::Put { key, .. } | Effect::Del { key } = effect
                    && let Some(versions) = self.records.get_mut(key)
                {
                    versions.retain(|(seq, _)| *seq > at);
                    if versions.is_empty() {
                        self.records.remove(key);
                    }
                }
            }
        }
        self.objects.retain(|_, pending| {
            pending.blocks.retain(|_, steps| {
                steps.retain(|step| step.seq > at);
                !steps.is_empty()
            });
            pending.ranges.retain(|range| range.step.seq > at);
            !(pending.blocks.is_empty() && pending.ranges.is_empty())
        });
    }

    /// Sets the number of bytes held, after entries were forgotten.
    pub(super) fn recount(&mut self, bytes: usize) {
        self.bytes = bytes;
    }

    /// About how many bytes an entry takes here.
    pub(super) fn weight(entry: &Entry) -> usize {
        let effects: usize = entry
            .effects
            .iter()
            .map(|effect| match effect {
                Effect::Put { key, value } => key.len() + value.len() + 64,
                Effect::Attach { crcs, .. } => 48 * crcs.len(),
                _ => 96,
            })
            .sum();
        entry.body.len() + 64 + effects
    }
}
