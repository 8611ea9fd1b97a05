//! Mortar and GlusterFS on the same machine, the same backing and the same workloads, in one run.
//!
//! ```text
//! cargo build --release && target/release/compare [--json FILE]          as root; some 15 minutes
//! target/release/compare --only untar,smallfile --rounds 3 --side mortar
//! target/release/compare --only listing,long,aged --rounds 1             what shows after a while
//! ```
//!
//! It writes a backing image once, formats it with XFS, mounts a replica 3 volume of each side on it, runs every
//! workload on one side after the other `--rounds` times, and prints a table of medians, spreads (largest less
//! smallest figure of a side, in percent of its median) and ratios, and JSON with every figure. `--dir` says where the
//! image lies: in memory, so that the CPU is the limit, or on a disk. fio, xfsprogs and glusterfs-server are installed
//! if they are missing; where GlusterFS cannot be had, a line says so and Mortar is measured alone. Both sides have
//! their default options. Whatever was set up is taken down at the end, after a failure and on Ctrl-C.

mod aged;
mod fio;
mod gluster;
mod jobs;
mod report;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use mortar_benches::backing::Backing;
use mortar_benches::mortar::Mortar;
use mortar_benches::process::{catch_signals, check, need};

use report::Report;
use workload::{Scale, Workload};

/// A side of the comparison: one mounted volume.
pub(crate) trait Side {
    /// Name in the table.
    fn name(&self) -> &'static str;
    /// Where its volume is mounted.
    fn mount(&self) -> &Path;
    /// Processes whose memory counts: (label, pid).
    fn processes(&self) -> Vec<(String, u32)>;
}

impl Side for Mortar {
    fn name(&self) -> &'static str {
        "mortar"
    }

    fn mount(&self) -> &Path {
        Self::mount(self)
    }

    fn processes(&self) -> Vec<(String, u32)> {
        let daemons = self.daemons().into_iter().enumerate();
        let clients = self.clients().into_iter();
        daemons
            .map(|(at, pid)| (format!("mortard {}", at + 1), pid))
            .chain(clients.map(|pid| ("mount".to_owned(), pid)))
            .collect()
    }
}

/// Options of the comparison.
#[derive(Parser, Debug)]
#[command(about = "Measures Mortar beside GlusterFS on one machine")]
struct Options {
    /// Directory for the backing image: /dev/shm makes the CPU the limit, a directory on disk the disk.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Size of the backing image in MiB; each of Mortar's bricks gets a quarter, GlusterFS the rest.
    #[arg(long, default_value_t = 8192)]
    image_mib: u64,
    /// Size of the file of the sequential workloads in MiB; the one of the random workloads has half.
    #[arg(long, default_value_t = 512)]
    file_mib: u64,
    /// How often the sides alternate.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each timed workload.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Seconds of the workload `long`.
    #[arg(long, default_value_t = 180)]
    long_seconds: u32,
    /// Only these workloads, comma-separated (default: untar,smallfile,rand4k,syncwrite4k,seq1m; there are also
    /// jobs, and listing, long and aged, which take minutes each).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// mortard processes of Mortar's side, on 127.0.0.1, .2, .3: its three bricks lie on them in turn. GlusterFS has a
    /// process for each brick in any case.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Only this side.
    #[arg(long, value_parser = ["mortar", "gluster"])]
    side: Option<String>,
    /// Write all figures as JSON here as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Options for the Mortar mount (-o).
    #[arg(long, default_value = "")]
    mount_options: String,
}

impl Options {
    fn workloads(&self) -> Result<Vec<Workload>, String> {
        let mut all = Workload::all();
        let names: Vec<_> = all.iter().map(|workload| workload.name).collect();
        if let Some(name) = self
            .only
            .iter()
            .find(|name| !names.contains(&name.as_str()))
        {
            return Err(format!(
                "no workload '{name}'; there are: {}",
                names.join(", ")
            ));
        }
        all.retain(|workload| {
            (self.only.is_empty() && workload.usual)
                || self.only.iter().any(|name| name == workload.name)
        });
        Ok(all)
    }

    fn sides(&self, backing: &Backing) -> Result<Vec<Box<dyn Side>>, String> {
        let mut sides: Vec<Box<dyn Side>> = Vec::new();
        let wanted = |name: &str| self.side.as_deref().is_none_or(|side| side == name);
        if wanted("gluster") {
            match gluster::Gluster::start(backing) {
                Ok(side) => sides.push(Box::new(side)),
                Err(why) => println!("GlusterFS is left out: {why}"),
            }
            check()?;
        }
        if wanted("mortar") {
            let brick_mib = self.image_mib / 4;
            let side = Mortar::start(backing, self.nodes, brick_mib, &self.mount_options)?;
            sides.push(Box::new(side));
        }
        Ok(sides)
    }
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
    catch_signals()?;
    let workloads = options.workloads()?;
    need("fio", "fio")?;
    let backing = Backing::new(&options.dir, options.image_mib)?;
    let sides = options.sides(&backing)?;
    let scale = Scale {
        backing: &backing,
        seconds: options.seconds,
        file_mib: options.file_mib,
        long_seconds: options.long_seconds,
        tar: workload::make_tar(backing.scratch())?,
    };
    let mut report = Report::default();
    // What was measured until something failed is shown as well.
    let ended = measure(options.rounds, &workloads, &sides, &scale, &mut report);
    for side in &sides {
        for (label, pid) in side.processes() {
            report.memory(side.name(), &label, pid);
        }
    }
    report.print();
    let json = report.json();
    println!("{json}");
    if let Some(path) = &options.json {
        std::fs::write(path, json).map_err(|err| format!("{}: {err}", path.display()))?;
    }
    ended
}

fn measure(
    rounds: u32,
    workloads: &[Workload],
    sides: &[Box<dyn Side>],
    scale: &Scale<'_>,
    report: &mut Report,
) -> Result<(), String> {
    for round in 0..rounds {
        for workload in workloads {
            for at in 0..sides.len() {
                // The order changes with the round, so that neither side always runs on a warmer machine.
                let side = &sides[(at + round as usize) % sides.len()];
                check()?;
                // Nobody pays for what the one before has left to be written.
                scale.backing.sync()?;
                let figures = (workload.run)(side.mount(), scale)
                    .map_err(|err| format!("{} on {}: {err}", workload.name, side.name()))?;
                for figure in figures {
                    let (metric, value) = (figure.metric, figure.value);
                    eprintln!("round {round} {:9} {metric:24} {value:.1}", side.name());
                    report.add(side.name(), &figure);
                }
            }
        }
    }
    Ok(())
}
