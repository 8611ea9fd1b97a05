//! Certificates and keys in files.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::TlsError;

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TlsError + '_ {
    move |source| TlsError::File {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, TlsError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(64 << 10).read_to_string(&mut text))
        .map_err(file_error(path))?;
    Ok(text)
}

pub(super) fn read_certificate(path: &Path) -> Result<Vec<u8>, TlsError> {
    CertificateDer::from_pem_slice(read_text(path)?.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|error| TlsError::Content {
            path: path.to_owned(),
            what: error.to_string(),
        })
}

/// Makes a directory that only its owner can enter, with its parents.
///
/// # Errors
/// If it cannot be made.
pub fn make_private_dir(dir: &Path) -> Result<(), TlsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file_error(dir))
}

/// Writes a file of mode 0600 in one step and durably: a crash leaves the old file or the new one.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(file_error(path))
}

pub(super) fn pem_text(label: &str, der: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let word = group.iter().enumerate().fold(0u32, |word, (at, byte)| {
                word | u32::from(*byte) << (16 - 8 * at)
            });
            for at in 0..4 {
                if at <= group.len() {
                    text.push(TABLE[(word >> (18 - 6 * at)) as usize & 63] as char);
                } else {
                    text.push('=');
                }
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Removes a directory and what is in it, if it is there.
pub(super) fn remove_dir(dir: &Path) -> Result<(), TlsError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error(dir)(error)),
        _ => Ok(()),
    }
}

/// Lets two directories of one parent change places (or moves the first to a place where nothing is), durably.
pub(super) fn exchange_dirs(fresh: &Path, dir: &Path) -> Result<(), TlsError> {
    let flags = if dir.exists() {
        RenameFlags::EXCHANGE
    } else {
        RenameFlags::NOREPLACE
    };
    let swap = || -> std::io::Result<()> {
        renameat_with(CWD, fresh, CWD, dir, flags)?;
        match dir.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    swap().map_err(file_error(dir))
}
