//! What bricks lie on: an image, written once from end to end, with XFS on a loop device.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{check, need, pause, run};

/// A path as text, for a command line.
///
/// # Errors
/// If it is none.
pub fn text(path: &Path) -> Result<&str, String> {
    path.to_str()
        .ok_or_else(|| format!("{} is not text", path.display()))
}

fn is_mounted(dir: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(dir))
}

/// Unmounts, at the latest by taking the mount out of the tree.
pub fn unmount(dir: &Path) {
    let Ok(dir) = text(dir) else { return };
    for tries in 0..=20 {
        if !is_mounted(dir) {
            return;
        }
        let lazy: &[&str] = if tries < 20 { &[] } else { &["-l"] };
        if let Err(why) = run("umount", &[lazy, &[dir]].concat()) {
            eprintln!("{why}");
            pause(Duration::from_millis(100));
        }
    }
}

/// The mounted image; taken down when dropped.
pub struct Backing {
    image: PathBuf,
    scratch: TempDir,
}

impl Backing {
    /// Writes and mounts an image of `mib` MiB in `dir`.
    ///
    /// # Errors
    /// If there is no space, this is not root, or a program is missing.
    pub fn new(dir: &Path, mib: u64) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("loop devices, mounts and dropping caches need root".into());
        }
        need("mkfs.xfs", "xfsprogs")?;
        let scratch = TempDir::with_prefix("mortar-bench-").map_err(|err| err.to_string())?;
        let image = dir.join(format!("mortar-bench-{}.img", std::process::id()));
        let backing = Self { image, scratch };
        let chunk: Vec<u8> = (0..1u32 << 20)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut file = File::create(&backing.image)
            .map_err(|err| format!("{}: {err}", backing.image.display()))?;
        for _ in 0..mib {
            check()?;
            file.write_all(&chunk)
                .map_err(|err| format!("writing the image: {err}"))?;
        }
        drop(file);
        let image = text(&backing.image)?;
        run("mkfs.xfs", &["-q", "-f", "-K", "-i", "size=512", image])?;
        let bricks = backing.bricks();
        std::fs::create_dir(&bricks).map_err(|err| err.to_string())?;
        run("mount", &["-o", "loop,nodiscard", image, text(&bricks)?])?;
        Ok(backing)
    }

    /// Where brick directories go.
    pub fn bricks(&self) -> PathBuf {
        self.scratch.path().join("bricks")
    }

    /// Writes what bricks have left in the page cache (and nothing else: other file systems are not measured).
    ///
    /// # Errors
    /// If the file system fails.
    pub fn sync(&self) -> Result<(), String> {
        File::open(self.bricks())
            .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
            .map_err(|err| format!("sync: {err}"))
    }

    /// Drops the kernel's page cache, names and attributes, also those of the bricks' file system.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn drop_caches(&self) -> Result<(), String> {
        // Pages that are not written yet would stay.
        self.sync()?;
        std::fs::write("/proc/sys/vm/drop_caches", "3").map_err(|err| format!("drop_caches: {err}"))
    }

    /// A directory for everything else.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        unmount(&self.bricks());
        // It may not have been made.
        let _ = std::fs::remove_file(&self.image);
    }
}
