//! The GlusterFS side: Debian's glusterfs-server in a network namespace of its own.
//!
//! glusterd refuses loopback addresses for bricks, so the namespace has one end of a veth pair as 10.77.0.1.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::backing::{Backing, run};
use crate::{Side, pause};

const ADDRESS: &str = "10.77.0.1";

/// A mounted replica 3 volume of GlusterFS; taken down when dropped.
pub(crate) struct Gluster {
    namespace: String,
    mount: PathBuf,
    work: PathBuf,
}

impl Gluster {
    /// Starts glusterd, creates and mounts the volume.
    pub(crate) fn start(backing: &Backing) -> Result<Self, String> {
        if run("glusterd", &["--version"]).is_err() {
            run("apt-get", &["install", "-q", "-y", "glusterfs-server"])
                .map_err(|err| format!("glusterfs-server cannot be installed ({err})"))?;
        }
        let work = backing.scratch().join("gluster");
        let mount = work.join("mnt");
        let state = work.join("state");
        for dir in [&work, &mount, &state] {
            std::fs::create_dir_all(dir).map_err(|err| err.to_string())?;
        }
        let namespace = format!("mortar-bench-{}", std::process::id());
        run("ip", &["netns", "add", &namespace])?;
        let side = Self {
            namespace,
            mount,
            work,
        };
        let ns = side.namespace.as_str();
        for args in [
            vec!["link", "set", "lo", "up"],
            vec![
                "link", "add", "bench0", "type", "veth", "peer", "name", "bench1",
            ],
            vec!["addr", "add", "10.77.0.1/24", "dev", "bench0"],
            vec!["link", "set", "bench0", "up"],
            vec!["link", "set", "bench1", "up"],
        ] {
            let mut all = vec!["-n", ns];
            all.extend(args);
            run("ip", &all)?;
        }
        let config = side.work.join("glusterd.vol");
        let text = format!(
            "volume management\n type mgmt/glusterd\n option working-directory {}\n option transport-type socket\n \
             option transport.socket.listen-port 24007\n option ping-timeout 0\n option event-threads 1\nend-volume\n",
            state.display()
        );
        std::fs::write(&config, text).map_err(|err| err.to_string())?;
        let path = |name: &str| side.work.join(name).display().to_string();
        side.inside(&[
            "glusterd",
            "-f",
            &path("glusterd.vol"),
            "-p",
            &path("pid"),
            "-l",
            &path("log"),
        ])?;
        let bricks: Vec<String> = (1..=3)
            .map(|n| {
                let dir = backing.bricks().join(format!("gluster{n}"));
                std::fs::create_dir_all(&dir).map_err(|err| err.to_string())?;
                Ok(format!("{ADDRESS}:{}", dir.display()))
            })
            .collect::<Result<_, String>>()?;
        let mut create = vec![
            "gluster",
            "--mode=script",
            "volume",
            "create",
            "bench",
            "replica",
            "3",
        ];
        create.extend(bricks.iter().map(String::as_str));
        create.push("force");
        let mut tries = 0;
        while let Err(err) = side.inside(&create) {
            // glusterd answers commands only some seconds after its start.
            tries += 1;
            if tries > 20 {
                return Err(err);
            }
            pause(std::time::Duration::from_millis(500));
        }
        side.inside(&["gluster", "--mode=script", "volume", "start", "bench"])?;
        side.inside(&[
            "mount",
            "-t",
            "glusterfs",
            &format!("{ADDRESS}:/bench"),
            side.mount.to_str().ok_or("path is not text")?,
        ])?;
        Ok(side)
    }

    fn inside(&self, args: &[&str]) -> Result<String, String> {
        let net = format!("--net=/run/netns/{}", self.namespace);
        let mut all = vec![net.as_str()];
        all.extend(args);
        run("nsenter", &all)
    }

    fn pids(&self) -> Vec<(String, u32)> {
        let Ok(listed) = run("ip", &["netns", "pids", &self.namespace]) else {
            return vec![];
        };
        listed
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .map(|pid: u32| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                (name.trim().to_owned(), pid)
            })
            .collect()
    }
}

impl Side for Gluster {
    fn name(&self) -> &'static str {
        "gluster"
    }

    fn mount(&self) -> PathBuf {
        self.mount.clone()
    }

    fn processes(&self) -> Vec<(String, u32)> {
        self.pids()
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.mount)
            .stderr(Stdio::null())
            .status();
        let _ = self.inside(&[
            "gluster",
            "--mode=script",
            "volume",
            "stop",
            "bench",
            "force",
        ]);
        for (_, pid) in self.pids() {
            let _ = run("kill", &["-9", &pid.to_string()]);
        }
        let _ = run("ip", &["netns", "del", &self.namespace]);
    }
}
