//! Medians, spreads, ratios.

use std::collections::BTreeMap;

use mortar_benches::process::memory_kib;
use mortar_benches::stats::{median, spread};
use serde_json::{Value, json};

use crate::fio::Latency;
use crate::workload::{Figure, Metric};

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Report {
    figures: BTreeMap<Metric, BTreeMap<&'static str, Vec<f64>>>,
    latencies: BTreeMap<(Metric, &'static str), Vec<Latency>>,
    memory: Vec<(String, u64)>,
}

/// A number, or a dash where there is none.
fn shown(number: Option<f64>, digits: usize, unit: &str) -> String {
    match number.filter(|number| number.is_finite()) {
        Some(number) => format!("{number:.digits$}{unit}"),
        None => "-".to_owned(),
    }
}

impl Report {
    /// Adds one figure.
    pub(crate) fn add(&mut self, side: &'static str, figure: &Figure) {
        self.figures
            .entry(figure.metric)
            .or_default()
            .entry(side)
            .or_default()
            .push(figure.value);
        if let Some(latency) = figure.latency {
            let runs = self.latencies.entry((figure.metric, side)).or_default();
            runs.push(latency);
        }
    }

    /// Medians of the percentiles, the longest operation and the slowest second of all runs.
    fn print_latencies(&self) {
        if self.latencies.is_empty() {
            return;
        }
        println!(
            "\n{:24} {:8} {:>9} {:>9} {:>9} {:>9} {:>15}",
            "latency in ms", "side", "p50", "p99", "p99.9", "longest", "slowest second"
        );
        for ((metric, side), runs) in &self.latencies {
            let of = |at: usize| {
                let all: Vec<f64> = runs.iter().map(|run| run.percentiles[at]).collect();
                shown(Some(median(&all)), 2, "")
            };
            let longest = runs.iter().map(|run| run.longest).fold(0.0, f64::max);
            let slowest = runs.iter().map(|run| run.slowest * 100.0);
            println!(
                "{:24} {side:8} {:>9} {:>9} {:>9} {longest:>9.2} {:>14}%",
                metric.name,
                of(0),
                of(1),
                of(2),
                shown(Some(slowest.fold(f64::INFINITY, f64::min)), 0, ""),
            );
        }
    }

    /// Notes the resident memory of a process: the most it ever had.
    pub(crate) fn memory(&mut self, side: &str, label: &str, pid: u32) {
        let kib = memory_kib(pid, "VmHWM").unwrap_or(0);
        self.memory.push((format!("{side} {label} {pid}"), kib));
    }

    /// How many times better Mortar is.
    fn ratio(metric: &Metric, sides: &BTreeMap<&'static str, Vec<f64>>) -> Option<f64> {
        let gluster = median(sides.get("gluster")?);
        let mortar = median(sides.get("mortar")?);
        Some(if metric.higher_is_better {
            mortar / gluster
        } else {
            gluster / mortar
        })
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        println!(
            "\n{:24} {:>12} {:>8} {:>12} {:>8} {:>8} {:>6} {:>6}",
            "workload", "gluster", "spread", "mortar", "spread", "ratio", "must", "aim"
        );
        for (metric, sides) in &self.figures {
            let middle = |name| shown(sides.get(name).map(|found| median(found)), 1, "");
            let differ = |name| shown(sides.get(name).map(|found| spread(found)), 0, "%");
            let ratio = Self::ratio(metric, sides);
            let missed = match (ratio, metric.goal) {
                (Some(ratio), Some((must, _))) if ratio < must => "  missed",
                _ => "",
            };
            println!(
                "{:24} {:>12} {:>8} {:>12} {:>8} {:>8} {:>6} {:>6}{missed}",
                metric.to_string(),
                middle("gluster"),
                differ("gluster"),
                middle("mortar"),
                differ("mortar"),
                shown(ratio, 2, "x"),
                shown(metric.goal.map(|(must, _)| must), 1, "x"),
                shown(metric.goal.map(|(_, aim)| aim), 1, "x"),
            );
        }
        self.print_latencies();
        for (process, kib) in &self.memory {
            println!("most memory: {process}: {} MiB", kib / 1024);
        }
    }

    /// All figures as JSON.
    pub(crate) fn json(&self) -> String {
        let workload = |(metric, sides): (&Metric, &BTreeMap<&'static str, Vec<f64>>)| {
            let mut found = serde_json::Map::new();
            for (side, figures) in sides {
                found.insert(
                    (*side).to_owned(),
                    json!({ "median": median(figures), "spread_percent": spread(figures), "figures": figures }),
                );
            }
            found.insert("ratio".to_owned(), json!(Self::ratio(metric, sides)));
            found.insert("must".to_owned(), json!(metric.goal.map(|goal| goal.0)));
            found.insert("aim".to_owned(), json!(metric.goal.map(|goal| goal.1)));
            found.insert("unit".to_owned(), json!(metric.unit));
            (metric.name.to_owned(), Value::Object(found))
        };
        let workloads: serde_json::Map<_, _> = self.figures.iter().map(workload).collect();
        json!({ "workloads": workloads, "memory_kib": self.memory }).to_string()
    }
}
