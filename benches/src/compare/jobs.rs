//! One job and sixteen of them: what a volume does must not fall as more ask for it.

use std::fs;
use std::path::Path;

use mortar_benches::process::check;

use crate::fio::{FILL, SINGLE, fio};
use crate::workload::{Figure, Figures, Metric, Scale, more};

const READ: [Metric; 2] = [
    more(30, "randread-4k-1-job", "IOPS", None),
    more(31, "randread-4k-16-jobs", "IOPS", None),
];
const WRITE: [Metric; 2] = [
    more(32, "randwrite-4k-1-job", "IOPS", None),
    more(33, "randwrite-4k-16-jobs", "IOPS", None),
];

/// Random 4 KiB reads and writes of one file by 1 and by 16 jobs, each with one operation at a time.
pub(crate) fn jobs(mount: &Path, scale: &Scale<'_>) -> Result<Figures, String> {
    let file = mount.join("jobs");
    let scratch = scale.backing.scratch();
    let size = format!("--size={}M", scale.file_mib / 2);
    let runtime = format!("--runtime={}", scale.seconds);
    fio(scratch, &file, true, &[&FILL[..], &[&size]].concat())?;
    let mut figures = Vec::new();
    for (metrics, kind, write) in [
        (READ, "--rw=randread", false),
        (WRITE, "--rw=randwrite", true),
    ] {
        for (metric, jobs) in metrics.into_iter().zip(["--numjobs=1", "--numjobs=16"]) {
            check()?;
            scale.backing.drop_caches()?;
            let special = [
                kind,
                jobs,
                "--group_reporting",
                "--time_based",
                &size,
                &runtime,
            ];
            let args = [&SINGLE[..], &special].concat();
            let told = fio(scratch, &file, write, &args)?;
            figures.push(Figure::timed(metric, told.iops, told.latency));
        }
    }
    fs::remove_file(&file).map_err(|err| err.to_string())?;
    Ok(figures)
}
