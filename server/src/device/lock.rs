//! Locks of files: one daemon at a time uses a data directory or a brick.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How often a lock is tried whose holder is on its way out, and how long it is waited in between: 5 s in all.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);
/// How often if this process itself holds it: it was closed here, and the end of its last flush is on its way.
const OWN_TRIES: u32 = 50;

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it, and which, if the kernel tells.
    Taken(Option<u32>),
    /// The file cannot be locked.
    Io(std::io::Error),
}

/// Takes the flock of a file: `alone`, or with others that do not want it alone. A process that was killed holds its
/// locks until the last of its threads and the last write on its way have ended: it is waited for, up to 5 s. One that
/// lives is not.
///
/// # Errors
/// If another process holds it, or the file cannot be locked.
pub fn take_lock(file: &File, alone: bool) -> Result<(), LockError> {
    let how = match alone {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    let mut holder = None;
    for tries in 0..TRIES {
        match flock(file, how) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(LockError::Io(error.into())),
        }
        holder = lock_holder(file);
        match holder {
            Some(pid) if pid == std::process::id() && tries >= OWN_TRIES => break,
            Some(pid) if pid != std::process::id() && lives(pid) => break,
            // Also if it is not known: then it was let go just now.
            _ => pause(),
        }
    }
    Err(LockError::Taken(holder))
}

#[allow(clippy::disallowed_methods)] // The kernel is waited for, at the start of a process.
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Whether a process is neither gone nor about to be.
fn lives(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // "1234 (name) S ...": the name may hold anything.
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

/// The process that holds a flock on a file, from /proc/locks.
fn lock_holder(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let inode = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF"; waiters have "->" in the second place.
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&inode.as_str());
        words.get(4).filter(|_| ours)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn holder(path: &std::path::Path) -> Child {
        let file = File::create(path).unwrap();
        let child = Command::new("flock")
            .arg(path)
            .args(["sleep", "60"])
            .spawn();
        let child = child.unwrap();
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            flock(&file, FlockOperation::Unlock).unwrap();
        }
        child
    }

    #[test]
    fn one_that_lives_is_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut child = holder(&path);
        let file = File::open(&path).unwrap();
        let taken = take_lock(&file, true);
        assert!(matches!(taken, Err(LockError::Taken(Some(pid))) if pid == child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The lock's own holder is gone, a child of it lives on: as a process whose last threads have not ended yet.
    #[test]
    fn one_that_is_gone_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let script = "flock 9; sleep 0.3 & echo held";
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 9>{}; {script}", path.display())]);
        assert!(shell.output().unwrap().status.success());
        let file = File::open(&path).unwrap();
        take_lock(&file, true).unwrap();
    }
}
