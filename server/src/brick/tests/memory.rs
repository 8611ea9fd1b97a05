//! The bound on what all bricks of a daemon hold in memory. Each rig is a set of its own, with a clock of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::PendingBudget;
use super::rig::{Rig, Slot, write};

const BOUND: usize = 256 << 10;
const OWN: usize = 32 << 10;
const PIECE: usize = 4 << 10;

fn rig(budget: &Arc<PendingBudget>) -> Rig {
    let mut rig = Rig::sharing(1, budget.clone());
    rig.create();
    // Nothing is left of its beginning.
    rig.pass(Duration::from_secs(3));
    assert_eq!(pending(&mut rig), 0);
    rig
}

fn pending(rig: &mut Rig) -> usize {
    rig.state(0).pending.0
}

/// Sends so many writes; time stands still.
fn send(rig: &mut Rig, count: usize) -> Vec<Slot> {
    let slots = (0..count)
        .map(|at| {
            let call = rig.request(write((at * PIECE) as u64, PIECE));
            rig.send(0, call, Bytes::from(vec![1; PIECE]))
        })
        .collect();
    rig.settle();
    slots
}

fn answered(slots: &[Slot]) -> usize {
    let good = |slot: &&Slot| {
        let slot = slot.lock();
        slot.as_ref().is_some_and(|(answer, _)| {
            assert!(answer.result.is_ok(), "{answer:?}");
            true
        })
    };
    slots.iter().filter(good).count()
}

/// A set whose disk hangs and that has used up the daemon's bound.
fn full(budget: &Arc<PendingBudget>) -> (Rig, Vec<Slot>) {
    let mut rig = rig(budget);
    rig.hang(0, true);
    let slots = send(&mut rig, 100);
    let done = answered(&slots);
    assert!((50..62).contains(&done), "{done} of {BOUND} bytes");
    (rig, slots)
}

#[test]
fn a_set_that_cannot_flush_leaves_every_other_its_own_part() {
    let budget = PendingBudget::of(BOUND, OWN);
    let mut other = rig(&budget);
    let (mut stuck, _slots) = full(&budget);
    assert!(budget.state().0 <= BOUND);
    // Time is no help to the one, and the other goes on in its own part, again and again.
    for _ in 0..5 {
        stuck.pass(Duration::from_secs(1));
        let slots = send(&mut other, 40);
        other.pass(Duration::from_secs(1));
        assert_eq!(answered(&slots), 40);
    }
    other.pass(Duration::from_secs(3));
    assert_eq!(pending(&mut other), 0);
    other.hang(0, true);
    let slots = send(&mut other, 20);
    other.pass(Duration::from_secs(3));
    let done = answered(&slots);
    assert!((5..8).contains(&done), "{done} of its own {OWN} bytes");
    assert!(pending(&mut other) <= OWN);
}

#[test]
fn what_waits_goes_on_as_soon_as_another_set_gives_something_back() {
    let budget = PendingBudget::of(BOUND, OWN);
    let mut other = rig(&budget);
    let (mut stuck, stuck_slots) = full(&budget);
    other.hang(0, true);
    let slots = send(&mut other, 20);
    let before = answered(&slots);
    assert!(before < 8, "{before}");
    stuck.hang(0, false);
    stuck.pass(Duration::from_secs(1));
    assert_eq!(answered(&stuck_slots), 100);
    // No time has passed for the other: it has not looked by itself.
    other.settle();
    assert_eq!(answered(&slots), 20);
}

#[test]
fn a_set_that_is_not_used_any_more_gives_back_what_it_holds() {
    let budget = PendingBudget::of(BOUND, OWN);
    let (mut idle, mut busy) = (rig(&budget), rig(&budget));
    // The next flush is due a second after this one's.
    assert_eq!(answered(&send(&mut idle, 1)), 1);
    idle.pass(Duration::from_millis(200));
    assert_eq!(answered(&send(&mut idle, 12)), 12);
    idle.pass(Duration::from_millis(200));
    assert!(pending(&mut idle) > OWN, "nothing asks for a flush yet");
    busy.hang(0, true);
    assert_eq!(answered(&send(&mut busy, 12)), 12);
    idle.pass(Duration::from_millis(300));
    assert_eq!(pending(&mut idle), 0);
}

#[test]
fn a_brick_that_is_closed_holds_nothing() {
    let budget = PendingBudget::of(BOUND, OWN);
    let mut other = rig(&budget);
    let (stuck, _slots) = full(&budget);
    other.hang(0, true);
    let slots = send(&mut other, 20);
    assert!(answered(&slots) < 8);
    drop(stuck);
    other.settle();
    assert_eq!(answered(&slots), 20);
    drop(other);
    assert_eq!(budget.state(), (0, BOUND));
}
