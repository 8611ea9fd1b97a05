//! The seams of the control plane: the bricks of this node, and the way to all nodes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use mortar_protocol::env::Env;
use mortar_protocol::ids::{BrickId, NodeId};
use mortar_protocol::node::{BrickHealth, BrickTask, NodeReply, NodeRequest};
use mortar_protocol::report::ToBrick;
use mortar_protocol::transport::Lost;
use mortar_protocol::view::{BrickInfo, VolumeInfo};
use mortar_protocol::watch::Sum;

use super::machine::Chore;

/// How long a node has to say that it is there. The one that leads is asked before a command is sent to it: one on its
/// way to a node that has gone silent is lost, and nobody knows whether it was done.
pub const THERE: Duration = Duration::from_millis(500);

/// The part of the daemon that has the bricks of this node.
pub trait BrickHost: Send + Sync + 'static {
    /// Whether a brick could be formatted here. The error is told to a person.
    fn check(&self, brick: BrickTask) -> BoxFuture<'static, Result<(), String>>;
    /// Formats a brick. The error is told to a person.
    fn format(&self, brick: BrickTask) -> BoxFuture<'static, Result<(), String>>;
    /// Deals with a brick that no volume has any more. What is somebody else's by now is left alone.
    fn clear(&self, brick: BrickInfo, chore: Chore) -> BoxFuture<'static, ()>;
    /// Opens this node's bricks of a started volume that are not open. What cannot be opened is seen by
    /// [`Self::health`].
    fn open(&self, volume: VolumeInfo) -> BoxFuture<'static, ()>;
    /// Closes bricks in good order.
    fn close(&self, bricks: Vec<BrickId>) -> BoxFuture<'static, ()>;
    /// The bricks that are open.
    fn is_open(&self) -> Vec<BrickId>;
    /// How a brick is doing.
    fn health(&self, brick: BrickId) -> BrickHealth;
    /// Counts and latencies of what clients asked of these bricks of this node, by kind of file operation.
    fn stats(&self, bricks: &[BrickId]) -> Vec<Sum>;
    /// Takes an order to a brick; it may be lost.
    fn order(&self, brick: BrickId, order: ToBrick);
}

/// The way to all nodes, this one included.
pub trait Nodes: Send + Sync + 'static {
    /// Asks a node and waits for its answer.
    fn ask(
        &self,
        node: NodeId,
        request: NodeRequest,
        limit: Duration,
    ) -> BoxFuture<'static, Result<NodeReply, Lost>>;
    /// Whether a node answers within [`THERE`].
    fn is_there(&self, node: NodeId) -> BoxFuture<'static, bool> {
        // No orders at all: the lightest question.
        let asked = self.ask(node, NodeRequest::Orders(Vec::new()), THERE);
        Box::pin(async move { asked.await.is_ok() })
    }
    /// The addresses of a host; empty if it has none.
    fn resolve(&self, host: &str) -> BoxFuture<'static, Vec<IpAddr>>;
    /// Whether an address is one of this machine.
    fn is_own(&self, addr: IpAddr) -> bool;
}

/// A node that could be taken into the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Who it is.
    pub node: NodeId,
    /// Where it listens, best address first.
    pub addrs: Vec<SocketAddr>,
    /// It belongs to this cluster already.
    pub belongs: bool,
}

/// Takes nodes in.
pub trait Gate: Send + Sync + 'static {
    /// Looks who is there, whether it knows the secret and whether it may be taken in. The error is told to a person.
    fn probe(&self, addr: SocketAddr) -> BoxFuture<'static, Result<Found, String>>;
    /// Tells the node to join: hands it the cluster's identity, its certificate and where the others are.
    fn adopt(
        &self,
        addr: SocketAddr,
        node: NodeId,
        others: Vec<(NodeId, Vec<SocketAddr>)>,
    ) -> BoxFuture<'static, Result<(), String>>;
}

/// Waits for `future`, but not longer than `limit`.
pub async fn in_time<F: Future>(
    env: &Arc<dyn Env>,
    limit: Duration,
    future: F,
) -> Option<F::Output> {
    match select(std::pin::pin!(future), env.sleep(limit)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

/// The wall clock, in milliseconds since 1970.
pub fn wall_ms(env: &Arc<dyn Env>) -> i64 {
    let wall = env.wall();
    wall.secs * 1_000 + i64::from(wall.nanos / 1_000_000)
}

/// A 128-bit identity, never 0.
pub fn draw_id(env: &Arc<dyn Env>) -> u128 {
    let id = u128::from(env.random()) << 64 | u128::from(env.random());
    id.max(1)
}
