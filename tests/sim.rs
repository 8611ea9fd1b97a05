//! The simulated cluster: seeds that once failed, and fresh ones. `MORTAR_SEED` gives the first fresh seed,
//! `MORTAR_SEEDS` their number. See `mortar_tests::sim`.

use std::io::Write;

use mortar_protocol::env_real::wall_now;
use mortar_tests::sim::world::{SEVERAL_SETS, Sabotage};
use mortar_tests::sim::{self, Outcome};

/// Fresh seeds of one run.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Prints a failed seed's reasons, and how to see more.
fn complain(seed: u64, outcome: &Outcome) {
    eprintln!("seed {seed} failed; its trace: cargo sim {seed} --trace");
    outcome.failures.iter().for_each(|why| eprintln!("  {why}"));
}

#[test]
fn seeds_that_once_failed() {
    let mut failed = Vec::new();
    for (seed, reason) in sim::regressions::SEEDS {
        let outcome = sim::run_twice(*seed);
        if !outcome.failures.is_empty() {
            eprintln!("once: {reason}");
            complain(*seed, &outcome);
            failed.push(*seed);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn fresh_seeds() {
    // Other seeds every day, the same on all machines: what fails on one is found on the next.
    let base = number("MORTAR_SEED").unwrap_or_else(|| wall_now().secs as u64 / 86_400 * 1_000);
    let count = number("MORTAR_SEEDS").unwrap_or(SEEDS);
    let mut failed = Vec::new();
    let mut sum = Outcome::default();
    let mut left_out = 0;
    for number in base..base + count {
        // Every third has a volume of several sets.
        let several = if number % 3 == 0 { SEVERAL_SETS } else { 0 };
        let seed = number | several;
        let outcome = sim::run_twice(seed);
        if !outcome.failures.is_empty() {
            complain(seed, &outcome);
            failed.push(seed);
        }
        sum.calls += outcome.calls;
        sum.unknown += outcome.unknown;
        sum.undecided += outcome.undecided;
        left_out += u64::from(outcome.left_out);
        for (what, number) in outcome.messages {
            *sum.messages.entry(what).or_default() += number;
        }
    }
    // Past the capture of the test harness: the run's summary shows this line.
    let _ = writeln!(
        std::io::stdout(),
        "\nseeds {base} to {}, each run twice: {} calls ({} without a known outcome), messages {:?}, {} searches \
         given up, {left_out} with a brick left out, {} failed",
        base + count - 1,
        sum.calls,
        sum.unknown,
        sum.messages,
        sum.undecided,
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(left_out * 50 <= count, "bricks are left out too often");
    assert!(
        sum.undecided as u64 * 20 <= count,
        "the oracle gives up too often"
    );
}

/// Looks for a seed that shows a planted bug.
fn finds(sabotage: Sabotage) {
    let shown = (1..=60).find_map(|seed| {
        let failures = sim::run_with(seed, Some(sabotage)).failures;
        failures.into_iter().next().map(|why| (seed, why))
    });
    let (seed, why) = shown.expect("60 seeds do not show the planted bug");
    eprintln!("{sabotage:?}: seed {seed}: {why}");
}

#[test]
fn acknowledging_before_all_have_written_is_found() {
    finds(Sabotage::AcknowledgeUnwritten);
}

#[test]
fn a_skipped_flush_is_found() {
    finds(Sabotage::SkipFlushes);
}

#[test]
fn running_a_repeat_again_is_found() {
    finds(Sabotage::RunRepeatsAgain);
}
