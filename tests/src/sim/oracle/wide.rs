//! What a file of several shards should hold once all is quiet. A change of it is no moment of all its sets, so its
//! calls need not fit one order; but no write that was answered may be lost, and nothing that was cut comes back.

use super::super::history::{Act, Record, Told};
use super::super::tags;
use super::promises::{before, written};

/// Checks what `look` and later calls found in the file against all calls before.
pub fn check(records: &[Record], look: usize, id: u64) -> Vec<String> {
    let (load, look) = records.split_at(look);
    let found = look.iter().find_map(|record| match &record.act {
        Act::Read { id: read, .. } if *read == id => match record.known() {
            Some((_, Told::Got(blocks))) => Some(blocks.clone()),
            _ => None,
        },
        _ => None,
    });
    let Some(blocks) = found else {
        return vec![format!("{id:x} was not read at the end")];
    };
    let mut wrong = Vec::new();
    for (call, record) in load.iter().enumerate() {
        let Some((_, told)) = record.known() else {
            continue;
        };
        match record.act {
            Act::Write { id: own, .. } | Act::Append { id: own, .. } if own == id => {
                let Some((first, count)) = written(&record.act, told) else {
                    continue;
                };
                let cut = cuts(load, id, record);
                let lost = (first..first + count).find(|at| {
                    match blocks.get(*at as usize).copied().unwrap_or(tags::ZERO) {
                        tags::ZERO => cut.is_none_or(|size| *at < size),
                        value => !newer(load, value, call, record),
                    }
                });
                if let Some(at) = lost {
                    wrong.push(format!("call {call} is lost at block {at} of {id:x}"));
                }
            }
            Act::Truncate { id: own, size } if own == id && *told == Told::Done => {
                let back = (size as usize..blocks.len()).find(|at| {
                    blocks[*at] != tags::ZERO && !newer(load, blocks[*at], call, record)
                });
                if let Some(at) = back {
                    wrong.push(format!("call {call} cut block {at} of {id:x}, it is back"));
                }
            }
            _ => {}
        }
    }
    wrong
}

/// The smallest size that a truncation gave which did not end before `record` began.
fn cuts(load: &[Record], id: u64, record: &Record) -> Option<u64> {
    let cut = load.iter().filter_map(|other| match other.act {
        Act::Truncate { id: own, size } if own == id && !before(other, record) => Some(size),
        _ => None,
    });
    cut.min()
}

/// Whether a block's value is of this call, or of one that had not ended when this one began.
fn newer(load: &[Record], value: u64, call: usize, record: &Record) -> bool {
    let by = (value >> 16) as usize;
    by == call || load.get(by).is_some_and(|other| !before(other, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(start: u64, act: Act, told: Told) -> Record {
        Record {
            client: 1,
            start,
            act,
            answer: Some((start + 1, told)),
        }
    }

    #[test]
    fn lost_writes_and_cut_blocks_that_are_back_are_found() {
        let id = 9;
        let write = Act::Write {
            id,
            offset: 1,
            count: 2,
        };
        let read = Act::Read {
            id,
            offset: 0,
            count: 4,
        };
        let wrong = |second: Act, blocks: Vec<u64>| {
            let records = [
                record(0, write, Told::Done),
                record(2, second, Told::Done),
                record(4, read, Told::Got(blocks)),
            ];
            check(&records, 2, id).len()
        };
        let (zero, a, b) = (tags::ZERO, tags::value(0, 0), tags::value(0, 1));
        let other = Act::Sync { id };
        assert_eq!(wrong(other, vec![zero, a, b]), 0);
        assert_eq!(wrong(other, vec![zero, a, zero]), 1);
        let cut = Act::Truncate { id, size: 2 };
        assert_eq!(wrong(cut, vec![zero, a]), 0);
        assert_eq!(wrong(cut, vec![zero, a, b]), 1);
        assert_eq!(wrong(cut, vec![zero, zero]), 1, "that was not cut");
    }
}
