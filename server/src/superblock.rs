//! What a brick says about itself: identity, geometry, and the view it last belonged to.
//!
//! ```text
//! 0        superblock, copy A (4 KiB)
//! 64 KiB   superblock, copy B (4 KiB): what overwrites the first sectors by mistake spares it
//! 1 MiB    WAL ring
//!          chunk map of the metadata tree
//!          extent area
//! ```
//! Every copy, little-endian, in this and all later formats: magic (8 bytes), format version (u32), crc32 of the 4 KiB
//! with this field zero (u32), counter (u64). Then, in format 1: features needed to read, needed to write, ignorable
//! (u64 each), length of the body (u32), body (postcard), zeros. The valid copy with the higher counter holds; a change
//! goes to the other one, so that an interrupted change leaves the old state.

use std::io;

use mortar_protocol::ids::{BootId, BrickId, ClusterId, NodeId, RunId, SetIndex, VolumeId};
use mortar_protocol::view::{SetKind, View};
use serde::{Deserialize, Serialize};

use crate::device::Device;

/// Format that this build writes, and the newest it reads.
pub const FORMAT: u32 = 1;
/// Smallest brick, in bytes.
pub const MIN_SIZE: u64 = 256 << 20;
/// Smallest and largest WAL ring, in bytes.
pub const RING_SIZES: std::ops::RangeInclusive<u64> = (8 << 20)..=(256 << 20);
/// Longest volume name kept in a superblock, in bytes.
pub const MAX_VOLUME_NAME: usize = 255;

const MAGIC: &[u8; 8] = b"MORTARBK";
const COPY_SIZE: usize = 4096;
const COPIES: [u64; 2] = [0, 64 << 10];
const AREA_ALIGN: u64 = 1 << 20;
const RING_ALIGN: u64 = 256 << 10;
const HEADER: usize = 52;
/// Feature bits this build knows, by class.
const KNOWN: Features = Features {
    to_read: 0,
    to_write: 0,
    ignorable: 0,
};

/// Optional parts of the format that a brick makes use of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Features {
    /// Who does not know one of these cannot read the brick.
    pub to_read: u64,
    /// Who does not know one of these may read but not write.
    pub to_write: u64,
    /// Who does not know these may ignore them.
    pub ignorable: u64,
}

/// A range of the device, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Region {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub len: u64,
}

impl Region {
    /// The byte behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Where things are on the device.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Geometry {
    /// Bytes of the device in use.
    pub size: u64,
    /// The WAL ring: whole segments of 256 KiB.
    pub wal: Region,
    /// Both slots of the metadata tree's chunk map.
    pub chunk_map: Region,
    /// Data extents and the tree's chunks: whole blocks, aligned to 1 MiB.
    pub extents: Region,
}

impl Geometry {
    /// The geometry of a new brick of `size` bytes, at least [`MIN_SIZE`].
    pub fn for_size(size: u64) -> Self {
        let size = size - size % AREA_ALIGN;
        let ring = (size / 32).clamp(*RING_SIZES.start(), *RING_SIZES.end());
        let wal = Region {
            offset: AREA_ALIGN,
            len: ring - ring % RING_ALIGN,
        };
        // 80 bytes describe a 64 KiB chunk; two slots for a tree of 8/10 of the brick: a brick of small files may have more
        // names than data, and the tree grows by doubling.
        let chunk_map = Region {
            offset: wal.end().next_multiple_of(AREA_ALIGN),
            len: (size / 512).next_multiple_of(AREA_ALIGN),
        };
        let extents = Region {
            offset: chunk_map.end(),
            len: size.saturating_sub(chunk_map.end()),
        };
        Self {
            size,
            wal,
            chunk_map,
            extents,
        }
    }

    /// Whether all parts lie, aligned and one after the other, on a device of `device` bytes.
    fn is_sound(&self, device: u64) -> bool {
        let parts = [self.wal, self.chunk_map, self.extents];
        let ends = parts
            .iter()
            .all(|part| part.offset.checked_add(part.len).is_some());
        ends && self.size <= device
            && self.size >= MIN_SIZE
            && self.wal.offset >= AREA_ALIGN
            && RING_SIZES.contains(&self.wal.len)
            && self.wal.len.is_multiple_of(RING_ALIGN)
            && self.wal.end() <= self.chunk_map.offset
            && self.chunk_map.len > 0
            && self.chunk_map.end() <= self.extents.offset
            && parts.iter().all(|part| part.offset % AREA_ALIGN == 0)
            && self.extents.len > 0
            && self.extents.len.is_multiple_of(4096)
            && self.extents.end() <= self.size
    }
}

/// What a superblock tells.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Superblock {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its generation: raised by a rebuild; a brick obeys only the highest it knows.
    pub generation: u64,
    /// The node that formatted it.
    pub node: NodeId,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's name when the brick was formatted or last told, at most [`MAX_VOLUME_NAME`] bytes.
    pub volume_name: String,
    /// Which of the volume's sets.
    pub set: SetIndex,
    /// How the set keeps data.
    pub kind: SetKind,
    /// Size of the volume's shards in bytes.
    pub shard_size: u64,
    /// The brick.
    pub brick: BrickId,
    /// Where things are.
    pub geometry: Geometry,
    /// The last view the brick was a member of. A view of more than about 50 bricks does not fit.
    pub view: Option<View>,
    /// Boot of the machine under which the last run that was a member ran (P8).
    pub boot: BootId,
    /// The runs that were members between which nothing written was lost, oldest first (P8).
    pub runs: Vec<RunId>,
    /// Whether the last run that was a member stopped in good order, as a member, with everything flushed.
    pub clean: bool,
    /// Whether the volume was deleted: the brick is never opened again.
    pub deleted: bool,
    /// Whether the brick lost something it had flushed: it counts as absent and heals from its peers.
    pub damaged: bool,
}

/// Why there is no usable superblock.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// No copy begins with the magic.
    #[error("not a brick: no superblock found")]
    NotABrick,
    /// Both copies are damaged.
    #[error("the superblock is damaged in both copies ({0})")]
    Damaged(&'static str),
    /// Written by a newer release.
    #[error(
        "the brick has format {found}, this release reads up to format {known}: use a newer release"
    )]
    Newer {
        /// Its format.
        found: u32,
        /// The newest this build reads.
        known: u32,
    },
    /// It uses features this build does not know.
    #[error(
        "the brick uses features this release does not know (to {purpose}: {bits:#x}): use a newer release"
    )]
    Features {
        /// "read" or "write".
        purpose: &'static str,
        /// The unknown bits.
        bits: u64,
    },
    /// The device is smaller than the smallest brick.
    #[error("{0} bytes are too few for a brick (at least {MIN_SIZE})")]
    TooSmall(u64),
    /// What it should tell does not fit.
    #[error("the superblock would have {0} bytes, more than fit")]
    TooLarge(usize),
    /// The device failed.
    #[error("superblock: {0}")]
    Io(#[from] io::Error),
}

/// A superblock as found on a device, with what is needed to change it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it tells.
    pub block: Superblock,
    /// Optional parts of the format in use.
    pub features: Features,
    counter: u64,
    /// Which of [`COPIES`] holds `block`.
    copy: usize,
}

impl Stored {
    /// Writes and flushes the first superblock of a new brick, in both copies.
    pub fn format(device: &dyn Device, block: Superblock) -> Result<Self, SuperblockError> {
        if device.len() < MIN_SIZE {
            return Err(SuperblockError::TooSmall(device.len()));
        }
        let mut stored = Self {
            block,
            features: Features::default(),
            counter: 0,
            copy: 1,
        };
        stored.write(device)?;
        stored.write(device)?;
        Ok(stored)
    }

    /// Which brick a device holds, if any: for a look at devices that others may have open.
    pub fn brick_on(len: u64, read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>) -> Option<BrickId> {
        let known = COPIES.into_iter().filter_map(|offset| {
            let mut bytes = [0; COPY_SIZE];
            let within = offset + COPY_SIZE as u64 <= len;
            if !within || read(offset, &mut bytes).is_err() {
                return None;
            }
            match decode(&bytes, len) {
                Ok(Decoded::Known(found)) => Some((found.counter, found.block.brick)),
                _ => None,
            }
        });
        known
            .max_by_key(|(counter, _)| *counter)
            .map(|(_, brick)| brick)
    }

    /// Reads the newest valid copy. With `writing`, also refuses what this build may only read.
    pub fn load(device: &dyn Device, writing: bool) -> Result<Self, SuperblockError> {
        let mut best: Option<Self> = None;
        let mut problem = SuperblockError::NotABrick;
        let mut newer = None;
        for (copy, offset) in COPIES.into_iter().enumerate() {
            if device.len() < offset + COPY_SIZE as u64 {
                continue;
            }
            let mut bytes = [0; COPY_SIZE];
            device.read_at(offset, &mut bytes)?;
            match decode(&bytes, device.len()) {
                Ok(Decoded::Known(mut found)) => {
                    found.copy = copy;
                    if best
                        .as_ref()
                        .is_none_or(|best| best.counter < found.counter)
                    {
                        best = Some(*found);
                    }
                }
                Ok(Decoded::Newer(format, counter)) => newer = newer.max(Some((counter, format))),
                Err(SuperblockError::NotABrick) => {}
                Err(error) => problem = error,
            }
        }
        if let Some((counter, found)) = newer
            && best.as_ref().is_none_or(|best| best.counter < counter)
        {
            let known = FORMAT;
            return Err(SuperblockError::Newer { found, known });
        }
        let best = best.ok_or(problem)?;
        best.check_features(writing)?;
        Ok(best)
    }

    /// Changes it durably. On an error the device holds the old or the new state, and this value is the old one.
    pub fn update(
        &mut self,
        device: &dyn Device,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), SuperblockError> {
        let mut next = self.clone();
        change(&mut next.block);
        next.write(device)?;
        *self = next;
        Ok(())
    }

    fn write(&mut self, device: &dyn Device) -> Result<(), SuperblockError> {
        let copy = 1 - self.copy;
        let bytes = encode(&self.block, self.features, self.counter + 1)?;
        device.write_at(COPIES[copy], &bytes)?;
        device.flush()?;
        (self.counter, self.copy) = (self.counter + 1, copy);
        Ok(())
    }

    fn check_features(&self, writing: bool) -> Result<(), SuperblockError> {
        let unknown = |purpose, bits| Err(SuperblockError::Features { purpose, bits });
        match (
            self.features.to_read & !KNOWN.to_read,
            self.features.to_write & !KNOWN.to_write,
        ) {
            (0, 0) => Ok(()),
            (0, bits) if writing => unknown("write", bits),
            (0, _) => Ok(()),
            (bits, _) => unknown("read", bits),
        }
    }
}

enum Decoded {
    Known(Box<Stored>),
    Newer(u32, u64),
}

fn encode(
    block: &Superblock,
    features: Features,
    counter: u64,
) -> Result<[u8; COPY_SIZE], SuperblockError> {
    let body = postcard::to_allocvec(block)
        .map_err(|_| SuperblockError::Damaged("it cannot be encoded"))?;
    if body.len() > COPY_SIZE - HEADER {
        return Err(SuperblockError::TooLarge(body.len() + HEADER));
    }
    let mut bytes = [0; COPY_SIZE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&counter.to_le_bytes());
    bytes[24..32].copy_from_slice(&features.to_read.to_le_bytes());
    bytes[32..40].copy_from_slice(&features.to_write.to_le_bytes());
    bytes[40..48].copy_from_slice(&features.ignorable.to_le_bytes());
    bytes[48..52].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes[HEADER..HEADER + body.len()].copy_from_slice(&body);
    let crc = crc32fast::hash(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8; COPY_SIZE], device: u64) -> Result<Decoded, SuperblockError> {
    let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    let u64_at = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[at + i]));
    if &bytes[..8] != MAGIC {
        return Err(SuperblockError::NotABrick);
    }
    let mut zeroed = *bytes;
    zeroed[12..16].fill(0);
    if crc32fast::hash(&zeroed) != u32_at(12) {
        return Err(SuperblockError::Damaged("wrong checksum"));
    }
    let (format, counter) = (u32_at(8), u64_at(16));
    if format > FORMAT {
        return Ok(Decoded::Newer(format, counter));
    }
    let body = bytes.get(HEADER..HEADER + (u32_at(48) as usize).min(COPY_SIZE));
    let body = body.ok_or(SuperblockError::Damaged("wrong length"))?;
    let block: Superblock =
        postcard::from_bytes(body).map_err(|_| SuperblockError::Damaged("unreadable"))?;
    if !block.geometry.is_sound(device) {
        return Err(SuperblockError::Damaged(
            "impossible geometry for this device",
        ));
    }
    let features = Features {
        to_read: u64_at(24),
        to_write: u64_at(32),
        ignorable: u64_at(40),
    };
    Ok(Decoded::Known(Box::new(Stored {
        block,
        features,
        counter,
        copy: 0,
    })))
}

#[cfg(test)]
mod tests;
