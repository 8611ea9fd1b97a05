//! What must be true of a run, whatever happened in it.

pub mod bricks;
pub mod data;
pub mod holds;
pub mod names;
pub mod promises;
pub mod search;
pub mod wide;
pub mod xattrs;

use std::collections::BTreeSet;

use mortar_protocol::error::Errno;

use super::history::{Record, Told, XATTRS};
use search::Verdict;

/// What the history shows.
#[derive(Default)]
pub struct Findings {
    /// What must not be.
    pub violations: Vec<String>,
    /// Searches that were given up.
    pub undecided: usize,
}

/// Checks all that clients were told. The calls on the data of a `wide` file need not fit one order.
pub fn check(records: &[Record], wide: Option<u64>) -> Findings {
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
        if wide != Some(id) {
            take(format!("file {id:x}"), data::check(records, id));
        }
        for name in 0..XATTRS {
            let verdict = xattrs::check(records, (id, name));
            take(format!("attribute {name} of {id:x}"), verdict);
        }
    }
    findings.violations.extend(holds::check(records));
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
