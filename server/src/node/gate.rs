//! Takes nodes into the cluster.

use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use mortar_protocol::ids::NodeId;

use crate::control::nodes::{Found, Gate};

/// The door through which nodes come.
#[derive(Debug)]
pub struct Door;

impl Gate for Door {
    fn probe(&self, addr: SocketAddr) -> BoxFuture<'static, Result<Found, String>> {
        Box::pin(async move { Err(format!("{addr}: being built")) })
    }

    fn adopt(
        &self,
        addr: SocketAddr,
        _: NodeId,
        _: Vec<(NodeId, Vec<SocketAddr>)>,
    ) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { Err(format!("{addr}: being built")) })
    }
}
