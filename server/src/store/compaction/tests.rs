//! A tree that has grown and is needed no more, on a simulated disk.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Epoch, InodeId, Pos};
use mortar_protocol::limits::BLOCK;

use super::is_worth_it;
use crate::device::Device;
use crate::device::sim::{Cut, SimDisk, Survival};
use crate::store::Store;
use crate::store::tests::format_params;

const SIZE: u64 = 256 << 20;
const MIB: u64 = 1 << 20;
/// Records that are made, and how many of them there are for one that stays.
const RECORDS: u64 = 12_000;
const STAYS: u64 = 100;

#[test]
fn a_tree_is_compacted_where_that_shows() {
    assert!(is_worth_it(10 * MIB, MIB, 4 * MIB));
    assert!(is_worth_it(5 * MIB, 3 * MIB, 4 * MIB));
    assert!(is_worth_it(100 * MIB, 70 * MIB, 4 * MIB));
    assert!(!is_worth_it(100 * MIB, 80 * MIB, 4 * MIB));
    assert!(!is_worth_it(5 * MIB, 5 * MIB, 4 * MIB));
    assert!(!is_worth_it(0, 0, 4 * MIB));
}

struct Rig {
    disk: Arc<SimDisk>,
    store: Store,
    clock: u64,
}

fn key(n: u64) -> Bytes {
    Bytes::from([&b"w"[..], &n.to_be_bytes()].concat())
}

fn value(n: u64) -> Bytes {
    vec![n as u8; 600 + n as usize % 500].into()
}

fn object() -> Object {
    Object {
        id: InodeId(100),
        shard: 0,
    }
}

impl Rig {
    fn open(disk: Arc<SimDisk>) -> Self {
        let mut store = Store::open(disk.clone()).unwrap();
        // No brick of its set is away.
        store.keep_log(false, false);
        let clock = 0;
        Self { disk, store, clock }
    }

    fn new() -> Self {
        let disk = SimDisk::new(SIZE, 1);
        let device: Arc<dyn Device> = disk.clone();
        Store::format(&device, &format_params()).unwrap();
        Self::open(disk)
    }

    fn tick(&mut self, millis: u64) {
        self.clock += millis * 1_000_000;
        let now = Mono(self.clock);
        self.store.poll(now, &mut |_| Vec::new()).unwrap();
    }

    /// Nothing happens for a while.
    fn rest(&mut self) {
        for _ in 0..200 {
            self.tick(100);
        }
    }

    fn append(&mut self, effects: Vec<Effect>, body: Bytes) {
        let pos = Pos {
            epoch: Epoch(1),
            seq: self.store.head().seq.next(),
        };
        let kind = EntryKind::Internal;
        let entry = Entry {
            pos,
            kind,
            effects,
            body,
        };
        self.store.append(&[Arc::new(entry)]).unwrap();
        self.store.announce(pos.seq);
        self.tick(60);
    }

    /// Makes or removes all records but those that stay.
    fn records(&mut self, put: bool) {
        let all: Vec<u64> = (0..RECORDS).filter(|n| put || n % STAYS != 0).collect();
        for some in all.chunks(100) {
            let effect = |n: &u64| match put {
                true => Effect::Put {
                    key: key(*n),
                    value: value(*n),
                },
                false => Effect::Del { key: key(*n) },
            };
            self.append(some.iter().map(effect).collect(), Bytes::new());
        }
    }

    fn write(&mut self, fill: u8) {
        let len = 20 * BLOCK as u32;
        let effect = Effect::Write {
            object: object(),
            offset: 0,
            at: 0,
            len,
        };
        self.append(vec![effect], vec![fill; len as usize].into());
    }

    fn tree_blocks(&self) -> u64 {
        self.store.allocator().lock().tree_blocks()
    }

    /// Fails unless exactly the records that stay are there, with what the file holds, and no block is lost.
    fn verify(&self, fill: u8, what: &str) {
        let at = self.store.head().seq;
        let mut found = Vec::new();
        let mut note = |key: &[u8], value: &[u8]| {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        };
        self.store.scan(b"w", b"x", at, &mut note).unwrap();
        let stay = (0..RECORDS).filter(|n| n % STAYS == 0);
        let expected: Vec<(Bytes, Bytes)> = stay.map(|n| (key(n), value(n))).collect();
        assert!(found == expected, "{what}: {} records", found.len());
        let len = 20 * BLOCK as usize;
        let data = self.store.read_now(object(), 0, len, at).unwrap();
        assert!(data.iter().all(|byte| *byte == fill), "{what}: other data");
    }
}

/// A brick whose tree has grown and shrunk, everything in a checkpoint; and its free space before.
fn grown() -> (Rig, u64) {
    let mut rig = Rig::new();
    rig.write(1);
    rig.rest();
    let free = rig.store.space().free;
    rig.records(true);
    assert!(rig.store.space().free < free, "the tree has not grown");
    rig.records(false);
    rig.write(2);
    rig.store.settle(&mut |_| Vec::new()).unwrap();
    assert!(rig.store.space().free < free);
    (rig, free)
}

#[test]
fn free_space_after_removals_is_what_it_was() {
    let (mut rig, free) = grown();
    let held = rig.tree_blocks();
    for round in 0..3 {
        rig.rest();
        assert_eq!(rig.store.space().free, free, "round {round}");
        assert_eq!(rig.store.space().free_now, free, "round {round}");
        assert!(rig.tree_blocks() * 4 < held);
        rig.verify(2, "compacted");
        let disk = rig.disk.reboot(Survival::Nothing);
        rig = Rig::open(disk);
        rig.verify(2, "opened again");
        assert_eq!(rig.store.space().free, free, "round {round}, opened again");
        rig.records(true);
        rig.records(false);
    }
}

#[test]
fn power_may_fail_at_any_moment_of_a_compaction() {
    let (mut rig, free) = grown();
    let held = rig.tree_blocks();
    rig.disk.record();
    rig.rest();
    let cuts = rig.disk.recorded();
    assert!(rig.tree_blocks() < held, "compacted");
    // About a hundred of all moments, and each flush.
    let stride = cuts.len() / 100 + 1;
    let flush = |cut: &Cut| cut.write().is_none();
    let some = cuts
        .iter()
        .enumerate()
        .filter(|(at, cut)| at % stride == 0 || flush(cut));
    let mut tried = 0;
    for (at, cut) in some {
        for (survival, seed) in [
            (Survival::Random, 1),
            (Survival::Random, 2),
            (Survival::Process, 0),
        ] {
            let what = format!("{survival:?} {seed} at step {} ({at})", cut.step());
            let disk = cut.reboot(survival, seed);
            let store = Store::open(disk.clone()).unwrap_or_else(|error| {
                panic!("{what}: {error} {:?} of {}", cut.write(), cuts.len())
            });
            let mut again = Rig {
                disk,
                store,
                clock: 0,
            };
            again.verify(2, &what);
            if tried % 7 == 0 {
                again.write(3);
                again.rest();
                again.verify(3, &what);
                assert_eq!(again.store.space().free, free, "{what}");
            }
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried} moments");
}
