//! Bricks on a directory (a sparse file in it), on a plain file, or on a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::env_real::mono_now;
use rustix::fs::FallocateFlags;

use super::flusher::{Failure, Flushable};
use super::lock::{LockError, take_lock};
use super::uring::{Buffer, Transfer};
use super::{ALIGNMENT, AlignedBuf, Device, Done, Engine, check_range};

/// Name of the sparse file of a brick whose path is a directory.
pub const BRICK_FILE: &str = "mortar.brick";
/// Unit to which the size of a file brick is rounded down.
const SIZE_UNIT: u64 = 1 << 20;
/// A target is taken to be empty if this much at its beginning and at its end is zero.
const PROBE: u64 = 1 << 20;
/// Most pieces of one vectored write (IOV_MAX).
const MAX_PIECES: usize = 1024;

/// Why a path cannot serve as a brick.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is nothing at the path.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// Neither directory, regular file nor block device.
    #[error("{0} is neither a directory, a file nor a block device")]
    WrongKind(PathBuf),
    /// Something is there that formatting would destroy.
    #[error("{path} already holds data ({what}); use another path, or force to give it up")]
    NotEmpty {
        /// The path.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Another process has it open as a brick.
    #[error("{path} is in use by {}", match .pid { Some(pid) => format!("process {pid}"), None => "another process".to_owned() })]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process, if the kernel tells.
        pid: Option<u32>,
    },
    /// Less space than a brick needs.
    #[error("{path} has room for {size} bytes, a brick needs at least {least}")]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// What it has, in bytes.
        size: u64,
        /// What is needed, in bytes.
        least: u64,
    },
    /// The system refused.
    #[error("{path}: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// How to prepare a target for formatting.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions {
    /// Size of a file brick in bytes; without it, the space available. A block device is used whole.
    pub size: Option<u64>,
    /// Smallest size to accept, in bytes.
    pub least: u64,
    /// Whether what the target holds may be given up. A brick in use is refused all the same.
    pub force: bool,
}

/// A brick's file or block device, locked for this process.
pub struct FileDevice {
    pub(super) inner: Arc<Inner>,
    engine: Arc<Engine>,
}

/// The descriptors; started operations hold them until they end.
pub(super) struct Inner {
    file: File,
    /// The same file with O_DIRECT, where its file system has that.
    direct: Option<File>,
    direct_works: AtomicBool,
    len: u64,
    is_block: bool,
    /// File system that holds the file (`st_dev`).
    host_device: u64,
    pace: Pace,
    failure: Failure,
}

/// How long small reads from the medium have taken lately.
#[derive(Default)]
struct Pace(AtomicU64);

/// A medium that takes less than this is worth waiting for: waking another thread and being woken costs as much.
const QUICK: Duration = Duration::from_micros(250);

impl Pace {
    fn took(&self, span: Duration) {
        let (old, new) = (self.0.load(Ordering::Relaxed), span.as_nanos() as u64);
        // Readers on several threads may lose one another's measurements.
        self.0.store(old - old / 8 + new / 8, Ordering::Relaxed);
    }

    fn is_quick(&self) -> bool {
        u128::from(self.0.load(Ordering::Relaxed)) < QUICK.as_nanos()
    }
}

impl FileDevice {
    /// Makes a path ready to be formatted: creates directory and file, sets the size, and refuses what holds data.
    pub fn create(
        path: &Path,
        options: &CreateOptions,
        engine: &Arc<Engine>,
    ) -> Result<Self, TargetError> {
        let fail = io_error(path);
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Self::create_in_directory(path, options, engine),
            Ok(meta) if meta.is_file() => Self::create_on_file(path, options, engine),
            Ok(meta) if meta.file_type().is_block_device() => {
                Self::create_on_block(path, options, engine)
            }
            Ok(_) => Err(TargetError::WrongKind(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir(path).map_err(&fail)?;
                sync_parent(path).map_err(&fail)?;
                Self::create_in_directory(path, options, engine)
            }
            Err(error) => Err(fail(error)),
        }
    }

    /// Opens the brick at a path for reading and writing, alone.
    pub fn open(path: &Path, engine: &Arc<Engine>) -> Result<Self, TargetError> {
        let path = brick_path(path)?;
        let file = open_locked(&path, true)?;
        Self::from_file(&path, file, engine)
    }

    /// Opens the brick at a path for reading, while no daemon has it open.
    pub fn open_read_only(path: &Path, engine: &Arc<Engine>) -> Result<Self, TargetError> {
        let path = brick_path(path)?;
        let file = open_locked(&path, false)?;
        Self::from_file(&path, file, engine)
    }

    /// Opens the brick at a path for reading although a daemon has it open: what is read changes meanwhile.
    pub fn open_in_use(path: &Path, engine: &Arc<Engine>) -> Result<Self, TargetError> {
        let path = brick_path(path)?;
        let file = File::open(&path).map_err(io_error(&path))?;
        Self::from_file(&path, file, engine)
    }

    fn create_in_directory(
        dir: &Path,
        options: &CreateOptions,
        engine: &Arc<Engine>,
    ) -> Result<Self, TargetError> {
        let path = dir.join(BRICK_FILE);
        for entry in std::fs::read_dir(dir).map_err(io_error(dir))? {
            let name = entry.map_err(io_error(dir))?.file_name();
            if name != BRICK_FILE && name != "lost+found" && !options.force {
                let what = format!("the directory contains '{}'", name.to_string_lossy());
                let path = dir.to_owned();
                return Err(TargetError::NotEmpty { path, what });
            }
        }
        let mut how = OpenOptions::new();
        how.read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        how.open(&path).map_err(io_error(&path))?;
        sync_parent(&path).map_err(io_error(&path))?;
        let file = open_locked(&path, true)?;
        if file.metadata().map_err(io_error(&path))?.len() > 0 && !options.force {
            let what = format!("{BRICK_FILE} of a brick");
            return Err(TargetError::NotEmpty { path, what });
        }
        let made = size_file(&path, &file, options);
        if made.is_err() && !options.force {
            // Only the empty file made above: a later attempt must not find the directory in use.
            let _ = std::fs::remove_file(&path);
        }
        made?;
        Self::from_file(&path, file, engine)
    }

    fn create_on_file(
        path: &Path,
        options: &CreateOptions,
        engine: &Arc<Engine>,
    ) -> Result<Self, TargetError> {
        let file = open_locked(path, true)?;
        let len = file.metadata().map_err(io_error(path))?.len();
        refuse_data(path, &file, len, options.force)?;
        let mut options = *options;
        if options.size.is_none() && len > 0 {
            options.size = Some(len);
        }
        size_file(path, &file, &options)?;
        Self::from_file(path, file, engine)
    }

    fn create_on_block(
        path: &Path,
        options: &CreateOptions,
        engine: &Arc<Engine>,
    ) -> Result<Self, TargetError> {
        let file = open_locked(path, true)?;
        let device = Self::from_file(path, file, engine)?;
        let size = device.len();
        if size < options.least {
            let (path, least) = (path.to_owned(), options.least);
            return Err(TargetError::TooSmall { path, size, least });
        }
        refuse_data(path, &device.inner.file, size, options.force)?;
        let zeros = vec![0; PROBE as usize];
        device.write_at(0, &zeros).map_err(io_error(path))?;
        Ok(device)
    }

    fn from_file(path: &Path, file: File, engine: &Arc<Engine>) -> Result<Self, TargetError> {
        let fail = io_error(path);
        let meta = file.metadata().map_err(&fail)?;
        let is_block = meta.file_type().is_block_device();
        let len = if is_block {
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0));
            end.map_err(|error| fail(error.into()))?
        } else {
            meta.len()
        };
        // Read-ahead would only bring in neighbours: what is read in order is read in large pieces anyway.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        let direct = open_direct(path, &meta);
        let inner = Inner {
            file,
            direct_works: AtomicBool::new(direct.is_some()),
            direct,
            len,
            is_block,
            host_device: meta.dev(),
            pace: Pace::default(),
            failure: Failure::default(),
        };
        engine.add_to_host(inner.host_device);
        Ok(Self {
            inner: Arc::new(inner),
            engine: engine.clone(),
        })
    }
}

impl Drop for FileDevice {
    fn drop(&mut self) {
        self.engine.remove_from_host(self.inner.host_device);
    }
}

impl Device for FileDevice {
    fn len(&self) -> u64 {
        self.inner.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.inner.len, offset, buf.len() as u64)?;
        self.inner.file.read_exact_at(buf, offset)
    }

    fn read_near(&self, offset: u64, buf: &mut [u8], around: Range<u64>) -> io::Result<()> {
        if self.inner.read_cached(offset, buf)? {
            return Ok(());
        }
        self.inner.fetch(around);
        self.inner.file.read_exact_at(buf, offset)
    }

    fn read_soon(
        &self,
        offset: u64,
        buf: &mut [u8],
        idle: bool,
        around: Range<u64>,
    ) -> io::Result<bool> {
        if self.inner.read_cached(offset, buf)? {
            return Ok(true);
        }
        self.inner.fetch(around);
        if !idle || !self.inner.pace.is_quick() {
            return Ok(false);
        }
        let begun = mono_now();
        self.inner.file.read_exact_at(buf, offset)?;
        self.inner.pace.took(mono_now().since(begun));
        Ok(true)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.inner.len, offset, data.len() as u64)?;
        self.inner.file.write_all_at(data, offset)
    }

    fn write_vectored_at(&self, offset: u64, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
        let total = parts.iter().map(|part| part.len() as u64).sum();
        check_range(self.inner.len, offset, total)?;
        write_pieces(&self.inner.file, offset, parts)
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush_alone()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.inner.len, offset, len)?;
        if self.inner.is_block || len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.inner.file, FallocateFlags::KEEP_SIZE, offset, len) {
            // Where the file system cannot promise space, writes meet ENOSPC instead.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn host_left(&self) -> Option<u64> {
        if self.inner.is_block {
            return None;
        }
        let host = rustix::fs::fstatvfs(&self.inner.file).ok()?;
        let left = host.f_bavail.saturating_mul(host.f_frsize);
        Some(left / self.engine.sharing_host(self.inner.host_device))
    }

    fn discard(&self, offset: u64, len: u64) {
        if len > 0 && check_range(self.inner.len, offset, len).is_ok() {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(&self.inner.file, mode, offset, len);
        }
    }

    fn start_write(&self, offset: u64, data: Bytes, done: Done<()>) {
        if let Err(error) = check_range(self.inner.len, offset, data.len() as u64) {
            return done(Err(error));
        }
        let inner = self.inner.clone();
        match inner.direct_for(offset, data.as_ptr() as usize, data.len()) {
            Some(direct) => self.engine.run_transfer(Transfer {
                fd: direct.as_raw_fd(),
                buffer: Buffer::Write(data, done),
                device: self.inner.clone(),
                offset,
            }),
            None => {
                let job = move || done(inner.file.write_all_at(&data, offset));
                self.engine.run_io(Box::new(job));
            }
        }
    }

    fn start_read(&self, offset: u64, len: usize, done: Done<Bytes>) {
        if let Err(error) = check_range(self.inner.len, offset, len as u64) {
            return done(Err(error));
        }
        let inner = self.inner.clone();
        match inner.direct_for(offset, 0, len) {
            Some(direct) => self.engine.run_transfer(Transfer {
                fd: direct.as_raw_fd(),
                buffer: Buffer::Read(AlignedBuf::with_capacity(len), len, done),
                device: self.inner.clone(),
                offset,
            }),
            None => self.engine.run_io(Box::new(move || {
                let mut buf = AlignedBuf::zeroed(len);
                let result = inner.file.read_exact_at(&mut buf, offset);
                done(result.map(|()| buf.freeze()));
            })),
        }
    }

    fn start_small_read(&self, offset: u64, len: usize, done: Done<Bytes>) {
        if let Err(error) = check_range(self.inner.len, offset, len as u64) {
            return done(Err(error));
        }
        let (begun, inner) = (mono_now(), self.inner.clone());
        let done: Done<Bytes> = Box::new(move |result| {
            inner.pace.took(mono_now().since(begun));
            done(result);
        });
        let inner = self.inner.clone();
        if self.engine.uses_uring() {
            self.engine.run_transfer(Transfer {
                fd: inner.file.as_raw_fd(),
                buffer: Buffer::Read(AlignedBuf::with_capacity(len), len, done),
                device: inner,
                offset,
            });
        } else {
            self.engine.run_io(Box::new(move || {
                let mut buf = AlignedBuf::zeroed(len);
                let result = inner.file.read_exact_at(&mut buf, offset);
                done(result.map(|()| buf.freeze()));
            }));
        }
    }

    fn start_flush(&self, done: Done<()>) {
        self.engine.run_flush(self.inner.clone(), done);
    }

    fn start_work(&self, job: Box<dyn FnOnce() + Send>) {
        self.engine.run_work(job);
    }
}

impl Inner {
    /// Reads what the page cache has whole.
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        check_range(self.len, offset, buf.len() as u64)?;
        let wanted = buf.len();
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        match rustix::io::preadv2(&self.file, &mut [io::IoSliceMut::new(buf)], offset, flags) {
            Ok(count) => Ok(count == wanted),
            // It is not there, or this file system cannot tell.
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::OPNOTSUPP,
            ) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for a range to be brought into the page cache; does not wait for it.
    fn fetch(&self, range: Range<u64>) {
        let end = range.end.min(self.len);
        if let Some(len) = NonZeroU64::new(end.saturating_sub(range.start)) {
            let advice = rustix::fs::Advice::WillNeed;
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(len), advice);
        }
    }

    /// The descriptor without a page cache for a transfer that qualifies for it.
    fn direct_for(&self, offset: u64, address: usize, len: usize) -> Option<&File> {
        let aligned = (offset as usize | address | len).is_multiple_of(ALIGNMENT);
        let usable = aligned && len > 0 && self.direct_works.load(Ordering::Relaxed);
        self.direct.as_ref().filter(|_| usable)
    }

    /// Notes that the file system refuses O_DIRECT transfers after all, if `error` says so.
    pub(super) fn refuses_direct(&self, error: &io::Error) -> bool {
        let refused = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP));
        if refused {
            self.direct_works.store(false, Ordering::Relaxed);
        }
        refused
    }

    /// Writes past the page cache if that is possible; blocks.
    pub(super) fn write_bulk(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct_for(offset, data.as_ptr() as usize, data.len()) {
            match direct.write_all_at(data, offset) {
                Err(error) if self.refuses_direct(&error) => {}
                result => return result,
            }
        }
        self.file.write_all_at(data, offset)
    }

    /// Reads past the page cache if that is possible; blocks.
    pub(super) fn read_bulk(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if let Some(direct) = self.direct_for(offset, buf.as_ptr() as usize, buf.len()) {
            match direct.read_exact_at(buf, offset) {
                Err(error) if self.refuses_direct(&error) => {}
                result => return result,
            }
        }
        self.file.read_exact_at(buf, offset)
    }
}

impl Flushable for Inner {
    fn host(&self) -> Option<u64> {
        (!self.is_block && syncfs_reports_errors()).then_some(self.host_device)
    }

    fn identity(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn flush_alone(&self) -> io::Result<()> {
        let flush = || Ok(rustix::fs::fdatasync(&self.file)?);
        self.failure.flush(flush)
    }

    fn check(&self) -> io::Result<()> {
        self.failure.flush(|| Ok(()))
    }

    fn flush_host(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.file)?)
    }
}

/// Whether syncfs returns write-back errors: since Linux 5.8.
fn syncfs_reports_errors() -> bool {
    static SINCE_5_8: OnceLock<bool> = OnceLock::new();
    *SINCE_5_8.get_or_init(|| {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|number| number.parse::<u32>().unwrap_or(0));
        let version = (numbers.next(), numbers.next());
        version >= (Some(5), Some(8))
    })
}

/// Writes pieces one after the other, in as few system calls as the kernel allows.
fn write_pieces(file: &File, mut offset: u64, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
    let mut first = 0; // next piece
    let mut skip = 0; // bytes of it that are written
    while first < parts.len() {
        if skip == parts[first].len() {
            (first, skip) = (first + 1, 0);
            continue;
        }
        let result = if skip > 0 {
            rustix::io::pwrite(file, &parts[first][skip..], offset)
        } else {
            let last = parts.len().min(first + MAX_PIECES);
            rustix::io::pwritev(file, &parts[first..last], offset)
        };
        let mut written = match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += written as u64;
        while written > 0 {
            let left = parts[first].len() - skip;
            if written < left {
                skip += written;
                break;
            }
            written -= left;
            (first, skip) = (first + 1, 0);
        }
    }
    Ok(())
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> TargetError + use<> {
    let path = path.to_owned();
    move |error| TargetError::Io {
        path: path.clone(),
        error,
    }
}

/// The file or block device behind a brick's path.
fn brick_path(path: &Path) -> Result<PathBuf, TargetError> {
    let missing = |path: &Path, error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => TargetError::Missing(path.to_owned()),
        _ => io_error(path)(error),
    };
    let meta = std::fs::metadata(path).map_err(|error| missing(path, error))?;
    if meta.is_file() || meta.file_type().is_block_device() {
        return Ok(path.to_owned());
    }
    if !meta.is_dir() {
        return Err(TargetError::WrongKind(path.to_owned()));
    }
    let file = path.join(BRICK_FILE);
    std::fs::metadata(&file).map_err(|error| missing(&file, error))?;
    Ok(file)
}

/// Opens and locks: alone for writing, with other readers for reading.
fn open_locked(path: &Path, write: bool) -> Result<File, TargetError> {
    let in_use = |pid| TargetError::InUse {
        path: path.to_owned(),
        pid,
    };
    let meta = std::fs::metadata(path).map_err(io_error(path))?;
    let mut how = OpenOptions::new();
    how.read(true).write(write);
    if write && meta.file_type().is_block_device() {
        // Also refuses a device that is mounted or part of a volume group.
        how.custom_flags(libc::O_EXCL);
    }
    let file = match how.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(in_use(None)),
        result => result.map_err(io_error(path))?,
    };
    match take_lock(&file, write) {
        Ok(()) => Ok(file),
        Err(LockError::Taken(pid)) => Err(in_use(pid)),
        Err(LockError::Io(error)) => Err(io_error(path)(error)),
    }
}

fn open_direct(path: &Path, meta: &std::fs::Metadata) -> Option<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = how.open(path).ok()?;
    let same = file.metadata().ok()?;
    (same.dev() == meta.dev() && same.ino() == meta.ino()).then_some(file)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Refuses a file or block device whose first or last MiB is not zero.
fn refuse_data(path: &Path, file: &File, len: u64, force: bool) -> Result<(), TargetError> {
    if force {
        return Ok(());
    }
    let size = len.min(PROBE);
    for start in [0, len - size] {
        let mut probe = vec![0; size as usize];
        file.read_exact_at(&mut probe, start)
            .map_err(io_error(path))?;
        if let Some(at) = probe.iter().position(|byte| *byte != 0) {
            return Err(TargetError::NotEmpty {
                path: path.to_owned(),
                what: format!("a non-zero byte at {}", start + at as u64),
            });
        }
    }
    Ok(())
}

/// Empties a file and gives it its size, all of it a hole.
fn size_file(path: &Path, file: &File, options: &CreateOptions) -> Result<(), TargetError> {
    let fail = io_error(path);
    let size = match options.size {
        Some(size) => size,
        None => {
            let host = rustix::fs::fstatvfs(file).map_err(|error| fail(error.into()))?;
            let free = host.f_bavail.saturating_mul(host.f_frsize);
            // The host's file system needs a little for itself.
            free - free / 32
        }
    };
    let size = size - size % SIZE_UNIT;
    if size < options.least {
        let (path, least) = (path.to_owned(), options.least);
        return Err(TargetError::TooSmall { path, size, least });
    }
    file.set_len(0).map_err(&fail)?;
    file.set_len(size).map_err(&fail)?;
    file.sync_all().map_err(&fail)
}

#[cfg(test)]
mod tests;
