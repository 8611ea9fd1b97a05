//! The backing both sides share: an image, written once from end to end, with XFS on a loop device.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Runs a program; its error output is the error.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|err| format!("{program}: {err}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        ))
    }
}

/// The mounted image; taken down when dropped.
pub(crate) struct Backing {
    image: PathBuf,
    scratch: TempDir,
}

impl Backing {
    /// Writes and mounts an image of `mib` MiB in `dir`.
    pub(crate) fn new(dir: &Path, mib: u64) -> Result<Self, String> {
        let scratch = TempDir::with_prefix("mortar-bench-").map_err(|err| err.to_string())?;
        let image = dir.join(format!("mortar-bench-{}.img", std::process::id()));
        let backing = Self { image, scratch };
        let chunk: Vec<u8> = (0..1u32 << 20)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut file = File::create(&backing.image).map_err(|err| err.to_string())?;
        for _ in 0..mib {
            file.write_all(&chunk)
                .map_err(|err| format!("writing the image: {err}"))?;
        }
        drop(file);
        let image = backing.image.to_str().ok_or("path is not text")?;
        run("mkfs.xfs", &["-q", "-f", "-K", "-i", "size=512", image])?;
        std::fs::create_dir(backing.bricks()).map_err(|err| err.to_string())?;
        let bricks = backing.bricks();
        run(
            "mount",
            &[
                "-o",
                "loop,nodiscard",
                image,
                bricks.to_str().ok_or("path is not text")?,
            ],
        )?;
        Ok(backing)
    }

    /// Where brick directories go.
    pub(crate) fn bricks(&self) -> PathBuf {
        self.scratch.path().join("bricks")
    }

    /// A directory for everything else.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(self.bricks())
            .stderr(Stdio::null())
            .status();
        let _ = std::fs::remove_file(&self.image);
    }
}
