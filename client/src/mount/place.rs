//! The mount point: what is mounted there, dead mounts, unmounting, read-ahead of the kernel.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

/// Type that /proc/mounts shows.
pub(super) const FS_TYPE: &str = "fuse.mortar";
/// The kernel's own read-ahead, in KiB (it starts with 128).
const READ_AHEAD_KIB: &str = "1024";

/// A line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mounted {
    device: Vec<u8>,
    dir: PathBuf,
    kind: Vec<u8>,
}

impl Mounted {
    fn is_ours(&self) -> bool {
        self.kind == FS_TYPE.as_bytes()
    }
}

/// Parses /proc/self/mountinfo. Names in it are bytes.
fn parse_table(table: &[u8]) -> Vec<Mounted> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut words = line.split(|byte| *byte == b' ');
            let device = words.nth(2)?.to_owned();
            let dir = PathBuf::from(OsString::from_vec(unescape(words.nth(1)?)));
            // Behind optional fields that end with a dash.
            let kind = words.skip_while(|word| *word != b"-").nth(1)?.to_owned();
            Some(Mounted { device, dir, kind })
        })
        .collect()
}

/// Undoes the octal escapes of the mount table.
fn unescape(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    while let [first, rest @ ..] = bytes {
        let code = text_code(bytes);
        out.push(code.unwrap_or(*first));
        bytes = if code.is_some() { &bytes[4..] } else { rest };
    }
    out
}

fn text_code(bytes: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = bytes else {
        return None;
    };
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

/// What is mounted on top of a directory, if it is a mount point.
fn mounted_on(dir: &Path) -> Option<Mounted> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    parse_table(&table)
        .into_iter()
        .rev()
        .find(|mounted| mounted.dir == dir)
}

/// Whether a volume is mounted on a directory.
pub(super) fn is_mounted(dir: &Path) -> bool {
    let table = std::fs::read("/proc/self/mountinfo");
    // Without a table nothing is known.
    table.is_err()
        || table.is_ok_and(|table| {
            let all = parse_table(&table);
            all.iter()
                .any(|mounted| mounted.dir == dir && mounted.is_ours())
        })
}

/// Makes sure that something can be mounted on `dir`; takes away what a dead client left there. Gives the absolute
/// path.
///
/// # Errors
///
/// One line, and the exit code mount.glusterfs has for it.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf, (String, u8)> {
    let shown = dir.display();
    let absolute = std::path::absolute(dir).map_err(|error| (format!("{shown}: {error}"), 1))?;
    // A dead mount fails every path lookup below it, so it has to go before the path can be resolved.
    if is_dead(&absolute) {
        clear_dead(&absolute).map_err(|why| (why, 1))?;
    }
    let found = std::fs::metadata(&absolute);
    let absolute = match (found, absolute.canonicalize()) {
        (Ok(found), Ok(absolute)) if found.is_dir() => absolute,
        (Ok(_), Ok(_)) => return Err((format!("{shown} is not a directory"), 1)),
        (Err(error), _) | (_, Err(error)) => {
            return Err((format!("mount point {shown} cannot be used: {error}"), 1));
        }
    };
    if absolute == Path::new("/") || absolute == Path::new("/tmp") {
        return Err((format!("cannot mount over {}", absolute.display()), 2));
    }
    if mounted_on(&absolute).is_some_and(|mounted| mounted.is_ours()) {
        return Err((format!("Mortar is already mounted on {shown}"), 32));
    }
    Ok(absolute)
}

/// Whether a client is missing behind a mount point. The kernel must not answer from what it remembers.
fn is_dead(dir: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let answer = statx(CWD, dir, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    answer.is_err_and(|error| error == rustix::io::Errno::NOTCONN)
}

fn clear_dead(dir: &Path) -> Result<(), String> {
    let ours = mounted_on(dir).is_some_and(|mounted| mounted.kind.starts_with(b"fuse"));
    if !ours {
        return Err(format!(
            "{} is not connected and not a mount point of FUSE",
            dir.display()
        ));
    }
    detach(dir).map_err(|error| format!("the dead mount on {} stays: {error}", dir.display()))
}

/// Takes a mount away at once; who still uses it keeps what is open.
///
/// # Errors
///
/// The system's.
pub(super) fn detach(dir: &Path) -> io::Result<()> {
    match rustix::mount::unmount(dir, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => fusermount(dir),
        Err(error) => Err(error.into()),
    }
}

/// The same for users other than root.
fn fusermount(dir: &Path) -> io::Result<()> {
    let status = Command::new("fusermount3")
        .args(["-u", "-q", "-z", "--"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("fusermount3 -u: {status}"))),
    }
}

/// Lets the kernel read ahead further on a mount. Only root may; others go without.
pub(super) fn raise_read_ahead(dir: &Path) {
    let Ok(found) = std::fs::metadata(dir) else {
        return;
    };
    let (major, minor) = (libc::major(found.dev()), libc::minor(found.dev()));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB) {
        tracing::debug!("{file}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_understood() {
        let text = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            40 22 0:39 / /mnt/a\\040b rw,nosuid shared:2 master:1 - fuse.mortar h:/v rw,user_id=0\n";
        let odd = b"41 22 0:40 / /mnt/\xff\\012 rw - fuse.mortar h:/v rw\n";
        let table = parse_table(&[text.as_bytes(), odd].concat());
        assert_eq!(table.len(), 3);
        let dir = OsString::from_vec(b"/mnt/\xff\n".to_vec());
        assert_eq!(table[2].dir, PathBuf::from(dir));
        assert_eq!(table[1].dir, Path::new("/mnt/a b"));
        assert_eq!(
            (&table[1].kind[..], &table[1].device[..]),
            (&b"fuse.mortar"[..], &b"0:39"[..])
        );
    }

    #[test]
    fn a_place_that_cannot_be_mounted_on_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(prepare(&file).unwrap_err().0.contains("not a directory"));
        assert!(prepare(&dir.path().join("none")).is_err());
        assert_eq!(prepare(Path::new("/")).unwrap_err().1, 2);
        assert_eq!(
            prepare(dir.path()).unwrap(),
            dir.path().canonicalize().unwrap()
        );
    }
}
