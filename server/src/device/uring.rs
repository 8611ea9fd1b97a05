//! Large transfers past the page cache through io_uring: one ring for all devices, one thread that takes completions.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use mortar_protocol::aligned::AlignedBuf;
use parking_lot::Mutex;

use super::Done;
use super::file::Inner;
use super::pool::Pool;

/// Transfers in the kernel at the same time; more wait here.
const DEPTH: usize = 128;
/// `user_data` of the wake-up with which the ring ends.
const WAKE: u64 = 0;

/// A transfer and where it stands.
pub(super) struct Transfer {
    pub(super) device: Arc<Inner>,
    /// The O_DIRECT descriptor of `device`, open as long as that lives.
    pub(super) fd: RawFd,
    pub(super) offset: u64,
    pub(super) buffer: Buffer,
}

/// The memory of a transfer; it stays where it is until the kernel is done with it.
pub(super) enum Buffer {
    Write(Bytes, Done<()>),
    /// An empty buffer and the number of bytes to read into it.
    Read(AlignedBuf, usize, Done<Bytes>),
}

/// The ring. What is under way when it is dropped is completed.
pub(super) struct Uring {
    shared: Arc<Shared>,
}

struct Shared {
    ring: IoUring,
    /// Held by whoever uses the submission queue.
    submission: Mutex<()>,
    state: Mutex<State>,
    /// Finishes by hand what the ring could not.
    pool: Arc<Pool>,
}

#[derive(Default)]
struct State {
    /// In the kernel, by `user_data`.
    active: BTreeMap<u64, Transfer>,
    waiting: VecDeque<Transfer>,
    last: u64,
    closed: bool,
}

impl Uring {
    /// Sets up the ring, if the kernel has what it takes and allows it.
    pub(super) fn new(pool: Arc<Pool>) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::Nop::CODE] {
            if !probe.is_supported(code) {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        let shared = Arc::new(Shared {
            ring,
            submission: Mutex::new(()),
            state: Mutex::new(State::default()),
            pool,
        });
        let reaper = shared.clone();
        std::thread::Builder::new()
            .name("mortar-uring".to_owned())
            .spawn(move || reaper.reap())?;
        Ok(Self { shared })
    }

    /// Starts a transfer.
    pub(super) fn start(&self, transfer: Transfer) {
        self.shared.state.lock().waiting.push_back(transfer);
        self.shared.submit();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.submit();
    }
}

impl Shared {
    /// Gives waiting transfers to the kernel, as far as there is room.
    fn submit(&self) {
        let _guard = self.submission.lock();
        // SAFETY: the submission queue is used only under `self.submission`.
        let mut queue = unsafe { self.ring.submission_shared() };
        self.fill(&mut queue);
        if queue.is_empty() {
            return;
        }
        queue.sync();
        drop(queue);
        while let Err(error) = self.ring.submit() {
            // Out of memory or too many completions: the thread that takes completions tries again after the next
            // one, if there is one to come.
            let busy = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY));
            if busy && self.state.lock().active.len() > 1 {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn fill(&self, queue: &mut squeue::SubmissionQueue<'_>) {
        let mut state = self.state.lock();
        while state.active.len() < DEPTH && !queue.is_full() {
            let Some(mut transfer) = state.waiting.pop_front() else {
                break;
            };
            state.last += 1;
            let number = state.last;
            let entry = transfer.entry().user_data(number);
            state.active.insert(number, transfer);
            // SAFETY: the entry's buffer and descriptor belong to the transfer, which stays in `active` until the
            // kernel has completed it.
            let pushed = unsafe { queue.push(&entry) };
            debug_assert!(pushed.is_ok(), "there was room");
        }
        if state.closed && state.active.is_empty() && !queue.is_full() {
            let wake = opcode::Nop::new().build().user_data(WAKE);
            // SAFETY: a no-op refers to no memory.
            let _ = unsafe { queue.push(&wake) };
        }
    }

    /// Takes completions until the ring is closed and nothing is under way.
    fn reap(&self) {
        loop {
            if let Err(error) = self.wait() {
                // Not expected of a ring that works; the transfers under way must not be given up.
                if error.raw_os_error() != Some(libc::EINTR) {
                    tracing::error!(%error, "waiting for io_uring failed");
                    std::thread::yield_now();
                }
            }
            // SAFETY: only this thread uses the completion queue.
            let completions: Vec<_> = unsafe { self.ring.completion_shared() }
                .map(|entry| (entry.user_data(), entry.result()))
                .collect();
            for (number, result) in completions {
                if number == WAKE {
                    return;
                }
                let transfer = self.state.lock().active.remove(&number);
                if let Some(transfer) = transfer {
                    self.complete(transfer, result);
                }
            }
            self.submit();
        }
    }

    fn wait(&self) -> io::Result<usize> {
        let flags = io_uring::EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; nothing is submitted.
        unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(0, 1, flags, None)
        }
    }

    fn complete(&self, transfer: Transfer, result: i32) {
        let done = usize::try_from(result).unwrap_or(0);
        if result >= 0 && done >= transfer.len() {
            return transfer.finish(Ok(()));
        }
        let error = io::Error::from_raw_os_error(result.checked_neg().unwrap_or(0));
        let again = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
        if result < 0 && !again && !transfer.device.refuses_direct(&error) {
            return transfer.finish(Err(error));
        }
        // Part of it is left, or all of it goes through the page cache: rare, and it may block.
        self.pool
            .run(Box::new(move || transfer.finish_by_hand(done)));
    }
}

impl Transfer {
    fn len(&self) -> usize {
        match &self.buffer {
            Buffer::Write(data, _) => data.len(),
            Buffer::Read(_, len, _) => *len,
        }
    }

    fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        match &mut self.buffer {
            Buffer::Write(data, _) => opcode::Write::new(fd, data.as_ptr(), data.len() as u32)
                .offset(self.offset)
                .build(),
            Buffer::Read(buf, len, _) => {
                let room = buf.spare();
                let len = room.len().min(*len);
                opcode::Read::new(fd, room.as_mut_ptr().cast(), len as u32)
                    .offset(self.offset)
                    .build()
            }
        }
    }

    /// Ends a transfer that the kernel has completed whole, or that failed.
    fn finish(self, result: io::Result<()>) {
        match self.buffer {
            Buffer::Write(_, done) => done(result),
            Buffer::Read(mut buf, len, done) => done(result.map(|()| {
                // SAFETY: the kernel has filled `len` bytes of the room (`entry` asked for no more than there is, and
                // a shorter transfer does not end here).
                unsafe { buf.advance(len) };
                buf.freeze()
            })),
        }
    }

    /// Transfers all but the first `from` bytes without the ring; a read is made from its beginning. Blocks.
    pub(super) fn finish_by_hand(self, from: usize) {
        match self.buffer {
            Buffer::Write(data, done) => {
                let offset = self.offset + from as u64;
                done(self.device.write_bulk(offset, &data[from..]));
            }
            Buffer::Read(_, len, done) => {
                let mut buf = AlignedBuf::zeroed(len);
                let result = self.device.read_bulk(self.offset, &mut buf);
                done(result.map(|()| buf.freeze()));
            }
        }
    }
}
