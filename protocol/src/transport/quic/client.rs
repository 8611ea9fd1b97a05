//! A caller's end: one connection per node, made when first needed and again when it is lost.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, ReadError, SendStream, VarInt};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::assemble::{ReadFault, read_frame};
use super::calls::{Calls, Pace};
use super::configs::{Configs, of_client};
use super::{PROBE, Pinned, QuicError, bind, code, endpoint_config, is_rejection, write_frame};
use crate::env::Mono;
use crate::env_real::{fill_random, mono_now, random};
use crate::frame::Frame;
use crate::ids::NodeId;
use crate::transport::tls::{self, Credentials, LiveCredentials};
use crate::transport::{Lost, Transport};

/// How long a call waits for a connection unless told otherwise.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// A handshake unanswered for this long gets another beside it.
const ATTEMPT_EVERY: Duration = Duration::from_millis(300);
/// Handshakes to one node at a time.
const ATTEMPTS: usize = 4;
/// A node that refused us is not asked again for this long.
const REFUSAL_HOLDS: Duration = Duration::from_secs(1);
/// A probe unanswered for so long has a second connection tried.
const SUSPECT: Duration = Duration::from_millis(500);
/// A connection is ended whose probes are unanswered for so long, and no second one could be made: calls on it are lost.
const GIVEN_UP: Duration = Duration::from_secs(4);

/// Calls nodes over QUIC. Everything runs on the runtime given; calls may come from any thread.
#[derive(Clone)]
pub struct QuicTransport {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicTransport")
    }
}

struct Inner {
    runtime: Handle,
    configs: Configs<ClientConfig>,
    endpoints: Mutex<[Option<Endpoint>; 2]>,
    links: Mutex<BTreeMap<Key, Arc<Link>>>,
    connect_time: AtomicU64,
}

/// A node, or an address while the node is not known.
type Key = (NodeId, Option<SocketAddr>);

/// The way to one node.
struct Link {
    node: NodeId,
    state: Mutex<LinkState>,
    changed: Notify,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct LinkState {
    connection: Option<Arc<Conn>>,
    connecting: bool,
    addrs: Vec<SocketAddr>,
    refused: Option<Mono>,
}

struct Conn {
    quic: Connection,
    calls: Calls,
}

impl Inner {
    fn endpoint(&self, v6: bool) -> Result<Endpoint, QuicError> {
        let mut endpoints = self.endpoints.lock();
        let slot = &mut endpoints[usize::from(v6)];
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let any: SocketAddr = if v6 {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let mut reset = [0; 32];
        fill_random(&mut reset);
        let endpoint = Endpoint::new(
            endpoint_config(reset, random())?,
            None,
            bind(any)?,
            Arc::new(Pinned(self.runtime.clone())),
        )
        .map_err(|error| QuicError::Socket(any, error))?;
        *slot = Some(endpoint.clone());
        Ok(endpoint)
    }

    async fn handshake(&self, node: NodeId, addr: SocketAddr) -> Result<Connection, Lost> {
        let endpoint = self.endpoint(addr.is_ipv6()).map_err(|error| {
            tracing::warn!(%error, "no socket to connect from");
            Lost::NotSent
        })?;
        let config = self.configs.get(addr.ip().is_loopback());
        let connecting = endpoint
            .connect_with(config, addr, &tls::server_name(node))
            .map_err(|_| Lost::NotSent)?;
        connecting.await.map_err(|error| {
            if is_rejection(&error) {
                tracing::warn!(
                    %addr, %error, versions = ?crate::limits::WIRE_VERSIONS,
                    "the handshake with a node failed: another cluster, certificate or wire version"
                );
                Lost::Rejected
            } else {
                Lost::NotSent
            }
        })
    }
}

impl Link {
    /// A live connection; starts making one if there is none.
    async fn connection(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        addrs: &[SocketAddr],
    ) -> Result<Arc<Conn>, Lost> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = CountDown(&self.waiting);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(ready) = self.look(inner, addrs) {
                return ready;
            }
            changed.await;
        }
    }

    fn look(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        addrs: &[SocketAddr],
    ) -> Option<Result<Arc<Conn>, Lost>> {
        let mut state = self.state.lock();
        if let Some(conn) = &state.connection {
            if conn.quic.close_reason().is_none() {
                return Some(Ok(Arc::clone(conn)));
            }
            state.connection = None;
        }
        if let Some(at) = state.refused {
            if mono_now().since(at) < REFUSAL_HOLDS {
                return Some(Err(Lost::Rejected));
            }
            state.refused = None;
        }
        if addrs.is_empty() {
            return Some(Err(Lost::NotSent));
        }
        if state.addrs != addrs {
            state.addrs = addrs.to_vec();
        }
        if !state.connecting {
            state.connecting = true;
            let connecting = Arc::clone(self).connect(Arc::clone(inner));
            inner.runtime.spawn(connecting);
        }
        None
    }

    /// Tries until there is a connection, the other side refuses, or nobody waits any more.
    async fn connect(self: Arc<Self>, inner: Arc<Inner>) {
        let outcome = self
            .race(&inner, || self.waiting.load(Ordering::Relaxed) > 0)
            .await;
        {
            let mut state = self.state.lock();
            state.connecting = false;
            match outcome {
                Ok(quic) => state.connection = Some(self.install(&inner, quic)),
                Err(Lost::Rejected) => state.refused = Some(mono_now()),
                Err(_) => {}
            }
        }
        self.changed.notify_waiters();
    }

    /// A new connection: handshakes are begun one beside the other, for one that meets a node just starting waits
    /// longer between its packets each time.
    async fn race(&self, inner: &Inner, wanted: impl Fn() -> bool) -> Result<Connection, Lost> {
        let mut attempts = FuturesUnordered::new();
        let mut next = 0;
        while wanted() {
            if attempts.len() < ATTEMPTS {
                let addr = {
                    let state = self.state.lock();
                    state.addrs.get(next % state.addrs.len().max(1)).copied()
                };
                next += 1;
                let addr = addr.ok_or(Lost::NotSent)?;
                let longest = ATTEMPT_EVERY * ATTEMPTS as u32;
                attempts.push(async move {
                    timeout(longest, inner.handshake(self.node, addr))
                        .await
                        .unwrap_or(Err(Lost::NotSent))
                });
            }
            let pause = sleep(ATTEMPT_EVERY);
            tokio::pin!(pause);
            loop {
                let done = tokio::select! {
                    biased;
                    done = attempts.next(), if !attempts.is_empty() => done,
                    () = &mut pause => None,
                };
                match done {
                    Some(Ok(quic)) => return Ok(quic),
                    Some(Err(Lost::Rejected)) => return Err(Lost::Rejected),
                    Some(Err(_)) => {}
                    None => break,
                }
            }
        }
        Err(Lost::NotSent)
    }

    fn install(self: &Arc<Self>, inner: &Arc<Inner>, quic: Connection) -> Arc<Conn> {
        let conn = Arc::new(Conn {
            quic,
            calls: Calls::default(),
        });
        let watch = Arc::clone(self).watch(Arc::clone(inner), Arc::clone(&conn));
        inner.runtime.spawn(watch);
        conn
    }

    /// Looks after a connection: probes it when calls get no answer (a restarted node then ends it at once), and
    /// replaces it if a second one can be made while it stays silent.
    async fn watch(self: Arc<Self>, inner: Arc<Inner>, conn: Arc<Conn>) {
        let (mut heard, mut pace) = (0, Pace::default());
        // Since when a probe has been unanswered.
        let mut doubt: Option<Mono> = None;
        loop {
            let look = tokio::select! {
                biased;
                reason = conn.quic.closed() => return self.lost(&conn, &reason),
                look = conn.calls.next_look(&mut pace, doubt.is_some()) => look,
            };
            let Some(owed) = look else { continue };
            let now = mono_now();
            let received = conn.quic.stats().udp_rx.datagrams;
            if received != heard || !owed {
                heard = received;
                doubt = None;
                continue;
            }
            // Fails only while datagrams are not allowed or do not fit, and then nothing is lost.
            let _ = conn.quic.send_datagram(PROBE);
            if now.since(*doubt.get_or_insert(now)) < SUSPECT {
                continue;
            }
            let until = now.after(CONNECT_TIME);
            if let Ok(quic) = self.race(&inner, || mono_now() < until).await {
                if conn.quic.stats().udp_rx.datagrams != heard {
                    // It was only slow.
                    quic.close(VarInt::from_u32(code::DONE), b"not needed");
                    continue;
                }
                let fresh = self.install(&inner, quic);
                self.state.lock().connection = Some(fresh);
                self.changed.notify_waiters();
                conn.quic
                    .close(VarInt::from_u32(code::DONE), b"replaced, no answer");
                return;
            }
            let silent = conn.quic.stats().udp_rx.datagrams == heard;
            if silent && doubt.is_some_and(|since| mono_now().since(since) >= GIVEN_UP) {
                conn.quic.close(VarInt::from_u32(code::DONE), b"no answer");
            }
        }
    }

    fn lost(&self, conn: &Arc<Conn>, reason: &ConnectionError) {
        let mut state = self.state.lock();
        if state
            .connection
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, conn))
        {
            state.connection = None;
        }
        if is_rejection(reason) {
            tracing::warn!(
                node = %self.node, %reason, versions = ?crate::limits::WIRE_VERSIONS,
                "a node refused the connection: another cluster, certificate or wire version"
            );
            state.refused = Some(mono_now());
        }
    }
}

struct CountDown<'a>(&'a AtomicUsize);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl QuicTransport {
    /// A transport that shows `credentials` and runs on `runtime`.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub fn new(credentials: &Credentials, runtime: &Handle) -> Result<Self, QuicError> {
        Self::with_live(&LiveCredentials::new(credentials.clone()), runtime)
    }

    /// As [`Self::new`], with credentials that are replaced now and then: each new connection shows the newest.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub fn with_live(live: &LiveCredentials, runtime: &Handle) -> Result<Self, QuicError> {
        Ok(Self::of(of_client(live)?, runtime))
    }

    /// A transport with these configurations.
    pub(super) fn of(configs: Configs<ClientConfig>, runtime: &Handle) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime: runtime.clone(),
                configs,
                endpoints: Mutex::default(),
                links: Mutex::default(),
                connect_time: AtomicU64::new(CONNECT_TIME.as_millis() as u64),
            }),
        }
    }

    /// Changes how long a call waits for a connection before it ends with [`Lost::NotSent`].
    pub fn set_connect_time(&self, time: Duration) {
        let millis = time.as_millis().min(3_600_000) as u64;
        self.inner.connect_time.store(millis, Ordering::Relaxed);
    }

    /// Ends all connections; returns once the nodes have been told (or after a second).
    pub async fn close(&self) {
        let endpoints: Vec<Endpoint> = self
            .inner
            .endpoints
            .lock()
            .iter()
            .flatten()
            .cloned()
            .collect();
        for endpoint in endpoints {
            endpoint.close(VarInt::from_u32(code::DONE), b"the client ends");
            let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        }
    }

    fn link(&self, node: NodeId, addrs: &[SocketAddr]) -> Arc<Link> {
        let addr = if node.0 == 0 {
            addrs.first().copied()
        } else {
            None
        };
        let mut links = self.inner.links.lock();
        let link = links.entry((node, addr)).or_insert_with(|| {
            Arc::new(Link {
                node,
                state: Mutex::default(),
                changed: Notify::new(),
                waiting: AtomicUsize::new(0),
            })
        });
        Arc::clone(link)
    }
}

impl Transport for QuicTransport {
    fn call(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: Frame,
    ) -> BoxFuture<'static, Result<Frame, Lost>> {
        let inner = Arc::clone(&self.inner);
        let link = self.link(node, addrs);
        let ready = match &link.state.lock().connection {
            Some(conn) if conn.quic.close_reason().is_none() => Some(Arc::clone(conn)),
            _ => None,
        };
        let addrs = if ready.is_some() {
            Vec::new()
        } else {
            addrs.to_vec()
        };
        Box::pin(async move {
            let mut again = frame.clone();
            let mut conn = match ready {
                Some(conn) => conn,
                None => connect_in_time(&inner, &link, &addrs).await?,
            };
            // A connection may turn out to be dead when it is used first; the request has not run then.
            let mut tries = 3;
            loop {
                match exchange(&conn, again).await {
                    Err(Lost::NotSent) if tries > 0 => {
                        tries -= 1;
                        let addrs = link.state.lock().addrs.clone();
                        conn = connect_in_time(&inner, &link, &addrs).await?;
                        again = frame.clone();
                    }
                    other => return other,
                }
            }
        })
    }
}

async fn connect_in_time(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    addrs: &[SocketAddr],
) -> Result<Arc<Conn>, Lost> {
    let millis = inner.connect_time.load(Ordering::Relaxed);
    let deadline = {
        let _context = inner.runtime.enter();
        sleep(Duration::from_millis(millis))
    };
    tokio::pin!(deadline);
    tokio::select! {
        biased;
        ready = link.connection(inner, addrs) => ready,
        () = &mut deadline => Err(Lost::NotSent),
    }
}

/// A stream that is ended abruptly if the caller gives up before the request is written whole.
struct Sending(Option<SendStream>);

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(mut send) = self.0.take() {
            // Fails only if the connection or stream has ended by itself.
            let _ = send.reset(VarInt::from_u32(code::DONE));
        }
    }
}

async fn exchange(conn: &Conn, frame: Frame) -> Result<Frame, Lost> {
    let _call = conn.calls.begin();
    let unsent = |error: &ConnectionError| {
        if is_rejection(error) {
            Lost::Rejected
        } else {
            Lost::NotSent
        }
    };
    let (send, mut recv) = conn.quic.open_bi().await.map_err(|error| unsent(&error))?;
    // The node runs only what arrived whole, and the end of the stream is written last.
    let mut send = Sending(Some(send));
    let written = match &mut send.0 {
        Some(send) => write_frame(send, frame).await,
        None => Err(quinn::WriteError::ClosedStream),
    };
    if written.is_ok() {
        send.0 = None;
    }
    if let Err(error) = written {
        return Err(match error {
            quinn::WriteError::ConnectionLost(error) => unsent(&error),
            quinn::WriteError::Stopped(number) if number == VarInt::from_u32(code::BAD_FRAME) => {
                Lost::Rejected
            }
            _ => Lost::Unknown,
        });
    }
    read_frame(&mut recv, |_| true).await.map_err(|fault| {
        let bad_frame = VarInt::from_u32(code::BAD_FRAME);
        match fault {
            ReadFault::Stream(ReadError::ConnectionLost(error)) if is_rejection(&error) => {
                Lost::Rejected
            }
            ReadFault::Stream(ReadError::Reset(number)) if number == bad_frame => Lost::Rejected,
            _ => Lost::Unknown,
        }
    })
}
