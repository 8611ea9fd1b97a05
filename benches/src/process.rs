//! Other programs, and an orderly end: whoever calls [`catch_signals`] is told of Ctrl-C by [`check`], so that what was
//! set up is taken down by its guards.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Programs that [`run`] waits for.
static RUNNING: Mutex<BTreeMap<u32, OwnedFd>> = Mutex::new(BTreeMap::new());

/// Waits between two tries of a command.
#[allow(clippy::disallowed_methods)] // a measuring program waits on real processes in real time
pub fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// From now on SIGINT, SIGTERM and SIGHUP end the program that [`run`] waits for and make [`check`] fail.
///
/// # Errors
/// If the system gives no thread or no signal.
pub fn catch_signals() -> Result<(), String> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let wait = move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut int = signal(SignalKind::interrupt())?;
            let mut term = signal(SignalKind::terminate())?;
            let mut hup = signal(SignalKind::hangup())?;
            // The caller waits for this.
            let _ = ready.send(());
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                    _ = hup.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::SeqCst);
                for child in RUNNING.lock().values() {
                    // It may have ended.
                    let _ = pidfd_send_signal(child, Signal::TERM);
                }
            }
        })
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map_err(|err| err.to_string())?;
    is_ready
        .recv()
        .map_err(|_| "signals cannot be waited for".to_owned())
}

/// Fails once the program was told to end.
///
/// # Errors
/// If it was.
pub fn check() -> Result<(), String> {
    match INTERRUPTED.load(Ordering::SeqCst) {
        true => Err("interrupted".to_owned()),
        false => Ok(()),
    }
}

/// Runs a program to its end and gives its output.
///
/// # Errors
/// Its error output, if it fails or cannot be started.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Once interrupted, what runs takes things down: a second Ctrl-C must not reach it.
    let cleaning = INTERRUPTED.load(Ordering::SeqCst);
    if cleaning {
        command.process_group(0);
    }
    let child = command.spawn().map_err(|err| format!("{program}: {err}"))?;
    let id = child.id();
    if !cleaning && let Some(handle) = open(id) {
        RUNNING.lock().insert(id, handle);
    }
    let out = child.wait_with_output();
    RUNNING.lock().remove(&id);
    let out = out.map_err(|err| format!("{program}: {err}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!(
            "{program} {}: {} ({})",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim(),
            out.status
        ))
    }
}

fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()
}

/// Makes sure that a program is there, with Debian's package manager if it has to.
///
/// # Errors
/// Why it is not.
pub fn need(program: &str, package: &str) -> Result<(), String> {
    if run("sh", &["-c", &format!("command -v {program}")]).is_ok() {
        return Ok(());
    }
    eprintln!("installing {package}");
    run("apt-get", &["install", "-q", "-y", package])
        .map(drop)
        .map_err(|err| format!("{package} cannot be installed ({err})"))
}

/// Processes that have `argument` as one of their arguments.
pub fn with_argument(argument: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return vec![];
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .any(|word| word == argument.as_bytes())
        })
        .collect()
}

/// Kills processes and waits, at most some seconds, until they are gone.
pub fn kill(pids: &[u32]) {
    for pid in pids {
        if let Some(handle) = open(*pid) {
            // It may have ended.
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }
    wait_gone(pids);
}

/// Waits, at most 10 s, until processes are gone. Whether they are.
pub fn wait_gone(pids: &[u32]) -> bool {
    for _ in 0..500 {
        if pids.iter().all(|pid| memory_kib(*pid, "VmRSS").is_none()) {
            return true;
        }
        pause(Duration::from_millis(20));
    }
    false
}

/// A line of `/proc/PID/status` in KiB: `VmRSS` is what a process has in memory, `VmHWM` the most it had.
pub fn memory_kib(pid: u32, line: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let found = status.lines().find_map(|text| text.strip_prefix(line))?;
    found
        .trim_start_matches(':')
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// A port that is free now, on UDP and most likely on TCP.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16, String> {
    UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map(|addr| addr.port())
        .map_err(|err| err.to_string())
}

/// The directory of `mortard` and `mortar`: `MORTAR_BIN_DIR`, else the one of this program.
///
/// # Errors
/// If they are not there; the message says what to do.
pub fn bin_dir() -> Result<PathBuf, String> {
    let dir = match std::env::var_os("MORTAR_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe().map_err(|err| err.to_string())?;
            exe.parent()
                .ok_or("no directory of executables")?
                .to_owned()
        }
    };
    match ["mortard", "mortar"]
        .iter()
        .find(|name| !dir.join(name).exists())
    {
        Some(name) => Err(format!(
            "no {name} in {}: run `cargo build --release` first, or set MORTAR_BIN_DIR",
            dir.display()
        )),
        None => Ok(dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_answer_or_say_why() {
        assert_eq!(run("echo", &["a", "b"]), Ok("a b\n".to_owned()));
        let err = run("ls", &["/no/such/path"]).unwrap_err();
        assert!(err.contains("/no/such/path"), "{err}");
        assert!(run("no-such-program", &[]).is_err());
    }

    #[test]
    fn own_memory_is_found() {
        let own = memory_kib(std::process::id(), "VmRSS").unwrap();
        assert!(own > 100 && own < 1 << 22, "{own}");
        assert_eq!(memory_kib(u32::MAX, "VmRSS"), None);
    }

    #[test]
    fn a_killed_program_is_gone() {
        // Only this process starts a program with this argument.
        let span = format!("{}.25", 1_000 + std::process::id());
        let mut child = Command::new("sleep").arg(&span).spawn().unwrap();
        // Its parent goes on a moment before the kernel knows its arguments.
        let mut tries = (0..200).map(|_| {
            pause(Duration::from_millis(5));
            with_argument(&span)
        });
        let found = tries.find(|found| !found.is_empty());
        assert_eq!(found, Some(vec![child.id()]));
        let id = child.id();
        let reaper = std::thread::spawn(move || child.wait());
        kill(&[id]);
        assert!(!reaper.join().unwrap().unwrap().success());
        assert!(with_argument(&span).is_empty());
    }
}
