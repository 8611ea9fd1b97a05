//! Block access to a brick: files and block devices through the page cache, io_uring or a thread pool for what may
//! wait, gathered flushes, and a simulated disk.
//!
//! Synchronous methods go through the page cache and block only briefly. What waits for the medium is *started* and
//! reports through a closure, which runs on another thread (or, in the simulation, when the test says so): it must
//! only pass the result on.

mod engine;
mod file;
mod flusher;
mod lock;
mod pool;
pub mod sim;
mod uring;

use std::io;
use std::ops::Range;

use bytes::Bytes;

pub use engine::Engine;
pub use file::{BRICK_FILE, CreateOptions, FileDevice, TargetError};
pub use lock::{LockError, take_lock};
pub use mortar_protocol::aligned::AlignedBuf;

/// Receives the result of a started operation.
pub type Done<T> = Box<dyn FnOnce(io::Result<T>) + Send>;

/// Offsets, lengths and addresses that are multiples of this may bypass the page cache.
pub const ALIGNMENT: usize = 4096;

/// A fixed range of storage. Offsets and lengths are in bytes; all access beyond [`Device::len`] is an error.
pub trait Device: Send + Sync + 'static {
    /// Size in bytes; does not change while open.
    fn len(&self) -> u64;

    /// Whether the device has no space at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset`, through the page cache.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// As [`Device::read_at`]; where the page cache lacks it, the range `around` is fetched with it, because that is
    /// likely to be read soon.
    fn read_near(&self, offset: u64, buf: &mut [u8], around: Range<u64>) -> io::Result<()> {
        let _ = around;
        self.read_at(offset, buf)
    }

    /// As [`Device::read_near`] if the page cache has all of it, or if the medium is known to answer about as soon as
    /// a thread could be woken and the caller is `idle`. `false`: it is not read yet, see
    /// [`Device::start_small_read`]; `around` is being fetched.
    fn read_soon(
        &self,
        offset: u64,
        buf: &mut [u8],
        idle: bool,
        around: Range<u64>,
    ) -> io::Result<bool> {
        let _ = idle;
        self.read_near(offset, buf, around).map(|()| true)
    }

    /// Writes through the page cache: survives the death of the process, not the loss of power.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// As [`Device::write_at`], from several pieces that follow one another.
    fn write_vectored_at(&self, offset: u64, parts: &[io::IoSlice<'_>]) -> io::Result<()>;

    /// Makes everything written so far survive the loss of power. Blocks; this device alone. A real device fails all
    /// flushes after the first that failed (a simulated one leaves it to its user to notice).
    fn flush(&self) -> io::Result<()>;

    /// Makes sure that the host has space for a range (no-op on block devices). Contents do not change.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes that the host can still give this device, of which most is not there from the beginning; `None` if all
    /// of it is. Devices of this process on one file system share what is left there.
    fn host_left(&self) -> Option<u64> {
        None
    }

    /// Gives the space of a range back where that is possible; its contents are then unspecified.
    fn discard(&self, offset: u64, len: u64);

    /// Writes `data`, past the page cache where address, length and offset are multiples of [`ALIGNMENT`]. A block
    /// must not be read before `done` has been called.
    fn start_write(&self, offset: u64, data: Bytes, done: Done<()>);

    /// Reads `len` bytes into a buffer aligned to [`ALIGNMENT`]; meant for 64 KiB and more.
    fn start_read(&self, offset: u64, len: usize, done: Done<Bytes>);

    /// As [`Device::start_read`] through the page cache; meant for less than 64 KiB that [`Device::read_soon`] did not
    /// give.
    fn start_small_read(&self, offset: u64, len: usize, done: Done<Bytes>) {
        self.start_read(offset, len, done);
    }

    /// As [`Device::flush`] for all that was written before this call. Devices on one file system that ask in the
    /// same instant share the work.
    fn start_flush(&self, done: Done<()>);

    /// Runs a job that may block (checkpoints) on a worker thread.
    fn start_work(&self, job: Box<dyn FnOnce() + Send>);
}

/// Whether an error means that the file system under a file brick is full: the brick is then full, not failed.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        || error.kind() == io::ErrorKind::StorageFull
}

/// Refuses a range that does not lie within `size` bytes.
fn check_range(size: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} lie beyond the device's {size} bytes"),
        )),
    }
}
