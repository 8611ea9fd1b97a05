//! One brick: store, namespace, set log and sessions behind one state machine; and [`Core`], the bricks of one thread.

mod api;
mod calls;
mod core;
mod on_store;
mod reads;
mod rules;
mod sessions;
mod state;
mod storage;

pub use self::api::{BrickConfig, CallReply, Completions, Message, Outbox, StageReply};
pub use self::core::Core;
pub use self::rules::{Asked, Executed, ReadAnswer, Rules, StateAt};
pub use self::storage::{Extra, FlushDone, HeldStage, NEWEST, ReadDone, StageDone, Storage};
