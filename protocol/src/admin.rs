//! Management requests: what `mortar` and mounts ask the control plane. Any node answers them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::entry::Space;
use crate::ids::{BrickId, ClusterId, NodeId, SessionId, SetId};
use crate::view::{SetKind, View, VolumeInfo};
use crate::watch::OpStats;

/// A brick as typed: `HOST:/path`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct BrickSpec {
    /// Host, as typed.
    pub host: String,
    /// Absolute path of a directory, a file or a block device.
    pub path: String,
}

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum AdminRequest {
    /// The volume of this name, its views and the addresses of its nodes. Asked by mounts. Answer:
    /// [`AdminReply::Layout`].
    Layout {
        /// Volume name.
        volume: String,
        /// Answer only once the version of the answer is above this (0: at once), or after 10 s.
        newer_than: u64,
    },
    /// A new session of a started volume. Answer: [`AdminReply::Session`].
    OpenSession {
        /// Volume name.
        volume: String,
    },
    /// The current views of sets. Answer: [`AdminReply::Views`].
    Views {
        /// Sets.
        sets: Vec<SetId>,
    },
    /// `volume create`. Answer: [`AdminReply::Done`].
    Create(CreateVolume),
    /// `volume start`. Answered once every set serves or after `cluster.open-wait`. Answer: [`AdminReply::Done`].
    Start {
        /// Volume name.
        volume: String,
        /// Also if it is started already.
        force: bool,
    },
    /// `volume stop`. Answer: [`AdminReply::Done`], or [`AdminReply::Notes`] where clients have it mounted.
    Stop {
        /// Volume name.
        volume: String,
        /// Also if clients are mounted or bricks do not answer.
        force: bool,
    },
    /// `volume delete`: forgets the volume, leaves the bricks' contents. Answer: [`AdminReply::Done`].
    Delete {
        /// Volume name.
        volume: String,
    },
    /// `volume info`, of one volume or of all in the order of their names. Answer: [`AdminReply::Volumes`].
    Info {
        /// Volume name.
        volume: Option<String>,
    },
    /// `volume status` of one started volume. Answer: [`AdminReply::Status`].
    Status {
        /// Volume name.
        volume: String,
    },
    /// `volume set`: all or none. Answer: [`AdminReply::Notes`] (one line for each option without effect).
    Set {
        /// Volume name.
        volume: String,
        /// Options and values.
        options: Vec<(String, String)>,
    },
    /// `volume reset`. Answer: [`AdminReply::Done`].
    Reset {
        /// Volume name.
        volume: String,
        /// One option, or all.
        option: Option<String>,
    },
    /// Who answers. Answer: [`AdminReply::Node`].
    Node,
    /// `mortar stats` of a volume. Answer: [`AdminReply::Stats`].
    Stats {
        /// Volume name.
        volume: String,
    },
    /// `peer probe`: takes a node into the cluster. Answer: [`AdminReply::Done`], or [`AdminReply::Notes`] with the one
    /// line that says why nothing had to be done.
    Probe {
        /// Host name or address as typed, with an optional port: `HOST`, `HOST:PORT` or `[V6]:PORT`.
        host: String,
    },
    /// `peer detach`: takes a node without bricks out of the cluster. Answer: [`AdminReply::Done`].
    Detach {
        /// A name or address of the node, as `peer status` shows it.
        host: String,
        /// Also if the node does not answer.
        force: bool,
    },
    /// `peer status` and `pool list`. Answer: [`AdminReply::Peers`].
    Peers,
    /// `mortar cluster status`. Answer: [`AdminReply::Cluster`].
    Cluster,
    /// `mortar operation list`. Answer: [`AdminReply::Operations`].
    Operations,
}

/// What `volume create` asks for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct CreateVolume {
    /// Name.
    pub name: String,
    /// Kind of its sets.
    pub kind: SetKind,
    /// Bricks in order; a multiple of the kind's width.
    pub bricks: Vec<BrickSpec>,
    /// Size of file bricks in bytes; `None`: from the space available.
    pub brick_size: Option<u64>,
    /// Accept what is refused otherwise: bricks on the root file system, several copies on one node, bricks that
    /// hold something.
    pub force: bool,
}

/// A node as seen by the control plane.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeInfo {
    /// Identity.
    pub id: NodeId,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// Process id of its daemon.
    pub pid: u32,
    /// Version of its daemon.
    pub version: String,
}

/// A brick's line in `volume status`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct BrickStatus {
    /// The brick.
    pub brick: BrickId,
    /// As typed at creation.
    pub spec: BrickSpec,
    /// Whether it serves.
    pub online: bool,
    /// Whether it is an in-sync member of its set's view.
    pub in_sync: bool,
    /// Port of its node.
    pub port: u16,
    /// Process that serves it.
    pub pid: u32,
    /// Why it is offline or not in sync; empty if it is.
    pub reason: String,
    /// Its space, if it serves.
    pub space: Option<Space>,
}

/// Answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum AdminReply {
    /// A volume as a client needs it.
    Layout {
        /// The volume.
        volume: VolumeInfo,
        /// Views of its sets, in order (none for a set that has not opened yet).
        views: Vec<Option<View>>,
        /// Addresses of the nodes that serve its bricks.
        nodes: Vec<(NodeId, Vec<SocketAddr>)>,
        /// Version for `newer_than`: rises with every change of volume or views.
        version: u64,
    },
    /// A session number.
    Session(SessionId),
    /// Views.
    Views(Vec<View>),
    /// Done.
    Done,
    /// Done, with lines for the person.
    Notes(Vec<String>),
    /// Volumes.
    Volumes(Vec<VolumeInfo>),
    /// State of a volume's bricks.
    Status {
        /// The volume.
        volume: VolumeInfo,
        /// Its bricks in order.
        bricks: Vec<BrickStatus>,
        /// Clients with a live session.
        clients: u32,
    },
    /// A node.
    Node(NodeInfo),
    /// Refused, with what a person is told: the text after `volume COMMAND: NAME: failed: `, or the whole line where
    /// GlusterFS prints no such prefix.
    Refused {
        /// Message.
        message: String,
    },
    /// Counts and latencies of the file operations that the nodes have answered since their bricks were opened.
    Stats(Vec<OpStats>),
    /// All nodes of the cluster; the one that answers comes first, the others in the order they came in.
    Peers(Vec<PeerInfo>),
    /// The cluster on one screen.
    Cluster(Box<ClusterStatus>),
    /// Operations of several steps that are in progress, oldest first.
    Operations(Vec<OperationInfo>),
}

/// Where a node stands on its way into or out of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum PeerState {
    /// It has been told to join and has not confirmed yet.
    Joining,
    /// It belongs to the cluster.
    Joined,
    /// It is being taken out.
    Leaving,
}

/// A node as `peer status` shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PeerInfo {
    /// Identity.
    pub id: NodeId,
    /// The name or address it was probed by; for a node that was never probed, its own host name.
    pub host: String,
    /// Other names it was probed by later.
    pub other_names: Vec<String>,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// Where it stands.
    pub state: PeerState,
    /// Whether it answers the node that was asked.
    pub connected: bool,
    /// Whether it is the node that was asked.
    pub is_self: bool,
}

/// A node's part in the control plane's consensus.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Role {
    /// It leads: decides on views and runs operations.
    Leader,
    /// It votes.
    Voter,
    /// It follows without a vote.
    Learner,
    /// It has no part yet, or none any more.
    Outside,
}

/// A node's line in `mortar cluster status`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeStatus {
    /// Who it is.
    pub peer: PeerInfo,
    /// Its part in the consensus.
    pub role: Role,
    /// What it says of itself; `None`: it does not answer.
    pub told: Option<NodeTold>,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeTold {
    /// Version of its daemon.
    pub version: String,
    /// Process id of its daemon.
    pub pid: u32,
    /// Its clock minus that of the node that was asked, in milliseconds (exact to half the round trip).
    pub clock_ms: i64,
    /// Seconds since its daemon started.
    pub uptime_secs: u64,
    /// Number of the newest command it has applied.
    pub applied: u64,
    /// Open bricks.
    pub bricks: u32,
    /// Bytes its open bricks may hold, and how many of them are free.
    pub space: (u64, u64),
}

/// A set that is not whole.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PartialSet {
    /// Name of its volume.
    pub volume: String,
    /// Its place in the volume.
    pub index: u32,
    /// Whether it serves all the same.
    pub serves: bool,
    /// Its bricks that are not in sync, and why.
    pub missing: Vec<(BrickSpec, String)>,
}

/// An operation of several steps.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct OperationInfo {
    /// Identity of what it works on (volume, node or brick).
    pub id: u128,
    /// What it does, as `volume create`.
    pub what: String,
    /// What to: name of a volume, host of a node, or `HOST:/path` of a brick.
    pub target: String,
    /// When it was recorded, in seconds since 1970 by the clock of the node that led then.
    pub since_secs: i64,
    /// What it waits for, for a person.
    pub waits_for: String,
}

/// The cluster on one screen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// Whether a majority of the voters answers, so that anything can be changed.
    pub has_majority: bool,
    /// All nodes; the one that was asked comes first.
    pub nodes: Vec<NodeStatus>,
    /// Volumes, and how many of them are started.
    pub volumes: (u32, u32),
    /// Sets of started volumes.
    pub sets: u32,
    /// Those that are not whole.
    pub partial_sets: Vec<PartialSet>,
    /// Operations in progress.
    pub operations: Vec<OperationInfo>,
}

/// Options of a volume as set by a person.
pub type Options = BTreeMap<String, String>;
