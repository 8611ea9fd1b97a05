//! The Mortar side: the executables built beside this one.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::backing::{Backing, run};
use crate::{Side, pause};

/// A mounted replica 3 volume of Mortar; taken down when dropped.
pub(crate) struct Mortar {
    daemon: Child,
    mount: PathBuf,
}

fn free_port() -> Result<u16, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|err| err.to_string())?;
    Ok(socket.local_addr().map_err(|err| err.to_string())?.port())
}

impl Mortar {
    /// Starts mortard, creates and mounts the volume.
    pub(crate) fn start(backing: &Backing, mount_options: &str) -> Result<Self, String> {
        let exe = std::env::current_exe().map_err(|err| err.to_string())?;
        let bin = exe.parent().ok_or("no directory of executables")?;
        let mortar = bin.join("mortar").display().to_string();
        if !bin.join("mortard").exists() || !bin.join("mortar").exists() {
            return Err(format!(
                "no executables in {}: run `cargo build --release` first",
                bin.display()
            ));
        }
        let work = backing.scratch().join("mortar");
        let mount = work.join("mnt");
        std::fs::create_dir_all(&mount).map_err(|err| err.to_string())?;
        let log = std::fs::File::create(work.join("mortard.log")).map_err(|err| err.to_string())?;
        let port = free_port()?;
        let server = format!("127.0.0.1:{port}");
        let daemon = Command::new(bin.join("mortard"))
            .arg("--data-dir")
            .arg(work.join("data"))
            .args([
                "--listen",
                &server,
                "--api",
                &format!("127.0.0.1:{}", free_port()?),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|err| err.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|err| format!("mortard: {err}"))?;
        let side = Self { daemon, mount };
        let bricks: Vec<String> = (1..=3)
            .map(|n| {
                format!(
                    "127.0.0.1:{}",
                    backing.bricks().join(format!("mortar{n}")).display()
                )
            })
            .collect();
        let mut create = vec![
            "--server", &server, "volume", "create", "bench", "replica", "3",
        ];
        create.extend(bricks.iter().map(String::as_str));
        create.extend(["--brick-size", "2G", "force"]);
        let mut tries = 0;
        while let Err(err) = run(&mortar, &create) {
            tries += 1;
            if tries > 20 {
                return Err(err);
            }
            pause(Duration::from_millis(250));
        }
        run(&mortar, &["--server", &server, "volume", "start", "bench"])?;
        let mut options = format!(
            "server-port={port},log-file={}",
            work.join("mount.log").display()
        );
        if !mount_options.is_empty() {
            options = format!("{options},{mount_options}");
        }
        let dir = side.mount.to_str().ok_or("path is not text")?;
        run(
            &mortar,
            &[
                "--server",
                &server,
                "mount",
                "127.0.0.1:/bench",
                dir,
                "-o",
                &options,
            ],
        )?;
        Ok(side)
    }
}

impl Side for Mortar {
    fn name(&self) -> &'static str {
        "mortar"
    }

    fn mount(&self) -> PathBuf {
        self.mount.clone()
    }

    fn processes(&self) -> Vec<(String, u32)> {
        let mut found = vec![("mortard".to_owned(), self.daemon.id())];
        let dir = self.mount.display().to_string();
        let listed = run("pgrep", &["-f", &format!("mortar .*mount .*{dir}")]).unwrap_or_default();
        found.extend(
            listed
                .lines()
                .filter_map(|line| line.trim().parse().ok())
                .map(|pid| ("mount".to_owned(), pid)),
        );
        found
    }
}

impl Drop for Mortar {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(&self.mount)
            .stderr(Stdio::null())
            .status();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
