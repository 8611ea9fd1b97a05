//! An in-process transport for tests: every frame is encoded and decoded as on a wire, delivery runs through
//! [`Env`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Identity, Lost, Peer, SharedService, Transport};
use crate::env::Env;
use crate::frame::{Frame, FrameError, PREFIX};
use crate::ids::NodeId;

/// Nodes that reach each other within one process.
#[derive(Default)]
pub struct MemNetwork {
    nodes: Mutex<BTreeMap<NodeId, SharedService>>,
}

impl std::fmt::Debug for MemNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.nodes.lock().keys()).finish()
    }
}

impl MemNetwork {
    /// A network without nodes.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts a node on the network (or replaces its service).
    pub fn serve(&self, node: NodeId, service: SharedService) {
        self.nodes.lock().insert(node, service);
    }

    /// Takes a node off the network.
    pub fn remove(&self, node: NodeId) {
        self.nodes.lock().remove(&node);
    }

    /// A caller's end.
    pub fn transport(self: &Arc<Self>, identity: Identity, env: Arc<dyn Env>) -> MemTransport {
        MemTransport {
            network: Arc::clone(self),
            identity,
            env,
        }
    }
}

/// A caller's end of a [`MemNetwork`].
pub struct MemTransport {
    network: Arc<MemNetwork>,
    identity: Identity,
    env: Arc<dyn Env>,
}

impl std::fmt::Debug for MemTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemTransport({:?})", self.identity)
    }
}

/// A frame as the bytes of a stream.
pub fn encode(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + frame.head.len() + frame.body.len());
    bytes.put_slice(&frame.prefix());
    bytes.put_slice(&frame.head);
    bytes.put_slice(&frame.body);
    bytes.freeze()
}

/// The frame in the bytes of a stream.
///
/// # Errors
/// If a length is over its limit or the bytes do not end with the frame.
pub fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
    let prefix = bytes
        .first_chunk::<PREFIX>()
        .ok_or(FrameError::Length)
        .copied()?;
    let (head, body) = Frame::lengths(prefix)?;
    if bytes.len() != PREFIX + head + body {
        return Err(FrameError::Length);
    }
    Ok(Frame {
        head: bytes.slice(PREFIX..PREFIX + head),
        body: bytes.slice(PREFIX + head..),
    })
}

impl Transport for MemTransport {
    fn call(
        &self,
        node: NodeId,
        _addrs: &[SocketAddr],
        frame: Frame,
    ) -> BoxFuture<'static, Result<Frame, Lost>> {
        let service = self.network.nodes.lock().get(&node).cloned();
        let peer = Peer {
            identity: self.identity,
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            connection: 0,
        };
        let env = Arc::clone(&self.env);
        Box::pin(async move {
            let service = service.ok_or(Lost::NotSent)?;
            let wire = encode(&frame);
            let (answer, answered) = oneshot::channel();
            env.spawn(Box::pin(async move {
                if let Ok(frame) = decode(&wire) {
                    let reply = Box::new(move |frame: Frame| {
                        // The caller may have given up.
                        let _ = answer.send(encode(&frame));
                    });
                    service.serve(peer, frame, reply);
                }
            }));
            let wire = answered.await.map_err(|_| Lost::Unknown)?;
            decode(&wire).map_err(|_| Lost::Unknown)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env_real::RealEnv;
    use crate::transport::{ReplyTo, Service};

    struct Echo;

    impl Service for Echo {
        fn serve(&self, _peer: Peer, frame: Frame, reply: ReplyTo) {
            if !frame.head.is_empty() {
                reply(frame);
            }
        }
    }

    #[tokio::test]
    async fn answers_and_losses() {
        let network = MemNetwork::new();
        let env = Arc::new(RealEnv::new(tokio::runtime::Handle::current()));
        let transport = network.transport(Identity::Client { uid: 0 }, env);
        let frame = Frame {
            head: Bytes::from_static(b"head"),
            body: Bytes::from_static(b"body"),
        };
        let call = |frame: &Frame| transport.call(NodeId(1), &[], frame.clone());
        assert_eq!(call(&frame).await, Err(Lost::NotSent));
        network.serve(NodeId(1), Arc::new(Echo));
        assert_eq!(call(&frame).await, Ok(frame.clone()));
        assert_eq!(call(&Frame::default()).await, Err(Lost::Unknown));
    }

    #[test]
    fn decode_refuses_what_is_not_a_frame() {
        let frame = Frame {
            head: Bytes::from_static(b"head"),
            body: Bytes::new(),
        };
        let good = encode(&frame);
        assert_eq!(decode(&good), Ok(frame));
        for cut in 0..good.len() {
            assert!(decode(&good.slice(..cut)).is_err());
        }
        assert_eq!(
            decode(&Bytes::from_static(&[0xff; 64])),
            Err(FrameError::HeadTooLong(0xffff_ffff))
        );
    }
}
