//! What another node of the cluster could say: messages of the consensus, reports and orders that were damaged or make
//! no sense, and what people ask of three real control planes in one simulated cluster. They all go on, and agree.

use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::admin::{AdminReply, AdminRequest, BrickSpec, CreateVolume};
use mortar_protocol::env::Env;
use mortar_protocol::ids::{Epoch, NodeId, VolumeId};
use mortar_protocol::node::{NodeReply, NodeRequest};
use mortar_protocol::transport::Lost;
use mortar_protocol::view::SetKind;
use mortar_server::control::machine::Command;
use mortar_tests::consensus_sim::clients::{Answer, Book};
use mortar_tests::consensus_sim::net::{self, Ways};
use mortar_tests::consensus_sim::settle;
use mortar_tests::consensus_sim::world::World;
use mortar_tests::golden::messages;
use mortar_tests::sim::exec::{MILLI, SECOND, SimEnv};
use parking_lot::Mutex;

use crate::commands::{check, odd_text};
use crate::{Draw, mutated, rounds, said};

struct Cluster {
    world: Arc<World>,
    book: Arc<Book>,
    stranger: Arc<Ways>,
    env: Arc<dyn Env>,
}

impl Cluster {
    /// Three nodes, and the ways of the third for whoever speaks in its name.
    fn new(seed: u64) -> Self {
        let world = World::new(seed, 3, 0, None);
        world.net.record();
        let book = Arc::new(Book::default());
        assert!(settle::form(&world, &book), "{:?}", world.failures());
        let owner = world.owner();
        let env: Arc<dyn Env> = SimEnv::new(Arc::clone(&world.exec), owner, world.fork());
        let stranger = Ways::new(&world.net, &env, 2);
        Self {
            world,
            book,
            stranger,
            env,
        }
    }

    /// Lets time pass until a task ends.
    fn wait<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let slot = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&slot);
        self.env.spawn(Box::pin(async move {
            let done = task.await;
            *tell.lock() = Some(done);
        }));
        let until = self.world.exec.now() + 200 * SECOND;
        loop {
            if let Some(done) = slot.lock().take() {
                return done;
            }
            assert!(self.world.exec.now() < until, "no answer in 200 s");
            self.world.pass(MILLI);
        }
    }

    fn person(&self, node: usize, request: AdminRequest) -> AdminReply {
        let asked = Arc::clone(&self.world).call(node, request);
        self.wait(asked).expect("an answer")
    }

    fn node(&self, to: usize, request: NodeRequest, body: Bytes) -> Result<NodeReply, Lost> {
        let limit = std::time::Duration::from_secs(5);
        let told = self.stranger.exchange(net::id(to), request, body, limit);
        self.wait(told).map(|(reply, _)| reply)
    }

    /// All nodes agree on a sound state, and do what they are asked.
    fn is_well(&self, number: u64) {
        settle::calm(&self.world);
        assert!(settle::wait(&self.world), "{:?}", self.world.failures());
        assert_eq!(self.world.failures(), Vec::<String>::new());
        for node in 0..3 {
            let up = self.world.up(node).expect("it runs");
            check(&up.control.state()).expect("a sound state");
        }
        let name = format!("well{number}");
        let create = AdminRequest::Create(create(&name, &[("10.0.0.2", &format!("/{name}"))]));
        let done = settle::ask(&self.world, &self.book, 1, create);
        assert_eq!(done, Answer::Done);
    }
}

fn create(name: &str, bricks: &[(&str, &str)]) -> CreateVolume {
    let brick = |(host, path): &(&str, &str)| BrickSpec {
        host: (*host).to_owned(),
        path: (*path).to_owned(),
    };
    CreateVolume {
        name: name.to_owned(),
        kind: SetKind::Plain,
        bricks: bricks.iter().map(brick).collect(),
        brick_size: None,
        force: false,
    }
}

/// What people would not ask; each is refused.
fn senseless(draw: &mut Draw) -> AdminRequest {
    let text = |draw: &mut Draw| odd_text(draw);
    let path = |draw: &mut Draw| match draw.below(4) {
        0 => format!("/two\nlines{}", draw.below(9)),
        1 => format!("/nul\0{}", draw.below(9)),
        2 => format!("/{}/../..", draw.below(9)),
        _ => odd_text(draw).replace('/', ""),
    };
    let none = SetKind::Replicate { copies: 0 };
    match draw.below(12) {
        0 => AdminRequest::Create(create(&text(draw), &[("10.0.0.1", "/b")])),
        1 => AdminRequest::Create(create("v", &[])),
        2 => AdminRequest::Create(create("v", &[("10.0.0.1", &path(draw))])),
        3 => AdminRequest::Create(create("v", &[(&text(draw), "/b")])),
        4 => AdminRequest::Create(CreateVolume {
            kind: none,
            ..create("v", &[("10.0.0.1", "/b")])
        }),
        5 => AdminRequest::Create(create("v", &vec![("10.0.0.1", "/b"); 65_535])),
        6 => AdminRequest::Start {
            volume: text(draw),
            force: true,
        },
        7 => AdminRequest::Set {
            volume: "kept".to_owned(),
            options: vec![("auth.allow".to_owned(), "v".repeat(64 << 10))],
        },
        8 => AdminRequest::Set {
            volume: "kept".to_owned(),
            options: vec![
                ("network.frame-timeout".to_owned(), "77".to_owned()),
                (text(draw), "1".to_owned()),
            ],
        },
        9 => AdminRequest::Probe { host: text(draw) },
        10 => AdminRequest::Detach {
            host: text(draw),
            force: true,
        },
        _ => AdminRequest::Reset {
            volume: "kept".to_owned(),
            option: Some(text(draw)),
        },
    }
}

#[test]
fn what_makes_no_sense_to_people_changes_nothing() {
    let cluster = Cluster::new(1);
    let kept = AdminRequest::Create(create("kept", &[("10.0.0.1", "/kept")]));
    let made = settle::ask(&cluster.world, &cluster.book, 0, kept);
    assert_eq!(made, Answer::Done);
    for round in 0..rounds(60) {
        let mut draw = Draw::new(round + 80_000);
        let request = senseless(&mut draw);
        let text = format!("{:.300}", format!("{request:?}"));
        let before = cluster.world.up(0).expect("it runs").control.state();
        match cluster.person(draw.below(3), request) {
            AdminReply::Refused { message } => said(&message),
            other => panic!("{text}: {other:?}"),
        }
        cluster.world.pass(300 * MILLI);
        let after = cluster.world.up(0).expect("it runs").control.state();
        let mut same = (*after).clone();
        same.applied = before.applied;
        assert!(same == *before, "{text} has changed something");
    }
    cluster.is_well(0);
}

/// Whether a proposal would take a node in or out: that is a node's right, and one that was never there never joins.
fn changes_members(body: &[u8]) -> bool {
    matches!(
        postcard::from_bytes::<Command>(body),
        Ok(Command::Node { .. }
            | Command::Invite { .. }
            | Command::Detach { .. }
            | Command::Forget { .. })
    )
}

#[test]
fn damaged_requests_of_people_and_nodes_do_no_harm() {
    let cluster = Cluster::new(2);
    let samples = messages::all();
    let mut asked = 0;
    for round in 0..rounds(40) {
        let mut draw = Draw::new(round + 90_000);
        for sample in &samples {
            let bytes = mutated(&sample.bytes, &mut draw);
            match sample.kind() {
                "AdminRequest" => {
                    if let Ok(request) = postcard::from_bytes::<AdminRequest>(&bytes)
                        && !matches!(
                            request,
                            AdminRequest::Detach { .. } | AdminRequest::Probe { .. }
                        )
                    {
                        cluster.person(draw.below(3), request);
                        asked += 1;
                    }
                }
                "NodeRequest" => {
                    // These two are a node's right, and end the test.
                    if let Ok(request) = postcard::from_bytes::<NodeRequest>(&bytes)
                        && !matches!(request, NodeRequest::Leave | NodeRequest::Lead(_))
                    {
                        let body = mutated(&bytes, &mut draw);
                        if changes_members(&body) {
                            continue;
                        }
                        // That there is no answer is one, too.
                        let _ = cluster.node(draw.below(2), request, body.into());
                        asked += 1;
                    }
                }
                _ => {}
            }
        }
    }
    assert!(asked > 100, "{asked}");
    cluster.is_well(1);
}

#[test]
fn messages_of_the_consensus_that_were_damaged_or_come_from_another_do_no_harm() {
    let cluster = Cluster::new(3);
    for number in 0..5 {
        cluster.is_well(number);
    }
    let recorded = cluster.world.net.recorded();
    assert!(recorded.len() > 20, "{}", recorded.len());
    let (mut refused, mut taken) = (0, 0);
    for round in 0..rounds(1_500) {
        let mut draw = Draw::new(round + 100_000);
        let (kind, body) = &recorded[draw.below(recorded.len())];
        let body = match draw.below(8) {
            0 => body.to_vec(),
            _ => mutated(body, &mut draw),
        };
        let kind = match draw.below(10) {
            0 => mortar_protocol::node::RaftKind::Snapshot {
                offset: [0, 1, u64::MAX][draw.below(3)],
                total: [0, 1, 1 << 30, u64::MAX][draw.below(4)],
            },
            _ => *kind,
        };
        match cluster.node(draw.below(2), NodeRequest::Raft(kind), body.into()) {
            Ok(NodeReply::Raft) => taken += 1,
            _ => refused += 1,
        }
    }
    assert!(refused > 100, "{refused} refused, {taken} taken");
    cluster.is_well(9);
}

/// Answers that no node would give.
#[test]
fn what_a_node_says_of_itself_may_be_anything() {
    let cluster = Cluster::new(4);
    let kept = AdminRequest::Create(create("kept", &[("10.0.0.1", "/kept")]));
    settle::ask(&cluster.world, &cluster.book, 0, kept);
    cluster.world.net.lie(|reply| {
        if let NodeReply::Health(health) = reply {
            health.told.clock_ms = i64::MIN;
            health.told.space = (u64::MAX, u64::MAX);
            health.told.version = "x".repeat(60_000);
            health.told.uptime_secs = u64::MAX;
            health.bricks.clear();
        }
    });
    for request in [
        AdminRequest::Cluster,
        AdminRequest::Peers,
        AdminRequest::Stats {
            volume: "kept".to_owned(),
        },
    ] {
        let text = format!("{request:?}");
        let reply = cluster.person(1, request);
        assert!(!matches!(reply, AdminReply::Refused { .. }), "{text}");
    }
    // Identities and numbers that were never given.
    for epoch in [0, u64::MAX] {
        let view = mortar_protocol::view::View {
            set: mortar_protocol::ids::SetId {
                volume: VolumeId(u128::MAX),
                index: mortar_protocol::ids::SetIndex(u32::MAX),
            },
            epoch: Epoch(epoch),
            primary: Default::default(),
            members: Vec::new(),
            absent: Vec::new(),
            opening: Default::default(),
            effective: true,
        };
        let order = mortar_protocol::report::ToBrick::View(view);
        let orders = NodeRequest::Orders(vec![(Default::default(), order)]);
        assert_eq!(cluster.node(0, orders, Bytes::new()), Ok(NodeReply::Taken));
    }
    assert_ne!(net::id(2), NodeId(0));
    cluster.is_well(1);
}
