//! Gathers flushes: bricks on one file system that want one in the same instant share it.
//!
//! While the flush of one host device is under way, further requests for it wait and are then served together. Two or
//! more files of one file system share one syncfs, which costs about as much as one fdatasync.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Done;
use super::file::Inner;
use super::pool::Pool;

/// Host devices that can be flushed at the same time.
const THREADS: usize = 4;

/// Something that can be flushed alone or together with others on the same host.
pub(super) trait Flushable: Send + Sync + 'static {
    /// Those with an equal host may share a flush; `None`: never.
    fn host(&self) -> Option<u64>;
    /// A number that tells one file from another.
    fn identity(&self) -> usize;
    /// Flushes this one; fails if an earlier flush of it has failed.
    fn flush_alone(&self) -> io::Result<()>;
    /// Fails if an earlier flush of this one has failed.
    fn check(&self) -> io::Result<()>;
    /// Flushes the whole host.
    fn flush_host(&self) -> io::Result<()>;
}

/// Serves flush requests on a few threads.
pub(super) struct Flusher<T = Inner> {
    pool: Pool,
    state: Arc<Mutex<State<T>>>,
}

/// Requests by host; a host that is being flushed has an entry, even if nothing waits.
type State<T> = BTreeMap<Key, Vec<Request<T>>>;

/// A host, or a single file that shares with nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Host(u64),
    Alone(usize),
}

struct Request<T> {
    device: Arc<T>,
    done: Done<()>,
}

impl<T: Flushable> Flusher<T> {
    /// A flusher with nothing to do.
    pub(super) fn new() -> Self {
        Self {
            pool: Pool::new("mortar-flush", THREADS),
            state: Arc::new(Mutex::new(BTreeMap::new())),
        }
    }

    /// Flushes what has been written to `device` before this call, then calls `done`.
    pub(super) fn flush(&self, device: Arc<T>, done: Done<()>) {
        let key = match device.host() {
            Some(host) => Key::Host(host),
            None => Key::Alone(device.identity()),
        };
        let request = Request { device, done };
        let mut state = self.state.lock();
        if let Some(waiting) = state.get_mut(&key) {
            waiting.push(request);
            return;
        }
        state.insert(key, vec![request]);
        drop(state);
        let state = self.state.clone();
        self.pool.run(Box::new(move || serve(&state, key)));
    }
}

/// Serves one host until nothing more waits for it.
fn serve<T: Flushable>(state: &Mutex<State<T>>, key: Key) {
    loop {
        let batch = {
            let mut state = state.lock();
            match state.get_mut(&key) {
                Some(waiting) if !waiting.is_empty() => std::mem::take(waiting),
                _ => {
                    state.remove(&key);
                    return;
                }
            }
        };
        serve_batch(batch);
    }
}

fn serve_batch<T: Flushable>(batch: Vec<Request<T>>) {
    let mut devices: BTreeMap<usize, Vec<Request<T>>> = BTreeMap::new();
    for request in batch {
        devices
            .entry(request.device.identity())
            .or_default()
            .push(request);
    }
    // A failed shared flush does not say whose data was lost: each file is then asked for its own.
    let shared = devices.len() >= 2
        && devices
            .values()
            .find_map(|requests| requests.first())
            .is_some_and(|request| request.device.flush_host().is_ok());
    for requests in devices.into_values() {
        let result = match requests.first() {
            Some(request) if shared => request.device.check(),
            Some(request) => request.device.flush_alone(),
            None => Ok(()),
        };
        for request in requests {
            (request.done)(copy(&result));
        }
    }
}

/// The same result for several callers; the error keeps its number.
fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(copy_error(error)),
    }
}

fn copy_error(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// The first failed flush of a file. The kernel tells a failure once: of two flushes under way at the same time (the
/// log's and a checkpoint's), and of all later ones, only one would hear of it. So they take turns, and fail for good.
#[derive(Default)]
pub(super) struct Failure(Mutex<Option<io::Error>>);

impl Failure {
    /// Runs a flush, unless one has failed.
    pub(super) fn flush(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.0.lock();
        if let Some(error) = &*failed {
            return Err(copy_error(error));
        }
        let result = flush();
        if let Err(error) = &result {
            *failed = Some(copy_error(error));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Fake {
        number: usize,
        host: Option<u64>,
        host_fails: bool,
        alone_fails: bool,
        failure: Failure,
        gate: Mutex<Option<mpsc::Receiver<()>>>,
        log: mpsc::Sender<String>,
    }

    impl Flushable for Fake {
        fn host(&self) -> Option<u64> {
            self.host
        }

        fn identity(&self) -> usize {
            self.number
        }

        fn flush_alone(&self) -> io::Result<()> {
            self.log.send(format!("alone {}", self.number)).unwrap();
            if let Some(gate) = self.gate.lock().take() {
                let _ = gate.recv();
            }
            if self.alone_fails {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            Ok(())
        }

        fn check(&self) -> io::Result<()> {
            self.failure.flush(|| Ok(()))
        }

        fn flush_host(&self) -> io::Result<()> {
            self.log.send("host".to_owned()).unwrap();
            if self.host_fails {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            Ok(())
        }
    }

    /// One flush is held up while three devices ask (the third twice); returns what was flushed and each one's result.
    fn gathered(host: Option<u64>, host_fails: bool) -> (Vec<String>, Vec<(usize, bool)>) {
        let (log, lines) = mpsc::channel();
        let (open, gate) = mpsc::channel();
        let mut gate = Some(gate);
        let devices: Vec<Arc<Fake>> = (0..4)
            .map(|number| {
                Arc::new(Fake {
                    number,
                    host,
                    host_fails,
                    alone_fails: number == 2,
                    failure: Failure::default(),
                    gate: Mutex::new(gate.take()),
                    log: log.clone(),
                })
            })
            .collect();
        let flusher = Flusher::new();
        let (results, got) = mpsc::channel();
        let ask = |number: usize| {
            let results = results.clone();
            let done: Done<()> =
                Box::new(move |result| results.send((number, result.is_ok())).unwrap());
            flusher.flush(devices[number].clone(), done);
        };
        ask(0);
        let mut flushed = vec![lines.recv().unwrap()];
        (1..4).for_each(ask);
        ask(3);
        open.send(()).unwrap();
        let mut results: Vec<_> = (0..5).map(|_| got.recv().unwrap()).collect();
        results.sort_unstable();
        flushed.extend(lines.try_iter());
        (flushed, results)
    }

    #[test]
    fn a_failed_flush_is_heard_by_all_that_were_under_way_and_all_later_ones() {
        let failure = Arc::new(Failure::default());
        let (entered, wait_entered) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let first = failure.clone();
        let first = std::thread::spawn(move || {
            first.flush(|| {
                entered.send(()).unwrap();
                gate.recv().unwrap();
                Err(io::Error::from_raw_os_error(libc::EIO))
            })
        });
        wait_entered.recv().unwrap();
        let (begun, wait_begun) = mpsc::channel();
        let second = failure.clone();
        // The kernel has told the first one: this one would hear nothing.
        let second = std::thread::spawn(move || {
            begun.send(()).unwrap();
            second.flush(|| Ok(()))
        });
        wait_begun.recv().unwrap();
        open.send(()).unwrap();
        assert!(first.join().unwrap().is_err());
        let number = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        assert_eq!(number(second.join().unwrap()), Some(libc::EIO));
        assert_eq!(number(failure.flush(|| Ok(()))), Some(libc::EIO));
    }

    #[test]
    fn a_shared_flush_does_not_hide_an_earlier_failure() {
        let (log, _lines) = mpsc::channel();
        let (results, got) = mpsc::channel();
        let requests = (0..2).map(|number| {
            let fake = Fake {
                number,
                host: Some(7),
                host_fails: false,
                alone_fails: false,
                failure: Failure::default(),
                gate: Mutex::new(None),
                log: log.clone(),
            };
            if number == 1 {
                let error = || Err(io::Error::from_raw_os_error(libc::EIO));
                assert!(fake.failure.flush(error).is_err());
            }
            let results = results.clone();
            Request {
                device: Arc::new(fake),
                done: Box::new(move |result| results.send((number, result.is_ok())).unwrap()),
            }
        });
        serve_batch(requests.collect());
        let mut results: Vec<_> = got.try_iter().collect();
        results.sort_unstable();
        assert_eq!(results, [(0, true), (1, false)]);
    }

    #[test]
    fn one_shared_flush_serves_all_that_waited() {
        let (flushed, results) = gathered(Some(7), false);
        assert_eq!(flushed, ["alone 0", "host"]);
        assert!(results.iter().all(|(_, ok)| *ok));
    }

    #[test]
    fn after_a_failed_shared_flush_each_repeats_its_own() {
        let (flushed, results) = gathered(Some(7), true);
        assert_eq!(
            flushed,
            ["alone 0", "host", "alone 1", "alone 2", "alone 3"]
        );
        let expected = [(0, true), (1, true), (2, false), (3, true), (3, true)];
        assert_eq!(results, expected);
    }

    #[test]
    fn without_a_common_host_each_flushes_alone() {
        let (mut flushed, results) = gathered(None, false);
        flushed.sort();
        flushed.dedup();
        assert_eq!(flushed, ["alone 0", "alone 1", "alone 2", "alone 3"]);
        assert_eq!(results.iter().filter(|(_, ok)| !ok).count(), 1);
    }
}
