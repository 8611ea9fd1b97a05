//! The bricks of one thread. Messages between them pass in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::Time;
use mortar_protocol::env::Mono;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Answer, Stage, StageAnswer};
use mortar_protocol::ids::{BrickId, Mark, Seq, StageId};
use mortar_protocol::limits::{BLOCK, STAGE_MAX};

use super::api::{Completion, Completions, Message, Outbox, StageReply};
use super::budget::{BudgetShare, PendingBudget};
use super::dump::StageState;
use super::rules::Rules;
use super::state::{Brick, Queued};

/// How often bricks are told that time has passed.
const TICK: Duration = Duration::from_millis(100);
/// How often those are told to which nothing has happened for a while: a node may have thousands of them.
const QUIET_TICK: Duration = Duration::from_secs(2);
/// After how long without anything a brick is one of those.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// Most rounds of one run; what is left is handled by the next, which is asked for at once.
const MAX_ROUNDS: usize = 64;

/// A stage that is being written, for several bricks.
struct Staging {
    results: Vec<Result<(), Fault>>,
    /// Bricks that have not written it, with the places of their results.
    missing: Vec<(usize, BrickId)>,
    stage: StageId,
    bytes: usize,
    since: Mono,
    reply: StageReply,
}

impl Staging {
    fn state(&self, now: Mono) -> StageState {
        StageState {
            session: self.stage.session.0,
            number: self.stage.number,
            bytes: self.bytes,
            age_ms: now.since(self.since).as_millis() as u64,
        }
    }
}

/// The bricks of one thread.
pub struct Core {
    bricks: BTreeMap<BrickId, Brick>,
    /// Those to which something has happened, or that wait for something.
    lively: BTreeSet<BrickId>,
    rules: Arc<dyn Rules>,
    completions: Arc<Completions>,
    budget: Arc<PendingBudget>,
    inbox: Vec<Message>,
    /// Messages of this round that come after the one being handled.
    left: usize,
    staging: BTreeMap<u64, Staging>,
    next_staging: u64,
    ticked: Option<Mono>,
    /// When all were ticked.
    toured: Option<Mono>,
    now: Mono,
    wall: Time,
}

impl Core {
    /// A core without bricks. The driver runs it whenever `completions` wakes it, whenever messages were pushed, and
    /// every 100 ms. All cores of a daemon share `budget`.
    pub fn new(
        rules: Arc<dyn Rules>,
        completions: Arc<Completions>,
        budget: Arc<PendingBudget>,
    ) -> Self {
        Self {
            bricks: BTreeMap::new(),
            lively: BTreeSet::new(),
            rules,
            completions,
            budget,
            inbox: Vec::new(),
            left: 0,
            staging: BTreeMap::new(),
            next_staging: 0,
            ticked: None,
            toured: None,
            now: Mono(0),
            wall: Time::default(),
        }
    }

    /// Queues a message for the next run.
    pub fn push(&mut self, message: Message) {
        self.inbox.push(message);
    }

    /// Whether it serves a brick.
    pub fn holds(&self, brick: BrickId) -> bool {
        self.bricks.contains_key(&brick)
    }

    /// Handles everything that has arrived. `now` and `wall` are the time of this run. Returns whether it wants to be
    /// run again at once.
    pub fn run(&mut self, now: Mono, wall: Time, outbox: &mut dyn Outbox) -> bool {
        self.now = self.now.max(now);
        self.wall = wall;
        let mut busy = BTreeSet::new();
        if self.ticked.is_none_or(|then| self.now.since(then) >= TICK) {
            self.ticked = Some(self.now);
            busy = self.tick();
        }
        for _ in 0..MAX_ROUNDS {
            let messages = std::mem::take(&mut self.inbox);
            self.left = messages.len();
            for message in messages {
                self.left -= 1;
                self.handle(message, &mut busy);
            }
            while let Some((brick, completion)) = self.completions.pop() {
                self.complete(brick, completion, &mut busy);
            }
            if busy.is_empty() {
                return false;
            }
            let round = std::mem::take(&mut busy);
            for id in round {
                if let Some(brick) = self.bricks.get_mut(&id) {
                    brick.settle();
                    if brick.is_restless() {
                        busy.insert(id);
                    }
                }
                self.deliver(id, &mut busy, outbox);
            }
        }
        !busy.is_empty()
    }

    /// Tells bricks that time has passed; gives those that were told.
    fn tick(&mut self) -> BTreeSet<BrickId> {
        let (now, wall) = (self.now, self.wall);
        let tour = self.toured.is_none_or(|then| now.since(then) >= QUIET_TICK);
        let told = match tour {
            true => {
                self.toured = Some(now);
                self.bricks.keys().copied().collect()
            }
            false => std::mem::take(&mut self.lively),
        };
        self.lively.clear();
        for id in &told {
            let Some(brick) = self.bricks.get_mut(id) else {
                continue;
            };
            (brick.now, brick.wall) = (now, wall);
            brick.tick();
            if now.since(brick.active) < QUIET_AFTER || !brick.is_idle() {
                self.lively.insert(*id);
            }
        }
        told
    }

    /// Hands on what a brick gave out.
    fn deliver(&mut self, from: BrickId, busy: &mut BTreeSet<BrickId>, outbox: &mut dyn Outbox) {
        let Some(brick) = self.bricks.get_mut(&from) else {
            return;
        };
        let output = std::mem::take(&mut brick.out);
        for report in output.reports {
            outbox.report(report);
        }
        for frame in output.peers {
            let to = frame.envelope.to;
            match self.bricks.get_mut(&to) {
                Some(brick) => {
                    brick.now = self.now;
                    brick.active = self.now;
                    self.lively.insert(to);
                    brick.on_peer(frame);
                    busy.insert(to);
                }
                None => outbox.send_peer(frame),
            }
        }
    }

    fn brick(&mut self, id: BrickId, busy: &mut BTreeSet<BrickId>) -> Option<&mut Brick> {
        let brick = self.bricks.get_mut(&id)?;
        self.lively.insert(id);
        brick.now = self.now;
        brick.active = self.now;
        brick.wall = self.wall;
        brick.more = self.left > 0;
        busy.insert(id);
        Some(brick)
    }

    fn handle(&mut self, message: Message, busy: &mut BTreeSet<BrickId>) {
        match message {
            Message::Open(config) => {
                let id = config.brick;
                let (rules, completions) = (self.rules.clone(), self.completions.clone());
                let share = BudgetShare::new(self.budget.clone(), id, completions.clone());
                let mut brick = Brick::open(*config, rules, completions, share, self.now);
                brick.wall = self.wall;
                brick.report_started();
                self.bricks.insert(id, brick);
                self.lively.insert(id);
                busy.insert(id);
            }
            Message::Close(id) => {
                if let Some(mut brick) = self.bricks.remove(&id) {
                    brick.turn_away();
                }
            }
            Message::Call {
                call,
                body,
                uid,
                reply,
            } => {
                let (id, since) = (call.brick, self.now);
                match self.brick(id, busy) {
                    Some(brick) => brick.on_call(Queued {
                        call,
                        body,
                        uid,
                        reply,
                        since,
                        short: None,
                    }),
                    None => {
                        let result = Err(Fault::UnknownBrick);
                        let answer = Answer {
                            mark: Mark::default(),
                            flushed: Seq(0),
                            result,
                        };
                        reply(answer, Bytes::new());
                    }
                }
            }
            Message::Stage {
                stage,
                data,
                uid,
                reply,
            } => {
                self.stage(&stage, data, uid, reply, busy);
            }
            Message::Peer(frame) => {
                if let Some(brick) = self.brick(frame.envelope.to, busy) {
                    brick.on_peer(frame);
                }
            }
            Message::Order { brick, order } => {
                if let Some(brick) = self.brick(brick, busy) {
                    brick.order(order);
                }
            }
            Message::Dump(reply) => {
                let states = self.bricks.iter().map(|(id, brick)| {
                    let waits =
                        |staging: &&Staging| staging.missing.iter().any(|(_, brick)| brick == id);
                    let staging = self.staging.values().filter(waits);
                    let staging = staging.map(|staging| staging.state(self.now)).collect();
                    brick.state(self.now, staging)
                });
                reply(states.collect());
            }
        }
    }

    /// Bulk data for several bricks.
    fn stage(
        &mut self,
        stage: &Stage,
        data: Bytes,
        uid: u32,
        reply: StageReply,
        busy: &mut BTreeSet<BrickId>,
    ) {
        self.next_staging += 1;
        let (number, id) = (self.next_staging, stage.stage);
        let sound = !data.is_empty()
            && data.len() <= STAGE_MAX
            && data.len().is_multiple_of(BLOCK as usize);
        let mut results = Vec::new();
        let mut writes = Vec::new();
        for (at, brick) in stage.bricks.iter().enumerate() {
            let found = self.brick(*brick, busy);
            let result = match found {
                _ if !sound => Err(Fault::Protocol),
                None => Err(Fault::UnknownBrick),
                Some(brick) => brick.may_stage(id.session, uid),
            };
            if result.is_ok() {
                writes.push((at, *brick));
            }
            results.push(result);
        }
        self.staging.insert(
            number,
            Staging {
                results,
                missing: writes.clone(),
                stage: id,
                bytes: data.len(),
                since: self.now,
                reply,
            },
        );
        for (at, brick) in writes {
            let completions = self.completions.clone();
            let done = move |result| {
                let ticket = Some((number, at));
                completions.push(brick, Completion::Staged { ticket, result });
            };
            if let Some(brick) = self.bricks.get_mut(&brick) {
                brick.storage.stage(id, data.clone(), Box::new(done));
            }
        }
        self.answer_stage(number);
    }

    fn complete(&mut self, id: BrickId, completion: Completion, busy: &mut BTreeSet<BrickId>) {
        if let Completion::Staged {
            ticket: Some((number, at)),
            result,
            ..
        } = &completion
            && let Some(staging) = self.staging.get_mut(number)
        {
            let full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
            let fault = match result {
                Ok(()) => None,
                Err(error) if full(error) => Some(Errno::ENOSPC.into()),
                // It waits for a checkpoint: the brick is well, its disk may be slow.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    Some(Errno::EAGAIN.into())
                }
                Err(_) => Some(Fault::NotServing),
            };
            if let Some(slot) = staging.results.get_mut(*at)
                && let Some(fault) = fault
            {
                *slot = Err(fault);
            }
            staging.missing.retain(|(place, _)| place != at);
            self.answer_stage(*number);
        }
        if let Some(brick) = self.brick(id, busy) {
            brick.on_completion(completion);
        }
    }

    fn answer_stage(&mut self, number: u64) {
        if self
            .staging
            .get(&number)
            .is_some_and(|staging| staging.missing.is_empty())
            && let Some(done) = self.staging.remove(&number)
        {
            (done.reply)(StageAnswer {
                results: done.results,
            });
        }
    }
}
