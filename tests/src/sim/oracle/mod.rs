//! What must be true of a run, whatever happened in it.

pub mod bricks;
pub mod data;
pub mod names;
pub mod promises;
pub mod search;

use std::collections::BTreeSet;

use mortar_protocol::error::Errno;

use super::history::{Record, Told};
use search::Verdict;

/// What the history shows.
#[derive(Default)]
pub struct Findings {
    /// What must not be.
    pub violations: Vec<String>,
    /// Searches that were given up.
    pub undecided: usize,
}

/// Checks all that clients were told.
pub fn check(records: &[Record]) -> Findings {
    let mut findings = Findings::default();
    let mut take = |what: String, verdict: Verdict| match verdict {
        Verdict::Explained => {}
        Verdict::Undecided => findings.undecided += 1,
        Verdict::Impossible(why) => findings.violations.push(format!("{what}: {why}")),
    };
    take("names".to_owned(), names::check(records));
    let files: BTreeSet<u64> = records
        .iter()
        .filter_map(|record| data::file_of(&record.act))
        .collect();
    for id in files {
        take(format!("file {id:x}"), data::check(records, id));
    }
    findings.violations.extend(gone_and_found(records));
    findings
}

/// What is gone is not found under a name later.
fn gone_and_found(records: &[Record]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, record) in records.iter().enumerate() {
        let (Some(id), Some((end, Told::Failed(Errno::ESTALE)))) =
            (data::file_of(&record.act), record.known())
        else {
            continue;
        };
        for (later, other) in records.iter().enumerate() {
            if other.start > end
                && let Some((_, Told::Found(found, _))) = other.known()
                && *found == id
            {
                wrong.push(format!("{id:x} is gone in call {number}, found in {later}"));
            }
        }
    }
    wrong
}
