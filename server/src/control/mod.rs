//! The control plane: what exists and who is a member, decided by commands to a deterministic state machine.

pub mod admin;
pub mod leader;
pub mod machine;
pub mod store;
pub mod views;
