//! One `mortard` and its volumes.

use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bin_dir;

/// Shape of a volume under test.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// One brick.
    Plain,
    /// Several bricks, one copy each.
    Distribute(u32),
    /// One set of copies.
    Replica(u32),
    /// Sets of copies: (sets, copies).
    DistributeReplica(u32, u32),
}

impl Kind {
    fn bricks(self) -> u32 {
        match self {
            Self::Plain => 1,
            Self::Distribute(bricks) | Self::Replica(bricks) => bricks,
            Self::DistributeReplica(sets, copies) => sets * copies,
        }
    }

    fn words(self) -> Vec<String> {
        match self {
            Self::Plain | Self::Distribute(_) => vec![],
            Self::Replica(copies) | Self::DistributeReplica(_, copies) => {
                vec!["replica".into(), copies.to_string()]
            }
        }
    }
}

/// A running `mortard` with a data directory of its own.
pub struct Daemon {
    child: Option<Child>,
    /// A shell that starts the daemon again whenever it ends.
    supervisor: Option<Child>,
    port: u16,
    api_port: u16,
    /// More arguments of the process.
    arguments: Vec<String>,
    dir: TempDir,
}

#[allow(clippy::disallowed_methods)] // a real process needs the real clock
impl Daemon {
    /// Starts a daemon on free ports, with its data in a temporary directory below `TMPDIR`.
    pub fn start() -> Self {
        Self::start_with(|_| Vec::new())
    }

    /// The same, with more arguments, made from the temporary directory.
    pub fn start_with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let dir = TempDir::with_prefix("mortar-test-").expect("temporary directory");
        let mut daemon = Self {
            child: None,
            supervisor: None,
            port: free_port(),
            api_port: free_port(),
            arguments: arguments(dir.path()),
            dir,
        };
        daemon.restart();
        daemon
    }

    /// Address of the daemon.
    pub fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Address of its HTTP port.
    pub fn api(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    /// The temporary directory (bricks in `b1`, `b2`, ...; data directory `data`; log `mortard.log`).
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("daemon runs").id()
    }

    /// Starts the process (again).
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "daemon runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("mortard.log"))
            .expect("log file");
        let child = Command::new(bin_dir().join("mortard"))
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .arg("--secret-file")
            .arg(self.dir.path().join("secret"))
            .args(["--listen", &self.server(), "--api", &self.api()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("mortard starts");
        self.child = Some(child);
    }

    /// Waits until the daemon answers commands.
    pub fn wait_ready(&self) {
        let start = Instant::now();
        loop {
            let out = self.mortar(&["volume", "list"]);
            if out.status.success() || String::from_utf8_lossy(&out.stderr).contains("No volumes") {
                return;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "mortard does not answer: {}\nlog: {}",
                String::from_utf8_lossy(&out.stderr),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.dir.path().join("mortard.log")) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// Kills the process with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill mortard");
            child.wait().expect("wait for mortard");
        }
    }

    /// Hands the daemon to a shell that starts it again whenever it ends, as a service manager does. To be called before
    /// this process opens files on a mount: a start of its own would close them in the new process, which waits for the
    /// mount, which waits for the daemon.
    pub fn supervise(&mut self) {
        self.kill();
        let script = "trap 'kill -9 $p; exit' TERM\n\
            while :; do\n\
            \"$@\" </dev/null >>mortard.log 2>&1 &\n\
            p=$!; echo $p >pid.new; mv pid.new pid; wait $p\n\
            done";
        let supervisor = Command::new("sh")
            .args(["-c", script, "supervisor"])
            .arg(bin_dir().join("mortard"))
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .arg("--secret-file")
            .arg(self.dir.path().join("secret"))
            .args(["--listen", &self.server(), "--api", &self.api()])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh");
        self.supervisor = Some(supervisor);
        self.supervised_pid(0);
        self.wait_ready();
    }

    /// Kills the supervised process with SIGKILL; comes back when the next one has been started.
    pub fn kill_supervised(&self) {
        let pid = self.supervised_pid(0);
        super::tool::signal(pid, libc::SIGKILL);
        self.supervised_pid(pid);
    }

    /// Id of the supervised process once it is another than `before`.
    fn supervised_pid(&self, before: u32) -> u32 {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.path().join("pid"));
            if let Some(pid) = text.ok().and_then(|text| text.trim().parse().ok())
                && pid != before
            {
                return pid;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the supervisor does not start mortard\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the process with SIGTERM; gives its exit code and how long it took.
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        self.end_with(libc::SIGTERM)
    }

    /// Ends the process with a signal; gives its exit code and how long it took.
    pub fn end_with(&mut self, signal: i32) -> (Option<i32>, Duration) {
        let mut child = self.child.take().expect("daemon runs");
        let start = Instant::now();
        super::tool::signal(child.id(), signal);
        loop {
            if let Some(status) = child.try_wait().expect("wait for mortard") {
                return (status.code(), start.elapsed());
            }
            if start.elapsed() > Duration::from_secs(30) {
                child.kill().expect("kill mortard");
                let _ = child.wait();
                panic!(
                    "mortard did not end within 30 s of the signal\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs `mortar` against this daemon.
    pub fn mortar(&self, args: &[&str]) -> std::process::Output {
        Command::new(bin_dir().join("mortar"))
            .arg("--server")
            .arg(self.server())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("mortar runs")
    }

    /// Runs `mortar` and gives its standard output; panics with both outputs and the daemon's log if it fails.
    pub fn mortar_ok(&self, args: &[&str]) -> String {
        let out = self.mortar(args);
        assert!(
            out.status.success(),
            "mortar {args:?} failed ({}):\n{}{}\ndaemon's log:\n{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            self.log()
        );
        String::from_utf8(out.stdout).expect("output is text")
    }

    /// Creates and starts a volume on directories of this daemon's temporary directory; gives the bricks' paths.
    pub fn volume(&self, name: &str, kind: Kind, brick_size: &str) -> Vec<PathBuf> {
        let dirs: Vec<PathBuf> = (1..=kind.bricks())
            .map(|n| self.dir.path().join(format!("{name}-b{n}")))
            .collect();
        let bricks: Vec<String> = dirs
            .iter()
            .map(|dir| format!("127.0.0.1:{}", dir.display()))
            .collect();
        let words = kind.words();
        let mut args = vec!["volume", "create", name];
        args.extend(words.iter().map(String::as_str));
        args.extend(bricks.iter().map(String::as_str));
        args.extend(["--brick-size", brick_size, "force"]);
        self.mortar_ok(&args);
        self.mortar_ok(&["volume", "start", name]);
        dirs
    }

    /// A daemon with one started volume `vol`.
    pub fn with_volume(kind: Kind, brick_size: &str) -> Self {
        let daemon = Self::start();
        daemon.wait_ready();
        daemon.volume("vol", kind, brick_size);
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            super::tool::signal(supervisor.id(), libc::SIGTERM);
            let _ = supervisor.wait();
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- end of mortard's log ---");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
            if let Ok(log) = std::fs::read(self.dir().join("mount.log")) {
                eprintln!(
                    "--- end of the mounts' log ---\n{}",
                    super::tool::tail(&log)
                );
            }
        }
    }
}

/// A UDP (and, most likely, TCP) port that is free now.
pub fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("free port");
    socket.local_addr().expect("local address").port()
}
