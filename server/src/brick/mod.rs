//! One brick: store, namespace, set log and sessions behind one state machine; and [`Core`], the bricks of one thread.

mod api;
mod storage;

pub use self::api::{BrickConfig, CallReply, Completions, Message, Outbox, StageReply};
pub use self::storage::{Extra, FlushDone, HeldStage, NEWEST, ReadDone, StageDone, Storage};

use std::sync::Arc;

use mortar_protocol::attr::Time;
use mortar_protocol::env::Mono;

/// The bricks of one thread.
pub struct Core {
    completions: Arc<Completions>,
    inbox: Vec<Message>,
}

impl Core {
    /// A core without bricks. The driver runs it whenever `completions` wakes it, messages were pushed, or every
    /// 100 ms.
    pub fn new(completions: Arc<Completions>) -> Self {
        Self {
            completions,
            inbox: Vec::new(),
        }
    }

    /// Queues a message for the next run.
    pub fn push(&mut self, message: Message) {
        self.inbox.push(message);
    }

    /// Handles everything that has arrived. `now` and `wall` are the time of this run.
    pub fn run(&mut self, now: Mono, wall: Time, outbox: &mut dyn Outbox) {
        let _ = (now, wall, outbox, &self.completions);
        self.inbox.clear();
    }
}
