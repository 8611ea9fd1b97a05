//! What the nodes of a cluster ask each other about the control plane: consensus, reports and orders of bricks, commands
//! for the leader, work on bricks that another node has. Only nodes may send these; they are answered with a
//! [`NodeReply`].

use serde::{Deserialize, Serialize};

use crate::admin::{AdminReply, AdminRequest, CreateVolume, NodeTold};
use crate::entry::Space;
use crate::ids::{BrickId, ClusterId, NodeId, RunId, SetIndex, VolumeId};
use crate::report::{FromBrick, ToBrick};
use crate::view::{BrickInfo, VolumeInfo};
use crate::watch::Sum;

/// Most bytes of a snapshot in one message.
pub const SNAPSHOT_PIECE: usize = 1 << 20;

/// A message of the consensus. What it says is in the frame's body, as postcard of the consensus library's own types.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum RaftKind {
    /// Entries to append, or a heartbeat.
    Append,
    /// A request for a vote.
    Vote,
    /// A piece of a snapshot.
    Snapshot {
        /// Where the piece lies in the snapshot, in bytes.
        offset: u64,
        /// Length of the whole snapshot, in bytes.
        total: u64,
    },
}

/// What nodes ask each other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum NodeRequest {
    /// A message of the consensus. Answer: [`NodeReply::Raft`].
    Raft(RaftKind),
    /// Reports of bricks, for the leader. Answer: [`NodeReply::Taken`] or [`NodeReply::NotLeader`].
    Reports(Vec<FromBrick>),
    /// The leader's orders to bricks of the node that is asked. Answer: [`NodeReply::Taken`].
    Orders(Vec<(BrickId, ToBrick)>),
    /// A command for the control plane's state, in the body. Answer: [`NodeReply::Outcome`] or
    /// [`NodeReply::NotLeader`].
    Propose,
    /// A person's command that the leader has to carry out. Answer: [`NodeReply::Admin`] or [`NodeReply::NotLeader`].
    Lead(AdminRequest),
    /// `volume create` with its bricks found. Asked again under the same identity it is not done twice. Answer as of
    /// [`NodeRequest::Lead`].
    Create {
        /// The volume's identity.
        volume: VolumeId,
        /// What was asked for.
        create: CreateVolume,
        /// Its bricks in order, with their nodes.
        bricks: Vec<BrickInfo>,
    },
    /// Says whether a brick could be formatted here. Answer: [`NodeReply::Taken`] or [`NodeReply::Failed`].
    Check(BrickTask),
    /// Formats a brick. Answer as of [`NodeRequest::Check`].
    Format(BrickTask),
    /// How the node and its bricks are doing. Answer: [`NodeReply::Health`].
    Health,
    /// Counts and latencies of what clients asked of these bricks. Answer: [`NodeReply::Stats`].
    Stats(Vec<BrickId>),
    /// The node has been taken out of the cluster. Answer: [`NodeReply::Taken`].
    Leave,
}

/// A brick to be formatted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct BrickTask {
    /// Its volume.
    pub volume: VolumeInfo,
    /// Its set.
    pub set: SetIndex,
    /// The brick.
    pub brick: BrickInfo,
    /// Size of a file brick in bytes, if a person named one.
    pub size: Option<u64>,
    /// What the target holds may be given up, and it may lie on the root file system.
    pub force: bool,
}

/// How a brick is doing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct BrickHealth {
    /// It is open.
    pub online: bool,
    /// The run that has it open.
    pub run: Option<RunId>,
    /// What is wrong with it, if something is.
    pub reason: String,
    /// Its space, if it is open.
    pub space: Option<Space>,
}

/// How a node is doing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeHealth {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// What it says of itself. Its clock is told as milliseconds since 1970.
    pub told: NodeTold,
    /// Its bricks of started volumes; also those of other nodes of which its own bricks found out why they cannot be in
    /// their sets, with their runs.
    pub bricks: Vec<(BrickId, BrickHealth)>,
}

/// Answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum NodeReply {
    /// An answer of the consensus, in the body.
    Raft,
    /// It has arrived, or is done.
    Taken,
    /// The node that was asked does not lead; this one does, as far as it knows.
    NotLeader(Option<NodeId>),
    /// What came of a command, in the body.
    Outcome,
    /// The leader's answer to a person.
    Admin(Box<AdminReply>),
    /// Not done; why, for a person.
    Failed(String),
    /// How the node is doing.
    Health(Box<NodeHealth>),
    /// Counts and latencies, in the order of [`crate::fop::Fop::NAMES`].
    Stats(Vec<Sum>),
}
