//! Real sockets on the loopback address.

mod renewal;
mod strangers;

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::runtime::Runtime as TokioRt;

use super::*;
use crate::env_real::{mono_now, random, wall_now};
use crate::ids::{ClusterId, NodeId};
use crate::limits::MAX_BODY;
use crate::transport::tls::{Authority, Credentials, LiveCredentials};
use crate::transport::{Identity, Lost, Peer, ReplyTo, Service, Strangers, Transport};

/// Answers with what it got; `silent` heads get no answer but stay open.
#[derive(Default)]
struct Echo {
    served: AtomicUsize,
    kept: parking_lot::Mutex<Vec<ReplyTo>>,
    peers: parking_lot::Mutex<Vec<Peer>>,
}

impl Service for Echo {
    fn serve(&self, peer: Peer, frame: Frame, reply: ReplyTo) {
        self.served.fetch_add(1, Ordering::SeqCst);
        self.peers.lock().push(peer);
        match &frame.head[..] {
            b"silent" => self.kept.lock().push(reply),
            b"drop" => drop(reply),
            _ => reply(frame),
        }
    }
}

fn runtime() -> TokioRt {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn frame(head: &[u8], body: usize) -> Frame {
    Frame {
        head: Bytes::copy_from_slice(head),
        body: (0..body)
            .map(|at| (at * 7) as u8)
            .collect::<Vec<u8>>()
            .into(),
    }
}

struct World {
    authority: Authority,
    node: Credentials,
    live: LiveCredentials,
    echo: Arc<Echo>,
    strangers: Option<Arc<dyn Strangers>>,
    client: TokioRt,
    server: Option<(TokioRt, QuicServer)>,
    addr: SocketAddr,
}

const NODE: NodeId = NodeId(0x77);

impl World {
    fn new() -> Self {
        let authority = Authority::generate(ClusterId(1)).unwrap();
        let node = authority.issue_node(NODE, wall_now()).unwrap();
        Self::with(authority, node, None)
    }

    fn with(
        authority: Authority,
        node: Credentials,
        strangers: Option<Arc<dyn Strangers>>,
    ) -> Self {
        let mut world = Self {
            live: node.clone().into(),
            node,
            authority,
            strangers,
            echo: Arc::default(),
            client: runtime(),
            server: None,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let rt = runtime();
        let server = QuicServer::start(
            &self.live,
            self.addr,
            ServerLimits::default(),
            rt.handle(),
            Arc::clone(&self.echo) as _,
            self.strangers.clone(),
        )
        .unwrap();
        self.addr = server.local_addr();
        self.server = Some((rt, server));
    }

    /// As `kill -9` does: nobody is told.
    fn kill(&mut self) {
        let (rt, server) = self.server.take().unwrap();
        drop(server);
        rt.shutdown_timeout(Duration::from_secs(5));
        // With their runtime gone these can no longer send anything; they hold the socket.
        self.echo.kept.lock().clear();
    }

    fn transport(&self, uid: u32) -> QuicTransport {
        let credentials = self.authority.issue_client(uid, wall_now()).unwrap();
        QuicTransport::new(&credentials, self.client.handle()).unwrap()
    }

    fn call(&self, transport: &QuicTransport, frame: &Frame) -> Result<Frame, Lost> {
        self.client
            .block_on(transport.call(NODE, &[self.addr], frame.clone()))
    }
}

#[test]
fn requests_of_all_sizes_come_back() {
    let world = World::new();
    let transport = world.transport(1000);
    for body in [0, 1, 2048, 2049, 6_400, 65_535, 65_536, 1 << 20, MAX_BODY] {
        let sent = frame(b"hello", body);
        assert_eq!(world.call(&transport, &sent).as_ref(), Ok(&sent), "{body}");
    }
    let peers = world.echo.peers.lock();
    assert!(
        peers
            .iter()
            .all(|peer| peer.identity == Identity::Client { uid: 1000 }
                && peer.connection == peers[0].connection)
    );
}

#[test]
fn many_requests_at_once_over_one_connection() {
    let world = World::new();
    let transport = world.transport(0);
    let sent = frame(b"x", 20_000);
    world.client.block_on(async {
        let calls = (0..5_000).map(|_| transport.call(NODE, &[world.addr], sent.clone()));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.as_ref(), Ok(&sent));
        }
    });
    assert_eq!(world.echo.peers.lock().last().unwrap().connection, 1);
}

#[test]
fn a_dropped_answer_is_unknown_at_once() {
    let world = World::new();
    let transport = world.transport(0);
    assert_eq!(
        world.call(&transport, &frame(b"drop", 0)),
        Err(Lost::Unknown)
    );
}

#[test]
fn nobody_there_is_not_sent_within_the_time_allowed() {
    let mut world = World::new();
    world.kill();
    let transport = world.transport(0);
    transport.set_connect_time(Duration::from_millis(400));
    let begun = mono_now();
    assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::NotSent));
    let took = mono_now().since(begun);
    assert!(
        took >= Duration::from_millis(400) && took < Duration::from_secs(2),
        "{took:?}"
    );
}

#[test]
fn a_restarted_server_is_noticed_at_once() {
    let mut world = World::new();
    let transport = world.transport(0);
    let first = frame(b"x", 10);
    assert_eq!(world.call(&transport, &first).as_ref(), Ok(&first));
    let addr = world.addr;
    let waiting = {
        let transport = transport.clone();
        world.client.spawn(async move {
            let lost = transport.call(NODE, &[addr], frame(b"silent", 0)).await;
            (lost, mono_now())
        })
    };
    while world.echo.kept.lock().is_empty() {
        std::thread::yield_now();
    }
    world.kill();
    world.start();
    let begun = mono_now();
    // A new call over the old connection: the reset ends it, and the call is made again over a new one or is lost
    // (it had been sent); asked again, it is answered.
    let mut answers = 0;
    while answers == 0 {
        if world.call(&transport, &first) == Ok(first.clone()) {
            answers += 1;
        }
        assert!(mono_now().since(begun) < Duration::from_secs(2));
    }
    let (lost, at) = world.client.block_on(waiting).unwrap();
    assert_eq!(lost, Err(Lost::Unknown));
    let (answered, noticed) = (mono_now().since(begun), at.since(begun));
    eprintln!("answered {answered:?} after the restart, the waiting call ended after {noticed:?}");
    assert!(noticed < Duration::from_millis(1_500), "{noticed:?}");
}

#[test]
fn other_certificates_are_refused_on_both_sides() {
    let world = World::new();
    let stranger = Authority::generate(ClusterId(2)).unwrap();
    // A client of another cluster does not accept the server.
    let transport = QuicTransport::new(
        &stranger.issue_client(0, wall_now()).unwrap(),
        world.client.handle(),
    )
    .unwrap();
    assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::Rejected));
    // One that knows the cluster's authority but has a certificate of another is not accepted.
    let mut mixed = stranger.issue_client(0, wall_now()).unwrap();
    mixed.authority = world.node.authority.clone();
    let transport = QuicTransport::new(&mixed, world.client.handle()).unwrap();
    assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::Rejected));
    // A client's certificate does not make a server.
    assert_eq!(world.echo.served.load(Ordering::SeqCst), 0);
    // Another node than the one asked for.
    let good = world.transport(0);
    let wrong = good.call(NodeId(0x78), &[world.addr], frame(b"x", 0));
    assert_eq!(world.client.block_on(wrong), Err(Lost::Rejected));
    assert!(world.call(&good, &frame(b"x", 0)).is_ok());
    let any = good.call(NodeId(0), &[world.addr], frame(b"x", 0));
    assert!(world.client.block_on(any).is_ok());
}

/// Sends raw bytes as a request over an own connection; whether the stream ended with an answer.
fn raw(world: &World, endpoint: &quinn::Endpoint, bytes: &[u8]) -> bool {
    world.client.block_on(async {
        let connection = endpoint
            .connect(world.addr, "node.mortar")
            .unwrap()
            .await
            .unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        // The server may stop reading early.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let answered = recv.read_to_end(1 << 20).await.is_ok();
        // The connection itself stands.
        assert!(connection.close_reason().is_none());
        answered
    })
}

#[test]
fn bad_frames_are_refused_and_disturb_nobody() {
    let world = World::new();
    let good = world.transport(0);
    let sent = frame(b"x", 100);
    assert!(world.call(&good, &sent).is_ok());
    let tls = world
        .authority
        .issue_client(0, wall_now())
        .unwrap()
        .client_tls()
        .unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let context = world.client.enter();
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    drop(context);
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let valid = crate::transport::mem::encode(&sent);
    assert!(raw(&world, &endpoint, &valid));
    let served = world.echo.served.load(Ordering::SeqCst);
    assert!(!raw(&world, &endpoint, &valid[..valid.len() - 1]));
    assert!(!raw(&world, &endpoint, &[&valid[..], b"x"].concat()));
    assert!(!raw(&world, &endpoint, &[0xff; 4096]));
    assert!(!raw(&world, &endpoint, b""));
    let mut noise = [0; 3_000];
    for _ in 0..20 {
        noise.iter_mut().for_each(|byte| *byte = random() as u8);
        noise[3] |= 0x80; // a head of over 2 GiB
        assert!(!raw(&world, &endpoint, &noise));
    }
    assert_eq!(world.echo.served.load(Ordering::SeqCst), served);
    assert!(world.call(&good, &sent).is_ok());
    let connection = world.echo.peers.lock().last().unwrap().connection;
    assert_eq!(connection, 1, "the good client kept its connection");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]
    #[test]
    fn garbage_on_the_port_disturbs_nobody(
        datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1500), 200)
    ) {
        let world = World::new();
        let transport = world.transport(0);
        let sent = frame(b"x", 100);
        prop_assert!(world.call(&transport, &sent).is_ok());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for datagram in &datagrams {
            socket.send_to(datagram, world.addr).unwrap();
        }
        prop_assert!(world.call(&transport, &sent).is_ok());
        prop_assert_eq!(world.echo.peers.lock().last().unwrap().connection, 1);
    }
}
