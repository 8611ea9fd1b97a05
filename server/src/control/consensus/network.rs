//! Carries the library's messages to other nodes and their messages to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::ids::NodeId;
use mortar_protocol::limits::MAX_BODY;
use mortar_protocol::node::{RaftKind, SNAPSHOT_PIECE};
use mortar_protocol::transport::Lost;
use openraft::error::{
    Fatal, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, ReplicationClosed,
    StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, Snapshot};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{SnapshotMeta, Types, Vote, sane};

/// A node that does not answer is tried again after this long.
const BACKOFF: Duration = Duration::from_millis(300);
/// A piece of a snapshot that is not answered for this long is lost.
const PIECE_TIME: Duration = Duration::from_secs(5);

/// The way to other nodes.
pub trait Wire: Send + Sync + 'static {
    /// Sends a message of the consensus and gives the answer.
    fn raft(
        &self,
        to: NodeId,
        kind: RaftKind,
        body: Bytes,
        limit: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Lost>>;
}

type RpcError = RPCError<NodeId, EmptyNode, RaftError<NodeId>>;

/// A piece of a snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Piece {
    vote: Vote,
    meta: SnapshotMeta,
    bytes: Bytes,
}

/// The ways to all nodes.
pub(super) struct Network(pub(super) Arc<dyn Wire>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, to: NodeId, _: &EmptyNode) -> Way {
        Way {
            to,
            wire: Arc::clone(&self.0),
        }
    }
}

/// The way to one node.
pub(super) struct Way {
    to: NodeId,
    wire: Arc<dyn Wire>,
}

/// What answered cannot be used, or nothing answered.
fn unreachable(why: impl std::error::Error + 'static) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&why))
}

#[allow(clippy::result_large_err)] // the library's own error
fn encode<A: Serialize>(message: &A) -> Result<Bytes, RpcError> {
    let bytes = postcard::to_stdvec(message);
    let bytes = bytes.map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
    Ok(bytes.into())
}

impl Way {
    async fn ask<R: DeserializeOwned>(
        &self,
        kind: RaftKind,
        body: Bytes,
        limit: Duration,
    ) -> Result<R, RpcError> {
        let answer = self.wire.raft(self.to, kind, body, limit).await;
        let answer = answer.map_err(unreachable)?;
        let answer: Result<R, RaftError<NodeId>> =
            postcard::from_bytes(&answer).map_err(unreachable)?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.to, error)))
    }
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        let body = encode(&request)?;
        let count = request.entries.len() as u64;
        if body.len() > MAX_BODY && count > 1 {
            let hint = PayloadTooLarge::new_entries_hint(count / 2);
            return Err(RPCError::PayloadTooLarge(hint));
        }
        self.ask(RaftKind::Append, body, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RpcError> {
        self.ask(RaftKind::Vote, encode(&request)?, option.hard_ttl())
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<Types, Fatal<NodeId>>> {
        let whole = *snapshot.snapshot;
        let total = whole.len() as u64;
        let mut offset = 0;
        loop {
            let end = whole.len().min(offset + SNAPSHOT_PIECE);
            let piece = Piece {
                vote,
                meta: snapshot.meta.clone(),
                bytes: whole.slice(offset..end),
            };
            let kind = RaftKind::Snapshot {
                offset: offset as u64,
                total,
            };
            let answer: SnapshotResponse<NodeId> = match encode(&piece) {
                Ok(body) => self.ask(kind, body, PIECE_TIME).await.map_err(streaming)?,
                Err(error) => return Err(streaming(error)),
            };
            offset = end;
            if offset == whole.len() || answer.vote > vote {
                return Ok(answer);
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

fn streaming(error: RpcError) -> StreamingError<Types, Fatal<NodeId>> {
    match error {
        RPCError::Network(error) => StreamingError::Network(error),
        other => StreamingError::Unreachable(Unreachable::new(&other)),
    }
}

/// Snapshots that arrive in pieces, by sender.
#[derive(Default)]
pub(super) struct Arriving(Mutex<BTreeMap<NodeId, (String, Vec<u8>)>>);

/// Largest snapshot taken, in bytes.
const MAX_SNAPSHOT: u64 = 256 << 20;

impl Arriving {
    /// Takes a piece. Gives the vote, and the snapshot once it is complete; `None` if the piece does not fit.
    pub(super) fn piece(
        &self,
        from: NodeId,
        piece: Piece,
        (offset, total): (u64, u64),
    ) -> Option<(Vote, Option<Snapshot<Types>>)> {
        if total > MAX_SNAPSHOT || !sane::snapshot(&piece.vote, &piece.meta, from) {
            return None;
        }
        let mut arriving = self.0.lock();
        if offset == 0 {
            arriving.insert(from, (piece.meta.snapshot_id.clone(), Vec::new()));
        }
        let (id, bytes) = arriving.get_mut(&from)?;
        if *id != piece.meta.snapshot_id || bytes.len() as u64 != offset {
            return None;
        }
        bytes.extend_from_slice(&piece.bytes);
        if (bytes.len() as u64) < total {
            return Some((piece.vote, None));
        }
        let (_, whole) = arriving.remove(&from)?;
        let snapshot = Snapshot {
            meta: piece.meta,
            snapshot: Box::new(whole.into()),
        };
        Some((piece.vote, Some(snapshot)))
    }
}
