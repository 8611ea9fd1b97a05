//! What only shows after a while: minutes of random writes over log wraps and checkpoints, a brick that is nearly full and
//! has been overwritten in small pieces, and a directory of very many entries. Not among the default workloads: they
//! take minutes each.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mortar_benches::backing::text;
use mortar_benches::process::{check, pause, run};

use crate::fio::{DEEP, FILL, fio};
use crate::workload::{Figure, Figures, Metric, Scale, more, seconds, timed};

const LONG: Metric = more(20, "randwrite-4k-long", "IOPS", None);
const FRESH: Metric = more(21, "seqread-fresh", "MB/s", None);
const AGED: Metric = more(22, "seqread-aged", "MB/s", None);
const KEPT: Metric = more(23, "aged-by-fresh", "%", None);
const SPACE: Metric = Metric {
    higher_is_better: false,
    ..more(24, "space-overhead", "%", None)
};
/// Copies of everything.
const COPIES: u64 = 3;
const LIST: Metric = seconds(25, "ls-l-20000", Some((2.0, 5.0)));

/// Random writes for three minutes (`--long-seconds`).
pub(crate) fn long(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let file = mount.join("long");
    let size = format!("--size={}M", scale.file_mib);
    let runtime = format!("--runtime={}", scale.long_seconds);
    let special = ["--rw=randwrite", &size, "--time_based", &runtime];
    let args = [&DEEP[..], &special].concat();
    let told = fio(scale.backing.scratch(), &file, true, &args)?;
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(vec![Figure::timed(LONG, told.iops, told.latency)])
}

/// Bytes that are free for a file: what the volume says, and no more than its copies find below its bricks, which
/// GlusterFS does not reckon with where they lie on one file system.
fn free(mount: &Path, scale: &Scale<'_>) -> Result<u64, String> {
    let of = |dir: &Path| {
        let stat = rustix::fs::statvfs(dir).map_err(|err| format!("statfs: {err}"))?;
        Ok::<u64, String>(stat.f_bavail * stat.f_frsize)
    };
    Ok(of(mount)?.min(of(&scale.backing.bricks())? / COPIES))
}

/// Bytes in use below the bricks of all sides, once none of them gives any back: what was removed before takes a while.
fn used(scale: &Scale<'_>) -> Result<u64, String> {
    const LOOKS: usize = 20;
    let mut last = u64::MAX;
    for _ in 0..LOOKS {
        check()?;
        scale.backing.sync()?;
        let stat =
            rustix::fs::statvfs(scale.backing.bricks()).map_err(|err| format!("statfs: {err}"))?;
        let now = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
        if now >= last {
            return Ok(now);
        }
        last = now;
        pause(Duration::from_secs(3));
    }
    Ok(last)
}

/// A volume filled to 85 percent with one file, of which three times the free space is overwritten in 4 KiB pieces.
pub(crate) fn aged(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let file = mount.join("aged");
    let (before, space) = (used(scale)?, free(mount, scale)?);
    let length = (space / 100 * 85) >> 20 << 20;
    let size = format!("--size={length}");
    let io_size = format!("--io_size={}", (space - length) * 3);
    let scratch = scale.backing.scratch();
    let read = || {
        check()?;
        scale.backing.drop_caches()?;
        let args = ["--rw=read", "--bs=1M", &size, "--ioengine=psync"];
        fio(scratch, &file, false, &args)
    };
    fio(scratch, &file, true, &[&FILL[..], &[&size]].concat())?;
    let fresh = read()?;
    check()?;
    let special = [
        "--rw=randwrite",
        "--norandommap",
        "--end_fsync=1",
        &size,
        &io_size,
    ];
    fio(scratch, &file, true, &[&DEEP[..], &special].concat())?;
    let aged = read()?;
    let taken = used(scale)?.saturating_sub(before);
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    let overhead = taken as f64 / (length * COPIES) as f64 - 1.0;
    Ok(vec![
        Figure::timed(FRESH, fresh.bandwidth, fresh.latency),
        Figure::timed(AGED, aged.bandwidth, aged.latency),
        Figure::new(KEPT, aged.bandwidth / fresh.bandwidth * 100.0),
        Figure::new(SPACE, overhead * 100.0),
    ])
}

/// `ls -l` of one directory, with nothing cached. The directory is made in the first round.
pub(crate) fn listing(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    const ENTRIES: usize = 20_000;
    const THREADS: usize = 4;
    let dir = mount.join("listing");
    if !dir.exists() {
        fs::create_dir(&dir).map_err(|err| err.to_string())?;
        std::thread::scope(|scope| {
            let make = |thread: usize| {
                let dir = &dir;
                move || {
                    (thread..ENTRIES).step_by(THREADS).try_for_each(|n| {
                        check()?;
                        let path = dir.join(format!("entry{n:05}"));
                        fs::write(path, b"x").map_err(|err| err.to_string())
                    })
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(make(n))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
        })?;
    }
    scale.backing.drop_caches()?;
    let list = timed(|| run("ls", &["-l", text(&dir)?]).map(drop))?;
    Ok(vec![Figure::new(LIST, list)])
}
