//! Virtual time and a deterministic executor: one thread, one queue of timed events, and tasks that are polled in an
//! order drawn from the seed. Every step of the cluster goes through it, and so does the trace.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mortar_protocol::attr::Time;
use mortar_protocol::env::{Env, Mono};
use parking_lot::Mutex;

use super::rng::Rng;

/// A microsecond of virtual time, in nanoseconds.
pub const MICRO: u64 = 1_000;
/// A millisecond of virtual time.
pub const MILLI: u64 = 1_000_000;
/// A second of virtual time.
pub const SECOND: u64 = 1_000_000_000;

/// What happens at a moment.
enum Event {
    Wake(Waker),
    Run(Box<dyn FnOnce() + Send>),
}

/// A task and whose it is.
struct Task {
    owner: u32,
    /// Absent while it is polled.
    future: Option<BoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

struct State {
    events: BTreeMap<(u64, u64), Event>,
    numbers: u64,
    tasks: BTreeMap<u64, Task>,
    ready: Vec<u64>,
    rng: Rng,
    /// The draw among ready tasks does not depend on the order in which they were woken.
    sorted: bool,
}

/// The executor.
pub struct Exec {
    now: AtomicU64,
    steps: AtomicU64,
    state: Mutex<State>,
    lines: Mutex<Vec<String>>,
}

struct TaskWaker {
    exec: Weak<Exec>,
    task: u64,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if let Some(exec) = self.exec.upgrade()
            && !self.queued.swap(true, Ordering::Relaxed)
        {
            exec.state.lock().ready.push(self.task);
        }
    }
}

impl Exec {
    /// An executor at time 1 s.
    pub fn new(rng: Rng) -> Arc<Self> {
        Self::with(rng, false)
    }

    /// As [`Self::new`], for code whose channels wake those that wait for the same thing in an order of their own.
    pub fn sorted(rng: Rng) -> Arc<Self> {
        Self::with(rng, true)
    }

    fn with(rng: Rng, sorted: bool) -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(SECOND),
            steps: AtomicU64::new(0),
            state: Mutex::new(State {
                events: BTreeMap::new(),
                numbers: 0,
                tasks: BTreeMap::new(),
                ready: Vec::new(),
                rng,
                sorted,
            }),
            lines: Mutex::new(Vec::new()),
        })
    }

    /// Virtual time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Things done so far, by the time they were noted with [`Self::note`].
    pub fn noted(&self) -> usize {
        self.lines.lock().len()
    }

    /// Virtual wall-clock time.
    pub fn wall(&self) -> Time {
        Time {
            secs: 1_800_000_000 + (self.now() / SECOND) as i64,
            nanos: (self.now() % SECOND) as u32,
        }
    }

    /// A stamp that rises with every call: the order of what clients see.
    pub fn stamp(&self) -> u64 {
        self.steps.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes a line of the trace.
    pub fn note(&self, line: &str) {
        let now = self.now() / MICRO;
        let line = format!("{:>4}.{:06} {line}", now / 1_000_000, now % 1_000_000);
        self.lines.lock().push(line);
    }

    /// Takes the trace.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock())
    }

    /// Runs something `span` nanoseconds from now.
    pub fn after(&self, span: u64, run: impl FnOnce() + Send + 'static) {
        self.at(self.now() + span, Event::Run(Box::new(run)));
    }

    fn at(&self, time: u64, event: Event) -> (u64, u64) {
        let mut state = self.state.lock();
        state.numbers += 1;
        let key = (time, state.numbers);
        state.events.insert(key, event);
        key
    }

    /// Starts a task of `owner`.
    pub fn spawn(self: &Arc<Self>, owner: u32, future: BoxFuture<'static, ()>) {
        let mut state = self.state.lock();
        state.numbers += 1;
        let task = state.numbers;
        let waker = Arc::new(TaskWaker {
            exec: Arc::downgrade(self),
            task,
            queued: AtomicBool::new(true),
        });
        let future = Some(future);
        state.tasks.insert(
            task,
            Task {
                owner,
                future,
                waker,
            },
        );
        state.ready.push(task);
    }

    /// Drops all tasks of an owner where they stand.
    pub fn kill(&self, owner: u32) {
        let killed: Vec<Task> = {
            let mut state = self.state.lock();
            let own = |(id, task): (&u64, &Task)| (task.owner == owner).then_some(*id);
            let ids: Vec<u64> = state.tasks.iter().filter_map(own).collect();
            ids.iter().filter_map(|id| state.tasks.remove(id)).collect()
        };
        drop(killed);
    }

    /// Does one thing; false if there is nothing left to do.
    pub fn step(&self) -> bool {
        let task = {
            let mut state = self.state.lock();
            let waiting = state.ready.len() as u64;
            if waiting > 0 {
                if state.sorted {
                    state.ready.sort_unstable();
                }
                let at = state.rng.below(waiting) as usize;
                Some(state.ready.remove(at))
            } else {
                None
            }
        };
        if let Some(task) = task {
            self.poll(task);
            return true;
        }
        let Some((key, event)) = self.state.lock().events.pop_first() else {
            return false;
        };
        self.now.store(key.0.max(self.now()), Ordering::Relaxed);
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Run(run) => run(),
        }
        true
    }

    fn poll(&self, id: u64) {
        let taken = {
            let mut state = self.state.lock();
            let task = state.tasks.get_mut(&id);
            task.and_then(|task| Some((task.future.take()?, Arc::clone(&task.waker))))
        };
        let Some((mut future, waker)) = taken else {
            return;
        };
        waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(waker);
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        if done {
            drop(future);
            let task = self.state.lock().tasks.remove(&id);
            drop(task);
        } else if let Some(task) = self.state.lock().tasks.get_mut(&id) {
            task.future = Some(future);
        }
    }

    /// Drops all tasks and events.
    pub fn clear(&self) {
        loop {
            let (tasks, events) = {
                let mut state = self.state.lock();
                state.ready.clear();
                (
                    std::mem::take(&mut state.tasks),
                    std::mem::take(&mut state.events),
                )
            };
            if tasks.is_empty() && events.is_empty() {
                return;
            }
        }
    }
}

/// Completes at a moment of virtual time.
struct Sleep {
    exec: Arc<Exec>,
    until: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.exec.now() >= self.until {
            return Poll::Ready(());
        }
        let event = Event::Wake(cx.waker().clone());
        match self.key {
            Some(key) => {
                let old = self.exec.state.lock().events.insert(key, event);
                drop(old);
            }
            None => self.key = Some(self.exec.at(self.until, event)),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let event = self.exec.state.lock().events.remove(&key);
            drop(event);
        }
    }
}

/// The seam of one client: its tasks die with it.
pub struct SimEnv {
    exec: Arc<Exec>,
    owner: u32,
    rng: Mutex<Rng>,
}

impl SimEnv {
    /// For a client.
    pub fn new(exec: Arc<Exec>, owner: u32, rng: Rng) -> Arc<Self> {
        Arc::new(Self {
            exec,
            owner,
            rng: Mutex::new(rng),
        })
    }
}

impl Env for SimEnv {
    fn now(&self) -> Mono {
        Mono(self.exec.now())
    }

    fn wall(&self) -> Time {
        self.exec.wall()
    }

    fn random(&self) -> u64 {
        self.rng.lock().draw()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        Box::pin(Sleep {
            exec: Arc::clone(&self.exec),
            until: self.exec.now().saturating_add(span.as_nanos() as u64),
            key: None,
        })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.exec.spawn(self.owner, task);
    }
}
