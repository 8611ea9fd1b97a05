//! Mortar and GlusterFS on the same machine, the same backing and the same workloads, in one run.
//!
//! `cargo run --release -p mortar-benches --bin compare` (as root). It writes a backing image once, formats it with XFS,
//! mounts a replica 3 volume of each side on it, alternates the sides `--rounds` times, and prints a table of medians, spreads
//! and ratios, and JSON with every figure. GlusterFS runs in a network namespace of its own, with its own working
//! directory; where it cannot be had, a line says so and Mortar is measured alone.

mod backing;
mod gluster;
mod mortar;
mod report;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use backing::Backing;
use report::Report;
use workload::{Scale, Workload};

/// Waits between two tries of a command.
#[allow(clippy::disallowed_methods)] // a measuring program waits on real processes in real time
pub(crate) fn pause(span: std::time::Duration) {
    std::thread::sleep(span);
}

/// A side of the comparison: one mounted volume.
pub(crate) trait Side {
    /// Name in the table.
    fn name(&self) -> &'static str;
    /// Where its volume is mounted.
    fn mount(&self) -> PathBuf;
    /// Processes whose memory counts: (label, pid).
    fn processes(&self) -> Vec<(String, u32)>;
}

/// Options of the comparison.
#[derive(Parser, Debug)]
#[command(about = "Measures Mortar beside GlusterFS on one machine")]
struct Options {
    /// Directory for the backing image: /dev/shm makes the CPU the limit, a directory on disk the disk.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Size of the backing image in MiB.
    #[arg(long, default_value_t = 8192)]
    image_mib: u64,
    /// How often the sides alternate.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each timed workload.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Only these workloads (comma-separated; default all).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only this side: mortar or gluster.
    #[arg(long)]
    side: Option<String>,
    /// Write all figures as JSON here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Options for the Mortar mount (-o).
    #[arg(long, default_value = "")]
    mount_options: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("compare: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("loop devices, namespaces and dropping caches need root".into());
    }
    let all = Workload::all();
    for name in &options.only {
        if !all.iter().any(|workload| workload.name == *name) {
            let names: Vec<_> = all.iter().map(|workload| workload.name).collect();
            return Err(format!(
                "no workload '{name}'; there are: {}",
                names.join(", ")
            ));
        }
    }
    let backing = Backing::new(&options.dir, options.image_mib)?;
    let mut sides: Vec<Box<dyn Side>> = Vec::new();
    let wanted = |name: &str| options.side.as_deref().is_none_or(|side| side == name);
    if wanted("gluster") {
        match gluster::Gluster::start(&backing) {
            Ok(side) => sides.push(Box::new(side)),
            Err(why) => println!("GlusterFS is left out: {why}"),
        }
    }
    if wanted("mortar") {
        sides.push(Box::new(mortar::Mortar::start(
            &backing,
            &options.mount_options,
        )?));
    }
    let scale = Scale {
        seconds: options.seconds,
        tar: workload::make_tar(backing.scratch())?,
    };
    let mut report = Report::default();
    for round in 0..options.rounds {
        for at in 0..sides.len() {
            // The order of the sides changes with the round, so that neither always runs on a warmer machine.
            let side = &sides[(at + round as usize) % sides.len()];
            for workload in &all {
                if options.only.is_empty() || options.only.iter().any(|name| name == workload.name)
                {
                    let figures = (workload.run)(&side.mount(), &scale)
                        .map_err(|err| format!("{} on {}: {err}", workload.name, side.name()))?;
                    for (metric, value) in figures {
                        eprintln!("round {round} {:9} {metric:22} {value:.1}", side.name());
                        report.add(side.name(), metric, value);
                    }
                }
            }
        }
    }
    for side in &sides {
        for (label, pid) in side.processes() {
            report.memory(side.name(), &label, pid);
        }
    }
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()).map_err(|err| format!("{}: {err}", path.display()))?;
    }
    Ok(())
}
