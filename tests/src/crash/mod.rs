//! Crashes: short workloads on one brick, ended at every write and flush of its disk, recovered and compared with a
//! model.
//!
//! A workload is a sequence of the 14 operations in [`ops`] on three names. The brick is the real one (store, rules,
//! set log) on a simulated disk; [`suite::Suite`] runs a sequence once, keeps the disk as each step would leave it, and
//! recovers from every one of these crashes: of the process (all that was written is there), and of the machine
//! (what was not flushed is lost, or survives in any combination of sectors). Then
//!
//! - the state is one that the operations passed through, not older than the newest one answered as flushed (after the
//!   death of the process: as the newest one answered at all);
//! - names, link counts, attributes, contents and blocks agree with one another, and free space is what nothing uses;
//! - what a client sends again, because it got no answer or was told of the loss, happens once;
//! - the brick takes changes, and these and all it showed survive another loss of power.
//!
//! A sample of the crashes is followed by crashes at every step of the recovery, and in others a flush fails first.
//!
//! `cargo test -p mortar-tests --test crash` runs all sequences of length 1 and 2 and a seeded choice of those of
//! length 3; `cargo crash --length 3` runs all of these (hours), `--help` tells the rest.

pub mod client;
pub mod look;
pub mod model;
pub mod ops;
pub mod plan;
pub mod rig;
pub mod suite;
