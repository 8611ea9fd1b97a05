//! What files contain whose power fails: of every block it can be told whose it is and which version.

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// The contents of a block of the file `name`.
pub fn fill(name: &str, version: u64, block: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(&block.to_le_bytes());
    hasher.update(&version.to_le_bytes());
    let mut data = vec![0; BLOCK];
    data[..8].copy_from_slice(&version.to_le_bytes());
    hasher.finalize_xof().fill(&mut data[8..]);
    data
}

/// Which version of that block `bytes` is, or a beginning of; `None` if it is none.
pub fn version_of(name: &str, block: u64, bytes: &[u8]) -> Option<u64> {
    let version = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (fill(name, version, block)[..bytes.len()] == *bytes && version > 0).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_block_is_noticed() {
        let data = fill("a", 7, 3);
        assert_eq!(version_of("a", 3, &data), Some(7));
        assert_eq!(version_of("a", 3, &data[..100]), Some(7));
        assert_eq!(version_of("b", 3, &data), None);
        assert_eq!(version_of("a", 4, &data), None);
        let mut mixed = data.clone();
        mixed[2048..].copy_from_slice(&fill("a", 8, 3)[2048..]);
        assert_eq!(version_of("a", 3, &mixed), None);
        assert_eq!(version_of("a", 3, &[0; BLOCK]), None);
    }
}
