//! How a user on a node gets a certificate: from the daemon's socket, which hands one to root and to the daemon's own
//! user (the kernel says who asks).
//!
//! The socket lies in the daemon's data directory (`mortard.sock`). A link to it, named after the address the daemon
//! listens on (`127.0.0.1:24007.sock`), lies where a client of the same user can find it and nobody else can put one:
//!
//! - daemon of root: `/run/mortar`, else `/tmp/mortar-0`;
//! - daemon of another user: `$XDG_RUNTIME_DIR/mortar`, else `/tmp/mortar-<uid>`.
//!
//! A directory counts only if its owner is that user and nobody else can write to it. The client also checks that the
//! process behind the socket belongs to root or to its own user.
//!
//! The daemon sends one message when a client connects, then closes:
//! `| version u16 LE | length u32 LE | postcard of an EnrolReply |`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, NodeId};
use crate::transport::tls::Credentials;

/// Name of the socket in the data directory.
pub const SOCKET: &str = "mortard.sock";
/// Variable that names a socket outright.
pub const SOCKET_VARIABLE: &str = "MORTAR_SOCKET";
const VERSION: u16 = 1;
const MAX_REPLY: u32 = 64 << 10;
const ANSWER_TIME: Duration = Duration::from_secs(4);

/// What a daemon gives to a user it trusts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Enrolment {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeId,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// The certificate, for the uid that asked.
    pub credentials: Credentials,
}

/// The daemon's message.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum EnrolReply {
    /// Here it is.
    Granted(Enrolment),
    /// Not to this user.
    Refused {
        /// uid of the daemon.
        daemon: u32,
    },
}

/// Why no certificate could be had. Each prints as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No socket was found.
    #[error(
        "no certificate for {server}: found no mortard of this user or of root on this machine that listens there; \
         run this on the node itself, as root or as the user mortard runs as (or set {SOCKET_VARIABLE} to DATA-DIR/{SOCKET})"
    )]
    NotFound {
        /// The server asked for.
        server: String,
    },
    /// The daemon does not give one to this user.
    #[error(
        "no certificate: mortard runs as uid {daemon} and gives one only to that user and to root"
    )]
    Refused {
        /// uid of the daemon.
        daemon: u32,
    },
    /// The socket may not be used by this user.
    #[error(
        "no certificate: {0} may not be used by this user; run as root or as the user mortard runs as"
    )]
    Denied(PathBuf),
    /// The process behind the socket is not to be trusted.
    #[error(
        "no certificate: {path} belongs to a process of uid {uid}, which is neither root nor this user"
    )]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// Who listens on it.
        uid: u32,
    },
    /// The daemon did not answer as it should.
    #[error("no certificate from {path}: {why}")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

/// Name of the link to the socket of a daemon that listens on `addr`.
pub fn link_name(addr: SocketAddr) -> String {
    format!("{addr}.sock")
}

/// Directories in which a daemon of `uid` may put its link, best first.
pub fn link_dirs(uid: u32) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if uid == 0 {
        dirs.push(PathBuf::from("/run/mortar"));
    } else if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        dirs.push(PathBuf::from(dir).join("mortar"));
    }
    dirs.push(PathBuf::from(format!("/tmp/mortar-{uid}")));
    dirs
}

/// Whether `dir` is a directory of `uid` that nobody else can write to.
fn is_private(dir: &Path, uid: u32) -> bool {
    std::fs::symlink_metadata(dir)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == uid && meta.mode() & 0o022 == 0)
}

/// Makes the link to `socket` for a daemon that runs as `uid` and listens on `addr`; gives its path.
///
/// # Errors
/// If no directory is fit for it: the socket can then be named with [`SOCKET_VARIABLE`].
pub fn publish(socket: &Path, addr: SocketAddr, uid: u32) -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for dir in link_dirs(uid) {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => last = error,
            _ if is_private(&dir, uid) => {
                let link = dir.join(link_name(addr));
                let fresh = dir.join(format!("{}.{}", link_name(addr), std::process::id()));
                let linked = std::os::unix::fs::symlink(socket, &fresh)
                    .and_then(|()| std::fs::rename(&fresh, &link));
                match linked {
                    Ok(()) => return Ok(link),
                    Err(error) => last = error,
                }
            }
            _ => {
                last = io::Error::other(format!("{} does not belong to uid {uid}", dir.display()));
            }
        }
    }
    Err(last)
}

/// Removes a link made by [`publish`] if it still leads to `socket`.
pub fn withdraw(link: &Path, socket: &Path) {
    if std::fs::read_link(link).is_ok_and(|target| target == socket) {
        // A left-over link does no harm: connecting fails, and the next daemon replaces it.
        let _ = std::fs::remove_file(link);
    }
}

/// Whether an address belongs to this machine.
pub fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

fn links_for(addrs: &[SocketAddr], uid: u32) -> Vec<PathBuf> {
    let mut owners = vec![uid];
    if uid != 0 {
        owners.push(0);
    }
    let mut links = Vec::new();
    for addr in addrs {
        let mut names = vec![link_name(*addr)];
        if is_local(addr.ip()) {
            let port = addr.port();
            names.push(format!("0.0.0.0:{port}.sock"));
            names.push(format!("[::]:{port}.sock"));
        }
        for owner in &owners {
            for dir in link_dirs(*owner) {
                if is_private(&dir, *owner) {
                    links.extend(names.iter().map(|name| dir.join(name)));
                }
            }
        }
    }
    links
}

/// Gets a certificate from the daemon on this machine that listens on one of `addrs`.
///
/// # Errors
/// One line for a person, see [`EnrolError`].
pub fn find(addrs: &[SocketAddr]) -> Result<Enrolment, EnrolError> {
    if let Some(path) = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()) {
        return fetch(Path::new(&path), None);
    }
    let uid = rustix::process::geteuid().as_raw();
    let mut worst = None;
    for link in links_for(addrs, uid) {
        if link.symlink_metadata().is_err() {
            continue;
        }
        match fetch(&link, Some(uid)) {
            Ok(enrolment) => return Ok(enrolment),
            // A link whose daemon is gone says less than a refusal.
            Err(error @ EnrolError::Failed { .. }) => worst = worst.or(Some(error)),
            Err(error) => worst = Some(error),
        }
    }
    let servers: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
    Err(worst.unwrap_or(EnrolError::NotFound {
        server: servers.join(", "),
    }))
}

/// Gets a certificate from one socket. With `trusted`, the process behind it must be root's or that user's.
///
/// # Errors
/// See [`EnrolError`].
pub fn fetch(path: &Path, trusted: Option<u32>) -> Result<Enrolment, EnrolError> {
    let failed = |why: String| EnrolError::Failed {
        path: path.to_owned(),
        why,
    };
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => EnrolError::Denied(path.to_owned()),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            failed("mortard is not running".to_owned())
        }
        _ => failed(error.to_string()),
    })?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)
        .map_err(|error| failed(error.to_string()))?;
    let owner = peer.uid.as_raw();
    if trusted.is_some_and(|uid| owner != 0 && owner != uid) {
        return Err(EnrolError::Foreign {
            path: path.to_owned(),
            uid: owner,
        });
    }
    stream
        .set_read_timeout(Some(ANSWER_TIME))
        .map_err(|error| failed(error.to_string()))?;
    match read_reply(&mut stream).map_err(|error| failed(error.to_string()))? {
        EnrolReply::Granted(enrolment) => Ok(enrolment),
        EnrolReply::Refused { daemon } => Err(EnrolError::Refused { daemon }),
    }
}

fn read_reply(stream: &mut impl Read) -> io::Result<EnrolReply> {
    let mut prefix = [0; 6];
    stream.read_exact(&mut prefix)?;
    let version = u16::from_le_bytes([prefix[0], prefix[1]]);
    if version != VERSION {
        return Err(io::Error::other(format!(
            "it speaks version {version} of the enrolment, this program version {VERSION}"
        )));
    }
    let length = u32::from_le_bytes([prefix[2], prefix[3], prefix[4], prefix[5]]);
    if length > MAX_REPLY {
        return Err(io::Error::other("the answer is too long"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Sends the daemon's message.
///
/// # Errors
/// If the client is gone.
pub fn write_reply(stream: &mut impl Write, reply: &EnrolReply) -> io::Result<()> {
    let bytes = postcard::to_stdvec(reply).map_err(io::Error::other)?;
    let mut message = VERSION.to_le_bytes().to_vec();
    message.extend((bytes.len() as u32).to_le_bytes());
    message.extend(bytes);
    stream.write_all(&message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    fn enrolment() -> Enrolment {
        Enrolment {
            cluster: ClusterId(1),
            node: NodeId(2),
            addrs: vec![SocketAddr::from(([127, 0, 0, 1], 24007))],
            credentials: Credentials {
                authority: vec![1],
                certificate: vec![2],
                key: vec![3],
            },
        }
    }

    fn serve_once(path: &Path, message: Vec<u8>) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&message).unwrap();
        })
    }

    #[test]
    fn replies_travel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let mut message = Vec::new();
        write_reply(&mut message, &EnrolReply::Granted(enrolment())).unwrap();
        let server = serve_once(&path, message);
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(fetch(&path, Some(uid)).unwrap(), enrolment());
        server.join().unwrap();
    }

    #[test]
    fn nonsense_is_an_error() {
        for (name, message) in [
            ("a", vec![9, 9, 9, 9, 9, 9, 9]),
            ("b", vec![1, 0, 255, 255, 255, 255]),
            ("c", vec![1, 0, 4, 0, 0, 0, 9, 9, 9, 9]),
            ("d", vec![]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            let server = serve_once(&path, message);
            assert!(matches!(fetch(&path, None), Err(EnrolError::Failed { .. })));
            server.join().unwrap();
        }
        let gone = fetch(Path::new("/nonexistent/mortard.sock"), None);
        assert!(matches!(gone, Err(EnrolError::Failed { .. })));
    }

    #[test]
    fn only_private_directories_count() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert!(is_private(dir.path(), uid));
        assert!(!is_private(dir.path(), uid + 1));
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(!is_private(dir.path(), uid));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(!is_private(&link, uid), "a link is not a directory");
    }
}
