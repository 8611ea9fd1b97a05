//! What fsync promised, after all machines lost power: nothing that a client had flushed may be older than it was.

use std::collections::BTreeMap;

use mortar_protocol::error::Errno;

use super::super::history::{Act, Name, Record, Told};
use super::super::tags;
use super::data::file_of;

/// What the last look found.
#[derive(Default)]
struct Seen {
    names: BTreeMap<Name, Option<u64>>,
    files: BTreeMap<u64, Vec<u64>>,
}

/// Checks the calls before `look` against what the calls from there on show.
pub fn check(records: &[Record], look: usize) -> Vec<String> {
    let (load, look) = records.split_at(look);
    let mut seen = Seen::default();
    for record in look {
        match (record.act, record.known().map(|(_, told)| told)) {
            (Act::Lookup { at }, Some(Told::Found(id, _))) => {
                seen.names.insert(at, Some(*id));
            }
            (Act::Lookup { at }, Some(Told::Failed(Errno::ENOENT))) => {
                seen.names.insert(at, None);
            }
            (Act::Read { id, offset, .. }, Some(Told::Got(blocks))) => {
                let file = seen.files.entry(id).or_default();
                let end = offset as usize + blocks.len();
                if !blocks.is_empty() && file.len() < end {
                    file.resize(end, tags::ZERO);
                }
                let into = file.iter_mut().skip(offset as usize);
                into.zip(blocks).for_each(|(into, block)| *into = *block);
            }
            _ => {}
        }
    }
    let mut wrong = Vec::new();
    for (call, record) in load.iter().enumerate() {
        let Some((end, told)) = record.known() else {
            continue;
        };
        if let Some(blocks) = written(&record.act, told)
            && flushed(load, record, end, file_of(&record.act))
        {
            check_blocks(load, (call, record), blocks, &seen, &mut wrong);
        }
        if flushed(load, record, end, None) {
            check_name(load, (call, record), told, &seen, &mut wrong);
        }
    }
    wrong
}

/// The blocks that a call has written: first and number.
pub(super) fn written(act: &Act, told: &Told) -> Option<(u64, u64)> {
    match (act, told) {
        (Act::Write { offset, count, .. }, Told::Done) => Some((*offset, *count)),
        (Act::Append { count, .. }, Told::At(at)) => Some((*at, *count)),
        _ => None,
    }
}

/// Whether an fsync that its client made later was answered: of this file, or of any (for names).
fn flushed(load: &[Record], record: &Record, end: u64, file: Option<u64>) -> bool {
    load.iter().any(|sync| {
        let fits = match sync.act {
            Act::Sync { id } => file.is_none_or(|file| file == id),
            _ => false,
        };
        fits && sync.client == record.client
            && sync.start > end
            && matches!(sync.known(), Some((_, Told::Done)))
            && !told_of_loss(load, record, end, sync)
    })
}

/// Whether an fsync of this client failed after the call and may have told of the loss: that is told once.
fn told_of_loss(load: &[Record], record: &Record, end: u64, sync: &Record) -> bool {
    let until = sync.answer.as_ref().map_or(u64::MAX, |(end, _)| *end);
    load.iter().any(|other| {
        let told = matches!(other.answer, Some((at, Told::Failed(Errno::EIO))) if at > end);
        told && matches!(other.act, Act::Sync { .. })
            && other.client == record.client
            && other.start < until
    })
}

/// Whether `other` had ended when `record` began.
pub(super) fn before(other: &Record, record: &Record) -> bool {
    other.known().is_some_and(|(end, _)| end < record.start)
}

fn check_blocks(
    load: &[Record],
    (call, record): (usize, &Record),
    (first, count): (u64, u64),
    seen: &Seen,
    wrong: &mut Vec<String>,
) {
    let id = file_of(&record.act).unwrap_or_default();
    let Some(blocks) = seen.files.get(&id) else {
        return;
    };
    let cut = load.iter().any(|other| {
        matches!(other.act, Act::Truncate { id: cut, .. } if cut == id) && !before(other, record)
    });
    for at in first..first + count {
        let value = blocks.get(at as usize).copied().unwrap_or(tags::ZERO);
        let newer = match value {
            tags::ZERO => cut,
            value => {
                let by = (value >> 16) as usize;
                by == call || load.get(by).is_some_and(|other| !before(other, record))
            }
        };
        if !newer {
            wrong.push(format!(
                "call {call} was flushed, block {at} of {id:x} is {value:x}"
            ));
            return;
        }
    }
}

/// What a call has left a name as.
fn left(act: &Act, told: &Told) -> Option<(Name, Option<u64>)> {
    match (act, told) {
        (Act::Create { at, .. }, Told::Made(id)) => Some((*at, Some(*id))),
        (Act::Link { id, at }, Told::Done) => Some((*at, Some(*id))),
        (Act::Remove { at, .. }, Told::Done) => Some((*at, None)),
        _ => None,
    }
}

fn touches(act: &Act, name: Name) -> bool {
    match *act {
        Act::Create { at, .. } | Act::Link { at, .. } | Act::Remove { at, .. } => at == name,
        Act::Rename { from, to, .. } => from == name || to == name,
        _ => false,
    }
}

fn check_name(
    load: &[Record],
    (call, record): (usize, &Record),
    told: &Told,
    seen: &Seen,
    wrong: &mut Vec<String>,
) {
    let Some((name, target)) = left(&record.act, told) else {
        return;
    };
    let Some(found) = seen.names.get(&name) else {
        return;
    };
    let overtaken = load
        .iter()
        .enumerate()
        .any(|(other, by)| other != call && touches(&by.act, name) && !before(by, record));
    if *found != target && !overtaken {
        wrong.push(format!(
            "call {call} was flushed, name {name} leads to {found:x?}"
        ));
    }
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
    fn a_flushed_write_that_is_gone_is_found() {
        let (id, offset, count) = (9, 3, 1);
        let mut records = vec![
            record(0, Act::Write { id, offset, count }, Told::Done),
            record(2, Act::Sync { id }, Told::Done),
            record(4, Act::Create { at: 0, dir: false }, Told::Made(5)),
            record(10, Act::Lookup { at: 0 }, Told::Failed(Errno::ENOENT)),
        ];
        let zeros = Told::Got(vec![tags::ZERO; 4]);
        let read = Act::Read {
            id,
            offset: 0,
            count: 4,
        };
        records.push(record(12, read, zeros));
        // The name was made after the fsync, the block was written before it.
        assert_eq!(check(&records, 3).len(), 1);
        records[1] = record(6, Act::Sync { id }, Told::Done);
        assert_eq!(check(&records, 3).len(), 2);
        records[1].answer = None;
        assert_eq!(check(&records, 3).len(), 0);
    }
}
