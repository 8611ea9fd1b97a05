//! The demo's directory: made, locked, removed, also what a killed demo left.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal};

const PREFIX: &str = "mortar-demo-";
const LOCK: &str = "demo.lock";
const DAEMON: &str = "mortard.pid";

/// The directory; removed when dropped.
pub(crate) struct Place {
    root: PathBuf,
    mount: PathBuf,
    made_mount: bool,
    _lock: File,
}

fn my_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl Place {
    /// Makes the directory (mode 0700) and the mount point.
    pub(crate) fn new(root: Option<&Path>, mount: Option<&Path>) -> Result<Self, String> {
        let root = match root {
            Some(dir) => dir.to_owned(),
            None => {
                std::env::temp_dir().join(format!("{PREFIX}{}-{}", my_uid(), std::process::id()))
            }
        };
        let fail = |path: &Path, err: std::io::Error| format!("{}: {err}", path.display());
        if root.exists()
            && fs::read_dir(&root)
                .map_err(|err| fail(&root, err))?
                .next()
                .is_some()
        {
            return Err(format!(
                "{} is not empty: give --dir a new directory, since the demo removes it at the end",
                root.display()
            ));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|err| fail(&root, err))?;
        let root = root.canonicalize().map_err(|err| fail(&root, err))?;
        let lock = File::create(root.join(LOCK)).map_err(|err| fail(&root, err))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("another demo runs in {}", root.display()))?;
        let mount = mount.map_or_else(|| root.join("mnt"), Path::to_owned);
        let made_mount = !mount.exists();
        fs::create_dir_all(&mount).map_err(|err| fail(&mount, err))?;
        let mount = mount.canonicalize().map_err(|err| fail(&mount, err))?;
        let _ = fs::write(
            root.join("mount-point"),
            mount.as_os_str().as_encoded_bytes(),
        );
        Ok(Self {
            root,
            mount,
            made_mount,
            _lock: lock,
        })
    }

    /// Bricks, keys and logs lie here.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The volume is mounted here.
    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    /// Notes the daemon's process id, so that a later demo can end it if this one is killed.
    pub(crate) fn note_daemon(&self, pid: u32) {
        let _ = fs::write(self.root.join(DAEMON), pid.to_string());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if is_mount_point(&self.mount) {
            eprintln!(
                "{} is still mounted; {} stays",
                self.mount.display(),
                self.root.display()
            );
            return;
        }
        if self.made_mount {
            let _ = fs::remove_dir(&self.mount);
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn is_mount_point(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    dir.to_str().is_some_and(|dir| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(dir))
    })
}

/// Unmounts `dir`: first in order, then, if something holds it, detached.
pub(crate) fn unmount(dir: &Path) {
    let tries: [(&str, &[&str]); 4] = [
        ("umount", &[]),
        ("fusermount3", &["-u"]),
        ("umount", &["-l"]),
        ("fusermount3", &["-u", "-z"]),
    ];
    for (program, args) in tries {
        if !is_mount_point(dir) {
            return;
        }
        let _ = Command::new(program)
            .args(args)
            .arg(dir)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Ends a process with SIGTERM, after 10 s with SIGKILL.
pub(crate) fn end(pid: u32) {
    let Some(pid) = Pid::from_raw(pid as i32) else {
        return;
    };
    let _ = rustix::process::kill_process(pid, Signal::TERM);
    for _ in 0..200 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        if stat.is_empty()
            || stat
                .rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('Z'))
        {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

/// Removes what killed demos of this user left in the temporary directory.
pub(crate) fn remove_stale() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    let prefix = format!("{PREFIX}{}-", my_uid());
    for entry in entries.flatten() {
        let root = entry.path();
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix))
            && fs::symlink_metadata(&root)
                .is_ok_and(|meta| meta.is_dir() && meta.uid() == my_uid());
        if !ours {
            continue;
        }
        let Ok(lock) = File::options().write(true).open(root.join(LOCK)) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue; // that demo runs
        }
        println!("Removing what an earlier demo left in {}", root.display());
        let mount = fs::read_to_string(root.join("mount-point"))
            .map_or_else(|_| root.join("mnt"), PathBuf::from);
        unmount(&mount);
        if let Some(pid) = fs::read_to_string(root.join(DAEMON))
            .ok()
            .and_then(|text| text.parse().ok())
            && runs_in(pid, &root)
        {
            end(pid);
        }
        if !is_mount_point(&mount) {
            let _ = fs::remove_dir_all(&root);
        }
    }
}

/// Whether the process is a mortard whose data lies below `root` (process ids are used again).
fn runs_in(pid: u32, root: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let needle = root.join("data");
    line.split(|byte| *byte == 0)
        .any(|word| word == needle.as_os_str().as_encoded_bytes())
}
