//! What taking hold of a file should give: a lock keeps others out, an open file stays.

use std::collections::BTreeMap;

use mortar_protocol::error::Errno;

use super::super::history::{Act, Record, Told};
use super::data::file_of;

/// A time in which a client certainly held something: its session was the same before and after it let go.
#[derive(Clone, Copy, Debug)]
struct Hold {
    /// The call that took it.
    call: usize,
    client: u32,
    id: u64,
    /// Of a lock: owner, part and whether it is shared.
    lock: Option<(u64, u64, bool)>,
    /// Answer of the call that took it, and beginning of the one that let it go.
    span: (u64, u64),
}

/// The holds of a history.
fn holds(records: &[Record]) -> Vec<Hold> {
    // By client, file, owner, and whether it is a lock.
    let mut taken: BTreeMap<(u32, u64, u64, bool), (Hold, u64)> = BTreeMap::new();
    let mut holds = Vec::new();
    for (call, record) in records.iter().enumerate() {
        let told = record.known();
        let session = match told {
            Some((end, Told::Session(session))) => Some((end, *session)),
            _ => None,
        };
        let (id, owner, lock) = match record.act {
            Act::Lock {
                id,
                owner,
                part,
                shared,
                ..
            } => (id, owner, Some((owner, part, shared))),
            Act::Open { id, owner } => (id, owner, None),
            Act::Unlock { id, owner } | Act::Close { id, owner } => {
                let lock = matches!(record.act, Act::Unlock { .. });
                if let Some((hold, begun)) = taken.remove(&(record.client, id, owner, lock))
                    && session.is_some_and(|(_, session)| session == begun)
                {
                    let span = (hold.span.0, record.start);
                    holds.push(Hold { span, ..hold });
                }
                continue;
            }
            _ => continue,
        };
        if let Some((end, session)) = session {
            let hold = Hold {
                call,
                client: record.client,
                id,
                lock,
                span: (end, end),
            };
            let key = (record.client, id, owner, lock.is_some());
            taken.insert(key, (hold, session));
        }
    }
    holds
}

/// Checks locks and open files.
pub fn check(records: &[Record]) -> Vec<String> {
    let mut wrong = locks(records);
    wrong.extend(open_files(records));
    wrong
}

/// No two hold locks at once that exclude each other.
pub fn locks(records: &[Record]) -> Vec<String> {
    let (holds, mut wrong) = (holds(records), Vec::new());
    for (at, one) in holds.iter().enumerate() {
        for other in &holds[at + 1..] {
            let together = one.span.0 < other.span.1 && other.span.0 < one.span.1;
            if together && one.id == other.id && exclude(one, other) {
                wrong.push(format!(
                    "{:x} was locked by calls {} and {} at once",
                    one.id, one.call, other.call
                ));
            }
        }
    }
    wrong
}

/// What is open stays.
fn open_files(records: &[Record]) -> Vec<String> {
    let mut wrong = Vec::new();
    for hold in holds(records).iter().filter(|hold| hold.lock.is_none()) {
        if records
            .iter()
            .any(|record| removes_unaware(record, hold, records))
        {
            continue;
        }
        let gone = records.iter().position(|record| {
            let within = record.start > hold.span.0
                && record.known().is_some_and(|(end, told)| {
                    end < hold.span.1 && matches!(told, Told::Failed(Errno::ESTALE | Errno::ENOENT))
                });
            within && record.client == hold.client && file_of(&record.act) == Some(hold.id)
        });
        if let Some(gone) = gone {
            wrong.push(format!(
                "{:x} was open since call {}, gone in call {gone}",
                hold.id, hold.call
            ));
        }
    }
    wrong
}

/// Whether the client itself was removing a name when it opened the file. An unlink says with its request whether its
/// client has the file open, and knows nothing of an open that comes after: `docs/limits.md` says so.
fn removes_unaware(record: &Record, hold: &Hold, records: &[Record]) -> bool {
    let end = record.known().map_or(u64::MAX, |(end, _)| end);
    matches!(record.act, Act::Remove { .. } | Act::Rename { .. })
        && record.client == hold.client
        && record.start < hold.span.0
        && end > records[hold.call].start
}

fn exclude(one: &Hold, other: &Hold) -> bool {
    let (Some(a), Some(b)) = (one.lock, other.lock) else {
        return false;
    };
    let same = (one.client, a.0) == (other.client, b.0);
    let overlap = a.1 == b.1 || a.1 == 2 || b.1 == 2;
    !same && overlap && !(a.2 && b.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: u32, start: u64, act: Act, told: Told) -> Record {
        Record {
            client,
            start,
            act,
            answer: Some((start + 1, told)),
        }
    }

    fn lock(client: u32, start: u64, part: u64, shared: bool) -> Record {
        let act = Act::Lock {
            id: 7,
            owner: 0,
            part,
            shared,
            wait: false,
        };
        record(client, start, act, Told::Session(u64::from(client)))
    }

    fn unlock(client: u32, start: u64, session: u64) -> Record {
        let act = Act::Unlock { id: 7, owner: 0 };
        record(client, start, act, Told::Session(session))
    }

    #[test]
    fn two_at_once_are_found_unless_one_lost_its_session() {
        let found = |part, shared, session| {
            let records = [
                lock(1, 0, 0, shared),
                lock(2, 2, part, shared),
                unlock(1, 4, session),
                unlock(2, 6, 2),
            ];
            check(&records).len()
        };
        assert_eq!((found(0, false, 1), found(2, false, 1)), (1, 1));
        assert_eq!((found(1, false, 1), found(0, true, 1)), (0, 0));
        assert_eq!(found(0, false, 9), 0);
        let one_by_one = [lock(1, 0, 0, false), unlock(1, 2, 1), lock(2, 2, 0, false)];
        assert_eq!(check(&one_by_one).len(), 0);
    }

    #[test]
    fn an_open_file_that_is_gone_is_found() {
        let open = Act::Open { id: 7, owner: 0 };
        let close = Act::Close { id: 7, owner: 0 };
        let mut records = [
            record(1, 0, open, Told::Session(1)),
            record(1, 2, Act::Size { id: 7 }, Told::Failed(Errno::ESTALE)),
            record(1, 4, close, Told::Session(1)),
        ];
        assert_eq!(check(&records).len(), 1);
        records[2].answer = Some((5, Told::Session(2)));
        assert_eq!(check(&records).len(), 0);
    }
}
