//! Log files: everything a process writes to standard error goes to a file, which can be opened again after somebody
//! has moved it away.

use std::fs::File;
use std::io;
use std::path::Path;

/// Sends standard error to the end of `path`, made with its directory if need be. Called again, it opens the file of
/// that name anew.
///
/// # Errors
/// The system's; standard error stays as it was.
pub fn take_stderr(path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = File::options().create(true).append(true).open(path)?;
    rustix::stdio::dup2_stderr(&file)?;
    Ok(())
}

/// Writes a file that appears whole or not at all, readable by its owner only: a state dump.
///
/// # Errors
/// The system's.
pub fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    // One that was left, or put there by somebody, is not written through.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(contents)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_replace_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.json");
        write_whole(&path, b"long one").unwrap();
        std::fs::write(dir.path().join("d.json.new"), "left over").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(write_whole(&dir.path().join("no/d.json"), b"x").is_err());
    }
}
