//! What the kernel asks for, watched: counts and latencies, requests in flight, and a line in the log for every error
//! that says something about the volume rather than about the request.
//!
//! A callback begins with [`Watched::enter`]. What it does at once is counted when the guard goes; a task that it starts
//! with [`Watched::watch`] takes the operation with it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fuser::{INodeNo, Request};
use futures_util::future::BoxFuture;
use mortar_protocol::attr::FileKind;
use mortar_protocol::env::Env;
use mortar_protocol::error::Errno;
use mortar_protocol::ids::InodeId;
use mortar_protocol::watch::{self, Failure, FlightState, Gather, Op, Watch, and_more, place_of};
use parking_lot::Mutex;

use crate::vfs::{Entry, Res};

/// Most processes asked for the name of an open file.
const MOST_PROCESSES: usize = 4_096;
/// Directories whose names are remembered for the log.
const KNOWN_DIRS: usize = 8_192;

/// Attributes by which a mount tells its counts and latencies: the first for root, the other for everybody. They are
/// never listed and belong to no file.
pub const STATS_XATTRS: &[&str] = &["trusted.mortar.stats", "mortar.stats"];

/// Whether the counts and latencies are asked for.
pub(super) fn is_stats(name: &OsStr) -> bool {
    STATS_XATTRS.iter().any(|known| name == *known)
}

macro_rules! kinds {
    ($($kind:ident $name:literal),* $(,)?) => {
        /// What the kernel asks for.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Kind { $($kind),* }

        /// Their names, in the same order.
        const NAMES: &[&str] = &[$($name),*];
    };
}

kinds! {
    Lookup "lookup", GetAttr "getattr", SetAttr "setattr", ReadLink "readlink", MkNod "mknod", MkDir "mkdir",
    Symlink "symlink", Unlink "unlink", RmDir "rmdir", Rename "rename", Link "link", Open "open", Create "create",
    Read "read", Write "write", Flush "flush", Release "release", Fsync "fsync", OpenDir "opendir",
    ReadDir "readdir", ReadDirPlus "readdirplus", ReleaseDir "releasedir", FsyncDir "fsyncdir", StatFs "statfs",
    SetXattr "setxattr", GetXattr "getxattr", ListXattr "listxattr", RemoveXattr "removexattr", TestLock "getlk",
    Lock "setlk", Fallocate "fallocate", Seek "lseek", Copy "copy_file_range",
}

thread_local! {
    /// The operation whose callback runs on this thread, unless a task has taken it over.
    static ENTERED: Cell<Option<Op>> = const { Cell::new(None) };
    static NAME: RefCell<Option<Bytes>> = const { RefCell::new(None) };
    static REFUSED: Cell<Option<Errno>> = const { Cell::new(None) };
}

/// The kernel is about to be told this error.
pub(super) fn refused(errno: Errno) {
    match watch::current() {
        Some(flight) => flight.failed(errno),
        None => REFUSED.set(Some(errno)),
    }
}

/// See the module.
pub struct Watched {
    watch: Arc<Watch>,
    env: Arc<dyn Env>,
    told: Arc<Told>,
}

/// A callback that runs.
pub(super) struct Entered<'a>(&'a Watched);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let refused = REFUSED.take();
        let Some(op) = ENTERED.take() else {
            return;
        };
        let name = NAME.take();
        if let Some(errno) = refused {
            let (name, cause) = (name.as_ref(), None);
            self.0.watch.tell(&Failure {
                op,
                name,
                errno: Some(errno),
                cause,
            });
        }
        self.0.watch.done(&op, self.0.env.now(), refused.is_some());
    }
}

impl Watched {
    /// Watches nothing yet.
    pub(super) fn new(env: Arc<dyn Env>) -> Self {
        let watch = Watch::new(NAMES);
        let told = Arc::new(Told {
            env: env.clone(),
            mounted: Mutex::default(),
            gather: Mutex::default(),
            dirs: Mutex::default(),
        });
        let teller = told.clone();
        watch.set_teller(Box::new(move |failure| teller.failed(failure)));
        Self { watch, env, told }
    }

    /// Counts and requests in flight.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Says what is mounted where, for the log.
    pub fn set_mounted(&self, volume: &str, dir: &Path) {
        *self.told.mounted.lock() = Some((volume.to_owned(), dir.to_owned()));
    }

    /// A callback begins.
    pub(super) fn enter(&self, kind: Kind, request: &Request, inode: INodeNo) -> Entered<'_> {
        REFUSED.set(None);
        ENTERED.set(Some(Op {
            kind: kind as usize,
            inode: inode.0,
            asker: request.pid().into(),
            number: 0,
            started: self.env.now(),
        }));
        Entered(self)
    }

    /// A callback begins that is about a name in a directory.
    pub(super) fn enter_name(
        &self,
        kind: Kind,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
    ) -> Entered<'_> {
        NAME.set(Some(Bytes::copy_from_slice(name.as_bytes())));
        self.enter(kind, request, dir)
    }

    /// The task that does the operation of the callback that runs.
    pub(super) fn task(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> BoxFuture<'static, ()> {
        let Some(op) = ENTERED.take() else {
            return Box::pin(task);
        };
        let flight = self.watch.flight(op, NAME.take());
        let env = self.env.clone();
        Box::pin(flight.run(move || env.now(), task))
    }

    /// Remembers the name of an entry that is a directory.
    pub(super) fn saw_entry(&self, entry: &Res<Entry>, parent: InodeId, name: &Bytes) {
        if let Ok(entry) = entry
            && entry.attr.kind == FileKind::Dir
        {
            self.saw_dir(entry.attr.gfid.id, parent, name);
        }
    }

    /// Counts and latencies, as `mortar stats` reads them.
    pub(super) fn stats(&self) -> Res<Bytes> {
        let stats = serde_json::to_vec(&self.watch.stats()).map_err(|_| Errno::EIO)?;
        Ok(stats.into())
    }

    /// Remembers the name of a directory.
    pub(super) fn saw_dir(&self, dir: InodeId, parent: InodeId, name: &Bytes) {
        let mut dirs = self.told.dirs.lock();
        if dirs.len() >= KNOWN_DIRS && !dirs.contains_key(&dir) {
            dirs.clear();
        }
        dirs.insert(dir, (parent, name.clone()));
    }

    /// What is due from time to time: requests that take long, and errors that were only counted.
    pub fn tick(&self) {
        let now = self.env.now();
        for slow in self.watch.newly_slow(now) {
            self.told.slow(&slow);
        }
        for ((operation, errno, _), more) in self.told.gather.lock().due(now) {
            let volume = self.told.volume();
            match errno {
                Some(errno) => tracing::error!(
                    "{more} more calls of {operation} in volume {volume} ended with {errno:?}"
                ),
                None => tracing::error!(
                    "{more} more times a call of {operation} in volume {volume} met data that cannot be read"
                ),
            }
        }
    }
}

/// Messages of one kind: the operation, the error, and for what concerns single files some of them.
type Repeat = (&'static str, Option<Errno>, u64);

/// Writes the lines.
struct Told {
    env: Arc<dyn Env>,
    mounted: Mutex<Option<(String, PathBuf)>>,
    gather: Mutex<Gather<Repeat>>,
    dirs: Mutex<BTreeMap<InodeId, (InodeId, Bytes)>>,
}

impl Told {
    fn failed(&self, failure: &Failure<'_>) {
        let errno = failure.errno;
        let one_file = match errno {
            None | Some(Errno::EIO) => place_of(failure.op.inode),
            Some(Errno::ENOSPC | Errno::ENOTCONN) => 0,
            _ => return,
        };
        let operation = NAMES.get(failure.op.kind).copied().unwrap_or("read ahead");
        let repeat = (operation, errno, one_file);
        let Some(more) = self.gather.lock().offer(&repeat, self.env.now()) else {
            return;
        };
        let more = and_more(more);
        let errno = errno.map_or_else(|| "unreadable".to_owned(), |errno| format!("{errno:?}"));
        tracing::error!(
            "{errno}: {operation} of {} in volume {}, asked by {}: {}{more}",
            self.file(&failure.op, failure.name),
            self.volume(),
            program(failure.op.asker),
            failure
                .cause
                .unwrap_or("a change held earlier was refused; an earlier line says why"),
        );
    }

    fn slow(&self, slow: &FlightState) {
        tracing::warn!(
            "{} of inode {} in volume {} has taken {:.1} s, asked by {}: waits for {}",
            slow.operation,
            slow.inode,
            self.volume(),
            slow.age_ms as f64 / 1e3,
            program(slow.asker),
            slow.waits_for
        );
    }

    fn volume(&self) -> String {
        let mounted = self.mounted.lock();
        mounted
            .as_ref()
            .map_or_else(|| "?".to_owned(), |(volume, _)| volume.clone())
    }

    /// What the operation is about, for a person: a path where one is known without asking anybody.
    fn file(&self, op: &Op, name: Option<&Bytes>) -> String {
        let root = self.mounted.lock().as_ref().map(|(_, dir)| dir.clone());
        let root = root.unwrap_or_default();
        if let Some(name) = name {
            let name = shown(name);
            return match self.dir(&root, InodeId(op.inode)) {
                Some(dir) => format!("{dir}/{name}"),
                None => format!("{name} in the directory of inode {}", op.inode),
            };
        }
        match self
            .dir(&root, InodeId(op.inode))
            .or_else(|| match op.asker {
                0 => opened_by_any(op.inode, &root),
                pid => open_file(pid, op.inode, &root),
            }) {
            Some(path) => format!("{path} (inode {})", op.inode),
            None => format!("inode {}", op.inode),
        }
    }

    /// Path of a directory, if all names up to the root are remembered.
    fn dir(&self, root: &Path, mut dir: InodeId) -> Option<String> {
        let dirs = self.dirs.lock();
        let mut names = Vec::new();
        while dir != InodeId::ROOT {
            let (parent, name) = dirs.get(&dir)?;
            names.push(shown(name));
            dir = *parent;
            if names.len() > KNOWN_DIRS {
                return None;
            }
        }
        let mut path = root.display().to_string();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        Some(path)
    }
}

/// A name as logs and tools show it: what is no printable text becomes an escape.
fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

/// Program and id of a process.
fn program(pid: u64) -> String {
    if pid == 0 {
        return "the kernel or the mount itself".to_owned();
    }
    match std::fs::read(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{}[{pid}]", shown(name.trim_ascii_end())),
        Err(_) => format!("process {pid}"),
    }
}

/// The path under which some process has an inode open.
fn opened_by_any(inode: u64, root: &Path) -> Option<String> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.take(MOST_PROCESSES)
        .find_map(|pid| open_file(pid, inode, root))
}

/// The path under which a process has an inode open. Asks the kernel's tables only, never this file system.
fn open_file(pid: u64, inode: u64, root: &Path) -> Option<String> {
    let wanted = format!("ino:\t{inode}");
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()? {
        let number = entry.ok()?.file_name();
        let number = number.to_str()?;
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        if !info.is_ok_and(|info| info.lines().any(|line| line == wanted)) {
            continue;
        }
        let path = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
        if path.starts_with(root) {
            return Some(shown(path.as_os_str().as_bytes()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn there_is_a_name_for_every_kind() {
        assert_eq!(NAMES.len(), Kind::Copy as usize + 1);
        assert_eq!(NAMES[Kind::Fsync as usize], "fsync");
    }

    #[test]
    fn open_files_and_programs_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd \n name");
        let file = std::fs::File::create(&path).unwrap();
        let (pid, inode) = (std::process::id().into(), file.metadata().unwrap().ino());
        let found = open_file(pid, inode, dir.path()).unwrap();
        assert!(found.ends_with("odd \\n name"), "{found}");
        assert_eq!(opened_by_any(inode, dir.path()), Some(found));
        assert_eq!(open_file(pid, inode, Path::new("/nowhere")), None);
        drop(file);
        assert_eq!(open_file(pid, inode, dir.path()), None);
        assert!(program(pid).ends_with(&format!("[{pid}]")));
        assert_eq!(program(u64::MAX), format!("process {}", u64::MAX));
    }
}
