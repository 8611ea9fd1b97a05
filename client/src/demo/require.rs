//! What the demo needs, checked first, each with its remedy.

use std::path::Path;

/// Space that three bricks with the copied tree take, in bytes.
const SPACE: u64 = 1 << 30;

/// Checks /dev/fuse, fusermount3, space and the daemon's executable.
///
/// # Errors
/// What is missing and what to do about it.
pub(crate) fn check(mortard: &Path, dir: Option<&Path>) -> Result<(), String> {
    if !mortard.exists() {
        return Err(format!(
            "{} is missing: build both executables with `cargo build --release`",
            mortard.display()
        ));
    }
    if let Err(err) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        return Err(match err.kind() {
            std::io::ErrorKind::NotFound => "there is no /dev/fuse. Load the module with `modprobe fuse`; in a container start it \
                 with `--device /dev/fuse --cap-add SYS_ADMIN` (docker, podman)"
                .to_owned(),
            _ => format!(
                "/dev/fuse cannot be opened: {err}. In a container start it with `--device /dev/fuse --cap-add \
                 SYS_ADMIN`; elsewhere its mode should be 0666"
            ),
        });
    }
    if !rustix::process::geteuid().is_root() && find_in_path("fusermount3").is_none() {
        return Err(
            "fusermount3 is missing, and only root can mount without it: `apt install fuse3` \
                    (Debian, Ubuntu), `dnf install fuse3` (Fedora), or run the demo as root"
                .to_owned(),
        );
    }
    let place = dir
        .filter(|dir| dir.exists())
        .map_or_else(std::env::temp_dir, Path::to_owned);
    let free = rustix::fs::statvfs(&place)
        .map(|stat| stat.f_bavail * stat.f_frsize)
        .unwrap_or(u64::MAX);
    if free < SPACE {
        return Err(format!(
            "{} has {} MiB free, the demo needs {} MiB: make room, or choose another place with --dir",
            place.display(),
            free >> 20,
            SPACE >> 20
        ));
    }
    Ok(())
}

fn find_in_path(name: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
}
