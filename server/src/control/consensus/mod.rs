//! Consensus under the control plane's state: openraft, with its log and snapshots in the node's data directory and its
//! messages on the node's port.
//!
//! `runtime` gives the library time and tasks from the seam, `log` and `state` keep what it wants kept, `network`
//! carries its messages, `sane` keeps from the library what no node would say, `elections` decides when to stand, `voters`
//! who votes.

mod elections;
mod log;
mod network;
mod node;
mod runtime;
mod sane;
mod state;
pub mod voters;

pub use log::{ControlDisk, Direct};
pub use network::Wire;
pub(in crate::control) use node::NotProposed;
pub use node::{Consensus, Standing};

use bytes::Bytes;
use mortar_protocol::ids::NodeId;

use super::machine::{Command, Outcome};

openraft::declare_raft_types!(
    /// The types of the consensus.
    pub Types:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Bytes,
        AsyncRuntime = runtime::EnvRuntime,
);

type LogId = openraft::LogId<NodeId>;
type StorageError = openraft::StorageError<NodeId>;
type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::EmptyNode>;
type StoredMembership = openraft::StoredMembership<NodeId, openraft::EmptyNode>;
type Vote = openraft::Vote<NodeId>;
