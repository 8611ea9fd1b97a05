//! Opening a log that a run left behind, and reading entries back.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::Entry;
use mortar_protocol::ids::Seq;

use super::record::{HEADER, Header, decode_entry};
use super::ring::{Ring, SEGMENT};
use super::{StageAt, Wal, WalError, WalPosition};
use crate::device::Device;
use crate::superblock::Region;

/// How far behind the end of the log records are looked for that were written after it.
const SEARCH: u64 = 4 << 20;
/// So many zeros are no record's body: the ring is unused from here.
const UNUSED: u64 = (1 << 20) + SEGMENT;
/// Bytes looked at at once.
const WINDOW: usize = 64 << 10;
static ZEROS: [u8; WINDOW] = [0; WINDOW];

/// A log as it was found.
pub struct Opened {
    /// The log, ready to be read and appended to. Its flushed mark and announced position are those it notes itself.
    pub wal: Wal,
    /// Set if a record is bad that a later one knows to have been flushed: the brick lost something.
    pub damage: Option<Damage>,
}

/// A bad record below the flushed mark. The log ends before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Logical offset of the bad record.
    pub at: u64,
    /// The flushed mark.
    pub flushed: u64,
}

/// An entry read back.
#[derive(Clone, PartialEq, Debug)]
pub struct Replayed {
    /// The entry.
    pub entry: Entry,
    /// Where its stages lie.
    pub stages: Vec<StageAt>,
    /// The position before it.
    pub before: WalPosition,
    /// The position behind it. The entry was flushed if this offset is not above the flushed mark.
    pub after: WalPosition,
}

impl Wal {
    /// Opens the log of a brick. `start` is the position saved with the last durable checkpoint; `clean` says that
    /// nothing was appended behind it. Writes nothing.
    pub fn open(
        device: Arc<dyn Device>,
        region: Region,
        identity: u32,
        start: WalPosition,
        clean: bool,
    ) -> Result<Opened, WalError> {
        let ring = Ring::new(device, region)?;
        if !start.offset.is_multiple_of(HEADER as u64)
            || start.offset.checked_add(ring.len()).is_none()
        {
            return Err(WalError::Damaged(start.offset));
        }
        let limit = start.offset + ring.len();
        let mut reader = Reader::new(&ring, identity, limit);
        let (mut head, mut flushed, mut announced) = (start, start.offset, Seq(0));
        while let Some(header) = reader.record(head.offset)? {
            if !header.follows(&head) {
                break;
            }
            flushed = flushed.max(header.flushed());
            announced = announced.max(header.announced);
            head = header.after();
        }
        let untouched = clean && head == start;
        let later = if untouched {
            0
        } else {
            reader.later_mark(&head)?
        };
        let damage = (later > head.offset).then_some(Damage {
            at: head.offset,
            flushed: later,
        });
        let mut wal = Self {
            identity,
            tail: start.offset,
            head,
            flushed,
            announced,
            filled: head.offset.next_multiple_of(SEGMENT),
            page: Vec::new(),
            promised: head.offset.next_multiple_of(SEGMENT),
            ring,
        };
        wal.load_page()?;
        Ok(Opened { wal, damage })
    }

    /// Takes back what lies between `from` and `start`, where this log begins, if it is all there: positions before and
    /// behind each of its entries, oldest first.
    pub fn reach_back(
        &mut self,
        from: WalPosition,
        start: WalPosition,
    ) -> Option<Vec<(WalPosition, WalPosition)>> {
        let within = start.offset == self.tail
            && from.offset < start.offset
            && from.offset.is_multiple_of(HEADER as u64)
            && self.head.offset - from.offset <= self.ring.len();
        if !within {
            return None;
        }
        let mut reader = Reader::new(&self.ring, self.identity, start.offset);
        let mut found: Vec<(WalPosition, WalPosition)> = Vec::new();
        let mut before = from;
        while before.offset < start.offset {
            let header = reader.record(before.offset).ok().flatten()?;
            if !header.follows(&before) {
                return None;
            }
            let after = header.after();
            match found.last_mut() {
                // The log goes on behind a cut.
                Some((_, last)) if header.is_cut() => *last = after,
                None if header.is_cut() => return None,
                _ => found.push((before, after)),
            }
            before = after;
        }
        if before != start {
            return None;
        }
        self.tail = from.offset;
        Some(found)
    }

    /// Reads entries from a position on: as many as take about `max` bytes in the log, at least one; none at the end.
    pub fn read_from(&self, at: WalPosition, max: u64) -> Result<Vec<Replayed>, WalError> {
        if at.offset < self.tail || at.offset > self.head.offset {
            return Err(WalError::Gone(at.offset));
        }
        let mut reader = Reader::new(&self.ring, self.identity, self.head.offset);
        let mut found = Vec::new();
        let mut before = at;
        while before.offset < self.head.offset
            && (found.is_empty() || before.offset < at.offset.saturating_add(max))
        {
            let damaged = WalError::Damaged(before.offset);
            let Some(header) = reader.record(before.offset)? else {
                return Err(damaged);
            };
            if !header.follows(&before) {
                return Err(if found.is_empty() {
                    WalError::Gone(at.offset)
                } else {
                    damaged
                });
            }
            let after = header.after();
            if !header.is_cut() {
                let (entry, stages) = reader.entry(&header).ok_or(damaged)?;
                found.push(Replayed {
                    entry,
                    stages,
                    before,
                    after,
                });
            }
            before = after;
        }
        Ok(found)
    }
}

/// Reads records that may be anything.
struct Reader<'a> {
    ring: &'a Ring,
    identity: u32,
    /// No record reaches beyond this offset.
    limit: u64,
    /// Head and body of the record read last.
    buf: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(ring: &'a Ring, identity: u32, limit: u64) -> Self {
        Self {
            ring,
            identity,
            limit,
            buf: Vec::new(),
        }
    }

    /// The record at `at`, if there is a whole and undamaged one of this lap.
    fn record(&mut self, at: u64) -> io::Result<Option<Header>> {
        let Some((header, bytes)) = self.header(at)? else {
            return Ok(None);
        };
        if header.offset != at || !self.load(at, &header, &bytes)? {
            return Ok(None);
        }
        Ok(Some(header))
    }

    fn header(&self, at: u64) -> io::Result<Option<(Header, [u8; HEADER])>> {
        let mut bytes = [0; HEADER];
        if at.saturating_add(HEADER as u64) > self.limit || !self.readable(at, &mut bytes)? {
            return Ok(None);
        }
        Ok(Header::decode(&bytes, self.identity).map(|header| (header, bytes)))
    }

    /// Reads head and body of the record at `at` and says whether they are as they were written.
    fn load(&mut self, at: u64, header: &Header, bytes: &[u8; HEADER]) -> io::Result<bool> {
        if at.saturating_add(header.record_len()) > self.limit {
            return Ok(false);
        }
        let head = header.head_len as usize;
        let mut buf = std::mem::take(&mut self.buf);
        buf.resize(head + header.body_len as usize, 0);
        let readable = self.readable(at + HEADER as u64, &mut buf)?;
        self.buf = buf;
        Ok(readable
            && header.matches(bytes, &self.buf[..head])
            && crc32fast::hash(&self.buf[head..]) == header.body_crc)
    }

    /// The entry of the record read last.
    fn entry(&self, header: &Header) -> Option<(Entry, Vec<StageAt>)> {
        let (head, body) = self.buf.split_at_checked(header.head_len as usize)?;
        decode_entry(header, head, Bytes::copy_from_slice(body))
    }

    /// Reads; says "no" if the medium cannot return these bytes.
    fn readable(&self, at: u64, buf: &mut [u8]) -> io::Result<bool> {
        match self.ring.read(at, buf) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The highest flushed mark in records behind the end of the log that were written after what is before it: 0 if
    /// there are none. They exist if a record was lost, by damage or because power failed before it was flushed.
    fn later_mark(&mut self, end: &WalPosition) -> io::Result<u64> {
        let stop = self.limit.min(end.offset.saturating_add(SEARCH));
        let mut window = vec![0; WINDOW];
        let (mut at, mut zeros, mut mark) = (end.offset, 0, 0);
        while at < stop && zeros < UNUSED {
            let len = (WINDOW as u64).min(stop - at) as usize;
            if !self.readable(at, &mut window[..len])? {
                window[..len].fill(0xff);
            }
            let mut next = at + len as u64;
            zeros = if window[..len] == ZEROS[..len] {
                zeros + len as u64
            } else {
                0
            };
            for slot in (0..len).step_by(HEADER).filter(|_| zeros == 0) {
                let Some(bytes) = window[slot..len].first_chunk() else {
                    break;
                };
                let place = at + slot as u64;
                match Header::decode(bytes, self.identity) {
                    Some(header)
                        if header.offset == place
                            && header.cuts >= end.cuts
                            && self.load(place, &header, bytes)? =>
                    {
                        mark = mark.max(header.flushed());
                        next = place + header.record_len();
                        break;
                    }
                    // From here on the ring still holds the lap before.
                    Some(header)
                        if header.offset.checked_add(self.ring.len()) == Some(place)
                            && self.load(place, &header, bytes)? =>
                    {
                        return Ok(mark);
                    }
                    _ => {}
                }
            }
            at = next;
        }
        Ok(mark)
    }
}
