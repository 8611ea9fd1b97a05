//! The daemon: threads, sockets and what lies between them and the bricks.

pub mod api;
pub mod data_dir;
pub mod enrolment;
