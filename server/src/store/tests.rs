//! The store against a model: random effects, appends, applies, checkpoints, cuts and reopens.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{
    BrickId, ClusterId, Epoch, InodeId, NodeId, Pos, Seq, SessionId, SetId, StageId,
};
use mortar_protocol::limits::BLOCK;
use mortar_protocol::view::SetKind;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{FormatParams, Store};
use crate::device::{Device, Done};
use crate::superblock::Geometry;

/// A device in memory that keeps what a flush made durable apart from what was written.
struct Memory {
    live: Mutex<BTreeMap<u64, Vec<u8>>>,
    durable: Mutex<BTreeMap<u64, Vec<u8>>>,
    len: u64,
}

const PAGE: u64 = 4096;

impl Memory {
    fn new(len: u64) -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            durable: Mutex::default(),
            len,
        })
    }

    /// The device after a power cut: of the pages written since the last flush those survive whose number `keep` likes.
    fn after_power_cut(&self, keep: impl Fn(u64) -> bool) -> Arc<Self> {
        let mut pages = self.durable.lock().clone();
        for (page, data) in &*self.live.lock() {
            if keep(*page) {
                pages.insert(*page, data.clone());
            }
        }
        Arc::new(Self {
            live: Mutex::new(pages.clone()),
            durable: Mutex::new(pages),
            len: self.len,
        })
    }

    /// The device as the next process sees it after a kill.
    fn after_kill(&self) -> Arc<Self> {
        let live = self.live.lock().clone();
        Arc::new(Self {
            live: Mutex::new(live),
            durable: Mutex::new(self.durable.lock().clone()),
            len: self.len,
        })
    }
}

impl Device for Memory {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= self.len);
        let live = self.live.lock();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(buf.len() - done);
            match live.get(&(at / PAGE)) {
                Some(page) => buf[done..done + part].copy_from_slice(&page[within..within + part]),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(offset + data.len() as u64 <= self.len);
        let mut live = self.live.lock();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(data.len() - done);
            let page = live
                .entry(at / PAGE)
                .or_insert_with(|| vec![0; PAGE as usize]);
            page[within..within + part].copy_from_slice(&data[done..done + part]);
            done += part;
        }
        Ok(())
    }
    fn write_vectored_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.write_at(offset, &whole)
    }
    fn flush(&self) -> io::Result<()> {
        *self.durable.lock() = self.live.lock().clone();
        Ok(())
    }
    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) {}
    fn start_write(&self, offset: u64, data: Bytes, done: Done<()>) {
        done(self.write_at(offset, &data));
    }
    fn start_read(&self, offset: u64, len: usize, done: Done<Bytes>) {
        let mut data = vec![0; len];
        done(self.read_at(offset, &mut data).map(|()| data.into()));
    }
    fn start_flush(&self, done: Done<()>) {
        done(self.flush());
    }
    fn start_work(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

const SIZE: u64 = 256 << 20;
const SPAN: usize = 40 * BLOCK as usize;

#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    records: BTreeMap<u8, u8>,
    data: BTreeMap<u8, Vec<u8>>,
}

fn object(n: u8) -> Object {
    Object {
        id: InodeId(100 + u64::from(n)),
        shard: 0,
    }
}

fn record_key(n: u8) -> Bytes {
    Bytes::from(vec![b'I', n])
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Del(u8),
    Write(u8, usize, usize, u8),
    Stage(u8, usize, usize, u8),
    Punch(u8, usize, usize),
    Truncate(u8, usize),
    Reserve(u8, usize, usize, bool),
    Share(u8, usize, u8, usize, usize),
    Announce,
    Flush,
    Checkpoint,
    Kill,
    Close,
    PowerCut(u64),
    Cut(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..SPAN - 1;
    let blocks = 0usize..40;
    prop_oneof![
        2 => (0u8..4, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        1 => (0u8..4).prop_map(Step::Del),
        6 => (0u8..3, at.clone(), 1usize..9000, any::<u8>()).prop_map(|(o, a, l, v)| Step::Write(o, a, l, v)),
        3 => (0u8..3, blocks.clone(), 1usize..8, any::<u8>()).prop_map(|(o, a, l, v)| Step::Stage(o, a, l, v)),
        2 => (0u8..3, at.clone(), 1usize..50_000).prop_map(|(o, a, l)| Step::Punch(o, a, l)),
        1 => (0u8..3, at.clone()).prop_map(|(o, a)| Step::Truncate(o, a)),
        2 => (0u8..3, at, 1usize..50_000, any::<bool>()).prop_map(|(o, a, l, z)| Step::Reserve(o, a, l, z)),
        2 => (0u8..3, blocks.clone(), 0u8..3, blocks, 1usize..10).prop_map(|(f, a, o, b, l)| Step::Share(f, a, o, b, l)),
        4 => Just(Step::Announce),
        2 => Just(Step::Flush),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => any::<u8>().prop_map(Step::Cut),
    ]
}

/// What the brick of a test is formatted with.
pub(super) fn format_params() -> FormatParams {
    FormatParams {
        cluster: ClusterId(1),
        generation: 0,
        node: NodeId(3),
        brick: BrickId(2),
        set: SetId::default(),
        volume_name: "v".into(),
        kind: SetKind::Plain,
        shard_size: 64 << 20,
        force: false,
    }
}

struct Run {
    memory: Arc<Memory>,
    store: Store,
    /// State after each entry; the index is the seq.
    states: Vec<Model>,
    clock: u64,
    stage: u64,
    epoch: u64,
}

impl Run {
    fn new() -> Self {
        let memory = Memory::new(SIZE);
        let device: Arc<dyn Device> = memory.clone();
        Store::format(&device, &format_params()).unwrap();
        let store = Store::open(device).unwrap();
        Self {
            memory,
            store,
            states: vec![Model::default()],
            clock: 0,
            stage: 0,
            epoch: 1,
        }
    }

    /// A brick whose tree has a map of so many bytes, both slots together.
    fn with_map(bytes: u64) -> Self {
        let memory = Memory::new(SIZE);
        let device: Arc<dyn Device> = memory.clone();
        let mut geometry = Geometry::for_size(SIZE);
        geometry.chunk_map.len = bytes;
        Store::format_as(&device, &format_params(), geometry).unwrap();
        let mut run = Self::new();
        run.store = Store::open(device).unwrap();
        run.memory = memory;
        run
    }

    fn append(&mut self, effects: Vec<Effect>, body: Bytes, model: Model) {
        let seq = self.store.head().seq.next();
        let kind = EntryKind::Internal;
        let entry = Entry {
            pos: Pos {
                epoch: Epoch(self.epoch),
                seq,
            },
            kind,
            effects,
            body,
        };
        self.store.append(&[Arc::new(entry)]).unwrap();
        self.states.push(model);
    }

    fn reopen(&mut self, memory: Arc<Memory>) {
        self.memory = memory.clone();
        self.store = Store::open(memory).unwrap();
        assert!(!self.store.log_damaged());
        self.states.truncate(self.store.head().seq.0 as usize + 1);
    }

    fn tick(&mut self) {
        self.clock += 1_000_000_000;
        self.store
            .poll(Mono(self.clock), &mut |_| Vec::new())
            .unwrap();
    }

    fn step(&mut self, step: &Step) {
        let mut model = self.states.last().unwrap().clone();
        match *step {
            Step::Put(k, v) => {
                model.records.insert(k, v);
                self.append(
                    vec![Effect::Put {
                        key: record_key(k),
                        value: vec![v].into(),
                    }],
                    Bytes::new(),
                    model,
                );
            }
            Step::Del(k) => {
                model.records.remove(&k);
                self.append(
                    vec![Effect::Del { key: record_key(k) }],
                    Bytes::new(),
                    model,
                );
            }
            Step::Write(o, at, len, v) => {
                let len = len.min(SPAN - at);
                let data: Vec<u8> = (0..len).map(|n| v ^ n as u8).collect();
                model.data.entry(o).or_insert_with(|| vec![0; SPAN])[at..at + len]
                    .copy_from_slice(&data);
                let effect = Effect::Write {
                    object: object(o),
                    offset: at as u64,
                    at: 0,
                    len: len as u32,
                };
                self.append(vec![effect], data.into(), model);
            }
            Step::Stage(o, block, count, v) => {
                let count = count.min(40 - block);
                let data: Vec<u8> = (0..count * BLOCK as usize)
                    .map(|n| v ^ (n >> 3) as u8)
                    .collect();
                let at = block * BLOCK as usize;
                model.data.entry(o).or_insert_with(|| vec![0; SPAN])[at..at + data.len()]
                    .copy_from_slice(&data);
                self.stage += 1;
                let stage = StageId {
                    session: SessionId(1),
                    number: self.stage,
                };
                self.store
                    .stage(stage, data.into(), Box::new(|result| result.unwrap()));
                let crcs = self.store.stage_info(stage).unwrap().crcs;
                self.append(
                    vec![Effect::Attach {
                        object: object(o),
                        offset: at as u64,
                        stage,
                        crcs,
                    }],
                    Bytes::new(),
                    model,
                );
            }
            Step::Punch(o, at, len) => {
                let len = len.min(SPAN - at);
                model.data.entry(o).or_insert_with(|| vec![0; SPAN])[at..at + len].fill(0);
                let effect = Effect::Punch {
                    object: object(o),
                    offset: at as u64,
                    len: len as u64,
                };
                self.append(vec![effect], Bytes::new(), model);
            }
            Step::Truncate(o, at) => {
                model.data.entry(o).or_insert_with(|| vec![0; SPAN])[at..].fill(0);
                let effect = Effect::Punch {
                    object: object(o),
                    offset: at as u64,
                    len: u64::MAX,
                };
                self.append(vec![effect], Bytes::new(), model);
            }
            Step::Reserve(o, at, len, zero) => {
                let len = len.min(SPAN - at);
                if zero {
                    model.data.entry(o).or_insert_with(|| vec![0; SPAN])[at..at + len].fill(0);
                }
                let effect = Effect::Reserve {
                    object: object(o),
                    offset: at as u64,
                    len: len as u64,
                    zero,
                };
                self.append(vec![effect], Bytes::new(), model);
            }
            Step::Share(from, a, o, b, count) => {
                let count = count.min(40 - a).min(40 - b);
                if count == 0 || from == o {
                    return;
                }
                let (a, b, len) = (
                    a * BLOCK as usize,
                    b * BLOCK as usize,
                    count * BLOCK as usize,
                );
                let source =
                    model.data.entry(from).or_insert_with(|| vec![0; SPAN])[a..a + len].to_vec();
                model.data.entry(o).or_insert_with(|| vec![0; SPAN])[b..b + len]
                    .copy_from_slice(&source);
                let effect = Effect::Share {
                    from: object(from),
                    from_offset: a as u64,
                    object: object(o),
                    offset: b as u64,
                    len: len as u64,
                };
                self.append(vec![effect], Bytes::new(), model);
            }
            Step::Announce => {
                let head = self.store.head();
                self.store
                    .start_flush(Box::new(|result| assert!(result.is_ok())));
                self.store.on_flushed(head);
                self.store.announce(head.seq);
                self.tick();
            }
            Step::Flush => {
                let head = self.store.head();
                self.store
                    .start_flush(Box::new(|result| assert!(result.is_ok())));
                self.store.on_flushed(head);
            }
            Step::Checkpoint => {
                self.clock += 40_000_000_000;
                self.tick();
                self.tick();
            }
            Step::Close => {
                // What the tree's library does when it is let go must not reach the device.
                let other = Self::new().store;
                drop(std::mem::replace(&mut self.store, other));
                self.reopen(self.memory.after_kill());
            }
            Step::Kill => {
                let head = self.store.head();
                let memory = self.memory.after_kill();
                self.reopen(memory);
                assert_eq!(self.store.head(), head, "a kill loses nothing written");
            }
            Step::PowerCut(seed) => {
                let flushed = self.store.flushed();
                let memory = self.memory.after_power_cut(|page| {
                    (page ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 & 1 == 1
                });
                self.reopen(memory);
                assert!(
                    self.store.head() >= flushed,
                    "a power cut loses nothing flushed"
                );
            }
            Step::Cut(n) => {
                let (low, high) = (
                    self.store.applied().seq.0.max(self.store.announced().0),
                    self.store.head().seq.0,
                );
                let seq = Seq(low + u64::from(n) % (high - low + 1));
                let pos = self.store.position_at(seq).unwrap();
                self.store.cut_after(pos).unwrap();
                self.states.truncate(seq.0 as usize + 1);
                self.epoch += 1;
                // As a view does: its first entry is appended and flushed before anything else (until then the medium
                // still has the old tail).
                self.step(&Step::Put(0, n));
                self.step(&Step::Flush);
            }
        }
    }

    fn check(&self) {
        let head = self.store.head().seq.0;
        assert_eq!(head as usize + 1, self.states.len());
        let from = self.store.applied().seq.0;
        for seq in [from, head, (from + head) / 2] {
            let state = &self.states[seq as usize];
            let mut found = BTreeMap::new();
            let mut collect = |key: &[u8], value: &[u8]| {
                found.insert(key[1], value[0]);
                ControlFlow::Continue(())
            };
            self.store.scan(b"I", b"J", Seq(seq), &mut collect).unwrap();
            assert_eq!(found, state.records, "records as of {seq}");
            for n in 0..3 {
                let data = self.store.read_now(object(n), 0, SPAN, Seq(seq)).unwrap();
                let zeros = vec![0; SPAN];
                let expected = state.data.get(&n).unwrap_or(&zeros);
                if let Some(at) = data.iter().zip(expected).position(|(a, b)| a != b) {
                    panic!("object {n} as of {seq} differs at {at}");
                }
                let part = self
                    .store
                    .read_now(object(n), 5_000, 3_000, Seq(seq))
                    .unwrap();
                assert!(part[..] == expected[5_000..8_000]);
            }
        }
    }

    /// After everything is applied and checkpointed: every block is referred to as often as counted, and none leaks.
    fn check_space(&mut self) {
        self.step(&Step::Announce);
        for _ in 0..3 {
            self.step(&Step::Checkpoint);
        }
        let mut references: BTreeMap<u64, u32> = BTreeMap::new();
        let mut counts = BTreeMap::new();
        self.store
            .scan(b"E", b"F", Seq(u64::MAX), &mut |_, value| {
                for block in super::extents::decode(value).unwrap() {
                    block
                        .physical()
                        .into_iter()
                        .for_each(|at| *references.entry(at).or_default() += 1);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        self.store
            .scan(b"R", b"S", Seq(u64::MAX), &mut |key, value| {
                counts.insert(
                    u64::from_be_bytes(key[1..9].try_into().unwrap()),
                    u32::from_le_bytes(value.try_into().unwrap()),
                );
                ControlFlow::Continue(())
            })
            .unwrap();
        references.iter().for_each(|(at, count)| {
            assert_eq!(
                counts.get(at).copied().unwrap_or(1),
                *count,
                "references of block {at}"
            );
        });
        assert!(counts.keys().all(|at| references.contains_key(at)));
        let alloc = self.store.alloc.lock();
        for block in 0..alloc.blocks() {
            assert_eq!(
                alloc.attached(block),
                references.contains_key(&block),
                "block {block}"
            );
        }
        let busy = alloc.blocks() - alloc.free_now() - references.len() as u64;
        let chunks = busy - alloc.kept();
        assert_eq!(chunks % 16, 0, "blocks that nothing refers to are busy");
        drop(alloc);
        self.check_log();
    }

    /// A brick that lacks entries of the log gets their bulk data, whatever has overwritten it.
    fn check_log(&self) {
        let (start, _) = self.store.positions();
        let entries = self.store.entries_after(start, usize::MAX).unwrap();
        for entry in entries {
            for effect in &entry.effects {
                if let Effect::Attach { stage, .. } = effect {
                    let found = self.store.read_attached(entry.pos.seq, *stage);
                    assert!(found.is_ok(), "{stage:?} of entry {}: {found:?}", entry.pos);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn equals_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
            run.check();
        }
        run.check_space();
    }
}

#[test]
fn allocated_and_seek_follow_the_blocks() {
    let mut run = Run::new();
    run.step(&Step::Write(0, 5 * 4096, 3 * 4096, 1));
    for _ in 0..2 {
        let at = Seq(u64::MAX);
        assert_eq!(run.store.allocated(object(0), 0, u64::MAX, at).unwrap(), 3);
        assert_eq!(
            run.store.allocated(object(0), 6 * 4096, 4096, at).unwrap(),
            1
        );
        assert_eq!(
            run.store.seek(object(0), 0, false, at).unwrap(),
            Some(5 * 4096)
        );
        assert_eq!(
            run.store.seek(object(0), 6 * 4096 + 7, true, at).unwrap(),
            Some(8 * 4096)
        );
        assert_eq!(
            run.store.seek(object(0), 9 * 4096, false, at).unwrap(),
            None
        );
        assert_eq!(run.store.seek(object(0), 0, true, at).unwrap(), Some(0));
        run.step(&Step::Announce);
    }
}

#[test]
fn holes_stay_holes_where_ends_are_zeroed() {
    let mut run = Run::new();
    run.step(&Step::Write(0, 5 * 4096, 4096, 1));
    run.step(&Step::Punch(0, 4096 + 100, 2 * 4096));
    run.step(&Step::Reserve(0, 5 * 4096 + 100, 50, true));
    run.step(&Step::Truncate(0, 7 * 4096 + 100));
    for _ in 0..2 {
        let at = Seq(u64::MAX);
        assert_eq!(run.store.allocated(object(0), 0, u64::MAX, at).unwrap(), 1);
        run.check();
        run.step(&Step::Announce);
    }
}

#[test]
fn what_an_entry_attached_is_there_as_long_as_the_log_has_it() {
    let mut run = Run::new();
    run.step(&Step::Stage(0, 0, 4, 9));
    let (seq, session) = (run.store.head().seq, SessionId(1));
    let id = StageId {
        session,
        number: run.stage,
    };
    run.step(&Step::Announce);
    run.step(&Step::Write(0, 0, 4 * 4096, 5));
    run.step(&Step::Announce);
    let data = run.store.read_now(object(0), 0, 4096, Seq(u64::MAX));
    assert_eq!(data.unwrap()[0], 5);
    let attached = run.store.read_attached(seq, id).unwrap();
    assert_eq!((attached.len(), attached[0]), (4 * 4096, 9));
    assert!(run.store.read_attached(seq.next(), id).is_err());
}

#[test]
fn a_flipped_byte_is_an_error_never_wrong_data() {
    let mut run = Run::new();
    run.step(&Step::Stage(0, 0, 4, 9));
    run.step(&Step::Announce);
    run.step(&Step::Checkpoint);
    let extents = run.store.superblock().geometry.extents.offset;
    let mut byte = [0];
    run.memory.read_at(extents + 5_000, &mut byte).unwrap();
    run.memory
        .write_at(extents + 5_000, &[byte[0] ^ 1])
        .unwrap();
    assert!(
        run.store
            .read_now(object(0), 0, 4096, Seq(u64::MAX))
            .is_ok()
    );
    assert!(
        run.store
            .read_now(object(0), 4096, 4096, Seq(u64::MAX))
            .is_err()
    );
}

/// Reserves `blocks` of an object.
fn reserve(n: u8, blocks: u64) -> Vec<Effect> {
    vec![Effect::Reserve {
        object: object(n),
        offset: 0,
        len: blocks * BLOCK,
        zero: false,
    }]
}

/// Gives back what an object has.
fn punch(n: u8) -> Vec<Effect> {
    vec![Effect::Punch {
        object: object(n),
        offset: 0,
        len: u64::MAX,
    }]
}

#[test]
fn freed_space_is_used_again_before_the_next_checkpoint_is_due() {
    // A member may apply both changes one after the other, or in one batch.
    for announce_between in [true, false] {
        let mut run = Run::new();
        let most = run.store.space().free / BLOCK;
        run.append(reserve(0, most - 8_000), Bytes::new(), Model::default());
        run.step(&Step::Announce);
        run.step(&Step::Checkpoint);
        run.append(punch(0), Bytes::new(), Model::default());
        if announce_between {
            run.step(&Step::Announce);
            assert!(run.store.space().free / BLOCK > most - 8_000);
        }
        run.append(reserve(1, most - 8_000), Bytes::new(), Model::default());
        for _ in 0..5 {
            run.step(&Step::Announce);
        }
        assert_eq!(run.store.applied(), run.store.head());
        run.check_space();
    }
}

#[test]
fn a_brick_that_lost_what_it_had_flushed_remembers_it() {
    let mut run = Run::new();
    for n in 0..4 {
        let (key, value) = (record_key(n), Bytes::from_static(b"value"));
        run.append(
            vec![Effect::Put { key, value }],
            Bytes::new(),
            Model::default(),
        );
        run.step(&Step::Flush);
    }
    let at = run.store.superblock().geometry.wal.offset + 20;
    let memory = run.memory.after_kill();
    let mut byte = [0];
    memory.read_at(at, &mut byte).unwrap();
    memory.write_at(at, &[byte[0] ^ 1]).unwrap();
    let store = Store::open(memory.clone()).unwrap();
    assert!(store.log_damaged() && store.superblock().damaged);
    drop(store);
    // Also when the log has no trace of it any more.
    memory.write_at(at - 20, &[0; 64 << 10]).unwrap();
    let store = Store::open(memory.after_power_cut(|_| false)).unwrap();
    assert!(store.superblock().damaged);
    let store = Store::open(memory).unwrap();
    assert!(store.log_damaged());
}

/// The tree writes pages, and takes chunks for them, as soon as its cache is full: also while extent records are put.
#[test]
fn a_batch_larger_than_the_trees_cache_is_applied() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut run = Run::new();
        for n in 0..24u32 {
            let mut effects: Vec<Effect> = (0..40u32)
                .map(|m| Effect::Put {
                    key: Bytes::from(format!("k{n}-{m}")),
                    value: vec![n as u8; 8_000].into(),
                })
                .collect();
            // Blocks far apart: an extent record each.
            effects.extend((0..400u64).map(|m| Effect::Reserve {
                object: Object {
                    id: InodeId(1_000 + u64::from(n)),
                    shard: 0,
                },
                offset: m << 22,
                len: BLOCK,
                zero: false,
            }));
            run.append(effects, Bytes::new(), Model::default());
        }
        run.step(&Step::Announce);
        assert_eq!(run.store.applied(), run.store.head());
        done.send(()).unwrap();
    });
    ended
        .recv_timeout(std::time::Duration::from_secs(120))
        .expect("applied without a deadlock");
}

/// Records of 1 KiB under keys of their own.
fn wide_records(from: u64, put: bool) -> Vec<Effect> {
    let effect = |n: u64| {
        let key = Bytes::from([&b"w"[..], &n.to_be_bytes()].concat());
        match put {
            true => Effect::Put {
                key,
                value: vec![n as u8; 1024].into(),
            },
            false => Effect::Del { key },
        }
    };
    (from..from + 32).map(effect).collect()
}

#[test]
fn a_tree_near_the_end_of_its_map_makes_the_brick_full_and_nothing_worse() {
    // 12.75 MiB; the tree doubles to 8.5 MiB at most.
    let mut run = Run::with_map(32 << 10);
    let mut made = 0;
    let free = run.store.space().free;
    let change = |run: &mut Run, from: u64, put: bool| {
        let model = run.states.last().unwrap().clone();
        run.append(wide_records(from, put), Bytes::new(), model);
        run.step(&Step::Announce);
        assert_eq!(run.store.poisoned(), None, "after {from} records");
    };
    while run.store.space().free > 0 {
        change(&mut run, made, true);
        made += 32;
        assert!(made < 40_000, "the tree has no end");
    }
    assert!(made >= 4_000, "full with {made} records");
    // What was admitted before that was seen.
    for _ in 0..32 {
        change(&mut run, made, true);
        made += 32;
    }
    run.reopen(run.memory.after_kill());
    // The pages are counted first.
    run.tick();
    run.tick();
    assert_eq!(run.store.space().free, 0);
    for from in (0..made).step_by(32) {
        change(&mut run, from, false);
    }
    for _ in 0..30 {
        run.tick();
    }
    assert!(
        run.store.space().free >= free - (16 << 20),
        "removals free it"
    );
    change(&mut run, made, true);
}
