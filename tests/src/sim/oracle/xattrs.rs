//! What extended attributes should be: one register each.

use mortar_protocol::error::Errno;

use super::super::history::{Act, Record, Told};
use super::search::{Model, Span, Verdict, search};

struct Calls<'a> {
    records: &'a [Record],
}

/// Whether a call is about this attribute of this file, and whether it sets it.
fn about(act: &Act, attribute: (u64, usize)) -> Option<bool> {
    match *act {
        Act::SetXattr { id, name } if (id, name) == attribute => Some(true),
        Act::GetXattr { id, name } if (id, name) == attribute => Some(false),
        _ => None,
    }
}

/// Looks for an order of all calls on one attribute of a file.
pub fn check(records: &[Record], attribute: (u64, usize)) -> Verdict {
    let spans: Vec<Span> = records
        .iter()
        .enumerate()
        .filter_map(|(call, record)| {
            let sets = about(&record.act, attribute)?;
            (sets || record.known().is_some()).then_some(Span {
                call,
                start: record.start,
                end: record.known().map(|(end, _)| end),
            })
        })
        .collect();
    search(&Calls { records }, Some(None), &spans)
}

impl Model for Calls<'_> {
    /// The value, or nothing once the file is gone.
    type State = Option<Option<u64>>;

    fn apply(&self, state: &Self::State, call: usize) -> Option<Self::State> {
        let record = &self.records[call];
        if record.is_refused() {
            return Some(*state);
        }
        match (&record.act, record.known().map(|(_, told)| told)) {
            (_, Some(Told::Failed(Errno::ESTALE | Errno::ENOENT))) => Some(None),
            (Act::SetXattr { .. }, None | Some(Told::Done)) => {
                state.as_ref()?;
                Some(Some(Some(call as u64)))
            }
            (Act::GetXattr { .. }, Some(Told::Value(value))) => {
                (state.as_ref()? == value).then_some(*state)
            }
            _ => None,
        }
    }
}
