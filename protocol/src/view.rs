//! Views: who is a member of a set and who is its primary, decided only by the control plane; and volumes as clients
//! see them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BrickId, Epoch, NodeId, Opening, RunId, SetId, SetIndex, VolumeId};
use crate::placement::Layout;

/// An in-sync member of a view.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Member {
    /// The brick.
    pub brick: BrickId,
    /// The node that serves it.
    pub node: NodeId,
    /// The run of the brick that is the member; a later run must join again (P8).
    pub run: RunId,
    /// Whether it keeps file data (an arbiter does not).
    pub keeps_data: bool,
}

/// A view of a set.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct View {
    /// The set.
    pub set: SetId,
    /// Its number; rises with every view of the set.
    pub epoch: Epoch,
    /// The primary, one of the members.
    pub primary: BrickId,
    /// The in-sync members.
    pub members: Vec<Member>,
    /// Configured bricks that are not in sync at the moment.
    pub absent: Vec<BrickId>,
    /// Opening number of the set.
    pub opening: Opening,
    /// Whether the control plane has committed the primary's report that all members adopted its log (P3).
    pub effective: bool,
}

impl View {
    /// The member entry of `brick`, if it is one.
    pub fn member(&self, brick: BrickId) -> Option<&Member> {
        self.members.iter().find(|member| member.brick == brick)
    }

    /// The primary's entry.
    pub fn primary_member(&self) -> Option<&Member> {
        self.member(self.primary)
    }
}

/// How a volume's sets keep data.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum SetKind {
    /// One brick.
    Plain,
    /// Every brick has the whole.
    Replicate {
        /// Number of bricks.
        copies: u16,
    },
    /// Systematic Reed-Solomon over data + redundancy bricks.
    Disperse {
        /// Data fragments (k).
        data: u16,
        /// Redundancy fragments (m).
        redundancy: u16,
    },
}

impl SetKind {
    /// Bricks of one set.
    pub fn width(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Replicate { copies } => usize::from(copies),
            Self::Disperse { data, redundancy } => usize::from(data) + usize::from(redundancy),
        }
    }
}

/// Where a volume stands in its life.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum VolumeState {
    /// Created, never started.
    Created,
    /// Serving.
    Started,
    /// Stopped by a person.
    Stopped,
}

/// A brick as the control plane knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct BrickInfo {
    /// Identity.
    pub id: BrickId,
    /// Node that serves it.
    pub node: NodeId,
    /// Host as typed at creation.
    pub host: String,
    /// Path as typed at creation (a directory, a file or a block device).
    pub path: String,
}

/// A volume as clients see it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct VolumeInfo {
    /// Identity; a new volume of the same name has another one.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// Kind of all its sets.
    pub kind: SetKind,
    /// State.
    pub state: VolumeState,
    /// Which set owns which slots.
    pub layout: Layout,
    /// Bricks of each set, in order; the place in this list is the [`SetIndex`].
    pub sets: Vec<Vec<BrickInfo>>,
    /// Options set by a person (defaults are not listed).
    pub options: BTreeMap<String, String>,
    /// Size of a shard in bytes.
    pub shard_size: u64,
    /// Rises with every change of this record.
    pub version: u64,
}

impl VolumeInfo {
    /// Identity of one of its sets.
    pub fn set_id(&self, index: SetIndex) -> SetId {
        SetId {
            volume: self.id,
            index,
        }
    }
}
