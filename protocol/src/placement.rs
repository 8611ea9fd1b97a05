//! Where a name, an inode and a shard lie: pure functions that client, brick and rebalance agree on.

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, SetIndex, Slot};
use crate::limits::DIR_OFFSET_MIN;

fn name_hash(parent: InodeId, name: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.0.to_be_bytes());
    hasher.update(name);
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    first
}

/// Slot of a directory entry: the first 16 bits of `blake3(parent id || name)`, big-endian.
pub fn slot(parent: InodeId, name: &[u8]) -> Slot {
    let hash = name_hash(parent, name);
    Slot::from_be_bytes([hash[0], hash[1]])
}

/// Offset of a directory entry: 63 bits of `blake3(parent id || name)`, slot first, at least [`DIR_OFFSET_MIN`].
///
/// It survives every change of the directory and the move of the entry to another set. Two names may share one.
pub fn dir_offset(parent: InodeId, name: &[u8]) -> u64 {
    (u64::from_be_bytes(name_hash(parent, name)) >> 1).max(DIR_OFFSET_MIN)
}

/// Slot of shard `shard` of a file; shard 0 lies with its inode.
///
/// Shards are spread evenly, not at random: each is as far from those before it as can be (the bits of its number are
/// reversed: a van der Corput sequence, which begins where the inode lies). Over a power of two of equal sets a file's
/// shards differ in number by one at most, and two neighbours never lie on one set.
pub fn shard_slot(id: InodeId, shard: u32) -> Slot {
    id.slot().wrapping_add((shard as Slot).reverse_bits())
}

/// Which set owns which slots: ranges in ascending order that cover all 65,536.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(try_from = "Vec<(Slot, SetIndex)>")]
pub struct Layout {
    /// First slot of each range and the set that owns it; the first range starts at 0.
    ranges: Vec<(Slot, SetIndex)>,
}

/// A layout that does not cover every slot exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the layout's ranges must start at slot 0 and rise")]
pub struct InvalidLayout;

impl TryFrom<Vec<(Slot, SetIndex)>> for Layout {
    type Error = InvalidLayout;

    fn try_from(ranges: Vec<(Slot, SetIndex)>) -> Result<Self, InvalidLayout> {
        Self::new(ranges)
    }
}

impl Layout {
    /// Equal shares for `sets` sets (at least 1), in order.
    pub fn even(sets: u32) -> Self {
        let sets = sets.clamp(1, 65_536);
        let first = |set: u32| (u64::from(set) * 65_536 / u64::from(sets)) as Slot;
        Self {
            ranges: (0..sets).map(|set| (first(set), SetIndex(set))).collect(),
        }
    }

    /// A layout from stored ranges.
    ///
    /// # Errors
    /// If they do not start at slot 0 or do not rise.
    pub fn new(ranges: Vec<(Slot, SetIndex)>) -> Result<Self, InvalidLayout> {
        let rises = ranges.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if ranges.first().is_none_or(|range| range.0 != 0) || !rises {
            return Err(InvalidLayout);
        }
        Ok(Self { ranges })
    }

    /// The set that owns `slot`.
    pub fn set_of(&self, slot: Slot) -> SetIndex {
        let after = self.ranges.partition_point(|range| range.0 <= slot);
        self.ranges[after.saturating_sub(1)].1
    }

    /// The set on which an inode's record lies.
    pub fn inode_set(&self, id: InodeId) -> SetIndex {
        self.set_of(id.slot())
    }

    /// The set on which a directory entry lies.
    pub fn name_set(&self, parent: InodeId, name: &[u8]) -> SetIndex {
        self.set_of(slot(parent, name))
    }

    /// The set on which a shard's data lies.
    pub fn shard_set(&self, id: InodeId, shard: u32) -> SetIndex {
        self.set_of(shard_slot(id, shard))
    }

    /// All sets that own slots, each once, in the order of their first slot.
    pub fn sets(&self) -> Vec<SetIndex> {
        let mut sets = Vec::new();
        for (_, set) in &self.ranges {
            if !sets.contains(set) {
                sets.push(*set);
            }
        }
        sets
    }

    /// The ranges: first slot and owner.
    pub fn ranges(&self) -> &[(Slot, SetIndex)] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_layout_covers_every_slot() {
        for sets in [1, 2, 3, 7, 100] {
            let layout = Layout::even(sets);
            let mut seen = vec![0u32; sets as usize];
            for slot in 0..=Slot::MAX {
                seen[layout.set_of(slot).0 as usize] += 1;
            }
            assert!(
                seen.iter().all(|n| n.abs_diff(65_536 / sets) <= 1),
                "{sets}: {seen:?}"
            );
        }
    }

    #[test]
    fn a_layout_that_does_not_cover_every_slot_is_not_read() {
        let read = |ranges: &[(Slot, SetIndex)]| {
            let bytes = postcard::to_stdvec(ranges).unwrap();
            postcard::from_bytes::<Layout>(&bytes).is_ok()
        };
        let (one, two) = (SetIndex(0), SetIndex(1));
        assert!(read(&[(0, one), (9, two)]));
        for wrong in [&[][..], &[(1, one)], &[(0, one), (0, two)]] {
            assert!(!read(wrong), "{wrong:?}");
        }
        let layout = Layout::even(3);
        let bytes = postcard::to_stdvec(&layout).unwrap();
        assert_eq!(postcard::from_bytes::<Layout>(&bytes), Ok(layout));
    }

    #[test]
    fn offset_starts_with_the_slot() {
        let dir = InodeId(77);
        assert_eq!((dir_offset(dir, b"name") >> 47) as Slot, slot(dir, b"name"));
    }

    #[test]
    fn a_file_lies_evenly_on_all_sets() {
        for sets in [2u32, 3, 4, 5, 7, 8, 12, 64] {
            let layout = Layout::even(sets);
            for first in (0..=Slot::MAX).step_by(257) {
                let id = InodeId(u64::from(first) << 48 | 5);
                let mut on = vec![0u32; sets as usize];
                for shard in 0..4 * sets {
                    on[layout.shard_set(id, shard).0 as usize] += 1;
                    // Every set is used before any is used twice more than it must.
                    let fair = shard / sets + 1;
                    let most = on.iter().max().copied().unwrap();
                    assert!(most <= fair + 1, "{sets} sets, {shard}: {on:?}");
                    if sets.is_power_of_two() {
                        assert!(most <= fair, "{sets} sets, {shard}: {on:?}");
                    }
                }
                assert!(on.iter().all(|on| *on > 0), "{sets} sets: {on:?}");
            }
        }
    }

    #[test]
    fn placement_is_pinned() {
        // These values are part of format 1: a change moves every name to another set.
        assert_eq!(slot(InodeId::ROOT, b"hello"), PINNED_SLOT);
        let id = InodeId(0x1234_0000_0000_0001);
        let slots = [0, 1, 2, 3, 65_536].map(|shard| shard_slot(id, shard));
        assert_eq!(slots, [0x1234, 0x9234, 0x5234, 0xd234, 0x1234]);
    }
    const PINNED_SLOT: Slot = 32_715;
}
