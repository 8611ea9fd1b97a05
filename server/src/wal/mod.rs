//! The write-ahead log: a member's copy of its set log, in a ring on the brick's device.
//!
//! Every record covers the crc of the record before it, so that what replay accepts is always a prefix of what was
//! written. A record also notes how far the log was known to be flushed when it was written: a bad record beyond that
//! mark ends the log, one below it is damage.

mod open;
mod record;
mod ring;

use std::io;
use std::sync::Arc;

use mortar_protocol::entry::Entry;
use mortar_protocol::ids::{Epoch, Pos, Seq, StageId};
use serde::{Deserialize, Serialize};

use crate::device::{Device, is_full};
use crate::superblock::Region;
use record::{HEADER, Header, MAX_BODY, MAX_HEAD, encode_head, record_len};
use ring::{Ring, SEGMENT};

pub use open::{Damage, Opened, Replayed};

/// The log is written in multiples of this, the page cache's unit, in bytes.
const PAGE: usize = 4 << 10;
/// Bytes of the ring that appends leave free.
const SPARE: u64 = HEADER as u64;

/// Bytes of the ring for which the host's promise of space is kept ahead, in the first lap.
const PROMISED: u64 = 16 << 20;

/// Where a stage lies on this device: (first block, number of blocks) for each run of the extent area.
pub type StageAt = (StageId, Vec<(u64, u32)>);

/// A place in the log, behind an entry (or behind a cut). Kept with a checkpoint, it is where replay starts.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct WalPosition {
    /// Logical offset in bytes; grows over all laps of the ring, falls only by a cut.
    pub offset: u64,
    /// Epoch of the entry before it.
    pub epoch: Epoch,
    /// Place of the entry before it.
    pub seq: Seq,
    /// Checksum of the record before it.
    pub chain: u32,
    /// How often the log had been cut.
    pub cuts: u32,
}

impl WalPosition {
    /// Position of the entry before it.
    pub fn pos(&self) -> Pos {
        Pos {
            epoch: self.epoch,
            seq: self.seq,
        }
    }
}

/// What is appended: an entry, and where its stages lie.
#[derive(Clone, Copy, Debug)]
pub struct WalRecord<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// Its stages on this device.
    pub stages: &'a [StageAt],
}

/// Why the log did not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The ring has no room: a checkpoint must release some.
    #[error("the log is full: {needed} bytes needed, {free} free")]
    Full {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The file system under a file brick is full: the brick is full, not failed.
    #[error("no space on the host for the log: {0}")]
    HostFull(io::Error),
    /// An entry exceeds what a record may hold.
    #[error("an entry of {0} bytes is too large for the log")]
    TooLarge(usize),
    /// Entries must follow one another, in epochs that do not fall.
    #[error("entry {entry} cannot follow {head}")]
    OutOfOrder {
        /// The entry.
        entry: Pos,
        /// The last one in the log.
        head: Pos,
    },
    /// The position is not in the log any more, or never was.
    #[error("the log does not hold offset {0}")]
    Gone(u64),
    /// A record that the log holds cannot be read back.
    #[error("the log is damaged at offset {0}")]
    Damaged(u64),
    /// The device failed.
    #[error("log: {0}")]
    Io(io::Error),
}

impl From<io::Error> for WalError {
    fn from(error: io::Error) -> Self {
        if is_full(&error) {
            Self::HostFull(error)
        } else {
            Self::Io(error)
        }
    }
}

/// An open log.
pub struct Wal {
    ring: Ring,
    identity: u32,
    /// Start of what must not be overwritten.
    tail: u64,
    head: WalPosition,
    /// Everything before this offset is known to be flushed.
    flushed: u64,
    announced: Seq,
    /// In the first lap: everything before this offset has been written once.
    filled: u64,
    /// What the head's page holds before the head: a write starts with it, so that the page cache need not fetch a
    /// page of an earlier lap from the device only to change a part of it.
    page: Vec<u8>,
    /// Up to where the host has promised space, in the first lap.
    promised: u64,
}

impl Wal {
    /// Prepares the ring of a new brick (without a flush) and returns where its log starts. `identity` tells the
    /// records of this brick from those of a former one on the same device: a checksum of the brick's id.
    pub fn format(
        device: Arc<dyn Device>,
        region: Region,
        identity: u32,
    ) -> Result<WalPosition, WalError> {
        let ring = Ring::new(device, region)?;
        ring.clear(0)?;
        Ok(WalPosition {
            chain: identity,
            ..WalPosition::default()
        })
    }

    /// Appends entries with one write (two where the ring wraps) and returns the position behind each. On an error
    /// the log holds what it held before.
    pub fn append(&mut self, records: &[WalRecord<'_>]) -> Result<Vec<WalPosition>, WalError> {
        let batch = self.encode(records)?;
        let Some(end) = batch.positions.last().copied() else {
            return Ok(Vec::new());
        };
        let needed = end.offset - self.head.offset;
        let free = self.free();
        if needed > free {
            return Err(WalError::Full { needed, free });
        }
        self.fill_ahead(end.offset)?;
        self.write_at_head(&batch.parts(), end.offset)?;
        self.head = end;
        Ok(batch.positions)
    }

    /// Writes what lies between the head and `end` as whole pages: behind it zeros, unless the oldest entries still
    /// lie there.
    fn write_at_head(&mut self, parts: &[&[u8]], end: u64) -> Result<(), WalError> {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let room = self.tail + self.ring.len() - end;
        let padding = room.min(end.next_multiple_of(PAGE as u64) - end) as usize;
        let mut all = Vec::with_capacity(parts.len() + 2);
        all.push(&self.page[..]);
        all.extend(parts);
        all.push(&ZEROS[..padding]);
        self.ring
            .write(self.head.offset - self.page.len() as u64, &all)?;
        all.pop();
        let keep = (end % PAGE as u64) as usize;
        let mut last = vec![0; keep];
        let mut missing = keep;
        for part in all.iter().rev() {
            let count = part.len().min(missing);
            last[missing - count..missing].copy_from_slice(&part[part.len() - count..]);
            missing -= count;
        }
        self.page = last;
        Ok(())
    }

    /// Reads what the head's page holds before the head.
    fn load_page(&mut self) -> Result<(), WalError> {
        self.page
            .resize((self.head.offset % PAGE as u64) as usize, 0);
        let start = self.head.offset - self.page.len() as u64;
        Ok(self.ring.read(start, &mut self.page)?)
    }

    fn encode<'a>(&self, records: &[WalRecord<'a>]) -> Result<Batch<'a>, WalError> {
        let mut batch = Batch::default();
        batch.buf.reserve(records.len() * ROOM);
        let mut at = self.head;
        for record in records {
            let entry = record.entry;
            if entry.pos.epoch < at.epoch || at.seq.0.checked_add(1) != Some(entry.pos.seq.0) {
                let (entry, head) = (entry.pos, at.pos());
                return Err(WalError::OutOfOrder { entry, head });
            }
            let start = batch.buf.len();
            batch.buf.resize(start + HEADER, 0);
            let buf = encode_head(std::mem::take(&mut batch.buf), entry, record.stages);
            batch.buf = buf.map_err(|_| WalError::TooLarge(entry.body.len()))?;
            let head_len = batch.buf.len() - start - HEADER;
            if head_len > MAX_HEAD || entry.body.len() > MAX_BODY {
                return Err(WalError::TooLarge(head_len + entry.body.len()));
            }
            let mut header = self.header(&at);
            header.pos = entry.pos;
            header.body_crc = crc32fast::hash(&entry.body);
            header.head_len = head_len as u32;
            header.body_len = entry.body.len() as u32;
            let encoded = header.encode(self.identity, &batch.buf[start + HEADER..]);
            batch.buf[start..start + HEADER].copy_from_slice(&encoded);
            batch.add_body(&entry.body, record_len(head_len, entry.body.len()));
            at = header.after();
            batch.positions.push(at);
        }
        Ok(batch)
    }

    /// A header for a record at `at`, without an entry.
    fn header(&self, at: &WalPosition) -> Header {
        Header {
            crc: 0,
            prev: at.chain,
            body_crc: 0,
            offset: at.offset,
            pos: at.pos(),
            announced: self.announced,
            behind: u32::try_from(at.offset.saturating_sub(self.flushed)).unwrap_or(u32::MAX),
            cuts: at.cuts,
            head_len: 0,
            body_len: 0,
        }
    }

    /// In the first lap: writes zeros up to the end of the segment behind the one in which `end` lies, so that
    /// appends never allocate on the host.
    fn fill_ahead(&mut self, end: u64) -> Result<(), WalError> {
        let goal = (end / SEGMENT + 2) * SEGMENT;
        self.promise_ahead(goal);
        while self.filled < goal.min(self.ring.len()) {
            self.ring.clear(self.filled)?;
            self.filled += SEGMENT;
        }
        Ok(())
    }

    /// In the first lap: has the host promise space well beyond `goal`, so that there is room for what gives space
    /// back when its file system is full.
    fn promise_ahead(&mut self, goal: u64) {
        let (len, from) = (self.ring.len(), self.promised);
        if from < len && from < goal + PROMISED / 2 {
            let upto = len.min(goal + PROMISED);
            if self.ring.promise(from, upto).is_ok() {
                self.promised = upto;
            }
        }
    }

    /// Asks the host again for what it has not promised.
    pub fn keep_promised(&mut self) {
        self.promise_ahead((self.head.offset / SEGMENT + 2) * SEGMENT);
    }

    /// Bytes that can be appended without a promise that the host could refuse.
    pub fn sure(&self) -> u64 {
        match self.promised < self.ring.len() {
            true => (self.promised.saturating_sub(self.head.offset)).saturating_sub(2 * SEGMENT),
            false => u64::MAX,
        }
    }

    /// The position behind the last entry.
    pub fn head(&self) -> WalPosition {
        self.head
    }

    /// Bytes that can be appended.
    pub fn free(&self) -> u64 {
        (self.ring.len() - (self.head.offset - self.tail)).saturating_sub(SPARE)
    }

    /// Bytes that an entry takes in the log, if it is appended with these stages.
    pub fn size_of(record: &WalRecord<'_>) -> Result<u64, WalError> {
        let body = record.entry.body.len();
        let head = encode_head(Vec::new(), record.entry, record.stages);
        let head = head.map_err(|_| WalError::TooLarge(body))?;
        Ok(record_len(head.len(), body))
    }

    /// Notes the position that every member has flushed; written with the next record.
    pub fn note_announced(&mut self, seq: Seq) {
        self.announced = self.announced.max(seq);
    }

    /// The announced position noted last.
    pub fn announced(&self) -> Seq {
        self.announced
    }

    /// Notes that a flush begun when `upto` was the head has succeeded; written with the next record.
    pub fn note_flushed(&mut self, upto: WalPosition) {
        // A position of before a cut says nothing about what has been written since.
        if upto.cuts == self.head.cuts && upto.offset <= self.head.offset {
            self.flushed = self.flushed.max(upto.offset);
        }
    }

    /// Offset before which everything is known to be flushed.
    pub fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Drops all entries behind `to`, durably (this flushes the device), and returns the position from which the log
    /// goes on. The device must not hold entries behind `to` that were announced.
    pub fn cut(&mut self, to: WalPosition) -> Result<WalPosition, WalError> {
        if to == self.head {
            return Ok(to);
        }
        let room = to.offset.checked_add(HEADER as u64);
        if to.offset < self.tail || room.is_none_or(|end| end > self.head.offset) {
            return Err(WalError::Gone(to.offset));
        }
        let mut mark = self.header(&to);
        // Cuts are counted over the whole log, also those that a cut drops.
        mark.cuts = self.head.cuts.wrapping_add(1);
        let bytes = mark.encode(self.identity, &[]);
        self.ring.write(to.offset, &[&bytes])?;
        self.head = mark.after();
        self.load_page()?;
        self.flushed = self.flushed.min(to.offset);
        self.ring.device().flush()?;
        self.flushed = self.head.offset;
        Ok(self.head)
    }

    /// Gives up everything before `upto`: a durable checkpoint holds it.
    pub fn release(&mut self, upto: WalPosition) {
        self.tail = self.tail.max(upto.offset.min(self.head.offset));
    }

    /// Writes everything behind the flushed mark again. A run does this before it counts anything it found as
    /// flushed: after a failed flush the kernel may have forgotten that its copy is not on the medium.
    pub fn rewrite(&mut self) -> Result<(), WalError> {
        let mut at = self.flushed.max(self.tail);
        let mut buf = vec![0; SEGMENT as usize];
        while at < self.head.offset {
            let len = SEGMENT.min(self.head.offset - at) as usize;
            self.ring.read(at, &mut buf[..len])?;
            self.ring.write(at, &[&buf[..len]])?;
            at += len as u64;
        }
        Ok(())
    }
}

/// Bodies of at least this many bytes are written from where they are.
const LARGE: usize = 2 << 10;
/// Bytes a record without a large body usually takes.
const ROOM: usize = 512;

/// Encoded records. Large bodies are not copied.
#[derive(Default)]
struct Batch<'a> {
    buf: Vec<u8>,
    /// (length of `buf` before the body, body).
    bodies: Vec<(usize, &'a [u8])>,
    /// Total length of `bodies`.
    large: usize,
    positions: Vec<WalPosition>,
    end: u64,
}

impl<'a> Batch<'a> {
    /// Adds a body, and zeros up to the record's length.
    fn add_body(&mut self, body: &'a [u8], record: u64) {
        if body.len() >= LARGE {
            self.bodies.push((self.buf.len(), body));
            self.large += body.len();
        } else {
            self.buf.extend_from_slice(body);
        }
        self.end += record;
        self.buf.resize(self.end as usize - self.large, 0);
    }

    fn parts(&self) -> Vec<&[u8]> {
        let mut parts = Vec::with_capacity(2 * self.bodies.len() + 1);
        let mut done = 0;
        for (at, body) in &self.bodies {
            parts.push(&self.buf[done..*at]);
            parts.push(body);
            done = *at;
        }
        parts.push(&self.buf[done..]);
        parts
    }
}

#[cfg(test)]
mod tests;
