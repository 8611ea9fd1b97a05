//! A member that is not the primary, and a brick that wants to join: takes the primary's log over.

use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::entry::{Entry, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Pos, Seq};
use mortar_protocol::peer::PeerMessage;

use super::core::{Action, REPEAT, Role, SetLog};
use super::history::Positions;

/// How long after a change, and how often else, the primary hears of every change of the space.
const EXACT: Duration = Duration::from_secs(60);

/// What a backup keeps beside its log.
#[derive(Default)]
pub(super) struct Backup {
    /// Up to here the own log is known to be the primary's, in this view.
    agreed: Seq,
    /// Highest positions the primary has told.
    told: Marks,
    /// The primary is owed an answer.
    pub(super) answer_due: bool,
    /// The space that the primary was last told of, and when.
    space_told: (Space, Mono),
    /// When entries last came.
    appended: Mono,
    /// When the state was last sent.
    state_sent: Option<Mono>,
    /// Newest entry that a read waits for.
    pub(super) read_mark: Seq,
    /// Since when one waits, or when the primary was last asked.
    pub(super) asking: Option<Mono>,
}

/// The positions that come with every append.
#[derive(Clone, Copy, Default)]
pub(super) struct Marks {
    pub(super) commit: Seq,
    pub(super) announced: Seq,
    pub(super) flush: Seq,
    pub(super) serving: bool,
}

impl Backup {
    /// Whether the primary of this view was told where this log stands.
    pub(super) fn has_spoken(&self) -> bool {
        self.state_sent.is_some()
    }
}

impl SetLog {
    /// Tells the primary where this log stands.
    pub(super) fn send_state(&mut self, out: &mut Vec<Action>) {
        let Some(primary) = self.view.as_ref().map(|view| view.primary) else {
            return;
        };
        if primary == self.me.brick {
            return;
        }
        self.backup.state_sent = Some(self.now);
        let message = PeerMessage::State {
            history: self.history.clone(),
            applied: self.applied,
            flushed: self.flushed,
            join: !self.is_member(),
        };
        self.send(primary, message, Vec::new(), out);
    }

    /// Whether the primary is to hear of the space though it is owed nothing: a change may wait for room here. Where
    /// nothing is changed, bricks that share a host's file system would tell of each other's writes all the time.
    fn space_is_news(&self) -> bool {
        let (told, when) = self.backup.space_told;
        let since = self.now.since(when);
        if told == self.space || since < REPEAT / 5 {
            return false;
        }
        let far = |then: u64, now: u64| then.abs_diff(now) > then.max(now) / 16;
        self.now.since(self.backup.appended) < EXACT
            || since >= EXACT
            || told.total != self.space.total
            || far(told.free, self.space.free)
            || far(told.free_now, self.space.free_now)
            || far(told.ring_free, self.space.ring_free)
    }

    /// Entries that follow `prev`.
    pub(super) fn on_append(
        &mut self,
        prev: Pos,
        entries: Vec<Arc<Entry>>,
        marks: Marks,
        out: &mut Vec<Action>,
    ) {
        if self.history.at(prev.seq) != Some(prev) {
            // Older than what is kept (a late copy), or behind a gap: the primary shall begin where this log ends.
            if prev.seq >= self.history.base.seq {
                self.send_state(out);
            }
            return;
        }
        let mut last = prev;
        let mut fresh = Vec::new();
        for entry in entries {
            if entry.pos.seq != last.seq.next()
                || entry.pos.epoch < last.epoch
                || entry.pos.epoch > self.epoch()
            {
                return;
            }
            last = entry.pos;
            if self.history.at(entry.pos.seq) == Some(entry.pos) {
                continue;
            }
            if entry.pos.seq <= self.history.head.seq {
                if entry.pos.seq <= self.applied.seq.max(self.announced) {
                    self.send_state(out);
                    return;
                }
                self.cut(Seq(entry.pos.seq.0 - 1), out);
            }
            if !self.history.push(entry.pos) {
                break;
            }
            fresh.push(entry);
        }
        self.backup.agreed = self.backup.agreed.max(last.seq);
        if !fresh.is_empty() {
            out.push(Action::Append(fresh));
        }
        let told = &mut self.backup.told;
        told.commit = told.commit.max(marks.commit);
        told.announced = told.announced.max(marks.announced);
        told.flush = told.flush.max(marks.flush);
        if marks.serving
            && let Some(view) = &mut self.view
        {
            view.effective = true;
        }
        self.backup.answer_due = true;
        self.backup.appended = self.now;
        self.follow(out);
    }

    /// Takes over the positions the primary has told, as far as the own log is known to be the same.
    pub(super) fn follow(&mut self, out: &mut Vec<Action>) {
        let Backup { agreed, told, .. } = self.backup;
        let held = agreed.min(self.written);
        self.commit = self.commit.max(told.commit.min(held));
        self.flush_wanted = self.flush_wanted.max(told.flush.min(agreed));
        self.flushed_by_all = self.flushed_by_all.max(told.announced.min(held));
        let announce = told.announced.min(held).min(self.flushed).min(self.commit);
        if announce > self.announced {
            self.announced = announce;
            out.push(Action::Announce(announce));
        }
        if self.commit >= self.backup.read_mark {
            self.backup.asking = None;
        }
    }

    /// A read waits until this member knows everything up to `seq` to be committed.
    pub fn await_commit(&mut self, seq: Seq) {
        self.backup.read_mark = self.backup.read_mark.max(seq);
        self.backup.asking.get_or_insert(self.now);
    }

    pub(super) fn tick_backup(&mut self, repeat: bool, out: &mut Vec<Action>) {
        let Some(primary) = self.view.as_ref().map(|view| view.primary) else {
            return;
        };
        let waits = self.backup.agreed == Seq(0) || matches!(self.role, Role::Outside);
        let silent = self
            .backup
            .state_sent
            .is_none_or(|sent| self.now.since(sent) >= REPEAT);
        if repeat && waits && silent {
            self.send_state(out);
        }
        if let Some(since) = self.backup.asking
            && self.now.since(since) >= REPEAT / 5
        {
            self.backup.asking = Some(self.now);
            if primary != self.me.brick {
                self.send(primary, PeerMessage::AskCommit, Vec::new(), out);
            }
        }
    }

    pub(super) fn finish_backup(&mut self, out: &mut Vec<Action>) {
        self.follow(out);
        self.backup.answer_due |= self.space_is_news();
        if !std::mem::take(&mut self.backup.answer_due) || self.backup.agreed == Seq(0) {
            return;
        }
        let Some(primary) = self.view.as_ref().map(|view| view.primary) else {
            return;
        };
        let Some(written) = self.history.at(self.backup.agreed.min(self.written)) else {
            return;
        };
        self.backup.space_told = (self.space, self.now);
        let message = PeerMessage::Written {
            written,
            flushed: self.flushed.min(written.seq),
            space: self.space,
        };
        self.send(primary, message, Vec::new(), out);
    }
}
