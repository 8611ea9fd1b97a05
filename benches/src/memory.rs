//! What the client and the daemon take: idle, while a million files are walked, and under a heavy load.
//!
//! ```text
//! cargo build --release && target/release/memory [--files 1000000]      as root; some ten minutes
//! ```
//!
//! It starts a replica 3 volume on a backing of its own and mounts it, makes the files through the library, walks
//! them through the mount, then writes and reads large files with several threads. Every phase prints the most that
//! each process had in memory. It fails (exit code 1) if an idle process takes 64 MiB or more, or the client more than
//! 256 MiB at any time.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use mortar_benches::backing::Backing;
use mortar_benches::mortar::{Mortar, VOLUME};
use mortar_benches::process::{catch_signals, check, memory_kib, pause};
use mortar_client::credentials;
use mortar_client::volume::{NewInode, Volume};
use mortar_protocol::attr::Cred;
use mortar_protocol::env_real::{RealEnv, mono_now};
use mortar_protocol::transport::quic::QuicTransport;
use tokio::task::JoinSet;

/// Most that an idle process may take, in KiB.
const IDLE: u64 = 64 << 10;
/// Most that the client may ever take, in KiB.
const BUSY: u64 = 256 << 10;
/// Files of one directory.
const PER_DIR: u64 = 1_000;
/// Files that are made at the same time.
const MAKERS: u64 = 64;
/// Threads of the heavy load.
const LOADERS: usize = 8;

/// What is measured.
#[derive(Parser, Debug)]
#[command(about = "Measures the memory of client and daemon")]
struct Options {
    /// Directory for the backing image.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Size of the backing image in MiB; each brick gets 30 percent.
    #[arg(long, default_value_t = 8192)]
    image_mib: u64,
    /// Files to make and walk.
    #[arg(long, default_value_t = 1_000_000)]
    files: u64,
    /// Size of each of the eight large files in MiB.
    #[arg(long, default_value_t = 128)]
    large_mib: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("memory: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    catch_signals()?;
    let backing = Backing::new(&options.dir, options.image_mib)?;
    let mortar = Mortar::start(&backing, 1, options.image_mib * 3 / 10, "")?;
    let watch = Watch {
        daemon: *mortar.daemons().first().ok_or("there is no daemon")?,
        client: *mortar.clients().first().ok_or("the mount has no process")?,
    };
    println!(
        "{:44} {:>9} {:>14} {:>14}",
        "phase", "seconds", "daemon MiB", "client MiB"
    );
    let mut limits = Limits::default();
    let idle = watch.phase("idle, three bricks", || {
        pause(Duration::from_secs(3));
        Ok(())
    })?;
    limits.hold("the idle daemon", idle.0, IDLE);
    limits.hold("the idle client", idle.1, IDLE);
    let name = format!("{} files made through the library", options.files);
    watch.phase(&name, || make_files(&mortar, options.files))?;
    backing.drop_caches()?;
    let name = format!("{} files walked through the mount", options.files);
    let walked = watch.phase(&name, || {
        let found = walk(mortar.mount())?;
        match found == options.files {
            true => Ok(()),
            false => Err(format!("walked {found} files of {}", options.files)),
        }
    })?;
    limits.hold("the client while it walks", walked.1, BUSY);
    let size = options.large_mib;
    let name = format!("{LOADERS} threads write {size} MiB each");
    let written = watch.phase(&name, || {
        each_loader(mortar.mount(), |path| write(path, size))
    })?;
    backing.drop_caches()?;
    let name = format!("{LOADERS} threads read {size} MiB each");
    let read = watch.phase(&name, || {
        each_loader(mortar.mount(), |path| drain(path, size))
    })?;
    limits.hold("the client under load", written.1.max(read.1), BUSY);
    let after = watch.phase("idle again", || {
        pause(Duration::from_secs(3));
        Ok(())
    })?;
    println!(
        "most ever: daemon {} MiB, client {} MiB; left: {} and {} MiB",
        memory_kib(watch.daemon, "VmHWM").unwrap_or(0) >> 10,
        memory_kib(watch.client, "VmHWM").unwrap_or(0) >> 10,
        after.0 >> 10,
        after.1 >> 10,
    );
    limits.end()
}

/// What was found too large.
#[derive(Default)]
struct Limits(Vec<String>);

impl Limits {
    fn hold(&mut self, what: &str, kib: u64, limit: u64) {
        if kib >= limit {
            self.0.push(format!(
                "{what} takes {} MiB, over the limit of {} MiB",
                kib >> 10,
                limit >> 10
            ));
        }
    }

    fn end(self) -> Result<(), String> {
        if self.0.is_empty() {
            println!("all limits hold");
            Ok(())
        } else {
            Err(self.0.join("; "))
        }
    }
}

/// The processes that are watched.
#[derive(Clone, Copy)]
struct Watch {
    daemon: u32,
    client: u32,
}

impl Watch {
    /// Does something and prints the most that daemon and client had in memory meanwhile; gives it in KiB.
    fn phase(
        self,
        name: &str,
        work: impl FnOnce() -> Result<(), String>,
    ) -> Result<(u64, u64), String> {
        check()?;
        let done = AtomicBool::new(false);
        let start = mono_now();
        let (result, most) = std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut most = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    let now = |pid| memory_kib(pid, "VmRSS").unwrap_or(0);
                    most.0 = most.0.max(now(self.daemon));
                    most.1 = most.1.max(now(self.client));
                    pause(Duration::from_millis(20));
                }
                most
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            (result, sampler.join())
        });
        result.map_err(|err| format!("{name}: {err}"))?;
        let most = most.map_err(|_| "the sampler panicked")?;
        if most.0 == 0 || most.1 == 0 {
            return Err(format!("{name}: the daemon or the client has ended"));
        }
        println!(
            "{name:44} {:>9.1} {:>14} {:>14}",
            mono_now().since(start).as_secs_f64(),
            most.0 >> 10,
            most.1 >> 10
        );
        Ok(most)
    }
}

/// Makes empty files, [`MAKERS`] at a time, [`PER_DIR`] in a directory.
fn make_files(mortar: &Mortar, files: u64) -> Result<(), String> {
    let servers = [mortar.addr()];
    let credentials = credentials::find(&servers).map_err(|err| err.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| err.to_string())?;
    let env = Arc::new(RealEnv::new(runtime.handle().clone()));
    let transport =
        QuicTransport::new(&credentials, runtime.handle()).map_err(|err| err.to_string())?;
    let ends = transport.clone();
    runtime.block_on(async {
        let volume = Volume::connect(env, Arc::new(transport), &servers, VOLUME)
            .await
            .map_err(|err| err.to_string())?;
        let told = |errno| format!("{errno:?}");
        let paths = volume.paths(Cred::default());
        for from in (0..files).step_by(PER_DIR as usize) {
            check()?;
            let dir = format!("/tree/{:03}/{:06}", from / PER_DIR / 100, from / PER_DIR);
            let dir = paths.create_dir_all(dir.as_bytes()).await.map_err(told)?;
            let upto = files.min(from + PER_DIR);
            let mut makers = JoinSet::new();
            for first in 0..MAKERS {
                let volume = volume.clone();
                makers.spawn(async move {
                    for number in (from + first..upto).step_by(MAKERS as usize) {
                        let name = Bytes::from(format!("file{number:07}"));
                        let new = NewInode::file(0o644);
                        volume.create(Cred::default(), dir, name, new).await?;
                    }
                    Ok(())
                });
            }
            while let Some(made) = makers.join_next().await {
                made.map_err(|err| err.to_string())?.map_err(told)?;
            }
        }
        volume.close().await;
        ends.close().await;
        Ok(())
    })
}

/// Looks at everything below a directory, as `find -ls` does; gives the number of files.
fn walk(dir: &Path) -> Result<u64, String> {
    check()?;
    let told = |err: std::io::Error| format!("{}: {err}", dir.display());
    let mut files = 0;
    for entry in std::fs::read_dir(dir).map_err(told)? {
        let path = entry.map_err(told)?.path();
        let meta = std::fs::symlink_metadata(&path).map_err(told)?;
        files += if meta.is_dir() { walk(&path)? } else { 1 };
    }
    Ok(files)
}

/// Runs `work` in [`LOADERS`] threads with a file each.
fn each_loader(
    mount: &Path,
    work: impl Fn(&Path) -> std::io::Result<()> + Sync,
) -> Result<(), String> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..LOADERS)
            .map(|n| scope.spawn(move || work(&mount.join(format!("large{n}")))))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let done = thread.join().map_err(|_| "a thread panicked")?;
            done.map_err(|err| err.to_string())
        })
    })
}

fn write(path: &Path, mib: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![0x5a; 1 << 20];
    (0..mib).try_for_each(|_| file.write_all(&piece))?;
    file.sync_all()
}

fn drain(path: &Path, mib: usize) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    (0..mib).try_for_each(|_| file.read_exact(&mut piece))
}
