//! A brick's entries: those a primary makes, those that arrive and wait for their bulk data, what openings leave in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Entry, EntryKind};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Opening, Seq, StageId};
use mortar_protocol::limits::BLOCK;
use mortar_protocol::peer::PeerMessage;
use mortar_protocol::view::View;

use super::api::Completion;
use super::state::Brick;
use super::storage::{AppendError, NEWEST};

/// Record of the set's openings: (number, newest place adopted), as far as a client may still name a place above.
const OPENINGS: &[u8] = b"\xf0openings";
/// Most openings remembered; older ones are merged into the lowest place.
const MAX_OPENINGS: usize = 64;
/// A stage that an entry needs is fetched from the primary after so long: clients send it to members themselves.
const STAGE_PATIENCE: Duration = Duration::from_millis(20);
/// One that was asked for is asked for again after so long.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Bytes of stages that a brick which wants to join has asked for at a time, about. Nobody but the primary sends it any.
const STAGES_AHEAD: u64 = 4 << 20;

/// Bulk data that entries wait for.
#[derive(Default)]
pub(super) struct Lacking {
    /// Since when the first of them has waited.
    pub(super) since: Option<Mono>,
    /// Stages that the primary was asked for: the entry, and when.
    asked: BTreeMap<StageId, (Seq, Mono)>,
}

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
                self.lacking.since = None;
            } else {
                ready
                    .into_iter()
                    .rev()
                    .for_each(|entry| self.arriving.push_front(entry));
                return;
            }
        }
        let Some(first) = self.arriving.front().map(|entry| entry.pos.seq) else {
            self.lacking = Lacking::default();
            return;
        };
        self.lacking.asked.retain(|_, (seq, _)| *seq >= first);
        let since = *self.lacking.since.get_or_insert(self.now);
        match self.log.is_member() {
            true if self.now.since(since) < STAGE_PATIENCE => {}
            true => self.ask_for_stages(0),
            false => self.ask_for_stages(STAGES_AHEAD),
        }
    }

    fn lacks(&self, entry: &Entry) -> bool {
        let mut stages = attached(entry);
        stages.any(|(stage, crcs)| self.lacks_stage(stage, crcs))
    }

    fn lacks_stage(&self, stage: StageId, crcs: &[u32]) -> bool {
        let held = self.storage.stage_info(stage);
        held.is_none_or(|held| held.crcs != crcs)
    }

    /// Asks the primary for the stages that the first entry lacks, and for those of more, up to so many bytes in all.
    fn ask_for_stages(&mut self, ahead: u64) {
        let Some(primary) = self.log.view().map(|view| view.primary) else {
            return;
        };
        let (mut bytes, mut wanted) = (0, Vec::new());
        for (number, entry) in self.arriving.iter().enumerate() {
            if number > 0 && bytes >= ahead {
                break;
            }
            for (stage, crcs) in attached(entry) {
                if self.lacks_stage(stage, crcs) {
                    bytes += crcs.len() as u64 * BLOCK;
                    wanted.push((entry.pos, stage));
                }
            }
        }
        for (at, stage) in wanted {
            let asked = self.lacking.asked.get(&stage);
            if asked.is_some_and(|(_, then)| self.now.since(*then) < ASK_AGAIN) {
                continue;
            }
            self.lacking.asked.insert(stage, (at.seq, self.now));
            self.send(
                primary,
                PeerMessage::StageWanted { at, stage },
                Bytes::new(),
            );
        }
    }

    /// Bytes that the primary has sent because they were asked for.
    pub(super) fn on_stage_data(&mut self, stage: StageId, data: Bytes) {
        let asked = self.lacking.asked.get(&stage);
        let Some(&(seq, _)) = asked else { return };
        let first = self.arriving.front().map_or(seq, |entry| entry.pos.seq);
        let entry = seq.0.checked_sub(first.0);
        let entry = entry.and_then(|at| self.arriving.get(usize::try_from(at).ok()?));
        if !entry.is_some_and(|entry| attaches(entry, stage, &data)) {
            return;
        }
        if self.storage.stage_info(stage).is_some() {
            // Others' bytes under this name: what the primary decided on counts.
            self.storage.drop_stage(stage);
        }
        let (completions, id) = (self.completions.clone(), self.id);
        let done = move |result| {
            let ticket = None;
            completions.push(id, Completion::Staged { ticket, result });
        };
        self.storage.stage(stage, data, Box::new(done));
    }
}

/// The stages that an entry attaches, with the crc32 of their blocks.
fn attached(entry: &Entry) -> impl Iterator<Item = (StageId, &[u32])> {
    entry.effects.iter().filter_map(|effect| match effect {
        Effect::Attach { stage, crcs, .. } => Some((*stage, crcs.as_slice())),
        _ => None,
    })
}

/// Whether the entry attaches these bytes as this stage.
fn attaches(entry: &Entry, stage: StageId, data: &Bytes) -> bool {
    let mut found = attached(entry).filter(|(found, _)| *found == stage);
    found.any(|(_, crcs)| {
        let held = data.chunks(BLOCK as usize).map(crc32fast::hash);
        held.eq(crcs.iter().copied())
    })
}
