//! The network seam: requests and replies between a client or node and a node, as frames.
//!
//! [`quic`] is the production transport; [`mem`] connects both ends within one process, for tests.

pub mod mem;
pub mod quic;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::frame::Frame;
use crate::ids::NodeId;

/// Whom a request comes from, proven by its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// Another node of the cluster.
    Node(NodeId),
    /// A client; requests run as this uid unless it is 0 (root: as whom the request says).
    Client {
        /// uid bound by the certificate.
        uid: u32,
    },
}

/// The other end of a request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Proven identity.
    pub identity: Identity,
    /// Its address.
    pub addr: SocketAddr,
    /// Number of the connection within this process.
    pub connection: u64,
}

/// The request was sent but no answer came: whether it ran is unknown. Or it could not be sent at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Lost {
    /// No connection could be made within the time allowed; the request has not run.
    #[error("no connection")]
    NotSent,
    /// The connection ended, or the time allowed ran out, before the answer came.
    #[error("no answer")]
    Unknown,
    /// The other side refused this side's certificate, cluster or wire version.
    #[error("refused by the other side")]
    Rejected,
}

/// Sends requests to nodes.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request to a node known under these addresses and waits for its answer. Dropping the future gives
    /// the request up (it may still run).
    fn call(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: Frame,
    ) -> BoxFuture<'static, Result<Frame, Lost>>;
}

/// Takes the answer of one request; dropping it ends the stream without an answer.
pub type ReplyTo = Box<dyn FnOnce(Frame) + Send>;

/// Serves requests.
pub trait Service: Send + Sync + 'static {
    /// Called for each request that arrives; must not block. The answer may be given later, from any thread.
    fn serve(&self, peer: Peer, frame: Frame, reply: ReplyTo);
}

/// Serves those who have no certificate of the cluster (yet): whoever can send a datagram to this node.
pub trait Strangers: Send + Sync + 'static {
    /// Called for each request of a stranger; must not block. The frame is small. `binding` is what only the two ends
    /// of the stranger's connection know, and the same for all its requests.
    fn serve(&self, from: SocketAddr, binding: [u8; 32], frame: Frame, reply: ReplyTo);
}

/// A shared service.
pub type SharedService = Arc<dyn Service>;
