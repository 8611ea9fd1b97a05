//! Crash tests at length: all sequences of a number of operations, or one of them.
//!
//! `cargo crash --length 3` runs all sequences of three operations; `--part 2/8` an eighth of them.

use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use mortar_tests::crash::ops::Shown;
use mortar_tests::crash::plan;
use mortar_tests::crash::suite::Suite;

/// Ends a brick at every write and flush of its disk, for all sequences of so many operations.
#[derive(Parser)]
struct Args {
    /// Operations of a sequence: 1, 2 or 3
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    length: u8,
    /// Chooses what survives crashes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At every step all kinds of crashes, not one of them
    #[arg(long)]
    thorough: bool,
    /// Only this part of the sequences, as NUMBER/OF
    #[arg(long, default_value = "1/1")]
    part: Part,
    /// Only sequences that are shown with this text in them
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Clone, Copy)]
struct Part {
    number: usize,
    of: usize,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(number, of)| {
            Some(Self {
                number: number.parse().ok()?,
                of: of.parse().ok()?,
            })
        });
        parts
            .filter(|part| (1..=part.of).contains(&part.number))
            .ok_or_else(|| format!("'{text}' is no part (expected NUMBER/OF)"))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut suite = match Suite::new(args.seed) {
        Ok(suite) => suite,
        Err(error) => {
            eprintln!("no brick to start with: {error}");
            return ExitCode::from(2);
        }
    };
    suite.thorough = args.thorough;
    let sequences: Box<dyn Iterator<Item = _>> = match args.length {
        1 => Box::new(plan::ones()),
        2 => Box::new(plan::twos()),
        _ => Box::new(plan::threes()),
    };
    let part = args.part;
    let mut failures = 0u32;
    let chosen = sequences.skip(part.number - 1).step_by(part.of);
    for steps in chosen.filter(|steps| Shown(steps).to_string().contains(&args.only)) {
        if let Err(error) = suite.sequence(&steps, steps.len() - 1) {
            println!("{error}");
            failures += 1;
        }
        if suite.totals.sequences.is_multiple_of(1_000) {
            println!("{}, {failures} failures", suite.totals);
        }
    }
    println!("crash: {}, {failures} failures", suite.totals);
    ExitCode::from(u8::from(failures > 0))
}
