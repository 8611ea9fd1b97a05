//! Bricks on directories, files and block devices of this machine.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mortar_protocol::ids::{BrickId, ClusterId, NodeId, SetIndex};
use mortar_protocol::node::BrickTask;
use mortar_protocol::view::{BrickInfo, VolumeInfo};

use super::bricks::{OpenFailure, Stores};
use crate::brick::Storage;
use crate::device::{BRICK_FILE, CreateOptions, Device, Engine, FileDevice, TargetError};
use crate::store::{FormatParams, Store};
use crate::superblock::{MIN_SIZE, Stored, SuperblockError};

/// What of a file system's free space its bricks may plan with when no size is named, in percent.
const USABLE: u64 = 95;

/// Bricks on this machine.
pub struct FileStores {
    engine: Arc<Engine>,
    cluster: ClusterId,
    node: NodeId,
}

impl FileStores {
    /// For a node of a cluster.
    pub fn new(cluster: ClusterId, node: NodeId) -> Arc<Self> {
        Arc::new(Self {
            engine: Engine::new(),
            cluster,
            node,
        })
    }

    /// The brick at a path, for this process alone.
    fn take(&self, path: &Path) -> Result<FileDevice, OpenFailure> {
        FileDevice::open(path, &self.engine).map_err(|error| OpenFailure {
            busy: matches!(error, TargetError::InUse { pid, .. } if pid.is_none_or(|pid| pid == std::process::id())),
            message: match error {
                TargetError::Missing(_) => format!("{error} (is its file system mounted?)"),
                _ => error.to_string(),
            },
        })
    }

    /// A brick, for this process alone, and what its superblock says: where it was formatted or, if that is a block
    /// device, under whatever name it has now. What is found under the old name may be another brick.
    fn take_brick(&self, brick: &BrickInfo) -> Result<(FileDevice, Stored), OpenFailure> {
        let path = Path::new(&brick.path);
        let there = self.take_at(path);
        if matches!(&there, Ok((_, stored)) if stored.block.brick == brick.id) || !may_move(path) {
            return there;
        }
        match moved_to(brick.id, path) {
            Some(now) => {
                // What has taken its place is some other brick's.
                drop(there);
                let taken = self.take_at(&now)?;
                let (was, now) = (path.display(), now.display());
                tracing::info!(brick = %brick.id, "found on {now}, no longer on {was}");
                Ok(taken)
            }
            None => there,
        }
    }

    fn take_at(&self, path: &Path) -> Result<(FileDevice, Stored), OpenFailure> {
        let device = self.take(path)?;
        let stored = Stored::load(&device, true);
        let stored = stored.map_err(|error| failure(path, &error.to_string()))?;
        Ok((device, stored))
    }

    /// The superblock of what lies at a path, if it can be opened alone.
    fn look(&self, path: &Path) -> Option<(FileDevice, Result<Stored, SuperblockError>)> {
        let device = FileDevice::open(path, &self.engine).ok()?;
        let stored = Stored::load(&device, false);
        Some((device, stored))
    }
}

/// The first directory or file on the way up from `path` that exists, and its file system.
fn existing(path: &Path) -> Option<(PathBuf, u64)> {
    path.ancestors().find_map(|place| {
        let meta = std::fs::metadata(place).ok()?;
        Some((place.to_owned(), meta.dev()))
    })
}

/// Size of a file brick for which a person named none: bricks of one volume on one file system share what is free.
fn fair_size(brick: &BrickTask, node: NodeId) -> Option<u64> {
    let path = Path::new(&brick.brick.path);
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_dir()) {
        return None;
    }
    let (place, device) = existing(path)?;
    let space = rustix::fs::statvfs(&place).ok()?;
    let here = brick
        .volume
        .sets
        .iter()
        .flatten()
        .filter(|other| other.node == node);
    let sharing = here
        .filter(|other| existing(Path::new(&other.path)).is_some_and(|(_, dev)| dev == device))
        .count() as u64;
    let free = space.f_bavail.checked_mul(space.f_frsize)?;
    Some(free / 100 * USABLE / sharing.max(1))
}

/// Whether a path, or where it would be made, lies on the root file system. Block devices do not.
fn in_root_partition(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(root) = std::fs::metadata("/") else {
        return false;
    };
    for place in path.ancestors() {
        if let Ok(meta) = std::fs::metadata(place) {
            return !meta.file_type().is_block_device() && meta.dev() == root.dev();
        }
    }
    true
}

impl Stores for FileStores {
    fn check(&self, brick: &BrickTask) -> Result<(), String> {
        let BrickInfo { host, path, .. } = &brick.brick;
        if !brick.force && in_root_partition(Path::new(path)) {
            return Err(format!(
                "The brick {host}:{path} is being created in the root partition. It is recommended that you don't use \
                 the system's root partition for storage backend. Or use 'force' at the end of the command if you want \
                 to override this behavior."
            ));
        }
        Ok(())
    }

    fn format(&self, brick: &BrickTask) -> Result<(), String> {
        let path = Path::new(&brick.brick.path);
        let options = CreateOptions {
            size: brick.size.or_else(|| fair_size(brick, self.node)),
            least: MIN_SIZE,
            force: brick.force,
        };
        let device =
            FileDevice::create(path, &options, &self.engine).map_err(|error| error.to_string())?;
        let device: Arc<dyn Device> = Arc::new(device);
        let params = FormatParams {
            cluster: self.cluster,
            generation: 0,
            node: self.node,
            brick: brick.brick.id,
            set: brick.volume.set_id(brick.set),
            volume_name: brick.volume.name.clone(),
            kind: brick.volume.kind,
            shard_size: brick.volume.shard_size,
            force: brick.force,
        };
        Store::format(&device, &params).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn unformat(&self, brick: &BrickInfo) {
        let path = Path::new(&brick.path);
        let Some((device, stored)) = self.look(path) else {
            return;
        };
        let interrupted = match stored {
            Ok(stored) if stored.block.brick == brick.id => false,
            Err(SuperblockError::NotABrick) => true,
            // Somebody else's.
            _ => return,
        };
        if path.is_dir() {
            drop(device);
            let file = path.join(BRICK_FILE);
            match std::fs::remove_file(&file) {
                Ok(()) => tracing::info!(path = %file.display(), "removed what was formatted"),
                Err(error) => tracing::warn!(path = %file.display(), %error, "stays"),
            }
        } else if !interrupted {
            // The superblocks' places: what is left is no brick.
            let wiped = device
                .write_at(0, &[0; 128 << 10])
                .and_then(|()| device.flush());
            if let Err(error) = wiped {
                tracing::warn!(path = %path.display(), %error, "stays formatted");
            }
        }
    }

    fn mark_deleted(&self, brick: &BrickInfo) -> Result<(), OpenFailure> {
        let path = Path::new(&brick.path);
        let fail = |error: SuperblockError| failure(path, &error.to_string());
        let (device, mut stored) = self.take_brick(brick)?;
        if stored.block.brick != brick.id {
            return Err(failure(path, "holds another brick"));
        }
        let marked = stored.update(&device, |block| block.deleted = true);
        marked.map_err(fail)
    }

    fn open(
        &self,
        volume: &VolumeInfo,
        set: SetIndex,
        brick: &BrickInfo,
    ) -> Result<Box<dyn Storage>, OpenFailure> {
        let path = Path::new(&brick.path);
        let fail = |why: String| failure(path, &why);
        // Looked at before anything is written there: it may be another's.
        let (device, mut stored) = self.take_brick(brick)?;
        let found = stored.block.clone();
        if found.brick != brick.id || found.volume != volume.id || found.set != set {
            return Err(fail(format!(
                "holds brick {} of volume '{}', not brick {} of '{}'",
                found.brick, found.volume_name, brick.id, volume.name
            )));
        }
        if found.cluster != self.cluster {
            return Err(fail(format!("belongs to cluster {}", found.cluster)));
        }
        if found.deleted {
            let name = found.volume_name;
            return Err(fail(format!("volume '{name}' of this brick was deleted")));
        }
        if found.shard_size != volume.shard_size {
            // Chosen after the brick was formatted, before the first start: who reads the brick without a daemon has
            // to know it.
            let noted = stored.update(&device, |block| block.shard_size = volume.shard_size);
            noted.map_err(|error| fail(error.to_string()))?;
        }
        let store = Store::open(Arc::new(device)).map_err(|error| fail(error.to_string()))?;
        Ok(Box::new(store))
    }
}

/// Whether a brick may lie on a block device, whose name can change from one boot to the next.
fn may_move(path: &Path) -> bool {
    let meta = std::fs::metadata(path);
    path.starts_with("/dev") || meta.is_ok_and(|meta| meta.file_type().is_block_device())
}

/// The block device, other than `path`, that holds a brick.
fn moved_to(brick: BrickId, path: &Path) -> Option<PathBuf> {
    let devices = std::fs::read_dir("/sys/class/block").ok()?;
    let mut names: Vec<_> = devices.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let place = |name: std::ffi::OsString| {
        // The kernel writes a slash within a name as "!".
        let name = name.to_str()?.replace('!', "/");
        Some(Path::new("/dev").join(name))
    };
    names
        .into_iter()
        .filter_map(place)
        .find(|place| place != path && brick_on(place) == Some(brick))
}

/// The brick that a block device holds, if there is one; also if it is open.
fn brick_on(place: &Path) -> Option<BrickId> {
    use std::os::unix::fs::FileExt;
    let mut file = std::fs::File::open(place).ok()?;
    // An empty drive or an unused loop device.
    let len = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).ok()?;
    let read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    Stored::brick_on(len, &read).filter(|_| len >= MIN_SIZE)
}

fn failure(path: &Path, why: &str) -> OpenFailure {
    OpenFailure {
        busy: false,
        message: format!("{}: {why}", path.display()),
    }
}

#[cfg(test)]
mod tests;
