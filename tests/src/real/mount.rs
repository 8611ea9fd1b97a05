//! A mounted volume.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::daemon::Daemon;
use super::{bin_dir, tool};

/// A mount of a volume; unmounted when dropped.
pub struct Mount {
    dir: TempDir,
}

#[allow(clippy::disallowed_methods)] // real processes need the real clock
impl Mount {
    /// Mounts `volume` of `daemon` on a new directory.
    pub fn new(daemon: &Daemon, volume: &str) -> Self {
        Self::with_options(daemon, volume, "")
    }

    /// A directory on which nothing is mounted yet.
    pub fn unmounted() -> Self {
        let dir = TempDir::with_prefix("mortar-mnt-").expect("temporary directory");
        Self { dir }
    }

    /// Mounts with `-o options`.
    pub fn with_options(daemon: &Daemon, volume: &str, options: &str) -> Self {
        let mount = Self::unmounted();
        mount.mount(daemon, volume, options);
        mount
    }

    /// Mounts on this directory again, after the mount process has ended.
    pub fn mount(&self, daemon: &Daemon, volume: &str, options: &str) {
        let out = self.try_mount(daemon, volume, options);
        let dir = self.path().display();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "mount on {dir}: {said}\ndaemon's log:\n{}",
            daemon.log()
        );
        assert!(
            self.is_mounted(),
            "mount returned but {dir} is not in /proc/mounts"
        );
    }

    /// Tries to.
    pub fn try_mount(&self, daemon: &Daemon, volume: &str, options: &str) -> Output {
        let words = self.words(daemon, volume, options);
        daemon.mortar(&words.each_ref().map(String::as_str))
    }

    /// Begins to, with the command's standard error in a pipe.
    pub fn start(&self, daemon: &Daemon, volume: &str, options: &str) -> Child {
        Command::new(bin_dir().join("mortar"))
            .args(self.words(daemon, volume, options))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mortar runs")
    }

    fn words(&self, daemon: &Daemon, volume: &str, options: &str) -> [String; 5] {
        let server = daemon.server();
        let (host, port) = server.rsplit_once(':').expect("host:port");
        let log = daemon.dir().join("mount.log");
        let mut all = format!("server-port={port},log-file={}", log.display());
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        let dir = self.path().to_str().expect("path is text").to_owned();
        let source = format!("{host}:/{volume}");
        ["mount".to_owned(), source, dir, "-o".to_owned(), all]
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below the mount point.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Whether the directory is a mount point of ours.
    pub fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("/proc/mounts");
        let dir = self.path().to_str().expect("path is text");
        mounts.lines().any(|line| {
            let mut words = line.split(' ');
            words.nth(1) == Some(dir) && words.next() == Some("fuse.mortar")
        })
    }

    /// Process ids of the mount's client.
    pub fn client_pids(&self) -> Vec<u32> {
        tool::pids_with_argument(self.path().to_str().expect("path is text"))
    }

    /// Kills the mount process with SIGKILL.
    pub fn kill_client(&self) {
        for pid in self.client_pids() {
            tool::signal(pid, libc::SIGKILL);
        }
    }

    /// Unmounts with umount(8) and waits until the client has ended.
    pub fn umount(&self) {
        let pids = self.client_pids();
        let out = Command::new("umount")
            .arg(self.path())
            .output()
            .expect("umount runs");
        assert!(
            out.status.success(),
            "umount: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let start = Instant::now();
        while pids.iter().any(|pid| tool::alive(*pid)) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the client outlives its mount by 20 s"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(self.path()).output();
        }
        self.kill_client();
    }
}
