//! The metadata tree: redb on the brick's own device.
