//! Bricks that stop, that were away for a while, and that are short of room.

use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::ids::Seq;
use mortar_protocol::limits::STAGE_MAX;

use super::rig::{Rig, write};
use super::{attach, attach_at};
use crate::device::sim::{Fault as DiskFault, Survival};

/// A set with a file, some of it staged.
fn with_a_file(bricks: usize) -> Rig {
    let mut rig = Rig::new(bricks);
    rig.create();
    let all: Vec<usize> = (0..bricks).collect();
    rig.stage(1, Bytes::from(vec![7; 64 << 10]), &all);
    rig.done(attach(1, 16), b"");
    rig.done(write(64 << 10, 4), b"tail");
    rig
}

/// Stops one of three bricks that is not the primary; gives it and the others.
fn stop_a_backup(rig: &mut Rig) -> (usize, Vec<usize>) {
    let away = (rig.primary() + 1) % 3;
    rig.stop(&[away]);
    (away, (0..3).filter(|at| *at != away).collect())
}

#[test]
fn after_an_orderly_stop_nothing_depends_on_the_log_alone() {
    for bricks in [1, 3] {
        let mut rig = with_a_file(bricks);
        let all: Vec<usize> = (0..bricks).collect();
        rig.stop(&all);
        let heads: Vec<_> = all.iter().map(|at| rig.store(*at).head()).collect();
        for at in all {
            let store = rig.store(at);
            assert!(store.head().seq > Seq(3));
            assert_eq!(heads[at], heads[0], "brick {at}");
            assert_eq!(store.applied(), store.head(), "brick {at}");
            assert_eq!(store.log_start(), store.head(), "brick {at}");
            assert!(store.superblock().clean);
        }
    }
}

#[test]
fn a_stop_ends_also_if_the_last_checkpoint_fails_or_a_member_does_not_answer() {
    let mut rig = with_a_file(1);
    rig.pass(Duration::from_secs(2));
    // All is flushed: the next steps of the disk are the superblock's and the checkpoint's.
    let steps = rig.disks[0].steps();
    for step in 3..20 {
        rig.disks[0].fail_at(steps + step, DiskFault::Error(libc::EIO));
    }
    rig.stop(&[0]);
    let store = rig.store(0);
    assert!(store.superblock().clean);
    assert!(
        store.applied() < store.head(),
        "the checkpoint did not fail"
    );

    let mut rig = with_a_file(3);
    rig.lose = vec!["written", "append"];
    rig.stop(&[0, 1, 2]);
}

#[test]
fn a_brick_that_was_away_follows_by_the_log_though_checkpoints_were_made() {
    let mut rig = with_a_file(3);
    let away = rig.primary();
    rig.stop(&[away]);
    assert_eq!(rig.view().members.len(), 2);
    for round in 0..3 {
        rig.done(write(round * 8_192, 4), b"more");
        // Flushed, applied, and a checkpoint that is due after 30 s.
        rig.pass(Duration::from_secs(35));
    }
    // The others are restarted: what they keep is kept over that too.
    for at in (0..3).filter(|at| *at != away) {
        rig.reboot(at, Survival::Process);
    }
    rig.pass(Duration::from_secs(12));
    assert_eq!(rig.view().members.len(), 2);
    rig.done(write(40_960, 4), b"last");
    rig.pass(Duration::from_secs(35));
    rig.reboot(away, Survival::Process);
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.cannot_follow.len(), 0);
    assert_eq!(rig.view().members.len(), 3);
    let first = rig.read(0, 70_000).expect("data");
    assert_eq!(&first[40_960..40_964], b"last");
    for at in 1..3 {
        assert_eq!(rig.read(at, 70_000).expect("data"), first, "brick {at}");
    }
    // With all there again, the log is released by the next checkpoint.
    rig.done(write(0, 4), b"done");
    rig.pass(Duration::from_secs(35));
    rig.stop(&[0, 1, 2]);
    for at in 0..3 {
        let store = rig.store(at);
        assert_eq!(store.log_start(), store.head(), "brick {at}");
    }
}

#[test]
fn the_log_is_kept_for_the_absent_only_until_half_the_ring_is_used() {
    let mut rig = with_a_file(3);
    let away = rig.primary();
    rig.stop(&[away]);
    // The ring has 8 MiB.
    let data = vec![3; 1 << 20];
    for round in 0..20 {
        rig.done(write((round % 4) << 20, 1 << 20), &data);
        rig.pass(Duration::from_secs(2));
    }
    rig.pass(Duration::from_secs(35));
    rig.reboot(away, Survival::Process);
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.cannot_follow.len(), 1);
    assert_eq!(rig.view().members.len(), 2);
    let other = (away + 1) % 3;
    rig.stop(&[other]);
    let store = rig.store(other);
    assert_eq!(store.applied(), store.head());
    let kept = store.head().seq.0 - store.log_start().seq.0;
    assert!((2..=4).contains(&kept), "{kept} entries of 1 MiB");
}

/// Overwrites the file's first blocks with bulk data, as clients do it: again if there is no room at the moment.
fn bulk(rig: &mut Rig, number: u64, blocks: u32, at: &[usize]) {
    let data = Bytes::from(vec![number as u8; blocks as usize * 4_096]);
    let mut tries = 0;
    while rig.stage(number, data.clone(), at) != vec![Ok(()); at.len()] {
        tries += 1;
        assert!(tries < 50, "no room for stage {number}");
        rig.pass(Duration::from_millis(100));
    }
    rig.done(attach(number, blocks), b"");
}

#[test]
fn a_joiner_fetches_bulk_data_as_fast_as_it_comes() {
    let mut rig = with_a_file(3);
    let (away, here) = stop_a_backup(&mut rig);
    for number in 2..302 {
        bulk(&mut rig, number, 16, &here);
    }
    rig.reboot(away, Survival::Process);
    rig.pass(Duration::from_millis(1_500));
    assert_eq!(rig.view().members.len(), 3);
    assert_eq!(rig.read(away, 8).expect("data"), vec![301_u64 as u8; 8]);
}

#[test]
fn what_was_overwritten_and_checkpointed_is_kept_for_a_joiner() {
    let mut rig = with_a_file(3);
    let blocks = (STAGE_MAX / 4_096) as u32;
    let stage = STAGE_MAX as u64;
    // Little is free, so that the allocator soon comes round.
    let (free, _) = rig.state(0).space_free;
    let static_mib = free / stage - 40;
    for number in 2..2 + static_mib {
        let at = (number - 1) * stage;
        let data = Bytes::from(vec![1; STAGE_MAX]);
        assert_eq!(rig.stage(number, data, &[0, 1, 2]), vec![Ok(()); 3]);
        rig.done(attach_at(number, at, blocks), b"");
        rig.pass(Duration::from_millis(100));
    }
    rig.pass(Duration::from_secs(35));
    let (away, here) = stop_a_backup(&mut rig);
    for number in 300..330 {
        bulk(&mut rig, number, blocks, &here);
        if number == 315 {
            rig.pass(Duration::from_secs(35));
            // Kept over a restart, too.
            rig.reboot(here[0], Survival::Process);
            rig.pass(Duration::from_secs(12));
        }
    }
    rig.pass(Duration::from_secs(35));
    rig.reboot(away, Survival::Process);
    rig.pass(Duration::from_secs(5));
    assert_eq!((rig.cannot_follow.len(), rig.view().members.len()), (0, 3));
    for at in 0..3 {
        assert_eq!(rig.read(at, 8).expect("data"), vec![329_u64 as u8; 8]);
    }
    // With all there again, everything is free that was overwritten.
    rig.done(write(0, 4), b"done");
    rig.pass(Duration::from_secs(70));
    let (left, _) = rig.state(0).space_free;
    assert!(left + 3 * stage >= free - static_mib * stage, "{left}");
    let data = Bytes::from(vec![9; STAGE_MAX]);
    for number in 400..425 {
        assert_eq!(
            rig.stage(number, data.clone(), &[0]),
            vec![Ok(())],
            "{number}"
        );
    }
}

#[test]
fn a_member_that_holds_other_bytes_takes_those_that_were_decided_on() {
    let mut rig = with_a_file(3);
    let primary = rig.primary();
    for at in 0..3 {
        let byte = if at == primary { 5 } else { 6 };
        let data = Bytes::from(vec![byte; 64 << 10]);
        assert_eq!(rig.stage(2, data, &[at]), vec![Ok(())]);
    }
    let call = rig.request(attach(2, 16));
    let slot = rig.send(primary, call, Bytes::new());
    rig.pass(Duration::from_secs(1));
    let answer = slot.lock().take().expect("an answer");
    assert!(answer.0.result.is_ok(), "{answer:?}");
    for at in 0..3 {
        assert_eq!(rig.read(at, 8).expect("data"), vec![5; 8], "brick {at}");
    }
}

#[test]
fn a_joiner_whose_bulk_data_is_gone_is_told_so() {
    let mut rig = with_a_file(3);
    let (away, here) = stop_a_backup(&mut rig);
    // Enough, with everything overwritten and checkpointed, for the allocator to come round.
    let blocks = (STAGE_MAX / 4_096) as u32;
    for number in 2..(260 << 20) / STAGE_MAX as u64 {
        bulk(&mut rig, number, blocks, &here);
        if number % 50 == 0 {
            rig.pass(Duration::from_secs(35));
        }
    }
    rig.pass(Duration::from_secs(35));
    rig.reboot(away, Survival::Process);
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.cannot_follow.len(), 1);
    assert_eq!(rig.view().members.len(), 2);
    rig.done(write(0, 4), b"goes");
    // It holds an entry that it cannot append; it stops all the same.
    rig.stop(&[away]);
}
