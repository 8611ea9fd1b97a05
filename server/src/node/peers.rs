//! The way to the other nodes of the cluster.
//!
//! Messages between bricks and those of the control plane have connections of their own, so that neither waits for the
//! other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::admin::AdminRequest;
use mortar_protocol::enrol::is_local;
use mortar_protocol::env::Mono;
use mortar_protocol::env_real::mono_now;
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BrickId, NodeId};
use mortar_protocol::node::{NodeReply, NodeRequest, RaftKind};
use mortar_protocol::peer::PeerFrame;
use mortar_protocol::report::ToBrick;
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::transport::{Lost, Transport};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::away::Away;
use super::names::{self, Names};
use crate::control::consensus::Wire;
use crate::control::hosts;
use crate::control::leader::Orders;
use crate::control::machine::{Command, Outcome, State};
use crate::control::nodes::Nodes;
use crate::control::serve::Served;
use crate::control::store::{Control, Forward};

/// How long the leader has to answer a command.
const PROPOSE: Duration = Duration::from_secs(4);
/// How long a node has to take orders.
const ORDERS: Duration = Duration::from_secs(2);
/// Most orders in one message.
const ORDER_BATCH: usize = 64;
/// Messages between bricks that may be on their way to one node; more are dropped and sent again by their set's log.
const ON_THE_WAY: usize = 4_096;
/// A message between bricks that has not arrived after this long is lost.
const PEER_TIME: Duration = Duration::from_secs(5);

/// The way to the other nodes.
pub struct Peers {
    own: NodeId,
    control_ways: QuicTransport,
    brick_ways: QuicTransport,
    /// Runs the messages between bricks.
    core: Handle,
    control: OnceLock<Weak<Control>>,
    served: OnceLock<Weak<Served>>,
    /// Where nodes were when this one joined.
    first_known: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// Node of each brick. Identities are never used twice, so nothing here is ever wrong.
    bricks: Mutex<Places>,
    on_the_way: Mutex<BTreeMap<NodeId, Arc<AtomicUsize>>>,
    heard: Mutex<BTreeMap<NodeId, Mono>>,
    away: Mutex<Away>,
    names: Mutex<Names>,
    begun: Mono,
}

#[derive(Default)]
struct Places {
    nodes: BTreeMap<BrickId, NodeId>,
    /// Number of the command up to which they are known.
    upto: u64,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peers({})", self.own)
    }
}

impl Peers {
    /// From the node `own`; `first_known` is where the others were when it joined.
    pub fn new(
        own: NodeId,
        (control_ways, brick_ways): (QuicTransport, QuicTransport),
        core: Handle,
        first_known: Vec<(NodeId, Vec<SocketAddr>)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            own,
            control_ways,
            brick_ways,
            core,
            control: OnceLock::new(),
            served: OnceLock::new(),
            first_known: first_known.into_iter().collect(),
            bricks: Mutex::default(),
            on_the_way: Mutex::default(),
            heard: Mutex::default(),
            away: Mutex::default(),
            names: Mutex::default(),
            begun: mono_now(),
        })
    }

    /// Tells what knows where nodes are, and what answers for this one.
    pub fn connect(&self, control: &Arc<Control>, served: &Arc<Served>) {
        // Both are told once, at the start.
        let _ = self.control.set(Arc::downgrade(control));
        let _ = self.served.set(Arc::downgrade(served));
    }

    fn state(&self) -> Option<Arc<State>> {
        Some(self.control.get()?.upgrade()?.state())
    }

    fn addrs(&self, node: NodeId) -> Vec<SocketAddr> {
        let state = self.state();
        let record = state.as_ref().and_then(|state| state.nodes.get(&node));
        let known = record.map(|record| record.addrs.clone());
        let known = known.or_else(|| self.first_known.get(&node).cloned());
        let mut addrs = hosts::outside(&known.unwrap_or_default());
        for addr in self.names.lock().addrs(node) {
            if !addrs.contains(addr) {
                addrs.push(*addr);
            }
        }
        addrs
    }

    /// How long a node has not answered.
    pub fn silent(&self, node: NodeId) -> Duration {
        let heard = self.heard.lock().get(&node).copied();
        mono_now().since(heard.unwrap_or(self.begun))
    }

    fn heard(&self, node: NodeId) {
        let now = mono_now();
        self.heard.lock().insert(node, now);
        if let Some(time) = self.away.lock().answered(node, now) {
            let secs = time.as_secs();
            tracing::info!(%node, "node {} answers again, after {secs} s", self.name(node));
        }
    }

    fn not_heard(self: &Arc<Self>, node: NodeId) {
        self.look_up(node);
        if self.away.lock().unanswered(node, mono_now()) {
            tracing::warn!(%node, "node {} does not answer", self.name(node));
        }
    }

    /// Has the names of a node resolved again that does not answer.
    fn look_up(self: &Arc<Self>, node: NodeId) {
        let Some(state) = self.state() else { return };
        if !self.names.lock().is_due(node, mono_now()) {
            return;
        }
        let (names, port) = names::names_of(&state, node);
        let peers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let found = names.iter().flat_map(|name| names::resolve(name));
            let addrs: Vec<SocketAddr> = found.map(|ip| (ip, port).into()).collect();
            let known = peers.addrs(node);
            let new = addrs.iter().any(|addr| !known.contains(addr));
            if peers.names.lock().found(node, addrs.clone()) && new {
                tracing::info!(%node, ?names, ?addrs, "node {} has other addresses by its names", peers.name(node));
            }
        });
    }

    /// What people call a node.
    fn name(&self, node: NodeId) -> String {
        self.state()
            .map_or_else(|| node.to_string(), |state| state.host_of(node))
    }

    /// Whether a daemon at an address answers as this node.
    pub async fn is_there(&self, addr: SocketAddr, limit: Duration) -> bool {
        let ask = Request::Admin(AdminRequest::Node);
        let Ok(frame) = Frame::new(&ask, Bytes::new()) else {
            return false;
        };
        let call = self.control_ways.call(self.own, &[addr], frame);
        matches!(tokio::time::timeout(limit, call).await, Ok(Ok(_)))
    }

    /// Asks a node and gives its answer and what is behind it.
    async fn exchange(
        self: Arc<Self>,
        node: NodeId,
        request: NodeRequest,
        body: Bytes,
        limit: Duration,
    ) -> Result<(NodeReply, Bytes), Lost> {
        if node == self.own {
            let served = self.served.get().and_then(Weak::upgrade);
            let served = served.ok_or(Lost::NotSent)?;
            return Ok(served.serve(node, request, body).await);
        }
        let frame = Frame::new(&Request::Node(request), body).map_err(|error| {
            tracing::error!(%error, "a message to a node cannot be sent");
            Lost::NotSent
        })?;
        let call = self.control_ways.call(node, &self.addrs(node), frame);
        let answer = tokio::time::timeout(limit, call).await;
        let answer = answer
            .unwrap_or(Err(Lost::Unknown))
            .inspect_err(|_| self.not_heard(node))?;
        self.heard(node);
        if answer.head.is_empty() {
            let reply = answer.message_of_any_length();
            return reply
                .map(|reply| (reply, Bytes::new()))
                .map_err(|_| Lost::Unknown);
        }
        let reply = answer.message().map_err(|_| Lost::Unknown)?;
        Ok((reply, answer.body))
    }

    /// The node of a brick.
    fn node_of(&self, brick: BrickId) -> Option<NodeId> {
        let mut places = self.bricks.lock();
        if let Some(node) = places.nodes.get(&brick) {
            return Some(*node);
        }
        let state = self.state()?;
        if places.upto == state.applied {
            return None;
        }
        places.upto = state.applied;
        for volume in state.volumes.values() {
            for info in volume.info.sets.iter().flatten() {
                places.nodes.insert(info.id, info.node);
            }
        }
        places.nodes.get(&brick).copied()
    }

    /// Sends a message to a brick of another node. It may be lost.
    pub fn send_peer(self: &Arc<Self>, frame: PeerFrame) {
        let Some(node) = self
            .node_of(frame.envelope.to)
            .filter(|node| *node != self.own)
        else {
            return tracing::debug!(to = %frame.envelope.to, "a message to a brick that is not open");
        };
        let on_the_way = Arc::clone(self.on_the_way.lock().entry(node).or_default());
        if on_the_way.fetch_add(1, Ordering::Relaxed) >= ON_THE_WAY {
            on_the_way.fetch_sub(1, Ordering::Relaxed);
            return tracing::debug!(%node, "too many messages on the way; one is dropped");
        }
        let message = frame
            .body()
            .and_then(|body| Frame::new(&Request::Peer(frame.envelope), body));
        let call = match message {
            Ok(message) => self.brick_ways.call(node, &self.addrs(node), message),
            Err(error) => {
                on_the_way.fetch_sub(1, Ordering::Relaxed);
                return tracing::error!(%error, "a message to another brick cannot be sent");
            }
        };
        self.core.spawn(async move {
            // Whoever has to know sends it again.
            let _ = tokio::time::timeout(PEER_TIME, call).await;
            on_the_way.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.control_ways.close().await;
        self.brick_ways.close().await;
    }
}

/// [`Peers`] as the control plane sees them.
#[derive(Clone, Debug)]
pub struct Ways(pub Arc<Peers>);

impl Nodes for Ways {
    fn ask(
        &self,
        node: NodeId,
        request: NodeRequest,
        limit: Duration,
    ) -> BoxFuture<'static, Result<NodeReply, Lost>> {
        let asked = Arc::clone(&self.0).exchange(node, request, Bytes::new(), limit);
        Box::pin(async move { asked.await.map(|(reply, _)| reply) })
    }

    fn resolve(&self, host: &str) -> BoxFuture<'static, Vec<IpAddr>> {
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Box::pin(async move {
            let asked = tokio::task::spawn_blocking(move || {
                let own = rustix::system::uname();
                let mut addrs = names::resolve(&host);
                if addrs.is_empty() && own.nodename().to_bytes() == host.as_bytes() {
                    addrs.push(IpAddr::from([127, 0, 0, 1]));
                }
                addrs
            });
            asked.await.unwrap_or_default()
        })
    }

    fn is_own(&self, addr: IpAddr) -> bool {
        is_local(addr)
    }
}

impl Wire for Ways {
    fn raft(
        &self,
        to: NodeId,
        kind: RaftKind,
        body: Bytes,
        limit: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Lost>> {
        let asked = Arc::clone(&self.0).exchange(to, NodeRequest::Raft(kind), body, limit);
        Box::pin(async move {
            match asked.await? {
                (NodeReply::Raft, answer) => Ok(answer),
                _ => Err(Lost::Rejected),
            }
        })
    }
}

impl Forward for Ways {
    fn propose(
        &self,
        to: NodeId,
        command: &Command,
    ) -> BoxFuture<'static, Result<Result<Outcome, Option<NodeId>>, Lost>> {
        let peers = Arc::clone(&self.0);
        let body = postcard::to_stdvec(command);
        Box::pin(async move {
            let body = body.map_err(|_| Lost::NotSent)?;
            let asked = peers.exchange(to, NodeRequest::Propose, body.into(), PROPOSE);
            match asked.await? {
                (NodeReply::Outcome, outcome) => postcard::from_bytes(&outcome)
                    .map(Ok)
                    .map_err(|_| Lost::Unknown),
                (NodeReply::NotLeader(leader), _) => Ok(Err(leader)),
                _ => Err(Lost::Unknown),
            }
        })
    }

    fn is_there(&self, node: NodeId) -> BoxFuture<'static, bool> {
        Nodes::is_there(self, node)
    }
}

/// Orders of one turn of the leader, gathered by node.
#[derive(Debug)]
pub struct OrderBook {
    peers: Arc<Peers>,
    waiting: Arc<Mutex<BTreeMap<NodeId, Vec<(BrickId, ToBrick)>>>>,
}

impl OrderBook {
    /// An empty one.
    pub fn new(peers: Arc<Peers>) -> Self {
        Self {
            peers,
            waiting: Arc::default(),
        }
    }
}

impl Orders for OrderBook {
    fn order(&self, (node, brick): (NodeId, BrickId), order: ToBrick) {
        let first = {
            let mut waiting = self.waiting.lock();
            let own = waiting.entry(node).or_default();
            own.push((brick, order));
            own.len() == 1
        };
        if !first {
            return;
        }
        let (peers, waiting) = (Arc::clone(&self.peers), Arc::clone(&self.waiting));
        // What the leader orders in the same turn goes along.
        tokio::spawn(async move {
            let orders = waiting.lock().remove(&node).unwrap_or_default();
            for batch in orders.chunks(ORDER_BATCH) {
                let request = NodeRequest::Orders(batch.to_vec());
                let sent = Arc::clone(&peers).exchange(node, request, Bytes::new(), ORDERS);
                if let Err(error) = sent.await {
                    tracing::debug!(%node, %error, "orders to bricks were lost; they are repeated");
                }
            }
        });
    }
}
