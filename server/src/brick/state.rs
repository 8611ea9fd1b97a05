//! One brick's state, and how it does what the set log asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::Time;
use mortar_protocol::entry::{Entry, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::fop::{Answer, Call};
use mortar_protocol::ids::{BootId, BrickId, Mark, NodeId, Opening, RunId, Seq, SessionId, SetId};
use mortar_protocol::peer::{PeerEnvelope, PeerFrame, PeerMessage};
use mortar_protocol::report::{BrickEvent, FromBrick, SetShape, ToBrick};
use mortar_protocol::view::SetKind;

use super::api::{BrickConfig, CallReply, Completion, Completions, SpaceGauge};
use super::budget::BudgetShare;
use super::complaints::Complaints;
use super::entries::Lacking;
use super::recover::{lineage, records, recover};
use super::rules::Rules;
use super::sessions::Sessions;
use super::storage::{NEWEST, Storage};
use crate::namespace::records::{COUNTERS_KEY, Counters, decode};
use crate::setlog::{Action, Me, SetLog};

/// How often a brick without a view says that it is there.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// How often a brick looks how many inodes it has.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// A request on its way.
pub(super) struct Queued {
    pub(super) call: Box<Call>,
    pub(super) body: Bytes,
    pub(super) uid: u32,
    pub(super) reply: CallReply,
    /// When it arrived.
    pub(super) since: Mono,
    /// The newest entry when there was no space for it first.
    pub(super) short: Option<Seq>,
}

/// An answer that waits until its place in the log is committed or flushed.
pub(super) struct Waiting {
    pub(super) answer: Answer,
    pub(super) durable: bool,
    pub(super) reply: CallReply,
}

/// What a brick gives out in a run.
#[derive(Default)]
pub(super) struct Output {
    pub(super) peers: Vec<PeerFrame>,
    pub(super) reports: Vec<FromBrick>,
}

/// How far an orderly stop has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Serving,
    /// Serves nobody; flushes, since then.
    Stopping(Mono),
    /// Hears nobody; makes its last checkpoint.
    Settling,
    Stopped,
}

/// One brick.
pub(super) struct Brick {
    pub(super) id: BrickId,
    pub(super) set: SetId,
    pub(super) node: NodeId,
    pub(super) boot: BootId,
    pub(super) run: RunId,
    pub(super) storage: Box<dyn Storage>,
    pub(super) rules: Arc<dyn Rules>,
    pub(super) log: SetLog,
    pub(super) sessions: Sessions,
    pub(super) shape: Option<SetShape>,
    pub(super) book: Option<(SessionId, BTreeSet<SessionId>)>,
    pub(super) completions: Arc<Completions>,
    /// What its pending map takes of the daemon's.
    pub(super) share: BudgetShare,
    gauge: SpaceGauge,
    /// When the inodes were last counted, and how many there were.
    counted: Option<(Mono, u64)>,
    pub(super) now: Mono,
    /// When something last happened to it, other than that time passed.
    pub(super) active: Mono,
    pub(super) wall: Time,
    pub(super) life: Life,
    pub(super) complaints: Complaints,

    /// Changes to be run, in order.
    pub(super) queue: VecDeque<Queued>,
    /// Changes that wait for the one they name as their predecessor.
    pub(super) held: BTreeMap<(SessionId, u64), Vec<Queued>>,
    /// Changes that wait for a stage.
    pub(super) unstaged: Vec<Queued>,
    /// Changes for which there is no space until what was logged before them has given some back.
    pub(super) crowded: Vec<Queued>,
    /// When such an entry was last seen, until this is long ago.
    pub(super) freed: Option<Mono>,
    pub(super) committing: BTreeMap<Seq, Vec<Waiting>>,
    pub(super) flushing: BTreeMap<Seq, Vec<Waiting>>,
    /// Reads that wait for the commit position.
    pub(super) reads: BTreeMap<Seq, Vec<Queued>>,
    /// Reads whose data is on its way.
    pub(super) reading: BTreeMap<u64, (CallReply, Answer)>,
    /// Whether more messages wait for this thread.
    pub(super) more: bool,
    pub(super) next_ticket: u64,
    pub(super) lock_waits: Vec<Queued>,
    /// Position at which waiting lock calls were last looked at.
    pub(super) locks_seen: Seq,

    /// Entries accepted that are not appended, for lack of stages.
    pub(super) arriving: VecDeque<Arc<Entry>>,
    /// What they lack.
    pub(super) lacking: Lacking,
    pub(super) openings: Vec<(Opening, Seq)>,
    /// Whether it led, under which epoch, when the role was last looked at.
    pub(super) role: (bool, bool, u64),
    pub(super) leads_since: Mono,
    pub(super) silent_reported: Mono,
    /// Sessions that their clients have ended here: the control plane is told until it knows.
    pub(super) ended_by_clients: BTreeSet<SessionId>,
    pub(super) ended_is_news: bool,
    pub(super) reported: Option<Mono>,
    pub(super) polled: Mono,
    pub(super) acts: Vec<Action>,
    /// Room was made for changes that wait.
    pub(super) again: bool,
    pub(super) out: Output,
}

impl Brick {
    /// A brick that has just been opened. Its log is read from where the saved sessions stand.
    pub(super) fn open(
        config: BrickConfig,
        rules: Arc<dyn Rules>,
        completions: Arc<Completions>,
        share: BudgetShare,
        now: Mono,
    ) -> Self {
        let BrickConfig {
            brick,
            set,
            node,
            boot,
            run,
            storage,
            gauge,
        } = config;
        let (history, sessions) = recover(storage.as_ref(), now);
        let me = Me {
            set,
            brick,
            run,
            kind: SetKind::Plain,
        };
        let (flushed, applied) = (storage.flushed().seq, storage.applied());
        let mut log = SetLog::new(me, history, flushed, applied, storage.view());
        let mut acts = Vec::new();
        if let Some(reason) = storage.poisoned() {
            log.poison(&reason, &mut acts);
        }
        Self {
            id: brick,
            set,
            node,
            boot,
            run,
            storage,
            rules,
            log,
            sessions,
            shape: None,
            book: None,
            completions,
            share,
            gauge,
            counted: None,
            now,
            active: now,
            wall: Time::default(),
            life: Life::Serving,
            complaints: Complaints::default(),
            queue: VecDeque::new(),
            held: BTreeMap::new(),
            unstaged: Vec::new(),
            crowded: Vec::new(),
            freed: None,
            committing: BTreeMap::new(),
            flushing: BTreeMap::new(),
            reads: BTreeMap::new(),
            reading: BTreeMap::new(),
            more: false,
            next_ticket: 0,
            lock_waits: Vec::new(),
            locks_seen: Seq(0),
            arriving: VecDeque::new(),
            lacking: Lacking::default(),
            openings: Vec::new(),
            role: (false, false, 0),
            leads_since: now,
            silent_reported: now,
            ended_by_clients: BTreeSet::new(),
            ended_is_news: false,
            reported: None,
            polled: Mono(0),
            acts,
            again: false,
            out: Output::default(),
        }
    }

    /// The set it belongs to.
    pub(super) fn set(&self) -> SetId {
        self.set
    }

    pub(super) fn opening(&self) -> Opening {
        self.log.view().map_or(Opening(0), |view| view.opening)
    }

    pub(super) fn mark(&self, seq: Seq) -> Mark {
        Mark {
            opening: self.opening(),
            seq,
        }
    }

    /// An order of the control plane.
    pub(super) fn order(&mut self, order: ToBrick) {
        match order {
            ToBrick::View(view) => self.log.on_view(view, &mut self.acts),
            ToBrick::Shape(shape) => {
                self.log.set_kind(shape.kind);
                self.shape = Some(shape);
            }
            ToBrick::Sessions { below, live } => {
                self.book = Some((below, live.into_iter().collect()));
                self.end_sessions();
            }
            ToBrick::Report => self.report_started(),
            ToBrick::Stop => {
                if self.life == Life::Serving {
                    self.life = Life::Stopping(self.now);
                }
            }
        }
    }

    /// A message of another brick of the set.
    pub(super) fn on_peer(&mut self, frame: PeerFrame) {
        if frame.envelope.to != self.id || matches!(self.life, Life::Settling | Life::Stopped) {
            return;
        }
        match &frame.envelope.message {
            PeerMessage::StageWanted { at, stage } => {
                let (to, at, stage) = (frame.envelope.from, *at, *stage);
                if self.log.position(at.seq) != Some(at) {
                    return;
                }
                match self.storage.read_attached(at.seq, stage) {
                    Ok(data) => self.send(to, PeerMessage::StageData { stage }, data),
                    Err(_) => self.log.stage_gone(to, frame.envelope.run, &mut self.acts),
                }
            }
            PeerMessage::StageData { stage } => {
                let stage = *stage;
                self.on_stage_data(stage, frame.data);
            }
            _ => self.log.on_peer(frame, &mut self.acts),
        }
    }

    pub(super) fn send(&mut self, to: BrickId, message: PeerMessage, data: Bytes) {
        let envelope = PeerEnvelope {
            from: self.id,
            run: self.run,
            to,
            epoch: self.log.epoch(),
            message,
        };
        self.out.peers.push(PeerFrame {
            envelope,
            entries: Vec::new(),
            data,
        });
    }

    pub(super) fn report(&mut self, event: BrickEvent) {
        let (set, brick, run) = (self.set, self.id, self.run);
        self.out.reports.push(FromBrick {
            set,
            brick,
            run,
            event,
        });
    }

    /// The disk has done something.
    pub(super) fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Flushed {
                round,
                result: Ok(pos),
            } => {
                self.storage.on_flushed(pos);
                self.log.flushed(round, pos, &mut self.acts);
            }
            Completion::Flushed {
                result: Err(error), ..
            } => {
                self.poison(&format!("a flush failed: {error}"));
            }
            Completion::Read { ticket, result } => {
                if let Some((reply, mut answer)) = self.reading.remove(&ticket) {
                    let body = result.unwrap_or_else(|fault| {
                        answer.result = Err(fault);
                        Bytes::new()
                    });
                    reply(answer, body);
                }
            }
            Completion::Staged {
                result: Err(error), ..
            } if is_fatal(&error) => {
                self.poison(&format!("a write of bulk data failed: {error}"));
            }
            Completion::Staged { .. } => {
                let ready = std::mem::take(&mut self.unstaged);
                self.queue.extend(ready);
            }
            // Every brick that something has happened to runs its queue.
            Completion::Room => {}
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        self.log.tick(now, &mut self.acts);
        self.complaints.tick(self.id, now);
        self.log.released(self.storage.log_start().seq);
        let silent = self
            .reported
            .is_none_or(|then| now.since(then) >= REPORT_EVERY);
        // The answer tells what it must know.
        let told = self.log.is_member() && self.is_told();
        if silent && !told && self.life == Life::Serving {
            self.reported = Some(now);
            if self.storage.poisoned().is_none() {
                self.report_started();
            }
        }
        self.tick_calls();
    }

    /// Whether it waits for nothing: it is a member that knows what it must know, and nobody waits for it.
    pub(super) fn is_idle(&self) -> bool {
        self.life == Life::Serving
            && self.is_told()
            && self.log.is_member()
            && self.queue.is_empty()
            && self.held.is_empty()
            && self.unstaged.is_empty()
            && self.crowded.is_empty()
            && self.committing.is_empty()
            && self.flushing.is_empty()
            && self.reads.is_empty()
            && self.reading.is_empty()
            && self.lock_waits.is_empty()
            && self.arriving.is_empty()
            && self.freed.is_none()
    }

    /// Whether it has been told what it must know to serve; it may have learnt of its view from a peer alone.
    fn is_told(&self) -> bool {
        self.shape.is_some() && self.book.is_some()
    }

    /// Says that this run is there.
    pub(super) fn report_started(&mut self) {
        let event = BrickEvent::Started {
            node: self.node,
            boot: self.boot,
            history: self.log.history().clone(),
            member: self.storage.member_runs(),
            view: self.storage.view(),
            damaged: self.storage.damaged(),
            space: self.storage.space(),
        };
        self.report(event);
    }

    /// Says what space there is to whoever asks this node.
    fn say_space(&mut self, space: Space) {
        let now = self.now;
        let inodes = match self.counted {
            Some((then, inodes)) if now.since(then) < COUNT_EVERY => inodes,
            _ => {
                let value = self.storage.get(COUNTERS_KEY, NEWEST).ok().flatten();
                let counters = value.and_then(|value| decode::<Counters>(&value).ok());
                let inodes = counters.map_or(0, |counters| counters.inodes);
                self.counted = Some((now, inodes));
                inodes
            }
        };
        self.gauge.set(Space { inodes, ..space });
    }

    /// Ends a batch: runs what can be run, sends what is to be sent, answers what can be answered.
    pub(super) fn settle(&mut self) {
        self.again = false;
        if matches!(self.life, Life::Settling | Life::Stopped) {
            self.acts.clear();
            self.go_on_settling();
            self.share.count(self.storage.pending().0);
            return;
        }
        let space = self.storage.space();
        self.log.set_space(space);
        self.say_space(space);
        loop {
            self.look_at_role();
            self.run_queue();
            self.take_arrivals();
            let mut acts = std::mem::take(&mut self.acts);
            self.log.finish(self.storage.as_ref(), &mut acts);
            if acts.is_empty() {
                break;
            }
            acts.into_iter().for_each(|act| self.perform(act));
        }
        self.answer_waiting();
        self.poll_storage();
        self.share.count(self.storage.pending().0);
        self.finish_stop();
    }

    /// Whether the brick has something to do at once.
    pub(super) fn is_restless(&self) -> bool {
        self.again || !self.acts.is_empty()
    }

    fn perform(&mut self, act: Action) {
        if self.storage.poisoned().is_some() && !matches!(act, Action::Report(_)) {
            return;
        }
        match act {
            Action::Append(entries) => self.arriving.extend(entries),
            Action::Cut(pos) => {
                self.arriving.retain(|entry| entry.pos.seq <= pos.seq);
                self.lacking = Lacking::default();
                if self.storage.head().seq > pos.seq {
                    if let Err(reason) = self.storage.cut_after(pos) {
                        self.poison(&reason);
                    }
                    self.sessions.cut(pos.seq);
                }
            }
            Action::Make(kind) => self.make(kind, Vec::new(), Bytes::new()),
            Action::Send(frame) => self.out.peers.push(frame),
            Action::Flush(round) => {
                let (completions, id) = (self.completions.clone(), self.id);
                self.storage.start_flush(Box::new(move |result| {
                    completions.push(id, Completion::Flushed { round, result });
                }));
            }
            Action::SaveView(view) => {
                let member = lineage(self.storage.member_runs(), self.run, self.boot, false);
                if let Err(reason) = self.storage.save_member(&view, &member) {
                    self.poison(&reason);
                }
            }
            Action::Announce(seq) => {
                self.storage.announce(seq);
                self.polled = Mono(0);
            }
            Action::Report(report) => self.out.reports.push(report),
        }
    }

    /// The store failed: this run serves no more.
    pub(super) fn poison(&mut self, reason: &str) {
        tracing::error!(brick = %self.id, reason, "brick is poisoned");
        self.storage.poison(reason);
        self.log.poison(reason, &mut self.acts);
        self.turn_away();
    }

    fn poll_storage(&mut self) {
        if self.storage.poisoned().is_some() {
            if let Some(reason) = self.storage.poisoned() {
                self.log.poison(&reason, &mut self.acts);
            }
            return;
        }
        if self.polled != Mono(0) && self.now.since(self.polled) < Duration::from_millis(50) {
            return;
        }
        self.polled = self.now;
        let before = self.storage.applied();
        let insists = self.log.awaits_joiner();
        self.storage.keep_log(self.log.keeps_log(), insists);
        let mut extra = records(&self.log, &mut self.sessions);
        let polled = self.storage.poll(self.now, &mut extra);
        drop(extra);
        match polled {
            Ok(()) => {
                let applied = self.storage.applied();
                if applied > before {
                    self.queue.extend(std::mem::take(&mut self.crowded));
                }
                self.again |= applied > before && !self.queue.is_empty();
                self.log.applied(applied);
            }
            Err(reason) => self.poison(&reason),
        }
    }
}

/// Whether a failed write means a broken device; a full file system does not.
fn is_fatal(error: &std::io::Error) -> bool {
    !matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::WouldBlock
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::InvalidInput
            | std::io::ErrorKind::OutOfMemory
    )
}
