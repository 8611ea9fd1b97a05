//! A brick's entries: those a primary makes, those that arrive and wait for their bulk data, what openings leave in them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, EntryKind};
use mortar_protocol::ids::{Opening, Seq, StageId};
use mortar_protocol::limits::BLOCK;
use mortar_protocol::peer::PeerMessage;
use mortar_protocol::view::View;

use super::state::Brick;
use super::storage::{AppendError, NEWEST};

/// Record of the set's openings: (number, newest place adopted), as far as a client may still name a place above.
const OPENINGS: &[u8] = b"\xf0openings";
/// Most openings remembered; older ones are merged into the lowest place.
const MAX_OPENINGS: usize = 64;
/// A stage that an entry needs is fetched from the primary after so long.
const STAGE_PATIENCE: Duration = Duration::from_millis(20);

impl Brick {
    /// Makes and appends an entry as the primary.
    pub(super) fn make(&mut self, kind: EntryKind, mut effects: Vec<Effect>, body: Bytes) {
        let pos = self.log.next_pos();
        if let EntryKind::View(view) = &kind {
            effects.extend(self.opening_effects(view));
        }
        let entry = Arc::new(Entry {
            pos,
            kind,
            effects,
            body,
        });
        // Admission keeps room back for the entries a primary makes.
        if !self.append(&[entry]) {
            self.poison("the log is full");
        }
    }

    /// Appends entries; false if there is no room at the moment.
    pub(super) fn append(&mut self, entries: &[Arc<Entry>]) -> bool {
        match self.storage.append(entries) {
            Ok(()) => {
                for entry in entries {
                    self.sessions.note(entry, self.now);
                }
                self.log.appended(entries, &mut self.acts);
                true
            }
            Err(AppendError::Full) => {
                self.storage.want_checkpoint();
                false
            }
            Err(AppendError::Failed(reason)) => {
                self.poison(&reason);
                true
            }
        }
    }

    /// Remembers up to where the log reached when a lossy opening began, and who has to claim its locks then.
    fn opening_effects(&self, view: &View) -> Vec<Effect> {
        let mut openings = self.read_openings();
        if openings
            .last()
            .is_some_and(|(number, _)| *number >= view.opening)
        {
            return Vec::new();
        }
        let head = self.log.head().seq;
        // An earlier opening that adopted more loses nothing that this one does not lose.
        openings.retain(|(_, adopted)| *adopted < head);
        openings.push((view.opening, head));
        if openings.len() > MAX_OPENINGS {
            openings[0].0 = openings[1].0;
            openings.remove(1);
        }
        let sessions = self.sessions.live().map(|(id, _)| id).collect();
        let mut effects = vec![self.rules.opening(view.opening, sessions)];
        if let Ok(value) = postcard::to_stdvec(&openings) {
            effects.push(Effect::Put {
                key: Bytes::from_static(OPENINGS),
                value: value.into(),
            });
        }
        effects
    }

    pub(super) fn read_openings(&self) -> Vec<(Opening, Seq)> {
        let value = self.storage.get(OPENINGS, NEWEST).ok().flatten();
        value
            .and_then(|value| postcard::from_bytes(&value).ok())
            .unwrap_or_default()
    }

    /// Appends what the primary sent, as far as its stages are here.
    pub(super) fn take_arrivals(&mut self) {
        let lacking = self.arriving.iter().position(|entry| self.lacks(entry));
        let count = lacking.unwrap_or(self.arriving.len());
        if count > 0 {
            let ready: Vec<_> = self.arriving.drain(..count).collect();
            if self.append(&ready) {
                self.lacking = None;
            } else {
                ready
                    .into_iter()
                    .rev()
                    .for_each(|entry| self.arriving.push_front(entry));
                return;
            }
        }
        if self.arriving.is_empty() {
            return;
        }
        let (since, asked) = *self.lacking.get_or_insert((self.now, None));
        let due = match asked {
            None => self.now.since(since) >= STAGE_PATIENCE,
            Some(asked) => self.now.since(asked) >= STAGE_PATIENCE * 10,
        };
        if due {
            self.lacking = Some((since, Some(self.now)));
            self.ask_for_stages();
        }
    }

    fn lacks(&self, entry: &Entry) -> bool {
        entry.effects.iter().any(|effect| match effect {
            Effect::Attach { stage, crcs, .. } => self
                .storage
                .stage_info(*stage)
                .is_none_or(|held| held.crcs != *crcs),
            _ => false,
        })
    }

    fn ask_for_stages(&mut self) {
        let Some(entry) = self.arriving.front().cloned() else {
            return;
        };
        let Some(primary) = self.log.view().map(|view| view.primary) else {
            return;
        };
        for effect in &entry.effects {
            if let Effect::Attach { stage, .. } = effect
                && self.storage.stage_info(*stage).is_none()
            {
                let wanted = PeerMessage::StageWanted {
                    at: entry.pos,
                    stage: *stage,
                };
                self.send(primary, wanted, Bytes::new());
            }
        }
    }
}

/// Whether the entry attaches these bytes as this stage.
pub(super) fn attaches(entry: &Entry, stage: StageId, data: &Bytes) -> bool {
    entry.effects.iter().any(|effect| match effect {
        Effect::Attach {
            stage: found, crcs, ..
        } if *found == stage => {
            let held = data.chunks(BLOCK as usize).map(crc32fast::hash);
            held.eq(crcs.iter().copied())
        }
        _ => false,
    })
}
