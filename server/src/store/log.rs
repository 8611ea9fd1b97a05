//! The write-ahead log as the store uses it: with an index of the positions behind its entries.

use std::collections::VecDeque;
use std::sync::Arc;

use mortar_protocol::entry::Entry;
use mortar_protocol::ids::{BrickId, Pos, Seq};

use crate::device::Device;
use crate::superblock::Region;
use crate::wal::{Replayed, StageAt, Wal, WalError, WalPosition, WalRecord};

/// Entries are read back in pieces of about so many bytes.
const PIECE: u64 = 4 << 20;

struct Indexed {
    pos: Pos,
    before: WalPosition,
    after: WalPosition,
}

/// The log of one brick.
pub(super) struct Log {
    wal: Wal,
    size: u64,
    tail: WalPosition,
    index: VecDeque<Indexed>,
}

/// Tells the records of this brick from those of a former one on the same device.
pub(super) fn identity(brick: BrickId) -> u32 {
    crc32fast::hash(&brick.0.to_le_bytes())
}

impl Log {
    /// Opens the log and reads what lies behind `start`. Also says whether it is damaged.
    pub(super) fn open(
        device: Arc<dyn Device>,
        region: Region,
        brick: BrickId,
        start: WalPosition,
    ) -> Result<(Self, Vec<Replayed>, bool), WalError> {
        let opened = Wal::open(device, region, identity(brick), start, false)?;
        let mut log = Self {
            wal: opened.wal,
            size: region.len,
            tail: start,
            index: VecDeque::new(),
        };
        let mut entries: Vec<Replayed> = Vec::new();
        let mut at = start;
        loop {
            let piece = log.wal.read_from(at, PIECE)?;
            let Some(last) = piece.last() else { break };
            at = last.after;
            for replayed in &piece {
                let pos = replayed.entry.pos;
                log.index.push_back(Indexed {
                    pos,
                    before: replayed.before,
                    after: replayed.after,
                });
            }
            entries.extend(piece);
        }
        Ok((log, entries, opened.damage.is_some()))
    }

    /// Position of the newest entry.
    pub(super) fn head(&self) -> Pos {
        self.index
            .back()
            .map_or_else(|| self.tail.pos(), |last| last.pos)
    }

    /// Position of the entry before the oldest one held.
    pub(super) fn start(&self) -> Pos {
        self.tail.pos()
    }

    fn find(&self, seq: Seq) -> Option<&Indexed> {
        let first = self.index.front()?.pos.seq;
        self.index
            .get(usize::try_from(seq.0.checked_sub(first.0)?).ok()?)
    }

    /// The place behind the entry at `pos`, if the log holds it or begins right behind it.
    pub(super) fn behind(&self, pos: Pos) -> Option<WalPosition> {
        if pos == self.tail.pos() {
            return Some(self.tail);
        }
        self.find(pos.seq)
            .filter(|found| found.pos == pos)
            .map(|found| found.after)
    }

    /// Position of the entry at `seq`, if the log holds it or begins right behind it.
    pub(super) fn position_at(&self, seq: Seq) -> Option<Pos> {
        if seq == self.tail.seq {
            return Some(self.tail.pos());
        }
        self.find(seq).map(|found| found.pos)
    }

    /// Positions of all entries held, oldest first.
    pub(super) fn positions(&self) -> impl Iterator<Item = Pos> + '_ {
        self.index.iter().map(|found| found.pos)
    }

    /// Bytes that can be appended without a promise that the host could refuse, if what lies before `upto` is given up.
    pub(super) fn sure(&self, upto: WalPosition) -> u64 {
        let kept = upto.offset.saturating_sub(self.tail.offset);
        (self.wal.free() + kept).min(self.wal.sure())
    }

    /// Bytes that lie behind a position.
    pub(super) fn bytes_behind(&self, at: WalPosition) -> u64 {
        self.wal.head().offset.saturating_sub(at.offset)
    }

    /// The position before the oldest entry held.
    pub(super) fn tail(&self) -> WalPosition {
        self.tail
    }

    /// Keeps the host's promise of space for what comes next.
    pub(super) fn keep_promised(&mut self) {
        self.wal.keep_promised();
    }

    /// Bytes of the ring.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What was noted as applicable.
    pub(super) fn announced(&self) -> Seq {
        self.wal.announced()
    }

    /// The newest entry known to be flushed.
    pub(super) fn flushed(&self) -> Pos {
        let mark = self.wal.flushed();
        let after = self
            .index
            .partition_point(|found| found.after.offset <= mark);
        after
            .checked_sub(1)
            .and_then(|at| self.index.get(at))
            .map_or_else(|| self.tail.pos(), |found| found.pos)
    }

    /// Notes what is applicable.
    pub(super) fn note_announced(&mut self, seq: Seq) {
        self.wal.note_announced(seq);
    }

    /// Notes that everything up to the entry at `pos` is flushed.
    pub(super) fn note_flushed(&mut self, pos: Pos) {
        if let Some(at) = self.behind(pos) {
            self.wal.note_flushed(at);
        }
    }

    /// Appends entries with the places of their stages: one write.
    pub(super) fn append(
        &mut self,
        entries: &[(Arc<Entry>, Vec<StageAt>)],
    ) -> Result<(), WalError> {
        let records: Vec<WalRecord<'_>> = entries
            .iter()
            .map(|(entry, stages)| WalRecord { entry, stages })
            .collect();
        let mut before = self.wal.head();
        let behind = self.wal.append(&records)?;
        for ((entry, _), after) in entries.iter().zip(behind) {
            self.index.push_back(Indexed {
                pos: entry.pos,
                before,
                after,
            });
            before = after;
        }
        Ok(())
    }

    /// Drops the entries behind `pos`, durably.
    pub(super) fn cut(&mut self, pos: Pos) -> Result<(), WalError> {
        let to = self.behind(pos).ok_or(WalError::Gone(0))?;
        while self.index.back().is_some_and(|last| last.pos > pos) {
            self.index.pop_back();
        }
        let head = self.wal.cut(to)?;
        match self.index.back_mut() {
            Some(last) => last.after = head,
            None => self.tail = head,
        }
        Ok(())
    }

    /// Releases what lies before `upto`, which a durable checkpoint no longer needs.
    pub(super) fn release(&mut self, upto: WalPosition) {
        while self
            .index
            .front()
            .is_some_and(|first| first.pos <= upto.pos())
        {
            self.index.pop_front();
        }
        if upto.offset > self.tail.offset {
            self.tail = upto;
        }
        self.wal.release(upto);
    }

    /// Releases the oldest entries before `upto` until at most `most` bytes are in use.
    pub(super) fn trim(&mut self, upto: WalPosition, most: u64) {
        if most == 0 {
            return self.release(upto);
        }
        let mut to = self.tail;
        for found in &self.index {
            if self.bytes_behind(to) <= most || found.after.offset > upto.offset {
                break;
            }
            to = found.after;
        }
        if to.offset > self.tail.offset {
            self.release(to);
        }
    }

    /// Takes entries back in that lie between `from` and the start of this log, if all of them are still there.
    pub(super) fn reach_back(&mut self, from: WalPosition) {
        let Some(found) = self.wal.reach_back(from, self.tail) else {
            return;
        };
        for (before, after) in found.into_iter().rev() {
            self.index.push_front(Indexed {
                pos: after.pos(),
                before,
                after,
            });
        }
        self.tail = from;
    }

    /// Reads the entry at `seq` back.
    pub(super) fn read_entry(&self, seq: Seq) -> Result<Replayed, WalError> {
        let found = self.find(seq).ok_or(WalError::Gone(0))?;
        let read = self.wal.read_from(found.before, 1)?;
        read.into_iter()
            .next()
            .filter(|read| read.entry.pos == found.pos)
            .ok_or(WalError::Gone(found.before.offset))
    }

    /// The stages of all entries held up to `upto`, as far as they can be read.
    pub(super) fn stages_upto(&self, upto: WalPosition) -> Vec<StageAt> {
        let mut stages = Vec::new();
        let mut at = self.tail;
        while at.offset < upto.offset {
            let Ok(piece) = self.wal.read_from(at, PIECE.min(upto.offset - at.offset)) else {
                break;
            };
            let Some(last) = piece.last() else { break };
            at = last.after;
            stages.extend(piece.into_iter().flat_map(|read| read.stages));
        }
        stages
    }

    /// Writes everything behind the flushed mark again.
    pub(super) fn rewrite(&mut self) -> Result<(), WalError> {
        self.wal.rewrite()
    }
}
