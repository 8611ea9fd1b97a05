//! Limits that both sides of the wire hold each other to.

/// Wire versions this build speaks, oldest and newest.
pub const WIRE_VERSIONS: std::ops::RangeInclusive<u16> = 1..=1;
/// Largest encoded head of a frame, in bytes.
pub const MAX_HEAD: usize = 256 << 10;
/// Largest body of a frame, in bytes: the most an entry holds inline, and a little for its neighbours in a batch.
pub const MAX_BODY: usize = 4 << 20;
/// Longest name of a directory entry, in bytes (as Linux NAME_MAX).
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const MAX_SYMLINK: usize = 4095;
/// Longest name of an extended attribute, in bytes.
pub const MAX_XATTR_NAME: usize = 255;
/// Longest value of an extended attribute, in bytes (as Linux XATTR_SIZE_MAX).
pub const MAX_XATTR_VALUE: usize = 65_536;
/// Largest sum of names and values of one inode's extended attributes, in bytes.
pub const MAX_XATTR_TOTAL: usize = 256 << 10;
/// Most hard links of a file.
pub const MAX_LINKS: u32 = 65_000;
/// Largest size of a file, in bytes (the kernel's own limit for FUSE is i64::MAX).
pub const MAX_FILE_SIZE: u64 = 1 << 62;
/// Pieces of at least this many bytes are staged, shorter ones ride inline in the entry.
pub const STAGE_MIN: usize = 64 << 10;
/// Size of a staged piece, in bytes: it is written while the next arrives.
pub const STAGE_MAX: usize = 256 << 10;
/// Most bytes an entry holds inline.
pub const MAX_INLINE: usize = 1 << 20;
/// Most results kept per session and set.
pub const MAX_RESULTS: usize = 1_024;
/// Most locks a client claims again on one set after the set lost changes; a request of so many fits into a head.
pub const MAX_CLAIMS: usize = 4_096;
/// Unit of allocation and of checksums, in bytes.
pub const BLOCK: u64 = 4_096;
/// Default size of a shard, in bytes (`features.shard-block-size`).
pub const SHARD_SIZE: u64 = 64 << 20;
/// A file up to this size comes back with the reply to its open.
pub const OPEN_DATA_MAX: u64 = 64 << 10;
/// Offsets of directory entries below this value are `.`, `..` and the start.
pub const DIR_OFFSET_MIN: u64 = 3;
