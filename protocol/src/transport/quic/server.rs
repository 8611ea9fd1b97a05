//! A node's end: accepts connections, reads requests, hands them to the [`Service`](crate::transport::Service).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, RecvStream, Runtime, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;

use super::assemble::{ReadFault, read_frame};
use super::configs::{Configs, of_server};
use super::stranger::{self, STRANGERS};
use super::{
    CONNECTION_WINDOW, Pinned, QuicError, bind, code, endpoint_config, is_rejection, write_frame,
};
use crate::env::Mono;
use crate::env_real::mono_now;
use crate::frame::Frame;
use crate::log_gate::LogGate;
use crate::transport::tls::{self, JOIN_ALPN, LiveCredentials};
use crate::transport::{Peer, ReplyTo, SharedService, Strangers};

/// Bounds that a server holds its clients to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerLimits {
    /// Open connections.
    pub connections: usize,
    /// Handshakes begun per second; a burst may have twice as many.
    pub handshakes_per_second: u32,
    /// Bytes of large bodies that one connection may have on the way, announced and not complete.
    pub bytes_on_the_way: usize,
    /// Time in which a request must have arrived whole.
    pub receive_time: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            handshakes_per_second: 1_000,
            bytes_on_the_way: 256 << 20,
            receive_time: Duration::from_secs(30),
        }
    }
}

/// Serves a UDP port.
#[derive(Debug)]
pub struct QuicServer {
    endpoint: Endpoint,
    addr: SocketAddr,
}

struct Shared {
    service: SharedService,
    limits: ServerLimits,
    runtime: Handle,
    connections: AtomicUsize,
    next_connection: AtomicU64,
    bucket: Mutex<Bucket>,
    configs: Configs<Arc<quinn::ServerConfig>>,
    strangers: Option<Arc<dyn Strangers>>,
    strangers_now: AtomicUsize,
    refusals: LogGate,
    bad_frames: LogGate,
}

/// Handshakes that may begin now.
struct Bucket {
    tokens: f64,
    at: Mono,
}

impl Bucket {
    fn take(&mut self, rate: u32, now: Mono) -> bool {
        let rate = f64::from(rate);
        let gained = now.since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(2.0 * rate);
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl QuicServer {
    /// Binds `listen` and serves it on `runtime`. Each new connection is shown the newest of the credentials; the keys
    /// of connection ids and stateless resets come from the first. Without `strangers` only those come in who have a
    /// certificate of the cluster.
    ///
    /// # Errors
    /// If the certificates cannot be used or the port is taken.
    pub fn start(
        live: &LiveCredentials,
        listen: SocketAddr,
        limits: ServerLimits,
        runtime: &Handle,
        service: SharedService,
        strangers: Option<Arc<dyn Strangers>>,
    ) -> Result<Self, QuicError> {
        let configs = of_server(live, strangers.is_some())?;
        let first = configs.get(false);
        let credentials = live.current();
        let ids = credentials.derived_secret("mortar 2026 quic connection ids");
        let mut key = [0; 8];
        key.copy_from_slice(&ids[..8]);
        let reset = credentials.derived_secret("mortar 2026 quic stateless reset");
        let pinned = Arc::new(Pinned(runtime.clone()));
        let udp = pinned
            .wrap_udp_socket(bind(listen)?)
            .map_err(|error| QuicError::Socket(listen, error))?;
        let shared = Arc::new(Shared {
            service,
            limits,
            runtime: runtime.clone(),
            connections: AtomicUsize::new(0),
            next_connection: AtomicU64::new(1),
            bucket: Mutex::new(Bucket {
                tokens: f64::from(limits.handshakes_per_second),
                at: mono_now(),
            }),
            configs,
            strangers,
            strangers_now: AtomicUsize::new(0),
            refusals: LogGate::default(),
            bad_frames: LogGate::default(),
        });
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(reset, u64::from_le_bytes(key))?,
            Some((*first).clone()),
            udp,
            pinned,
        )
        .map_err(|error| QuicError::Socket(listen, error))?;
        let addr = endpoint
            .local_addr()
            .map_err(|error| QuicError::Socket(listen, error))?;
        runtime.spawn(accept(endpoint.clone(), shared));
        Ok(Self { endpoint, addr })
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends all connections in good order and takes no more; returns once the ends have been told (or after a second).
    pub async fn close(&self) {
        self.endpoint
            .close(VarInt::from_u32(code::DONE), b"the server stops");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address();
        let full = shared.connections.load(Ordering::Relaxed) >= shared.limits.connections;
        let rate = shared.limits.handshakes_per_second;
        if full || !shared.bucket.lock().take(rate, mono_now()) {
            if let Some(held) = shared.refusals.pass() {
                let why = if full {
                    "the limit of connections is reached"
                } else {
                    "too many handshakes per second"
                };
                tracing::warn!(%from, more = held, "a connection was not accepted: {why}");
            }
            if full {
                incoming.refuse();
            } else {
                // The client sends its first packet again, later.
                incoming.ignore();
            }
            continue;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        shared
            .runtime
            .spawn(connection(incoming, Arc::clone(&shared)));
    }
}

async fn connection(incoming: Incoming, shared: Arc<Shared>) {
    let from = incoming.remote_address();
    let config = shared.configs.get(from.ip().is_loopback());
    let established = match incoming.accept_with(config) {
        Ok(connecting) => connecting.await,
        Err(error) => Err(error),
    };
    match established {
        Ok(connection) => match &shared.strangers {
            Some(strangers) if came_to_join(&connection) => {
                stranger(&connection, from, &shared, strangers).await;
            }
            _ => requests(&connection, from, &shared).await,
        },
        Err(error) => {
            if is_rejection(&error)
                && let Some(held) = shared.refusals.pass()
            {
                tracing::warn!(%from, %error, more = held, "a handshake failed");
            }
        }
    }
    shared.connections.fetch_sub(1, Ordering::Relaxed);
}

fn came_to_join(connection: &Connection) -> bool {
    connection
        .handshake_data()
        .and_then(|any| any.downcast::<HandshakeData>().ok())
        .is_some_and(|data| data.protocol.as_deref() == Some(JOIN_ALPN))
}

async fn stranger(
    connection: &Connection,
    from: SocketAddr,
    shared: &Arc<Shared>,
    strangers: &Arc<dyn Strangers>,
) {
    if shared.strangers_now.fetch_add(1, Ordering::Relaxed) < STRANGERS {
        let answer = |send| -> ReplyTo {
            let answer = Answer {
                send: Some(send),
                runtime: shared.runtime.clone(),
            };
            Box::new(move |frame| answer.give(frame))
        };
        stranger::serve(connection, from, strangers, answer).await;
    } else {
        if let Some(held) = shared.refusals.pass() {
            tracing::warn!(%from, more = held, "turned a stranger away: there are {STRANGERS}");
        }
        connection.close(VarInt::from_u32(code::BUSY), b"too many strangers");
    }
    shared.strangers_now.fetch_sub(1, Ordering::Relaxed);
}

/// One connection's part in the limits.
struct Origin {
    peer: Peer,
    on_the_way: AtomicUsize,
}

async fn requests(connection: &Connection, from: SocketAddr, shared: &Arc<Shared>) {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(chain) = chain else {
        if let Some(held) = shared.refusals.pass() {
            tracing::warn!(%from, more = held, "turned a client away that showed no certificate");
        }
        connection.close(VarInt::from_u32(code::UNPROVEN), b"no certificate");
        return;
    };
    let identity = chain.first().and_then(tls::identity);
    let Some(identity) = identity else {
        tracing::warn!(%from, "a certificate of this cluster names neither a node nor a client");
        connection.close(VarInt::from_u32(code::BUSY), b"unknown kind of certificate");
        return;
    };
    // Until here it might have been anybody, and could not send much.
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    let origin = Arc::new(Origin {
        peer: Peer {
            identity,
            addr: from,
            connection: shared.next_connection.fetch_add(1, Ordering::Relaxed),
        },
        on_the_way: AtomicUsize::new(0),
    });
    tracing::debug!(%from, ?identity, "connected");
    let ended = loop {
        match connection.accept_bi().await {
            Ok((send, recv)) => {
                let serving = request(send, recv, Arc::clone(shared), Arc::clone(&origin));
                shared.runtime.spawn(serving);
            }
            Err(error) => break error,
        }
    };
    tracing::debug!(%from, %ended, "disconnected");
}

async fn request(
    mut send: SendStream,
    mut recv: RecvStream,
    shared: Arc<Shared>,
    origin: Arc<Origin>,
) {
    let limits = &shared.limits;
    let mut admitted = 0;
    let admit = |bytes: usize| {
        admitted = bytes;
        let before = origin.on_the_way.fetch_add(bytes, Ordering::Relaxed);
        before + bytes <= limits.bytes_on_the_way
    };
    // Most requests are there whole when their stream is noticed: no timer for them.
    let mut reading = Box::pin(read_frame(&mut recv, admit));
    let read = match (&mut reading).now_or_never() {
        Some(read) => Ok(read),
        None => tokio::time::timeout(limits.receive_time, reading.as_mut()).await,
    };
    drop(reading);
    origin.on_the_way.fetch_sub(admitted, Ordering::Relaxed);
    let why: &dyn std::fmt::Display = match &read {
        Ok(Ok(_)) => &"",
        // The client has given the request up.
        Ok(Err(ReadFault::Stream(_))) => return,
        Ok(Err(ReadFault::Frame(error))) => error,
        Ok(Err(ReadFault::NoRoom)) => &"more data on the way than one connection may have",
        Err(_) => &"it did not arrive in time",
    };
    let Ok(Ok(frame)) = read else {
        if let Some(held) = shared.bad_frames.pass() {
            let Peer { addr, identity, .. } = &origin.peer;
            tracing::warn!(from = %addr, ?identity, more = held, "refused a request: {why}");
        }
        let _ = send.reset(VarInt::from_u32(code::BAD_FRAME));
        let _ = recv.stop(VarInt::from_u32(code::BAD_FRAME));
        return;
    };
    let answer = Answer {
        send: Some(send),
        runtime: shared.runtime.clone(),
    };
    let reply: ReplyTo = Box::new(move |frame| answer.give(frame));
    shared.service.serve(origin.peer.clone(), frame, reply);
}

/// The stream an answer goes to. Dropped without one, it tells the client that there will be none.
struct Answer {
    send: Option<SendStream>,
    runtime: Handle,
}

impl Answer {
    fn give(mut self, frame: Frame) {
        let Some(mut send) = self.send.take() else {
            return;
        };
        let mut writing = Box::pin(async move {
            // A client that no longer wants the answer has closed the stream.
            let _ = write_frame(&mut send, frame).await;
        });
        // Nearly always there is room for all of it, and no task is needed.
        if (&mut writing).now_or_never().is_none() {
            self.runtime.spawn(writing);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(mut send) = self.send.take() {
            let _ = send.reset(VarInt::from_u32(code::NO_ANSWER));
        }
    }
}
