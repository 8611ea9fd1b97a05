//! The shared secret: a file that a person copies from one node to the others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::env_real::{fill_random, random};

/// Where the secret is unless a person says otherwise.
pub const SECRET_FILE: &str = "/etc/mortar/secret";
/// Fewest bytes of a secret, without white space at its end.
const MIN_SECRET: usize = 16;
/// Longest file that is read.
const MAX_SECRET: u64 = 4_096;

/// Why the secret cannot be used. Each prints as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read or made.
    #[error(
        "secret file {path}: {source}; make it usable for uid {uid}, or name another --secret-file"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The daemon's uid.
        uid: u32,
        /// What happened.
        source: io::Error,
    },
    /// It belongs to somebody else.
    #[error(
        "secret file {path} belongs to uid {owner}: chown it to uid {uid}, which mortard runs as"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whom it belongs to.
        owner: u32,
        /// The daemon's uid.
        uid: u32,
    },
    /// Others may read or change it.
    #[error(
        "secret file {path} has mode {mode:04o}, so others can read or change it: chmod 600 it, and put a new secret on \
         all nodes if somebody may have seen it"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Too little to be a secret.
    #[error(
        "secret file {path} holds {bytes} characters, {MIN_SECRET} is the least: copy the file of another node of the \
         cluster, or remove it, and mortard makes a new one at its next start"
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// How many it holds.
        bytes: usize,
    },
    /// Too much.
    #[error("secret file {path} holds more than {MAX_SECRET} bytes: is it the right file?")]
    Long {
        /// The file.
        path: PathBuf,
    },
}

/// What is derived from a secret, to prove with.
#[derive(Clone)]
pub struct Secret(pub(super) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// From what a file holds, without white space at its end.
    pub(super) fn of(text: &[u8]) -> Self {
        Self(blake3::derive_key("mortar 2026 join secret", text))
    }
}

/// A secret file. It is read again at each use, so that a replaced one counts without a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretFile(PathBuf);

impl SecretFile {
    /// The file of this name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn failed(&self, source: io::Error) -> SecretError {
        SecretError::File {
            path: self.0.clone(),
            uid: rustix::process::geteuid().as_raw(),
            source,
        }
    }

    /// Makes the file with a random secret if it is not there (whether it did), and checks that it can be used.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn ensure(&self) -> Result<bool, SecretError> {
        let made = match std::fs::symlink_metadata(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make().map_err(|error| self.failed(error))?
            }
            _ => false,
        };
        self.load()?;
        Ok(made)
    }

    fn make(&self) -> io::Result<bool> {
        let dir = match self.0.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let mut secret = [0; 32];
        fill_random(&mut secret);
        let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let fresh = dir.join(format!(".mortar-secret-{:016x}", random()));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&fresh)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            // Whole or not at all, and never in the place of one that somebody put there meanwhile.
            match std::fs::hard_link(&fresh, &self.0) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        };
        let made = write();
        let _ = std::fs::remove_file(&fresh);
        let made = made?;
        File::open(dir)?.sync_all()?;
        Ok(made)
    }

    /// Reads the secret.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn load(&self) -> Result<Secret, SecretError> {
        let path = self.0.clone();
        let file = File::options()
            .read(true)
            // A pipe in its place must not hold the daemon up.
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| self.failed(error))?;
        let meta = file.metadata().map_err(|error| self.failed(error))?;
        if !meta.is_file() {
            return Err(self.failed(io::Error::other("it is not a file")));
        }
        let uid = rustix::process::geteuid().as_raw();
        if meta.uid() != uid && meta.uid() != 0 {
            let owner = meta.uid();
            return Err(SecretError::Foreign { path, owner, uid });
        }
        if meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o7777;
            return Err(SecretError::Open { path, mode });
        }
        let mut text = Vec::new();
        file.take(MAX_SECRET + 1)
            .read_to_end(&mut text)
            .map_err(|error| self.failed(error))?;
        if text.len() as u64 > MAX_SECRET {
            return Err(SecretError::Long { path });
        }
        let text = text.trim_ascii_end();
        if text.len() < MIN_SECRET {
            let bytes = text.len();
            return Err(SecretError::Short { path, bytes });
        }
        Ok(Secret::of(text))
    }
}
