//! Changes: exactly once, in order, admitted, decided by the namespace, answered when committed.

use bytes::Bytes;
use mortar_protocol::entry::EntryKind;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Answer, Call, Fop, LockKind, Reply};
use mortar_protocol::ids::{Seq, SessionId};
use mortar_protocol::limits::MAX_INLINE;
use mortar_protocol::report::BrickEvent;
use mortar_protocol::view::SetKind;
use std::time::Duration;

use super::complaints::Complaint;
use super::rules::{Asked, StateAt};
use super::sessions::Ran;
use super::state::{Brick, Life, Queued, Waiting};
use super::storage::NEWEST;

/// Most changes that wait in one brick.
const MAX_QUEUE: usize = 8_192;
/// Free bytes of the ring, beyond the request's own, below which a change waits for a checkpoint.
const RING_RESERVE: u64 = (MAX_INLINE as u64) + (512 << 10);
/// From this part of the pending map's bound on, its own or the daemon's, flushes follow one another, so that it is never
/// full while they keep up.
const FLUSH_FROM: usize = 4;
/// A change waits so long for a stage that is on its way.
const STAGE_WAIT: Duration = Duration::from_millis(500);
/// How long a change waits for the space that removals before it give back.
const SPACE_WAIT: Duration = Duration::from_secs(5);
/// After this time the other members have said what space a removal gave back.
const SPACE_KNOWN: Duration = Duration::from_millis(400);
/// A change waits so long for the one before it.
const HOLD: Duration = Duration::from_secs(30);
/// How often silent sessions are reported.
const SILENT_EVERY: Duration = Duration::from_secs(5);

/// Whether a change may be run now.
enum Admission {
    Run,
    Wait,
    Refuse(Errno),
}

impl Brick {
    /// A request of a client.
    pub(super) fn on_call(&mut self, queued: Queued) {
        if self.life != Life::Serving || self.shape.is_none() {
            self.refuse_now(queued, Fault::NotServing);
        } else if queued.call.epoch > self.log.epoch() {
            // The client has heard of a view that this brick has not.
            self.refuse_now(queued, Fault::NotServing);
        } else if queued.call.fop.is_read() {
            self.on_read(queued);
        } else if !self.log.is_primary() {
            let fault = self.elsewhere();
            self.refuse_now(queued, fault);
        } else if self.queue.len() >= MAX_QUEUE {
            self.refuse_now(queued, Fault::NotServing);
        } else {
            self.queue.push_back(queued);
        }
    }

    /// Runs what can be run, in order.
    pub(super) fn run_queue(&mut self) {
        if !self.log.leads() {
            return;
        }
        while let Some(queued) = self.queue.pop_front() {
            match self.admit(&queued) {
                Admission::Run => self.run_change(queued),
                Admission::Refuse(errno) => self.refuse_now(queued, errno.into()),
                Admission::Wait => {
                    self.queue.push_front(queued);
                    return;
                }
            }
            if !self.log.leads() {
                return;
            }
        }
    }

    /// Whether there is room in every member's ring, in the pending map and the daemon's bound on all of them, and
    /// whether there are members enough.
    fn admit(&mut self, queued: &Queued) -> Admission {
        if self.is_answered(&queued.call) {
            return Admission::Run;
        }
        if is_new_change(&queued.call.fop)
            && self.shape.as_ref().is_some_and(|shape| shape.read_only)
        {
            return Admission::Refuse(Errno::EROFS);
        }
        if !is_housekeeping(&queued.call.fop) && !self.members_enough() {
            // `cluster.open-wait`: so long do changes wait for members before they get EROFS.
            let wait = self.shape.as_ref().map_or(0, |shape| shape.open_wait_ms);
            let wait = Duration::from_millis(wait.into());
            return if self.now.since(self.leads_since) >= wait {
                Admission::Refuse(Errno::EROFS)
            } else {
                Admission::Wait
            };
        }
        let body = queued.body.len();
        let (used, bound) = self.storage.pending();
        self.share.count(used);
        if used + body > bound / FLUSH_FROM || self.share.is_pressed(FLUSH_FROM) {
            self.log.want_flush(self.log.head().seq);
        }
        let others = !self.share.allows(body);
        if used > 0 && (used + body > bound || (others && self.share.wait(body))) {
            self.log.want_flush(self.log.head().seq);
            return Admission::Wait;
        }
        if self.log.least_space().ring_free < RING_RESERVE + body as u64 {
            self.log.want_flush(self.log.head().seq);
            self.storage.want_checkpoint();
            return Admission::Wait;
        }
        Admission::Run
    }

    /// Whether the call was run before. Then its first answer counts, whatever holds now: no other may be given.
    fn is_answered(&self, call: &Call) -> bool {
        let session = self.sessions.get(call.session);
        session.is_some_and(|session| session.results.contains_key(&call.number))
    }

    /// Replicate: a majority of the copies (one of two); disperse: k fragments.
    fn members_enough(&self) -> bool {
        let Some(view) = self.log.view() else {
            return false;
        };
        let holders = view
            .members
            .iter()
            .filter(|member| member.keeps_data)
            .count();
        let kind = self
            .shape
            .as_ref()
            .map_or(SetKind::Plain, |shape| shape.kind);
        let needed = match kind {
            SetKind::Plain | SetKind::Replicate { copies: ..=2 } => 1,
            SetKind::Replicate { copies } => usize::from(copies) / 2 + 1,
            SetKind::Disperse { data, .. } => usize::from(data),
        };
        holders >= needed
    }

    fn run_change(&mut self, queued: Queued) {
        let call = &queued.call;
        if matches!(call.fop, Fop::SessionBegin) {
            self.begin_session(queued);
            return;
        }
        let (now, id) = (self.now, call.session);
        let Some(session) = self.sessions.get_mut(id) else {
            // The end of a session that has ended already was asked for again.
            if matches!(call.fop, Fop::SessionEnd) {
                self.answer_at(self.log.head().seq, queued, Ok(Reply::Done));
            } else {
                self.refuse_now(queued, Fault::UnknownSession);
            }
            return;
        };
        if session.uid != queued.uid {
            self.refuse_now(queued, Fault::NotAuthorised);
            return;
        }
        session.heard = now;
        if matches!(call.fop, Fop::SessionEnd) {
            self.end_session(id);
            self.ended_by_clients.insert(id);
            self.ended_is_news = true;
            self.answer_at(self.log.head().seq, queued, Ok(Reply::Done));
            return;
        }
        let raised = call.answered_below > session.answered_below;
        if raised {
            session.answered(call.answered_below);
        }
        let ran = if call.after == 0 {
            Ran::Done
        } else {
            session.ran(call.after)
        };
        let (number, after) = (call.number, call.after);
        if let Some(kept) = session.results.get(&number).cloned() {
            match postcard::from_bytes::<Answer>(&kept.result) {
                Ok(answer) => self.answer_at(kept.seq, queued, answer.result),
                Err(_) => self.refuse_now(queued, Fault::Protocol),
            }
        } else if number == 0 || number < session.answered_below || after >= number {
            self.refuse_now(queued, Fault::Protocol);
        } else {
            match ran {
                Ran::Done => self.execute(queued),
                Ran::Refused => self.refuse(queued, Errno::EIO.into()),
                Ran::No => self.held.entry((id, after)).or_default().push(queued),
            }
        }
        if raised {
            self.release_below(id, self.sessions.get(id).map_or(0, |s| s.answered_below));
        }
    }

    /// Decides a change and appends its entry.
    fn execute(&mut self, mut queued: Queued) {
        let decided = self.asked(&queued.call, queued.uid, |state, asked, rules| {
            rules.execute(state, asked, &queued.call.fop, &queued.body)
        });
        match decided {
            Ok(executed) => {
                let (id, number) = (queued.call.session, queued.call.number);
                let seq = self.log.next_pos().seq;
                self.append_result(
                    &queued.call,
                    seq,
                    Ok(executed.reply.clone()),
                    |kind, brick| {
                        brick.make(kind, executed.effects, executed.body);
                    },
                );
                self.answer_at(seq, queued, Ok(executed.reply));
                self.release(id, number);
            }
            Err(Fault::NoStage) if self.now.since(queued.since) < STAGE_WAIT => {
                self.unstaged.push(queued);
            }
            Err(Fault::Refused(Errno::ENOSPC))
                if self.now.since(queued.since) < SPACE_WAIT && self.space_comes(&mut queued) =>
            {
                self.crowded.push(queued);
            }
            Err(fault) => self.refuse(queued, fault),
        }
    }

    /// Whether what was logged before a change came first may give back space, here or, so far as is not known yet, on
    /// the other members.
    fn space_comes(&mut self, queued: &mut Queued) -> bool {
        let head = self.log.head().seq;
        let upto = *queued.short.get_or_insert(head);
        if self.storage.may_free(upto) {
            self.freed = Some(self.now);
            self.log.want_flush(self.log.head().seq);
        }
        let now = self.now;
        self.freed.is_some_and(|at| now.since(at) < SPACE_KNOWN)
    }

    fn append_result(
        &mut self,
        call: &Call,
        seq: Seq,
        result: Result<Reply, Fault>,
        make: impl FnOnce(EntryKind, &mut Self),
    ) {
        let answer = Answer {
            mark: self.mark(seq),
            flushed: Seq(0),
            result,
        };
        let kind = EntryKind::Change {
            session: call.session,
            number: call.number,
            answered_below: call.answered_below,
            result: postcard::to_stdvec(&answer).unwrap_or_default().into(),
        };
        make(kind, self);
    }

    /// Refuses a change after what it was decided on is committed. The refusal of a repeated request is kept like a
    /// result, whatever it is: the client takes only the answer to its latest copy, and goes on with another number. A
    /// copy that arrives later must not be done, though it could be by then.
    fn refuse(&mut self, queued: Queued, fault: Fault) {
        let (id, number) = (queued.call.session, queued.call.number);
        if queued.call.repeat {
            let seq = self.log.next_pos().seq;
            self.append_result(&queued.call, seq, Err(fault.clone()), |kind, brick| {
                brick.make(kind, Vec::new(), Bytes::new());
            });
            self.answer_at(seq, queued, Err(fault));
        } else if !matches!(fault, Fault::Refused(_)) {
            // What builds on it waits for the next try.
            self.answer_at(self.log.head().seq, queued, Err(fault));
            return;
        } else {
            if let Some(session) = self.sessions.get_mut(id) {
                session.refuse(number);
            }
            self.answer_at(self.log.head().seq, queued, Err(fault));
        }
        self.release(id, number);
    }

    /// Lets the changes go on that waited for this one.
    fn release(&mut self, session: SessionId, number: u64) {
        if let Some(held) = self.held.remove(&(session, number)) {
            held.into_iter()
                .rev()
                .for_each(|queued| self.queue.push_front(queued));
        }
    }

    fn release_below(&mut self, session: SessionId, below: u64) {
        let range = (session, 0)..(session, below);
        let keys: Vec<_> = self.held.range(range).map(|(key, _)| *key).collect();
        keys.into_iter()
            .for_each(|(session, number)| self.release(session, number));
    }

    fn begin_session(&mut self, queued: Queued) {
        let id = queued.call.session;
        match self.sessions.get(id) {
            Some(session) if session.uid != queued.uid => {
                self.refuse_now(queued, Fault::NotAuthorised);
                return;
            }
            Some(_) => {}
            None if !self.is_booked(id) => {
                self.refuse_now(queued, Fault::UnknownSession);
                return;
            }
            None => {
                let kind = EntryKind::SessionBegin {
                    session: id,
                    uid: queued.uid,
                };
                let first = self.asked(&queued.call, queued.uid, |state, asked, rules| {
                    rules.session_begin(state, asked)
                });
                match first {
                    Ok(Some(first)) => self.make(kind, first.effects, first.body),
                    Ok(None) => self.make(kind, Vec::new(), Bytes::new()),
                    Err(fault) => {
                        self.refuse_now(queued, fault);
                        return;
                    }
                }
            }
        }
        self.answer_at(self.log.head().seq, queued, Ok(Reply::Done));
    }

    /// Ends a session by an entry that gives up what it held.
    pub(super) fn end_session(&mut self, id: SessionId) {
        let Some(uid) = self.sessions.get(id).map(|session| session.uid) else {
            return;
        };
        let call = Call {
            brick: self.id,
            epoch: self.log.epoch(),
            session: id,
            number: 0,
            answered_below: 0,
            repeat: false,
            after: 0,
            cred: Default::default(),
            durable: false,
            fop: Fop::SessionEnd,
        };
        let effects = self.asked(&call, uid, |state, asked, rules| {
            rules.session_end(state, asked)
        });
        match effects {
            Ok(ended) => {
                self.make(EntryKind::SessionEnd(id), ended.effects, ended.body);
                self.storage.drop_stages(id);
                let range = (id, 0)..=(id, u64::MAX);
                let keys: Vec<_> = self.held.range(range).map(|(key, _)| *key).collect();
                let gone = keys.iter().filter_map(|key| self.held.remove(key));
                for queued in gone.flatten().collect::<Vec<_>>() {
                    self.refuse_now(queued, Fault::UnknownSession);
                }
            }
            Err(fault) => {
                let about = (self.id, id);
                self.complaints
                    .met(Complaint::SessionEnd, about, &fault, self.now);
            }
        }
    }

    /// Takes a session's word that it does not use orphans.
    pub(super) fn release_orphans(&mut self, call: &Call, uid: u32) {
        let Fop::Renew { released, .. } = &call.fop else {
            return;
        };
        if released.is_empty() {
            return;
        }
        let follows = self.asked(call, uid, |state, asked, rules| {
            rules.release(state, asked, released)
        });
        match follows {
            Ok(follows) if follows.effects.is_empty() => {}
            Ok(follows) => self.make(EntryKind::Internal, follows.effects, follows.body),
            // The session says it again.
            Err(fault) => {
                let about = (self.id, call.session);
                self.complaints
                    .met(Complaint::Orphans, about, &fault, self.now);
            }
        }
    }

    /// Calls `f` with the newest state and what is known of the caller.
    pub(super) fn asked_at<T>(
        &self,
        at: Seq,
        call: &Call,
        uid: u32,
        f: impl FnOnce(&StateAt<'_>, &Asked<'_>, &dyn super::rules::Rules) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let shape = self.shape.as_ref().ok_or(Fault::NotServing)?;
        let sessions = self.sessions.live().map(|(id, _)| id);
        let others: Vec<SessionId> = sessions.filter(|id| *id != call.session).collect();
        let space = self.log.least_space();
        let state = StateAt {
            storage: self.storage.as_ref(),
            at,
            space,
        };
        let asked = Asked {
            session: call.session,
            uid,
            cred: &call.cred,
            wall: self.wall,
            others: &others,
            opening: self.opening(),
            shape,
        };
        f(&state, &asked, self.rules.as_ref())
    }

    fn asked<T>(
        &self,
        call: &Call,
        uid: u32,
        f: impl FnOnce(&StateAt<'_>, &Asked<'_>, &dyn super::rules::Rules) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.asked_at(NEWEST, call, uid, f)
    }

    /// Answers once everything up to `seq` is committed, and flushed if the request or the volume wants that.
    fn answer_at(&mut self, seq: Seq, queued: Queued, result: Result<Reply, Fault>) {
        let always = self.shape.as_ref().is_some_and(|shape| shape.durable);
        let begins = matches!(queued.call.fop, Fop::SessionBegin | Fop::SessionEnd);
        let durable = result.is_ok() && (queued.call.durable || always || begins);
        if durable {
            self.log.want_flush(seq);
        }
        let answer = Answer {
            mark: self.mark(seq),
            flushed: Seq(0),
            result,
        };
        let waiting = Waiting {
            answer,
            durable,
            reply: queued.reply,
        };
        self.committing.entry(seq).or_default().push(waiting);
    }

    /// Answers what has become committed or flushed.
    pub(super) fn answer_waiting(&mut self) {
        if self.log.leads() {
            let (committed, flushed) = (self.log.committed(), self.log.flushed_by_all());
            let later = self.committing.split_off(&committed.next());
            for (seq, waiting) in std::mem::replace(&mut self.committing, later) {
                for waiting in waiting {
                    if waiting.durable && seq > flushed {
                        self.flushing.entry(seq).or_default().push(waiting);
                    } else {
                        waiting.give(flushed);
                    }
                }
            }
            let later = self.flushing.split_off(&flushed.next());
            for waiting in std::mem::replace(&mut self.flushing, later)
                .into_values()
                .flatten()
            {
                waiting.give(flushed);
            }
        }
        self.answer_reads();
    }

    /// Answers at once: the fault does not depend on the state.
    pub(super) fn refuse_now(&self, queued: Queued, fault: Fault) {
        Self::answer_with(queued, self.mark(Seq(0)), Seq(0), Err(fault));
    }

    pub(super) fn answer_with(
        queued: Queued,
        mark: mortar_protocol::ids::Mark,
        flushed: Seq,
        result: Result<Reply, Fault>,
    ) {
        (queued.reply)(
            Answer {
                mark,
                flushed,
                result,
            },
            Bytes::new(),
        );
    }

    /// Sends everybody away that waits for what only a primary can do.
    pub(super) fn turn_away(&mut self) {
        let fault = self.elsewhere();
        let mut queued: Vec<Queued> = self.queue.drain(..).collect();
        queued.extend(std::mem::take(&mut self.held).into_values().flatten());
        queued.append(&mut self.unstaged);
        queued.append(&mut self.crowded);
        queued.append(&mut self.lock_waits);
        if !self.log.is_member() || self.life != Life::Serving {
            queued.extend(std::mem::take(&mut self.reads).into_values().flatten());
        }
        for queued in queued {
            self.refuse_now(queued, fault.clone());
        }
        let committing = std::mem::take(&mut self.committing).into_values();
        let flushing = std::mem::take(&mut self.flushing).into_values();
        for mut waiting in committing.chain(flushing).flatten() {
            waiting.answer.result = Err(fault.clone());
            waiting.give(Seq(0));
        }
    }

    /// Gives up what waited too long; reports silent sessions, and those that their clients have ended.
    pub(super) fn tick_calls(&mut self) {
        let now = self.now;
        // Also a brick that nobody changes any more gives back what others wait for.
        if self.log.leads() && self.share.is_pressed(FLUSH_FROM) {
            self.log.want_flush(self.log.head().seq);
        }
        let crowded = std::mem::take(&mut self.crowded);
        self.queue.extend(crowded);
        self.freed = self.freed.filter(|at| now.since(*at) < SPACE_KNOWN);
        let mut late: Vec<(Queued, Fault)> = Vec::new();
        for queued in std::mem::take(&mut self.unstaged) {
            if now.since(queued.since) >= STAGE_WAIT {
                late.push((queued, Fault::NoStage));
            } else {
                self.unstaged.push(queued);
            }
        }
        self.held.retain(|_, held| {
            for at in (0..held.len()).rev() {
                if now.since(held[at].since) >= HOLD {
                    late.push((held.remove(at), Fault::NotServing));
                }
            }
            !held.is_empty()
        });
        for (queued, fault) in late {
            if fault == Fault::NoStage && self.log.leads() {
                self.refuse(queued, fault);
                continue;
            }
            self.refuse_now(queued, fault);
        }
        self.tick_locks();
        self.report_silent();
    }

    fn report_silent(&mut self) {
        let Some(shape) = &self.shape else { return };
        let timeout = Duration::from_millis(u64::from(shape.session_timeout_ms));
        let due = self.ended_is_news || self.now.since(self.silent_reported) >= SILENT_EVERY;
        if !self.log.leads() || !due {
            return;
        }
        self.silent_reported = self.now;
        self.ended_is_news = false;
        let mut ended = std::mem::take(&mut self.ended_by_clients);
        ended.retain(|session| self.is_booked(*session));
        self.ended_by_clients = ended;
        let mut sessions: Vec<SessionId> = self.ended_by_clients.iter().copied().collect();
        if self.now.since(self.leads_since) >= timeout {
            let live = self.sessions.live();
            let silent = live.filter(|(_, session)| self.now.since(session.heard) >= timeout);
            sessions.extend(silent.map(|(id, _)| id));
        }
        if !sessions.is_empty() {
            self.report(BrickEvent::SilentSessions { sessions });
        }
    }
}

impl Waiting {
    fn give(mut self, flushed: Seq) {
        self.answer.flushed = flushed;
        (self.reply)(self.answer, Bytes::new());
    }
}

/// What is done also while members are too few: it puts no data at risk, and refused it would leave something behind.
/// A change that a person asks for; not what brings an earlier one to its end.
fn is_new_change(fop: &Fop) -> bool {
    matches!(
        fop,
        Fop::Change(_) | Fop::Commit { .. } | Fop::Prepare { .. }
    )
}

fn is_housekeeping(fop: &Fop) -> bool {
    match fop {
        Fop::SessionBegin | Fop::SessionEnd => true,
        Fop::Lock(lock) => lock.kind == LockKind::Unlock,
        _ => false,
    }
}
