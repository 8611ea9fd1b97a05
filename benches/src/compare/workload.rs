//! The workloads, each on a mounted directory. Kernel caches are dropped before whatever reads.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::backing::run;

/// What a figure measures.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Metric {
    name: &'static str,
    unit: &'static str,
    /// Whether more is better.
    pub(crate) higher_is_better: bool,
    /// The ratio to reach.
    pub(crate) must: f64,
}

impl Eq for Metric {}

impl PartialOrd for Metric {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Metric {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name.cmp(other.name)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} {}", self.name, self.unit))
    }
}

const fn more(name: &'static str, unit: &'static str, must: f64) -> Metric {
    Metric {
        name,
        unit,
        higher_is_better: true,
        must,
    }
}

const fn less(name: &'static str, unit: &'static str, must: f64) -> Metric {
    Metric {
        name,
        unit,
        higher_is_better: false,
        must,
    }
}

/// How much to do.
pub(crate) struct Scale {
    /// Seconds of timed workloads.
    pub(crate) seconds: u32,
    /// The tar to unpack.
    pub(crate) tar: PathBuf,
}

type Figures = Vec<(Metric, f64)>;

/// One workload.
pub(crate) struct Workload {
    /// Name, as given to `--only`.
    pub(crate) name: &'static str,
    /// Runs it below a mount.
    pub(crate) run: fn(&Path, &Scale) -> Result<Figures, String>,
}

impl Workload {
    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        vec![
            Self {
                name: "untar",
                run: untar,
            },
            Self {
                name: "smallfile",
                run: smallfile,
            },
            Self {
                name: "rand4k",
                run: rand4k,
            },
            Self {
                name: "syncwrite4k",
                run: syncwrite,
            },
            Self {
                name: "seq1m",
                run: seq,
            },
        ]
    }
}

fn drop_caches() -> Result<(), String> {
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|err| format!("drop_caches: {err}"))
}

#[allow(clippy::disallowed_methods)] // measuring is what this program is for
fn timed(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| "path is not text".into())
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
            _ => 30_000 + next() % 63_000,
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

fn untar(mount: &Path, scale: &Scale) -> Result<Figures, String> {
    let dir = mount.join("untar");
    fs::create_dir(&dir).map_err(|err| err.to_string())?;
    let unpack = timed(|| run("tar", &["-C", text(&dir)?, "-xf", text(&scale.tar)?]).map(drop))?;
    drop_caches()?;
    let find = timed(|| run("find", &[text(&dir)?, "-ls"]).map(drop))?;
    drop_caches()?;
    let read = timed(|| {
        run(
            "tar",
            &[
                "-C",
                text(&dir)?,
                "-cf",
                "/dev/null",
                "--checkpoint=100000",
                ".",
            ],
        )
        .map(drop)
    })?;
    let cat = timed(|| {
        run(
            "sh",
            &[
                "-c",
                &format!(
                    "find '{}' -type f -print0 | xargs -0 cat > /dev/null",
                    dir.display()
                ),
            ],
        )
        .map(drop)
    })?;
    drop_caches()?;
    let remove = timed(|| run("rm", &["-rf", text(&dir)?]).map(drop))?;
    Ok(vec![
        (less("untar", "s", 5.0), unpack),
        (less("find", "s", 1.0), find),
        (less("read-tree", "s", 3.0), read.min(cat)),
        (less("rm-rf", "s", 3.0), remove),
    ])
}

fn smallfile(mount: &Path, _scale: &Scale) -> Result<Figures, String> {
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
        drop_caches()?;
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
        (more("smallfile-create", "/s", 5.0), create),
        (more("smallfile-stat", "/s", 5.0), stat),
        (more("smallfile-read", "/s", 3.0), read),
        (more("smallfile-rename", "/s", 3.0), rename),
        (more("smallfile-delete", "/s", 3.0), delete),
    ])
}

/// Runs fio and gives (bandwidth in MB/s, IOPS) of the direction asked for.
fn fio(file: &Path, write: bool, args: &[&str]) -> Result<(f64, f64), String> {
    let filename = format!("--filename={}", file.display());
    let mut all = vec![
        "--name=bench",
        "--output-format=json",
        "--randseed=1",
        "--fallocate=none",
        &filename,
    ];
    all.extend(args);
    let out = run("fio", &all)?;
    let start = out.find('{').ok_or("fio gave no JSON")?;
    let json: serde_json::Value =
        serde_json::from_str(&out[start..]).map_err(|err| err.to_string())?;
    let job = &json["jobs"][0][if write { "write" } else { "read" }];
    let number = |name: &str| {
        job[name]
            .as_f64()
            .ok_or_else(|| format!("fio gave no {name}"))
    };
    Ok((number("bw_bytes")? / 1e6, number("iops")?))
}

fn rand4k(mount: &Path, scale: &Scale) -> Result<Figures, String> {
    let file = mount.join("rand4k");
    let runtime = format!("--runtime={}", scale.seconds);
    fio(
        &file,
        true,
        &[
            "--rw=write",
            "--bs=1M",
            "--size=256M",
            "--ioengine=psync",
            "--end_fsync=1",
        ],
    )?;
    let queued = [
        "--bs=4k",
        "--size=256M",
        "--ioengine=libaio",
        "--direct=1",
        "--iodepth=16",
        "--time_based",
        &runtime,
    ];
    let run_one = |rw: &str, write| {
        drop_caches()?;
        let mut args = vec![rw];
        args.extend(queued);
        fio(&file, write, &args)
    };
    let (_, write) = run_one("--rw=randwrite", true)?;
    let (_, read) = run_one("--rw=randread", false)?;
    drop_caches()?;
    let single = [
        "--rw=randread",
        "--bs=4k",
        "--size=256M",
        "--ioengine=psync",
        "--direct=1",
        "--time_based",
        &runtime,
    ];
    let (_, latency) = fio(&file, false, &single)?;
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(vec![
        (more("randwrite-4k-qd16", "IOPS", 4.0), write),
        (more("randread-4k-qd16", "IOPS", 2.0), read),
        (more("randread-4k-qd1", "IOPS", 1.3), latency),
    ])
}

fn syncwrite(mount: &Path, scale: &Scale) -> Result<Figures, String> {
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
    let (_, iops) = fio(&file, true, &args)?;
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(vec![(more("write+fsync-4k", "IOPS", 2.0), iops)])
}

fn seq(mount: &Path, _scale: &Scale) -> Result<Figures, String> {
    let file = mount.join("seq1m");
    let (write, _) = fio(
        &file,
        true,
        &[
            "--rw=write",
            "--bs=1M",
            "--size=512M",
            "--ioengine=psync",
            "--end_fsync=1",
        ],
    )?;
    drop_caches()?;
    let (read, _) = fio(
        &file,
        false,
        &["--rw=read", "--bs=1M", "--size=512M", "--ioengine=psync"],
    )?;
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(vec![
        (more("seqwrite-1m", "MB/s", 1.5), write),
        (more("seqread-1m", "MB/s", 1.0), read),
    ])
}
