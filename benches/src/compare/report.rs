//! Medians, spreads, ratios.

use std::collections::BTreeMap;

use crate::workload::Metric;

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Report {
    figures: BTreeMap<Metric, BTreeMap<&'static str, Vec<f64>>>,
    memory: Vec<(String, u64)>,
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: &[f64]) -> f64 {
    let values = sorted(values);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Largest less smallest, in percent of the median.
fn spread(values: &[f64]) -> f64 {
    let values = sorted(values);
    match (values.first(), values.last()) {
        (Some(low), Some(high)) => (high - low) / median(&values) * 100.0,
        _ => f64::NAN,
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

    /// Notes the resident memory of a process.
    pub(crate) fn memory(&mut self, side: &str, label: &str, pid: u32) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        self.memory.push((format!("{side} {label}"), kib));
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        println!(
            "\n{:24} {:>12} {:>8} {:>12} {:>8} {:>8} {:>8}",
            "workload", "gluster", "spread", "mortar", "spread", "ratio", "must"
        );
        for (metric, sides) in &self.figures {
            let side = |name: &str| sides.get(name).map(Vec::as_slice).unwrap_or_default();
            let (gluster, mortar) = (side("gluster"), side("mortar"));
            let (a, b) = (median(gluster), median(mortar));
            let ratio = if metric.higher_is_better {
                b / a
            } else {
                a / b
            };
            println!(
                "{:24} {a:>12.1} {:>7.0}% {b:>12.1} {:>7.0}% {ratio:>7.2}x {:>7.1}x",
                metric.to_string(),
                spread(gluster),
                spread(mortar),
                metric.must
            );
        }
        for (process, kib) in &self.memory {
            println!("resident memory: {process}: {} MiB", kib / 1024);
        }
    }

    /// All figures as JSON.
    pub(crate) fn json(&self) -> String {
        let figures: BTreeMap<String, _> = self
            .figures
            .iter()
            .map(|(metric, sides)| (metric.to_string(), sides))
            .collect();
        serde_json::json!({ "figures": figures, "memory_kib": self.memory }).to_string()
    }
}
