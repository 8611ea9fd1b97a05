//! Requests over QUIC.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use mortar_benches::driven::Driven;
use mortar_protocol::env_real::wall_now;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{ClusterId, NodeId};
use mortar_protocol::transport::quic::{QuicServer, QuicTransport, ServerLimits};
use mortar_protocol::transport::tls::Authority;
use mortar_protocol::transport::{Peer, ReplyTo, Service, Transport};
use tokio::runtime::{Builder, Runtime};

use crate::measure::{Bench, Fail, Unit, timed};

const NODE: NodeId = NodeId(7);

/// Answers a request with as many bytes as its head says.
struct Bounce(Bytes);

impl Service for Bounce {
    fn serve(&self, _peer: Peer, frame: Frame, reply: ReplyTo) {
        let wanted = frame.message::<u32>().unwrap_or(0) as usize;
        let body = self.0.slice(..wanted.min(self.0.len()));
        reply(Frame {
            head: Bytes::new(),
            body,
        });
    }
}

/// A client and a server over loopback, on a thread each.
struct Pair {
    client: Runtime,
    transport: QuicTransport,
    addr: SocketAddr,
    _server: (QuicServer, Driven),
}

impl Pair {
    fn new() -> Result<Self, Fail> {
        let authority = Authority::generate(ClusterId(1))?;
        let server = Driven::start("server")?;
        let service = Arc::new(Bounce(vec![4; 1 << 20].into()));
        let quic = QuicServer::start(
            &authority.issue_node(NODE, wall_now())?.into(),
            SocketAddr::from(([127, 0, 0, 1], 0)),
            ServerLimits::default(),
            server.handle(),
            service,
            None,
        )?;
        let client = Builder::new_current_thread().enable_all().build()?;
        let transport =
            QuicTransport::new(&authority.issue_client(0, wall_now())?, client.handle())?;
        Ok(Self {
            client,
            transport,
            addr: quic.local_addr(),
            _server: (quic, server),
        })
    }

    /// Makes `count` requests, `depth` at a time.
    fn requests(&self, count: usize, depth: usize, send: usize, receive: u32) -> Result<(), Fail> {
        let frame = Frame::new(&receive, vec![6; send].into())?;
        let one = |transport: QuicTransport, addr, frame: Frame| async move {
            for _ in 0..count / depth {
                let answer = transport.call(NODE, &[addr], frame.clone()).await;
                if answer.map_err(|lost| lost.to_string())?.body.len() != receive as usize {
                    return Err("a short answer".to_owned());
                }
            }
            Ok(())
        };
        self.client.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..depth {
                tasks.spawn(one(self.transport.clone(), self.addr, frame.clone()));
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        })
    }
}

/// Measures it.
pub(crate) fn run(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "quic: 4 KiB there, 16 bytes back, one at a time",
        "quic: 4 KiB there, 16 bytes back, 16 at a time",
        "quic: 1 MiB there, 4 at a time",
        "quic: 1 MiB back, 4 at a time",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let pair = Pair::new()?;
    let bytes = Unit::Bytes(32.0 * 1_048_576.0);
    bench.line(names[0], Unit::Each(100.0), || {
        timed(|| pair.requests(100, 1, 4_096, 16))
    })?;
    bench.line(names[1], Unit::Rate(1_600.0), || {
        timed(|| pair.requests(1_600, 16, 4_096, 16))
    })?;
    bench.line(names[2], bytes, || {
        timed(|| pair.requests(32, 4, 1 << 20, 0))
    })?;
    bench.line(names[3], bytes, || {
        timed(|| pair.requests(32, 4, 0, 1 << 20))
    })?;
    pair.client.block_on(pair.transport.close());
    Ok(())
}
