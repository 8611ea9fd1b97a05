//! The primary: makes its log the members' log, counts what they have written and flushed, takes joiners in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::entry::{Effect, Entry, EntryKind, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BrickId, Pos, RunId, Seq};
use mortar_protocol::peer::{History, PeerMessage};
use mortar_protocol::report::BrickEvent;
use mortar_protocol::view::{SetKind, View};
use serde::Serialize;

use super::core::{Action, GONE, LogReader, REPEAT, Role, SetLog};
use super::history::Positions;

/// Most bytes of entries in one message, about; with the longest entry on top it stays below the frame's limit.
const MESSAGE_BYTES: usize = 2 << 20;
/// Most bytes sent to a member and not yet answered.
const WINDOW: usize = 16 << 20;
/// The same for a brick that catches up.
const CATCH_UP_WINDOW: usize = 2 << 20;
/// A joiner is announced once it lacks no more entries than this: from then on changes wait for it.
const NEAR: u64 = 64;
/// Under a load that does not let it come that near, it is announced once it needs no longer for the rest than this, at
/// its pace since it began ...
const STALL: Duration = Duration::from_secs(2);
/// ... or than this, if it falls behind though it has tried for so long.
const LONG_STALL: Duration = Duration::from_secs(10);
/// Its pace is known after so long.
const PACED: Duration = Duration::from_secs(1);

/// Another brick of the set, as the primary knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct PeerState {
    /// The brick.
    pub brick: String,
    /// What it is: in sync, catching up, being announced, announced, unable to follow.
    pub standing: &'static str,
    /// Whether this view has heard where its log stands.
    pub known: bool,
    /// Newest entry sent to it.
    pub sent: u64,
    /// Newest entry that it has written.
    pub written: u64,
    /// Newest entry that it has flushed.
    pub flushed: u64,
    /// Messages that it has not answered.
    pub unanswered: usize,
    /// How long ago it came further.
    pub heard_ms_ago: u64,
}

/// What a peer is to the primary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// In sync: counts.
    Member,
    /// Wants to join and lacks much: does not count.
    CatchingUp,
    /// The entry that announces it is being made.
    Announcing,
    /// Announced by the entry at this place: counts; a member as soon as it has flushed that and a view says so.
    Announced(Seq),
}

/// How a brick began to catch up.
#[derive(Clone, Copy)]
struct Began {
    at: Mono,
    written: Seq,
    lag: u64,
}

/// What the primary knows of one peer, in this view.
struct Peer {
    run: RunId,
    standing: Standing,
    /// Its state has been heard: `sent` means something.
    known: bool,
    /// Its log cannot be made to agree.
    lost: bool,
    /// Up to here both logs were the same when its state was heard.
    common: Seq,
    /// How it began to catch up.
    began: Option<Began>,
    sent: Seq,
    written: Seq,
    flushed: Seq,
    /// It was proposed as a member.
    proposed: bool,
    /// It gets a message even without news.
    owed: bool,
    commit_told: Seq,
    announced_told: Seq,
    flush_told: Seq,
    /// Newest entry and bytes of each message not yet answered.
    in_flight: VecDeque<(Seq, usize)>,
    /// Last progress, or when something was sent while nothing was in flight.
    heard: Mono,
    space: Option<Space>,
}

impl Peer {
    fn new(run: RunId, standing: Standing, now: Mono) -> Self {
        Self {
            run,
            standing,
            known: false,
            lost: false,
            common: Seq(0),
            began: None,
            sent: Seq(0),
            written: Seq(0),
            flushed: Seq(0),
            proposed: false,
            owed: false,
            commit_told: Seq(0),
            announced_told: Seq(0),
            flush_told: Seq(0),
            in_flight: VecDeque::new(),
            heard: now,
            space: None,
        }
    }

    /// Whether a brick that catches up can be announced while the newest entry is `head`.
    fn is_near(&self, head: Seq, now: Mono) -> bool {
        let lag = head.0.saturating_sub(self.written.0);
        if lag <= NEAR {
            return true;
        }
        let Some(Began {
            at,
            written,
            lag: first,
        }) = self.began
        else {
            return false;
        };
        let spent = now.since(at);
        let stall = match spent >= LONG_STALL && lag >= first {
            true => LONG_STALL,
            false => STALL,
        };
        let done = self.written.0.saturating_sub(written.0);
        let rest = u128::from(lag) * spent.as_millis();
        spent >= PACED && rest <= u128::from(done) * stall.as_millis()
    }

    fn counts(&self) -> bool {
        matches!(self.standing, Standing::Member | Standing::Announced(_))
    }

    fn bytes_in_flight(&self) -> usize {
        self.in_flight.iter().map(|(_, bytes)| bytes).sum()
    }

    fn window(&self) -> usize {
        if self.counts() {
            WINDOW
        } else {
            CATCH_UP_WINDOW
        }
    }
}

/// What a primary keeps beside its log.
pub(super) struct Primary {
    peers: BTreeMap<BrickId, Peer>,
    /// The view's own entry.
    first: Seq,
    adopted: bool,
    /// Entries appended since the last batch was sent.
    tail: Vec<Arc<Entry>>,
}

impl Primary {
    /// Takes own entries in that are to be sent.
    pub(super) fn appended(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            match &entry.kind {
                EntryKind::View(_) if self.first == Seq(0) => self.first = entry.pos.seq,
                EntryKind::Joiner(brick) => {
                    if let Some(peer) = self.peers.get_mut(brick)
                        && peer.standing == Standing::Announcing
                    {
                        peer.standing = Standing::Announced(entry.pos.seq);
                    }
                }
                _ => {}
            }
        }
        self.tail.extend_from_slice(entries);
    }

    pub(super) fn least_space(&self, own: Space) -> Space {
        let counted = self.peers.values().filter(|peer| peer.counts());
        counted
            .filter_map(|peer| peer.space)
            .fold(own, |least, space| Space {
                total: least.total.min(space.total),
                free: least.free.min(space.free),
                free_now: least.free_now.min(space.free_now),
                ring_free: least.ring_free.min(space.ring_free),
                inodes: least.inodes.max(space.inodes),
            })
    }

    /// Whether a brick that is no member is about to become one.
    pub(super) fn has_joiner(&self) -> bool {
        let mut peers = self.peers.values();
        peers.any(|peer| peer.standing != Standing::Member && !peer.lost)
    }

    /// Whether every peer that counts was told of what may be applied.
    pub(super) fn has_told(&self, announced: Seq) -> bool {
        let mut counted = self
            .peers
            .values()
            .filter(|peer| peer.counts() && !peer.lost);
        counted.all(|peer| peer.announced_told >= announced)
    }

    fn least(&self, own: Seq, of: impl Fn(&Peer) -> Seq) -> Seq {
        self.peers
            .values()
            .filter(|peer| peer.counts())
            .map(of)
            .fold(own, Seq::min)
    }
}

impl SetLog {
    /// What the primary knows of the other bricks of the set.
    pub fn peer_states(&self, now: Mono) -> Vec<PeerState> {
        let Role::Primary(primary) = &self.role else {
            return Vec::new();
        };
        let state = |(brick, peer): (&BrickId, &Peer)| PeerState {
            brick: brick.to_string(),
            standing: match peer.standing {
                _ if peer.lost => "unable to follow",
                Standing::Member => "in sync",
                Standing::CatchingUp => "catching up",
                Standing::Announcing => "being announced",
                Standing::Announced(_) => "announced",
            },
            known: peer.known,
            sent: peer.sent.0,
            written: peer.written.0,
            flushed: peer.flushed.0,
            unanswered: peer.in_flight.len(),
            heard_ms_ago: now.since(peer.heard).as_millis() as u64,
        };
        primary.peers.iter().map(state).collect()
    }
}

/// About how many bytes an entry takes in a message.
pub(crate) fn weight(entry: &Entry) -> usize {
    let result = match &entry.kind {
        EntryKind::Change { result, .. } => result.len(),
        _ => 0,
    };
    let effects: usize = entry
        .effects
        .iter()
        .map(|effect| match effect {
            Effect::Put { key, value } => key.len() + value.len() + 8,
            Effect::Del { key } => key.len() + 4,
            Effect::Attach { crcs, .. } => 40 + crcs.len() * 5,
            _ => 60,
        })
        .sum();
    64 + result + effects + entry.body.len()
}

impl SetLog {
    /// Takes over as the primary of a new view: the own log stands whole, the view's entry follows it. What it accepted
    /// and has not written (it may lack a stage) nobody was promised.
    pub(super) fn begin_view(&mut self, view: View, out: &mut Vec<Action>) {
        if self.written < self.history.head.seq {
            self.cut(self.written, out);
        }
        let others = view
            .members
            .iter()
            .filter(|member| member.brick != self.me.brick);
        let peers: BTreeMap<BrickId, Peer> = others
            .map(|member| {
                (
                    member.brick,
                    Peer::new(member.run, Standing::Member, self.now),
                )
            })
            .collect();
        let names: Vec<BrickId> = peers.keys().copied().collect();
        self.role = Role::Primary(Box::new(Primary {
            peers,
            first: Seq(0),
            adopted: false,
            tail: Vec::new(),
        }));
        for peer in names {
            self.send(
                peer,
                PeerMessage::Begin { view: view.clone() },
                Vec::new(),
                out,
            );
        }
        out.push(Action::Make(EntryKind::View(View {
            effective: false,
            ..view
        })));
    }

    /// Where a peer's log stands.
    pub(super) fn on_state(
        &mut self,
        from: BrickId,
        run: RunId,
        history: &History,
        applied: Pos,
        join: bool,
        out: &mut Vec<Action>,
    ) {
        let leads = self.leads();
        let absent = self
            .view
            .as_ref()
            .is_some_and(|view| view.member(from).is_none());
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        if primary.first == Seq(0) || !history.is_valid() {
            return;
        }
        if join && leads && absent {
            let known = primary.peers.get(&from);
            if known.is_none_or(|peer| peer.run != run && peer.standing == Standing::CatchingUp) {
                primary
                    .peers
                    .insert(from, Peer::new(run, Standing::CatchingUp, self.now));
            }
        }
        let Some(peer) = primary.peers.get_mut(&from).filter(|peer| peer.run == run) else {
            return;
        };
        match self.history.common(history) {
            Some(common) if common.seq >= applied.seq => {
                peer.known = true;
                peer.common = common.seq;
                peer.began.get_or_insert(Began {
                    at: self.now,
                    written: common.seq,
                    lag: self.history.head.seq.0 - common.seq.0,
                });
                // What a peer has written of this log it keeps: a late copy says less.
                peer.sent = common.seq.max(peer.written);
                peer.in_flight.clear();
                peer.owed = true;
                peer.heard = self.now;
            }
            // A copy so late that this log no longer reaches back to it.
            _ if history.head.seq < peer.written => {}
            _ => {
                peer.lost = true;
                self.cannot_follow(from, run, out);
            }
        }
    }

    /// How far a peer's log is written and flushed.
    pub(super) fn on_written(
        &mut self,
        from: BrickId,
        run: RunId,
        written: Pos,
        flushed: Seq,
        space: Space,
        out: &mut Vec<Action>,
    ) {
        if self.history.at(written.seq) != Some(written) {
            return;
        }
        let now = self.now;
        let Some(peer) = self.peer_of(from, run) else {
            return;
        };
        peer.space = Some(space);
        if written.seq > peer.written || flushed > peer.flushed {
            peer.heard = now;
        }
        peer.written = peer.written.max(written.seq);
        peer.flushed = peer.flushed.max(flushed.min(written.seq));
        while peer
            .in_flight
            .front()
            .is_some_and(|(seq, _)| *seq <= peer.written)
        {
            peer.in_flight.pop_front();
        }
        self.advance(out);
    }

    /// A member wants to know the commit position.
    pub(super) fn on_ask(&mut self, from: BrickId, run: RunId) {
        if let Some(peer) = self.peer_of(from, run) {
            peer.owed = true;
        }
    }

    /// A peer asks for staged bytes that are gone: what it lacks was overwritten and its space used again. A brick that
    /// wants to join can then not follow by the log.
    pub fn stage_gone(&mut self, from: BrickId, run: RunId, out: &mut Vec<Action>) {
        let Some(peer) = self.peer_of(from, run) else {
            return;
        };
        if peer.standing != Standing::Member && !peer.lost {
            peer.lost = true;
            self.cannot_follow(from, run, out);
        }
    }

    fn peer_of(&mut self, brick: BrickId, run: RunId) -> Option<&mut Peer> {
        let Role::Primary(primary) = &mut self.role else {
            return None;
        };
        primary.peers.get_mut(&brick).filter(|peer| peer.run == run)
    }

    /// Whether the view's members hold only one whole copy, of a set that ought to hold more.
    fn lone(&self) -> bool {
        let Some(view) = &self.view else { return false };
        let holders = view
            .members
            .iter()
            .filter(|member| member.keeps_data)
            .count();
        match self.me.kind {
            SetKind::Plain => false,
            SetKind::Replicate { copies } => copies > 1 && holders <= 1,
            SetKind::Disperse { data, .. } => holders <= usize::from(data),
        }
    }

    /// Draws the conclusions from what is written and flushed by whom.
    pub(super) fn advance(&mut self, out: &mut Vec<Action>) {
        if !self.is_primary() {
            self.follow(out);
            return;
        }
        let own = if self.lone() {
            self.flushed
        } else {
            self.written
        };
        let (epoch, leads) = (self.epoch(), self.leads());
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        if primary.first == Seq(0) {
            return;
        }
        let written = primary.least(own, |peer| peer.written);
        let flushed = primary.least(self.flushed, |peer| peer.flushed);
        if !leads {
            if flushed >= primary.first && !primary.adopted {
                primary.adopted = true;
                self.report(BrickEvent::Adopted { epoch }, out);
            }
            return;
        }
        self.commit = self.commit.max(written);
        self.flushed_by_all = self.flushed_by_all.max(flushed);
        let announce = self.flushed_by_all.min(self.commit);
        if announce > self.announced {
            self.announced = announce;
            out.push(Action::Announce(announce));
        }
        self.take_joiners_on(false, out);
    }

    /// Announces joiners that are near enough, proposes those that have flushed all.
    fn take_joiners_on(&mut self, repeat: bool, out: &mut Vec<Action>) {
        let (epoch, head, now) = (self.epoch(), self.history.head.seq, self.now);
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        let mut reports = Vec::new();
        for (joiner, peer) in &mut primary.peers {
            let (joiner, run) = (*joiner, peer.run);
            match peer.standing {
                Standing::CatchingUp
                    if peer.known
                        && !peer.lost
                        && peer.written > Seq(0)
                        && peer.is_near(head, now) =>
                {
                    peer.standing = Standing::Announcing;
                    out.push(Action::Make(EntryKind::Joiner(joiner)));
                    reports.push(BrickEvent::Joining { epoch, joiner, run });
                }
                Standing::Announced(at)
                    if peer.flushed >= at
                    // Said once when it becomes true, then repeated until a view answers.
                    && (repeat || !peer.proposed) =>
                {
                    peer.proposed = true;
                    reports.push(BrickEvent::Propose { epoch, joiner, run });
                }
                Standing::Announced(_) | Standing::Announcing if repeat => {
                    reports.push(BrickEvent::Joining { epoch, joiner, run });
                }
                _ => {}
            }
        }
        for report in reports {
            self.report(report, out);
        }
    }

    pub(super) fn tick_primary(&mut self, repeat: bool, out: &mut Vec<Action>) {
        let (now, flush_wanted, epoch, leads) =
            (self.now, self.flush_wanted, self.epoch(), self.leads());
        let announced = self.announced;
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        let (mut strangers, mut lost) = (Vec::new(), Vec::new());
        primary.peers.retain(|_, peer| {
            peer.standing != Standing::CatchingUp || now.since(peer.heard) < GONE
        });
        for (brick, peer) in &mut primary.peers {
            if peer.lost {
                lost.push((*brick, peer.run));
                continue;
            }
            if !peer.known {
                if repeat {
                    strangers.push(*brick);
                }
                continue;
            }
            if now.since(peer.heard) >= REPEAT {
                let answered = peer.written.max(peer.common);
                if peer.sent > answered || flush_wanted > peer.flushed {
                    peer.sent = peer.sent.min(answered);
                    peer.in_flight.clear();
                    peer.owed = true;
                    peer.heard = now;
                }
            }
            peer.owed |= announced > peer.announced_told;
        }
        let adopted = primary.adopted;
        if let Some(view) = self.view.clone() {
            for peer in strangers {
                self.send(
                    peer,
                    PeerMessage::Begin { view: view.clone() },
                    Vec::new(),
                    out,
                );
            }
        }
        for (member, run) in lost.into_iter().filter(|_| repeat) {
            self.cannot_follow(member, run, out);
        }
        if repeat && adopted && !leads {
            self.report(BrickEvent::Adopted { epoch }, out);
        }
        if repeat && leads {
            self.take_joiners_on(true, out);
        }
    }

    pub(super) fn finish_primary(&mut self, log: &dyn LogReader, out: &mut Vec<Action>) {
        let (lone, leads) = (self.lone(), self.leads());
        if lone && leads {
            self.flush_wanted = self.flush_wanted.max(self.written);
        }
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        if primary.first == Seq(0) {
            return;
        }
        let tail = std::mem::take(&mut primary.tail);
        let mut peers = std::mem::take(&mut primary.peers);
        for (brick, peer) in &mut peers {
            if peer.known && !peer.lost {
                self.send_to(*brick, peer, &tail, log, out);
            }
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.peers = peers;
        }
    }

    /// Sends a peer the entries it lacks, as far as its window allows, and the positions it was not told.
    fn send_to(
        &self,
        brick: BrickId,
        peer: &mut Peer,
        tail: &[Arc<Entry>],
        log: &dyn LogReader,
        out: &mut Vec<Action>,
    ) {
        let leads = self.leads();
        let flush = if self.flush_wanted > peer.flushed {
            self.flush_wanted
        } else {
            Seq(0)
        };
        let mut owed = peer.owed
            || (leads && self.commit > peer.commit_told && peer.counts())
            || (flush > peer.flush_told && flush > peer.flushed);
        loop {
            let Some(prev) = self.history.at(peer.sent) else {
                self.give_up(brick, peer, out);
                return;
            };
            let room = peer.window().saturating_sub(peer.bytes_in_flight());
            let lacks = peer.sent < self.history.head.seq && room > 0;
            if !lacks && !owed {
                return;
            }
            let entries = if lacks {
                match next_entries(prev, tail, log) {
                    Ok(entries) => entries,
                    Err(_) => {
                        self.give_up(brick, peer, out);
                        return;
                    }
                }
            } else {
                Vec::new()
            };
            if let Some(last) = entries.last() {
                if peer.in_flight.is_empty() {
                    peer.heard = self.now;
                }
                peer.sent = last.pos.seq;
                peer.in_flight
                    .push_back((peer.sent, entries.iter().map(|e| weight(e)).sum()));
            } else if !owed {
                return;
            }
            let message = PeerMessage::Append {
                prev,
                commit: if leads { self.commit } else { Seq(0) },
                announced: if leads { self.announced } else { Seq(0) },
                flush,
                serving: leads,
            };
            owed = false;
            peer.owed = false;
            peer.commit_told = self.commit;
            peer.announced_told = self.announced;
            peer.flush_told = peer.flush_told.max(flush);
            self.send(brick, message, entries, out);
        }
    }

    fn give_up(&self, brick: BrickId, peer: &mut Peer, out: &mut Vec<Action>) {
        peer.lost = true;
        self.cannot_follow(brick, peer.run, out);
    }

    fn cannot_follow(&self, member: BrickId, run: RunId, out: &mut Vec<Action>) {
        let epoch = self.epoch();
        self.report(BrickEvent::CannotFollow { epoch, member, run }, out);
    }
}

/// The entries behind `prev` for one message: from the current batch if they are there, else from the log.
fn next_entries(
    prev: Pos,
    tail: &[Arc<Entry>],
    log: &dyn LogReader,
) -> Result<Vec<Arc<Entry>>, super::LogGone> {
    let Some(first) = tail.first().map(|entry| entry.pos.seq.0) else {
        return log.entries_after(prev, MESSAGE_BYTES);
    };
    let wanted = prev.seq.0 + 1;
    let Some(skip) = wanted
        .checked_sub(first)
        .filter(|skip| *skip < tail.len() as u64)
    else {
        return log.entries_after(prev, MESSAGE_BYTES);
    };
    let mut bytes = 0;
    let entries = tail[skip as usize..].iter().take_while(|entry| {
        let fits = bytes < MESSAGE_BYTES;
        bytes += weight(entry);
        fits
    });
    Ok(entries.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_is_near_once_it_needs_little_time_for_the_rest() {
        let at = |millis| Mono(0).after(Duration::from_millis(millis));
        let mut peer = Peer::new(RunId(1), Standing::CatchingUp, at(0));
        peer.written = Seq(1_000);
        assert!(peer.is_near(Seq(1_064), at(0)) && !peer.is_near(Seq(1_065), at(0)));
        peer.began = Some(Began {
            at: at(0),
            written: Seq(1_000),
            lag: 500,
        });
        // 300 entries a second; too early to say.
        peer.written = Seq(1_150);
        assert!(!peer.is_near(Seq(1_300), at(500)));
        peer.written = Seq(1_600);
        assert!(peer.is_near(Seq(2_200), at(2_000)));
        assert!(!peer.is_near(Seq(2_201), at(2_000)));
        // It has not come nearer for long: the set waits longer for it.
        peer.written = Seq(4_000);
        assert!(peer.is_near(Seq(7_000), at(10_000)));
        assert!(!peer.is_near(Seq(7_001), at(10_000)));
        // It comes nearer by itself.
        assert!(!peer.is_near(Seq(4_499), at(30_000)));
    }
}
