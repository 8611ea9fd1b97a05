//! What Mortar's executables share: ids, file operations, the wire format, placement, views, errors and the seams
//! (time, randomness, network) behind which the simulation can stand.
//!
//! Nothing here imports another crate of the workspace. Who says what to whom:
//!
//! - a client sends [`fop::Request::Fop`] to the primary of a set and bulk data as [`fop::Request::Stage`] to a node;
//! - bricks of a set exchange [`peer::PeerMessage`]s;
//! - `mortar` (the command) and mounts ask the control plane with [`admin::AdminRequest`];
//! - nodes of a cluster ask each other with [`node::NodeRequest`];
//! - a node is taken into a cluster with [`join::JoinRequest`]s.
//!
//! All of them travel as a [`frame::Frame`]: a postcard-encoded head and raw bytes behind it.

pub mod admin;
pub mod aligned;
pub mod attr;
pub mod busy_poll;
pub mod ending;
pub mod enrol;
pub mod entry;
pub mod env;
pub mod env_real;
pub mod error;
pub mod fop;
pub mod frame;
pub mod ids;
pub mod join;
pub mod limits;
pub mod locks;
pub mod log_gate;
pub mod logfile;
pub mod node;
pub mod options;
pub mod peer;
pub mod placement;
pub mod report;
pub mod transport;
pub mod view;
pub mod watch;
