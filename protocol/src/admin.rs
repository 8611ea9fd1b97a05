//! Management requests: what `mortar` and mounts ask the control plane. Any node answers them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::entry::Space;
use crate::ids::{BrickId, NodeId, SessionId, SetId};
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
    /// Counts and latencies of the file operations that the node has answered since its bricks were opened.
    Stats(Vec<OpStats>),
}

/// Options of a volume as set by a person.
pub type Options = BTreeMap<String, String>;
