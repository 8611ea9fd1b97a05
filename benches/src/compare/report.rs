//! Medians, spreads, ratios.

use std::collections::BTreeMap;

use mortar_benches::process::memory_kib;
use mortar_benches::stats::{median, spread};
use serde_json::{Value, json};

use crate::workload::Metric;

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Report {
    figures: BTreeMap<Metric, BTreeMap<&'static str, Vec<f64>>>,
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
    pub(crate) fn add(&mut self, side: &'static str, metric: Metric, value: f64) {
        self.figures
            .entry(metric)
            .or_default()
            .entry(side)
            .or_default()
            .push(value);
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
