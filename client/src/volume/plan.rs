//! What a change of a file asks of each set: pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use mortar_protocol::fop::InodeOp;
use mortar_protocol::ids::{InodeId, SetIndex};
use mortar_protocol::limits::{BLOCK, MAX_INLINE, STAGE_MAX, STAGE_MIN};
use mortar_protocol::placement::Layout;

use super::types::FileOp;

/// Most bytes one entry attaches.
const MAX_ATTACHED: usize = 16 << 20;
/// Most operations of one entry.
const MAX_OPS: usize = 1_024;
/// Most shards that one operation may touch.
const MAX_SPANS: u64 = 65_536;

/// One operation on one set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Planned {
    /// Without data.
    Op(InodeOp),
    /// Data that rides in the entry.
    Inline {
        /// Shard.
        shard: u32,
        /// Offset in the shard.
        offset: u64,
        /// Bytes.
        data: Bytes,
    },
    /// Whole blocks that go ahead of the entry.
    Staged {
        /// Shard.
        shard: u32,
        /// Block-aligned offset in the shard.
        offset: u64,
        /// Bytes.
        data: Bytes,
    },
    /// Data for the end of the file.
    Append(Bytes),
}

impl Planned {
    fn inline(&self) -> usize {
        match self {
            Self::Inline { data, .. } | Self::Append(data) => data.len(),
            _ => 0,
        }
    }

    fn attached(&self) -> usize {
        match self {
            Self::Staged { data, .. } => data.len(),
            _ => 0,
        }
    }
}

/// A part of a byte range that lies in one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// Shard.
    pub(super) shard: u32,
    /// Offset in the shard.
    pub(super) offset: u64,
    /// Length.
    pub(super) len: u64,
}

/// The shards of a byte range, in order; `None` if they are too many, or beyond what shards can be numbered.
pub(super) fn spans(offset: u64, len: u64, shard_size: u64) -> Option<Vec<Span>> {
    let end = offset.checked_add(len)?;
    u32::try_from(end.div_ceil(shard_size)).ok()?;
    if len / shard_size > MAX_SPANS {
        return None;
    }
    let mut spans = Vec::new();
    let mut at = offset;
    while at < end {
        let shard = at / shard_size;
        let start = at % shard_size;
        let len = (shard_size - start).min(end - at);
        spans.push(Span {
            shard: shard as u32,
            offset: start,
            len,
        });
        at += len;
    }
    Some(spans)
}

/// Splits what is written to one shard: whole blocks of 64 KiB and more go ahead, the rest rides in the entry.
pub(super) fn pieces(shard: u32, offset: u64, data: &Bytes, out: &mut Vec<Planned>) {
    let end = offset + data.len() as u64;
    let (first, last) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
    let cut = |from: u64, to: u64| data.slice((from - offset) as usize..(to - offset) as usize);
    let mut at = offset;
    let inline = |from: u64, to: u64, out: &mut Vec<Planned>| {
        let mut from = from;
        while from < to {
            let upto = to.min(from + MAX_INLINE as u64);
            out.push(Planned::Inline {
                shard,
                offset: from,
                data: cut(from, upto),
            });
            from = upto;
        }
    };
    if last >= first + STAGE_MIN as u64 {
        inline(at, first, out);
        at = first;
        while last - at >= STAGE_MIN as u64 {
            let upto = last.min(at + STAGE_MAX as u64);
            out.push(Planned::Staged {
                shard,
                offset: at,
                data: cut(at, upto),
            });
            at = upto;
        }
    }
    inline(at, end, out);
}

/// What one run of operations asks: of the inode's set first, of other sets, of the inode's set in the end.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) first: Vec<Planned>,
    pub(super) others: BTreeMap<SetIndex, Vec<Planned>>,
    pub(super) last: Vec<Planned>,
}

/// Whether an operation is about data (the others are about the inode alone).
pub(super) fn is_data(op: &FileOp) -> bool {
    !matches!(
        op,
        FileOp::Set(_) | FileOp::Accessed(_) | FileOp::SetXattr { .. } | FileOp::RemoveXattr { .. }
    )
}

/// Where a file's shards lie.
pub(super) struct Place<'a> {
    pub(super) id: InodeId,
    pub(super) layout: &'a Layout,
    pub(super) shard_size: u64,
}

impl Place<'_> {
    /// The set of the inode.
    pub(super) fn home(&self) -> SetIndex {
        self.layout.inode_set(self.id)
    }

    fn set(&self, shard: u32) -> SetIndex {
        self.layout.shard_set(self.id, shard)
    }

    /// Plans operations: all data operations must come before those about the inode, if other sets are concerned.
    /// `None` if a range goes beyond the largest file.
    pub(super) fn plan(&self, ops: &[FileOp]) -> Option<Plan> {
        let mut plan = Plan::default();
        for op in ops {
            match op {
                FileOp::Write { offset, data } => self.write(&mut plan, *offset, data)?,
                FileOp::Append { data } => plan.first.push(Planned::Append(data.clone())),
                FileOp::Truncate { size } => {
                    let op = InodeOp::Truncate { size: *size };
                    plan.first.push(Planned::Op(op));
                }
                FileOp::Reserve {
                    offset,
                    len,
                    keep_size,
                    zero,
                } => {
                    for span in spans(*offset, *len, self.shard_size)? {
                        let op = InodeOp::Reserve {
                            shard: span.shard,
                            offset: span.offset,
                            len: span.len,
                            zero: *zero,
                        };
                        self.add(&mut plan, span.shard, Planned::Op(op));
                    }
                    if !keep_size {
                        // Last: without space the size stays.
                        let size = offset + len;
                        plan.last.push(Planned::Op(InodeOp::Extend { size }));
                    }
                }
                FileOp::Punch { offset, len } => {
                    for span in spans(*offset, *len, self.shard_size)? {
                        let op = InodeOp::Punch {
                            shard: span.shard,
                            offset: span.offset,
                            len: span.len,
                        };
                        self.add(&mut plan, span.shard, Planned::Op(op));
                    }
                }
                FileOp::Set(set) => {
                    let op = InodeOp::SetAttr(set.clone());
                    plan.last.push(Planned::Op(op));
                }
                FileOp::Accessed(time) => {
                    let op = InodeOp::Accessed { time: *time };
                    plan.last.push(Planned::Op(op));
                }
                FileOp::SetXattr { name, value, mode } => {
                    let op = InodeOp::SetXattr {
                        name: name.clone(),
                        value: value.clone(),
                        mode: *mode,
                    };
                    plan.last.push(Planned::Op(op));
                }
                FileOp::RemoveXattr { name } => {
                    let op = InodeOp::RemoveXattr { name: name.clone() };
                    plan.last.push(Planned::Op(op));
                }
            }
            if plan.others.is_empty() {
                // Everything is one list as long as one set is concerned.
                let mut rest = std::mem::take(&mut plan.last);
                plan.first.append(&mut rest);
            }
        }
        Some(plan)
    }

    fn write(&self, plan: &mut Plan, offset: u64, data: &Bytes) -> Option<()> {
        let end = offset.checked_add(data.len() as u64)?;
        if end > self.shard_size {
            // First: an interruption leaves zeros, never data beyond the end.
            plan.first.push(Planned::Op(InodeOp::Extend { size: end }));
        }
        let mut done = 0;
        for span in spans(offset, data.len() as u64, self.shard_size)? {
            let piece = data.slice(done..done + span.len as usize);
            done += span.len as usize;
            let index = self.set(span.shard);
            let list = if index == self.home() {
                &mut plan.first
            } else {
                plan.others.entry(index).or_default()
            };
            pieces(span.shard, span.offset, &piece, list);
        }
        Some(())
    }

    fn add(&self, plan: &mut Plan, shard: u32, op: Planned) {
        let index = self.set(shard);
        if index == self.home() {
            plan.first.push(op);
        } else {
            plan.others.entry(index).or_default().push(op);
        }
    }
}

/// Splits a list into entries within the limits, in order.
pub(super) fn entries(ops: Vec<Planned>) -> Vec<Vec<Planned>> {
    let mut entries = Vec::new();
    let mut entry: Vec<Planned> = Vec::new();
    let (mut inline, mut attached) = (0, 0);
    for op in ops {
        let full = inline + op.inline() > MAX_INLINE
            || attached + op.attached() > MAX_ATTACHED
            || entry.len() >= MAX_OPS;
        if full && !entry.is_empty() {
            entries.push(std::mem::take(&mut entry));
            (inline, attached) = (0, 0);
        }
        inline += op.inline();
        attached += op.attached();
        entry.push(op);
    }
    if !entry.is_empty() {
        entries.push(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::attr::SetAttr;
    use proptest::prelude::*;

    const SHARD: u64 = 1 << 20;

    fn place(layout: &Layout) -> Place<'_> {
        Place {
            id: InodeId(0x1234_0000_0000_0042),
            layout,
            shard_size: SHARD,
        }
    }

    fn bytes(len: usize) -> Bytes {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    /// What planned writes leave in one file, from `base` on.
    fn paint(ops: &[Planned], file: &mut [u8]) {
        for op in ops {
            let (shard, offset, data) = match op {
                Planned::Inline {
                    shard,
                    offset,
                    data,
                } => {
                    assert!(data.len() <= MAX_INLINE);
                    (shard, offset, data)
                }
                Planned::Staged {
                    shard,
                    offset,
                    data,
                } => {
                    assert!(data.len() >= STAGE_MIN && data.len() <= STAGE_MAX);
                    assert!(offset % BLOCK == 0 && (data.len() as u64).is_multiple_of(BLOCK));
                    (shard, offset, data)
                }
                _ => continue,
            };
            let start = (u64::from(*shard) * SHARD + offset) as usize;
            assert!(*offset + data.len() as u64 <= SHARD);
            file[start..start + data.len()].copy_from_slice(data);
        }
    }

    proptest! {
        #[test]
        fn planned_writes_are_the_write(offset in 0u64..3 * SHARD, len in 1usize..700_000, sets in 1u32..4) {
            let layout = Layout::even(sets);
            let data = bytes(len);
            let ops = [FileOp::Write { offset, data: data.clone() }];
            let plan = place(&layout).plan(&ops).unwrap();
            let mut file = vec![0; 5 * SHARD as usize];
            for list in plan.others.into_values().chain([plan.first]) {
                for entry in entries(list) {
                    prop_assert!(entry.iter().map(Planned::inline).sum::<usize>() <= MAX_INLINE);
                    paint(&entry, &mut file);
                }
            }
            let start = offset as usize;
            prop_assert_eq!(&file[start..start + len], &data[..]);
            prop_assert!(file[..start].iter().all(|byte| *byte == 0));
            prop_assert!(file[start + len..].iter().all(|byte| *byte == 0));
        }

        #[test]
        fn spans_cover_the_range(offset in 0u64..1 << 40, len in 0u64..1 << 32) {
            let spans = spans(offset, len, 64 << 20).unwrap();
            let mut at = offset;
            for span in &spans {
                prop_assert_eq!(u64::from(span.shard) * (64 << 20) + span.offset, at);
                prop_assert!(span.len > 0 && span.offset + span.len <= 64 << 20);
                at += span.len;
            }
            prop_assert_eq!(at, offset + len);
        }
    }

    #[test]
    fn a_small_file_is_one_entry() {
        let layout = Layout::even(1);
        let set = FileOp::Set(SetAttr::default());
        let ops = [
            FileOp::Write {
                offset: 0,
                data: bytes(5_000),
            },
            set.clone(),
            FileOp::Write {
                offset: 5_000,
                data: bytes(10),
            },
            set,
        ];
        let plan = place(&layout).plan(&ops).unwrap();
        assert!(plan.others.is_empty() && plan.last.is_empty());
        assert_eq!(entries(plan.first).len(), 1);
    }

    #[test]
    fn a_write_past_a_shard_raises_the_size_first() {
        let layout = Layout::even(3);
        let ops = [FileOp::Write {
            offset: SHARD - 10,
            data: bytes(20),
        }];
        let plan = place(&layout).plan(&ops).unwrap();
        assert_eq!(
            plan.first[0],
            Planned::Op(InodeOp::Extend { size: SHARD + 10 })
        );
    }

    #[test]
    fn ranges_beyond_the_largest_file_are_refused() {
        let layout = Layout::even(1);
        let punch = |offset, len| place(&layout).plan(&[FileOp::Punch { offset, len }]);
        assert!(punch(u64::MAX - 1, 5).is_none());
        assert!(punch(1 << 60, 5).is_none());
        assert!(punch(1 << 40, 5).is_some());
    }

    #[test]
    fn entries_stay_within_the_limits() {
        let ops = (0..40).map(|at| Planned::Inline {
            shard: 0,
            offset: at * 100_000,
            data: bytes(60_000),
        });
        let split = entries(ops.collect());
        assert!(split.len() > 1);
        for entry in &split {
            assert!(entry.iter().map(Planned::inline).sum::<usize>() <= MAX_INLINE);
        }
        assert_eq!(split.iter().map(Vec::len).sum::<usize>(), 40);
    }
}
