//! Management requests: what `mortar` and mounts ask the control plane.

use serde::{Deserialize, Serialize};

use crate::ids::{SessionId, SetId};
use crate::view::{View, VolumeInfo};

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum AdminRequest {
    /// The volume of this name, its views and the addresses of its nodes. Asked by mounts.
    Layout {
        /// Volume name.
        volume: String,
        /// Answer only once the volume's version or a view's epoch is above these (0: at once), or after 10 s.
        newer_than: u64,
    },
    /// A new session of a volume.
    OpenSession {
        /// Volume name.
        volume: String,
    },
    /// The current views of sets.
    Views {
        /// Sets.
        sets: Vec<SetId>,
    },
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
        nodes: Vec<(crate::ids::NodeId, Vec<std::net::SocketAddr>)>,
        /// Version for `newer_than`: rises with every change of volume or views.
        version: u64,
    },
    /// A session number.
    Session(SessionId),
    /// Views.
    Views(Vec<View>),
    /// Refused, with what a person is told (one line) and the exit code of the command.
    Refused {
        /// Message.
        message: String,
    },
}
