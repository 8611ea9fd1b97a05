//! The daemon: threads, sockets and what lies between them and the bricks.
//!
//! The main thread runs the control plane, the HTTP port and the enrolment socket. Each core thread runs its bricks;
//! the first one also the UDP port, so that most requests never change threads.

pub mod api;
pub mod away;
pub mod bricks;
pub mod command;
pub mod core_thread;
pub mod daemon;
pub mod data_dir;
pub mod dump;
pub mod enrolment;
pub mod gate;
pub mod leading;
pub mod log;
pub mod names;
pub mod peers;
pub mod service;
pub mod stores;
