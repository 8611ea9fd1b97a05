//! Held changes: writes and attribute changes of one inode that were acknowledged but not sent yet, in order.
//!
//! Pure: no locks, no clocks, no network. [`Held`] gathers, [`Batch`] is what one send takes away, and both can show
//! what an attribute or a range looks like with them.

use bytes::{Bytes, BytesMut};
use mortar_protocol::attr::{Attr, SetAttr, Time};
use mortar_protocol::limits::STAGE_MAX;

use super::backend::FileOp;

/// Written data is kept in pieces that end at multiples of this many bytes, the size of a stage.
pub const PIECE: u64 = STAGE_MAX as u64;
/// What a held change costs beyond its data, in bytes.
const OVERHEAD: usize = 96;
/// How many changes back a write looks for one it can be merged with.
const MERGE_DEPTH: usize = 4;

/// One held change.
#[derive(Clone, Debug)]
enum Op<D> {
    /// Data at an offset.
    Write { offset: u64, data: D },
    /// Data at the end; `shown` is the offset that was shown for it.
    Append { shown: u64, data: D },
    /// New size.
    Truncate { size: u64 },
    /// New attributes.
    Set(SetAttr),
}

/// A change with the time shown for it.
#[derive(Clone, Debug)]
struct Item<D> {
    op: Op<D>,
    time: Time,
}

/// Changes not sent yet.
#[derive(Default, Debug)]
pub struct Held {
    items: Vec<Item<BytesMut>>,
    bytes: usize,
}

/// Changes on their way: what one call of [`super::backend::Backend::change`] carries.
#[derive(Default, Debug)]
pub struct Batch {
    items: Vec<Item<Bytes>>,
    bytes: usize,
    /// When the file was read, if that is to be told.
    accessed: Option<Time>,
}

/// What is known here of a range.
#[derive(PartialEq, Eq, Debug)]
pub enum Local {
    /// All of it.
    Full(Vec<u8>),
    /// Part of it, or where it ends.
    Some,
    /// Nothing: the servers' copy is right.
    Nothing,
}

impl Held {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes it takes, overhead included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, op: Op<BytesMut>, time: Time) {
        self.bytes += OVERHEAD;
        self.items.push(Item { op, time });
    }

    /// Holds a write.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8], time: Time) {
        while !data.is_empty() {
            let room = (PIECE - offset % PIECE) as usize;
            let (now, later) = data.split_at(room.min(data.len()));
            self.write_piece(offset, now, time);
            offset += now.len() as u64;
            data = later;
        }
    }

    /// Holds a write that lies within one piece.
    fn write_piece(&mut self, at: u64, new: &[u8], time: Time) {
        let end = at + new.len() as u64;
        for item in self.items.iter_mut().rev().take(MERGE_DEPTH) {
            let Op::Write { offset, data } = &mut item.op else {
                break;
            };
            let (first, last) = (*offset, *offset + data.len() as u64);
            if first <= at && at <= last && first / PIECE == at / PIECE {
                let from = (at - first) as usize;
                let inside = new.len().min(data.len() - from);
                data[from..from + inside].copy_from_slice(&new[..inside]);
                data.extend_from_slice(&new[inside..]);
                self.bytes += new.len() - inside;
                // The changes behind it are writes too, and the last one's time is the one that shows.
                self.items
                    .iter_mut()
                    .last()
                    .into_iter()
                    .for_each(|last| last.time = time);
                return;
            }
            if first < end && at < last {
                break;
            }
        }
        self.bytes += new.len();
        let data = BytesMut::from(new);
        self.push(Op::Write { offset: at, data }, time);
    }

    /// Holds an append that is shown at `shown`.
    pub fn append(&mut self, at: u64, new: &[u8], time: Time) {
        self.bytes += new.len();
        if let Some(Item {
            op: Op::Append { shown, data },
            time: when,
        }) = self.items.last_mut()
            && *shown + data.len() as u64 == at
            && data.len() < PIECE as usize
        {
            data.extend_from_slice(new);
            *when = time;
            return;
        }
        let data = BytesMut::from(new);
        self.push(Op::Append { shown: at, data }, time);
    }

    /// Holds a new size.
    pub fn truncate(&mut self, size: u64, time: Time) {
        self.push(Op::Truncate { size }, time);
    }

    /// Holds new attributes.
    pub fn set(&mut self, new: SetAttr, time: Time) {
        if let Some(Item {
            op: Op::Set(old),
            time: when,
        }) = self.items.last_mut()
            && !(new.kill_suid && old.perm.is_some())
        {
            old.perm = new.perm.or(old.perm);
            old.uid = new.uid.or(old.uid);
            old.gid = new.gid.or(old.gid);
            old.atime = new.atime.or(old.atime);
            old.mtime = new.mtime.or(old.mtime);
            old.kill_suid |= new.kill_suid;
            *when = time;
            return;
        }
        self.push(Op::Set(new), time);
    }

    /// Takes what is to be sent: everything, or all but a piece that a sequential writer has not filled yet.
    pub fn cut(&mut self, everything: bool) -> Option<Batch> {
        let open = match self.items.last() {
            Some(Item {
                op: Op::Write { offset, data },
                ..
            }) if !everything && self.items.len() > 1 => {
                !(offset + data.len() as u64).is_multiple_of(PIECE)
            }
            _ => false,
        };
        let keep = if open { self.items.pop() } else { None };
        let items = std::mem::take(&mut self.items);
        let mut bytes = std::mem::take(&mut self.bytes);
        if let Some(item) = keep {
            self.bytes = item.cost();
            bytes -= self.bytes;
            self.items.push(item);
        }
        if items.is_empty() {
            return None;
        }
        let items = items.into_iter().map(Item::freeze).collect();
        Some(Batch {
            items,
            bytes,
            accessed: None,
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.items.clear();
        self.bytes = 0;
    }

    /// Changes `attr` to what it looks like with these changes made.
    pub fn show(&self, attr: &mut Attr) {
        self.items.iter().for_each(|item| item.show(attr));
    }

    /// The same for an `attr` that lacks only the change made last.
    pub fn show_last(&self, attr: &mut Attr) {
        // The piece with a write's end is among the last few; showing a change twice shows the same.
        let from = self.items.len().saturating_sub(MERGE_DEPTH);
        self.items[from..].iter().for_each(|item| item.show(attr));
    }

    /// Takes what is known here out of the parts of a range that are still `wanted`; newest first.
    pub fn fill(&self, want: &mut Want) {
        self.items.iter().rev().for_each(|item| item.fill(want));
    }
}

impl Batch {
    /// Tells of a read too.
    pub fn accessed(self, time: Option<Time>) -> Self {
        Self {
            accessed: time.or(self.accessed),
            ..self
        }
    }

    /// Whether it changes nothing, and only tells of a read.
    pub fn only_accessed(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes it takes, overhead included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes `attr` to what it looks like with these changes made.
    pub fn show(&self, attr: &mut Attr) {
        self.items.iter().for_each(|item| item.show(attr));
        attr.atime = attr.atime.max(self.accessed.unwrap_or(attr.atime));
    }

    /// As [`Held::fill`].
    pub fn fill(&self, want: &mut Want) {
        self.items.iter().rev().for_each(|item| item.fill(want));
    }

    /// Where the first appended byte was shown.
    pub fn append_shown(&self) -> Option<u64> {
        self.items.iter().find_map(|item| match item.op {
            Op::Append { shown, .. } => Some(shown),
            _ => None,
        })
    }

    /// The operations to send and their common time. Where writes were shown at an earlier time than the last
    /// change, one more operation records it.
    pub fn operations(&self) -> (Vec<FileOp>, Time) {
        let time = self.items.iter().map(|i| i.time).max().unwrap_or_default();
        let (mut shown, mut made) = (None, None);
        let mut ops = Vec::with_capacity(self.items.len() + 1);
        for item in &self.items {
            ops.push(match &item.op {
                Op::Write { offset, data } => FileOp::Write {
                    offset: *offset,
                    data: data.clone(),
                },
                Op::Append { data, .. } => FileOp::Append { data: data.clone() },
                Op::Truncate { size } => FileOp::Truncate { size: *size },
                Op::Set(set) => FileOp::Set(set.clone()),
            });
            match &item.op {
                Op::Set(set) => {
                    shown = set.mtime.or(shown);
                    made = set.mtime.or(made);
                }
                _ => {
                    shown = Some(item.time);
                    made = Some(time);
                }
            }
        }
        if shown != made {
            ops.push(FileOp::Set(SetAttr {
                mtime: shown,
                ..SetAttr::default()
            }));
        }
        ops.extend(self.accessed.map(FileOp::Accessed));
        (ops, time)
    }
}

impl<D: AsRef<[u8]>> Item<D> {
    fn cost(&self) -> usize {
        OVERHEAD
            + match &self.op {
                Op::Write { data, .. } | Op::Append { data, .. } => data.as_ref().len(),
                _ => 0,
            }
    }

    fn show(&self, attr: &mut Attr) {
        match &self.op {
            Op::Write { offset, data }
            | Op::Append {
                shown: offset,
                data,
            } => {
                let size = attr.size.max(offset + data.as_ref().len() as u64);
                resize(attr, size);
            }
            Op::Truncate { size } => resize(attr, *size),
            Op::Set(set) => {
                show_set(set, attr);
                attr.ctime = self.time;
                return;
            }
        }
        attr.mtime = self.time;
        attr.ctime = self.time;
    }

    fn fill(&self, want: &mut Want) {
        match &self.op {
            Op::Write { offset, data }
            | Op::Append {
                shown: offset,
                data,
            } => want.take(*offset, data.as_ref()),
            Op::Truncate { size } => want.zero_from(*size),
            Op::Set(_) => {}
        }
    }
}

impl Item<BytesMut> {
    fn freeze(self) -> Item<Bytes> {
        let op = match self.op {
            Op::Write { offset, data } => Op::Write {
                offset,
                data: data.freeze(),
            },
            Op::Append { shown, data } => Op::Append {
                shown,
                data: data.freeze(),
            },
            Op::Truncate { size } => Op::Truncate { size },
            Op::Set(set) => Op::Set(set),
        };
        Item {
            op,
            time: self.time,
        }
    }
}

/// Sets the size and guesses the blocks, until the servers tell them.
fn resize(attr: &mut Attr, size: u64) {
    const UNIT: u64 = 8;
    let blocks = |size: u64| size.div_ceil(4096) * UNIT;
    if size > attr.size {
        attr.blocks += blocks(size) - blocks(attr.size);
    } else {
        attr.blocks = attr.blocks.min(blocks(size));
    }
    attr.size = size;
}

/// Makes an attribute change in `attr`, its ctime excepted.
fn show_set(set: &SetAttr, attr: &mut Attr) {
    if set.kill_suid {
        attr.perm = without_suid(attr.perm);
    }
    attr.perm = set.perm.unwrap_or(attr.perm);
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.unwrap_or(attr.atime);
    attr.mtime = set.mtime.unwrap_or(attr.mtime);
}

/// Permission bits after a write by somebody without privileges.
pub fn without_suid(perm: u32) -> u32 {
    let group = perm & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
    perm & !libc::S_ISUID & !(if group { libc::S_ISGID } else { 0 })
}

/// A range of a file that is being put together, newest data first.
#[derive(Debug)]
pub struct Want {
    start: u64,
    data: Vec<u8>,
    /// Parts still missing, as [first, end).
    missing: Vec<(u64, u64)>,
    touched: bool,
}

impl Want {
    /// Wants `[start, end)`.
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            data: Vec::new(),
            missing: if start < end {
                vec![(start, end)]
            } else {
                vec![]
            },
            touched: false,
        }
    }

    /// Takes what is missing and lies in `data`, which stands at `offset`.
    pub fn take(&mut self, offset: u64, data: &[u8]) {
        let (start, end) = (self.start, offset + data.len() as u64);
        self.each(offset, end, |out, first, last| {
            out[(first - start) as usize..(last - start) as usize]
                .copy_from_slice(&data[(first - offset) as usize..(last - offset) as usize]);
        });
    }

    /// What is missing from `offset` on is zero.
    pub fn zero_from(&mut self, offset: u64) {
        self.each(offset, u64::MAX, |_, _, _| {});
    }

    fn each(&mut self, from: u64, to: u64, mut copy: impl FnMut(&mut [u8], u64, u64)) {
        if !self.missing.iter().any(|(a, b)| from < *b && *a < to) {
            return;
        }
        if !self.touched {
            self.touched = true;
            let end = self.missing.last().map_or(self.start, |m| m.1);
            self.data = vec![0; (end - self.start) as usize];
        }
        let mut left = Vec::with_capacity(self.missing.len() + 1);
        for (a, b) in std::mem::take(&mut self.missing) {
            let (first, last) = (a.max(from), b.min(to));
            if first >= last {
                left.push((a, b));
                continue;
            }
            copy(&mut self.data, first, last);
            if a < first {
                left.push((a, first));
            }
            if last < b {
                left.push((last, b));
            }
        }
        self.missing = left;
    }

    /// What came of it.
    pub fn end(self) -> Local {
        match (self.missing.is_empty(), self.touched) {
            (true, _) => Local::Full(self.data),
            (false, true) => Local::Some,
            (false, false) => Local::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::attr::FileKind;
    use mortar_protocol::ids::Gfid;

    fn at(secs: i64) -> Time {
        Time { secs, nanos: 0 }
    }

    fn attr(size: u64) -> Attr {
        Attr {
            gfid: Gfid::ROOT,
            kind: FileKind::File,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks: 0,
            atime: at(1),
            mtime: at(1),
            ctime: at(1),
            btime: at(1),
            change: 1,
            has_xattr: false,
        }
    }

    fn read(held: &Held, start: u64, end: u64) -> Local {
        let mut want = Want::new(start, end);
        held.fill(&mut want);
        want.end()
    }

    #[test]
    fn consecutive_writes_become_one_piece() {
        let mut held = Held::default();
        for i in 0..64 {
            held.write(i * 4096, &[i as u8; 4096], at(2));
        }
        let batch = held.cut(true).unwrap();
        let (ops, _) = batch.operations();
        assert_eq!(ops.len(), 1);
        assert!(matches!(&ops[0], FileOp::Write { offset: 0, data } if data.len() == 256 << 10));
        assert!(held.is_empty() && held.bytes() == 0);
    }

    #[test]
    fn pieces_end_at_stage_boundaries_and_an_open_one_stays() {
        let mut held = Held::default();
        held.write(PIECE - 10, &vec![1; PIECE as usize + 30], at(2));
        let batch = held.cut(false).unwrap();
        let (ops, _) = batch.operations();
        let lens: Vec<usize> = ops
            .iter()
            .map(|op| match op {
                FileOp::Write { data, .. } => data.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(lens, [10, PIECE as usize]);
        assert!(!held.is_empty());
        assert!(held.cut(false).is_some(), "a piece alone is not kept back");
    }

    #[test]
    fn later_data_wins_and_a_cut_leaves_zeros() {
        let mut held = Held::default();
        held.write(0, &[1; 100], at(2));
        held.write(1000, &[2; 100], at(2));
        held.write(50, &[3; 10], at(2));
        assert_eq!(read(&held, 45, 55), Local::Full([[1; 5], [3; 5]].concat()));
        assert_eq!(read(&held, 90, 110), Local::Some);
        assert_eq!(read(&held, 200, 210), Local::Nothing);
        held.truncate(55, at(3));
        held.write(70, &[4; 10], at(4));
        let mut expected = vec![3; 5];
        expected.extend([0; 15]);
        expected.extend([4; 10]);
        assert_eq!(read(&held, 50, 80), Local::Full(expected));
        let mut shown = attr(5000);
        held.show(&mut shown);
        assert_eq!((shown.size, shown.mtime), (80, at(4)));
    }

    #[test]
    fn an_overlapping_write_is_not_merged_below_newer_data() {
        let mut held = Held::default();
        held.write(0, &[1; 10], at(2));
        held.write(20, &[2; 10], at(2));
        held.write(5, &[3; 20], at(2));
        held.write(10, &[4; 2], at(2));
        let mut expected = vec![1; 5];
        expected.extend([3; 5]);
        expected.extend([4; 2]);
        expected.extend([3; 13]);
        expected.extend([2; 5]);
        assert_eq!(read(&held, 0, 30), Local::Full(expected));
    }

    #[test]
    fn the_entry_records_the_times_that_were_shown() {
        let mut held = Held::default();
        held.write(0, b"x", at(5));
        held.set(
            SetAttr {
                perm: Some(0o600),
                ..SetAttr::default()
            },
            at(9),
        );
        let mut shown = attr(0);
        held.show(&mut shown);
        assert_eq!(
            (shown.mtime, shown.ctime, shown.perm),
            (at(5), at(9), 0o600)
        );
        let (ops, time) = held.cut(true).unwrap().operations();
        assert_eq!(time, at(9));
        let FileOp::Set(last) = ops.last().unwrap() else {
            panic!("{ops:?}")
        };
        assert_eq!(last.mtime, Some(at(5)));
    }

    #[test]
    fn a_time_set_by_hand_needs_no_correction() {
        let mut held = Held::default();
        held.write(0, b"x", at(5));
        let set = SetAttr {
            mtime: Some(at(2)),
            ..SetAttr::default()
        };
        held.set(set, at(9));
        let (ops, _) = held.cut(true).unwrap().operations();
        assert_eq!(ops.len(), 2);
    }

    #[test]
    fn killing_suid_is_not_merged_over_a_later_chmod() {
        let mut held = Held::default();
        let perm = |perm| SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        let kill = SetAttr {
            kill_suid: true,
            ..SetAttr::default()
        };
        held.set(perm(0o4755), at(1));
        held.set(kill, at(2));
        let mut shown = attr(0);
        held.show(&mut shown);
        assert_eq!(shown.perm, 0o755);
        held.set(perm(0o6755), at(3));
        held.show(&mut shown);
        assert_eq!(shown.perm, 0o6755);
        assert_eq!(without_suid(0o2644), 0o2644);
    }

    #[test]
    fn appends_merge_while_they_follow_each_other() {
        let mut held = Held::default();
        held.append(10, b"abc", at(1));
        held.append(13, b"def", at(2));
        let batch = held.cut(true).unwrap();
        assert_eq!(batch.append_shown(), Some(10));
        assert_eq!(batch.operations().0.len(), 1);
    }
}
