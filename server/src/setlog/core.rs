//! The core's state, what is common to all roles, and what a brick asks it.

use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::entry::{Entry, EntryKind, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BrickId, Epoch, Pos, RunId, Seq, SetId};
use mortar_protocol::peer::{History, PeerEnvelope, PeerFrame, PeerMessage};
use mortar_protocol::report::{BrickEvent, FromBrick};
use mortar_protocol::view::{SetKind, View};

use super::backup::Backup;
use super::history::Positions;
use super::primary::Primary;

/// What is written is flushed at least this often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How often something that was not answered is said again.
pub(super) const REPEAT: Duration = Duration::from_millis(500);
/// A brick that was catching up and is silent for so long is forgotten.
pub(super) const GONE: Duration = Duration::from_secs(5);

/// Who this member is.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// The set.
    pub set: SetId,
    /// The brick.
    pub brick: BrickId,
    /// This run of it.
    pub run: RunId,
    /// How the set keeps data.
    pub kind: SetKind,
}

/// What the brick is to do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Append these entries behind what was appended before, as soon as their stages are here; then say so with
    /// [`SetLog::appended`]. Always in order.
    Append(Vec<Arc<Entry>>),
    /// Drop everything behind this position, also what was to be appended and is not yet.
    Cut(Pos),
    /// Make the entry that follows the newest one (it may need effects), append it and say so.
    Make(EntryKind),
    /// Send this to a peer.
    Send(PeerFrame),
    /// Start a flush of all that is appended; answer with [`SetLog::flushed`] and this number.
    Flush(u64),
    /// Save the view, and this run and boot as the member's, in the superblock, before anything else is flushed.
    SaveView(View),
    /// Entries up to here are flushed by every member and joiner: they may be applied.
    Announce(Seq),
    /// Tell the control plane.
    Report(FromBrick),
}

/// The log no longer holds what a peer lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log no longer reaches back far enough")]
pub struct LogGone;

/// Access to the entries this member holds.
pub trait LogReader {
    /// Entries behind `pos`, in order, at least one if there is any, about `max` bytes of them.
    ///
    /// # Errors
    /// If the log does not reach back to `pos`.
    fn entries_after(&self, pos: Pos, max: usize) -> Result<Vec<Arc<Entry>>, LogGone>;
}

/// What this member is in the newest view it knows.
pub(super) enum Role {
    /// No member: it asks the primary, if there is one, to join.
    Outside,
    /// In sync, not the primary.
    Backup,
    /// The primary.
    Primary(Box<Primary>),
    /// Its store failed; it takes part in nothing.
    Dead(String),
}

/// One member's side of the set log.
pub struct SetLog {
    pub(super) me: Me,
    /// Positions of all entries accepted (on a backup some may wait for their stages).
    pub(super) history: History,
    /// Newest entry appended.
    pub(super) written: Seq,
    /// Newest entry flushed.
    pub(super) flushed: Seq,
    /// Newest entry that can no longer be dropped.
    pub(super) applied: Pos,
    /// Everything up to here is committed, as far as this member knows.
    pub(super) commit: Seq,
    /// Newest position given to the store as applicable.
    pub(super) announced: Seq,
    /// Everything up to here is flushed by all, as far as this member knows.
    pub(super) flushed_by_all: Seq,
    /// Somebody waits for a flush up to here.
    pub(super) flush_wanted: Seq,
    flushing: bool,
    /// Counts cuts: a flush that began before one says nothing about what came after.
    flush_round: u64,
    flush_began: Mono,
    pub(super) view: Option<View>,
    view_began: Mono,
    pub(super) role: Role,
    pub(super) backup: Backup,
    pub(super) space: Space,
    pub(super) now: Mono,
    reported: Mono,
}

impl SetLog {
    /// The core of a run that has just opened its store. `history` is what the log holds, `flushed` and `applied` how
    /// far it is flushed and applied, `view` the last view in the superblock (a run is never a member by itself).
    pub fn new(me: Me, history: History, flushed: Seq, applied: Pos, view: Option<View>) -> Self {
        let written = history.head.seq;
        Self {
            me,
            written,
            flushed: flushed.min(written),
            applied,
            commit: applied.seq,
            announced: applied.seq,
            flushed_by_all: applied.seq,
            flush_wanted: Seq(0),
            flushing: false,
            flush_round: 0,
            flush_began: Mono(0),
            view: view.map(|view| View {
                effective: false,
                ..view
            }),
            view_began: Mono(0),
            role: Role::Outside,
            backup: Backup::default(),
            history,
            space: Space::default(),
            now: Mono(0),
            reported: Mono(0),
        }
    }

    /// The newest view this member knows.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Epoch of the newest view.
    pub fn epoch(&self) -> Epoch {
        self.view.as_ref().map_or(Epoch(0), |view| view.epoch)
    }

    /// Whether this run is a member of the newest view.
    pub fn is_member(&self) -> bool {
        matches!(self.role, Role::Backup | Role::Primary(_))
    }

    /// Whether it is the primary of the newest view, which may not serve yet.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }

    /// Whether this member may answer: the view has taken effect and (with promises, P2) still stands.
    pub fn serves(&self) -> bool {
        self.is_member() && self.view.as_ref().is_some_and(|view| view.effective)
    }

    /// Whether this member may decide changes.
    pub fn leads(&self) -> bool {
        self.is_primary() && self.serves()
    }

    /// Whether nothing is under way: every entry is flushed by all, and all were told so. Also where nothing more is to
    /// be expected: outside the view, or while it has not taken effect.
    pub fn is_at_rest(&self) -> bool {
        if !self.serves() {
            return true;
        }
        self.announced >= self.history.head.seq
            && match &self.role {
                Role::Primary(primary) => primary.has_told(self.announced),
                _ => true,
            }
    }

    /// Whether entries that a checkpoint holds are to stay in the log as far as there is room: a brick of the set is
    /// away, or may be, and would lack them when it comes back.
    pub fn keeps_log(&self) -> bool {
        let whole = |view: &View| view.absent.is_empty();
        !self.is_member() || !self.view.as_ref().is_some_and(whole)
    }

    /// Whether a brick is joining, or may begin to right after it was dropped: changes then rather wait for space than
    /// that it could not follow.
    pub fn awaits_joiner(&self) -> bool {
        let dropped = self.now.since(self.view_began) < GONE && self.keeps_log();
        match &self.role {
            Role::Primary(primary) => dropped || primary.has_joiner(),
            _ => false,
        }
    }

    /// Position that the next entry of this primary gets.
    pub fn next_pos(&self) -> Pos {
        Pos {
            epoch: self.epoch(),
            seq: self.history.head.seq.next(),
        }
    }

    /// The position of the entry at `seq`, if it is known.
    pub fn position(&self, seq: Seq) -> Option<Pos> {
        self.history.at(seq)
    }

    /// The positions of the own log.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Newest entry accepted.
    pub fn head(&self) -> Pos {
        self.history.head
    }

    /// Newest entry known to be committed and held here.
    pub fn committed(&self) -> Seq {
        self.commit.min(self.written)
    }

    /// Newest entry known to be flushed by every member and announced joiner.
    pub fn flushed_by_all(&self) -> Seq {
        self.flushed_by_all
    }

    /// Least space of all members, by each figure.
    pub fn least_space(&self) -> Space {
        match &self.role {
            Role::Primary(primary) => primary.least_space(self.space),
            _ => self.space,
        }
    }

    /// This brick's own space, reported with its answers.
    pub fn set_space(&mut self, space: Space) {
        self.space = space;
    }

    /// The set's kind became known or changed.
    pub fn set_kind(&mut self, kind: SetKind) {
        self.me.kind = kind;
    }

    /// The control plane's view. Older ones than the newest known change nothing.
    pub fn on_view(&mut self, view: View, out: &mut Vec<Action>) {
        if matches!(self.role, Role::Dead(_)) || view.set != self.me.set {
            return;
        }
        match view.epoch.cmp(&self.epoch()) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => {
                let known = self.view.get_or_insert_with(|| view.clone());
                let news = view.effective && !known.effective && known.members == view.members;
                known.effective |= news;
                if news && self.is_member() {
                    self.advance(out);
                } else if !self.is_member() && (news || !self.backup.has_spoken()) {
                    self.take_role(out);
                }
            }
            std::cmp::Ordering::Greater => {
                self.view = Some(view);
                self.role = Role::Outside;
                self.take_role(out);
            }
        }
    }

    /// Takes the role the newest view gives to this run. A role once taken stays until the next view.
    fn take_role(&mut self, out: &mut Vec<Action>) {
        let Some(view) = self.view.clone() else {
            return;
        };
        self.backup = Backup::default();
        self.view_began = self.now;
        if view
            .member(self.me.brick)
            .is_none_or(|member| member.run != self.me.run)
        {
            self.role = Role::Outside;
            self.send_state(out);
        } else if view.primary == self.me.brick {
            self.begin_view(view, out);
        } else {
            self.role = Role::Backup;
            self.send_state(out);
        }
    }

    /// A message of a peer, with the entries it carries.
    pub fn on_peer(&mut self, frame: PeerFrame, out: &mut Vec<Action>) {
        let PeerEnvelope {
            from,
            run,
            epoch,
            message,
            ..
        } = frame.envelope;
        if matches!(self.role, Role::Dead(_)) {
            return;
        }
        if let PeerMessage::Begin { view } = message {
            let genuine = view.epoch == epoch
                && view
                    .primary_member()
                    .is_some_and(|member| member.brick == from && member.run == run);
            if genuine && view.epoch >= self.epoch() {
                // Only the control plane says that a view has taken effect; its primary repeats it when it serves.
                let news = View {
                    effective: false,
                    ..view
                };
                if news.epoch > self.epoch() {
                    self.on_view(news, out);
                } else if !self.is_primary() {
                    self.send_state(out);
                }
            }
            return;
        }
        if epoch != self.epoch() {
            return;
        }
        match message {
            PeerMessage::Append {
                prev,
                commit,
                announced,
                flush,
                serving,
            } => {
                if self
                    .view
                    .as_ref()
                    .and_then(View::primary_member)
                    .is_some_and(|member| {
                        member.brick == from && member.run == run && from != self.me.brick
                    })
                {
                    let marks = super::backup::Marks {
                        commit,
                        announced,
                        flush,
                        serving,
                    };
                    self.on_append(prev, frame.entries, marks, out);
                }
            }
            PeerMessage::State {
                history,
                applied,
                join,
                ..
            } => {
                self.on_state(from, run, &history, applied, join, out);
            }
            PeerMessage::Written {
                written,
                flushed,
                space,
            } => {
                self.on_written(from, run, written, flushed, space, out);
            }
            PeerMessage::AskCommit => self.on_ask(from, run),
            // Stages are the brick's own business.
            PeerMessage::Begin { .. }
            | PeerMessage::StageWanted { .. }
            | PeerMessage::StageData { .. } => {}
        }
    }

    /// Entries are appended to the own log: those of [`Action::Append`] or [`Action::Make`], or the primary's own.
    pub fn appended(&mut self, entries: &[Arc<Entry>], out: &mut Vec<Action>) {
        for entry in entries {
            if entry.pos.seq > self.history.head.seq && !self.history.push(entry.pos) {
                return;
            }
            if self.history.at(entry.pos.seq) == Some(entry.pos) {
                self.written = self.written.max(entry.pos.seq);
            }
            if matches!(entry.kind, EntryKind::Joiner(_)) {
                self.flush_wanted = self.flush_wanted.max(entry.pos.seq);
            }
            if let EntryKind::View(view) = &entry.kind
                && view.epoch == self.epoch()
                && self.is_member()
            {
                out.push(Action::SaveView(view.clone()));
                self.flush_wanted = self.flush_wanted.max(entry.pos.seq);
            }
        }
        self.backup.answer_due = true;
        if let Role::Primary(primary) = &mut self.role {
            primary.appended(entries);
            self.advance(out);
        }
    }

    /// A flush started by [`Action::Flush`] of this number has ended well; everything up to `pos` is flushed.
    pub fn flushed(&mut self, round: u64, pos: Pos, out: &mut Vec<Action>) {
        self.flushing = false;
        if round != self.flush_round || self.history.at(pos.seq) != Some(pos) {
            return;
        }
        self.flushed = self.flushed.max(pos.seq.min(self.written));
        self.backup.answer_due = true;
        self.advance(out);
    }

    /// Entries up to here are in the tree and can no longer be dropped.
    pub fn applied(&mut self, pos: Pos) {
        self.applied = self.applied.max(pos);
    }

    /// Entries up to here left the log for good.
    pub fn released(&mut self, seq: Seq) {
        self.history.forget(seq.min(self.applied.seq));
    }

    /// Somebody waits until everything up to `seq` is flushed by all.
    pub fn want_flush(&mut self, seq: Seq) {
        self.flush_wanted = self.flush_wanted.max(seq.min(self.history.head.seq));
    }

    /// The own store failed: this run serves no more.
    pub fn poison(&mut self, reason: &str, out: &mut Vec<Action>) {
        if !matches!(self.role, Role::Dead(_)) {
            self.role = Role::Dead(reason.to_owned());
            self.report(
                BrickEvent::Poisoned {
                    reason: reason.to_owned(),
                },
                out,
            );
        }
    }

    /// Time has passed: repeats what was not answered, flushes what has waited for a second.
    pub fn tick(&mut self, now: Mono, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        let repeat = self.now.since(self.reported) >= REPEAT;
        if repeat {
            self.reported = self.now;
        }
        if let Role::Dead(reason) = &self.role {
            if repeat {
                let reason = reason.clone();
                self.report(BrickEvent::Poisoned { reason }, out);
            }
            return;
        }
        if self.written > self.flushed && self.now.since(self.flush_began) >= FLUSH_EVERY {
            self.flush_wanted = self.flush_wanted.max(self.written);
        }
        if self.is_primary() {
            self.tick_primary(repeat, out);
        } else {
            self.tick_backup(repeat, out);
        }
    }

    /// Ends a batch of events: sends one message per peer that needs one, starts a flush if one is wanted.
    pub fn finish(&mut self, log: &dyn LogReader, out: &mut Vec<Action>) {
        if matches!(self.role, Role::Dead(_)) {
            return;
        }
        if self.is_primary() {
            self.finish_primary(log, out);
        } else {
            self.finish_backup(out);
        }
        if self.flush_wanted > self.flushed && self.written > self.flushed && !self.flushing {
            self.flushing = true;
            self.flush_began = self.now;
            out.push(Action::Flush(self.flush_round));
        }
    }

    /// Drops everything behind `seq` from the own positions.
    pub(super) fn cut(&mut self, seq: Seq, out: &mut Vec<Action>) {
        self.history.cut(seq);
        self.written = self.written.min(seq);
        self.flushed = self.flushed.min(seq);
        self.commit = self.commit.min(seq);
        self.flush_round += 1;
        out.push(Action::Cut(self.history.head));
    }

    pub(super) fn report(&self, event: BrickEvent, out: &mut Vec<Action>) {
        out.push(Action::Report(FromBrick {
            set: self.me.set,
            brick: self.me.brick,
            run: self.me.run,
            event,
        }));
    }

    pub(super) fn send(
        &self,
        to: BrickId,
        message: PeerMessage,
        entries: Vec<Arc<Entry>>,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::Send(PeerFrame {
            envelope: PeerEnvelope {
                from: self.me.brick,
                run: self.me.run,
                to,
                epoch: self.epoch(),
                message,
            },
            entries,
            data: bytes::Bytes::new(),
        }));
    }
}
