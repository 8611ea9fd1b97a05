//! Several `mortard` that form a cluster.
//!
//! The daemons are children of a launcher, a shell. So they can be started while this process holds files open on a mount
//! (a start of its own would close them in the new process, which waits for the mount, which waits for the daemon), and
//! whatever ends this process, the end of the launcher's input ends the daemons, the mounts and the namespaces.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::net::{Net, Places};
use super::{Mount, bin_dir, tool};

/// Time within which everything that is expected soon has to come.
const SOON: Duration = Duration::from_secs(20);

/// A node.
#[derive(Debug)]
struct Node {
    listen: SocketAddr,
    api: SocketAddr,
    dir: PathBuf,
    bin: PathBuf,
    pid: Option<u32>,
}

/// See the module. Nodes are counted from 1.
#[derive(Debug)]
pub struct Cluster {
    places: Places,
    nodes: Vec<Node>,
    launcher: RefCell<Child>,
    dir: TempDir,
}

#[allow(clippy::disallowed_methods)] // real processes need the real clock
impl Cluster {
    /// A cluster of `count` nodes, taken in by probes of the first.
    pub fn new(net: Net, count: u8) -> Self {
        let cluster = Self::apart(net, count);
        cluster.join();
        cluster
    }

    /// Has the first take in all others.
    pub fn join(&self) {
        for n in 2..=self.count() {
            self.ok(1, &["peer", "probe", &self.server(n)]);
        }
        self.wait_joined();
    }

    /// `count` running nodes with one secret, each a cluster of its own.
    pub fn apart(net: Net, count: u8) -> Self {
        Self::prepared(net, count, |_| {})
    }

    /// The same, with something done to the places before the first daemon starts.
    pub fn prepared(net: Net, count: u8, prepare: impl FnOnce(&Places)) -> Self {
        let places = Places::new(net, count);
        let dir = TempDir::with_prefix("mortar-cluster-").expect("temporary directory");
        let launcher = launcher(&places, dir.path());
        let mut nodes = Vec::new();
        for n in 1..=count {
            let own = dir.path().join(n.to_string());
            fs::create_dir(&own).expect("directory of a node");
            let listen = places.addr(n);
            nodes.push(Node {
                listen,
                // TCP beside UDP.
                api: listen,
                dir: own,
                bin: bin_dir(),
                pid: None,
            });
        }
        let mut cluster = Self {
            places,
            nodes,
            launcher: RefCell::new(launcher),
            dir,
        };
        // From here on the launcher undoes what was made.
        cluster.places.make();
        prepare(&cluster.places);
        for n in 1..=count {
            cluster.set_secret(n, "the secret of all nodes under test\n");
            cluster.start(n);
        }
        for n in 1..=count {
            cluster.wait_ready(n);
        }
        cluster
    }

    /// The places of the nodes.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Number of nodes.
    pub fn count(&self) -> u8 {
        self.nodes.len() as u8
    }

    fn node(&self, n: u8) -> &Node {
        &self.nodes[usize::from(n) - 1]
    }

    fn node_mut(&mut self, n: u8) -> &mut Node {
        &mut self.nodes[usize::from(n) - 1]
    }

    /// Address and port of a node.
    pub fn server(&self, n: u8) -> String {
        self.node(n).listen.to_string()
    }

    /// Address of a node.
    pub fn host(&self, n: u8) -> String {
        self.node(n).listen.ip().to_string()
    }

    /// What a node is called in the cluster: the first is known by the name of its machine, others as they were probed.
    pub fn name(&self, n: u8) -> String {
        if n == 1 {
            let name = rustix::system::uname();
            return name.nodename().to_string_lossy().into_owned();
        }
        self.host(n)
    }

    /// Directory of a node: `data`, `secret`, `mortard.log` and its bricks.
    pub fn dir(&self, n: u8) -> &Path {
        &self.node(n).dir
    }

    /// A brick as `volume create` takes it.
    pub fn brick(&self, n: u8, name: &str) -> String {
        format!("{}:{}", self.host(n), self.dir(n).join(name).display())
    }

    /// Writes a node's secret file.
    pub fn set_secret(&self, n: u8, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let file = self.dir(n).join("secret");
        fs::write(&file, text).expect("secret");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode");
    }

    /// Has a node listen elsewhere from its next start on.
    pub fn move_to(&mut self, n: u8, place: u8) {
        let addr = self.places.addr(place);
        let node = self.node_mut(n);
        (node.listen, node.api) = (addr, addr);
    }

    /// Has a node take its executable from another directory from its next start on.
    pub fn set_bin(&mut self, n: u8, bin: &Path) {
        self.node_mut(n).bin = bin.to_owned();
    }

    /// Starts a node's process.
    pub fn start(&mut self, n: u8) {
        let words = self.places.words_at(n).join(" ");
        let node = self.node(n);
        assert!(node.pid.is_none(), "node {n} runs already");
        let dir = node.dir.display();
        let line = format!(
            "{words} {bin}/mortard --data-dir {dir}/data --secret-file {dir}/secret --listen {listen} --api {api} \
             </dev/null >>{dir}/mortard.log 2>&1 & echo $! >{dir}/pid.new; mv {dir}/pid.new {dir}/pid\n",
            bin = node.bin.display(),
            listen = node.listen,
            api = node.api,
        );
        let file = node.dir.join("pid");
        let _ = fs::remove_file(&file);
        self.tell_launcher(&line);
        let pid = tool::wait_for("the launcher", SOON, || {
            fs::read_to_string(&file).ok()?.trim().parse().ok()
        });
        self.node_mut(n).pid = Some(pid);
    }

    fn tell_launcher(&self, line: &str) {
        let mut launcher = self.launcher.borrow_mut();
        let input = launcher.stdin.as_mut().expect("the launcher's input");
        input.write_all(line.as_bytes()).expect("the launcher runs");
    }

    /// Whether a node's process runs, as far as this process has to do with it.
    pub fn runs(&self, n: u8) -> bool {
        self.node(n).pid.is_some()
    }

    /// Sends a signal to a node's process.
    pub fn signal(&self, n: u8, signal: i32) {
        tool::signal(self.node(n).pid.expect("the node runs"), signal);
    }

    /// Ends a node's process with a signal and waits for its end.
    pub fn end(&mut self, n: u8, signal: i32) {
        self.signal(n, signal);
        let pid = self.node_mut(n).pid.take().expect("the node runs");
        tool::wait_for("the end of mortard", SOON, || {
            (!tool::alive(pid)).then_some(())
        });
        // Its number may become another process's.
        let _ = fs::remove_file(self.dir(n).join("pid"));
    }

    /// Kills a node's process.
    pub fn kill(&mut self, n: u8) {
        self.end(n, libc::SIGKILL);
    }

    /// What a node has logged.
    pub fn log(&self, n: u8) -> String {
        let text = fs::read(self.dir(n).join("mortard.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs `mortar` against a node.
    pub fn mortar(&self, n: u8, args: &[&str]) -> Output {
        self.client(n).args(args).output().expect("mortar runs")
    }

    /// `mortar --server NODE`, at the place of commands and mounts.
    pub fn client(&self, n: u8) -> Command {
        self.client_of(&self.server(n))
    }

    /// `mortar --server SERVERS`.
    pub fn client_of(&self, servers: &str) -> Command {
        let mut command = self.places.command(0, &bin_dir().join("mortar"));
        command
            .args(["--mode=script", "--server", servers])
            .stdin(Stdio::null());
        command
    }

    /// The same; it has to succeed. Gives its standard output.
    pub fn ok(&self, n: u8, args: &[&str]) -> String {
        let out = self.mortar(n, args);
        assert!(
            out.status.success(),
            "mortar {args:?} at node {n} failed ({}):\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        String::from_utf8(out.stdout).expect("output is text")
    }

    /// The same; it has to be refused with one line and this exit code. Gives the line.
    pub fn refused(&self, n: u8, args: &[&str], code: i32) -> String {
        let out = self.mortar(n, args);
        let line = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(
            (
                out.status.code(),
                out.stdout.is_empty(),
                line.lines().count()
            ),
            (Some(code), true, 1),
            "mortar {args:?} at node {n}: one line and exit code {code} were expected\n{}{line}",
            String::from_utf8_lossy(&out.stdout),
        );
        line.trim_end().to_owned()
    }

    /// What a command with `--json` says.
    pub fn json(&self, n: u8, args: &[&str]) -> Value {
        let text = self.ok(n, &[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}\n{text}"))
    }

    /// `cluster status` as a node has it.
    pub fn status(&self, n: u8) -> Value {
        self.json(n, &["cluster", "status"])
    }

    /// Waits until a node answers commands.
    pub fn wait_ready(&self, n: u8) {
        let start = Instant::now();
        loop {
            let out = self.mortar(n, &["peer", "status"]);
            if out.status.success() {
                return;
            }
            assert!(
                start.elapsed() < SOON,
                "node {n} does not answer: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until all running nodes see all nodes as members, all running ones as answering, one that leads, and as many
    /// voters as there have to be.
    pub fn wait_joined(&self) {
        let running: Vec<u8> = (1..=self.count()).filter(|n| self.runs(*n)).collect();
        for n in &running {
            // It may have been started just now.
            self.wait_ready(*n);
            tool::wait_for("all nodes in the cluster", SOON, || {
                let status = self.status(*n);
                let nodes = status["nodes"].as_array()?;
                let count = |key: &str, wanted: &Value| {
                    nodes.iter().filter(|node| node[key] == *wanted).count()
                };
                let all = nodes.len();
                let voting = count("role", &"leader".into()) + count("role", &"voter".into());
                (all == self.nodes.len()
                    && count("state", &"joined".into()) == all
                    && count("answers", &true.into()) == running.len()
                    && count("role", &"leader".into()) == 1
                    && count("role", &"outside".into()) == 0
                    && voting >= all.min(3))
                .then_some(())
            });
        }
    }

    /// The node that leads, as the node `n` has it.
    pub fn leader(&self, n: u8) -> u8 {
        tool::wait_for("a leader", SOON, || {
            let status = self.status(n);
            let nodes = status["nodes"].as_array()?;
            let leader = nodes.iter().find(|node| node["role"] == "leader")?;
            let addrs = leader["addresses"].as_array()?;
            (1..=self.count()).find(|n| addrs.contains(&self.server(*n).into()))
        })
    }

    /// Whether all sets have all their members, as the node `n` has it.
    pub fn is_whole(&self, n: u8) -> bool {
        let out = self.mortar(n, &["cluster", "status", "--json"]);
        let status: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        status["sets"]["partial"]
            .as_array()
            .is_some_and(Vec::is_empty)
    }

    /// Waits for that; gives how long it took.
    pub fn wait_whole(&self, n: u8, limit: Duration) -> Duration {
        let start = Instant::now();
        while !self.is_whole(n) {
            assert!(
                start.elapsed() < limit,
                "not whole within {limit:?}: {:#}\n{}",
                self.status(n)["sets"],
                self.dumps()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        start.elapsed()
    }

    /// What all running nodes are doing.
    fn dumps(&self) -> String {
        let running: Vec<u8> = (1..=self.count()).filter(|n| self.runs(*n)).collect();
        running.iter().for_each(|n| self.signal(*n, libc::SIGUSR1));
        std::thread::sleep(Duration::from_secs(2));
        let dump = |n: &u8| {
            let text = fs::read_to_string(self.dir(*n).join("data/state.json"));
            format!("--- node {n}\n{}\n", text.unwrap_or_default())
        };
        running.iter().map(dump).collect()
    }

    /// Creates a volume through node `n` and starts it: `bricks` on each node, in the order that gives each set one brick
    /// per node.
    pub fn volume(&self, n: u8, name: &str, words: &[&str], bricks: u8, size: &str) {
        let mut args = vec!["volume".to_owned(), "create".to_owned(), name.to_owned()];
        args.extend(words.iter().map(|word| (*word).to_owned()));
        for number in 1..=bricks {
            let each =
                (1..=self.count()).map(|node| self.brick(node, &format!("{name}-b{number}")));
            args.extend(each);
        }
        args.extend([
            "--brick-size".to_owned(),
            size.to_owned(),
            "force".to_owned(),
        ]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.ok(n, &args);
        self.ok(n, &["volume", "start", name]);
    }

    /// Creates a volume of one brick of the smallest size through node `n`.
    pub fn create_plain(&self, n: u8, name: &str, brick: &str) {
        let words = [
            "volume",
            "create",
            name,
            brick,
            "--brick-size",
            "256M",
            "force",
        ];
        self.ok(n, &words);
    }

    /// Mounts a volume through these servers (`HOST:PORT`).
    pub fn mount(&self, servers: &[String], volume: &str) -> Mount {
        self.mount_with(servers, volume, "")
    }

    /// The same with more options.
    pub fn mount_with(&self, servers: &[String], volume: &str, options: &str) -> Mount {
        let mount = Mount::unmounted();
        let out = self.try_mount(&mount, servers, volume, options);
        assert!(
            out.status.success() && mount.is_mounted(),
            "mount of {volume} through {servers:?}: {}{}",
            String::from_utf8_lossy(&out.stderr),
            fs::read_to_string(self.mount_log()).unwrap_or_default()
        );
        mount
    }

    /// Tries to mount a volume on a directory.
    pub fn try_mount(
        &self,
        mount: &Mount,
        servers: &[String],
        volume: &str,
        options: &str,
    ) -> Output {
        let list = self.dir.path().join("mounts");
        let mut file = fs::File::options().create(true).append(true).open(list);
        let file = file.as_mut().expect("list of mounts");
        writeln!(file, "{}", mount.path().display()).expect("list of mounts");
        self.places
            .command(0, &bin_dir().join("mortar"))
            .arg("mount")
            .arg(format!("{}:/{volume}", servers.join(",")))
            .arg(mount.path())
            .arg("-o")
            .arg(format!("log-file={},{options}", self.mount_log().display()))
            .stdin(Stdio::null())
            .output()
            .expect("mortar runs")
    }

    /// Log of all mounts.
    pub fn mount_log(&self) -> PathBuf {
        self.dir.path().join("mount.log")
    }

    /// Addresses of all nodes.
    pub fn servers(&self) -> Vec<String> {
        (1..=self.count()).map(|n| self.server(n)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for n in 1..=self.count() {
                print_end(&format!("mortard of node {n}"), &self.log(n));
            }
            let log = fs::read_to_string(self.mount_log()).unwrap_or_default();
            print_end("the mounts", &log);
        }
        let launcher = self.launcher.get_mut();
        drop(launcher.stdin.take());
        let _ = launcher.wait();
    }
}

fn print_end(of: &str, log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let mut text = format!("--- end of the log of {of} ---\n");
    for line in &lines[lines.len().saturating_sub(40)..] {
        let _ = writeln!(text, "{line}");
    }
    eprint!("{text}");
}

/// A shell that does what it is told, and in the end undoes it.
fn launcher(places: &Places, dir: &Path) -> Child {
    let script = format!(
        "trap '' INT TERM HUP\n\
         while read -r line; do eval \"$line\"; done\n\
         for pid in {dir}/*/pid; do [ ! -e $pid ] || kill -9 $(cat $pid); done 2>/dev/null\n\
         wait\n\
         [ ! -e {dir}/mounts ] || while read -r mount; do umount -l $mount; done <{dir}/mounts 2>/dev/null\n\
         {undo}",
        dir = dir.display(),
        undo = places.undo(),
    );
    Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("sh")
}
