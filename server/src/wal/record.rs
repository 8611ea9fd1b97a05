//! Records of the WAL and their encoding.
//!
//! ```text
//!  0 identity  u32   of the brick: a record of a former brick on this device is none
//!  4 crc       u32   of bytes 8..64 and the head
//!  8 prev      u32   crc of the record before: the chain
//! 12 body crc  u32
//! 16 offset    u64   logical place of this record: a record of an earlier lap is none
//! 24 epoch     u64
//! 32 seq       u64
//! 40 announced u64   highest seq known to be flushed by every member when this was written
//! 48 behind    u32   how many bytes before this record the flushed mark stood
//! 52 cuts      u32   how often the log had been cut
//! 56 head len  u32   0: the log was cut here, behind entry (epoch, seq)
//! 60 body len  u32
//! 64 head (postcard), body, zeros up to a multiple of 64
//! ```
//! All numbers are little-endian. A header never crosses a sector.

use bytes::Bytes;
use mortar_protocol::entry::Entry;
use mortar_protocol::ids::{Epoch, Pos, Seq};
use serde::{Deserialize, Serialize};

use super::{StageAt, WalPosition};

/// Length of a header, and the unit of a record's place and length.
pub(super) const HEADER: usize = 64;
/// Longest head, in bytes.
pub(super) const MAX_HEAD: usize = 4 << 20;
/// Longest body, in bytes.
pub(super) const MAX_BODY: usize = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) crc: u32,
    pub(super) prev: u32,
    pub(super) body_crc: u32,
    pub(super) offset: u64,
    pub(super) pos: Pos,
    pub(super) announced: Seq,
    pub(super) behind: u32,
    pub(super) cuts: u32,
    pub(super) head_len: u32,
    pub(super) body_len: u32,
}

impl Header {
    /// Encodes the header and sets its crc, which covers `head`.
    pub(super) fn encode(&mut self, identity: u32, head: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &identity.to_le_bytes());
        put(8, &self.prev.to_le_bytes());
        put(12, &self.body_crc.to_le_bytes());
        put(16, &self.offset.to_le_bytes());
        put(24, &self.pos.epoch.0.to_le_bytes());
        put(32, &self.pos.seq.0.to_le_bytes());
        put(40, &self.announced.0.to_le_bytes());
        put(48, &self.behind.to_le_bytes());
        put(52, &self.cuts.to_le_bytes());
        put(56, &self.head_len.to_le_bytes());
        put(60, &self.body_len.to_le_bytes());
        self.crc = crc(&bytes, head);
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Reads a header that may be anything; `None` if it cannot be one of this brick.
    pub(super) fn decode(bytes: &[u8; HEADER], identity: u32) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let header = Self {
            crc: u32_at(4),
            prev: u32_at(8),
            body_crc: u32_at(12),
            offset: u64_at(16),
            pos: Pos {
                epoch: Epoch(u64_at(24)),
                seq: Seq(u64_at(32)),
            },
            announced: Seq(u64_at(40)),
            behind: u32_at(48),
            cuts: u32_at(52),
            head_len: u32_at(56),
            body_len: u32_at(60),
        };
        let lengths = header.head_len as usize <= MAX_HEAD && header.body_len as usize <= MAX_BODY;
        (u32_at(0) == identity && lengths).then_some(header)
    }

    /// Bytes of the whole record, padding included.
    pub(super) fn record_len(&self) -> u64 {
        record_len(self.head_len as usize, self.body_len as usize)
    }

    /// Whether the record says that the log was cut, instead of holding an entry.
    pub(super) fn is_cut(&self) -> bool {
        self.head_len == 0
    }

    /// The flushed mark that the record notes.
    pub(super) fn flushed(&self) -> u64 {
        self.offset.saturating_sub(u64::from(self.behind))
    }

    /// The position behind the record.
    pub(super) fn after(&self) -> WalPosition {
        WalPosition {
            offset: self.offset.saturating_add(self.record_len()),
            epoch: self.pos.epoch,
            seq: self.pos.seq,
            chain: self.crc,
            cuts: self.cuts,
        }
    }

    /// Whether the record may follow `at`.
    pub(super) fn follows(&self, at: &WalPosition) -> bool {
        let numbers = if self.is_cut() {
            self.cuts > at.cuts && self.pos == at.pos()
        } else {
            self.cuts == at.cuts
                && self.pos.epoch >= at.epoch
                && at.seq.0.checked_add(1) == Some(self.pos.seq.0)
        };
        numbers && self.prev == at.chain && self.offset == at.offset
    }

    /// Whether the header and the head are as they were written.
    pub(super) fn matches(&self, bytes: &[u8; HEADER], head: &[u8]) -> bool {
        crc(bytes, head) == self.crc
    }
}

fn crc(header: &[u8; HEADER], head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[8..]);
    hasher.update(head);
    hasher.finalize()
}

pub(super) fn record_len(head: usize, body: usize) -> u64 {
    (HEADER + head + body).next_multiple_of(HEADER) as u64
}

#[derive(Serialize)]
struct HeadRef<'a> {
    entry: &'a Entry,
    stages: &'a [StageAt],
}

#[derive(Deserialize)]
struct Head {
    entry: Entry,
    stages: Vec<StageAt>,
}

/// Appends the encoded head of an entry (all but its body) to `buf`.
pub(super) fn encode_head(
    buf: Vec<u8>,
    entry: &Entry,
    stages: &[StageAt],
) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(&HeadRef { entry, stages }, buf)
}

/// The entry and its stages of a verified record; `None` if the bytes make no sense all the same.
pub(super) fn decode_entry(
    header: &Header,
    head: &[u8],
    body: Bytes,
) -> Option<(Entry, Vec<StageAt>)> {
    let Head { mut entry, stages } = postcard::from_bytes(head).ok()?;
    entry.body = body;
    (entry.pos == header.pos).then_some((entry, stages))
}
