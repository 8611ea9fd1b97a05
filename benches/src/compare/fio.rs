//! Runs fio and reads its report: throughput, latency percentiles and the slowest second.

use std::path::Path;

use mortar_benches::process::run;
use serde_json::Value;

/// Writes a file once, from its start, in large pieces.
pub(crate) const FILL: [&str; 4] = ["--rw=write", "--bs=1M", "--ioengine=psync", "--end_fsync=1"];
/// Sixteen operations of 4 KiB at a time, past the page cache.
pub(crate) const DEEP: [&str; 4] = ["--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"];

/// One operation of 4 KiB at a time, past the page cache.
pub(crate) const SINGLE: [&str; 3] = ["--bs=4k", "--direct=1", "--ioengine=psync"];

/// What one job did, in the direction asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// MB/s.
    pub(crate) bandwidth: f64,
    /// Operations per second.
    pub(crate) iops: f64,
    /// How long operations took.
    pub(crate) latency: Latency,
}

/// How long operations took.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Latency {
    /// Milliseconds that 50, 99 and 99.9 percent took at most.
    pub(crate) percentiles: [f64; 3],
    /// The longest, in milliseconds.
    pub(crate) longest: f64,
    /// Operations in the slowest second, by the median of all seconds (1: they were all alike).
    pub(crate) slowest: f64,
}

/// Runs one job on a file. `scratch` is a directory for fio's log.
pub(crate) fn fio(scratch: &Path, file: &Path, write: bool, args: &[&str]) -> Result<Told, String> {
    let filename = format!("--filename={}", file.display());
    let log = scratch.join("fio");
    let log_option = format!("--write_iops_log={}", log.display());
    let mut all = vec![
        "--name=bench",
        "--output-format=json",
        "--randseed=1",
        "--fallocate=none",
        "--log_avg_msec=1000",
        &log_option,
        &filename,
    ];
    all.extend(args);
    let out = run("fio", &all)?;
    let start = out.find('{').ok_or("fio gave no JSON")?;
    let json: Value = serde_json::from_str(&out[start..]).map_err(|err| err.to_string())?;
    let job = &json["jobs"][0][if write { "write" } else { "read" }];
    let seconds = std::fs::read_to_string(scratch.join("fio_iops.1.log")).unwrap_or_default();
    told(job, &seconds, write)
}

fn told(job: &Value, seconds: &str, write: bool) -> Result<Told, String> {
    let number =
        |value: &Value, name: &str| value.as_f64().ok_or_else(|| format!("fio gave no {name}"));
    let clat = &job["clat_ns"];
    let mut percentiles = [0.0; 3];
    for (slot, name) in percentiles
        .iter_mut()
        .zip(["50.000000", "99.000000", "99.900000"])
    {
        *slot = number(&clat["percentile"][name], name)? / 1e6;
    }
    Ok(Told {
        bandwidth: number(&job["bw_bytes"], "bw_bytes")? / 1e6,
        iops: number(&job["iops"], "iops")?,
        latency: Latency {
            percentiles,
            longest: number(&clat["max"], "clat max")? / 1e6,
            slowest: slowest(seconds, write),
        },
    })
}

/// The slowest second of a log, by the median: lines of time in ms, operations per second, direction, and more.
fn slowest(log: &str, write: bool) -> f64 {
    let direction = if write { "1" } else { "0" };
    let mut seconds: Vec<f64> = log
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(',').map(str::trim);
            let (_, iops, dir) = (fields.next()?, fields.next()?, fields.next()?);
            (dir == direction).then(|| iops.parse().ok()).flatten()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    match seconds.first() {
        Some(least) => least / mortar_benches::stats::median(&seconds),
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_second_is_found_in_its_direction() {
        let log = "1000, 100, 1, 0, 0\n2000, 40, 1, 0, 0\n2000, 7, 0, 0, 0\n3000, 120, 1, 0, 0\n";
        assert_eq!(slowest(log, true), 0.4);
        assert_eq!(slowest(log, false), 1.0);
        assert!(slowest("", true).is_nan());
    }

    #[test]
    fn a_report_is_read() {
        let job = serde_json::json!({
            "bw_bytes": 4_096_000, "iops": 1000.0,
            "clat_ns": { "max": 5_000_000, "percentile": {
                "50.000000": 1_000_000, "99.000000": 2_000_000, "99.900000": 3_000_000 } }
        });
        let told = told(&job, "1000, 5, 1, 0, 0\n", true).unwrap();
        assert_eq!((told.bandwidth, told.iops), (4.096, 1000.0));
        assert_eq!(told.latency.percentiles, [1.0, 2.0, 3.0]);
        assert_eq!((told.latency.longest, told.latency.slowest), (5.0, 1.0));
        assert!(super::told(&serde_json::json!({}), "", true).is_err());
    }
}
