//! Counts and latencies per kind of operation: a shard of counters per thread, added up when somebody looks.
//!
//! Latencies fall into buckets of an eighth of a power of two, from 256 ns to four minutes, so a percentile is right to
//! about a tenth.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Threads beyond so many share shards.
const SHARDS: usize = 16;
/// Shortest latency told apart is 2^this nanoseconds.
const LOWEST: u32 = 8;
/// Powers of two covered.
const OCTAVES: usize = 30;
/// Buckets per power of two.
const STEPS: usize = 8;
const BUCKETS: usize = 1 + OCTAVES * STEPS;

/// Which shard this thread counts in.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    OWN.with(|own| *own)
}

fn bucket(nanos: u64) -> usize {
    let power = 63 - nanos.max(1).leading_zeros();
    if power < LOWEST {
        return 0;
    }
    let step = (nanos >> (power - 3)) as usize & (STEPS - 1);
    (1 + (power - LOWEST) as usize * STEPS + step).min(BUCKETS - 1)
}

/// The first latency beyond a bucket.
fn upper(bucket: usize) -> u64 {
    match bucket.checked_sub(1) {
        None => 1 << LOWEST,
        Some(at) => ((STEPS + at % STEPS + 1) as u64) << (LOWEST as usize + at / STEPS - 3),
    }
}

struct Counters {
    failed: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Counters {
    fn new() -> Self {
        Self {
            failed: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

/// Counters of a number of kinds. Counting takes no lock and waits for nobody.
pub struct Histograms {
    kinds: usize,
    shards: [OnceLock<Box<[Counters]>>; SHARDS],
}

impl Histograms {
    /// Counters for the kinds below `kinds`.
    pub fn new(kinds: usize) -> Self {
        Self {
            kinds,
            shards: [const { OnceLock::new() }; SHARDS],
        }
    }

    /// Counts an operation.
    pub fn count(&self, kind: usize, took: Duration, failed: bool) {
        let shard =
            self.shards[shard()].get_or_init(|| (0..self.kinds).map(|_| Counters::new()).collect());
        let Some(counters) = shard.get(kind) else {
            return;
        };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        counters.nanos.fetch_add(nanos, Ordering::Relaxed);
        if failed {
            counters.failed.fetch_add(1, Ordering::Relaxed);
        }
        if counters.longest.load(Ordering::Relaxed) < nanos {
            counters.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// What was counted of one kind.
    pub fn sum(&self, kind: usize) -> Sum {
        let mut sum = Sum::default();
        let shards = self.shards.iter().filter_map(OnceLock::get);
        for counters in shards.filter_map(|shard| shard.get(kind)) {
            sum.failed += counters.failed.load(Ordering::Relaxed);
            sum.nanos = sum
                .nanos
                .saturating_add(counters.nanos.load(Ordering::Relaxed));
            sum.longest = sum.longest.max(counters.longest.load(Ordering::Relaxed));
            for (at, bucket) in counters.buckets.iter().enumerate() {
                let count = bucket.load(Ordering::Relaxed);
                if count > 0 {
                    sum.add(at, count);
                }
            }
        }
        sum
    }
}

/// Operations of one kind, added up.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Sum {
    /// Those that ended with an error.
    pub failed: u64,
    nanos: u64,
    longest: u64,
    buckets: Vec<u64>,
}

impl Sum {
    fn add(&mut self, bucket: usize, count: u64) {
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] = self.buckets[bucket].saturating_add(count);
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.failed = self.failed.saturating_add(other.failed);
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.longest = self.longest.max(other.longest);
        // More than there are kinds of come from elsewhere only.
        for (at, count) in other.buckets.iter().take(BUCKETS).enumerate() {
            self.add(at, *count);
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The latency, in nanoseconds, that `per_mille` of a thousand operations did not exceed.
    fn percentile(&self, per_mille: u64) -> u64 {
        let count = self.count();
        let rank = (count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (at, in_bucket) in self.buckets.iter().enumerate() {
            seen += in_bucket;
            if seen >= rank {
                return upper(at).min(self.longest);
            }
        }
        self.longest
    }

    /// As shown to people.
    pub fn stats(&self, name: &str) -> OpStats {
        let count = self.count();
        OpStats {
            name: name.to_owned(),
            count,
            failed: self.failed,
            mean_ns: self.nanos.checked_div(count).unwrap_or(0),
            p50_ns: self.percentile(500),
            p90_ns: self.percentile(900),
            p99_ns: self.percentile(990),
            p999_ns: self.percentile(999),
            max_ns: self.longest,
        }
    }
}

/// Count and latencies of one kind of operation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct OpStats {
    /// Name of the operation.
    pub name: String,
    /// How many have ended.
    pub count: u64,
    /// Those of them that ended with an error (a name that is not there is one).
    pub failed: u64,
    /// Mean latency.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// Nine of ten took no longer.
    pub p90_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1,000 took no longer.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_lies_below_its_end(nanos in 0u64..1 << 37) {
            let at = bucket(nanos);
            prop_assert!(nanos < upper(at));
            prop_assert!(at == 0 || nanos >= upper(at - 1));
            prop_assert!(at == 0 || upper(at) - nanos <= nanos / 8 + 1);
        }

        #[test]
        fn percentiles_are_right_to_an_eighth(
            mut all in prop::collection::vec(300u64..1 << 36, 1..200), per_mille in 1u64..=1000,
        ) {
            let counted = Histograms::new(1);
            for nanos in &all {
                counted.count(0, Duration::from_nanos(*nanos), false);
            }
            all.sort_unstable();
            let rank = (all.len() as u64 * per_mille).div_ceil(1000).max(1) as usize;
            let (exact, told) = (all[rank - 1], counted.sum(0).percentile(per_mille));
            prop_assert!(told >= exact && told <= exact + exact / 8 + 1, "{told} for {exact}");
        }
    }

    #[test]
    fn threads_and_shards_add_up() {
        let counted = Histograms::new(2);
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for n in 0..100 {
                        counted.count(1, Duration::from_micros(n), n == 0);
                    }
                });
            }
        });
        let mut sum = counted.sum(1);
        assert_eq!((sum.count(), sum.failed), (4_000, 40));
        sum.merge(&counted.sum(1));
        let stats = sum.stats("x");
        assert_eq!(
            (stats.count, stats.failed, stats.max_ns),
            (8_000, 80, 99_000)
        );
        assert_eq!(stats.mean_ns, 49_500);
        assert_eq!(counted.sum(0).stats("none").count, 0);
        counted.count(9, Duration::ZERO, false);
    }
}
