//! A started Mortar: the executables built beside this one, on ports and in directories of their own.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::backing::{Backing, text, unmount};
use crate::process::{bin_dir, check, free_port, kill, pause, run, wait_gone, with_argument};

/// Name of the volume.
pub const VOLUME: &str = "bench";

/// A mounted replica 3 volume; taken down when dropped.
pub struct Mortar {
    daemon: Child,
    bin: PathBuf,
    work: PathBuf,
    addr: SocketAddr,
    mount: PathBuf,
}

impl Mortar {
    /// Starts mortard, creates and starts the volume on three bricks of `brick_mib` MiB, and mounts it.
    ///
    /// # Errors
    /// What a command said.
    pub fn start(backing: &Backing, brick_mib: u64, mount_options: &str) -> Result<Self, String> {
        let side = Self::spawn(backing.scratch().join("mortar"))?;
        let bricks: Vec<String> = (1..=3)
            .map(|n| {
                let dir = backing.bricks().join(format!("mortar{n}"));
                format!("127.0.0.1:{}", dir.display())
            })
            .collect();
        let size = format!("{brick_mib}M");
        let mut create = vec!["volume", "create", VOLUME, "replica", "3"];
        create.extend(bricks.iter().map(String::as_str));
        create.extend(["--brick-size", &size, "force"]);
        let mut tries = 0;
        while let Err(err) = side.command(&create) {
            check()?;
            tries += 1;
            if tries > 20 {
                return Err(err);
            }
            pause(Duration::from_millis(250));
        }
        side.command(&["volume", "start", VOLUME])?;
        side.mount_volume(mount_options)?;
        Ok(side)
    }

    fn spawn(work: PathBuf) -> Result<Self, String> {
        let bin = bin_dir()?;
        let mount = work.join("mnt");
        std::fs::create_dir_all(&mount).map_err(|err| err.to_string())?;
        let log = File::create(work.join("mortard.log")).map_err(|err| err.to_string())?;
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let api = format!("127.0.0.1:{}", free_port()?);
        let daemon = Command::new(bin.join("mortard"))
            .arg("--data-dir")
            .arg(work.join("data"))
            .arg("--secret-file")
            .arg(work.join("secret"))
            .args(["--listen", &addr.to_string(), "--api", &api])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|err| err.to_string())?)
            .stderr(log)
            // Ctrl-C is for the measuring program, which then unmounts first.
            .process_group(0)
            .spawn()
            .map_err(|err| format!("mortard: {err}"))?;
        Ok(Self {
            daemon,
            bin,
            work,
            addr,
            mount,
        })
    }

    /// Runs `mortar` against this daemon.
    fn command(&self, args: &[&str]) -> Result<String, String> {
        let server = self.addr.to_string();
        let mut all = vec!["--server", &server];
        all.extend(args);
        run(text(&self.bin.join("mortar"))?, &all)
    }

    fn mount_volume(&self, options: &str) -> Result<(), String> {
        let log = self.work.join("mount.log");
        let mut all = format!(
            "server-port={},log-file={}",
            self.addr.port(),
            log.display()
        );
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        let source = format!("{}:/{VOLUME}", self.addr.ip());
        self.command(&["mount", &source, text(&self.mount)?, "-o", &all])
            .map(drop)
    }

    /// Address of the daemon.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The mount point.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> u32 {
        self.daemon.id()
    }

    /// Process ids of the mount.
    pub fn clients(&self) -> Vec<u32> {
        text(&self.mount).map(with_argument).unwrap_or_default()
    }
}

impl Drop for Mortar {
    fn drop(&mut self) {
        let clients = self.clients();
        unmount(&self.mount);
        if !wait_gone(&clients) {
            kill(&clients);
        }
        // It may have ended by itself.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
