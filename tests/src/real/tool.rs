//! Small things real-process tests need: signals, outside programs, busy trees.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Sends `signal` to a process that a test started.
pub fn signal(pid: u32, signal: i32) {
    if let (Some(pid), Some(signal)) = (
        rustix::process::Pid::from_raw(pid as i32),
        rustix::process::Signal::from_named_raw(signal),
    ) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

/// Processes that have `argument` as one of their arguments, and are `mortar`.
pub fn pids_with_argument(argument: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return vec![];
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
                return false;
            };
            let mut words = line.split(|byte| *byte == 0);
            let ours = words.next().is_some_and(|name| name.ends_with(b"mortar"));
            ours && words.any(|word| word == argument.as_bytes())
        })
        .collect()
}

/// Runs a program in a directory; panics with its output if it fails.
pub fn run_in(dir: &Path, program: &str, args: &[&str]) -> Output {
    let out = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|err| panic!("{program} cannot be run: {err} (tests/run installs it)"));
    assert!(
        out.status.success(),
        "{program} {args:?} failed ({}):\n{}\n{}",
        out.status,
        tail(&out.stdout),
        tail(&out.stderr)
    );
    out
}

/// Waits until something is there; panics with `what` after `limit`.
#[allow(clippy::disallowed_methods)] // real processes need the real clock
pub fn wait_for<T>(
    what: &str,
    limit: std::time::Duration,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// What comes of something, and how long it takes.
#[allow(clippy::disallowed_methods)] // real processes need the real clock
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, std::time::Duration) {
    let start = std::time::Instant::now();
    let done = work();
    (done, start.elapsed())
}

/// The last 4 KiB of an output, as text.
pub fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4096)..]).into_owned()
}

/// The workspace's root: a real tree of sources to copy.
pub fn source_tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace root")
}

/// blake3 over names, modes, link targets and contents of a tree, without `target` and `.git`.
pub fn tree_hash(root: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hash_dir(root, root, &mut hasher);
    hasher.finalize().to_hex().to_string()
}

fn hash_dir(root: &Path, dir: &Path, hasher: &mut blake3::Hasher) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .unwrap_or_else(|err| panic!("read {}: {err}", dir.display()))
        .map(|entry| entry.expect("directory entry"))
        .filter(|entry| {
            !(dir == root && (entry.file_name() == "target" || entry.file_name() == ".git"))
        })
        .collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let meta = std::fs::symlink_metadata(&path).expect("attributes");
        hasher.update(
            path.strip_prefix(root)
                .expect("below the root")
                .as_os_str()
                .as_bytes(),
        );
        hasher.update(&meta.mode().to_le_bytes());
        if meta.is_dir() {
            hash_dir(root, &path, hasher);
        } else if meta.is_symlink() {
            hasher.update(
                std::fs::read_link(&path)
                    .expect("link")
                    .as_os_str()
                    .as_bytes(),
            );
        } else {
            hasher.update(&std::fs::read(&path).expect("contents"));
        }
    }
}
