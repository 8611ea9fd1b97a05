//! Runs one seed of the simulated cluster, twice: `cargo sim SEED [--trace]`.

use std::process::ExitCode;

use clap::Parser;
use mortar_tests::sim;

#[derive(Parser)]
#[command(about = "Runs one seed of the simulated cluster, twice")]
struct Args {
    /// The seed.
    seed: u64,
    /// Print the trace (docs: tests/src/sim/mod.rs).
    #[arg(long)]
    trace: bool,
    /// Let volumes have several sets.
    #[arg(long)]
    several_sets: bool,
    /// Run this many seeds from the given one on.
    #[arg(long, default_value_t = 1)]
    count: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut failed = 0;
    let several = if args.several_sets {
        sim::SEVERAL_SETS
    } else {
        0
    };
    for seed in (args.seed..args.seed + args.count).map(|seed| seed | several) {
        let outcome = sim::run_twice(seed);
        if args.trace {
            outcome.lines.iter().for_each(|line| println!("{line}"));
        }
        println!(
            "seed {seed}: {} calls ({} unknown), {:?}, {} s, {} lines, {} undecided",
            outcome.calls,
            outcome.unknown,
            outcome.messages,
            outcome.time / 1_000_000_000,
            outcome.lines.len(),
            outcome.undecided
        );
        for failure in &outcome.failures {
            println!("FAILED {failure}");
        }
        failed += u64::from(!outcome.failures.is_empty());
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
