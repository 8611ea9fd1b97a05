//! Threads that run jobs which may block; started when needed, ended with the pool.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// A pool of at most `limit` threads.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    limit: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    /// A pool without threads so far.
    pub(super) fn new(name: &'static str, limit: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                name,
                limit: limit.max(1),
                state: Mutex::new(State::default()),
                wake: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on one of the threads; here, if not a single thread can be started.
    pub(super) fn run(&self, job: Job) {
        let mut state = self.shared.state.lock();
        if state.idle <= state.jobs.len() && state.threads < self.shared.limit {
            let shared = self.shared.clone();
            let started = std::thread::Builder::new()
                .name(self.shared.name.to_owned())
                .spawn(move || shared.work());
            match started {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    drop(state);
                    tracing::warn!(%error, pool = self.shared.name, "cannot start a thread");
                    return job();
                }
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Threads finish what is queued. They are not joined: the last owner of a pool may be one of its own jobs.
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // A job that panics has been reported by the panic hook; the thread serves the others.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(job));
                state = self.state.lock();
            } else if state.closed {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                self.wake.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_although_one_blocks_and_one_panics() {
        let pool = Pool::new("test", 2);
        let (release, gate) = mpsc::channel::<()>();
        let (done, results) = mpsc::channel();
        let blocked = done.clone();
        pool.run(Box::new(move || {
            let _ = gate.recv();
            blocked.send(0).unwrap();
        }));
        pool.run(Box::new(|| panic!("expected by the test")));
        for number in 1..=20 {
            let done = done.clone();
            pool.run(Box::new(move || done.send(number).unwrap()));
        }
        let got: Vec<i32> = (0..20).map(|_| results.recv().unwrap()).collect();
        assert_eq!(got, (1..=20).collect::<Vec<_>>());
        release.send(()).unwrap();
        assert_eq!(results.recv().unwrap(), 0);
    }

    #[test]
    fn queued_jobs_run_after_the_pool_is_dropped() {
        let pool = Pool::new("test", 1);
        let (done, results) = mpsc::channel();
        for number in 0..10 {
            let done = done.clone();
            pool.run(Box::new(move || done.send(number).unwrap()));
        }
        drop(pool);
        drop(done);
        assert_eq!(results.iter().count(), 10);
    }
}
