//! Which sequences are run.
//!
//! Of a sequence only the steps of the disk from its last operation on are cut: those before are the same as in the
//! sequence without it, which is run, too.

use super::ops::{Op, Step, Then};
use super::suite::Suite;

/// At most so many failures are listed.
const MAX_FAILURES: usize = 10;

/// What may happen between two operations, in the order in which it is chosen.
const BETWEEN: [Then; 4] = [Then::Next, Then::Checkpoint, Then::Sync, Then::Apply];
/// What may happen after the last operation. Whatever follows, time passes until all is in a checkpoint.
const LAST: [Then; 2] = [Then::Next, Then::Sync];

/// All sequences of one operation.
pub fn ones() -> impl Iterator<Item = Vec<Step>> {
    let ops = Op::all().into_iter();
    ops.flat_map(|op| LAST.map(|then| vec![(op, then)]))
}

/// All sequences of two operations. What happens between and after them takes turns.
pub fn twos() -> impl Iterator<Item = Vec<Step>> {
    let ops = Op::all();
    (0..ops.len().pow(2)).map(move |number| numbered(&ops, number, 2))
}

/// Number of sequences of three operations.
pub fn count_of_threes() -> usize {
    Op::all().len().pow(3)
}

/// All sequences of three operations.
pub fn threes() -> impl Iterator<Item = Vec<Step>> {
    let ops = Op::all();
    (0..ops.len().pow(3)).map(move |number| numbered(&ops, number, 3))
}

/// So many sequences of three operations, chosen by a seed, none of which does nothing in its last one.
pub fn some_threes(seed: u64, count: usize) -> impl Iterator<Item = Vec<Step>> {
    let ops = Op::all();
    let mut state = seed;
    let draw = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 24) as usize % ops.len().pow(3)
    };
    let ops = Op::all();
    std::iter::repeat_with(draw)
        .map(move |number| numbered(&ops, number, 3))
        .filter(|steps| super::suite::changes(steps))
        .take(count)
}

/// The sequence of a number, in base of the number of operations.
fn numbered(ops: &[Op], number: usize, length: u32) -> Vec<Step> {
    let digit = |place: u32| number / ops.len().pow(length - 1 - place) % ops.len();
    let turn: usize = (0..length).map(digit).sum();
    let then = |place: u32| {
        if place + 1 == length {
            LAST[turn / BETWEEN.len() % LAST.len()]
        } else {
            BETWEEN[(turn / (place as usize + 1)) % BETWEEN.len()]
        }
    };
    let step = |place: u32| (ops[digit(place)], then(place));
    (0..length).map(step).collect()
}

/// Runs sequences; gives what failed.
pub fn run(suite: &mut Suite, sequences: impl Iterator<Item = Vec<Step>>) -> Vec<String> {
    let mut failures = Vec::new();
    for steps in sequences {
        if let Err(error) = suite.sequence(&steps, steps.len() - 1) {
            failures.push(error);
            if failures.len() == MAX_FAILURES {
                break;
            }
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_sequence_comes_once_and_everything_may_follow_each_operation() {
        let ops: BTreeSet<Op> = Op::all().into_iter().collect();
        assert_eq!(ops.len(), 48);
        let twos: Vec<Vec<Step>> = twos().collect();
        let pairs: BTreeSet<(Op, Op)> = twos.iter().map(|steps| (steps[0].0, steps[1].0)).collect();
        assert_eq!((twos.len(), pairs.len()), (48 * 48, 48 * 48));
        let first: BTreeSet<Step> = twos.iter().map(|steps| steps[0]).collect();
        assert_eq!(first.len(), 48 * BETWEEN.len());
        assert_eq!(
            some_threes(7, 20).collect::<Vec<_>>(),
            some_threes(7, 20).collect::<Vec<_>>()
        );
    }
}
