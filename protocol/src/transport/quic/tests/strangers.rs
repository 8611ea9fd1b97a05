//! Clients without a certificate: what they may do, and what they may not.

use super::*;
use crate::env_real::mono_now;
use crate::transport::quic::configs::{Configs, client_configs};
use crate::transport::quic::stranger::{REQUESTS, STRANGERS};
use crate::transport::quic::{MAX_STRANGER_FRAME, StrangerConnection, StrangerFault};
use crate::transport::tls::{JOIN_ALPN, alpn, stranger_tls};

/// Answers strangers with the binding of their connection and the beginning of what they said.
#[derive(Default)]
struct Porch {
    served: AtomicUsize,
    kept: parking_lot::Mutex<Vec<ReplyTo>>,
}

impl Strangers for Porch {
    fn serve(&self, _from: SocketAddr, binding: [u8; 32], frame: Frame, reply: ReplyTo) {
        self.served.fetch_add(1, Ordering::SeqCst);
        if &frame.head[..] == b"silent" {
            self.kept.lock().push(reply);
        } else {
            reply(Frame {
                head: Bytes::copy_from_slice(&binding),
                body: frame.body.slice(..frame.body.len().min(10)),
            });
        }
    }
}

const TIME: Duration = Duration::from_secs(5);

fn open_world() -> (World, Arc<Porch>) {
    let porch = Arc::new(Porch::default());
    let authority = Authority::generate(ClusterId(1)).unwrap();
    let node = authority.issue_node(NODE, wall_now()).unwrap();
    let world = World::with(authority, node, Some(Arc::clone(&porch) as _));
    (world, porch)
}

impl World {
    fn knock(&self) -> Result<StrangerConnection, StrangerFault> {
        self.client
            .block_on(StrangerConnection::connect(self.addr, TIME))
    }

    fn ask(&self, stranger: &StrangerConnection, frame: &Frame) -> Result<Frame, Lost> {
        self.client.block_on(stranger.call(frame.clone(), TIME))
    }

    /// A transport that shows no certificate and offers these ALPN names.
    fn nameless(&self, names: Vec<Vec<u8>>) -> QuicTransport {
        let make = move |_: &Credentials| {
            let mut tls = stranger_tls()?;
            tls.alpn_protocols = names.clone();
            client_configs(tls)
        };
        let configs = Configs::new(&self.live, Box::new(make)).unwrap();
        QuicTransport::of(configs, self.client.handle())
    }
}

#[test]
fn both_ends_have_one_binding_and_connections_differ() {
    let (world, porch) = open_world();
    let (first, second) = (world.knock().unwrap(), world.knock().unwrap());
    assert_ne!(first.binding(), second.binding());
    for stranger in [&first, &second, &first] {
        let answer = world.ask(stranger, &frame(b"who", 10)).unwrap();
        assert_eq!(&answer.head[..], stranger.binding());
        assert_eq!(answer.body, frame(b"", 10).body);
    }
    assert_eq!(porch.served.load(Ordering::SeqCst), 3);
    assert_eq!(world.echo.served.load(Ordering::SeqCst), 0);
}

#[test]
fn without_a_certificate_nothing_reaches_the_service() {
    let (world, porch) = open_world();
    // The wire's own name, alone and beside the one of strangers.
    for names in [alpn(), [alpn(), vec![JOIN_ALPN.to_vec()]].concat()] {
        let transport = world.nameless(names);
        let begun = mono_now();
        assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::Rejected));
        // Told at once, and remembered: not asked again and again.
        assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::Rejected));
        assert!(mono_now().since(begun) < Duration::from_millis(900));
    }
    // As a stranger it gets to those who serve strangers, and only to them.
    let transport = world.nameless(vec![JOIN_ALPN.to_vec()]);
    let answer = world.call(&transport, &frame(b"x", 0)).unwrap();
    assert_eq!(answer.head.len(), 32);
    assert_eq!(porch.served.load(Ordering::SeqCst), 1);
    assert_eq!(world.echo.served.load(Ordering::SeqCst), 0);
    // And one with a certificate gets where it always did.
    let good = world.transport(7);
    let sent = frame(b"hello", MAX_BODY);
    assert_eq!(world.call(&good, &sent).as_ref(), Ok(&sent));
    assert_eq!(porch.served.load(Ordering::SeqCst), 1);
}

#[test]
fn a_certificate_of_another_cluster_is_still_refused() {
    let (world, porch) = open_world();
    let other = Authority::generate(ClusterId(2)).unwrap();
    let mut mixed = other.issue_client(0, wall_now()).unwrap();
    mixed.authority = world.node.authority.clone();
    let transport = QuicTransport::new(&mixed, world.client.handle()).unwrap();
    assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::Rejected));
    assert_eq!(world.echo.served.load(Ordering::SeqCst), 0);
    assert_eq!(porch.served.load(Ordering::SeqCst), 0);
}

#[test]
fn a_closed_door_takes_no_strangers() {
    let world = World::new();
    assert!(matches!(world.knock(), Err(StrangerFault::NotSpoken)));
    // The refusal comes from TLS there.
    let transport = world.nameless(alpn());
    assert_eq!(world.call(&transport, &frame(b"x", 0)), Err(Lost::Rejected));
    assert_eq!(world.echo.served.load(Ordering::SeqCst), 0);
}

#[test]
fn nobody_there_is_silence() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let begun = mono_now();
    let time = Duration::from_millis(300);
    let met = runtime().block_on(StrangerConnection::connect(addr, time));
    assert!(matches!(met, Err(StrangerFault::Silent)));
    assert!(mono_now().since(begun) < Duration::from_secs(2));
}

#[test]
fn a_stranger_gets_few_and_small_requests() {
    let (world, porch) = open_world();
    let stranger = world.knock().unwrap();
    for _ in 0..REQUESTS {
        assert!(world.ask(&stranger, &frame(b"x", 10)).is_ok());
    }
    assert_eq!(
        world.ask(&stranger, &frame(b"x", 10)),
        Err(Lost::NotSent),
        "one more ends the connection"
    );
    assert_eq!(porch.served.load(Ordering::SeqCst), REQUESTS);
    // The largest there may be, and one byte more past the caller's own check.
    let stranger = world.knock().unwrap();
    let largest = frame(b"x", MAX_STRANGER_FRAME - 1);
    assert!(world.ask(&stranger, &largest).is_ok());
    assert_eq!(
        world.ask(&stranger, &frame(b"x", MAX_STRANGER_FRAME)),
        Err(Lost::Rejected)
    );
    let transport = world.nameless(vec![JOIN_ALPN.to_vec()]);
    let huge = world.call(&transport, &frame(b"x", 1 << 20));
    assert!(huge.is_err(), "{huge:?}");
    assert_eq!(porch.served.load(Ordering::SeqCst), REQUESTS + 1);
}

#[test]
fn so_many_strangers_at_a_time() {
    let (world, _porch) = open_world();
    let mut inside: Vec<_> = (0..STRANGERS).map(|_| world.knock().unwrap()).collect();
    for stranger in &inside {
        assert!(world.ask(stranger, &frame(b"x", 0)).is_ok());
    }
    // The next one may get through the handshake before it is turned away.
    if let Ok(late) = world.knock() {
        assert_eq!(world.ask(&late, &frame(b"x", 0)), Err(Lost::NotSent));
    }
    // Certificates are not affected.
    assert!(world.call(&world.transport(0), &frame(b"x", 0)).is_ok());
    inside.pop();
    let begun = mono_now();
    loop {
        let again = world.knock();
        if again.is_ok_and(|stranger| world.ask(&stranger, &frame(b"x", 0)).is_ok()) {
            break;
        }
        assert!(mono_now().since(begun) < Duration::from_secs(5));
    }
}

#[test]
fn a_stranger_may_not_stay() {
    let (world, porch) = open_world();
    let stranger = world.knock().unwrap();
    let begun = mono_now();
    let waiting = stranger.call(frame(b"silent", 0), Duration::from_secs(30));
    assert_eq!(world.client.block_on(waiting), Err(Lost::Unknown));
    let stayed = mono_now().since(begun);
    assert!(
        stayed > Duration::from_secs(8) && stayed < Duration::from_secs(12),
        "{stayed:?}"
    );
    assert_eq!(porch.kept.lock().len(), 1);
}

#[test]
fn garbled_requests_end_the_connection() {
    let (world, porch) = open_world();
    let tls = stranger_tls().unwrap();
    let [_, config] = client_configs(tls).unwrap();
    let context = world.client.enter();
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    drop(context);
    endpoint.set_default_client_config(config);
    let valid = crate::transport::mem::encode(&frame(b"x", 10));
    let cases: [Vec<u8>; 5] = [
        vec![],
        valid[..valid.len() - 1].to_vec(),
        [&valid[..], b"x"].concat(),
        vec![0xff; 4_096],
        vec![0; 1 << 20],
    ];
    for bytes in cases {
        world.client.block_on(async {
            let connecting = endpoint.connect(world.addr, "any").unwrap();
            let connection = connecting.await.unwrap();
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            // The server may stop reading early.
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            assert!(recv.read_to_end(1 << 20).await.is_err());
            connection.closed().await;
        });
    }
    assert_eq!(porch.served.load(Ordering::SeqCst), 0);
    assert!(world.call(&world.transport(0), &frame(b"x", 0)).is_ok());
}

#[test]
fn what_a_stranger_sends_ahead_is_bounded() {
    let (world, _porch) = open_world();
    let [_, config] = client_configs(stranger_tls().unwrap()).unwrap();
    let context = world.client.enter();
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    drop(context);
    endpoint.set_default_client_config(config);
    let sent = world.client.block_on(async {
        let connection = endpoint.connect(world.addr, "any").unwrap().await.unwrap();
        // The first request does not end, so what the others carry has to wait at the server.
        let (mut first, _recv) = connection.open_bi().await.unwrap();
        first.write_all(b"x").await.unwrap();
        let piece = vec![0; 8 << 20];
        let (mut second, _recv) = connection.open_bi().await.unwrap();
        let writing = second.write_all(&piece);
        let second = tokio::time::timeout(Duration::from_secs(1), writing).await;
        assert!(second.is_err(), "it waits");
        assert!(connection.close_reason().is_none());
        connection.stats().udp_tx.bytes
    });
    assert!((512 << 10..2 << 20).contains(&sent), "{sent} bytes");
}
