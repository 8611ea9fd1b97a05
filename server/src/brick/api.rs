//! What goes into a [`Core`](super::Core) and comes out of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::Space;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Answer, Call, Stage, StageAnswer};
use mortar_protocol::ids::{BootId, BrickId, NodeId, Pos, RunId, SetId};
use mortar_protocol::peer::PeerFrame;
use mortar_protocol::report::{FromBrick, ToBrick};
use parking_lot::Mutex;

use super::dump::BrickState;
use super::storage::Storage;

/// Takes the answer of a call and the body that goes with it. Dropped if the brick goes away; the client asks again.
pub type CallReply = Box<dyn FnOnce(Answer, Bytes) + Send>;
/// Takes the state of the bricks of a core.
pub type DumpReply = Box<dyn FnOnce(Vec<BrickState>) + Send>;
/// Takes the answer of a stage.
pub type StageReply = Box<dyn FnOnce(StageAnswer) + Send>;

/// What a brick last said of its space: for whoever asks its node, on any thread.
#[derive(Clone, Default, Debug)]
pub struct SpaceGauge(Arc<Mutex<Space>>);

impl SpaceGauge {
    /// The space.
    pub fn get(&self) -> Space {
        *self.0.lock()
    }

    /// Says it.
    pub fn set(&self, space: Space) {
        *self.0.lock() = space;
    }
}

/// A brick that a core is to serve.
pub struct BrickConfig {
    /// The brick.
    pub brick: BrickId,
    /// The set it belongs to.
    pub set: SetId,
    /// Node that serves it.
    pub node: NodeId,
    /// Boot of this machine.
    pub boot: BootId,
    /// This run, newly drawn.
    pub run: RunId,
    /// The brick's open store.
    pub storage: Box<dyn Storage>,
    /// Where it says what space it has.
    pub gauge: SpaceGauge,
}

/// What a core is told.
pub enum Message {
    /// Serve a brick.
    Open(Box<BrickConfig>),
    /// Serve a brick no more and let its store go.
    Close(BrickId),
    /// A client's request.
    Call {
        /// The request.
        call: Box<Call>,
        /// Its bytes.
        body: Bytes,
        /// uid that the client's certificate binds it to (0: none).
        uid: u32,
        /// Takes the answer.
        reply: CallReply,
    },
    /// Bulk data for bricks of this core.
    Stage {
        /// What it is and which bricks keep it.
        stage: Stage,
        /// Its bytes.
        data: Bytes,
        /// uid that the client's certificate binds it to (0: none).
        uid: u32,
        /// Takes the answer.
        reply: StageReply,
    },
    /// A message of a brick outside this core.
    Peer(PeerFrame),
    /// An order of the control plane.
    Order {
        /// The brick.
        brick: BrickId,
        /// The order.
        order: ToBrick,
    },
    /// Say how all bricks stand.
    Dump(DumpReply),
}

/// Where a core's output goes.
pub trait Outbox {
    /// A message to a brick outside this core.
    fn send_peer(&mut self, frame: PeerFrame);
    /// A report to the control plane.
    fn report(&mut self, report: FromBrick);
}

/// What a disk has done, for a brick.
pub(super) enum Completion {
    /// A flush.
    Flushed {
        /// Number the set log gave it.
        round: u64,
        /// Newest entry it covers.
        result: io::Result<Pos>,
    },
    /// A read for a waiting call, by the call's ticket.
    Read {
        /// The call.
        ticket: u64,
        /// Its bytes.
        result: Result<Bytes, Fault>,
    },
    /// A stage is held.
    Staged {
        /// Place in the core's list of stages that wait; none for one fetched from a peer.
        ticket: Option<(u64, usize)>,
        /// Whether it is.
        result: io::Result<()>,
    },
    /// Other bricks of the daemon have given back what this one waits for.
    Room,
}

/// Where disk completions wait for the core to run. Shared with the store's completion callbacks, which may come from
/// any thread.
pub struct Completions {
    queue: Mutex<VecDeque<(BrickId, Completion)>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Completions {
    /// `wake` is called whenever something has arrived; the core is then to be run soon.
    pub fn new(wake: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(VecDeque::new()),
            wake,
        })
    }

    /// Whether something waits.
    pub fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    pub(super) fn push(&self, brick: BrickId, completion: Completion) {
        self.queue.lock().push_back((brick, completion));
        (self.wake)();
    }

    pub(super) fn pop(&self) -> Option<(BrickId, Completion)> {
        self.queue.lock().pop_front()
    }
}
