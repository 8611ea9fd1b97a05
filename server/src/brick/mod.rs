//! One brick: store, namespace, set log and sessions behind one state machine; and [`Core`], the bricks of one thread.

mod api;
mod budget;
mod by_namespace;
mod calls;
mod complaints;
mod core;
mod dump;
mod entries;
mod on_store;
mod reads;
mod recover;
mod role;
mod rules;
mod sessions;
mod state;
mod stop;
mod storage;

pub use self::api::{
    BrickConfig, CallReply, Completions, DumpReply, Message, Outbox, SpaceGauge, StageReply,
};
pub use self::budget::{DAEMON_PENDING, OWN_PENDING, PendingBudget};
pub use self::by_namespace::Namespace;
pub use self::core::Core;
pub use self::dump::{Arriving, BrickState, SessionState, StageState, Unanswered};
#[cfg(test)]
pub(crate) use self::recover::lineage;
pub use self::rules::{Asked, Executed, ReadAnswer, Rules, StateAt};
pub use self::storage::{
    AppendError, Extra, FlushDone, HeldStage, NEWEST, ReadDone, StageDone, Storage,
};

#[cfg(test)]
mod tests;
