//! Certificates that end, and new ones while the server runs.

use super::*;
use crate::attr::Time;
use crate::env_real::mono_now;
use crate::transport::tls::NODE_LIFE;

fn ago(span: Duration) -> Time {
    let now = wall_now();
    Time {
        secs: now.secs - span.as_secs() as i64,
        ..now
    }
}

#[test]
fn an_expired_server_is_refused_until_it_is_renewed() {
    let authority = Authority::generate(ClusterId(1)).unwrap();
    let past = ago(NODE_LIFE + Duration::from_secs(60));
    let node = authority.issue_node(NODE, past).unwrap();
    let world = World::with(authority, node, None);
    let transport = world.transport(0);
    let sent = frame(b"x", 10);
    assert_eq!(world.call(&transport, &sent), Err(Lost::Rejected));
    let fresh = world.authority.renew_node(&world.node, NODE, wall_now());
    world.live.replace(fresh.unwrap()).unwrap();
    let other = world.transport(0);
    assert_eq!(world.call(&other, &sent).as_ref(), Ok(&sent));
    // The one that was refused tries again by itself, after a second.
    let begun = mono_now();
    while world.call(&transport, &sent).as_ref() != Ok(&sent) {
        assert!(mono_now().since(begun) < Duration::from_secs(3));
    }
}

#[test]
fn connections_that_stand_go_on_over_a_renewal() {
    let world = World::new();
    let transport = world.transport(0);
    let sent = frame(b"x", 10);
    assert!(world.call(&transport, &sent).is_ok());
    let fresh = world.authority.renew_node(&world.node, NODE, wall_now());
    let fresh = fresh.unwrap();
    assert_ne!(fresh.certificate, world.node.certificate);
    world.live.replace(fresh.clone()).unwrap();
    assert!(world.call(&transport, &sent).is_ok());
    assert!(world.call(&world.transport(0), &sent).is_ok());
    let connections: Vec<u64> = world
        .echo
        .peers
        .lock()
        .iter()
        .map(|peer| peer.connection)
        .collect();
    assert_eq!(connections, [1, 1, 2]);
    // What a new connection is shown.
    let tls = world.authority.issue_client(0, wall_now()).unwrap();
    let tls = tls.client_tls().unwrap();
    let [_, config] = crate::transport::quic::configs::client_configs(tls).unwrap();
    let context = world.client.enter();
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    drop(context);
    endpoint.set_default_client_config(config);
    let shown = world.client.block_on(async {
        let connecting = endpoint.connect(world.addr, "node.mortar").unwrap();
        let connection = connecting.await.unwrap();
        let chain = connection.peer_identity().unwrap();
        let chain = chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>();
        chain.unwrap()[0].to_vec()
    });
    assert_eq!(shown, fresh.certificate);
}

#[test]
fn a_caller_shows_its_newest_certificate() {
    let mut world = World::new();
    let past = ago(NODE_LIFE + Duration::from_secs(60));
    let caller = NodeId(0x78);
    let old = world.authority.issue_node(caller, past).unwrap();
    let live = LiveCredentials::new(old.clone());
    let transport = QuicTransport::with_live(&live, world.client.handle()).unwrap();
    let sent = frame(b"x", 10);
    assert_eq!(world.call(&transport, &sent), Err(Lost::Rejected));
    let fresh = world
        .authority
        .renew_node(&old, caller, wall_now())
        .unwrap();
    live.replace(fresh).unwrap();
    let begun = mono_now();
    while world.call(&transport, &sent).as_ref() != Ok(&sent) {
        assert!(mono_now().since(begun) < Duration::from_secs(3));
    }
    // Into another cluster: the server follows, and who belongs to the old one is refused from then on.
    let next = Authority::generate(ClusterId(2)).unwrap();
    world
        .live
        .replace(next.renew_node(&world.node, NODE, wall_now()).unwrap())
        .unwrap();
    assert!(world.call(&transport, &sent).is_ok(), "it is connected");
    assert_eq!(world.call(&world.transport(0), &sent), Err(Lost::Rejected));
    world.authority = next;
    assert!(world.call(&world.transport(0), &sent).is_ok());
}

#[test]
fn what_cannot_be_used_replaces_nothing() {
    let world = World::new();
    let mut wrong = world.node.clone();
    wrong.key = world.authority.issue_node(NODE, wall_now()).unwrap().key;
    assert!(world.live.replace(wrong).is_err());
    let mut wrong = world.node.clone();
    wrong.authority = vec![1, 2, 3];
    assert!(world.live.replace(wrong).is_err());
    assert_eq!(*world.live.current(), world.node);
    assert!(world.call(&world.transport(0), &frame(b"x", 0)).is_ok());
}

#[test]
fn a_renewed_server_ends_its_earlier_connections_at_a_restart() {
    let mut world = World::new();
    let transport = world.transport(0);
    let sent = frame(b"x", 10);
    assert!(world.call(&transport, &sent).is_ok());
    world.kill();
    let fresh = world.authority.renew_node(&world.node, NODE, wall_now());
    world.live = fresh.unwrap().into();
    world.start();
    let begun = mono_now();
    while world.call(&transport, &sent).as_ref() != Ok(&sent) {
        assert!(mono_now().since(begun) < Duration::from_secs(2));
    }
}
