//! The workloads, each on a mounted directory. Kernel caches are dropped before whatever reads, on both sides alike.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use mortar_benches::backing::{Backing, text};
use mortar_benches::process::{check, run};
use mortar_protocol::env_real::mono_now;

use crate::fio::{DEEP, FILL, Latency, SINGLE, fio};
use crate::{aged, jobs};

/// What a figure measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// Place in the table.
    pub(crate) place: u8,
    /// Name in the table.
    pub(crate) name: &'static str,
    /// Unit.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) higher_is_better: bool,
    /// The ratios that must be reached, and that are aimed at.
    pub(crate) goal: Option<(f64, f64)>,
}

impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Metric {}

impl PartialOrd for Metric {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Metric {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place.cmp(&other.place)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} {}", self.name, self.unit))
    }
}

pub(crate) const fn more(
    place: u8,
    name: &'static str,
    unit: &'static str,
    goal: Option<(f64, f64)>,
) -> Metric {
    Metric {
        place,
        name,
        unit,
        higher_is_better: true,
        goal,
    }
}

pub(crate) const fn seconds(place: u8, name: &'static str, goal: Option<(f64, f64)>) -> Metric {
    Metric {
        place,
        name,
        unit: "s",
        higher_is_better: false,
        goal,
    }
}

const UNTAR: Metric = seconds(0, "untar", Some((5.0, 8.0)));
const FIND: Metric = seconds(1, "find", Some((1.5, 2.5)));
const READ_TREE: Metric = seconds(2, "read-tree", Some((3.0, 10.0)));
const REMOVE_TREE: Metric = seconds(3, "rm-rf", Some((3.0, 6.0)));
const CREATE: Metric = more(4, "smallfile-create", "/s", Some((5.0, 10.0)));
const STAT: Metric = more(5, "smallfile-stat", "/s", Some((5.0, 10.0)));
const READ: Metric = more(6, "smallfile-read", "/s", Some((3.0, 10.0)));
const RENAME: Metric = more(7, "smallfile-rename", "/s", Some((3.0, 6.0)));
const DELETE: Metric = more(8, "smallfile-delete", "/s", Some((3.0, 6.0)));
const RANDWRITE: Metric = more(9, "randwrite-4k-qd16", "IOPS", Some((4.0, 8.0)));
const SYNCWRITE: Metric = more(10, "write+fsync-4k", "IOPS", Some((2.0, 4.0)));
const RANDREAD: Metric = more(11, "randread-4k-qd16", "IOPS", Some((2.0, 2.5)));
const LATENCY: Metric = more(12, "randread-4k-qd1", "IOPS", Some((1.3, 2.0)));
const SEQWRITE: Metric = more(13, "seqwrite-1m", "MB/s", Some((1.5, 2.5)));
const SEQREAD: Metric = more(14, "seqread-1m", "MB/s", Some((1.0, 1.3)));

/// How much to do.
pub(crate) struct Scale<'a> {
    /// What the bricks of both sides lie on.
    pub(crate) backing: &'a Backing,
    /// Seconds of timed workloads.
    pub(crate) seconds: u32,
    /// Size of the sequential file in MiB; the random one has half.
    pub(crate) file_mib: u64,
    /// Seconds of the long one.
    pub(crate) long_seconds: u32,
    /// The tar to unpack.
    pub(crate) tar: PathBuf,
}

/// One figure of one run.
pub(crate) struct Figure {
    /// What it measures.
    pub(crate) metric: Metric,
    /// How much.
    pub(crate) value: f64,
    /// How long single operations took, where fio says that.
    pub(crate) latency: Option<Latency>,
}

impl Figure {
    /// A figure alone.
    pub(crate) fn new(metric: Metric, value: f64) -> Self {
        Self {
            metric,
            value,
            latency: None,
        }
    }

    /// One of fio's.
    pub(crate) fn timed(metric: Metric, value: f64, latency: Latency) -> Self {
        Self {
            latency: Some(latency),
            ..Self::new(metric, value)
        }
    }
}

pub(crate) type Figures = Vec<Figure>;
type Run = fn(&Path, &Scale<'_>) -> Result<Figures, String>;

/// One workload.
pub(crate) struct Workload {
    /// Name, as given to `--only`.
    pub(crate) name: &'static str,
    /// Runs it below a mount.
    pub(crate) run: Run,
    /// Whether it runs unless others are asked for.
    pub(crate) usual: bool,
}

impl Workload {
    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        let all: [(_, Run, bool); 9] = [
            ("untar", untar, true),
            ("smallfile", smallfile, true),
            ("rand4k", rand4k, true),
            ("syncwrite4k", syncwrite, true),
            ("seq1m", seq, true),
            ("listing", aged::listing, false),
            ("long", aged::long, false),
            ("aged", aged::aged, false),
            ("jobs", jobs::jobs, false),
        ];
        all.map(|(name, run, usual)| Self { name, run, usual })
            .into()
    }
}

/// Seconds that something takes.
pub(crate) fn timed(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let start = mono_now();
    work()?;
    Ok(mono_now().since(start).as_secs_f64())
}

/// Makes a tar of about 2,700 entries and 44 MB of text, the shape of a large source tree.
pub(crate) fn make_tar(scratch: &Path) -> Result<PathBuf, String> {
    let root = scratch.join("tree");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let line = b"    let value = compute(input, &mut state)?; // keeps the order of entries\n";
    for n in 0..2_494u32 {
        let dir = root.join(format!("part{}/module{}", n % 23, n % 207));
        fs::create_dir_all(&dir).map_err(|err| err.to_string())?;
        // Sizes as in source trees: most are small, a few large, 17.6 KB on average.
        let size = match next() % 100 {
            0..=49 => 500 + next() % 7_000,
            50..=89 => 7_500 + next() % 22_000,
            _ => 30_000 + next() % 103_000,
        } as usize;
        let mut contents: Vec<u8> = line.iter().copied().cycle().take(size).collect();
        for at in (0..contents.len()).step_by(97) {
            contents[at] = b'a' + (next() % 26) as u8;
        }
        fs::write(dir.join(format!("file{n}.rs")), contents).map_err(|err| err.to_string())?;
    }
    let tar = scratch.join("tree.tar");
    run("tar", &["-C", text(scratch)?, "-cf", text(&tar)?, "tree"])?;
    fs::remove_dir_all(&root).map_err(|err| err.to_string())?;
    Ok(tar)
}

fn untar(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let dir = mount.join("untar");
    fs::create_dir(&dir).map_err(|err| err.to_string())?;
    // The workload before has emptied the page cache; where the tar comes from is not what is measured.
    fs::read(&scale.tar).map_err(|err| err.to_string())?;
    let unpack = timed(|| run("tar", &["-C", text(&dir)?, "-xf", text(&scale.tar)?]).map(drop))?;
    scale.backing.drop_caches()?;
    let find = timed(|| run("find", &[text(&dir)?, "-ls"]).map(drop))?;
    scale.backing.drop_caches()?;
    // Not tar: with its archive at /dev/null it does not read the files.
    let cat = format!(
        "find '{}' -type f -print0 | xargs -0 cat > /dev/null",
        text(&dir)?
    );
    let read = timed(|| run("sh", &["-c", &cat]).map(drop))?;
    scale.backing.drop_caches()?;
    let remove = timed(|| run("rm", &["-rf", text(&dir)?]).map(drop))?;
    Ok(vec![
        Figure::new(UNTAR, unpack),
        Figure::new(FIND, find),
        Figure::new(READ_TREE, read),
        Figure::new(REMOVE_TREE, remove),
    ])
}

/// As smallfile does it: threads with a directory each, and one kind of operation at a time over all files.
fn smallfile(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    const THREADS: usize = 4;
    const FILES: usize = 400;
    let root = mount.join("smallfile");
    let dirs: Vec<PathBuf> = (0..THREADS)
        .map(|thread| root.join(format!("thread{thread}")))
        .collect();
    for dir in &dirs {
        fs::create_dir_all(dir).map_err(|err| err.to_string())?;
    }
    let contents = vec![b'x'; 4096];
    let phase = |work: &(dyn Fn(&Path) -> std::io::Result<()> + Sync), name: &str| {
        check()?;
        scale.backing.drop_caches()?;
        let seconds = timed(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = dirs
                    .iter()
                    .map(|dir| {
                        scope.spawn(move || {
                            (0..FILES).try_for_each(|n| work(&dir.join(format!("{name}{n}"))))
                        })
                    })
                    .collect();
                threads.into_iter().try_for_each(|thread| {
                    thread
                        .join()
                        .map_err(|_| "a thread panicked".to_owned())?
                        .map_err(|err| err.to_string())
                })
            })
        })?;
        Ok::<f64, String>((THREADS * FILES) as f64 / seconds)
    };
    let create = phase(&|path| fs::write(path, &contents), "f")?;
    let stat = phase(&|path| fs::symlink_metadata(path).map(drop), "f")?;
    let read = phase(&|path| fs::read(path).map(drop), "f")?;
    let rename = phase(&|path| fs::rename(path, path.with_extension("new")), "f")?;
    let delete = phase(&|path| fs::remove_file(path.with_extension("new")), "f")?;
    fs::remove_dir_all(&root).map_err(|err| err.to_string())?;
    Ok(vec![
        Figure::new(CREATE, create),
        Figure::new(STAT, stat),
        Figure::new(READ, read),
        Figure::new(RENAME, rename),
        Figure::new(DELETE, delete),
    ])
}

fn rand4k(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let file = mount.join("rand4k");
    let size = format!("--size={}M", scale.file_mib / 2);
    let runtime = format!("--runtime={}", scale.seconds);
    let scratch = scale.backing.scratch();
    fio(scratch, &file, true, &[&FILL[..], &[&size]].concat())?;
    let timed = [&size[..], "--time_based", &runtime];
    let run_one = |metric, write, special: &[&str]| {
        check()?;
        scale.backing.drop_caches()?;
        let told = fio(scratch, &file, write, &[&timed, special].concat())?;
        Ok::<_, String>(Figure::timed(metric, told.iops, told.latency))
    };
    let write = [&DEEP[..], &["--rw=randwrite"]].concat();
    let read = [&DEEP[..], &["--rw=randread"]].concat();
    let single = [&SINGLE[..], &["--rw=randread"]].concat();
    let figures = vec![
        run_one(RANDWRITE, true, &write)?,
        run_one(RANDREAD, false, &read)?,
        run_one(LATENCY, false, &single)?,
    ];
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(figures)
}

fn syncwrite(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let file = mount.join("sync4k");
    let runtime = format!("--runtime={}", scale.seconds);
    let args = [
        "--rw=write",
        "--bs=4k",
        "--size=64M",
        "--ioengine=psync",
        "--fsync=1",
        "--time_based",
        &runtime,
    ];
    let told = fio(scale.backing.scratch(), &file, true, &args)?;
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(vec![Figure::timed(SYNCWRITE, told.iops, told.latency)])
}

fn seq(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let file = mount.join("seq1m");
    let size = format!("--size={}M", scale.file_mib);
    let scratch = scale.backing.scratch();
    let write = fio(scratch, &file, true, &[&FILL[..], &[&size]].concat())?;
    scale.backing.drop_caches()?;
    let read = ["--rw=read", "--bs=1M", "--ioengine=psync", &size];
    let read = fio(scratch, &file, false, &read)?;
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(vec![
        Figure::timed(SEQWRITE, write.bandwidth, write.latency),
        Figure::timed(SEQREAD, read.bandwidth, read.latency),
    ])
}
