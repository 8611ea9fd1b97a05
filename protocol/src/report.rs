//! What bricks tell the control plane, and what it tells them. Either may be sent again at any time: every message
//! names what it is about, and a stale one changes nothing.

use serde::{Deserialize, Serialize};

use crate::entry::Space;
use crate::ids::{BootId, BrickId, Epoch, NodeId, RunId, SessionId, SetId, SetIndex};
use crate::peer::History;
use crate::placement::Layout;
use crate::view::{SetKind, View};

/// A brick's report to the control plane.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FromBrick {
    /// The set it belongs to.
    pub set: SetId,
    /// The brick.
    pub brick: BrickId,
    /// Its run.
    pub run: RunId,
    /// What it reports.
    pub event: BrickEvent,
}

/// Most runs that a [`MemberRuns`] lists.
pub const MAX_MEMBER_RUNS: usize = 8;

/// The runs that were members, as the brick's superblock names them. Written only by runs that are members.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct MemberRuns {
    /// Runs between which nothing written was lost, oldest first: all under one boot, or ended cleanly.
    pub runs: Vec<RunId>,
    /// Boot of the machine of the last one.
    pub boot: BootId,
    /// Whether the last one stopped cleanly: everything flushed, as a member.
    pub clean: bool,
}

/// What a brick reports.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[allow(clippy::large_enum_variant)] // few, short-lived, mostly the large one
pub enum BrickEvent {
    /// A new run has opened the brick. Repeated until a view arrives.
    Started {
        /// Node that serves it.
        node: NodeId,
        /// Boot of the machine it runs under.
        boot: BootId,
        /// The positions of its log.
        history: History,
        /// The runs that last were members, if one ever was.
        member: Option<MemberRuns>,
        /// Last view its superblock names.
        view: Option<View>,
        /// The log is damaged below its flushed mark: the brick counts as absent.
        damaged: bool,
        /// Its space.
        space: Space,
    },
    /// From a primary: all members have adopted its log and flushed the view's first entry (P3).
    Adopted {
        /// Epoch of the view.
        epoch: Epoch,
    },
    /// From a primary: a joiner has been announced; nothing is acknowledged without it from here on.
    Joining {
        /// Epoch of the primary's view.
        epoch: Epoch,
        /// The brick that joins.
        joiner: BrickId,
        /// Its run.
        run: RunId,
    },
    /// From a primary: the joiner has written and flushed everything. Make it a member.
    Propose {
        /// Epoch of the primary's view: accepted only if it still stands.
        epoch: Epoch,
        /// The brick that joins.
        joiner: BrickId,
        /// Its run.
        run: RunId,
    },
    /// From a primary: this member's log cannot be brought to agree with the set's (it must pull everything).
    CannotFollow {
        /// Epoch of the primary's view.
        epoch: Epoch,
        /// The member.
        member: BrickId,
        /// Its run.
        run: RunId,
    },
    /// A write or flush of the brick failed, or its tree is damaged: it serves no more in this run.
    Poisoned {
        /// Why, for people.
        reason: String,
    },
    /// From a primary: sessions not heard from for the session timeout, in which the set served.
    SilentSessions {
        /// The sessions.
        sessions: Vec<SessionId>,
    },
    /// The brick has flushed everything and marked its superblock clean; it serves no more in this run.
    Stopped,
}

/// What a set's bricks need to know of their volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SetShape {
    /// Place of the set in its volume.
    pub index: SetIndex,
    /// How it keeps data.
    pub kind: SetKind,
    /// Which set owns which slots.
    pub layout: Layout,
    /// Size of a shard, in bytes.
    pub shard_size: u64,
    /// `storage.durability = sync`: every change is answered only once it is flushed.
    pub durable: bool,
    /// `network.session-timeout`, in milliseconds.
    pub session_timeout_ms: u32,
    /// `cluster.open-wait`, in milliseconds.
    pub open_wait_ms: u32,
    /// `features.read-only`: changes get EROFS.
    pub read_only: bool,
    /// `storage.reserve`, in percent of a brick.
    pub reserve_percent: u8,
}

/// An order of the control plane to a brick.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum ToBrick {
    /// The set's view: sent to every configured brick when it is made, when it takes effect, and whenever the brick
    /// reports something that an older view would explain.
    View(View),
    /// What the brick needs to know of its volume; sent before the first view and after each change.
    Shape(SetShape),
    /// The volume's sessions: those below `below` that are not in `live` have ended. Sent before the first view and
    /// after each end of a session.
    Sessions {
        /// Sessions from this number on are newer than this message.
        below: SessionId,
        /// Sessions that are alive.
        live: Vec<SessionId>,
    },
    /// Say [`BrickEvent::Started`] again: the control plane has begun to lead.
    Report,
    /// Flush, mark the superblock clean and serve no more; answered with [`BrickEvent::Stopped`].
    Stop,
}
