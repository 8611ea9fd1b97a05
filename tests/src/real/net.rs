//! Where the nodes of a cluster are: on loopback addresses of this machine, or each in a network namespace of its own.
//!
//! The namespaces hang on a bridge, which lies in one more namespace, so that nothing of the machine's own network
//! changes. They end with the launcher of the cluster (see `cluster`), whatever becomes of the test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use super::daemon::free_port;

/// Last byte of the address of the place where commands and mounts run.
const CLIENT: u8 = 200;

/// Kind of place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Net {
    /// Processes on 127.0.0.1, 127.0.0.2, ...
    Loopback,
    /// Network namespaces with veth and a bridge.
    Namespaces,
}

impl Net {
    /// Whether this process may use it; says so loudly if not.
    pub fn is_available(self) -> bool {
        let fine = self == Self::Loopback || rustix::process::geteuid().is_root();
        if !fine {
            eprintln!("SKIPPED: network namespaces need root");
        }
        fine
    }
}

/// The places of one cluster.
#[derive(Debug)]
pub struct Places {
    net: Net,
    /// First part of the names of the namespaces.
    prefix: String,
    /// First three bytes of addresses.
    subnet: [u8; 3],
    port: u16,
    count: u8,
    /// What all places look names up in, in the form of /etc/hosts.
    hosts: OnceLock<PathBuf>,
}

/// Numbers the clusters of this process.
static NEXT: AtomicU8 = AtomicU8::new(1);

impl Places {
    /// Chooses `count` of them; [`Self::make`] makes what has to be made.
    pub fn new(net: Net, count: u8) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let mut places = Self {
            net,
            prefix: format!("mortar-{pid}-{number}"),
            subnet: [127, 0, 0],
            port: free_port(),
            count,
            hosts: OnceLock::new(),
        };
        match net {
            Net::Loopback => {
                // Free on the first address does not say free on all.
                while (1..=count + 20).any(|n| UdpSocket::bind(places.addr(n)).is_err()) {
                    places.port = free_port();
                }
            }
            Net::Namespaces => {
                places.subnet = [10, 20 + (pid % 200) as u8, number];
                places.port = 24_007;
            }
        }
        places
    }

    /// The kind.
    pub fn net(&self) -> Net {
        self.net
    }

    /// Has all places look names up in a file in the form of /etc/hosts, which may change.
    pub fn set_hosts(&self, file: PathBuf) {
        assert!(self.hosts.set(file).is_ok(), "once");
    }

    /// Address of the place `n`, counted from 1. Those above the number of nodes have nobody.
    pub fn addr(&self, n: u8) -> SocketAddr {
        SocketAddr::new(self.ip(n), self.port)
    }

    fn ip(&self, n: u8) -> IpAddr {
        let [a, b, c] = self.subnet;
        IpAddr::V4(Ipv4Addr::new(a, b, c, n))
    }

    /// Words of a shell before those of a command at place `n`; 0 is the one of commands and mounts.
    pub fn words_at(&self, n: u8) -> Vec<String> {
        let mut words: Vec<String> = match self.net {
            Net::Loopback => vec![],
            // Not `ip netns exec`: in its mount namespace a mount would be seen by nobody else.
            Net::Namespaces => {
                vec!["nsenter".into(), format!("--net={}", self.file(n))]
            }
        };
        if let Some(file) = self.hosts.get() {
            words.extend(["env", "LD_PRELOAD=libnss_wrapper.so"].map(String::from));
            words.push(format!("NSS_WRAPPER_HOSTS={}", file.display()));
        }
        words
    }

    /// A command at place `n`; 0 is the one of commands and mounts.
    pub fn command(&self, n: u8, program: &std::path::Path) -> Command {
        let words = self.words_at(n);
        match words.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        }
    }

    /// A socket at place `n` from which nobody reads: what is sent there is lost without a word.
    pub fn silence(&self, n: u8) -> UdpSocket {
        let addr = self.addr(n);
        if self.net == Net::Loopback {
            return UdpSocket::bind(addr).expect("silent socket");
        }
        // In the namespace of the hub, which has the address for this.
        ip(&[
            "-n",
            &self.hub(),
            "addr",
            "add",
            &format!("{}/24", addr.ip()),
            "dev",
            "br0",
        ]);
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.hub())).expect("hub");
        let bound = std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            use std::os::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the hub's namespace");
            UdpSocket::bind(addr).expect("silent socket")
        });
        bound.join().expect("the thread in the hub")
    }

    /// Sets the largest packet on the way of place `n`.
    pub fn set_mtu(&self, n: u8, bytes: u32) {
        assert_eq!(self.net, Net::Namespaces, "only there");
        let bytes = bytes.to_string();
        ip(&["-n", &self.name(n), "link", "set", "eth0", "mtu", &bytes]);
        ip(&[
            "-n",
            &self.hub(),
            "link",
            "set",
            &format!("v{n}"),
            "mtu",
            &bytes,
        ]);
    }

    /// Has packets larger than this vanish on the way to and from place `n`, without a word to their senders.
    pub fn shrink_path(&self, n: u8, bytes: u32) {
        assert_eq!(self.net, Net::Namespaces, "only there");
        let (wire, bytes) = (format!("v{n}"), bytes.to_string());
        ip(&["-n", &self.hub(), "link", "set", &wire, "mtu", &bytes]);
    }

    /// Takes the link of place `n` down, or up again.
    pub fn set_link(&self, n: u8, up: bool) {
        assert_eq!(self.net, Net::Namespaces, "only there");
        let word = if up { "up" } else { "down" };
        ip(&["-n", &self.hub(), "link", "set", &format!("v{n}"), word]);
    }

    /// Shell commands that undo everything.
    pub fn undo(&self) -> String {
        match self.net {
            Net::Loopback => String::new(),
            Net::Namespaces => {
                let all = (0..=self.count).map(|n| self.name(n));
                all.chain([self.hub()])
                    .map(|name| format!("ip netns del {name}\n"))
                    .collect()
            }
        }
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn name(&self, n: u8) -> String {
        format!("{}-{n}", self.prefix)
    }

    fn file(&self, n: u8) -> String {
        format!("/run/netns/{}", self.name(n))
    }

    /// Makes the namespaces.
    pub fn make(&self) {
        if self.net == Net::Loopback {
            return;
        }
        let hub = self.hub();
        ip(&["netns", "add", &hub]);
        ip(&["-n", &hub, "link", "set", "lo", "up"]);
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &hub, "link", "set", "br0", "up"]);
        // Else frames go through the machine's firewall, where there is one. Without the module there is no such file.
        let quiet = "f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 0 >$f";
        let file = format!("--net=/run/netns/{hub}");
        super::tool::run_in(
            std::path::Path::new("/"),
            "nsenter",
            &[&file, "sh", "-c", quiet],
        );
        for n in 0..=self.count {
            let (name, wire) = (self.name(n), format!("v{n}"));
            ip(&["netns", "add", &name]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&[
                "link", "add", "eth0", "netns", &name, "type", "veth", "peer", "name", &wire,
                "netns", &hub,
            ]);
            ip(&["-n", &hub, "link", "set", &wire, "master", "br0", "up"]);
            let addr = self.ip(if n == 0 { CLIENT } else { n });
            let addr = format!("{addr}/24");
            ip(&["-n", &name, "addr", "add", &addr, "dev", "eth0"]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
        }
    }
}

fn ip(args: &[&str]) {
    super::tool::run_in(std::path::Path::new("/"), "ip", args);
}
