//! The production [`Env`]: the machine's clocks, its random numbers and a tokio runtime.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::attr::Time;
use crate::busy_poll::BusyPoll;
use crate::env::{Env, Mono};

/// The machine's clocks and random numbers; tasks and sleeps run on one tokio runtime.
///
/// Tasks from threads outside the runtime pass through one queue: those that come while the runtime is busy begin
/// together, without a wake-up each, and what they send leaves in common packets.
#[derive(Clone, Debug)]
pub struct RealEnv {
    runtime: Handle,
    queue: UnboundedSender<BoxFuture<'static, ()>>,
}

impl RealEnv {
    /// An environment whose tasks run on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self::polling(runtime, Duration::ZERO)
    }

    /// One whose runtime's thread stays awake for up to `window` after each task from outside ([`BusyPoll`]).
    pub fn polling(runtime: Handle, window: Duration) -> Self {
        let (queue, tasks) = unbounded_channel();
        runtime.spawn(dispatch(tasks, BusyPoll::new(window)));
        Self { runtime, queue }
    }
}

/// Begins the tasks that come from outside.
async fn dispatch(mut tasks: UnboundedReceiver<BoxFuture<'static, ()>>, mut poll: BusyPoll) {
    let running = Arc::new(AtomicUsize::new(0));
    let mut batch = Vec::new();
    while tasks.recv_many(&mut batch, BATCH).await > 0 {
        poll.came(mono_now());
        loop {
            for task in batch.drain(..) {
                running.fetch_add(1, Ordering::Relaxed);
                let running = Arc::clone(&running);
                tokio::spawn(async move {
                    task.await;
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            }
            if !poll.looks_again(mono_now(), running.load(Ordering::Relaxed)) {
                break;
            }
            // The runtime looks after its sockets and timers before it comes back here.
            tokio::task::yield_now().await;
            while let Ok(task) = tasks.try_recv() {
                batch.push(task);
            }
            if !batch.is_empty() {
                poll.came(mono_now());
            }
        }
    }
}

/// Most tasks from outside that begin at once.
const BATCH: usize = 256;

/// CLOCK_BOOTTIME.
pub fn mono_now() -> Mono {
    let time = clock_gettime(ClockId::Boottime);
    Mono(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// CLOCK_REALTIME.
pub fn wall_now() -> Time {
    let time = clock_gettime(ClockId::Realtime);
    Time {
        secs: time.tv_sec,
        nanos: time.tv_nsec as u32,
    }
}

/// A random number of the kernel, fetched in batches per thread.
pub fn random() -> u64 {
    const POOLED: usize = 256;
    thread_local! {
        static POOL: RefCell<([u8; POOLED], usize)> = const { RefCell::new(([0; POOLED], POOLED)) };
    }
    POOL.with_borrow_mut(|(bytes, used)| {
        if *used + 8 > POOLED {
            fill_random(bytes);
            *used = 0;
        }
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[*used..*used + 8]);
        *used += 8;
        u64::from_le_bytes(number)
    })
}

/// Fills `out` with the kernel's random bytes.
pub fn fill_random(out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        match rustix::rand::getrandom(&mut out[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            // Linux has had the call since 3.17 and it has no other error for valid arguments.
            Err(error) => panic!("getrandom: {error}"),
        }
    }
}

/// A random 128-bit id, never 0.
pub fn random_id() -> u128 {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    u128::from_le_bytes(bytes).max(1)
}

impl Env for RealEnv {
    fn now(&self) -> Mono {
        mono_now()
    }

    fn wall(&self) -> Time {
        wall_now()
    }

    fn random(&self) -> u64 {
        random()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        let _context = self.runtime.enter();
        Box::pin(tokio::time::sleep(span))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        if Handle::try_current().is_ok() {
            self.runtime.spawn(task);
        } else {
            // Refused only when the runtime has ended, and its tasks with it.
            let _ = self.queue.send(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_differ() {
        let drawn: std::collections::BTreeSet<u64> = (0..100).map(|_| random()).collect();
        assert_eq!(drawn.len(), 100);
    }

    #[test]
    fn clocks_run_forward() {
        let first = mono_now();
        assert!(first.0 > 0 && mono_now() >= first);
        assert!(wall_now().secs > 1_600_000_000);
    }
}
