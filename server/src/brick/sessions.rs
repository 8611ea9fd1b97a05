//! Sessions of a set: which are alive, and the results kept so that a repeated request gets the first answer.
//!
//! The table is derived from the log alone, so every member has the same one. It is saved with each batch of entries
//! that is applied to the tree, as of that batch; what lies above is taken from the log again after a restart, and
//! taken back when the log is cut.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mortar_protocol::entry::{Entry, EntryKind};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Pos, Seq, SessionId};
use mortar_protocol::limits::MAX_RESULTS;
use serde::{Deserialize, Serialize};

/// Keys of the brick's own records; the namespace has no key that begins like this.
const SESSION_PREFIX: u8 = 0xf1;
/// Record of the position that the saved sessions stand at.
const SAVED_AT: &[u8] = b"\xf0sessions";
/// First key of the session records.
pub(super) const FIRST_KEY: &[u8] = &[SESSION_PREFIX];
/// First key behind the session records.
pub(super) const LAST_KEY: &[u8] = &[SESSION_PREFIX + 1];
/// Most refused numbers remembered per session.
const MAX_REFUSED: usize = 1_024;

/// The result of a request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Kept {
    /// Its entry.
    pub(super) seq: Seq,
    /// The encoded answer.
    pub(super) result: Bytes,
}

/// One session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Session {
    /// uid its certificate binds it to (0: none).
    pub(super) uid: u32,
    began: Seq,
    ended: Option<Seq>,
    /// Numbers below this one have been answered: they are never run again.
    pub(super) answered_below: u64,
    pub(super) results: BTreeMap<u64, Kept>,
    /// Numbers refused without an entry. Known only to the primary that refused them.
    pub(super) refused: BTreeSet<u64>,
    /// When this primary last heard from it.
    pub(super) heard: Mono,
}

/// What is saved of a session.
#[derive(Serialize, Deserialize)]
struct Record {
    uid: u32,
    began: Seq,
    answered_below: u64,
    results: Vec<(u64, Kept)>,
}

/// Whether a request that another one names as its predecessor has been run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ran {
    /// Not yet.
    No,
    /// It was done.
    Done,
    /// It was refused.
    Refused,
}

/// All sessions of a set.
#[derive(Default)]
pub(super) struct Sessions {
    map: BTreeMap<SessionId, Session>,
    /// Sessions that differ from what is saved.
    unsaved: BTreeSet<SessionId>,
}

impl Sessions {
    /// A live session.
    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.map.get(&id).filter(|session| session.ended.is_none())
    }

    /// A live session.
    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.map
            .get_mut(&id)
            .filter(|session| session.ended.is_none())
    }

    /// All live sessions.
    pub(super) fn live(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        let all = self
            .map
            .iter()
            .filter(|(_, session)| session.ended.is_none());
        all.map(|(id, session)| (*id, session))
    }

    /// Every session counts as heard now: a new primary has heard none of them itself.
    pub(super) fn hear_all(&mut self, now: Mono) {
        self.map
            .values_mut()
            .for_each(|session| session.heard = now);
    }

    /// Takes an appended entry in.
    pub(super) fn note(&mut self, entry: &Entry, now: Mono) {
        let seq = entry.pos.seq;
        match &entry.kind {
            EntryKind::Change {
                session,
                number,
                answered_below,
                result,
            } => {
                let Some(found) = self.map.get_mut(session) else {
                    return;
                };
                let kept = Kept {
                    seq,
                    result: result.clone(),
                };
                found.answered(*answered_below);
                if *number >= found.answered_below {
                    found.results.insert(*number, kept);
                }
                while found.results.len() > MAX_RESULTS {
                    found.results.pop_first();
                }
                self.unsaved.insert(*session);
            }
            EntryKind::SessionBegin { session, uid } => {
                self.map.entry(*session).or_insert_with(|| Session {
                    uid: *uid,
                    began: seq,
                    ended: None,
                    answered_below: 0,
                    results: BTreeMap::new(),
                    refused: BTreeSet::new(),
                    heard: now,
                });
                self.unsaved.insert(*session);
            }
            EntryKind::SessionEnd(session) => {
                if let Some(found) = self.map.get_mut(session) {
                    found.ended.get_or_insert(seq);
                    self.unsaved.insert(*session);
                }
            }
            EntryKind::View(_) | EntryKind::Joiner(_) | EntryKind::Internal => {}
        }
    }

    /// Everything behind `seq` was dropped from the log.
    pub(super) fn cut(&mut self, seq: Seq) {
        self.map.retain(|_, session| session.began <= seq);
        for session in self.map.values_mut() {
            session.ended = session.ended.filter(|ended| *ended <= seq);
            session.results.retain(|_, kept| kept.seq <= seq);
        }
    }

    /// The records to save with a batch that ends at `upto`.
    pub(super) fn save(&mut self, upto: Pos) -> Vec<(Bytes, Option<Bytes>)> {
        let mut records = Vec::new();
        let mut later = BTreeSet::new();
        for id in std::mem::take(&mut self.unsaved) {
            let Some(session) = self.map.get(&id) else {
                records.push((session_key(id), None));
                continue;
            };
            if session.began > upto.seq {
                later.insert(id);
                continue;
            }
            if session.ended.is_some_and(|ended| ended <= upto.seq) {
                records.push((session_key(id), None));
                self.map.remove(&id);
                continue;
            }
            let due = session
                .results
                .iter()
                .filter(|(_, kept)| kept.seq <= upto.seq);
            let record = Record {
                uid: session.uid,
                began: session.began,
                answered_below: session.answered_below,
                results: due.map(|(number, kept)| (*number, kept.clone())).collect(),
            };
            if record.results.len() < session.results.len() || session.ended.is_some() {
                later.insert(id);
            }
            if let Ok(value) = postcard::to_stdvec(&record) {
                records.push((session_key(id), Some(value.into())));
            }
        }
        self.unsaved = later;
        if let Ok(value) = postcard::to_stdvec(&upto) {
            records.push((Bytes::from_static(SAVED_AT), Some(value.into())));
        }
        records
    }

    /// Takes a saved record in, at start-up.
    pub(super) fn load(&mut self, key: &[u8], value: &[u8]) {
        let Some(id) = key.get(1..9).and_then(|bytes| bytes.try_into().ok()) else {
            return;
        };
        let Ok(record) = postcard::from_bytes::<Record>(value) else {
            return;
        };
        let session = Session {
            uid: record.uid,
            began: record.began,
            ended: None,
            answered_below: record.answered_below,
            results: record.results.into_iter().collect(),
            refused: BTreeSet::new(),
            heard: Mono(0),
        };
        self.map.insert(SessionId(u64::from_be_bytes(id)), session);
    }
}

impl Session {
    /// The client has the answers of all numbers below this one.
    pub(super) fn answered(&mut self, below: u64) {
        if below > self.answered_below {
            self.answered_below = below;
            self.results = self.results.split_off(&below);
        }
    }

    /// Remembers that a request was refused without an entry.
    pub(super) fn refuse(&mut self, number: u64) {
        self.refused.insert(number);
        while self.refused.len() > MAX_REFUSED {
            self.refused.pop_first();
        }
    }

    /// Whether the request of this number has been run.
    pub(super) fn ran(&self, number: u64) -> Ran {
        if let Some(kept) = self.results.get(&number) {
            return match postcard::from_bytes::<mortar_protocol::fop::Answer>(&kept.result) {
                Ok(answer) if answer.result.is_ok() => Ran::Done,
                _ => Ran::Refused,
            };
        }
        if self.refused.contains(&number) {
            Ran::Refused
        } else if number < self.answered_below {
            Ran::Done
        } else {
            Ran::No
        }
    }
}

/// Key of the record that says how far the saved sessions stand.
pub(super) fn saved_at_key() -> &'static [u8] {
    SAVED_AT
}

fn session_key(id: SessionId) -> Bytes {
    let mut key = vec![SESSION_PREFIX];
    key.extend_from_slice(&id.0.to_be_bytes());
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::ids::Epoch;

    fn entry(seq: u64, kind: EntryKind) -> Entry {
        Entry {
            pos: Pos {
                epoch: Epoch(1),
                seq: Seq(seq),
            },
            kind,
            effects: Vec::new(),
            body: Bytes::new(),
        }
    }

    fn change(seq: u64, number: u64, answered_below: u64) -> Entry {
        let (session, result) = (SessionId(7), Bytes::from(vec![number as u8]));
        entry(
            seq,
            EntryKind::Change {
                session,
                number,
                answered_below,
                result,
            },
        )
    }

    fn begin(seq: u64) -> Entry {
        entry(
            seq,
            EntryKind::SessionBegin {
                session: SessionId(7),
                uid: 3,
            },
        )
    }

    fn reloaded(saved: &[(Bytes, Option<Bytes>)]) -> Sessions {
        let mut sessions = Sessions::default();
        for (key, value) in saved.iter().filter(|(key, _)| key.starts_with(FIRST_KEY)) {
            sessions.load(key, value.as_ref().expect("alive"));
        }
        sessions
    }

    fn at(seq: u64) -> Pos {
        Pos {
            epoch: Epoch(1),
            seq: Seq(seq),
        }
    }

    #[test]
    fn a_saved_table_and_the_log_above_it_give_the_table_again() {
        let log = [
            begin(1),
            change(2, 1, 1),
            change(3, 2, 1),
            change(4, 3, 2),
            change(5, 4, 3),
        ];
        for saved in 1..=5 {
            let mut sessions = Sessions::default();
            log.iter().for_each(|entry| sessions.note(entry, Mono(0)));
            let mut again = reloaded(&sessions.save(at(saved)));
            log[saved as usize..]
                .iter()
                .for_each(|entry| again.note(entry, Mono(0)));
            assert_eq!(again.map, sessions.map, "saved at {saved}");
        }
    }

    #[test]
    fn a_cut_takes_results_beginnings_and_ends_back() {
        let mut sessions = Sessions::default();
        sessions.note(&begin(1), Mono(0));
        sessions.note(&change(2, 1, 1), Mono(0));
        sessions.note(&change(3, 2, 1), Mono(0));
        sessions.note(&entry(4, EntryKind::SessionEnd(SessionId(7))), Mono(0));
        assert!(sessions.get(SessionId(7)).is_none());
        // The end is not applied yet: it must not be forgotten that it could be taken back.
        sessions.save(at(3));
        sessions.cut(Seq(2));
        let session = sessions.get(SessionId(7)).expect("alive again");
        assert_eq!(session.results.keys().copied().collect::<Vec<_>>(), [1]);
        sessions.cut(Seq(0));
        assert!(sessions.get(SessionId(7)).is_none());
    }

    #[test]
    fn an_ended_session_is_removed_when_its_end_is_applied() {
        let mut sessions = Sessions::default();
        sessions.note(&begin(1), Mono(0));
        sessions.note(&entry(2, EntryKind::SessionEnd(SessionId(7))), Mono(0));
        assert!(
            sessions
                .save(at(1))
                .iter()
                .any(|(key, value)| key.len() == 9 && value.is_some())
        );
        assert!(
            sessions
                .save(at(2))
                .iter()
                .any(|(key, value)| key.len() == 9 && value.is_none())
        );
        assert!(sessions.map.is_empty());
    }
}
