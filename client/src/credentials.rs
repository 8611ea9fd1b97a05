//! The certificate a command or mount shows to the servers.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

pub use mortar_protocol::enrol::EnrolError;
use mortar_protocol::enrol::{self, Enrolment};
pub use mortar_protocol::transport::tls::Credentials;

/// A daemon that has not answered for this long gets another one beside it.
const NEXT_AFTER: Duration = Duration::from_millis(300);

/// This user's certificate for the daemon that listens on one of `addrs`, from that daemon's socket on this machine
/// (or from the socket that `MORTAR_SOCKET` names). Blocks for at most a few seconds; a daemon that hangs does not keep
/// it from the others.
///
/// # Errors
/// If no daemon of this user or of root answers; the error says what to do, in one line.
pub fn find(addrs: &[SocketAddr]) -> Result<Credentials, EnrolError> {
    enrol(addrs).map(|enrolment| enrolment.credentials)
}

/// As [`find`], with what else the daemon tells: its cluster, its node's id and where it listens.
///
/// # Errors
/// As [`find`].
pub fn enrol(addrs: &[SocketAddr]) -> Result<Enrolment, EnrolError> {
    let works = addrs.iter().copied();
    first_of(works.map(|addr| move || enrol::find(&[addr]))).map_err(|errors| worst(addrs, errors))
}

/// The error that says most.
fn worst(addrs: &[SocketAddr], errors: Vec<EnrolError>) -> EnrolError {
    let weight = |error: &EnrolError| match error {
        EnrolError::NotFound { .. } => 0,
        // A link whose daemon is gone says less than a refusal.
        EnrolError::Failed { .. } => 1,
        _ => 2,
    };
    match errors.into_iter().max_by_key(weight) {
        Some(error) if weight(&error) > 0 => error,
        _ => {
            let servers: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
            EnrolError::NotFound {
                server: servers.join(", "),
            }
        }
    }
}

/// What the first of several succeeds with. The next is begun once one has failed or [`NEXT_AFTER`] has passed; those
/// that hang are left behind.
fn first_of<T, E, W>(works: impl Iterator<Item = W>) -> Result<T, Vec<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    W: FnOnce() -> Result<T, E> + Send + 'static,
{
    let mut works = works.peekable();
    let (done, outcomes) = mpsc::channel();
    let (mut running, mut errors) = (0, Vec::new());
    loop {
        if let Some(work) = works.next() {
            let done = done.clone();
            running += 1;
            std::thread::spawn(move || {
                // Fails if another has been first.
                let _ = done.send(work());
            });
        } else if running == 0 {
            return Err(errors);
        }
        let outcome = if works.peek().is_some() {
            outcomes.recv_timeout(NEXT_AFTER).ok()
        } else {
            outcomes.recv().ok()
        };
        match outcome {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => {
                running -= 1;
                errors.push(error);
            }
            None => {}
        }
    }
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
    let mut links = Vec::new();
    for owner in owners {
        for dir in enrol::link_dirs(owner) {
            links.extend(sockets(&dir, owner));
        }
    }
    let works = links.into_iter();
    first_of(works.map(|link| move || enrol::fetch(&link, Some(uid))))
        .map(|enrolment| enrolment.credentials)
        .map_err(|_| error)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    type Work = Box<dyn FnOnce() -> Result<u8, u8> + Send>;

    #[test]
    fn what_hangs_or_fails_does_not_stand_before_what_answers() {
        let (held, waits) = mpsc::channel::<()>();
        let hang: Work = Box::new(move || {
            let _ = waits.recv();
            Err(0)
        });
        let works: Vec<Work> = vec![hang, Box::new(|| Err(1)), Box::new(|| Ok(2))];
        assert_eq!(first_of(works.into_iter()), Ok(2));
        drop(held);
        let works: Vec<Work> = vec![Box::new(|| Err(1)), Box::new(|| Err(2))];
        assert_eq!(first_of(works.into_iter()), Err(vec![1, 2]));
        assert_eq!(first_of(Vec::<Work>::new().into_iter()), Err(Vec::new()));
    }

    #[test]
    fn the_error_that_says_most_is_told() {
        let addrs: Vec<SocketAddr> = ["127.0.0.1:1", "127.0.0.1:2"]
            .map(|addr| addr.parse().unwrap())
            .to_vec();
        let not_found = || EnrolError::NotFound {
            server: String::new(),
        };
        let failed = || EnrolError::Failed {
            path: PathBuf::new(),
            why: "gone".to_owned(),
        };
        let told = worst(&addrs, vec![not_found(), not_found()]).to_string();
        assert!(told.contains("127.0.0.1:1, 127.0.0.1:2"), "{told}");
        let told = worst(&addrs, vec![failed(), not_found()]);
        assert!(matches!(told, EnrolError::Failed { .. }));
        let refused = EnrolError::Refused { daemon: 5 };
        let told = worst(&addrs, vec![not_found(), refused, failed()]);
        assert!(matches!(told, EnrolError::Refused { daemon: 5 }));
    }

    #[test]
    fn only_private_directories_are_searched() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        for name in ["b.sock", "a.sock", "other"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = sockets(dir.path(), uid);
        assert_eq!(
            found,
            ["a.sock", "b.sock"].map(|name| dir.path().join(name))
        );
        assert!(sockets(dir.path(), uid + 1).is_empty());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(sockets(dir.path(), uid).is_empty());
    }
}
