//! The certificate a command or mount shows to the servers.

use std::net::SocketAddr;

pub use mortar_protocol::enrol::EnrolError;
use mortar_protocol::enrol::{self, Enrolment};
pub use mortar_protocol::transport::tls::Credentials;

/// This user's certificate for the daemon that listens on one of `addrs`, from that daemon's socket on this machine
/// (or from the socket that `MORTAR_SOCKET` names). Blocks for at most a few seconds.
///
/// # Errors
/// If no daemon of this user or of root answers; the error says what to do, in one line.
pub fn find(addrs: &[SocketAddr]) -> Result<Credentials, EnrolError> {
    enrol::find(addrs).map(|enrolment| enrolment.credentials)
}

/// As [`find`], with what else the daemon tells: its cluster, its node's id and where it listens.
///
/// # Errors
/// As [`find`].
pub fn enrol(addrs: &[SocketAddr]) -> Result<Enrolment, EnrolError> {
    enrol::find(addrs)
}
