//! The certificate a command or mount shows to the servers.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// As [`find`], for commands: a daemon on this machine that listens elsewhere than at `addrs` is as good, so that any
/// node's root can ask any node. If it belongs to another cluster, its certificate is refused where it is shown.
///
/// # Errors
/// As [`find`].
pub fn find_for_commands(addrs: &[SocketAddr]) -> Result<Credentials, EnrolError> {
    let error = match find(addrs) {
        Err(error @ EnrolError::NotFound { .. }) => error,
        found => return found,
    };
    let uid = rustix::process::geteuid().as_raw();
    let mut owners = vec![uid];
    if uid != 0 {
        owners.push(0);
    }
    for owner in owners {
        for dir in enrol::link_dirs(owner) {
            for link in sockets(&dir, owner) {
                if let Ok(enrolment) = enrol::fetch(&link, Some(uid)) {
                    return Ok(enrolment.credentials);
                }
            }
        }
    }
    Err(error)
}

/// Links to daemons' sockets in a directory of `owner` that nobody else can write to.
fn sockets(dir: &Path, owner: u32) -> Vec<PathBuf> {
    let private = std::fs::symlink_metadata(dir)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == owner && meta.mode() & 0o022 == 0);
    if !private {
        return Vec::new();
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut links: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    links.sort();
    links
}
