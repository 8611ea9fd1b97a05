//! Samples, medians and what is printed of them; and the disks that several components need.

use std::sync::Arc;
use std::time::Duration;

use mortar_benches::stats::median;
use mortar_protocol::env_real::mono_now;
use mortar_server::device::{CreateOptions, Device, Engine, FileDevice};
use mortar_server::superblock::MIN_SIZE;
use tempfile::TempDir;

/// Why a bench cannot go on.
pub(crate) type Fail = Box<dyn std::error::Error>;

/// Samples of a line.
const SAMPLES: usize = 31;
/// A sample repeats what is quick for about so long.
const SAMPLE: Duration = Duration::from_millis(5);
/// Measures and prints.
pub(crate) struct Bench {
    filter: Option<String>,
}

impl Bench {
    /// Those whose name contains `filter`.
    pub(crate) fn new(filter: Option<String>) -> Self {
        Self { filter }
    }

    /// Whether one of these is asked for.
    pub(crate) fn wanted(&self, names: &[&str]) -> bool {
        self.filter
            .as_deref()
            .is_none_or(|filter| names.iter().any(|name| name.contains(filter)))
    }

    /// Times what is quick: as often per sample as makes it long enough for the clock.
    pub(crate) fn quick(
        &self,
        name: &str,
        mut work: impl FnMut() -> Result<(), Fail>,
    ) -> Result<(), Fail> {
        if !self.wanted(&[name]) {
            return Ok(());
        }
        let mut repeats = 0u32;
        let start = mono_now();
        while mono_now().since(start) < SAMPLE {
            work()?;
            repeats += 1;
        }
        self.line(name, Unit::Each(f64::from(repeats)), || {
            let start = mono_now();
            for _ in 0..repeats {
                work()?;
            }
            Ok(mono_now().since(start))
        })
    }

    /// Prints the median of samples that time themselves.
    pub(crate) fn line(
        &self,
        name: &str,
        unit: Unit,
        mut sample: impl FnMut() -> Result<Duration, Fail>,
    ) -> Result<(), Fail> {
        if !self.wanted(&[name]) {
            return Ok(());
        }
        sample()?;
        let mut figures = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            figures.push(unit.figure(sample()?));
        }
        figures.sort_by(f64::total_cmp);
        let middle = median(&figures);
        let spread = figures[SAMPLES * 9 / 10] - figures[SAMPLES / 10];
        let (scale, label) = unit.label(middle);
        println!(
            "{name:52} {:>12.2} {:>7.0}% {label}",
            middle / scale,
            spread / middle * 100.0
        );
        Ok(())
    }
}

/// What a sample's time means.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Time of one of so many operations.
    Each(f64),
    /// So many operations per second.
    Rate(f64),
    /// So many bytes per second.
    Bytes(f64),
}

impl Unit {
    fn figure(self, time: Duration) -> f64 {
        match self {
            Self::Each(count) => time.as_nanos() as f64 / count,
            Self::Rate(count) | Self::Bytes(count) => count / time.as_secs_f64(),
        }
    }

    fn label(self, figure: f64) -> (f64, &'static str) {
        match self {
            Self::Each(_) if figure < 1e3 => (1.0, "ns"),
            Self::Each(_) if figure < 1e6 => (1e3, "us"),
            Self::Each(_) => (1e6, "ms"),
            Self::Rate(_) => (1.0, "/s"),
            Self::Bytes(_) => (1e6, "MB/s"),
        }
    }
}

/// How long something takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T, Fail>) -> Result<Duration, Fail> {
    let start = mono_now();
    work()?;
    Ok(mono_now().since(start))
}

/// Files as devices, removed in the end.
pub(crate) struct Disks {
    dir: TempDir,
    engine: Arc<Engine>,
}

impl Disks {
    /// A new directory.
    pub(crate) fn new() -> Result<Self, Fail> {
        let dir = std::env::var_os("MORTAR_BENCH_DIR")
            .map_or_else(std::env::temp_dir, std::path::PathBuf::from);
        Ok(Self {
            dir: TempDir::with_prefix_in("mortar-bench-", dir)?,
            engine: Engine::new(),
        })
    }

    /// A device of 1 GiB.
    pub(crate) fn device(&self, name: &str) -> Result<Arc<dyn Device>, Fail> {
        let options = CreateOptions {
            size: Some(1 << 30),
            least: MIN_SIZE,
            force: true,
        };
        let path = self.dir.path().join(name);
        Ok(Arc::new(FileDevice::create(&path, &options, &self.engine)?))
    }
}
