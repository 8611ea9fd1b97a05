//! What all sets of a volume share: the way to the servers, the session, and whom to ask for views.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{InodeId, NodeId, SessionId, StageId, TxnId};
use mortar_protocol::transport::{Lost, Transport};
use mortar_protocol::watch::{Failure, Op, Watch, current, fails_because};
use parking_lot::RwLock;
use tokio::sync::Notify;

use super::servers::{Resolve, Servers};
use super::within;

/// Time for one management request at one server, unless it is a long poll.
const ADMIN_TRY: Duration = Duration::from_secs(3);
/// A server that has not answered for this long gets another one beside it.
const NEXT_AFTER: Duration = Duration::from_millis(300);
/// Most servers asked the same at once.
const AT_ONCE: usize = 3;
/// A client is idle that has asked for nothing for so long.
const QUIET: Duration = Duration::from_secs(10);
/// How often a session is renewed, and that of an idle client.
const RENEWAL: Duration = Duration::from_secs(1);
const IDLE_RENEWAL: Duration = Duration::from_secs(4);
/// Pause between rounds over all servers.
const ROUND: Duration = Duration::from_millis(50);

/// Whether the volume is in service, as the control plane says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Service {
    /// It is started.
    Started,
    /// It is stopped, and may be started again.
    Stopped,
    /// There is none of this name.
    Missing,
    /// It was deleted, and another one has its name.
    Replaced,
}

impl Service {
    const ALL: [Self; 4] = [Self::Started, Self::Stopped, Self::Missing, Self::Replaced];

    /// What is wrong, for a person.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Started => "in service",
            Self::Stopped => "the volume is stopped",
            Self::Missing => "the volume was deleted",
            Self::Replaced => "the volume was deleted, and another one has its name",
        }
    }
}

/// A request on its way.
pub(crate) struct AtWork<'a>(&'a Hub);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.was_active();
    }
}

/// See the module.
pub(crate) struct Hub {
    pub(crate) env: Arc<dyn Env>,
    pub(crate) transport: Arc<dyn Transport>,
    /// Name of the volume.
    pub(crate) name: String,
    servers: Arc<Servers>,
    nodes: RwLock<BTreeMap<NodeId, Arc<[SocketAddr]>>>,
    /// Rounds over all servers in which none answered.
    in_vain: AtomicUsize,
    session: AtomicU64,
    session_turn: tokio::sync::Mutex<()>,
    /// Somebody needs newer views than are known.
    pub(crate) poked: Notify,
    /// A look at the volume's record was answered.
    pub(crate) looked: Notify,
    service: AtomicU8,
    frame_timeout: AtomicU64,
    numbers: AtomicU64,
    closed: AtomicBool,
    /// Requests on their way other than renewals, and when the last of them began or ended.
    running: AtomicUsize,
    active: AtomicU64,
    session_timeout: AtomicU64,
    /// Sets have something to ask: the session is to be renewed now.
    renew_now: Notify,
    /// The volume's record or views have changed.
    pub(crate) changed: Notify,
    /// Told of what goes wrong outside of any operation.
    watch: OnceLock<Arc<Watch>>,
}

impl Hub {
    pub(crate) fn new(
        env: Arc<dyn Env>,
        transport: Arc<dyn Transport>,
        servers: Vec<SocketAddr>,
        name: String,
    ) -> Self {
        Self {
            env,
            transport,
            name,
            servers: Servers::new(servers),
            nodes: RwLock::default(),
            in_vain: AtomicUsize::new(0),
            session: AtomicU64::new(0),
            session_turn: tokio::sync::Mutex::default(),
            poked: Notify::new(),
            looked: Notify::new(),
            service: AtomicU8::new(Service::Started as u8),
            frame_timeout: AtomicU64::new(30_000),
            numbers: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            active: AtomicU64::new(0),
            session_timeout: AtomicU64::new(20_000),
            renew_now: Notify::new(),
            changed: Notify::new(),
            watch: OnceLock::new(),
        }
    }

    /// Says who is told of what goes wrong outside of any operation; the first stays.
    pub(crate) fn set_watch(&self, watch: Arc<Watch>) {
        let _ = self.watch.set(watch);
    }

    /// Says how the names of the servers are resolved when none of them answers; the first stays.
    pub(crate) fn set_resolve(&self, resolve: Resolve) {
        self.servers.set_resolve(resolve);
    }

    /// Something went wrong around an inode that nobody is told of, as it can go on.
    pub(crate) fn remark(&self, inode: InodeId, cause: &str) {
        if let Some(flight) = current() {
            return flight.remark(cause);
        }
        let Some(watch) = self.watch.get() else {
            return tracing::error!("{cause}");
        };
        let op = Op {
            // None of the named ones.
            kind: usize::MAX,
            inode: inode.0,
            asker: 0,
            number: 0,
            started: self.env.now(),
        };
        watch.tell(&Failure {
            op,
            name: None,
            errno: None,
            cause: Some(cause),
        });
    }

    /// Something happens that is not renewal: until it is dropped, and for some time longer, the client is not idle.
    pub(crate) fn at_work(&self) -> AtWork<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.was_active();
        AtWork(self)
    }

    /// Something has happened: the session is renewed every second again.
    pub(crate) fn was_active(&self) {
        self.active.store(self.env.now().0, Ordering::Relaxed);
    }

    /// Time to the session's next renewal. Sets notice a client's silence after `network.session-timeout`; requests break
    /// it too. While nothing happens, every fifth of that is enough.
    fn renewal_pause(&self) -> Duration {
        let quiet = self
            .env
            .now()
            .since(Mono(self.active.load(Ordering::Relaxed)));
        if self.running.load(Ordering::Relaxed) > 0 || quiet < QUIET {
            return RENEWAL;
        }
        let fifth = self.session_timeout.load(Ordering::Relaxed) / 5;
        Duration::from_secs(fifth / 1_000).clamp(RENEWAL, IDLE_RENEWAL)
    }

    pub(crate) fn set_session_timeout(&self, time: Duration) {
        let millis = time.as_millis().min(u128::from(u32::MAX)) as u64;
        self.session_timeout.store(millis, Ordering::Relaxed);
    }

    /// A set will ask something with the next renewal: it need not wait for its time.
    pub(crate) fn renew_soon(&self) {
        self.renew_now.notify_one();
    }

    /// Until the session is to be renewed again.
    pub(crate) async fn renewal_due(&self) {
        within(&self.env, self.renewal_pause(), self.renew_now.notified()).await;
    }

    /// Asks for newer views; returns at once.
    pub(crate) fn poke(&self) {
        self.poked.notify_one();
    }

    /// Whether the volume is in service, as far as is known.
    pub(crate) fn service(&self) -> Service {
        let at = usize::from(self.service.load(Ordering::Acquire));
        Service::ALL.get(at).copied().unwrap_or(Service::Started)
    }

    /// Takes up what the control plane says; says whether that is news.
    pub(crate) fn set_service(&self, service: Service) -> bool {
        self.service.swap(service as u8, Ordering::AcqRel) != service as u8
    }

    /// How long a call waits while no server answers.
    pub(crate) fn frame_timeout(&self) -> Duration {
        Duration::from_millis(self.frame_timeout.load(Ordering::Relaxed))
    }

    pub(crate) fn set_frame_timeout(&self, time: Duration) {
        let millis = time.as_millis().min(u128::from(u32::MAX)) as u64;
        self.frame_timeout.store(millis, Ordering::Relaxed);
    }

    /// No more background work.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.poke();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Addresses of a node.
    pub(crate) fn addrs(&self, node: NodeId) -> Option<Arc<[SocketAddr]>> {
        self.nodes.read().get(&node).cloned()
    }

    pub(crate) fn set_nodes(&self, nodes: Vec<(NodeId, Vec<SocketAddr>)>) {
        let mut known = self.nodes.write();
        for (node, addrs) in nodes {
            known.insert(node, addrs.into());
        }
    }

    /// The current session; 0 before the first.
    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::Acquire))
    }

    /// An id for a stage of this session.
    pub(crate) fn stage_id(&self) -> StageId {
        StageId {
            session: self.session(),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// An id for a transaction of this session.
    pub(crate) fn txn_id(&self) -> TxnId {
        TxnId {
            session: self.session(),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Opens a session in place of `old`, unless that has happened meanwhile.
    ///
    /// # Errors
    /// ENOTCONN if no server answers within `limit`, or the control plane refuses one.
    pub(crate) async fn replace_session(
        &self,
        old: SessionId,
        limit: Duration,
    ) -> Result<(), Fault> {
        let _turn = self.session_turn.lock().await;
        if self.session() != old {
            return Ok(());
        }
        if self.service() == Service::Replaced {
            fails_because(|| Service::Replaced.why().to_owned());
            return Err(Fault::Refused(Errno::ENOTCONN));
        }
        match self.open_session(limit).await {
            Ok(new) => {
                if old != SessionId(0) {
                    tracing::warn!(%old, %new, "the session has ended; its locks are lost");
                }
                self.session.store(new.0, Ordering::Release);
                Ok(())
            }
            Err(why) => {
                tracing::debug!(?why, "no session");
                if let Some(why) = why {
                    fails_because(|| format!("no session: {why}"));
                }
                Err(Fault::Refused(Errno::ENOTCONN))
            }
        }
    }

    /// Opens the first session.
    ///
    /// # Errors
    /// Why it is refused, or nothing if no server answers within `limit`.
    pub(crate) async fn first_session(&self, limit: Duration) -> Result<(), Option<String>> {
        let new = self.open_session(limit).await?;
        self.session.store(new.0, Ordering::Release);
        Ok(())
    }

    async fn open_session(&self, limit: Duration) -> Result<SessionId, Option<String>> {
        let request = AdminRequest::OpenSession {
            volume: self.name.clone(),
        };
        let until = self.env.now().after(limit);
        match self.admin(&request, limit, ADMIN_TRY).await {
            Ok(AdminReply::Session(new)) => Ok(new),
            Ok(AdminReply::Refused { message }) => {
                // It may be about that node alone.
                let elsewhere = self.session_at_another(&request, until).await;
                elsewhere.ok_or(Some(message))
            }
            Ok(other) => Err(Some(format!("the answer is {other:?}"))),
            Err(_) => Err(None),
        }
    }

    /// A session from any server that gives one, asked one after the other.
    async fn session_at_another(&self, request: &AdminRequest, until: Mono) -> Option<SessionId> {
        let frame = Frame::new(&Request::Admin(request.clone()), Bytes::new()).ok()?;
        for (node, addrs) in self.everybody() {
            let left = until.since(self.env.now()).min(ADMIN_TRY);
            let call = self.transport.call(node, &addrs, frame.clone());
            let answered = within(&self.env, left, call).await;
            if let Some(Ok(frame)) = answered
                && let Ok(AdminReply::Session(new)) = frame.message_of_any_length()
            {
                return Some(new);
            }
        }
        None
    }

    /// Asks the servers until one answers: one after the other, but a silent one does not stand before the others.
    ///
    /// # Errors
    /// If none has within `limit`, the last reason ([`Lost::Rejected`] at once if all say so).
    pub(crate) async fn admin(
        &self,
        request: &AdminRequest,
        limit: Duration,
        each: Duration,
    ) -> Result<AdminReply, Lost> {
        let frame = Frame::new(&Request::Admin(request.clone()), Bytes::new())
            .map_err(|_| Lost::NotSent)?;
        let until = self.env.now().after(limit);
        loop {
            match self.ask_everybody(&frame, until, each).await {
                Err(Lost::NotSent | Lost::Unknown) => {
                    self.in_vain.fetch_add(1, Ordering::Relaxed);
                    self.servers.look_up(&self.env);
                }
                done => return done,
            }
            if self.env.now().after(ROUND) >= until {
                return Err(Lost::NotSent);
            }
            self.env.sleep(ROUND).await;
        }
    }

    /// One round over all servers. The first answer counts; another server is asked besides once one has failed or
    /// [`NEXT_AFTER`] has passed.
    async fn ask_everybody(
        &self,
        frame: &Frame,
        until: Mono,
        each: Duration,
    ) -> Result<AdminReply, Lost> {
        let mut rejected = true;
        let mut others = self.everybody().into_iter().peekable();
        let mut asked = FuturesUnordered::new();
        loop {
            if asked.len() < AT_ONCE
                && let Some((node, addrs)) = others.next()
            {
                let left = until.since(self.env.now());
                if left.is_zero() {
                    return Err(Lost::NotSent);
                }
                let call = self.transport.call(node, &addrs, frame.clone());
                asked.push(async move { (node, within(&self.env, left.min(each), call).await) });
            }
            let next = if asked.len() < AT_ONCE && others.peek().is_some() {
                within(&self.env, NEXT_AFTER, asked.next()).await
            } else {
                Some(asked.next().await)
            };
            match next {
                // It is another one's turn.
                None => {}
                Some(None) if rejected => return Err(Lost::Rejected),
                Some(None) => return Err(Lost::NotSent),
                Some(Some((node, Some(Ok(frame))))) => {
                    match frame.message_of_any_length::<AdminReply>() {
                        Ok(reply) => return Ok(reply),
                        Err(error) => {
                            rejected = false;
                            tracing::warn!(%node, %error, "a management answer is not one");
                        }
                    }
                }
                Some(Some((_, Some(Err(Lost::Rejected))))) => {}
                Some(Some(_)) => rejected = false,
            }
        }
    }

    /// Known nodes, then the servers named by the caller; after a round in vain, others come first: silent ones must not
    /// keep them from being asked.
    fn everybody(&self) -> Vec<(NodeId, Arc<[SocketAddr]>)> {
        let nodes = self.nodes.read();
        let known = nodes.iter().map(|(node, addrs)| (*node, addrs.clone()));
        let named = self.servers.addrs().into_iter();
        let named = named.map(|addr| (NodeId(0), Arc::from([addr])));
        let mut all: Vec<_> = known.chain(named).collect();
        let first = self.in_vain.load(Ordering::Relaxed) * AT_ONCE;
        let len = all.len().max(1);
        all.rotate_left(first % len);
        all
    }
}
