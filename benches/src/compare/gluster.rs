//! The GlusterFS side: Debian's glusterfs-server in a network namespace of its own, with its own working directory and
//! sockets, so that it stands beside a glusterd that serves this machine.
//!
//! glusterd refuses loopback addresses for bricks, so the namespace has one end of a veth pair as 10.77.0.1.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mortar_benches::backing::{Backing, text, unmount};
use mortar_benches::process::{check, kill, need, pause, run};

use crate::Side;

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
        need("glusterd", "glusterfs-server")?;
        let work = backing.scratch().join("gluster");
        let side = Self {
            namespace: format!("mortar-bench-{}", std::process::id()),
            mount: work.join("mnt"),
            work,
        };
        for dir in [&side.mount, &side.path("state"), &side.path("run")] {
            std::fs::create_dir_all(dir).map_err(|err| err.to_string())?;
        }
        side.make_namespace()?;
        side.start_daemon()?;
        side.create_volume(backing)?;
        side.inside(&[
            "mount",
            "-t",
            "glusterfs",
            "-o",
            &format!("log-file={}", side.path("mount.log").display()),
            &format!("{ADDRESS}:/bench"),
            text(&side.mount)?,
        ])?;
        Ok(side)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    fn make_namespace(&self) -> Result<(), String> {
        run("ip", &["netns", "add", &self.namespace])?;
        for words in [
            "link set lo up",
            "link add bench0 type veth peer name bench1",
            "addr add 10.77.0.1/24 dev bench0",
            "link set bench0 up",
            "link set bench1 up",
        ] {
            let mut all = vec!["-n", &self.namespace];
            all.extend(words.split(' '));
            run("ip", &all)?;
        }
        Ok(())
    }

    fn start_daemon(&self) -> Result<(), String> {
        let options = format!(
            "volume management\n type mgmt/glusterd\n option working-directory {}\n option run-directory {}\n \
             option glusterd-sockfile {}\n option transport-type socket\n \
             option transport.socket.listen-port 24007\n option ping-timeout 0\n option event-threads 1\nend-volume\n",
            self.path("state").display(),
            self.path("run").display(),
            self.path("socket").display(),
        );
        std::fs::write(self.path("glusterd.vol"), options).map_err(|err| err.to_string())?;
        let path = |name: &str| self.path(name).display().to_string();
        let (config, pid, log) = (path("glusterd.vol"), path("pid"), path("log"));
        self.inside(&["glusterd", "-f", &config, "-p", &pid, "-l", &log])
            .map(drop)
    }

    fn create_volume(&self, backing: &Backing) -> Result<(), String> {
        let mut create = "volume create bench replica 3".to_owned();
        for n in 1..=3 {
            let dir = backing.bricks().join(format!("gluster{n}"));
            std::fs::create_dir_all(&dir).map_err(|err| err.to_string())?;
            create = format!("{create} {ADDRESS}:{}", dir.display());
        }
        let mut tries = 0;
        while let Err(err) = self.gluster(&format!("{create} force")) {
            // glusterd answers commands only some seconds after its start.
            check()?;
            tries += 1;
            if tries > 20 {
                return Err(err);
            }
            pause(Duration::from_millis(500));
        }
        self.gluster("volume start bench").map(drop)
    }

    /// Runs a command of the gluster command line.
    fn gluster(&self, words: &str) -> Result<String, String> {
        let socket = format!("--glusterd-sock={}", self.path("socket").display());
        let mut all = vec!["gluster", "--mode=script", &socket];
        all.extend(words.split(' '));
        self.inside(&all)
    }

    fn inside(&self, args: &[&str]) -> Result<String, String> {
        let net = format!("--net=/run/netns/{}", self.namespace);
        let mut all = vec![net.as_str()];
        all.extend(args);
        run("nsenter", &all)
    }
}

impl Side for Gluster {
    fn name(&self) -> &'static str {
        "gluster"
    }

    fn mount(&self) -> &Path {
        &self.mount
    }

    fn processes(&self) -> Vec<(String, u32)> {
        let listed = run("ip", &["netns", "pids", &self.namespace]).unwrap_or_default();
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

impl Drop for Gluster {
    fn drop(&mut self) {
        unmount(&self.mount);
        // Everything of this side, and nothing else, runs in the namespace.
        let pids: Vec<u32> = self.processes().into_iter().map(|(_, pid)| pid).collect();
        kill(&pids);
        if let Err(why) = run("ip", &["netns", "del", &self.namespace]) {
            eprintln!("left over: {why}");
        }
    }
}
