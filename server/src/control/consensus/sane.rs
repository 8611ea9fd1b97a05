//! What arrives from other nodes and what the file holds: the library relies on it, so it is given only what a node of
//! the cluster can have made.

use mortar_protocol::ids::NodeId;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::{EmptyNode, Entry, EntryPayload, Membership};

use super::{LogId, SnapshotMeta, Types, Vote};

/// No term and no place in the log is counted up to this.
const HIGHEST: u64 = 1 << 62;

/// A vote that can be followed by others.
pub(super) fn vote(vote: &Vote) -> bool {
    vote.leader_id().get_term() <= HIGHEST
}

/// Nodes speak for themselves only.
fn vote_of(given: &Vote, from: NodeId) -> bool {
    vote(given) && given.leader_id().voted_for() == Some(from)
}

pub(super) fn position(id: &LogId) -> bool {
    id.index <= HIGHEST && id.leader_id.get_term() <= HIGHEST
}

fn known_position(id: Option<&LogId>) -> bool {
    id.is_none_or(position)
}

fn membership(membership: &Membership<NodeId, EmptyNode>) -> bool {
    let configs = membership.get_joint_config();
    let listed = |node: &NodeId| membership.get_node(node).is_some();
    !configs.is_empty()
        && configs
            .iter()
            .all(|voters| !voters.is_empty() && voters.iter().all(listed))
}

/// Whether entries follow each other, and the one before them if it is named.
pub(super) fn entries<'a>(
    mut before: Option<LogId>,
    entries: impl IntoIterator<Item = &'a Entry<Types>>,
) -> bool {
    entries.into_iter().all(|entry| {
        let id = entry.log_id;
        let follows = before.is_none_or(|before| before.index + 1 == id.index && before < id);
        before = Some(id);
        let sound = match &entry.payload {
            EntryPayload::Membership(given) => membership(given),
            EntryPayload::Normal(_) | EntryPayload::Blank => true,
        };
        position(&id) && follows && sound
    })
}

pub(super) fn append(request: &AppendEntriesRequest<Types>, from: NodeId) -> bool {
    let before = request.prev_log_id;
    let first = request.entries.first().map(|entry| entry.log_id.index);
    vote_of(&request.vote, from)
        && known_position(before.as_ref())
        && known_position(request.leader_commit.as_ref())
        && (before.is_some() || first.is_none_or(|first| first == 0))
        && entries(before, &request.entries)
}

pub(super) fn vote_request(request: &VoteRequest<NodeId>, from: NodeId) -> bool {
    vote_of(&request.vote, from) && known_position(request.last_log_id.as_ref())
}

pub(super) fn snapshot(given: &Vote, meta: &SnapshotMeta, from: NodeId) -> bool {
    vote_of(given, from) && snapshot_meta(meta)
}

pub(super) fn snapshot_meta(meta: &SnapshotMeta) -> bool {
    let of = &meta.last_membership;
    // A snapshot of nothing has none.
    let nobody = meta.last_log_id.is_none() && of.log_id().is_none();
    known_position(meta.last_log_id.as_ref())
        && known_position(of.log_id().as_ref())
        && of.log_id().as_ref() <= meta.last_log_id.as_ref()
        && (nobody || membership(of.membership()))
}
