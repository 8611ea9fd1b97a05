//! Where the time of one operation goes, step by step.
//!
//! ```text
//! cargo run --release -p mortar-benches --bin steps [-- --count 2000]      as root
//! ```
//!
//! A daemon, a client and a FUSE mount of a replica 3 volume run in this process, on real sockets and files, as
//! `mortard` and `mortar mount` do. The seams between their layers (transport, rules, storage) note when they are
//! entered and left, so that every moment of a system call on the mount belongs to one step. Operations are made one at
//! a time; a row is the median over all of them, in microseconds. The two lines below the tables are floors, measured
//! alone: a FUSE exchange that the mount answers without asking anybody, and a QUIC round trip that the daemon answers
//! at the door.

mod trace;
mod traced;
mod world;

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use mortar_benches::backing::Backing;
use mortar_benches::process::{catch_signals, check};
use mortar_benches::stats::median;
use mortar_protocol::aligned::AlignedBuf;
use mortar_protocol::env_real::{mono_now, random};

use trace::{STEPS, Steps, Trace};
use world::World;

/// What is measured.
#[derive(Parser, Debug)]
#[command(about = "Prints where the time of one operation goes")]
struct Options {
    /// Directory for the backing image.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Size of the backing image in MiB; each brick gets a quarter.
    #[arg(long, default_value_t = 2048)]
    image_mib: u64,
    /// Operations of each kind.
    #[arg(long, default_value_t = 1000)]
    count: usize,
}

/// Size of the file that is read and written, in bytes.
const FILE: u64 = 64 << 20;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("steps: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    catch_signals()?;
    let backing = Backing::new(&options.dir, options.image_mib)?;
    let mount = backing.scratch().join("mnt");
    std::fs::create_dir(&mount).map_err(|err| err.to_string())?;
    let trace = Arc::new(Trace::default());
    let world = World::start(
        backing.scratch(),
        &backing.bricks(),
        options.image_mib / 4,
        &mount,
        &trace,
    )?;
    let bench = Bench {
        trace,
        mount,
        count: options.count,
    };
    bench.operations()?;
    bench.floors(&world)
}

fn told(what: &Path) -> impl Fn(std::io::Error) -> String {
    move |err| format!("{}: {err}", what.display())
}

struct Bench {
    trace: Arc<Trace>,
    mount: PathBuf,
    count: usize,
}

impl Bench {
    fn operations(&self) -> Result<(), String> {
        let path = self.mount.join("file");
        let told = told(&path);
        self.fill(&path)?;
        let open = |flags| {
            let mut how = OpenOptions::new();
            how.read(true).write(true).custom_flags(flags).open(&path)
        };
        let direct = open(libc::O_DIRECT).map_err(&told)?;
        let cached = open(0).map_err(&told)?;
        let page = AlignedBuf::zeroed(4 << 10);
        let at = |size: u64| random() % (FILE / size) * size;
        self.measure("4 KiB write, O_DIRECT", || {
            direct.write_all_at(&page, at(4 << 10)).map_err(&told)
        })?;
        self.measure("4 KiB write and fsync", || {
            cached.write_all_at(&page, at(4 << 10)).map_err(&told)?;
            cached.sync_all().map_err(&told)
        })?;
        let dir = self.mount.join("dir");
        std::fs::create_dir(&dir).map_err(&told)?;
        let mut number = 0;
        self.measure("create and close", || {
            number += 1;
            File::create_new(dir.join(format!("file{number}")))
                .map(drop)
                .map_err(&told)
        })?;
        let mut page = AlignedBuf::zeroed(4 << 10);
        self.measure("4 KiB read, O_DIRECT", || {
            direct.read_exact_at(&mut page, at(4 << 10)).map_err(&told)
        })?;
        let mut large = AlignedBuf::zeroed(1 << 20);
        self.measure("1 MiB read, O_DIRECT", || {
            direct.read_exact_at(&mut large, at(1 << 20)).map_err(&told)
        })
    }

    fn fill(&self, path: &Path) -> Result<(), String> {
        let file = File::create(path).map_err(told(path))?;
        let piece: Vec<u8> = (0..1u32 << 20).map(|at| (at * 31 % 251) as u8).collect();
        for at in (0..FILE).step_by(piece.len()) {
            file.write_all_at(&piece, at).map_err(told(path))?;
        }
        file.sync_all().map_err(told(path))
    }

    /// Makes an operation many times and prints its steps.
    fn measure(
        &self,
        name: &str,
        mut operation: impl FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        for _ in 0..self.count.div_ceil(10) {
            operation()?;
        }
        let mut all: Vec<Steps> = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            check()?;
            all.push(self.trace.watch(&mut operation)?);
        }
        let of = |get: &dyn Fn(&Steps) -> f64| median(&all.iter().map(get).collect::<Vec<_>>());
        let whole = of(&|steps| steps.whole);
        let requests = self.trace.requests().join(", ");
        println!("\n{name:56} {:>9} {:>6}", "us", "share");
        let mut sum = 0.0;
        for (place, step) in STEPS.iter().enumerate() {
            let median = of(&|steps| steps.each[place]);
            if median > 0.0 {
                sum += median;
                println!("  {step:54} {median:>9.1} {:>5.0}%", median / whole * 100.0);
            }
        }
        println!("  {:54} {sum:>9.1}", "sum of these medians");
        println!("  {:54} {whole:>9.1}  ({requests})", "median of the whole");
        Ok(())
    }

    fn floors(&self, world: &World) -> Result<(), String> {
        let file = File::open(self.mount.join("file")).map_err(told(&self.mount))?;
        let exchange = || {
            let start = mono_now();
            // Asks the file with an ioctl, which the mount refuses by itself.
            let terminal = file.is_terminal();
            let time = mono_now().since(start).as_nanos() as f64 / 1_000.0;
            (!terminal)
                .then_some(time)
                .ok_or("a file is no terminal".to_owned())
        };
        let body = Bytes::from(vec![0; 4 << 10]);
        let fuse: Result<Vec<f64>, String> = (0..self.count).map(|_| exchange()).collect();
        let quic = world.round_trips(&body, self.count)?;
        println!(
            "\nalone: FUSE exchange {:.1} us; QUIC round trip, 4 KiB there {:.1} us",
            median(&fuse?),
            median(&quic)
        );
        Ok(())
    }
}
