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
    daemons: Vec<Child>,
    bin: PathBuf,
    work: PathBuf,
    addr: SocketAddr,
    mount: PathBuf,
}

impl Mortar {
    /// Starts `nodes` mortard as one cluster, creates and starts the volume on three bricks of `brick_mib` MiB, on one
    /// node after the other, and mounts it.
    ///
    /// # Errors
    /// What a command said.
    pub fn start(
        backing: &Backing,
        nodes: u8,
        brick_mib: u64,
        mount_options: &str,
    ) -> Result<Self, String> {
        let mut side = Self::new(backing.scratch().join("mortar"))?;
        for node in 1..=nodes {
            side.spawn(node)?;
        }
        side.patiently(&["volume", "list"])?;
        for node in 2..=nodes {
            let addr = SocketAddr::from(([127, 0, 0, node], side.addr.port()));
            side.patiently(&["peer", "probe", &addr.to_string()])?;
        }
        let bricks: Vec<String> = (1..=3)
            .map(|n| {
                let dir = backing.bricks().join(format!("mortar{n}"));
                format!("127.0.0.{}:{}", (n - 1) % nodes + 1, dir.display())
            })
            .collect();
        let size = format!("{brick_mib}M");
        let mut create = vec!["volume", "create", VOLUME, "replica", "3"];
        create.extend(bricks.iter().map(String::as_str));
        create.extend(["--brick-size", &size, "force"]);
        side.patiently(&create)?;
        side.command(&["volume", "start", VOLUME])?;
        side.mount_volume(mount_options)?;
        Ok(side)
    }

    fn new(work: PathBuf) -> Result<Self, String> {
        let mount = work.join("mnt");
        std::fs::create_dir_all(&mount).map_err(|err| err.to_string())?;
        Ok(Self {
            daemons: Vec::new(),
            bin: bin_dir()?,
            work,
            addr: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
            mount,
        })
    }

    fn spawn(&mut self, node: u8) -> Result<(), String> {
        let work = &self.work;
        let log = work.join(format!("mortard{node}.log"));
        let log = File::create(log).map_err(|err| err.to_string())?;
        let addr = SocketAddr::from(([127, 0, 0, node], self.addr.port()));
        let api = format!("127.0.0.{node}:{}", free_port()?);
        let daemon = Command::new(self.bin.join("mortard"))
            .arg("--data-dir")
            .arg(work.join(format!("data{node}")))
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
        self.daemons.push(daemon);
        Ok(())
    }

    /// As [`Self::command`], for as long as a daemon may take to start.
    fn patiently(&self, args: &[&str]) -> Result<String, String> {
        let mut tries = 0;
        loop {
            match self.command(args) {
                Err(err) if tries > 20 => return Err(err),
                Err(_) => {}
                done => return done,
            }
            check()?;
            tries += 1;
            pause(Duration::from_millis(250));
        }
    }

    /// Runs `mortar` against the first daemon.
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

    /// Address of the first daemon.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The mount point.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Process ids of the daemons.
    pub fn daemons(&self) -> Vec<u32> {
        self.daemons.iter().map(Child::id).collect()
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
        for daemon in &mut self.daemons {
            // It may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
