//! `mortar demo`: a replicated volume of three file bricks, mounted, in one command.
//!
//! It starts the `mortard` beside it on free ports, in a directory of its own that only this user can enter, creates
//! and mounts the volume, copies a real tree in while showing the throughput, verifies it with blake3, and cleans up on
//! Ctrl-C. A lock on the directory tells a running demo from one that was killed, whose remains the next one removes.

mod copy;
mod place;
mod require;

use std::io::IsTerminal;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use place::Place;

/// Options of `mortar demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Directory for bricks, keys and logs (default: a new one under the temporary directory)
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Where to mount (default: `mnt` in that directory)
    #[arg(long)]
    pub mount: Option<PathBuf>,
    /// Run to the end without waiting; exit code 0 if everything was right, 1 otherwise
    #[arg(long)]
    pub check: bool,
}

/// Runs the demo.
pub fn run(args: &DemoArgs) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&stop);
    match demo(args, &stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("mortar demo: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Sets `stop` at the first SIGINT, SIGTERM or SIGHUP; a second SIGINT ends the process at once.
fn watch_signals(stop: &Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = stop.clone();
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        else {
            return;
        };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
                signal(SignalKind::hangup()),
            ) else {
                return;
            };
            let _ = ready.send(());
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            stop.store(true, Ordering::SeqCst);
            let _ = interrupt.recv().await;
            std::process::exit(130);
        });
    });
    let _ = wait.recv_timeout(Duration::from_secs(1));
}

/// What the demo has running; ended in reverse order when dropped.
struct Running {
    daemon: Child,
    mounted: Option<PathBuf>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(dir) = &self.mounted {
            place::unmount(dir);
        }
        place::end(self.daemon.id());
        let _ = self.daemon.wait();
    }
}

fn free_port() -> Result<u16, String> {
    UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map(|addr| addr.port())
        .map_err(|err| format!("no free port on 127.0.0.1: {err}"))
}

fn demo(args: &DemoArgs, stop: &AtomicBool) -> Result<(), String> {
    let stay = !args.check && std::io::stdout().is_terminal();
    place::remove_stale();
    let exe = std::env::current_exe().map_err(|err| format!("where is this program? {err}"))?;
    let mortard = exe.with_file_name("mortard");
    require::check(&mortard, args.dir.as_deref())?;
    let place = Place::new(args.dir.as_deref(), args.mount.as_deref())?;
    let server = format!("127.0.0.1:{}", free_port()?);

    println!("Mortar demo in {}", place.root().display());
    let running = start_daemon(&mortard, &place, &server)?;
    println!(
        "  started mortard (pid {}) on {server}",
        running.daemon.id()
    );
    let running = make_volume(&exe, &place, &server, running, stop)?;
    println!("  mounted it on {}", place.mount().display());
    let result = copy::copy_and_verify(place.mount(), stop);
    if let Ok(Some(done)) = &result {
        println!("  {done}");
    }
    if stay && result.is_ok() && !stop.load(Ordering::SeqCst) {
        tell_what_to_try(&place, &exe, &server);
        while !stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        println!();
    }
    println!("Cleaning up");
    drop(running);
    drop(place);
    match result {
        Ok(Some(_)) => Ok(()),
        Ok(None) if stay => Ok(()),
        Ok(None) => Err("interrupted".into()),
        Err(message) => Err(message),
    }
}

fn start_daemon(mortard: &Path, place: &Place, server: &str) -> Result<Running, String> {
    let log = std::fs::File::create(place.root().join("mortard.log"))
        .map_err(|err| format!("{}: {err}", place.root().display()))?;
    let errors = log.try_clone().map_err(|err| err.to_string())?;
    let daemon = Command::new(mortard)
        .arg("--data-dir")
        .arg(place.root().join("data"))
        .arg("--secret-file")
        .arg(place.root().join("secret"))
        .args([
            "--listen",
            server,
            "--api",
            &format!("127.0.0.1:{}", free_port()?),
        ])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0) // Ctrl-C is for the demo, which then ends the daemon in order
        .spawn()
        .map_err(|err| format!("{} cannot be started: {err}", mortard.display()))?;
    place.note_daemon(daemon.id());
    Ok(Running {
        daemon,
        mounted: None,
    })
}

fn make_volume(
    exe: &Path,
    place: &Place,
    server: &str,
    mut running: Running,
    stop: &AtomicBool,
) -> Result<Running, String> {
    let mortar = |args: &[&str]| -> Result<(), String> {
        let out = Command::new(exe)
            .args(["--server", server, "--mode=script"])
            .args(args)
            .stdin(Stdio::null())
            .process_group(0)
            .output()
            .map_err(|err| format!("{}: {err}", exe.display()))?;
        if out.status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(place.root().join("mortard.log")).unwrap_or_default();
        let last = log.lines().last().unwrap_or("empty");
        Err(format!(
            "mortar {} failed: {}\n  last line of mortard's log: {last}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        ))
    };
    let mut tries = 0;
    while let Err(message) = mortar(&["volume", "list"]) {
        tries += 1;
        if tries > 40 || stop.load(Ordering::SeqCst) {
            return Err(message);
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let bricks: Vec<String> = (1..=3)
        .map(|n| {
            format!(
                "127.0.0.1:{}",
                place.root().join(format!("brick{n}")).display()
            )
        })
        .collect();
    let mut create = vec!["volume", "create", "demo", "replica", "3"];
    create.extend(bricks.iter().map(String::as_str));
    create.extend(["--brick-size", "1G", "force"]);
    mortar(&create)?;
    mortar(&["volume", "start", "demo"])?;
    println!("  created volume 'demo': three copies of everything, in three sparse files of 1 GiB");
    let port = server.rsplit(':').next().unwrap_or_default();
    let options = format!(
        "server-port={port},log-file={}",
        place.root().join("mount.log").display()
    );
    let dir = place
        .mount()
        .to_str()
        .ok_or("the mount point's path is not UTF-8")?;
    running.mounted = Some(place.mount().to_owned());
    mortar(&["mount", "127.0.0.1:/demo", dir, "-o", &options])?;
    Ok(running)
}

fn tell_what_to_try(place: &Place, exe: &Path, server: &str) {
    let mortar = exe.display();
    let root = place.root().display();
    println!(
        "\nThe volume is yours until Ctrl-C. In another terminal:\n  \
         cd {}                                   work in it: git, editors, sqlite, fio\n  \
         {mortar} --server {server} volume status demo\n  \
         {mortar} --server {server} volume info demo\n\
         Logs: {root}/mortard.log and mount.log",
        place.mount().display()
    );
}
