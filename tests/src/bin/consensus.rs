//! Runs seeds of the simulated control plane, each twice: `cargo consensus SEED [--count N] [--trace]`.

use std::process::ExitCode;

use clap::Parser;
use mortar_tests::consensus_sim::{self, Sabotage, kills};

#[derive(Parser)]
#[command(about = "Runs seeds of the simulated control plane, each twice")]
struct Args {
    /// The seed.
    seed: u64,
    /// Print the trace (docs: tests/src/consensus_sim/mod.rs).
    #[arg(long)]
    trace: bool,
    /// Run this many seeds from the given one on.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// End the leader at every step of `volume create` and `volume delete` instead.
    #[arg(long)]
    kills: bool,
    /// With --kills, only every so many steps.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Plant a bug: the seeds should fail.
    #[arg(long)]
    sabotage: Option<Bug>,
}

/// See [`Sabotage`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum Bug {
    NeverSync,
    ForgetEverything,
    ClearNothing,
}

impl From<Bug> for Sabotage {
    fn from(bug: Bug) -> Self {
        match bug {
            Bug::NeverSync => Self::NeverSync,
            Bug::ForgetEverything => Self::ForgetEverything,
            Bug::ClearNothing => Self::ClearNothing,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut failed = 0;
    for seed in args.seed..args.seed + args.count {
        let outcomes = if args.kills {
            [false, true]
                .map(|delete| consensus_sim::twice(|| kills::run(seed, (1, args.every), delete)))
                .into_iter()
                .collect()
        } else {
            let bug = args.sabotage.map(Into::into);
            vec![consensus_sim::twice(|| consensus_sim::run(seed, bug))]
        };
        for outcome in outcomes {
            if args.trace {
                outcome.lines.iter().for_each(|line| println!("{line}"));
            }
            println!(
                "seed {seed}: {:?}, {} s, {} lines",
                outcome.counts,
                outcome.time / 1_000_000_000,
                outcome.lines.len(),
            );
            for failure in &outcome.failures {
                println!("FAILED {failure}");
            }
            failed += u64::from(!outcome.failures.is_empty());
        }
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
