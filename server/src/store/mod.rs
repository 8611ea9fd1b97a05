//! A brick's state: pending map over tree and extents, checkpoints, recovery.
