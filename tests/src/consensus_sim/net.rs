//! Messages between nodes: late, lost, cut off one way; answers too. None is repeated, as the transport repeats none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::ids::{BrickId, NodeId};
use mortar_protocol::node::{NodeReply, NodeRequest, RaftKind};
use mortar_protocol::report::ToBrick;
use mortar_protocol::transport::Lost;
use mortar_server::control::consensus::Wire;
use mortar_server::control::leader::Orders;
use mortar_server::control::machine::{Command, Outcome};
use mortar_server::control::nodes::{Found, Gate, Nodes, in_time};
use mortar_server::control::serve::Served;
use mortar_server::control::store::{Control, Forward};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::sim::exec::{Exec, MICRO, MILLI, SECOND};
use crate::sim::rng::Rng;

/// How long the leader has to answer a command, as in production.
const PROPOSE: Duration = Duration::from_secs(4);
/// How long a node has to take orders, as in production.
const ORDERS: Duration = Duration::from_secs(2);
/// A connection that carries nothing for this long has ended.
const IDLE: Duration = Duration::from_secs(5);
/// No connection is made within this time: nobody is there.
const CONNECT: Duration = Duration::from_secs(2);
/// The port of all nodes.
pub const PORT: u16 = 24_007;

/// How the network is at a time.
#[derive(Clone, Copy, Default, Debug)]
pub struct Weather {
    /// In thousandths: messages that are lost.
    pub lost: u64,
    /// In thousandths: messages that take up to seconds.
    pub late: u64,
}

/// What receives messages on a node.
struct Port {
    owner: u32,
    served: Weak<Served>,
}

struct Inner {
    rng: Rng,
    weather: Weather,
    cut: BTreeSet<(usize, usize)>,
    ports: BTreeMap<usize, Port>,
    /// Told to start for the first time.
    born: BTreeSet<usize>,
    /// Messages of the consensus, if they are recorded.
    recorded: Option<Vec<(RaftKind, Bytes)>>,
    /// What becomes of answers on their way.
    lie: Option<fn(&mut NodeReply)>,
}

/// The network.
pub struct Net {
    exec: Arc<Exec>,
    inner: Mutex<Inner>,
}

/// The node's place, from its identity.
pub fn place(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// The identity of the node at a place.
pub fn id(place: usize) -> NodeId {
    NodeId(place as u128 + 1)
}

/// Where a node listens.
pub fn addr(place: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, place as u8 + 1], PORT))
}

impl Net {
    /// A calm network.
    pub fn new(exec: &Arc<Exec>, rng: Rng) -> Arc<Self> {
        Arc::new(Self {
            exec: Arc::clone(exec),
            inner: Mutex::new(Inner {
                rng,
                weather: Weather::default(),
                cut: BTreeSet::new(),
                ports: BTreeMap::new(),
                born: BTreeSet::from([0]),
                recorded: None,
                lie: None,
            }),
        })
    }

    /// Changes the weather.
    pub fn weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    /// Nothing gets from the one to the other.
    pub fn cut(&self, from: usize, to: usize) {
        self.inner.lock().cut.insert((from, to));
    }

    /// All cuts are mended.
    pub fn mend(&self) {
        self.inner.lock().cut.clear();
    }

    /// A process listens.
    pub fn listen(&self, node: usize, owner: u32, served: &Arc<Served>) {
        let served = Arc::downgrade(served);
        self.inner.lock().ports.insert(node, Port { owner, served });
    }

    /// It listens no more.
    pub fn deaf(&self, node: usize) {
        self.inner.lock().ports.remove(&node);
    }

    /// Nodes that were told to join.
    pub fn born(&self) -> BTreeSet<usize> {
        self.inner.lock().born.clone()
    }

    /// Messages of the consensus are recorded from now on.
    pub fn record(&self) {
        self.inner.lock().recorded = Some(Vec::new());
    }

    /// What was recorded.
    pub fn recorded(&self) -> Vec<(RaftKind, Bytes)> {
        self.inner.lock().recorded.clone().unwrap_or_default()
    }

    /// Answers of other nodes are changed on their way from now on.
    pub fn lie(&self, lie: fn(&mut NodeReply)) {
        self.inner.lock().lie = Some(lie);
    }

    /// How long a message takes; none: it never arrives.
    fn way(&self, from: usize, to: usize) -> Option<u64> {
        let mut inner = self.inner.lock();
        let weather = inner.weather;
        if inner.cut.contains(&(from, to)) || inner.rng.permille(weather.lost) {
            return None;
        }
        Some(if inner.rng.permille(weather.late) {
            inner.rng.range(10 * MILLI, 4 * SECOND)
        } else {
            inner.rng.range(60 * MICRO, 900 * MICRO)
        })
    }

    fn luck(&self, permille: u64) -> bool {
        self.inner.lock().rng.permille(permille)
    }

    /// Delivers a request, has it answered, and brings the answer back.
    fn deliver(
        self: Arc<Self>,
        (from, to): (usize, usize),
        (request, body): (NodeRequest, Bytes),
        tell: oneshot::Sender<Result<(NodeReply, Bytes), Lost>>,
    ) {
        let (port, lie) = {
            let mut inner = self.inner.lock();
            if let (Some(recorded), NodeRequest::Raft(kind)) = (&mut inner.recorded, &request) {
                recorded.push((*kind, body.clone()));
            }
            let port = inner.ports.get(&to);
            let port = port.and_then(|port| Some((port.owner, port.served.upgrade()?)));
            (port, inner.lie)
        };
        let Some((owner, served)) = port else {
            // Nobody waits for it once it has timed out.
            let _ = tell.send(Err(Lost::NotSent));
            return;
        };
        let exec = Arc::clone(&self.exec);
        let task = Box::pin(async move {
            let what = kind(&request);
            let (mut reply, body) = served.serve(id(from), request, body).await;
            if let Some(lie) = lie {
                lie(&mut reply);
            }
            let way = self.way(to, from);
            let sum = crc32fast::hash(&body);
            let text = match &reply {
                NodeReply::Health(_) => "Health".to_owned(),
                other => format!("{other:?}"),
            };
            self.exec
                .note(&format!("n{to}>n{from} {what} -> {text} {sum:08x} {way:?}"));
            if let Some(span) = way {
                self.exec.after(span, move || {
                    let _ = tell.send(Ok((reply, body)));
                });
            } else {
                // Whoever asked waits until its time is over, or the connection has ended.
                let idle = IDLE.as_nanos() as u64;
                self.exec.after(idle, move || drop(tell));
            }
        });
        exec.spawn(owner, task);
    }
}

/// What a request is about, in short.
fn kind(request: &NodeRequest) -> String {
    match request {
        NodeRequest::Raft(kind) => format!("{kind:?}"),
        NodeRequest::Lead(request) => format!("{request:?}"),
        NodeRequest::Create { create, .. } => format!("Create {}", create.name),
        NodeRequest::Check(task) => format!("Check {}", task.brick.path),
        NodeRequest::Format(task) => format!("Format {}", task.brick.path),
        NodeRequest::Reports(reports) => format!("Reports {}", reports.len()),
        NodeRequest::Orders(orders) => format!("Orders {}", orders.len()),
        other => format!("{other:?}"),
    }
}

/// The ways of one process.
pub struct Ways {
    net: Arc<Net>,
    env: Arc<dyn Env>,
    own: usize,
    begun: Mono,
    heard: Mutex<BTreeMap<NodeId, Mono>>,
    served: Mutex<Weak<Served>>,
    control: Mutex<Weak<Control>>,
    me: Weak<Ways>,
}

impl Ways {
    /// Of a process on a node.
    pub fn new(net: &Arc<Net>, env: &Arc<dyn Env>, own: usize) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            net: Arc::clone(net),
            env: Arc::clone(env),
            own,
            begun: env.now(),
            heard: Mutex::default(),
            served: Mutex::default(),
            control: Mutex::default(),
            me: Weak::clone(me),
        })
    }

    /// Tells what answers for the node itself.
    pub fn connect(&self, control: &Arc<Control>, served: &Arc<Served>) {
        *self.control.lock() = Arc::downgrade(control);
        *self.served.lock() = Arc::downgrade(served);
    }

    /// How long a node has not answered.
    pub fn silent(&self, node: NodeId) -> Duration {
        let heard = self.heard.lock().get(&node).copied();
        self.env.now().since(heard.unwrap_or(self.begun))
    }

    /// Asks a node and gives its answer and what is behind it.
    pub fn exchange(
        &self,
        node: NodeId,
        request: NodeRequest,
        body: Bytes,
        limit: Duration,
    ) -> BoxFuture<'static, Result<(NodeReply, Bytes), Lost>> {
        let Some(me) = self.me.upgrade() else {
            return Box::pin(async { Err(Lost::NotSent) });
        };
        Box::pin(async move {
            let (from, to) = (me.own, place(node));
            if from == to {
                let served = me.served.lock().upgrade();
                let served = served.ok_or(Lost::NotSent)?;
                return Ok(served.serve(node, request, body).await);
            }
            let way = me.net.way(from, to);
            let sum = crc32fast::hash(&body);
            let line = format!("n{from}>n{to} {} {sum:08x} {way:?}", kind(&request));
            me.net.exec.note(&line);
            let Some(span) = way else {
                // There may be no connection: then it is known that nothing arrived.
                let known = me.net.luck(500);
                let wait = if known { CONNECT } else { IDLE };
                me.env.sleep(limit.min(wait)).await;
                return Err(if known { Lost::NotSent } else { Lost::Unknown });
            };
            let (tell, told) = oneshot::channel();
            let net = Arc::clone(&me.net);
            me.net.exec.after(span, move || {
                net.deliver((from, to), (request, body), tell);
            });
            match in_time(&me.env, limit, told).await {
                Some(Ok(Ok(answer))) => {
                    me.heard.lock().insert(node, me.env.now());
                    Ok(answer)
                }
                Some(Ok(Err(lost))) => Err(lost),
                Some(Err(_)) | None => Err(Lost::Unknown),
            }
        })
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
        let asked = self.exchange(to, NodeRequest::Raft(kind), body, limit);
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
        let body = postcard::to_stdvec(command).expect("a command can be encoded");
        let asked = self.exchange(to, NodeRequest::Propose, body.into(), PROPOSE);
        Box::pin(async move {
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

impl Nodes for Ways {
    fn ask(
        &self,
        node: NodeId,
        request: NodeRequest,
        limit: Duration,
    ) -> BoxFuture<'static, Result<NodeReply, Lost>> {
        let asked = self.exchange(node, request, Bytes::new(), limit);
        Box::pin(async move { asked.await.map(|(reply, _)| reply) })
    }

    fn resolve(&self, host: &str) -> BoxFuture<'static, Vec<IpAddr>> {
        let addr = host.parse().ok();
        Box::pin(async move { addr.into_iter().collect() })
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        ip == addr(self.own).ip()
    }
}

impl Orders for Ways {
    fn order(&self, (node, brick): (NodeId, BrickId), order: ToBrick) {
        let request = NodeRequest::Orders(vec![(brick, order)]);
        let sent = self.exchange(node, request, Bytes::new(), ORDERS);
        self.env.spawn(Box::pin(async move {
            // The leader repeats what was lost.
            let _ = sent.await;
        }));
    }
}

impl Gate for Ways {
    fn probe(&self, at: SocketAddr) -> BoxFuture<'static, Result<Found, String>> {
        let IpAddr::V4(ip) = at.ip() else {
            return Box::pin(async move { Err(format!("nobody is at {at}")) });
        };
        let node = usize::from(Ipv4Addr::octets(&ip)[3]) - 1;
        let found = Found {
            node: id(node),
            addrs: vec![addr(node)],
            belongs: self.net.born().contains(&node),
        };
        Box::pin(async move { Ok(found) })
    }

    fn adopt(
        &self,
        _: SocketAddr,
        node: NodeId,
        _: Vec<(NodeId, Vec<SocketAddr>)>,
    ) -> BoxFuture<'static, Result<(), String>> {
        self.net.inner.lock().born.insert(place(node));
        Box::pin(async { Ok(()) })
    }
}
