//! Read-ahead of one handle: recognises sequential reads and keeps what was read before it is asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use mortar_protocol::env::Mono;
use mortar_protocol::error::Errno;

/// Most bytes ahead of one handle.
pub const WINDOW: u64 = 4 << 20;
/// Bytes ahead when a run of sequential reads begins.
const FIRST_WINDOW: u64 = 512 << 10;
/// Largest single request, and what requests are aligned to.
const CHUNK: u64 = 1 << 20;
/// Smallest request.
const MIN_CHUNK: u64 = 128 << 10;
/// Reads of at least this size may arrive in any order and still count as a run.
const BIG: u64 = 64 << 10;
/// How far out of order they may be.
const SLACK: u64 = 2 << 20;

/// A read under way or done; the data, and when it arrived.
pub type Reading = Shared<BoxFuture<'static, Result<(Bytes, Mono), Errno>>>;

/// Bytes read ahead by all handles of a client.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
        })
    }

    /// Bytes taken.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes` of it, given back when the share is dropped.
    fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .ok()?;
        Some(Share {
            budget: self.clone(),
            bytes,
        })
    }
}

/// Part of a [`Budget`].
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One request made ahead.
#[derive(Debug)]
struct Chunk {
    offset: u64,
    len: u64,
    version: u64,
    reading: Reading,
    _share: Share,
}

/// State of one handle.
#[derive(Debug, Default)]
pub struct Ahead {
    /// End of the furthest read.
    next: u64,
    window: u64,
    /// Reads that followed one another.
    run: u32,
    chunks: VecDeque<Chunk>,
}

/// A request to be made ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub len: u64,
}

impl Ahead {
    /// Drops what was read ahead.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.window = 0;
        self.run = 0;
    }

    /// A read of `[offset, offset + len)` of a file of `size` bytes arrives: which requests to make now.
    pub fn plan(&mut self, offset: u64, len: u64, size: u64, version: u64) -> Vec<Plan> {
        self.chunks.retain(|chunk| chunk.version == version);
        let end = offset + len;
        let near = len >= BIG && offset.abs_diff(self.next) <= SLACK;
        if offset != self.next && !near {
            self.clear();
            self.next = end;
            return Vec::new();
        }
        self.next = self.next.max(end);
        self.run = self.run.saturating_add(1);
        if self.run < 2 && len < BIG {
            return Vec::new();
        }
        self.window = match self.window {
            0 => FIRST_WINDOW,
            window => (window * 2).min(WINDOW),
        };
        // What lies behind the reader by more than reordering can explain is not needed again.
        let behind = self.next.saturating_sub(SLACK.max(len));
        self.chunks
            .retain(|chunk| chunk.offset + chunk.len > behind);
        let mut from = self.chunks.back().map_or(self.next, |c| c.offset + c.len);
        if from < self.next {
            from = self.next;
        }
        let until = (self.next + self.window).min(size);
        let mut plans = Vec::new();
        // A new request is worth its cost only once a good part of the window is free.
        while from < until && (until - from >= MIN_CHUNK || until == size) {
            let chunk = (self.window / 4).clamp(MIN_CHUNK, CHUNK);
            let aligned = (from / chunk + 1) * chunk;
            let len = aligned.min(until) - from;
            if len < chunk && aligned > until && until < size {
                break;
            }
            plans.push(Plan { offset: from, len });
            from += len;
        }
        plans
    }

    /// Room in the budget for a planned request; `None` if there is none.
    pub fn add(
        &mut self,
        plan: Plan,
        version: u64,
        budget: &Arc<Budget>,
        reading: BoxFuture<'static, Result<(Bytes, Mono), Errno>>,
    ) -> Option<Reading> {
        let share = budget.take(plan.len as usize)?;
        let reading = reading.shared();
        self.chunks.push_back(Chunk {
            offset: plan.offset,
            len: plan.len,
            version,
            reading: reading.clone(),
            _share: share,
        });
        Some(reading)
    }

    /// Requests that overlap `[offset, end)` with their first bytes, in order, or `None` if they leave a gap.
    pub fn covering(&self, offset: u64, end: u64, version: u64) -> Option<Vec<(u64, Reading)>> {
        let mut at = offset;
        let mut found = Vec::new();
        for chunk in &self.chunks {
            if at >= end {
                break;
            }
            if chunk.version == version && chunk.offset <= at && at < chunk.offset + chunk.len {
                found.push((chunk.offset, chunk.reading.clone()));
                at = chunk.offset + chunk.len;
            }
        }
        (at >= end && !found.is_empty()).then_some(found)
    }
}

/// Puts `[offset, end)` together from parts that cover it; `None` if one is older than `fresh`. Ends at the first
/// part that is shorter than it should be (the end of the file).
pub fn assemble(
    parts: &[(u64, Bytes, Mono)],
    offset: u64,
    end: u64,
    now: Mono,
    fresh: Duration,
) -> Option<Bytes> {
    let cut = |start: u64, data: &Bytes| {
        let first = (offset.max(start) - start).min(data.len() as u64) as usize;
        let last = (end.saturating_sub(start)).min(data.len() as u64) as usize;
        data.slice(first..last.max(first))
    };
    if parts.iter().any(|(_, _, at)| now.since(*at) > fresh) {
        return None;
    }
    if let [(start, data, _)] = parts {
        return Some(cut(*start, data));
    }
    let mut out = Vec::with_capacity((end - offset) as usize);
    for (start, data, _) in parts {
        if offset + out.len() as u64 != offset.max(*start) {
            break;
        }
        out.extend_from_slice(&cut(*start, data));
    }
    Some(out.into())
}

/// The data of requests that are all done; `None` if one is not.
pub fn ready(parts: &[(u64, Reading)]) -> Option<Result<Vec<(u64, Bytes, Mono)>, Errno>> {
    let mut out = Vec::with_capacity(parts.len());
    for (offset, reading) in parts {
        match reading.peek()? {
            Ok((data, at)) => out.push((*offset, data.clone(), *at)),
            Err(errno) => return Some(Err(*errno)),
        }
    }
    Some(Ok(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn done(len: u64) -> BoxFuture<'static, Result<(Bytes, Mono), Errno>> {
        let data = Bytes::from(vec![0; len as usize]);
        Box::pin(async move { Ok((data, Mono(0))) })
    }

    /// Reads in `order` and gives everything asked ahead.
    fn run(ahead: &mut Ahead, order: &[(u64, u64)], size: u64) -> Vec<Plan> {
        let budget = Budget::new(64 << 20);
        let mut all = Vec::new();
        for (offset, len) in order {
            for plan in ahead.plan(*offset, *len, size, 1) {
                assert!(ahead.add(plan, 1, &budget, done(plan.len)).is_some());
                all.push(plan);
            }
        }
        all
    }

    #[test]
    fn a_sequential_reader_is_read_ahead_of_up_to_the_window() {
        let mut ahead = Ahead::default();
        let reads: Vec<(u64, u64)> = (0..64).map(|i| ((i * 128) << 10, 128 << 10)).collect();
        let plans = run(&mut ahead, &reads, 100 * MB);
        for pair in plans.windows(2) {
            assert_eq!(pair[0].offset + pair[0].len, pair[1].offset, "no gap");
        }
        let end = plans.last().map(|p| p.offset + p.len).unwrap();
        assert!(end > 8 * MB + 2 * MB && end <= 8 * MB + WINDOW, "{end}");
        assert!(plans.iter().all(|p| p.len <= CHUNK));
    }

    #[test]
    fn a_random_reader_is_not() {
        let mut ahead = Ahead::default();
        let reads = [(5 * MB, 4096), (90 * MB, 4096), (MB, 4096), (70 * MB, 4096)];
        assert!(run(&mut ahead, &reads, 100 * MB).is_empty());
    }

    #[test]
    fn big_reads_may_come_out_of_order() {
        let mut ahead = Ahead::default();
        let k = 128 << 10;
        let reads = [
            (0, k),
            (2 * k, k),
            (k, k),
            (3 * k, k),
            (5 * k, k),
            (4 * k, k),
        ];
        let plans = run(&mut ahead, &reads, 100 * MB);
        assert!(!plans.is_empty());
        for pair in plans.windows(2) {
            assert_eq!(pair[0].offset + pair[0].len, pair[1].offset);
        }
    }

    #[test]
    fn it_stops_at_the_end_of_the_file_and_at_the_budget() {
        let mut ahead = Ahead::default();
        assert!(run(&mut ahead, &[(0, 1000)], 10_000).is_empty());
        let plans = run(&mut ahead, &[(1000, 1000)], 10_000);
        let rest = Plan {
            offset: 2000,
            len: 8000,
        };
        assert_eq!(plans, [rest]);
        let budget = Budget::new(100);
        assert!(ahead.add(plans[0], 1, &budget, done(1)).is_none());
        let small = Plan { offset: 0, len: 60 };
        assert!(ahead.add(small, 1, &budget, done(1)).is_some());
        assert!(ahead.add(small, 1, &budget, done(1)).is_none());
        ahead.clear();
        assert!(ahead.add(small, 1, &budget, done(1)).is_some());
    }

    #[test]
    fn a_change_of_the_file_drops_what_was_read() {
        let mut ahead = Ahead::default();
        run(&mut ahead, &[(0, 4096), (4096, 4096)], 10 * MB);
        assert!(ahead.covering(8192, 12288, 1).is_some());
        assert!(ahead.covering(8192, 12288, 2).is_none());
        ahead.plan(8192, 4096, 10 * MB, 2);
        assert!(ahead.covering(8192, 12288, 1).is_none());
    }

    #[test]
    fn parts_are_put_together_and_end_with_a_short_one() {
        let parts = [
            (0, Bytes::from_static(b"0123456789"), Mono(0)),
            (10, Bytes::from_static(b"abc"), Mono(0)),
        ];
        let now = Mono(500);
        let fresh = Duration::from_secs(1);
        let got = assemble(&parts, 5, 20, now, fresh).unwrap();
        assert_eq!(&got[..], b"56789abc");
        assert!(assemble(&parts, 5, 20, Mono(2_000_000_000), fresh).is_none());
        assert_eq!(
            &assemble(&parts[..1], 8, 10, now, fresh).unwrap()[..],
            b"89"
        );
    }
}
