//! One node's part in the consensus.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::env::Env;
use mortar_protocol::ids::NodeId;
use mortar_protocol::node::RaftKind;
use openraft::error::{ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest};
use openraft::{ChangeMembers, EmptyNode, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use redb::Database;
use serde::Serialize;
use tokio::sync::watch;

use super::Types;
use super::elections::{self, SignOfLife};
use super::log::{ControlDisk, File, LogStore};
use super::network::{Arriving, Network, Piece, Wire};
use super::runtime::within;
use super::sane;
use super::state::{Machine, Shared};
use crate::control::machine::{Command, Outcome, State};
use crate::control::nodes::in_time;
use crate::control::sessions::Given;
use crate::control::store::ControlError;

/// Between two signs of life of the leader, in milliseconds.
const HEARTBEAT: u64 = 200;
/// How long a candidate waits for a vote, in milliseconds.
const VOTE_TIME: u64 = 600;
/// Commands between two snapshots.
const SNAPSHOT_EVERY: u64 = 1_024;
/// Commands kept behind a snapshot, for nodes that were away for a short time.
const KEEP: u64 = 256;
/// How long a majority has to confirm a command.
const WRITE_TIME: Duration = Duration::from_secs(3);
/// A leader that no majority has answered for this long, in milliseconds, takes no commands: it may lead no more.
const ALONE: u64 = 2_000;
/// How long the library's tasks have to end.
const STOP_TIME: Duration = Duration::from_secs(2);
/// Most commands in one message.
const BATCH: u64 = 128;

/// What a node knows of the consensus.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Rises with every election.
    pub term: u64,
    /// Whether this node leads.
    pub leads: bool,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Why it can take no part any more, if so.
    pub failed: Option<String>,
}

impl Standing {
    fn of(metrics: &RaftMetrics<NodeId, EmptyNode>) -> Self {
        let membership = metrics.membership_config.membership();
        Self {
            leader: metrics.current_leader,
            term: metrics.current_term,
            leads: metrics.state == ServerState::Leader,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            failed: metrics
                .running_state
                .as_ref()
                .err()
                .map(ToString::to_string),
        }
    }
}

/// Why a command was not applied through this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) enum NotProposed {
    /// Another node leads, or none. The command has not been taken up.
    NotLeader(Option<NodeId>),
    /// This node leads, but no majority answers it. The command has not been taken up.
    Alone,
    /// This node leads, but no majority has confirmed the command in time. It may yet count.
    Unconfirmed,
    /// The consensus ended here; whether the command counts is unknown.
    Failed(String),
}

/// See the module.
pub struct Consensus {
    env: Arc<dyn Env>,
    raft: Raft<Types>,
    own: NodeId,
    shared: Arc<Shared>,
    arriving: Arriving,
    life: Arc<SignOfLife>,
    /// Held by the library's tasks until the last of them has ended.
    file: Weak<File>,
}

impl Consensus {
    /// Takes part with what the file holds. A node that has nothing becomes a cluster of one, unless it `joins` another.
    pub(in crate::control) async fn start(
        own: NodeId,
        env: Arc<dyn Env>,
        (path, database): (PathBuf, Database),
        disk: Arc<dyn ControlDisk>,
        wire: Arc<dyn Wire>,
        joins: bool,
    ) -> Result<Self, ControlError> {
        let (file, saved) = File::open(path.clone(), database, disk)?;
        let fail = |why: String| ControlError::File {
            path: path.clone(),
            why,
        };
        let machine = Machine::new(Arc::clone(&file), saved).map_err(fail)?;
        let held = Arc::downgrade(&file);
        let shared = Arc::clone(&machine.shared);
        let config = openraft::Config {
            cluster_name: "mortar".to_owned(),
            heartbeat_interval: HEARTBEAT,
            enable_elect: false,
            election_timeout_min: VOTE_TIME,
            // The lease.
            election_timeout_max: elections::LEASE.as_millis() as u64,
            max_payload_entries: BATCH,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: KEEP,
            ..openraft::Config::default()
        };
        let config = config.validate().map_err(|error| fail(error.to_string()))?;
        let raft = within(
            &env,
            Raft::new(
                own,
                Arc::new(config),
                Network(wire),
                LogStore(file),
                machine,
            ),
        );
        let raft = raft.await.map_err(|error| fail(error.to_string()))?;
        let node = Self {
            env,
            raft,
            own,
            shared,
            arriving: Arriving::default(),
            life: Arc::default(),
            file: held,
        };
        let begun = within(&node.env, node.raft.is_initialized()).await;
        if !joins && !begun.map_err(|error| fail(error.to_string()))? {
            let alone = BTreeMap::from([(own, EmptyNode {})]);
            within(&node.env, node.raft.initialize(alone))
                .await
                .map_err(|error| fail(error.to_string()))?;
        }
        let standing = elections::run(
            Arc::clone(&node.env),
            node.raft.clone(),
            Arc::clone(&node.life),
        );
        node.env.spawn(Box::pin(standing));
        Ok(node)
    }

    pub(in crate::control) fn state(&self) -> Arc<State> {
        self.shared.state()
    }

    pub(in crate::control) fn watch(&self) -> watch::Receiver<u64> {
        self.shared.watch()
    }

    /// Has a command applied, if this node leads.
    pub(in crate::control) async fn propose(
        &self,
        command: Command,
    ) -> Result<Outcome, NotProposed> {
        if self.is_alone() {
            return Err(NotProposed::Alone);
        }
        let writing = within(&self.env, self.raft.client_write(command));
        let Some(written) = in_time(&self.env, WRITE_TIME, writing).await else {
            return Err(NotProposed::Unconfirmed);
        };
        match written {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(NotProposed::NotLeader(to.leader_id))
            }
            Err(error) => Err(NotProposed::Failed(error.to_string())),
        }
    }

    /// Whether this node leads and no majority has answered it for some time.
    fn is_alone(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.state == ServerState::Leader
            && metrics
                .millis_since_quorum_ack
                .is_some_and(|millis| millis > ALONE)
    }

    /// What this node knows of the consensus now.
    pub fn standing(&self) -> Standing {
        Standing::of(&self.raft.metrics().borrow())
    }

    /// Completes when [`Self::standing`] is no longer `known`, and gives it.
    pub async fn standing_after(&self, known: &Standing) -> Standing {
        let mut metrics = self.raft.metrics();
        loop {
            let now = Standing::of(&metrics.borrow_and_update());
            if now != *known || metrics.changed().await.is_err() {
                return now;
            }
        }
    }

    /// The sessions this node had opened when it ended last.
    pub(in crate::control) fn given(&self) -> Vec<Given> {
        self.file
            .upgrade()
            .map_or_else(Vec::new, |file| file.given())
    }

    /// Notes the sessions this node has opened, in the order of the calls; completes when that is durable.
    pub(in crate::control) fn note_given(
        &self,
        given: &[Given],
    ) -> BoxFuture<'static, Result<(), String>> {
        match self.file.upgrade() {
            Some(file) => Box::pin(file.note_given(given)),
            None => Box::pin(async { Err("the consensus has ended on this node".to_owned()) }),
        }
    }

    /// Completes once this node knows for sure that it leads and has applied all that was decided before.
    ///
    /// # Errors
    /// If it does not lead.
    pub async fn leads_for_sure(&self) -> Result<(), String> {
        let sure = within(&self.env, self.raft.ensure_linearizable()).await;
        sure.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Lets a node follow.
    ///
    /// # Errors
    /// If this node does not lead, or another change is in progress.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), String> {
        let added = within(&self.env, self.raft.add_learner(node, EmptyNode {}, false)).await;
        added.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Lets these nodes vote, and nobody else.
    ///
    /// # Errors
    /// As [`Self::add_learner`].
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), String> {
        let set = within(&self.env, self.raft.change_membership(voters, true)).await;
        set.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Takes a node out that does not vote.
    ///
    /// # Errors
    /// As [`Self::add_learner`].
    pub async fn remove(&self, node: NodeId) -> Result<(), String> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node]));
        let set = within(&self.env, self.raft.change_membership(change, true)).await;
        set.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Answers another node's message; `None` for one that makes no sense.
    pub async fn serve(&self, from: NodeId, kind: RaftKind, body: Bytes) -> Option<Bytes> {
        match kind {
            RaftKind::Append => {
                let request: AppendEntriesRequest<Types> = postcard::from_bytes(&body).ok()?;
                if !sane::append(&request, from) {
                    return None;
                }
                let answer = within(&self.env, self.raft.append_entries(request)).await;
                if !matches!(answer, Ok(AppendEntriesResponse::HigherVote(_)) | Err(_)) {
                    self.life.note(self.env.now());
                }
                encode(&answer)
            }
            RaftKind::Vote => {
                let request: VoteRequest<NodeId> = postcard::from_bytes(&body).ok()?;
                if !sane::vote_request(&request, from) {
                    return None;
                }
                let answer = within(&self.env, self.raft.vote(request)).await;
                if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
                    self.life.note(self.env.now());
                }
                encode(&answer)
            }
            RaftKind::Snapshot { offset, total } => {
                let piece: Piece = postcard::from_bytes(&body).ok()?;
                self.life.note(self.env.now());
                let answer: Result<_, RaftError<NodeId>> =
                    match self.arriving.piece(from, piece, (offset, total))? {
                        (vote, None) => Ok(SnapshotResponse::new(vote)),
                        (vote, Some(snapshot)) => {
                            // To the library, one that cannot be installed is the end.
                            if let Err(why) = State::read(&snapshot.snapshot) {
                                tracing::warn!(%from, "a snapshot is not taken: {why}");
                                return None;
                            }
                            within(&self.env, self.raft.install_full_snapshot(vote, snapshot))
                                .await
                                .map_err(RaftError::Fatal)
                        }
                    };
                encode(&answer)
            }
        }
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Ends this node's part, and lets go of the file.
    pub async fn stop(&self) {
        let until = self.env.now().after(STOP_TIME);
        // Its tasks may have ended before.
        let ended = within(&self.env, self.raft.shutdown());
        let ended = std::pin::pin!(ended);
        futures_util::future::select(ended, self.env.sleep(STOP_TIME)).await;
        while self.file.strong_count() > 0 && self.env.now() < until {
            self.env.sleep(STOP_TIME / 400).await;
        }
    }
}

fn encode<T: Serialize>(answer: &T) -> Option<Bytes> {
    Some(postcard::to_stdvec(answer).ok()?.into())
}
