//! The log under restarts, cuts and damage, on simulated disks.

use bytes::Bytes;
use mortar_protocol::entry::{Effect, EntryKind};
use mortar_protocol::ids::SessionId;
use proptest::prelude::*;

use super::*;
use crate::device::sim::{Fault, SimDisk, Survival};

const RING: u64 = 4 * SEGMENT;
const REGION: Region = Region {
    offset: 1 << 20,
    len: RING,
};
const SIZE: u64 = 4 << 20;
const IDENTITY: u32 = 0x1234_5678;

fn entry(epoch: u64, seq: u64, body: usize) -> Entry {
    let byte = (seq * 7 + epoch) as u8;
    Entry {
        pos: Pos {
            epoch: Epoch(epoch),
            seq: Seq(seq),
        },
        kind: EntryKind::Internal,
        effects: vec![Effect::Put {
            key: Bytes::from(vec![byte; 1 + (seq % 90) as usize]),
            value: Bytes::from_static(b"value"),
        }],
        body: Bytes::from((0..body).map(|at| byte ^ at as u8).collect::<Vec<_>>()),
    }
}

fn stages(seq: u64) -> Vec<StageAt> {
    let stage = |number| StageId {
        session: SessionId(seq),
        number,
    };
    (0..seq % 3)
        .map(|number| (stage(number), vec![(seq * 1000, 3), (seq, 1)]))
        .collect()
}

fn append(wal: &mut Wal, entries: &[Entry]) -> Result<Vec<WalPosition>, WalError> {
    let stages: Vec<_> = entries
        .iter()
        .map(|entry| stages(entry.pos.seq.0))
        .collect();
    let records: Vec<_> = entries
        .iter()
        .zip(&stages)
        .map(|(entry, stages)| WalRecord { entry, stages })
        .collect();
    wal.append(&records)
}

fn open(disk: &Arc<SimDisk>, start: WalPosition) -> Opened {
    Wal::open(disk.clone(), REGION, IDENTITY, start, false).unwrap()
}

fn fresh(seed: u64) -> (Arc<SimDisk>, WalPosition, Wal) {
    let disk = SimDisk::new(SIZE, seed);
    let start = Wal::format(disk.clone(), REGION, IDENTITY).unwrap();
    disk.flush().unwrap();
    let wal = open(&disk, start).wal;
    (disk, start, wal)
}

/// All entries from `start` on, read in small portions.
fn entries(wal: &Wal, start: WalPosition) -> Vec<Entry> {
    let (mut found, mut at) = (Vec::new(), start);
    loop {
        let some = wal.read_from(at, 10_000).unwrap();
        let Some(last) = some.last() else {
            return found;
        };
        at = last.after;
        for replayed in some {
            assert_eq!(replayed.stages, stages(replayed.entry.pos.seq.0));
            found.push(replayed.entry);
        }
    }
}

#[test]
fn entries_come_back_over_many_laps() {
    let (disk, mut start, mut wal) = fresh(1);
    let (mut live, mut seq) = (Vec::new(), 0);
    for round in 0..200_usize {
        let batch: Vec<_> = (0..1 + round % 4)
            .map(|_| {
                seq += 1;
                entry(1 + seq / 50, seq, (seq as usize * 977) % 40_000)
            })
            .collect();
        let before = disk.steps();
        let positions = append(&mut wal, &batch).unwrap();
        assert!(
            disk.steps() - before <= 2 + 2,
            "one write, unless the ring wraps or is filled"
        );
        live.extend(batch.into_iter().zip(positions));
        if wal.free() < RING / 2 {
            let (_, upto) = live[live.len() / 2];
            wal.release(upto);
            start = upto;
            live.drain(..=live.len() / 2);
        }
        if round % 10 == 9 {
            let opened = open(&disk, start);
            assert_eq!(opened.damage, None);
            assert_eq!(opened.wal.head(), wal.head());
            let expected: Vec<_> = live.iter().map(|(entry, _)| entry.clone()).collect();
            assert_eq!(entries(&opened.wal, start), expected);
            wal = opened.wal;
        }
    }
    assert!(wal.head().offset > 5 * RING);
}

#[test]
fn a_full_ring_refuses_and_keeps_what_it_has() {
    let (disk, start, mut wal) = fresh(1);
    let mut seq = 0;
    let refusal = loop {
        match append(&mut wal, &[entry(1, seq + 1, 60_000)]) {
            Ok(_) => seq += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, WalError::Full { .. }), "{refusal}");
    let opened = open(&disk, start);
    assert_eq!((opened.wal.head(), opened.damage), (wal.head(), None));
    let third = wal.read_from(start, u64::MAX).unwrap()[2].after;
    wal.release(third);
    append(&mut wal, &[entry(1, seq + 1, 60_000)]).unwrap();
    assert!(matches!(wal.read_from(start, 1), Err(WalError::Gone(0))));
    assert_eq!(entries(&wal, third).len() as u64, seq + 1 - 3);
    let huge = entry(1, seq + 2, MAX_BODY + 1);
    assert!(matches!(
        append(&mut wal, &[huge]),
        Err(WalError::TooLarge(_))
    ));
}

#[test]
fn entries_out_of_order_are_refused() {
    let (_, _, mut wal) = fresh(1);
    append(&mut wal, &[entry(3, 1, 10)]).unwrap();
    let head = wal.head();
    for wrong in [entry(2, 2, 0), entry(3, 1, 0), entry(3, 3, 0)] {
        let error = append(&mut wal, &[wrong]).unwrap_err();
        assert!(matches!(error, WalError::OutOfOrder { .. }));
    }
    assert_eq!(wal.head(), head);
    append(&mut wal, &[entry(3, 2, 0), entry(9, 3, 0)]).unwrap();
}

#[test]
fn replay_refuses_a_falling_epoch_and_a_foreign_record() {
    for foreign in [false, true] {
        let (disk, start, mut wal) = fresh(1);
        append(&mut wal, &[entry(5, 1, 10)]).unwrap();
        let head = wal.head();
        wal.head.epoch = Epoch(4);
        if foreign {
            wal.identity += 1;
        }
        append(&mut wal, &[entry(if foreign { 5 } else { 4 }, 2, 10)]).unwrap();
        let opened = open(&disk, start);
        assert_eq!((opened.wal.head(), opened.damage), (head, None));
    }
}

#[test]
fn marks_are_carried_by_the_records() {
    let (disk, start, mut wal) = fresh(1);
    append(&mut wal, &[entry(1, 1, 10), entry(1, 2, 10)]).unwrap();
    let flushed = wal.head();
    disk.flush().unwrap();
    wal.note_flushed(flushed);
    wal.note_announced(Seq(1));
    append(&mut wal, &[entry(1, 3, 10)]).unwrap();
    let opened = open(&disk, start);
    assert_eq!(opened.wal.flushed(), flushed.offset);
    assert_eq!(opened.wal.announced(), Seq(1));
}

#[test]
fn a_record_behind_one_that_was_replaced_is_not_replayed() {
    let (disk, start, mut wal) = fresh(1);
    let batch = [entry(1, 1, 500), entry(1, 2, 500), entry(1, 3, 500)];
    let positions = append(&mut wal, &batch).unwrap();
    disk.rot(REGION.offset + positions[0].offset + 100, 1);
    let mut opened = open(&disk, start);
    assert_eq!(opened.wal.head(), positions[0]);
    let mut other = entry(1, 2, 500);
    other.body = Bytes::from(vec![1; 500]);
    let after = append(&mut opened.wal, &[other]).unwrap()[0];
    assert_eq!(
        after.offset, positions[1].offset,
        "the next record begins where one lies"
    );
    let opened = open(&disk, start);
    assert_eq!((opened.wal.head(), opened.damage), (after, None));
}

/// A log of ten entries, the first six flushed and known to be.
fn half_flushed(lap: u64) -> (Arc<SimDisk>, WalPosition, Wal, Vec<WalPosition>) {
    let (disk, mut start, mut wal) = fresh(1);
    let mut seq = 0;
    while wal.head().offset < lap * RING {
        seq += 1;
        start = append(&mut wal, &[entry(1, seq, 5000)]).unwrap()[0];
        wal.release(start);
    }
    let batch = |from: u64, to: u64| -> Vec<_> {
        (from..=to).map(|more| entry(1, seq + more, 9000)).collect()
    };
    let mut positions = append(&mut wal, &batch(1, 6)).unwrap();
    disk.flush().unwrap();
    wal.note_flushed(wal.head());
    positions.extend(append(&mut wal, &batch(7, 10)).unwrap());
    (disk, start, wal, positions)
}

#[test]
fn a_bad_record_is_damage_below_the_flushed_mark_and_the_end_above_it() {
    for lap in [0, 1, 3] {
        for bad in 0..10 {
            for at in [4, 70, 3000] {
                let (disk, start, _, positions) = half_flushed(lap);
                let place = if bad == 0 { start } else { positions[bad - 1] };
                disk.rot(REGION.offset + (place.offset + at) % RING, 0x10);
                let opened = open(&disk, start);
                assert_eq!(opened.wal.head(), place);
                let damage = (bad < 6).then_some(Damage {
                    at: place.offset,
                    flushed: positions[5].offset,
                });
                assert_eq!(opened.damage, damage, "record {bad} of lap {lap}");
            }
        }
    }
}

#[test]
fn a_cut_is_durable_and_no_damage() {
    for survival in [Survival::Process, Survival::Nothing, Survival::Random] {
        let (disk, start, mut wal, positions) = half_flushed(2);
        let seq = positions[2].seq.0;
        let after = wal.cut(positions[2]).unwrap();
        assert_eq!((after.pos(), wal.head()), (positions[2].pos(), after));
        wal.note_flushed(positions[5]);
        assert_eq!(wal.flushed(), after.offset);
        let disk = disk.reboot(survival);
        let mut opened = open(&disk, start);
        assert_eq!((opened.wal.head(), opened.damage), (after, None));
        assert_eq!(entries(&opened.wal, start).len(), 3);

        append(&mut opened.wal, &[entry(2, seq + 1, 100)]).unwrap();
        opened.wal.cut(positions[0]).unwrap();
        append(&mut opened.wal, &[entry(3, positions[0].seq.0 + 1, 100)]).unwrap();
        let disk = disk.reboot(Survival::Process);
        let again = open(&disk, start);
        assert_eq!((again.wal.head(), again.damage), (opened.wal.head(), None));
        let found = entries(&again.wal, start);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].pos.epoch, Epoch(3));
        assert!(opened.wal.cut(positions[5]).is_err());
    }
}

#[test]
fn a_clean_log_is_not_searched() {
    let (disk, _, wal, positions) = half_flushed(1);
    let end = wal.head();
    disk.rot(REGION.offset + positions[8].offset % RING, 1);
    let opened = Wal::open(disk, REGION, IDENTITY, end, true).unwrap();
    assert_eq!((opened.wal.head(), opened.damage), (end, None));
    assert_eq!(opened.wal.free(), RING - SPARE);
}

#[test]
fn what_a_failed_flush_forgot_is_written_again() {
    for rewrite in [false, true] {
        let (disk, start, mut wal) = fresh(1);
        append(&mut wal, &[entry(1, 1, 20_000)]).unwrap();
        disk.fail_at(disk.steps() + 1, Fault::Error(libc::EIO));
        disk.flush().unwrap_err();
        let disk = disk.reboot(Survival::Process);
        let mut opened = open(&disk, start);
        assert_eq!(opened.wal.head().seq, Seq(1));
        if rewrite {
            opened.wal.rewrite().unwrap();
        }
        disk.flush().unwrap();
        let disk = disk.reboot(Survival::Nothing);
        let found = open(&disk, start).wal.head().seq;
        assert_eq!(found, Seq(u64::from(rewrite)));
    }
}

#[test]
fn a_full_host_leaves_the_log_as_it_was() {
    let (disk, start, mut wal) = fresh(1);
    append(&mut wal, &[entry(1, 1, 1000)]).unwrap();
    let head = wal.head();
    disk.fail_at(disk.steps() + 1, Fault::Error(libc::ENOSPC));
    let error = append(&mut wal, &[entry(1, 2, 30_000)]).unwrap_err();
    assert!(matches!(error, WalError::HostFull(_)));
    assert_eq!(wal.head(), head);
    append(&mut wal, &[entry(1, 2, 70_000)]).unwrap();
    let opened = open(&disk, start);
    assert_eq!(opened.wal.head(), wal.head());
}

#[test]
fn garbage_in_the_ring_never_panics() {
    let mut seed = 7_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 20
    };
    for round in 0..400 {
        let (disk, start, wal, positions) = half_flushed(round % 3);
        for _ in 0..=round % 9 {
            let at = (start.offset + random() % (wal.head().offset + 8192 - start.offset)) % RING;
            let bytes: Vec<u8> = (0..random() % 70).map(|_| random() as u8).collect();
            let room = (RING - at).min(bytes.len() as u64) as usize;
            disk.write_at(REGION.offset + at, &bytes[..room]).unwrap();
        }
        let opened = open(&disk, start);
        assert!(opened.wal.head().offset <= wal.head().offset);
        let found = entries(&opened.wal, start);
        assert!(found.len() <= positions.len());
        for (entry, position) in found.iter().zip(&positions) {
            assert_eq!(entry.pos, position.pos());
        }
        let odd = WalPosition {
            offset: random() % (2 * RING),
            ..start
        };
        let _ = opened.wal.read_from(odd, 1 << 20);
        let _ = Wal::open(disk, REGION, IDENTITY, odd, false);
    }
}

/// A log beside a model of what it must hold.
struct Run {
    disk: Arc<SimDisk>,
    wal: Wal,
    start: WalPosition,
    /// Entries behind `start`, with the position behind each.
    live: Vec<(Entry, WalPosition)>,
    /// How many of them a flush has covered.
    flushed: usize,
    /// Entries that a failed cut may or may not have dropped.
    doubtful: usize,
    epoch: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Flush,
    Cut(usize),
    Release(usize),
    Reopen,
    Lose,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (disk, start, wal) = fresh(seed);
        Self {
            disk,
            wal,
            start,
            live: Vec::new(),
            flushed: 0,
            doubtful: 0,
            epoch: 1,
        }
    }

    fn head(&self) -> WalPosition {
        self.live.last().map_or(self.start, |(_, at)| *at)
    }

    /// Takes one step; an error is that of a machine that has ended.
    fn take(&mut self, step: &Step) -> Result<(), WalError> {
        match step {
            Step::Append(bodies) => {
                let first = self.wal.head().seq.0 + 1;
                let batch: Vec<_> = bodies
                    .iter()
                    .enumerate()
                    .map(|(at, body)| entry(self.epoch, first + at as u64, *body))
                    .collect();
                // What an interrupted append wrote may survive.
                let known = self.live.len();
                let nowhere = self.head();
                self.live
                    .extend(batch.iter().map(|entry| (entry.clone(), nowhere)));
                match append(&mut self.wal, &batch) {
                    Ok(positions) => {
                        for (slot, at) in self.live[known..].iter_mut().zip(positions) {
                            slot.1 = at;
                        }
                    }
                    Err(WalError::Full { .. }) => self.live.truncate(known),
                    Err(error) => return Err(error),
                }
            }
            Step::Flush => {
                let head = self.wal.head();
                self.disk.flush()?;
                self.wal.note_flushed(head);
                self.flushed = self.live.len();
            }
            Step::Cut(back) => {
                let keep = self.live.len().saturating_sub(*back);
                let to = keep.checked_sub(1).map_or(self.start, |at| self.live[at].1);
                self.flushed = self.flushed.min(keep);
                self.doubtful = self.live.len() - keep;
                if keep < self.live.len() {
                    self.wal.cut(to)?;
                    self.flushed = keep;
                }
                self.doubtful = 0;
                self.live.truncate(keep);
                self.epoch += 1;
            }
            Step::Release(count) => {
                // A checkpoint flushes before it lets the log go.
                let count = (*count).min(self.live.len());
                self.take(&Step::Flush)?;
                if count > 0 {
                    self.start = self.live[count - 1].1;
                    self.wal.release(self.start);
                    self.live.drain(..count);
                    self.flushed = self.live.len();
                }
            }
            Step::Reopen => self.reboot(Survival::Process),
            Step::Lose => self.reboot(Survival::Random),
        }
        Ok(())
    }

    /// Crashes, opens again, and checks that a prefix with everything flushed is there.
    fn reboot(&mut self, survival: Survival) {
        self.disk = self.disk.reboot(survival);
        let opened = open(&self.disk, self.start);
        assert_eq!(opened.damage, None);
        let found = entries(&opened.wal, self.start);
        assert!(
            found.len() >= self.flushed,
            "{} of {}",
            found.len(),
            self.flushed
        );
        assert!(found.len() <= self.live.len());
        let known = self.live.iter().map(|(entry, _)| entry);
        assert!(found.iter().eq(known.take(found.len())));
        if survival == Survival::Process && self.doubtful == 0 {
            let complete = self.live.iter().filter(|(entry, at)| entry.pos == at.pos());
            assert!(found.len() >= complete.count());
        }
        let mut at = self.start;
        self.live.truncate(found.len());
        for slot in &mut self.live {
            at = opened.wal.read_from(at, 1).unwrap()[0].after;
            slot.1 = at;
        }
        self.doubtful = 0;
        self.wal = opened.wal;
        self.epoch += 1;
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let body = prop_oneof![4 => 0..300_usize, 2 => 0..20_000_usize, 1 => 60_000..120_000_usize];
    let step = prop_oneof![
        8 => prop::collection::vec(body, 1..5).prop_map(Step::Append),
        3 => Just(Step::Flush),
        1 => (1..6_usize).prop_map(Step::Cut),
        2 => (0..30_usize).prop_map(Step::Release),
        1 => Just(Step::Reopen),
        1 => Just(Step::Lose),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_log_agrees_with_a_model(seed: u64, steps in steps()) {
        let mut run = Run::new(seed);
        for step in &steps {
            run.take(step).unwrap();
        }
        run.reboot(Survival::Random);
    }
}

#[test]
fn a_crash_at_every_write_and_flush_leaves_a_prefix_with_all_that_was_flushed() {
    let plan = |run: &mut Run| -> Result<(), WalError> {
        for round in 0..12 {
            run.take(&Step::Append(vec![100, 9000, 50]))?;
            run.take(&Step::Append(vec![70_000]))?;
            if round % 2 == 1 {
                run.take(&Step::Flush)?;
                run.take(&Step::Append(vec![30]))?;
            }
            if round % 4 == 2 {
                run.take(&Step::Cut(round % 5))?;
            }
            if round % 5 == 4 {
                run.take(&Step::Release(9))?;
            }
        }
        Ok(())
    };
    let mut whole = Run::new(0);
    plan(&mut whole).unwrap();
    let last = whole.disk.steps();
    assert!(last > 40 && whole.wal.head().offset > RING / 2);
    for step in 2..=last {
        for seed in 0..6 {
            let mut run = Run::new(seed);
            run.disk.cut_at(step);
            if let Err(error) = plan(&mut run) {
                assert!(matches!(error, WalError::Io(_)), "{error}");
                let survival = [Survival::Process, Survival::Nothing, Survival::Random]
                    [(seed as usize).min(2)];
                run.reboot(survival);
                run.take(&Step::Append(vec![10, 20_000])).unwrap();
                run.reboot(Survival::Process);
            }
        }
    }
}
