//! Probes and adoptions over real sockets.

use super::*;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use crate::env_real::RealEnv;
use crate::frame::Frame;
use crate::transport::quic::{QuicServer, QuicTransport, ServerLimits, StrangerConnection};
use crate::transport::tls::{LiveCredentials, TlsError};
use crate::transport::{Lost, Peer, ReplyTo, Service, Strangers, Transport};

/// A node as far as strangers see it.
struct Node {
    facts: Mutex<Facts>,
    adopted: Mutex<Vec<Adoption>>,
    fails: Mutex<Option<String>>,
    slow: Mutex<Duration>,
    asked: AtomicUsize,
}

impl Node {
    fn new(facts: Facts) -> Arc<Self> {
        Arc::new(Self {
            facts: Mutex::new(facts),
            adopted: Mutex::default(),
            fails: Mutex::default(),
            slow: Mutex::default(),
            asked: AtomicUsize::new(0),
        })
    }
}

/// The candidate half, with what it needs to change itself later.
struct Joiner(Arc<Node>);

impl Candidate for Joiner {
    fn facts(&self) -> Facts {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let mut facts = self.0.facts.lock().clone();
        // Test nodes keep how far their clock is ahead.
        facts.who.wall_ms += wall_ms();
        facts
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'static, Result<(), String>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            let slow = *node.slow.lock();
            tokio::time::sleep(slow).await;
            if let Some(why) = node.fails.lock().clone() {
                return Err(why);
            }
            node.facts.lock().who.cluster = adoption.cluster;
            node.facts.lock().others = adoption.nodes.len() as u32;
            node.adopted.lock().push(adoption);
            Ok(())
        })
    }
}

/// No request with a certificate comes in these tests.
struct Nothing;

impl Service for Nothing {
    fn serve(&self, _peer: Peer, _frame: Frame, _reply: ReplyTo) {
        unreachable!("a stranger reached the service");
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A port that serves strangers.
fn serve(rt: &Runtime, strangers: Arc<dyn Strangers>) -> QuicServer {
    let authority = Authority::generate(ClusterId(2)).unwrap();
    let node = authority.issue_node(OTHER, wall_now()).unwrap();
    QuicServer::start(
        &node.into(),
        SocketAddr::from(([127, 0, 0, 1], 0)),
        ServerLimits::default(),
        rt.handle(),
        Arc::new(Nothing),
        Some(strangers),
    )
    .unwrap()
}

/// A node with a secret, and one that asks with another.
struct World {
    dir: tempfile::TempDir,
    node: Arc<Node>,
    theirs: SecretFile,
    ours: SecretFile,
    rt: Runtime,
    server: QuicServer,
    asker: Runtime,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let theirs = secret(dir.path(), "theirs", GOOD);
        let ours = secret(dir.path(), "ours", GOOD);
        let rt = runtime();
        let mut facts = fit();
        facts.who.wall_ms = 0;
        let node = Node::new(facts);
        let joiner = Arc::new(Joiner(Arc::clone(&node)));
        let env = Arc::new(RealEnv::new(rt.handle().clone()));
        let answerer = Answerer::new(joiner, theirs.clone(), env);
        let server = serve(&rt, Arc::new(answerer));
        Self {
            dir,
            node,
            theirs,
            ours,
            rt,
            server,
            asker: runtime(),
        }
    }

    fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    fn probe_at(&self, addr: SocketAddr) -> Result<Probed, JoinError> {
        self.asker.block_on(probe(addr, own(), &self.ours))
    }

    fn probe(&self) -> Result<Probed, JoinError> {
        self.probe_at(self.addr())
    }

    /// The line that a probe ends with, without what differs from run to run.
    fn line(&self) -> String {
        let text = self.probe().unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&self.addr().to_string(), "ADDR")
            .replace(&self.dir.path().display().to_string(), "DIR")
    }

    fn write(&self, file: &SecretFile, text: &str) {
        std::fs::write(file.path(), text).unwrap();
    }
}

#[test]
fn a_node_is_probed_and_taken_in() {
    let world = World::new();
    let probed = world.probe().unwrap();
    assert_eq!(probed.verdict, Verdict::Fit);
    assert_eq!(probed.facts.host, "other");
    assert!(world.node.adopted.lock().is_empty(), "nothing has changed");
    let wanted = adoption();
    world.asker.block_on(probed.adopt(wanted.clone())).unwrap();
    assert_eq!(*world.node.adopted.lock(), std::slice::from_ref(&wanted));
    // It has joined, and telling it again changes nothing.
    let again = world.probe().unwrap();
    assert_eq!(again.verdict, Verdict::Already);
    let told = adopt(world.addr(), own(), &world.ours, OTHER, wanted);
    world.asker.block_on(told).unwrap();
    assert_eq!(world.node.adopted.lock().len(), 1);
}

#[test]
fn the_wanted_node_is_taken_in_and_no_other() {
    let world = World::new();
    let wrong = adopt(world.addr(), own(), &world.ours, NodeId(0xc), adoption());
    let text = world.asker.block_on(wrong).unwrap_err().to_string();
    assert!(text.contains("is node 00000000-0000-0000-0000-00000000000b now"));
    let right = adopt(world.addr(), own(), &world.ours, OTHER, adoption());
    world.asker.block_on(right).unwrap();
    assert_eq!(world.node.adopted.lock().len(), 1);
}

#[test]
fn another_secret_reveals_nothing_and_a_replaced_file_counts() {
    let world = World::new();
    world.write(&world.ours, "another secret of good length");
    assert_eq!(
        world.line(),
        "ADDR has another secret than this node: copy DIR/ours from here to the secret file there (/etc/mortar/secret, \
         or what its --secret-file says) with mode 0600; no restart is needed"
    );
    assert_eq!(
        world.node.asked.load(Ordering::SeqCst),
        0,
        "it said nothing"
    );
    world.write(&world.theirs, "another secret of good length");
    assert_eq!(world.probe().unwrap().verdict, Verdict::Fit);
}

#[test]
fn guesses_end_with_silence_for_all() {
    let world = World::new();
    for n in 0..GUESSES {
        world.write(&world.ours, &format!("guess number {n} of the secret"));
        assert!(world.line().contains("has another secret"));
    }
    world.write(&world.ours, GOOD);
    assert_eq!(
        world.line(),
        "ADDR answers no probe for up to a minute, because too many came with a wrong secret: try again then; if \
         nobody here did that, look into its log for who did"
    );
    assert_eq!(world.node.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn secret_files_that_cannot_be_used_are_told_apart() {
    let world = World::new();
    world.write(&world.theirs, "short");
    assert_eq!(
        world.line(),
        "ADDR cannot use its secret file: its log says why and what to do"
    );
    world.write(&world.ours, "short");
    assert!(
        world
            .line()
            .starts_with("secret file DIR/ours holds 5 characters")
    );
}

#[test]
fn unfit_nodes_stay_as_they_are() {
    let world = World::new();
    let cases: [(&str, fn(&mut Facts)); 5] = [
        ("belongs to another cluster", |facts| facts.others = 1),
        ("has 1 volume of its own", |facts| facts.volumes = 1),
        ("its data directory is a copy", |facts| facts.who.node = OWN),
        ("is 90.", |facts| facts.who.wall_ms = 90_500),
        ("runs Mortar 0.1.0 (wire version 9)", |facts| {
            facts.who.wire = Wire {
                oldest: 9,
                newest: 9,
            };
        }),
    ];
    for (told, change) in cases {
        let mut facts = fit();
        facts.who.wall_ms = 0;
        change(&mut facts);
        *world.node.facts.lock() = facts;
        let line = world.line();
        assert!(line.contains(told), "{line}");
    }
    // What becomes unfit between the probe and the adoption.
    let mut facts = fit();
    facts.who.wall_ms = 0;
    *world.node.facts.lock() = facts;
    let probed = world.probe().unwrap();
    world.node.facts.lock().volumes = 3;
    let late = world.asker.block_on(probed.adopt(adoption()));
    let line = late.unwrap_err().to_string();
    assert!(line.contains("has 3 volumes of its own"), "{line}");
    assert!(world.node.adopted.lock().is_empty());
}

#[test]
fn a_node_that_cannot_join_says_why() {
    let world = World::new();
    *world.node.fails.lock() = Some("no space\nleft".to_owned());
    let probed = world.probe().unwrap();
    let failed = world.asker.block_on(probed.adopt(adoption()));
    assert_eq!(
        failed.unwrap_err().to_string(),
        format!(
            "{} could not join and is as it was before: no space?left",
            world.addr()
        )
    );
    *world.node.fails.lock() = None;
    let probed = world.probe().unwrap();
    world.asker.block_on(probed.adopt(adoption())).unwrap();
}

#[test]
fn one_adoption_at_a_time() {
    let world = World::new();
    *world.node.slow.lock() = Duration::from_millis(500);
    let (first, second) = (world.probe().unwrap(), world.probe().unwrap());
    let done = world.asker.block_on(async {
        let both = (first.adopt(adoption()), second.adopt(adoption()));
        let (first, second) = futures_util::future::join(both.0, both.1).await;
        [first, second]
    });
    assert_eq!(world.node.adopted.lock().len(), 1);
    let lines: Vec<String> = done
        .into_iter()
        .filter_map(|done| Some(done.err()?.to_string()))
        .collect();
    let busy = "is busy with other probes: try again in ten seconds";
    assert!(lines.len() == 1 && lines[0].ends_with(busy), "{lines:?}");
}

#[test]
fn a_silent_port_is_told_within_five_seconds() {
    let world = World::new();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let begun = mono_now();
    let line = world.probe_at(addr).unwrap_err().to_string();
    let took = mono_now().since(begun);
    let port = addr.port();
    assert_eq!(
        line,
        format!(
            "no answer on UDP 127.0.0.1:{port} within 5 s: is mortard running there, and does a firewall let UDP \
             {port} through?"
        )
    );
    assert!(took > Duration::from_millis(4_500) && took < Duration::from_secs(7));
}

#[test]
fn a_node_that_takes_no_strangers_is_told() {
    let world = World::new();
    let authority = Authority::generate(ClusterId(2)).unwrap();
    let node = authority.issue_node(OTHER, wall_now()).unwrap();
    let closed = QuicServer::start(
        &node.into(),
        SocketAddr::from(([127, 0, 0, 1], 0)),
        ServerLimits::default(),
        world.rt.handle(),
        Arc::new(Nothing),
        None,
    )
    .unwrap();
    let line = world.probe_at(closed.local_addr()).unwrap_err().to_string();
    assert!(line.contains("does not take part in probes"), "{line}");
}

#[test]
fn a_node_that_dies_leaves_a_line() {
    let mut world = World::new();
    *world.node.slow.lock() = Duration::from_secs(60);
    let probed = world.probe().unwrap();
    let adopting = world.asker.spawn(probed.adopt(adoption()));
    std::mem::replace(&mut world.rt, runtime()).shutdown_timeout(Duration::from_secs(5));
    let line = world
        .asker
        .block_on(adopting)
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(
        line.ends_with(
            "did not say whether it has joined: probe it again, which goes on where this ended"
        ),
        "{line}"
    );
}

/// Somebody between the two: ends both connections itself and passes on what is said, in both directions.
struct Relay {
    real: SocketAddr,
    runtime: tokio::runtime::Handle,
    heard: Arc<Mutex<Vec<(JoinRequest, JoinReply)>>>,
}

impl Strangers for Relay {
    fn serve(&self, _from: SocketAddr, _binding: [u8; 32], frame: Frame, reply: ReplyTo) {
        let (real, heard) = (self.real, Arc::clone(&self.heard));
        self.runtime.spawn(async move {
            let time = Duration::from_secs(5);
            let onward = StrangerConnection::connect(real, time).await.unwrap();
            let answer = onward.call(frame.clone(), time).await.unwrap();
            heard
                .lock()
                .push((frame.message().unwrap(), answer.message().unwrap()));
            reply(answer);
        });
    }
}

#[test]
fn somebody_in_between_gets_nowhere() {
    let world = World::new();
    let between = runtime();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let relay = Relay {
        real: world.addr(),
        runtime: between.handle().clone(),
        heard: Arc::clone(&heard),
    };
    let server = serve(&between, Arc::new(relay));
    let error = world.probe_at(server.local_addr()).unwrap_err();
    assert!(matches!(error, JoinError::OtherSecret { .. }), "{error}");
    let heard = heard.lock();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, JoinReply::Refused(Refusal::Proof));
    assert_eq!(world.node.asked.load(Ordering::SeqCst), 0);
    // Without the relay the same two ends agree.
    assert_eq!(world.probe().unwrap().verdict, Verdict::Fit);
}

/// Claims to be a node, with a proof it has made up or heard elsewhere.
struct Pretender(fn(Introduction) -> JoinReply);

impl Strangers for Pretender {
    fn serve(&self, _from: SocketAddr, _binding: [u8; 32], frame: Frame, reply: ReplyTo) {
        let Ok(JoinRequest::Hello { who, .. }) = frame.message() else {
            return;
        };
        reply(Frame::new(&self.0(who), Bytes::new()).unwrap());
    }
}

#[test]
fn who_does_not_know_the_secret_is_not_believed() {
    let world = World::new();
    let rt = runtime();
    let line = |say: fn(Introduction) -> JoinReply| {
        let server = serve(&rt, Arc::new(Pretender(say)));
        world.probe_at(server.local_addr()).unwrap_err().to_string()
    };
    let unproven = "could not prove that it knows the secret";
    // The secret, but of another connection.
    let elsewhere = line(|who| {
        let shared = Secret::of(GOOD.trim_end().as_bytes());
        let prover = Prover {
            secret: &shared,
            binding: [0; 32],
        };
        prover.greeting(&who, fit())
    });
    assert!(elsewhere.contains(unproven), "{elsewhere}");
    let garbled = "gave an answer that makes no sense here";
    assert!(line(|_| JoinReply::Adopted).contains(garbled));
    assert!(line(|_| JoinReply::Refused(Refusal::Unfit(Box::new(fit())))).contains(garbled));
}

/// Answers with the head it got.
struct Echo;

impl Service for Echo {
    fn serve(&self, _peer: Peer, frame: Frame, reply: ReplyTo) {
        reply(frame);
    }
}

/// Becomes a node of the cluster as a daemon does: a certificate of the new authority for the key pair it has.
struct Daemon {
    facts: Mutex<Facts>,
    live: LiveCredentials,
}

impl Candidate for Daemon {
    fn facts(&self) -> Facts {
        let mut facts = self.facts.lock().clone();
        facts.who.wall_ms = wall_ms();
        facts
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'static, Result<(), String>> {
        let taken = || {
            let authority = Authority::from_parts(adoption.cluster, &adoption.authority)?;
            let fresh = authority.renew_node(&self.live.current(), OTHER, wall_now())?;
            self.live.replace(fresh)
        };
        let taken: Result<(), TlsError> = taken();
        self.facts.lock().who.cluster = adoption.cluster;
        Box::pin(async move { taken.map_err(|error| error.to_string()) })
    }
}

#[test]
fn a_node_that_was_taken_in_serves_its_new_cluster_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = secret(dir.path(), "secret", GOOD);
    let (theirs, asker) = (runtime(), runtime());
    let alone = Authority::generate(ClusterId(2)).unwrap();
    let live: LiveCredentials = alone.issue_node(OTHER, wall_now()).unwrap().into();
    let daemon = Arc::new(Daemon {
        facts: Mutex::new(fit()),
        live: live.clone(),
    });
    let env = Arc::new(RealEnv::new(theirs.handle().clone()));
    let server = QuicServer::start(
        &live,
        SocketAddr::from(([127, 0, 0, 1], 0)),
        ServerLimits::default(),
        theirs.handle(),
        Arc::new(Echo),
        Some(Arc::new(Answerer::new(daemon, file.clone(), env))),
    )
    .unwrap();
    let at = server.local_addr();
    let cluster = Authority::generate(CLUSTER).unwrap();
    let credentials = cluster.issue_node(OWN, wall_now()).unwrap();
    let transport = QuicTransport::new(&credentials, asker.handle()).unwrap();
    let hello = Frame::new(&5u32, Bytes::new()).unwrap();
    let call = || asker.block_on(transport.call(OTHER, &[at], hello.clone()));
    assert_eq!(call(), Err(Lost::Rejected), "they are strangers");
    let wanted = Adoption {
        authority: cluster.to_parts(),
        ..adoption()
    };
    asker
        .block_on(adopt(at, own(), &file, OTHER, wanted))
        .unwrap();
    let begun = mono_now();
    while call().as_ref() != Ok(&hello) {
        // A refusal is remembered for a second.
        assert!(mono_now().since(begun) < Duration::from_secs(3));
    }
    let old = alone.issue_client(0, wall_now()).unwrap();
    let old = QuicTransport::new(&old, asker.handle()).unwrap();
    let refused = asker.block_on(old.call(OTHER, &[at], hello.clone()));
    assert_eq!(refused, Err(Lost::Rejected));
}
