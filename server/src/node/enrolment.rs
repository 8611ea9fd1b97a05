//! The socket in the data directory that gives certificates to root and to the daemon's own user.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mortar_protocol::enrol::{self, EnrolReply, Enrolment, SOCKET};
use mortar_protocol::env_real::wall_now;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use super::data_dir::DataDir;

/// The bound socket; it and the link to it are removed when this is dropped.
#[derive(Debug)]
pub struct EnrolSocket {
    path: PathBuf,
    link: Option<PathBuf>,
}

impl EnrolSocket {
    /// Binds the socket and serves it on the current runtime.
    ///
    /// # Errors
    /// If it cannot be bound.
    pub fn start(
        data: &Arc<DataDir>,
        addrs: Vec<SocketAddr>,
        listen: SocketAddr,
    ) -> io::Result<Self> {
        let path = data.path.join(SOCKET);
        // Left by a daemon that was killed: the directory's lock is ours.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind_in(&data.path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let uid = rustix::process::geteuid().as_raw();
        let link = match enrol::publish(&path, listen, uid) {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "commands will not find this daemon by its address; set {}={} for them",
                    enrol::SOCKET_VARIABLE, path.display()
                );
                None
            }
        };
        tokio::spawn(serve(listener, Arc::clone(data), addrs, uid));
        Ok(Self { path, link })
    }
}

impl Drop for EnrolSocket {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            enrol::withdraw(link, &self.path);
        }
        // What is left is replaced by the next daemon.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket in `dir`, whose path may be longer than an address of a socket can be.
fn bind_in(dir: &Path) -> io::Result<UnixListener> {
    let handle = std::fs::File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd()))
}

async fn serve(listener: UnixListener, data: Arc<DataDir>, addrs: Vec<SocketAddr>, uid: u32) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = answer(stream, &data, &addrs, uid).await {
                    tracing::debug!(%error, "a user left before the certificate was given");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the enrolment socket does not accept");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    data: &DataDir,
    addrs: &[SocketAddr],
    daemon: u32,
) -> io::Result<()> {
    let asker = stream.peer_cred()?.uid();
    let reply = if asker == 0 || asker == daemon {
        let credentials = data
            .authority
            .issue_client(asker, wall_now())
            .map_err(io::Error::other)?;
        EnrolReply::Granted(Enrolment {
            cluster: data.cluster,
            node: data.node,
            addrs: addrs.to_vec(),
            credentials,
        })
    } else {
        EnrolReply::Refused { daemon }
    };
    tracing::debug!(
        uid = asker,
        granted = matches!(reply, EnrolReply::Granted(_)),
        "enrolment"
    );
    let mut message = Vec::new();
    enrol::write_reply(&mut message, &reply)?;
    // A few hundred bytes: they fit the socket's buffer, so nobody can hold this loop up.
    let time = std::time::Duration::from_secs(1);
    tokio::time::timeout(time, stream.write_all(&message)).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::transport::Identity;

    #[tokio::test]
    async fn gives_a_certificate_to_the_own_user() {
        let dir = tempfile::tempdir().unwrap();
        // A path longer than sun_path.
        let path = dir.path().join("d".repeat(120));
        let data = Arc::new(DataDir::open(&path).unwrap());
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let socket = EnrolSocket::start(&data, vec![addr], addr).unwrap();
        let (link, own) = (
            socket.link.clone().unwrap(),
            rustix::process::geteuid().as_raw(),
        );
        let got = tokio::task::spawn_blocking(move || enrol::fetch(&link, Some(own)))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((got.cluster, got.node), (data.cluster, data.node));
        assert_eq!(
            got.credentials.identity(),
            Some(Identity::Client { uid: own })
        );
        let link = socket.link.clone().unwrap();
        drop(socket);
        assert!(!link.exists() && !path.join(SOCKET).exists());
    }
}
