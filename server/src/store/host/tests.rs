//! Full hosts and full, fragmented bricks, on simulated disks.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Epoch, InodeId, Pos, SessionId, StageId};
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use crate::device::sim::{SimDisk, Survival};
use crate::device::{Device, is_full};
use crate::store::Store;
use crate::store::tests::format_params;

const SIZE: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

struct Rig {
    disk: Arc<SimDisk>,
    store: Store,
    clock: u64,
    stage: u64,
}

fn object(n: u64) -> Object {
    Object {
        id: InodeId(100 + n),
        shard: 0,
    }
}

impl Rig {
    fn new(host_left: Option<u64>) -> Self {
        let disk = SimDisk::new(SIZE, 1);
        if let Some(left) = host_left {
            disk.set_host_left(left);
        }
        let device: Arc<dyn Device> = disk.clone();
        Store::format(&device, &format_params()).unwrap();
        let mut store = Store::open(device).unwrap();
        // No brick of its set is away.
        store.keep_log(false, false);
        let (clock, stage) = (0, 0);
        let mut rig = Self {
            disk,
            store,
            clock,
            stage,
        };
        rig.tick();
        rig
    }

    fn tick(&mut self) {
        self.tick_after(200_000_000);
    }

    fn tick_after(&mut self, nanos: u64) {
        self.clock += nanos;
        let now = Mono(self.clock);
        self.store.poll(now, &mut |_| Vec::new()).unwrap();
    }

    /// Ticks with a checkpoint in between.
    fn checkpoint(&mut self) {
        self.store.announce(self.store.head().seq);
        for _ in 0..3 {
            self.tick();
            self.store.want_checkpoint();
            self.tick();
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
    }

    /// Writes bulk data in the way of clients.
    fn write_staged(&mut self, n: u64, offset: u64, len: u64) -> io::Result<()> {
        self.stage += 1;
        let stage = StageId {
            session: SessionId(1),
            number: self.stage,
        };
        let data = Bytes::from(vec![n as u8 + 1; len as usize]);
        for _ in 0..5 {
            let result = Arc::new(Mutex::new(None));
            let told = result.clone();
            self.store.stage(
                stage,
                data.clone(),
                Box::new(move |result| *told.lock() = Some(result)),
            );
            match result.lock().take().unwrap() {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.checkpoint();
        }
        let crcs = self.store.stage_info(stage).unwrap().crcs;
        let object = object(n);
        let attach = Effect::Attach {
            object,
            offset,
            stage,
            crcs,
        };
        self.append(vec![attach], Bytes::new());
        Ok(())
    }

    /// Writes staged pieces until there is no space; gives how many MiB.
    fn fill(&mut self) -> u64 {
        for n in 0.. {
            match self.write_staged(n / 64, n % 64 * MIB, MIB) {
                Ok(()) => self.store.announce(self.store.head().seq),
                Err(error) => {
                    assert!(is_full(&error), "{error}");
                    return n;
                }
            }
            self.tick();
        }
        unreachable!()
    }

    fn write_inline(&mut self, n: u64, offset: u64, len: u32) {
        let object = object(n);
        let write = Effect::Write {
            object,
            offset,
            at: 0,
            len,
        };
        self.append(vec![write], vec![7; len as usize].into());
    }

    fn reserve(&mut self, n: u64, len: u64) {
        let reserve = Effect::Reserve {
            object: object(n),
            offset: 0,
            len,
            zero: false,
        };
        self.append(vec![reserve], Bytes::new());
    }

    fn punch(&mut self, n: u64, offset: u64, len: u64) {
        let object = object(n);
        let punch = Effect::Punch {
            object,
            offset,
            len,
        };
        self.append(vec![punch], Bytes::new());
    }
}

#[test]
fn a_full_host_is_a_full_brick_and_gets_its_space_back() {
    let mut rig = Rig::new(Some(120 * MIB));
    let before = rig.store.space().free;
    assert!(before < 110 * MIB && before > 60 * MIB, "{before}");
    let written = rig.fill();
    assert!(written > 40 && written < 110, "{written} MiB");
    rig.checkpoint();
    assert_eq!(rig.store.applied(), rig.store.head());
    // Somebody else takes what is left there.
    rig.disk.set_host_left(0);
    rig.tick();
    // What has been admitted fits all the same.
    let mut inline = 0;
    while rig.store.space().free > 64 << 10 && inline < 100 {
        rig.write_inline(900, inline * (32 << 10), 32 << 10);
        inline += 1;
    }
    rig.checkpoint();
    assert_eq!(rig.store.applied(), rig.store.head());
    assert_eq!(rig.store.poisoned(), None);
    // Removal works, and what it frees goes back to the host.
    for n in [0, 1, 900] {
        rig.punch(n, 0, u64::MAX);
    }
    rig.checkpoint();
    rig.checkpoint();
    assert_eq!(rig.store.applied(), rig.store.head());
    assert_eq!(rig.store.poisoned(), None);
    let left = rig.disk.host_left().unwrap();
    assert!(left > (written - 30) * MIB, "{left} of {written} MiB");
    // All of it can be written again, also by the next run.
    let again = rig.fill();
    assert!(again + 8 >= written.min(left / MIB), "{again} of {written}");
    rig.checkpoint();
    let disk = rig.disk.reboot(Survival::Process);
    disk.set_host_left(0);
    let store = Store::open(disk).unwrap();
    assert_eq!(store.poisoned(), None);
}

#[test]
fn space_on_its_way_back_to_the_host_is_still_free() {
    let mut rig = Rig::new(Some(120 * MIB));
    rig.fill();
    rig.checkpoint();
    rig.disk.set_host_left(0);
    rig.tick();
    rig.punch(0, 0, u64::MAX);
    rig.store.announce(rig.store.head().seq);
    rig.tick();
    let before = rig.store.space().free;
    assert!(before > 40 * MIB, "{before}");
    // The checkpoint and the return of space take their time; at every moment of it there is room for a write.
    rig.disk.queue(true);
    rig.store.want_checkpoint();
    let mut quiet = 0;
    while quiet < 30 {
        rig.tick_after(10_000_000);
        for ran in [false, true] {
            if ran {
                quiet = if rig.disk.run(0) { 0 } else { quiet + 1 };
            }
            let free = rig.store.space().free;
            assert!(free + 4 * MIB > before, "{free} of {before}");
            rig.stage += 1;
            let id = StageId {
                session: SessionId(1),
                number: rig.stage,
            };
            let told = Arc::new(Mutex::new(None));
            let result = told.clone();
            let data = Bytes::from(vec![1; 64 << 10]);
            let done = move |outcome| *result.lock() = Some(outcome);
            let waiting = rig.disk.waiting();
            rig.store.stage(id, data, Box::new(done));
            if rig.disk.waiting() > waiting {
                rig.disk.run(waiting);
            }
            if let Some(Err(error)) = told.lock().take() {
                assert!(!is_full(&error), "{error}");
            }
            rig.store.drop_stage(id);
        }
    }
    let left = rig.disk.host_left().unwrap();
    assert!(left > 20 * MIB, "{left} went back");
}

#[test]
fn what_is_admitted_has_its_space_before_it_is_applied() {
    let mut rig = Rig::new(Some(60 * MIB));
    // Somebody else fills the host.
    rig.disk.set_host_left(0);
    for n in 0..120 {
        rig.write_inline(n % 3, n * (32 << 10), 32 << 10);
    }
    rig.checkpoint();
    assert_eq!(rig.store.applied(), rig.store.head());
    assert_eq!(rig.store.poisoned(), None);
}

#[test]
fn what_the_host_has_no_space_for_waits_until_it_has() {
    let mut rig = Rig::new(Some(100 * MIB));
    // More than is ready, admitted when there was space.
    let free = rig.store.space().free;
    let effect = Effect::Reserve {
        object: object(0),
        offset: 0,
        len: free / 2 / BLOCK * BLOCK,
        zero: false,
    };
    rig.disk.set_host_left(0);
    rig.append(vec![effect], Bytes::new());
    rig.checkpoint();
    assert!(rig.store.applied() < rig.store.head());
    assert_eq!(rig.store.poisoned(), None);
    rig.store.settle(&mut |_| Vec::new()).unwrap();
    let disk = rig.disk.reboot(Survival::Process);
    disk.set_host_left(100 * MIB);
    rig.store = Store::open(disk).unwrap();
    rig.checkpoint();
    assert_eq!(rig.store.applied(), rig.store.head());
}

#[test]
fn the_tree_has_chunks_when_data_has_fragmented_all_there_is() {
    let mut rig = Rig::new(None);
    let reserve = |n, blocks| {
        let (object, len) = (object(n), blocks * BLOCK);
        let (offset, zero) = (0, false);
        vec![Effect::Reserve {
            object,
            offset,
            len,
            zero,
        }]
    };
    let blocks = rig.store.space().free / BLOCK;
    rig.append(reserve(0, blocks), Bytes::new());
    rig.checkpoint();
    // All but every eighth block is freed, and used by another file up to the last block.
    for first in (0..blocks).step_by(8) {
        rig.punch(0, first * BLOCK, 7 * BLOCK);
    }
    rig.checkpoint();
    rig.append(reserve(1, rig.store.space().free / BLOCK), Bytes::new());
    rig.checkpoint();
    assert_eq!(rig.store.applied(), rig.store.head());
    for first in (0..6_000).step_by(8) {
        rig.punch(1, first * BLOCK, 5 * BLOCK);
    }
    rig.checkpoint();
    assert_eq!(rig.store.allocator().lock().free_chunk_at_top(), None);
    // Names are made until the tree has too little for more; what removes them still works.
    let key = |round, n| Bytes::from(format!("k{round}-{n}"));
    let mut rounds = 0;
    while rig.store.space().free > 0 {
        let puts = (0..100).map(|n| Effect::Put {
            key: key(rounds, n),
            value: vec![n as u8; 3_000].into(),
        });
        rig.append(puts.collect(), Bytes::new());
        rig.checkpoint();
        assert_eq!(rig.store.poisoned(), None, "round {rounds}");
        assert_eq!(rig.store.applied(), rig.store.head());
        rounds += 1;
    }
    assert!(rounds > 2, "{rounds} rounds");
    for round in 0..rounds {
        for n in 0..100 {
            let key = key(round, n);
            rig.append(vec![Effect::Del { key }], Bytes::new());
        }
    }
    rig.punch(1, 0, u64::MAX);
    for _ in 0..2 * rounds {
        rig.checkpoint();
    }
    assert_eq!(rig.store.poisoned(), None);
    assert_eq!(rig.store.applied(), rig.store.head());
    assert!(rig.store.space().free > 0);
}

#[test]
fn bulk_data_waits_for_what_a_removal_before_it_gives_back() {
    let mut rig = Rig::new(Some(1 << 40));
    let written = rig.fill();
    rig.checkpoint();
    assert!(rig.write_staged(written / 64 + 1, 0, MIB).is_err());
    rig.punch(0, 0, 8 * MIB);
    rig.write_staged(written / 64 + 1, 0, MIB).unwrap();
}

#[test]
fn bulk_data_in_the_place_of_what_a_file_has_waits_rather_than_being_refused() {
    for host_left in [None, Some(1 << 40)] {
        let mut rig = Rig::new(host_left);
        let granted = rig.store.space().free / MIB * 3 / 4;
        for n in 0..granted.div_ceil(64) {
            rig.reserve(n, 64.min(granted - n * 64) * MIB);
            rig.checkpoint();
        }
        // Faster than it is applied: more than is free beside it, twice.
        for n in (0..granted).chain(0..granted) {
            rig.write_staged(n / 64, n % 64 * MIB, MIB).unwrap();
        }
        rig.checkpoint();
        rig.checkpoint();
        // What is new is refused as ever, at once if nothing waits, else when it has been applied.
        let most = rig.store.space().free / MIB + 2;
        let refused = (0..most).find(|n| rig.write_staged(10, n * MIB, MIB).is_err());
        assert!(refused.is_some());
    }
}

#[test]
fn what_comes_later_does_not_keep_bulk_data_waiting() {
    let mut rig = Rig::new(None);
    rig.fill();
    rig.checkpoint();
    let id = |number| StageId {
        session: SessionId(2),
        number,
    };
    let mut tries = Vec::new();
    for _ in 0..4 {
        // Others go on overwriting what they have.
        rig.write_inline(0, 0, 4_096);
        let result = Arc::new(Mutex::new(None));
        let told = result.clone();
        let data = Bytes::from(vec![1; 8 * MIB as usize]);
        let done = Box::new(move |result: io::Result<()>| *told.lock() = Some(result));
        rig.store.stage(id(1), data, done);
        let error = result.lock().take().unwrap().unwrap_err();
        tries.push(error.kind());
        rig.store.announce(rig.store.head().seq);
        rig.tick();
    }
    let full = io::ErrorKind::StorageFull;
    let waits = io::ErrorKind::WouldBlock;
    assert_eq!(tries, [waits, full, waits, full]);
}
