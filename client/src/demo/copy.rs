//! Copies a real tree in, with a line that shows the throughput, and verifies it with blake3.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The project's own sources, else another tree that a Linux machine has.
fn source_tree() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned);
    own.into_iter()
        .filter(|dir| dir.join("Cargo.toml").exists())
        .chain(["/usr/include", "/usr/share/doc", "/etc"].map(PathBuf::from))
        .find(|dir| dir.is_dir())
}

struct Progress {
    start: Instant,
    shown: Instant,
    files: u64,
    bytes: u64,
    terminal: bool,
}

impl Progress {
    fn show(&mut self, what: &str, last: bool) {
        let due = self.shown.elapsed() > Duration::from_millis(100);
        if !self.terminal || !(due || last) {
            return;
        }
        self.shown = now();
        let seconds = self.start.elapsed().as_secs_f64().max(1e-6);
        print!(
            "\r  {what}: {} files, {:.1} MB, {:.0} files/s, {:.1} MB/s   ",
            self.files,
            self.bytes as f64 / 1e6,
            self.files as f64 / seconds,
            self.bytes as f64 / 1e6 / seconds
        );
        if last {
            println!();
        }
        let _ = std::io::stdout().flush();
    }
}

#[allow(clippy::disallowed_methods)] // shown to a person, decides nothing
fn now() -> Instant {
    Instant::now()
}

fn walk(dir: &Path, skip: &[&str], out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !skip.iter().any(|name| entry.file_name() == *name) {
                walk(&entry.path(), skip, out)?;
            }
        } else if kind.is_file() {
            out.push(entry.path());
        }
    }
    Ok(())
}

/// Copies the tree into `mount` and verifies it. Gives a line that says what was done, or none if stopped before.
///
/// # Errors
/// What went wrong, with the file.
pub(crate) fn copy_and_verify(mount: &Path, stop: &AtomicBool) -> Result<Option<String>, String> {
    let source = source_tree().ok_or("no tree to copy was found")?;
    let mut files = Vec::new();
    walk(&source, &["target", ".git"], &mut files)
        .map_err(|err| format!("{}: {err}", source.display()))?;
    files.sort();
    let terminal = std::io::stdout().is_terminal();
    let target = mount.join("copy");
    let mut progress = Progress {
        start: now(),
        shown: now(),
        files: 0,
        bytes: 0,
        terminal,
    };
    let mut hashes = Vec::with_capacity(files.len());
    for path in &files {
        if stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let to = target.join(path.strip_prefix(&source).map_err(|err| err.to_string())?);
        let fail = |err: std::io::Error| format!("{}: {err}", to.display());
        let Ok(data) = fs::read(path) else { continue }; // unreadable for this user
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).map_err(fail)?;
        }
        fs::write(&to, &data).map_err(fail)?;
        progress.files += 1;
        progress.bytes += data.len() as u64;
        hashes.push((to, blake3::hash(&data)));
        progress.show("copying", false);
    }
    progress.show("copying", true);
    let seconds = progress.start.elapsed().as_secs_f64();
    for (path, hash) in &hashes {
        if stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let data = fs::read(path).map_err(|err| format!("{}: {err}", path.display()))?;
        if blake3::hash(&data) != *hash {
            return Err(format!(
                "{}: what was read differs from what was written",
                path.display()
            ));
        }
    }
    Ok(Some(format!(
        "copied {} files ({:.1} MB) from {} in {seconds:.2} s and verified each with blake3",
        progress.files,
        progress.bytes as f64 / 1e6,
        source.display()
    )))
}
