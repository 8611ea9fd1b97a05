//! What a state dump shows of a brick.

use std::ops::ControlFlow;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::Pos;
use serde::Serialize;

use super::state::{Brick, Queued};
use super::storage::NEWEST;
use crate::setlog::PeerState;

/// Most files with locks that are counted.
const MAX_LOCKED: u64 = 10_000;

/// A request that a brick has not answered, and why.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Unanswered {
    /// Its session.
    pub session: u64,
    /// Its number (0: a read).
    pub number: u64,
    /// What it is.
    pub operation: &'static str,
    /// For how long the brick has had it.
    pub age_ms: u64,
    /// What it waits for.
    pub waits_for: &'static str,
}

/// A session as a brick knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct SessionState {
    /// Its number.
    pub session: u64,
    /// The user its certificate belongs to.
    pub uid: u32,
    /// How long ago it was heard, as far as this member hears it.
    pub heard_ms_ago: u64,
    /// Results kept for it.
    pub results: usize,
}

/// Bulk data that a brick has not written: it waits for the device.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct StageState {
    /// Its session.
    pub session: u64,
    /// Its number within the session.
    pub number: u64,
    /// Its length.
    pub bytes: usize,
    /// For how long the brick has had it.
    pub age_ms: u64,
}

/// Entries that the primary has sent and a brick has not written: they wait for bulk data.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Arriving {
    /// The first of them.
    pub first: String,
    /// How many there are.
    pub entries: usize,
    /// For how long the first has waited.
    pub age_ms: u64,
}

/// A brick.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct BrickState {
    /// Its id.
    pub brick: String,
    /// Its set.
    pub set: String,
    /// Epoch of its view.
    pub epoch: u64,
    /// Members of the view; the primary first.
    pub members: Vec<String>,
    /// Whether it is the primary.
    pub primary: bool,
    /// Whether the set serves here.
    pub serves: bool,
    /// Why it is out of order, if it is.
    pub poisoned: Option<String>,
    /// Newest entry in the log.
    pub log_head: String,
    /// Newest entry that every member has.
    pub log_committed: u64,
    /// Newest entry flushed.
    pub log_flushed: String,
    /// Newest entry in the tree.
    pub log_applied: String,
    /// Oldest entry that the log still has whole: what is before it is in a checkpoint.
    pub checkpoint: String,
    /// Bytes of entries not applied, and the bound.
    pub pending: (usize, usize),
    /// Bytes free for files, of all.
    pub space_free: (u64, u64),
    /// Bytes free in the log's ring.
    pub ring_free: u64,
    /// Files with locks.
    pub locked_files: u64,
    /// Its sessions.
    pub sessions: Vec<SessionState>,
    /// Requests that wait before they are decided.
    pub unanswered: Vec<Unanswered>,
    /// Decided changes that wait for other members to write them.
    pub waiting_for_members: usize,
    /// Those that wait for a flush.
    pub waiting_for_flush: usize,
    /// Reads that wait for the disk.
    pub waiting_for_disk: usize,
    /// Bulk data that is being written.
    pub staging: Vec<StageState>,
    /// Entries that wait for bulk data.
    pub arriving: Option<Arriving>,
    /// The other bricks of the set, if this one is the primary.
    pub peers: Vec<PeerState>,
}

fn place(pos: Pos) -> String {
    pos.to_string()
}

impl Brick {
    /// What a state dump shows.
    pub(super) fn state(&self, now: Mono, staging: Vec<StageState>) -> BrickState {
        let space = self.storage.space();
        let view = self.log.view();
        let mut members: Vec<_> = view.iter().flat_map(|view| &view.members).collect();
        members.sort_by_key(|member| Some(member.brick) != view.map(|view| view.primary));
        let mut locked_files = 0;
        // The rules keep the locks of a file in one record that begins with this letter. What cannot be read is not
        // counted.
        let _ = self.storage.scan(b"L", b"M", NEWEST, &mut |_, _| {
            locked_files += 1;
            match locked_files < MAX_LOCKED {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        BrickState {
            brick: self.id.to_string(),
            set: self.set().to_string(),
            epoch: self.log.epoch().0,
            members: members
                .iter()
                .map(|member| member.brick.to_string())
                .collect(),
            primary: self.log.is_primary(),
            serves: self.log.serves(),
            poisoned: self.storage.poisoned(),
            log_head: place(self.storage.head()),
            log_committed: self.log.committed().0,
            log_flushed: place(self.storage.flushed()),
            log_applied: place(self.storage.applied()),
            checkpoint: place(self.storage.log_start()),
            pending: self.storage.pending(),
            space_free: (space.free, space.total),
            ring_free: space.ring_free,
            locked_files,
            sessions: self.session_states(now),
            unanswered: self.unanswered(now),
            waiting_for_members: self.committing.values().map(Vec::len).sum(),
            waiting_for_flush: self.flushing.values().map(Vec::len).sum(),
            waiting_for_disk: self.reading.len(),
            staging,
            arriving: self.arriving.front().map(|first| Arriving {
                first: place(first.pos),
                entries: self.arriving.len(),
                age_ms: self
                    .lacking
                    .since
                    .map_or(0, |since| now.since(since).as_millis() as u64),
            }),
            peers: self.log.peer_states(now),
        }
    }

    fn session_states(&self, now: Mono) -> Vec<SessionState> {
        let live = self.sessions.live();
        live.map(|(id, session)| SessionState {
            session: id.0,
            uid: session.uid,
            heard_ms_ago: now.since(session.heard).as_millis() as u64,
            results: session.results.len(),
        })
        .collect()
    }

    fn unanswered(&self, now: Mono) -> Vec<Unanswered> {
        let mut all = Vec::new();
        let mut add = |queued: &Queued, waits_for| {
            all.push(Unanswered {
                session: queued.call.session.0,
                number: queued.call.number,
                operation: queued.call.fop.name(),
                age_ms: now.since(queued.since).as_millis() as u64,
                waits_for,
            });
        };
        for queued in &self.queue {
            add(queued, "its turn, or room in the log");
        }
        for queued in self.held.values().flatten() {
            add(queued, "the client's change before it");
        }
        for queued in &self.unstaged {
            add(queued, "its bulk data");
        }
        for queued in &self.crowded {
            add(queued, "space that removals give back");
        }
        for queued in self.reads.values().flatten() {
            add(queued, "a change of the same object to be committed");
        }
        for queued in &self.lock_waits {
            add(queued, "a lock that another owner holds");
        }
        all
    }
}
