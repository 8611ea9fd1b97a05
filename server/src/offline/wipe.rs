//! `brick wipe`: gives back the space of a brick whose volume was deleted.

use std::io;
use std::path::{Path, PathBuf};

use crate::device::{BRICK_FILE, Device, Engine, FileDevice, TargetError};
use crate::superblock::{Stored, SuperblockError};

/// Both superblocks lie here.
const SUPERBLOCKS: usize = 128 << 10;

/// Why a brick is not wiped.
#[derive(Debug, thiserror::Error)]
pub(super) enum WipeError {
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{path}: {error}; nothing was wiped there")]
    NotABrick {
        path: PathBuf,
        error: SuperblockError,
    },
    #[error(
        "{path} belongs to volume {volume}, which was not deleted; --force wipes it all the same"
    )]
    NotDeleted { path: PathBuf, volume: String },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// Wipes the brick at a path, which no daemon may have open. Gives a line for a person.
pub(super) fn wipe(path: &Path, force: bool) -> Result<String, WipeError> {
    let shown = path.display();
    let fail = |error| WipeError::Io {
        path: path.to_owned(),
        error,
    };
    let device = FileDevice::open(path, &Engine::with_threads())?;
    match Stored::load(&device, false) {
        Ok(stored) if !stored.block.deleted && !force => {
            return Err(WipeError::NotDeleted {
                path: path.to_owned(),
                volume: stored.block.volume_name,
            });
        }
        Ok(_) => {}
        // What cannot be read may have been a brick; what never was one is somebody else's.
        Err(error @ SuperblockError::NotABrick) => {
            return Err(WipeError::NotABrick {
                path: path.to_owned(),
                error,
            });
        }
        Err(_) if force => {}
        Err(error) => {
            return Err(WipeError::NotABrick {
                path: path.to_owned(),
                error,
            });
        }
    }
    if path.is_dir() {
        let file = path.join(BRICK_FILE);
        std::fs::remove_file(&file).map_err(fail)?;
        return Ok(format!("{}: removed", file.display()));
    }
    // Superblocks first: what is left by an interruption is no brick.
    device
        .write_at(0, &[0; SUPERBLOCKS])
        .and_then(|()| device.flush())
        .map_err(fail)?;
    // Where the device cannot discard, its space is that of the device anyway.
    device.discard(0, device.len());
    device.flush().map_err(fail)?;
    Ok(format!("{shown}: emptied"))
}
