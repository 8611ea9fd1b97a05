//! The simulated control plane: seeds that once failed, fresh ones, and the leader's end at every step.
//! `MORTAR_SEED` gives the first fresh seed, `MORTAR_SEEDS` their number. See `mortar_tests::consensus_sim`.

use std::io::Write;

use mortar_protocol::env_real::wall_now;
use mortar_tests::consensus_sim::{self, Outcome, Sabotage, kills};

/// Fresh seeds of one run.
const SEEDS: u64 = 100;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Prints a failed seed's reasons, and how to see more.
fn complain(seed: u64, more: &str, outcome: &Outcome) {
    eprintln!("seed {seed} failed; its trace: cargo consensus {seed} {more} --trace");
    outcome.failures.iter().for_each(|why| eprintln!("  {why}"));
}

#[test]
fn seeds_that_once_failed() {
    let mut failed = Vec::new();
    for (seed, reason) in consensus_sim::regressions::SEEDS {
        let outcome = consensus_sim::run_twice(*seed);
        if !outcome.failures.is_empty() {
            eprintln!("once: {reason}");
            complain(*seed, "", &outcome);
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
    let (mut commands, mut done, mut unknown) = (0, 0, 0);
    for seed in base..base + count {
        let outcome = consensus_sim::run_twice(seed);
        if !outcome.failures.is_empty() {
            complain(seed, "", &outcome);
            failed.push(seed);
        }
        commands += outcome.counts.commands;
        done += outcome.counts.done;
        unknown += outcome.counts.unknown;
    }
    // Past the capture of the test harness: the run's summary shows this line.
    let _ = writeln!(
        std::io::stdout(),
        "\nseeds {base} to {}, each run twice: {commands} commands, {done} done, {unknown} without a known outcome, {} failed",
        base + count - 1,
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(done * 3 > commands, "most commands should be done");
}

#[test]
fn the_leader_ends_at_every_step() {
    let mut failed = false;
    for delete in [false, true] {
        // Every step is run on its own day of the week.
        let every = number("MORTAR_STEPS").unwrap_or(7) as usize;
        let first = 1 + wall_now().secs as usize / 86_400 % every;
        let outcome = kills::run(1, (first, every), delete);
        if !outcome.failures.is_empty() {
            complain(1, "--kills", &outcome);
            failed = true;
        }
    }
    assert!(!failed);
}

/// Looks for a seed that shows a planted bug.
fn finds(sabotage: Sabotage) {
    let shown = (1..=40).find_map(|seed| {
        let failures = consensus_sim::run(seed, Some(sabotage)).failures;
        failures.into_iter().next().map(|why| (seed, why))
    });
    let (seed, why) = shown.expect("40 seeds do not show the planted bug");
    eprintln!("{sabotage:?}: seed {seed}: {why}");
}

#[test]
fn disks_that_sync_nothing_are_found() {
    finds(Sabotage::NeverSync);
}

#[test]
fn votes_and_logs_that_are_forgotten_are_found() {
    finds(Sabotage::ForgetEverything);
}

#[test]
fn bricks_that_are_not_cleared_are_found() {
    finds(Sabotage::ClearNothing);
}
