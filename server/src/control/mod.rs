//! The control plane: what exists and who is a member, decided by commands to a deterministic state machine on which the
//! nodes agree.

pub mod admin;
pub mod caretaker;
pub mod consensus;
pub mod hosts;
pub mod leader;
pub mod machine;
pub mod nodes;
pub mod operations;
mod patient;
pub mod serve;
pub mod sessions;
pub mod store;
pub mod views;
