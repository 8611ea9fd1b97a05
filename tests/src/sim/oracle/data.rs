//! What files should hold: block by block, as one register per file, so that a write is seen whole or not at all.

use mortar_protocol::error::Errno;

use super::super::history::{Act, Record, Told};
use super::super::tags;
use super::search::{Model, Span, Verdict, search};

/// A file: its blocks, or `None` once it is gone.
pub type File = Option<Vec<u64>>;

struct Calls<'a> {
    records: &'a [Record],
}

/// The file that a call is about.
pub fn file_of(act: &Act) -> Option<u64> {
    match *act {
        Act::Write { id, .. }
        | Act::Append { id, .. }
        | Act::Truncate { id, .. }
        | Act::Read { id, .. }
        | Act::Size { id }
        | Act::SetXattr { id, .. }
        | Act::GetXattr { id, .. } => Some(id),
        _ => None,
    }
}

/// Looks for an order of all calls on the data of one file.
pub fn check(records: &[Record], id: u64) -> Verdict {
    let changes = |act: &Act| !matches!(act, Act::Read { .. } | Act::Size { .. });
    let xattr = |act: &Act| matches!(act, Act::SetXattr { .. } | Act::GetXattr { .. });
    let spans: Vec<Span> = records
        .iter()
        .enumerate()
        .filter(|(_, record)| file_of(&record.act) == Some(id) && !xattr(&record.act))
        .filter(|(_, record)| record.known().is_some() || changes(&record.act))
        .map(|(call, record)| Span {
            call,
            start: record.start,
            end: record.known().map(|(end, _)| end),
        })
        .collect();
    search(&Calls { records }, Some(Vec::new()), &spans)
}

fn write(blocks: &[u64], offset: u64, count: u64, call: usize) -> Vec<u64> {
    let (offset, count) = (offset as usize, count as usize);
    let mut blocks = blocks.to_vec();
    if blocks.len() < offset + count {
        blocks.resize(offset + count, tags::ZERO);
    }
    for part in 0..count {
        blocks[offset + part] = tags::value(call, part as u64);
    }
    blocks
}

impl Model for Calls<'_> {
    type State = File;

    fn apply(&self, state: &File, call: usize) -> Option<File> {
        let record = &self.records[call];
        let told = record.known().map(|(_, told)| told);
        if record.is_refused() {
            return Some(state.clone());
        }
        if let Some(Told::Failed(errno)) = told {
            return match errno {
                Errno::ESTALE | Errno::ENOENT => Some(None),
                _ => None,
            };
        }
        let blocks = state.as_ref()?;
        match (record.act, told) {
            (Act::Write { offset, count, .. }, None | Some(Told::Done)) => {
                Some(Some(write(blocks, offset, count, call)))
            }
            (Act::Append { count, .. }, told) => {
                let end = blocks.len() as u64;
                if let Some(Told::At(at)) = told
                    && *at != end
                {
                    return None;
                }
                Some(Some(write(blocks, end, count, call)))
            }
            (Act::Truncate { size, .. }, None | Some(Told::Done)) => {
                let mut blocks = blocks.clone();
                blocks.resize(size as usize, tags::ZERO);
                Some(Some(blocks))
            }
            (Act::Read { offset, count, .. }, Some(Told::Got(got))) => {
                let from = (offset as usize).min(blocks.len());
                let to = ((offset + count) as usize).min(blocks.len());
                (blocks[from..to] == got[..]).then(|| state.clone())
            }
            (Act::Size { .. }, Some(Told::Size(size))) => {
                (blocks.len() as u64 == *size).then(|| state.clone())
            }
            _ => None,
        }
    }
}
