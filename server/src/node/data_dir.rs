//! The daemon's data directory: mode 0700, one daemon at a time, and who this node is.
//!
//! ```text
//! lock            held while a daemon runs
//! identity        cluster=UUID, node=UUID
//! tls/            the cluster's authority and this node's certificate
//! control.redb    the control plane's state
//! peers           where the other nodes were when this one joined
//! addresses       where this node was reached when it last ran
//! change          the cluster this node has been told to join or to leave; done by the next start
//! mortard.sock    hands certificates to root and to the daemon's user
//! ```

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mortar_protocol::env_real::{random_id, wall_now};
use mortar_protocol::ids::{ClusterId, NodeId};
use mortar_protocol::join::Adoption;
use mortar_protocol::transport::Identity;
use mortar_protocol::transport::tls::{
    Authority, Credentials, TlsError, make_private_dir, write_private,
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::store::FILE;
use crate::device::{LockError, take_lock};

/// Why a data directory cannot be used. Each prints as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another daemon uses it.
    #[error(
        "{path} is used by another mortard{}; stop that one first, or name another --data-dir",
        match .pid { Some(pid) => format!(" (process {pid})"), None => String::new() }
    )]
    Taken {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, if the kernel tells.
        pid: Option<u32>,
    },
    /// It belongs to somebody else, or others may enter it.
    #[error(
        "{path} must belong to uid {uid} and nobody else may enter it: chown {uid} and chmod 700 it"
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// The daemon's uid.
        uid: u32,
    },
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The identity is damaged.
    #[error("{0} does not name a cluster and a node; restore it from a copy")]
    Identity(PathBuf),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// An open data directory. The lock is given back when it is dropped.
#[derive(Debug)]
pub struct DataDir {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The cluster this node belongs to.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// The cluster's certificate authority.
    pub authority: Authority,
    /// This node's certificate.
    pub credentials: Credentials,
    /// It has been told to join this cluster: it does not begin one of its own.
    pub joins: bool,
    /// Where other nodes were when it joined.
    pub first_known: Vec<(NodeId, Vec<SocketAddr>)>,
    lock: Mutex<Option<File>>,
}

impl DataDir {
    /// Opens the directory; makes it and the node's identity if they are not there.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        make_private_dir(path)?;
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |error| DataDirError::File(path, error)
        };
        let path = path.canonicalize().map_err(file_error(path))?;
        let meta = path.metadata().map_err(file_error(&path))?;
        let uid = rustix::process::geteuid().as_raw();
        let open = meta.mode() & 0o077 != 0;
        if meta.uid() != uid || open && !is_empty(&path) {
            return Err(DataDirError::NotPrivate { path, uid });
        }
        if open {
            // Nothing of anybody's is in it yet.
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700))
                .map_err(file_error(&path))?;
            tracing::info!(path = %path.display(), "the data directory was open to others; its mode is 0700 now");
        }
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(file_error(&lock_path))?;
        take_lock(&lock, true).map_err(|error| match error {
            LockError::Taken(pid) => DataDirError::Taken {
                path: path.clone(),
                pid,
            },
            LockError::Io(error) => DataDirError::File(lock_path, error),
        })?;
        make_change(&path)?;
        check_state(&path)?;
        let (cluster, node) = identity(&path.join("identity"))?;
        let first_known = read_record(&path.join(PEERS))?;
        let tls = path.join("tls");
        let in_tls = |error| named(&tls, error);
        let authority = Authority::load_or_create(&tls, cluster).map_err(in_tls)?;
        Authority::from_parts(cluster, &authority.to_parts()).map_err(in_tls)?;
        let credentials = authority
            .node_credentials(&tls, node, wall_now())
            .map_err(in_tls)?;
        check_certificate(&tls.join("node.pem"), &credentials, node)?;
        Ok(Self {
            path,
            cluster,
            node,
            authority,
            credentials,
            joins: first_known.is_some(),
            first_known: first_known.unwrap_or_default(),
            lock: Mutex::new(Some(lock)),
        })
    }
}

/// Name of the file that says where other nodes were.
const PEERS: &str = "peers";
/// Name of the file that says where this node was reached.
const ADDRS: &str = "addresses";
/// Name of the file that says which cluster this node is to belong to.
const CHANGE: &str = "change";

/// What the next start does first.
#[derive(Serialize, Deserialize)]
enum Change {
    /// Joins this cluster.
    Join(Adoption),
    /// Becomes a cluster of its own again.
    Leave,
}

impl DataDir {
    /// Notes durably that this node belongs to another cluster from its next start on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_adoption(&self, adoption: &Adoption) -> Result<(), DataDirError> {
        let change = Change::Join(adoption.clone());
        write_record(&self.path.join(CHANGE), &change)
    }

    /// Notes durably that this node has been taken out of its cluster.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_leave(&self) -> Result<(), DataDirError> {
        write_record(&self.path.join(CHANGE), &Change::Leave)
    }

    /// Where this node was reached when it last ran.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn last_addrs(&self) -> Result<Vec<SocketAddr>, DataDirError> {
        Ok(read_record(&self.path.join(ADDRS))?.unwrap_or_default())
    }

    /// Notes where this node is reached.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_addrs(&self, addrs: &[SocketAddr]) -> Result<(), DataDirError> {
        if self.last_addrs()? == addrs {
            return Ok(());
        }
        write_record(&self.path.join(ADDRS), &addrs)
    }

    /// Gives the lock back: nothing of this daemon uses the directory any more, whoever still holds this.
    pub fn release(&self) {
        *self.lock.lock() = None;
    }

    /// Where the certificates are.
    pub fn tls(&self) -> PathBuf {
        self.path.join("tls")
    }
}

fn write_record<T: Serialize>(path: &Path, record: &T) -> Result<(), DataDirError> {
    let bytes = postcard::to_stdvec(record)
        .map_err(|error| DataDirError::File(path.to_owned(), std::io::Error::other(error)))?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(write_private(path, &text)?)
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DataDirError> {
    let fail = |error| DataDirError::File(path.to_owned(), error);
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let bytes: Option<Vec<u8>> = (0..text.trim_end().len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect();
    let record = bytes.and_then(|bytes| match postcard::take_from_bytes(&bytes) {
        Ok((record, [])) => Some(record),
        // A part of it may well be another record: to leave a cluster takes one byte.
        _ => None,
    });
    let damaged = || fail(std::io::Error::other("it is damaged; remove it"));
    record.map(Some).ok_or_else(damaged)
}

/// Makes the change that was noted, if there is one. A crash in between leaves the note: then all is done again.
fn make_change(dir: &Path) -> Result<(), DataDirError> {
    let note = dir.join(CHANGE);
    let Some(change) = read_record::<Change>(&note)? else {
        return Ok(());
    };
    let (_, node) = identity(&dir.join("identity"))?;
    let (cluster, authority, peers) = match change {
        Change::Join(adoption) => (
            adoption.cluster,
            Authority::from_parts(adoption.cluster, &adoption.authority)
                .map_err(|error| named(&note, error))?,
            Some(adoption.nodes),
        ),
        Change::Leave => {
            let cluster = ClusterId(random_id());
            (cluster, Authority::generate(cluster)?, None)
        }
    };
    authority.install(&dir.join("tls"), &authority.issue_node(node, wall_now())?)?;
    write_identity(&dir.join("identity"), cluster, node)?;
    match peers {
        Some(peers) => write_record(&dir.join(PEERS), &peers)?,
        None => remove(&dir.join(PEERS))?,
    }
    remove(&dir.join(ADDRS))?;
    remove(&dir.join(FILE))?;
    remove(&note)
}

/// A node that has served has a state: without it, it would begin a cluster of one, and vote once more where it has.
fn check_state(dir: &Path) -> Result<(), DataDirError> {
    let file = dir.join(FILE);
    let gone = file.metadata().is_ok_and(|meta| meta.len() == 0) || !file.exists();
    if gone && dir.join(ADDRS).exists() {
        let why = "it is missing or empty, and this node has served before: restore it from a copy, or move the data \
                   directory away to start anew (the bricks keep their contents, 'mortar brick export' reads them)";
        return Err(DataDirError::File(file, std::io::Error::other(why)));
    }
    Ok(())
}

/// An error of certificates that names the file, or where it is.
fn named(path: &Path, error: TlsError) -> DataDirError {
    match error {
        TlsError::Generate(_) | TlsError::Use(_) => TlsError::Content {
            path: path.to_owned(),
            what: error.to_string(),
        },
        named => named,
    }
    .into()
}

/// Whether TLS can be spoken with the certificate, and it is this node's.
fn check_certificate(path: &Path, given: &Credentials, node: NodeId) -> Result<(), DataDirError> {
    let wrong = |what: String| TlsError::Content {
        path: path.to_owned(),
        what,
    };
    if given.identity() != Some(Identity::Node(node)) {
        return Err(wrong(format!("it is not the certificate of node {node}")).into());
    }
    given
        .server_tls(false)
        .map_err(|error| named(path, error))?;
    given.client_tls().map_err(|error| named(path, error))?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), DataDirError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DataDirError::File(path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn write_identity(path: &Path, cluster: ClusterId, node: NodeId) -> Result<(), DataDirError> {
    let text = format!("cluster={cluster}\nnode={node}\n");
    Ok(write_private(path, &text)?)
}

fn identity(path: &Path) -> Result<(ClusterId, NodeId), DataDirError> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => {
            file.take(4096)
                .read_to_string(&mut text)
                .map_err(|error| DataDirError::File(path.to_owned(), error))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (cluster, node) = (ClusterId(random_id()), NodeId(random_id()));
            write_identity(path, cluster, node)?;
            return Ok((cluster, node));
        }
        Err(error) => return Err(DataDirError::File(path.to_owned(), error)),
    }
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let cluster = field("cluster").and_then(|text| text.parse().ok());
    let node = field("node").and_then(|text| text.parse().ok());
    match (cluster, node) {
        (Some(cluster), Some(node)) => Ok((cluster, node)),
        _ => Err(DataDirError::Identity(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_identity_and_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let (cluster, node) = (first.cluster, first.node);
        assert!(matches!(
            DataDir::open(&path),
            Err(DataDirError::Taken { path, pid })
                if path == first.path && pid == Some(std::process::id())
        ));
        let credentials = first.credentials.clone();
        drop(first);
        let again = DataDir::open(&path).unwrap();
        assert_eq!((again.cluster, again.node), (cluster, node));
        assert_eq!(again.credentials, credentials);
    }

    #[test]
    fn closes_an_empty_directory_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        drop(DataDir::open(&path).unwrap());
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn refuses_open_directories_and_damaged_identities() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        drop(DataDir::open(&path).unwrap());
        std::fs::write(path.join("identity"), "cluster=1\n").unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(DataDirError::Identity(_))
        ));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(DataDirError::NotPrivate { .. })
        ));
    }
}
