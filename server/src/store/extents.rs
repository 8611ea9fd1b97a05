//! Extent records: where the blocks of an object lie, 32 blocks (128 KiB) to a record.
//!
//! ```text
//! key    'E' | inode id u64 BE | shard u32 BE | chunk u32 BE
//! value  version u8 = 1 | data mask u32 LE | unwritten mask u32 LE | shared mask u32 LE
//!        | per block that is data or unwritten: physical block, 5 bytes LE; then, if data, crc32 u32 LE
//! key    'R' | physical block u64 BE      value  number of references u32 LE, only where it is above 1
//! ```

use bytes::Bytes;
use mortar_protocol::entry::Object;
use mortar_protocol::ids::InodeId;

/// Blocks of one record.
pub const CHUNK_BLOCKS: u32 = 32;
/// Highest physical block a record can name.
pub const MAX_BLOCK: u64 = (1 << 40) - 1;

/// What a block of an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Block {
    /// Nothing: reads zeros.
    #[default]
    Hole,
    /// Reserved: reads zeros.
    Unwritten {
        /// Physical block.
        at: u64,
    },
    /// Data.
    Data {
        /// Physical block.
        at: u64,
        /// crc32 of its 4 KiB.
        crc: u32,
        /// Whether other objects may refer to the physical block too.
        shared: bool,
    },
    /// Data that was lost: EIO until overwritten whole. Stored as data at [`MAX_BLOCK`].
    Lost,
}

impl Block {
    /// The physical block it takes.
    pub fn physical(self) -> Option<u64> {
        match self {
            Self::Unwritten { at } | Self::Data { at, .. } => Some(at),
            Self::Hole | Self::Lost => None,
        }
    }
}

/// 32 blocks of an object.
pub type Chunk = [Block; CHUNK_BLOCKS as usize];

/// A record that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an extent record is damaged")]
pub struct DamagedExtent;

/// Key of an extent record.
pub fn key(object: Object, chunk: u32) -> [u8; 17] {
    let mut key = [0; 17];
    key[0] = b'E';
    key[1..9].copy_from_slice(&object.id.0.to_be_bytes());
    key[9..13].copy_from_slice(&object.shard.to_be_bytes());
    key[13..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// Object and chunk of an extent record's key.
pub fn parse_key(key: &[u8]) -> Option<(Object, u32)> {
    let (b'E', rest) = key.split_first()? else {
        return None;
    };
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (shard, rest) = rest.split_first_chunk::<4>()?;
    let chunk: [u8; 4] = rest.try_into().ok()?;
    let object = Object {
        id: InodeId(u64::from_be_bytes(*id)),
        shard: u32::from_be_bytes(*shard),
    };
    Some((object, u32::from_be_bytes(chunk)))
}

/// Key of a reference count.
pub fn reference_key(block: u64) -> [u8; 9] {
    let mut key = [b'R'; 9];
    key[1..].copy_from_slice(&block.to_be_bytes());
    key
}

/// Encodes a chunk; `None` if all of it is hole (no record then).
pub fn encode(chunk: &Chunk) -> Option<Vec<u8>> {
    let (mut data, mut unwritten, mut shares) = (0u32, 0u32, 0u32);
    let mut body = Vec::with_capacity(13 + 9 * chunk.len());
    body.resize(13, 0);
    for (bit, block) in chunk.iter().enumerate() {
        match *block {
            Block::Hole => {}
            Block::Unwritten { at } => {
                unwritten |= 1 << bit;
                body.extend_from_slice(&at.to_le_bytes()[..5]);
            }
            Block::Data { at, crc, shared } => {
                data |= 1 << bit;
                shares |= u32::from(shared) << bit;
                body.extend_from_slice(&at.to_le_bytes()[..5]);
                body.extend_from_slice(&crc.to_le_bytes());
            }
            Block::Lost => {
                data |= 1 << bit;
                body.extend_from_slice(&MAX_BLOCK.to_le_bytes()[..5]);
                body.extend_from_slice(&[0; 4]);
            }
        }
    }
    if data | unwritten == 0 {
        return None;
    }
    body[0] = 1;
    body[1..5].copy_from_slice(&data.to_le_bytes());
    body[5..9].copy_from_slice(&unwritten.to_le_bytes());
    body[9..13].copy_from_slice(&shares.to_le_bytes());
    Some(body)
}

/// Decodes a chunk.
///
/// # Errors
/// If the bytes are no chunk of a known version.
pub fn decode(bytes: &[u8]) -> Result<Chunk, DamagedExtent> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], DamagedExtent> {
        let (first, rest) = bytes.split_first_chunk::<N>().ok_or(DamagedExtent)?;
        *bytes = rest;
        Ok(*first)
    }
    let mut rest = bytes;
    if take::<1>(&mut rest)? != [1] {
        return Err(DamagedExtent);
    }
    let data = u32::from_le_bytes(take(&mut rest)?);
    let unwritten = u32::from_le_bytes(take(&mut rest)?);
    let shares = u32::from_le_bytes(take(&mut rest)?);
    if data & unwritten != 0 || shares & !data != 0 {
        return Err(DamagedExtent);
    }
    let mut chunk = Chunk::default();
    for (bit, block) in chunk.iter_mut().enumerate() {
        if (data | unwritten) >> bit & 1 == 0 {
            continue;
        }
        let low: [u8; 5] = take(&mut rest)?;
        let at = u64::from_le_bytes([low[0], low[1], low[2], low[3], low[4], 0, 0, 0]);
        *block = if unwritten >> bit & 1 == 1 {
            Block::Unwritten { at }
        } else {
            let crc = u32::from_le_bytes(take(&mut rest)?);
            let shared = shares >> bit & 1 == 1;
            if at == MAX_BLOCK {
                Block::Lost
            } else {
                Block::Data { at, crc, shared }
            }
        };
    }
    if rest.is_empty() {
        Ok(chunk)
    } else {
        Err(DamagedExtent)
    }
}

/// Decodes a reference count; absent means 1.
///
/// # Errors
/// If it is no count.
pub fn decode_count(bytes: Option<&Bytes>) -> Result<u32, DamagedExtent> {
    match bytes {
        None => Ok(1),
        Some(bytes) => Ok(u32::from_le_bytes(
            bytes[..].try_into().map_err(|_| DamagedExtent)?,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block() -> impl Strategy<Value = Block> {
        prop_oneof![
            Just(Block::Hole),
            Just(Block::Lost),
            (0..MAX_BLOCK).prop_map(|at| Block::Unwritten { at }),
            (0..MAX_BLOCK, any::<u32>(), any::<bool>()).prop_map(|(at, crc, shared)| Block::Data {
                at,
                crc,
                shared
            }),
        ]
    }

    proptest! {
        #[test]
        fn chunks_round_trip(blocks in proptest::collection::vec(block(), 32)) {
            let chunk: Chunk = blocks.try_into().unwrap();
            match encode(&chunk) {
                Some(bytes) => prop_assert_eq!(decode(&bytes).unwrap(), chunk),
                None => prop_assert_eq!(chunk, Chunk::default()),
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
            let _ = parse_key(&bytes);
        }
    }
}
