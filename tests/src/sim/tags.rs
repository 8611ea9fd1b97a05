//! Tagged blocks: each 512 bytes that clients write say who wrote them, with which operation, and where.

/// Bytes of a tagged block.
pub const BLOCK: usize = 512;
/// Stands for the offset of appended data, which the writer does not know.
pub const ANYWHERE: u64 = u64::MAX;
/// What an untouched block counts as.
pub const ZERO: u64 = 0;

const MAGIC: &[u8; 8] = b"mortar-t";

/// What block `part` of operation `record` counts as.
pub fn value(record: usize, part: u64) -> u64 {
    ((record as u64) << 16) | (part + 1)
}

/// The bytes of `count` blocks written at `offset` by an operation.
pub fn make(client: u32, record: usize, offset: u64, count: u64) -> Vec<u8> {
    let mut all = Vec::with_capacity(count as usize * BLOCK);
    for part in 0..count {
        let value = value(record, part);
        let at = match offset {
            ANYWHERE => ANYWHERE,
            offset => offset + part * BLOCK as u64,
        };
        let mut block = [(value as u8) ^ 0x5a; BLOCK];
        block[..8].copy_from_slice(MAGIC);
        block[8..16].copy_from_slice(&value.to_le_bytes());
        block[16..24].copy_from_slice(&at.to_le_bytes());
        block[24..28].copy_from_slice(&client.to_le_bytes());
        let crc = crc32fast::hash(&block[..BLOCK - 4]);
        block[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        all.extend_from_slice(&block);
    }
    all
}

/// What the blocks read at `offset` count as.
///
/// # Errors
/// If one of them is neither untouched nor a whole tagged block, or lies where it was not written.
pub fn parse(offset: u64, bytes: &[u8]) -> Result<Vec<u64>, String> {
    if !bytes.len().is_multiple_of(BLOCK) {
        return Err(format!("{} bytes are not whole blocks", bytes.len()));
    }
    let mut values = Vec::new();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        let at = offset + (index * BLOCK) as u64;
        if block.iter().all(|byte| *byte == 0) {
            values.push(ZERO);
            continue;
        }
        let word = |from: usize| {
            let bytes = block[from..from + 8].try_into();
            bytes.map_or(0, u64::from_le_bytes)
        };
        let crc = crc32fast::hash(&block[..BLOCK - 4]).to_le_bytes();
        if block[..8] != MAGIC[..] || block[BLOCK - 4..] != crc {
            return Err(format!("the block at {at} is torn: {:02x?}", &block[..32]));
        }
        if word(16) != ANYWHERE && word(16) != at {
            return Err(format!("the block of {} lies at {at}", word(16)));
        }
        values.push(word(8));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_and_misplaced_blocks_are_found() {
        let mut bytes = make(3, 7, 1024, 2);
        assert_eq!(parse(1024, &bytes), Ok(vec![value(7, 0), value(7, 1)]));
        assert!(parse(512, &bytes).is_err());
        assert_eq!(parse(0, &[0; BLOCK]), Ok(vec![ZERO]));
        let anywhere = make(3, 7, ANYWHERE, 1);
        assert_eq!(parse(8192, &anywhere), Ok(vec![value(7, 0)]));
        bytes[BLOCK / 2] ^= 1;
        assert!(parse(1024, &bytes).is_err());
        assert!(parse(1024, &bytes[..700]).is_err());
    }
}
