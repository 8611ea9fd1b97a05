//! What the devices of one daemon share: threads for I/O, for long work and for gathered flushes.

use std::sync::Arc;

use super::Done;
use super::file::Inner;
use super::flusher::Flusher;
use super::pool::Pool;

/// Threads that one blocking device operation each may occupy.
const IO_THREADS: usize = 8;
/// Threads for checkpoints and other long work.
const WORK_THREADS: usize = 4;

/// The I/O machinery of one daemon. Devices hold it; it ends with the last of them.
pub struct Engine {
    io: Pool,
    work: Pool,
    flusher: Flusher,
}

impl Engine {
    /// Starts the machinery (no thread of the pools runs before it is needed).
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            io: Pool::new("mortar-io", IO_THREADS),
            work: Pool::new("mortar-work", WORK_THREADS),
            flusher: Flusher::new(),
        })
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
