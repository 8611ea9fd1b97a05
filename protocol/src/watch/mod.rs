//! What a process does at the moment and has done so far: requests in flight, what each waits for, counts and latencies.
//!
//! A [`Watch`] counts every operation in [`Histograms`] and knows those that have not ended. An operation that waits is
//! a [`Flight`]; the task that does it runs inside [`Flight::run`], so that whoever makes it wait can say so with
//! [`waits_for`] without being handed anything.

pub(crate) mod gather;
mod histogram;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

use crate::env::Mono;
use crate::error::Errno;

pub use gather::{Gather, SPAN, and_more, place_of};
pub use histogram::{Histograms, OpStats, Sum};

/// An operation older than this is logged, once.
pub const SLOW: Duration = Duration::from_secs(5);

/// What an operation waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Nothing: it runs, or waits for its turn of the processor.
    Turn,
    /// The answer of a set's primary.
    Answer(u32),
    /// A set that does not serve, or no server at all.
    Serving(u32),
    /// A set that knows the session and takes another request.
    Room(u32),
    /// Changes of the file that were held and are being sent.
    Held,
    /// Room for more held changes.
    HeldRoom,
    /// A lock that another owner holds.
    Lock,
}

impl Wait {
    const WITH_SET: u64 = 1 << 32;

    fn code(self) -> u64 {
        match self {
            Self::Turn => 0,
            Self::Held => 1,
            Self::HeldRoom => 2,
            Self::Lock => 3,
            Self::Answer(set) => Self::WITH_SET | u64::from(set),
            Self::Serving(set) => (2 * Self::WITH_SET) | u64::from(set),
            Self::Room(set) => (3 * Self::WITH_SET) | u64::from(set),
        }
    }

    fn of_code(code: u64) -> Self {
        let set = (code % Self::WITH_SET) as u32;
        match (code / Self::WITH_SET, set) {
            (0, 1) => Self::Held,
            (0, 2) => Self::HeldRoom,
            (0, 3) => Self::Lock,
            (1, set) => Self::Answer(set),
            (2, set) => Self::Serving(set),
            (3, set) => Self::Room(set),
            _ => Self::Turn,
        }
    }
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Turn => f.write_str("its turn"),
            Self::Held => f.write_str("held changes of the file to be sent"),
            Self::HeldRoom => f.write_str("room for more held changes"),
            Self::Lock => f.write_str("a lock that another owner holds"),
            Self::Answer(set) => write!(f, "the answer of set {set}"),
            Self::Serving(set) => write!(f, "set {set} to serve"),
            Self::Room(set) => write!(f, "set {set} to take another request"),
        }
    }
}

/// What an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// Index in the names of its [`Watch`].
    pub kind: usize,
    /// The inode it is about.
    pub inode: u64,
    /// Who asks: a process of this machine, or a session.
    pub asker: u64,
    /// The asker's number for it, if it has one.
    pub number: u64,
    /// When it was asked for.
    pub started: Mono,
}

/// An operation that has not ended.
#[derive(Debug)]
pub struct Flight {
    /// What it is.
    pub op: Op,
    /// The name it is about, in the directory that is its inode.
    pub name: Option<Bytes>,
    watch: Arc<Watch>,
    place: AtomicU64,
    waits: AtomicU64,
    failed: AtomicBool,
    told: AtomicBool,
    cause: Mutex<Option<String>>,
}

/// [`Flight::place`] of one that is not listed.
const NOWHERE: u64 = u64::MAX;

/// An operation that ends with an error.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// The operation.
    pub op: Op,
    /// The name it is about, if any.
    pub name: Option<&'a Bytes>,
    /// What its asker is told; nothing: it goes on, and a person should know of the cause all the same.
    pub errno: Option<Errno>,
    /// Why, if somebody said so.
    pub cause: Option<&'a str>,
}

/// Is told of every failure.
pub type Teller = Box<dyn Fn(&Failure<'_>) + Send + Sync>;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Flight>>> = const { RefCell::new(None) };
    static CAUSE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The operation whose task runs on this thread now.
pub fn current() -> Option<Arc<Flight>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Says what the operation whose task runs on this thread waits for.
pub fn waits_for(wait: Wait) {
    CURRENT.with_borrow(|flight| {
        if let Some(flight) = flight {
            flight.waits.store(wait.code(), Ordering::Relaxed);
        }
    });
}

/// Says why what runs on this thread is about to fail; the last one to say so is believed.
pub fn fails_because(cause: impl FnOnce() -> String) {
    CURRENT.with_borrow(|flight| match flight {
        Some(flight) => *flight.cause.lock() = Some(cause()),
        None => CAUSE.set(Some(cause())),
    });
}

/// What [`fails_because`] said last on this thread outside of any operation.
pub fn last_cause() -> Option<String> {
    CAUSE.take()
}

impl Flight {
    /// What it waits for.
    pub fn waits(&self) -> Wait {
        Wait::of_code(self.waits.load(Ordering::Relaxed))
    }

    /// It ends with an error, which its asker is about to be told.
    pub fn failed(&self, errno: Errno) {
        self.failed.store(true, Ordering::Relaxed);
        let cause = self.cause.lock().clone();
        let failure = Failure {
            op: self.op,
            name: self.name.as_ref(),
            errno: Some(errno),
            cause: cause.as_deref(),
        };
        self.watch.tell(&failure);
    }

    /// Something went wrong that its asker is not told of, as it can go on.
    pub fn remark(&self, cause: &str) {
        self.watch.tell(&Failure {
            op: self.op,
            name: self.name.as_ref(),
            errno: None,
            cause: Some(cause),
        });
    }

    /// Why it fails, if somebody said so.
    pub fn cause(&self) -> Option<String> {
        self.cause.lock().clone()
    }

    /// Runs the operation's task; it counts as ended when the task does. `now` tells the time.
    pub fn run<F: Future<Output = ()>>(
        self: Arc<Self>,
        now: impl Fn() -> Mono + Unpin,
        task: F,
    ) -> impl Future<Output = ()> {
        Run {
            flight: Some(self),
            now,
            task: Box::pin(task),
        }
    }

    /// It ends with an error that nobody is told of here.
    pub fn mark_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// It has ended.
    pub fn end(&self, now: Mono) {
        self.watch.unlist(self);
        let took = now.since(self.op.started);
        let failed = self.failed.load(Ordering::Relaxed);
        self.watch.histograms.count(self.op.kind, took, failed);
    }

    /// It is not done, and will not be: it counts as nothing.
    pub fn leave(&self) {
        self.watch.unlist(self);
    }

    /// As shown in a state dump.
    fn state(&self, now: Mono) -> FlightState {
        FlightState {
            operation: self.watch.name(self.op.kind),
            inode: self.op.inode,
            asker: self.op.asker,
            number: self.op.number,
            age_ms: now.since(self.op.started).as_millis() as u64,
            waits_for: self.waits().to_string(),
        }
    }
}

/// A task that says whose it is while it runs.
struct Run<N, F> {
    flight: Option<Arc<Flight>>,
    now: N,
    task: Pin<Box<F>>,
}

impl<N: Fn() -> Mono + Unpin, F: Future<Output = ()>> Future for Run<N, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(flight) = self.flight.take() else {
            return Poll::Ready(());
        };
        flight.watch.list(&flight);
        let before = CURRENT.replace(Some(flight));
        let polled = self.task.as_mut().poll(context);
        let flight = CURRENT.replace(before);
        if polled.is_ready() {
            if let Some(flight) = flight {
                flight.end((self.now)());
            }
        } else {
            self.flight = flight;
        }
        polled
    }
}

impl<N, F> Drop for Run<N, F> {
    fn drop(&mut self) {
        // Dropped with its runtime: it will not end any more.
        if let Some(flight) = &self.flight {
            flight.watch.unlist(flight);
        }
    }
}

/// One operation in flight, as a state dump shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct FlightState {
    /// Its name.
    pub operation: &'static str,
    /// The inode it is about.
    pub inode: u64,
    /// Process or session that asked.
    pub asker: u64,
    /// Its number for it, if it has one.
    pub number: u64,
    /// How long ago it was asked for.
    pub age_ms: u64,
    /// What it waits for.
    pub waits_for: String,
}

#[derive(Default)]
struct Listed {
    slots: Vec<Option<Arc<Flight>>>,
    free: Vec<usize>,
}

/// See the module.
pub struct Watch {
    names: &'static [&'static str],
    histograms: Histograms,
    /// Locked only by the thread that runs the tasks, and by who looks.
    listed: Mutex<Listed>,
    teller: OnceLock<Teller>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    /// A watch over operations of these names; an operation's kind is the index of its name.
    pub fn new(names: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            names,
            histograms: Histograms::new(names.len()),
            listed: Mutex::default(),
            teller: OnceLock::new(),
        })
    }

    /// Says who is told of failures.
    pub fn set_teller(&self, teller: Teller) {
        // A watch has one teller; the first stays.
        let _ = self.teller.set(teller);
    }

    /// Tells of a failure.
    pub fn tell(&self, failure: &Failure<'_>) {
        if let Some(teller) = self.teller.get() {
            teller(failure);
        }
    }

    /// Name of a kind.
    pub fn name(&self, kind: usize) -> &'static str {
        self.names.get(kind).copied().unwrap_or("other")
    }

    /// An operation that will be done by a task, or ended by [`Flight::end`].
    pub fn flight(self: &Arc<Self>, op: Op, name: Option<Bytes>) -> Arc<Flight> {
        Arc::new(Flight {
            op,
            name,
            watch: Arc::clone(self),
            place: AtomicU64::new(NOWHERE),
            waits: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            told: AtomicBool::new(false),
            cause: Mutex::new(None),
        })
    }

    /// An operation that was done at once.
    pub fn done(&self, op: &Op, now: Mono, failed: bool) {
        self.histograms
            .count(op.kind, now.since(op.started), failed);
    }

    /// Lists an operation among those in flight, if it is not.
    pub fn list(&self, flight: &Arc<Flight>) {
        if flight.place.load(Ordering::Relaxed) != NOWHERE {
            return;
        }
        let mut listed = self.listed.lock();
        let at = match listed.free.pop() {
            Some(at) => at,
            None => {
                listed.slots.push(None);
                listed.slots.len() - 1
            }
        };
        listed.slots[at] = Some(Arc::clone(flight));
        flight.place.store(at as u64, Ordering::Relaxed);
    }

    fn unlist(&self, flight: &Flight) {
        let place = flight.place.swap(NOWHERE, Ordering::Relaxed);
        if place == NOWHERE {
            return;
        }
        let mut listed = self.listed.lock();
        let at = place as usize;
        // Dropped after the lock is given back.
        let _gone = listed.slots.get_mut(at).and_then(Option::take);
        listed.free.push(at);
        drop(listed);
    }

    /// All operations in flight, oldest first.
    pub fn in_flight(&self) -> Vec<Arc<Flight>> {
        let mut all: Vec<_> = self.listed.lock().slots.iter().flatten().cloned().collect();
        all.sort_by_key(|flight| flight.op.started);
        all
    }

    /// The same for a state dump.
    pub fn states(&self, now: Mono) -> Vec<FlightState> {
        let flights = self.in_flight();
        flights.iter().map(|flight| flight.state(now)).collect()
    }

    /// Operations that have become older than [`SLOW`] since this was asked last.
    pub fn newly_slow(&self, now: Mono) -> Vec<FlightState> {
        let old = |flight: &&Arc<Flight>| now.since(flight.op.started) > SLOW;
        let flights = self.in_flight();
        let slow = flights.iter().take_while(old);
        slow.filter(|flight| !flight.told.swap(true, Ordering::Relaxed))
            .map(|flight| flight.state(now))
            .collect()
    }

    /// Counts of all kinds, by index.
    pub fn sums(&self) -> Vec<Sum> {
        let kinds = 0..self.names.len();
        kinds.map(|kind| self.histograms.sum(kind)).collect()
    }

    /// Counts and latencies of the kinds that were asked for at least once.
    pub fn stats(&self) -> Vec<OpStats> {
        named(self.names, &self.sums())
    }
}

/// Puts names to sums and leaves out what never happened.
pub fn named(names: &[&str], sums: &[Sum]) -> Vec<OpStats> {
    let all = names.iter().zip(sums);
    all.filter(|(_, sum)| sum.count() > 0)
        .map(|(name, sum)| sum.stats(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const NAMES: &[&str] = &["read", "write"];

    fn op(kind: usize, started: u64) -> Op {
        Op {
            kind,
            inode: 7,
            asker: 1,
            number: 0,
            started: Mono(started),
        }
    }

    #[tokio::test]
    async fn a_waiting_task_is_listed_with_what_it_waits_for() {
        let watch = Watch::new(NAMES);
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        static NOW: AtomicU64 = AtomicU64::new(0);
        let now = || Mono(NOW.load(Ordering::Relaxed));
        let flight = watch.flight(op(1, 0), Some(Bytes::from_static(b"n")));
        let (tell, told) = std::sync::mpsc::channel();
        watch.set_teller(Box::new(move |failure| {
            let cause = failure.cause.map(str::to_owned);
            tell.send((failure.name.cloned(), failure.errno, cause))
                .unwrap();
        }));
        let task = tokio::spawn(flight.run(now, async move {
            waits_for(Wait::Answer(3));
            let _ = wait.await;
            waits_for(Wait::Turn);
            fails_because(|| "no".to_owned());
            let current = current().expect("inside");
            assert_eq!(current.cause().as_deref(), Some("no"));
            current.failed(Errno::EIO);
        }));
        tokio::task::yield_now().await;
        assert!(current().is_none(), "only inside the task");
        NOW.store(6_000_000_000, Ordering::Relaxed);
        let slow = watch.newly_slow(now());
        assert_eq!(slow.len(), 1);
        assert_eq!(
            (
                slow[0].operation,
                slow[0].waits_for.as_str(),
                slow[0].age_ms
            ),
            ("write", "the answer of set 3", 6_000)
        );
        assert!(watch.newly_slow(now()).is_empty(), "told once");
        assert_eq!(watch.states(now()), slow);
        go.send(()).unwrap();
        task.await.unwrap();
        let name = Some(Bytes::from_static(b"n"));
        assert_eq!(
            told.recv().unwrap(),
            (name, Some(Errno::EIO), Some("no".to_owned()))
        );
        assert!(watch.in_flight().is_empty());
        let stats = watch.stats();
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].name.as_str(), stats[0].failed), ("write", 1));
        assert_eq!(stats[0].max_ns, 6_000_000_000);
    }

    #[tokio::test]
    async fn a_dropped_task_is_not_listed_for_ever() {
        let watch = Watch::new(NAMES);
        let flight = watch.flight(op(0, 0), None);
        let mut run = Box::pin(flight.run(|| Mono(1), std::future::pending()));
        assert!(futures_util::poll!(run.as_mut()).is_pending());
        assert_eq!(watch.in_flight().len(), 1);
        drop(run);
        assert!(watch.in_flight().is_empty());
        let again = watch.flight(op(0, 0), None);
        watch.list(&again);
        again.end(Mono(5));
        assert!(watch.in_flight().is_empty());
        assert_eq!(watch.stats()[0].count, 1);
    }

    #[test]
    fn every_wait_has_a_code_of_its_own() {
        use Wait::*;
        for wait in [
            Turn,
            Answer(0),
            Answer(9),
            Serving(2),
            Room(1),
            Held,
            HeldRoom,
            Lock,
        ] {
            assert_eq!(Wait::of_code(wait.code()), wait);
        }
    }
}
