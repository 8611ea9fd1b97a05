//! Bricks that stop, that were away for a while, and that are short of room.

use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::ids::Seq;
use mortar_protocol::limits::STAGE_MAX;

use super::attach;
use super::rig::{Rig, write};
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

#[test]
fn a_joiner_whose_bulk_data_is_gone_is_told_so() {
    let mut rig = with_a_file(3);
    let away = (rig.primary() + 1) % 3;
    rig.stop(&[away]);
    let here: Vec<usize> = (0..3).filter(|at| *at != away).collect();
    // Enough, with everything overwritten and checkpointed, for the allocator to come round.
    let blocks = (STAGE_MAX / 4_096) as u32;
    for number in 2..(260 << 20) / STAGE_MAX as u64 {
        let staged = rig.stage(number, Bytes::from(vec![number as u8; STAGE_MAX]), &here);
        assert_eq!(staged, [Ok(()), Ok(())], "{number}");
        rig.done(attach(number, blocks), b"");
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
