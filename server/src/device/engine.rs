//! What the devices of one daemon share: io_uring or threads for I/O, threads for long work, gathered flushes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Done;
use super::file::Inner;
use super::flusher::Flusher;
use super::pool::Pool;
use super::uring::{Transfer, Uring};

/// Threads that one blocking device operation each may occupy.
const IO_THREADS: usize = 8;
/// Threads for checkpoints and other long work.
const WORK_THREADS: usize = 4;

/// The I/O machinery of one daemon. Devices hold it; it ends with the last of them.
pub struct Engine {
    uring: Option<Uring>,
    io: Arc<Pool>,
    work: Pool,
    flusher: Flusher,
    /// Open file bricks by the file system that holds them.
    hosts: Mutex<BTreeMap<u64, u64>>,
}

impl Engine {
    /// Starts the machinery, with io_uring where the system allows it, and logs which it is.
    pub fn new() -> Arc<Self> {
        let io = Arc::new(Pool::new("mortar-io", IO_THREADS));
        let uring = match Uring::new(io.clone()) {
            Ok(uring) => {
                tracing::info!("device I/O through io_uring");
                Some(uring)
            }
            Err(error) => {
                let error = explain(&error);
                tracing::info!(
                    error,
                    "device I/O through a thread pool, io_uring is not usable"
                );
                None
            }
        };
        Self::build(uring, io)
    }

    /// The machinery without io_uring.
    pub fn with_threads() -> Arc<Self> {
        Self::build(None, Arc::new(Pool::new("mortar-io", IO_THREADS)))
    }

    fn build(uring: Option<Uring>, io: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            uring,
            io,
            work: Pool::new("mortar-work", WORK_THREADS),
            flusher: Flusher::new(),
            hosts: Mutex::new(BTreeMap::new()),
        })
    }

    /// A file brick on this file system is opened.
    pub(super) fn add_to_host(&self, host: u64) {
        *self.hosts.lock().entry(host).or_default() += 1;
    }

    /// A file brick on this file system is closed.
    pub(super) fn remove_from_host(&self, host: u64) {
        if let Some(count) = self.hosts.lock().get_mut(&host) {
            *count = count.saturating_sub(1);
        }
    }

    /// How many open file bricks share this file system.
    pub(super) fn sharing_host(&self, host: u64) -> u64 {
        self.hosts.lock().get(&host).copied().unwrap_or(0).max(1)
    }

    /// Whether transfers past the page cache go through io_uring.
    pub fn uses_uring(&self) -> bool {
        self.uring.is_some()
    }

    /// Starts a transfer past the page cache.
    pub(super) fn run_transfer(&self, transfer: Transfer) {
        match &self.uring {
            Some(uring) => uring.start(transfer),
            None => self.io.run(Box::new(move || transfer.finish_by_hand(0))),
        }
    }

    /// Runs a device operation that may block.
    pub(super) fn run_io(&self, job: Box<dyn FnOnce() + Send>) {
        self.io.run(job);
    }

    /// Runs a long job.
    pub fn run_work(&self, job: Box<dyn FnOnce() + Send>) {
        self.work.run(job);
    }

    /// Flushes one device, together with others that ask meanwhile.
    pub(super) fn run_flush(&self, device: Arc<Inner>, done: Done<()>) {
        self.flusher.flush(device, done);
    }
}

/// Why io_uring cannot be used, for a person.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "forbidden on this machine or in this container".to_owned(),
        Some(libc::ENOSYS) => "the kernel does not have it".to_owned(),
        _ => error.to_string(),
    }
}
