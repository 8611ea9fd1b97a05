//! Runs sequences of operations, ends the machine at every step of the disk, recovers, compares.

use std::fmt;
use std::sync::Arc;

use mortar_protocol::ids::{Seq, SessionId};
use mortar_server::device::Device;
use mortar_server::device::sim::{Cut, SimDisk, Survival};
use mortar_server::store::Store;

use super::client::{self, Done, Outcome};
use super::look::{self, Plain};
use super::model::{Model, Tree, pattern};
use super::ops::{Op, Shown, Step, Then};
use super::rig::{Past, Rig, Sent, format};

/// The session that makes what workloads start with.
const FIRST: SessionId = SessionId(1);
/// The session of a workload.
const WORKLOAD: SessionId = SessionId(10);
/// The session of whoever comes after a crash.
const LATER: SessionId = SessionId(20);

/// Steps of a recovery in which the machine ends again.
const NESTED: usize = 4;

/// What was done.
#[derive(Clone, Copy, Default, Debug)]
pub struct Totals {
    /// Sequences run.
    pub sequences: u64,
    /// Writes and flushes at which the machine was ended.
    pub steps: u64,
    /// Crashes recovered from and compared.
    pub crashes: u64,
    /// Of these, crashes during the recovery from another one.
    pub nested: u64,
    /// Flushes that failed.
    pub failures: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sequences, cut at {} writes and flushes: {} crashes recovered ({} during recovery), {} failed flushes",
            self.sequences, self.steps, self.crashes, self.nested, self.failures
        )
    }
}

/// A brick with what workloads start with, as it lies on its disk after a clean stop of the machine.
pub struct Suite {
    base: Cut,
    past: Past,
    /// Done so far.
    pub totals: Totals,
    /// Seeds what survives crashes.
    pub seed: u64,
    /// At every step all kinds of crashes, not one of them.
    pub thorough: bool,
    /// One crash in so many is followed by crashes during recovery; 0: none.
    pub nested_every: u64,
}

/// What a run of a workload left behind for judging.
struct Ran {
    rig: Rig,
    cuts: Vec<Cut>,
    /// States after each number of operations done.
    states: Vec<Tree>,
    /// Of each operation that was done: disk steps before it was asked, and once it was answered.
    asked: Vec<(u64, u64, Done)>,
    /// These, as they were sent.
    sent: Vec<Sent>,
}

/// States that a crash may leave: these numbers of operations.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    least: usize,
    most: usize,
}

impl Ran {
    fn allowed(&self, step: u64, survival: Survival) -> Allowed {
        let most = self.asked.iter().filter(|(asked, ..)| *asked < step);
        let answered = self
            .asked
            .iter()
            .filter(|(_, answered, _)| *answered < step);
        let flushed = answered.clone().map(|(.., done)| done.flushed);
        let flushed = flushed.max().unwrap_or(Seq(0));
        let least =
            answered.filter(|(.., done)| survival == Survival::Process || done.seq <= flushed);
        Allowed {
            least: least.count(),
            most: most.count(),
        }
    }
}

impl Suite {
    /// Formats a brick and makes what workloads start with.
    ///
    /// # Errors
    /// What went wrong.
    pub fn new(seed: u64) -> Result<Self, String> {
        let disk = format(seed).map_err(|error| error.to_string())?;
        let past = Past::default();
        let rig = Rig::open(disk, past, FIRST, &[FIRST]);
        let mut rig = rig.map_err(|error| error.to_string())?;
        client::populate(&mut rig).map_err(|outcome| format!("populate: {outcome:?}"))?;
        rig.pass_until_applied();
        rig.pass_until_checkpoint();
        let past = rig.past_at(u64::MAX).restarted(Survival::Nothing);
        // The last session has ended before any workload begins.
        let disk = rig.disk.reboot(Survival::Nothing);
        let rig = Rig::open(disk, past, WORKLOAD, &[WORKLOAD]);
        let mut rig = rig.map_err(|error| error.to_string())?;
        rig.get(mortar_protocol::fop::Fop::SessionBegin)
            .map_err(|fault| format!("{fault:?}"))?;
        rig.pass_until_applied();
        rig.pass_until_checkpoint();
        let past = rig.past_at(u64::MAX).restarted(Survival::Nothing);
        rig.disk.record();
        let base = rig.disk.recorded().pop().ok_or("no moment")?;
        Ok(Self {
            base,
            past,
            totals: Totals::default(),
            seed,
            thorough: false,
            nested_every: 60,
        })
    }

    fn start(&self) -> Result<Rig, String> {
        let disk = self.base.reboot(Survival::Nothing, 0);
        let rig = Rig::open(disk, self.past.clone(), WORKLOAD, &[WORKLOAD]);
        let mut rig = rig.map_err(|error| error.to_string())?;
        // The rest of the opening is written before anything is counted.
        rig.pass_until_applied();
        Ok(rig)
    }

    /// Runs a sequence, recording every moment of the disk from operation `from` on.
    fn run(&self, steps: &[Step], from: usize) -> Result<Ran, String> {
        let mut rig = self.start()?;
        let mut model = Model::new();
        let mut ran = (vec![model.tree()], Vec::new(), Vec::new());
        for (place, (op, then)) in steps.iter().enumerate() {
            if place == from {
                rig.disk.record();
            }
            let asked = rig.disk.steps();
            let outcome = client::perform(&mut rig, place, *op, *then == Then::Sync);
            match (model.apply(place, *op), outcome) {
                (Ok(()), Outcome::Done(done)) => {
                    if *then == Then::Sync && done.flushed < done.seq {
                        return Err(format!("{op:?} was answered before it was flushed"));
                    }
                    ran.1.push((asked, rig.disk.steps(), done));
                    ran.0.push(model.tree());
                    ran.2.extend(rig.sent());
                }
                (Err(errno), Outcome::Refused(found)) if errno == found => {}
                (expected, outcome) => {
                    return Err(format!("{op:?}: expected {expected:?}, but {outcome:?}"));
                }
            }
            if matches!(then, Then::Apply | Then::Checkpoint) {
                rig.pass_until_applied();
            }
            if *then == Then::Checkpoint {
                rig.pass_until_checkpoint();
            }
        }
        rig.pass_until_applied();
        rig.pass_until_checkpoint();
        let cuts = rig.disk.recorded();
        let tree = look::tree(&mut rig)?;
        compare(&tree, &model.tree())?;
        Ok(Ran {
            rig,
            cuts,
            states: ran.0,
            asked: ran.1,
            sent: ran.2,
        })
    }

    /// Runs a sequence and ends the machine at every step of the disk from operation `from` on: what came before is
    /// the same in the shorter sequence.
    ///
    /// # Errors
    /// What a crash left that it must not.
    pub fn sequence(&mut self, steps: &[Step], from: usize) -> Result<(), String> {
        self.totals.sequences += 1;
        let told = |error: String| format!("[{}]: {error}", Shown(steps));
        let ran = self.run(steps, from).map_err(told)?;
        if !changes(steps) {
            return Ok(()); // nothing is written: as the sequence without it
        }
        self.totals.steps += ran.cuts.len() as u64 - 1;
        let mut flushed = true;
        for cut in &ran.cuts {
            let survivals = self.survivals(cut, flushed);
            flushed = !cut.is_dirty();
            for survival in survivals {
                self.crash(&ran, cut, survival).map_err(|error| {
                    told(format!("crash in {}, {survival:?}: {error}", step_of(cut)))
                })?;
            }
        }
        Ok(())
    }

    /// The crashes to recover from at a step: every kind, or (unless thorough) a choice. `flushed`: nothing has been
    /// written since a flush.
    fn survivals(&mut self, cut: &Cut, flushed: bool) -> Vec<Survival> {
        let mut kinds = vec![Survival::Process];
        // Between two flushes all crashes that lose everything not flushed leave the same.
        if flushed || !cut.is_dirty() {
            kinds.push(Survival::Nothing);
        }
        if cut.is_dirty() {
            kinds.push(Survival::Random);
        }
        if !self.thorough {
            let chosen = self.next_seed() as usize % kinds.len();
            kinds = vec![kinds[chosen]];
        }
        kinds
    }

    fn crash(&mut self, ran: &Ran, cut: &Cut, survival: Survival) -> Result<(), String> {
        self.totals.crashes += 1;
        let seed = self.next_seed();
        let allowed = ran.allowed(cut.step(), survival);
        let past = ran.rig.past_at(cut.step()).restarted(survival);
        let disk = cut.reboot(survival, seed);
        let nested = self.nested_every > 0 && self.totals.crashes.is_multiple_of(self.nested_every);
        if nested {
            disk.record();
        }
        let (mut rig, mut tree) = self.recover(disk, past, ran, allowed)?;
        if nested {
            let cuts = rig.disk.recorded();
            for _ in 0..NESTED {
                let again = &cuts[self.next_seed() as usize % cuts.len()];
                self.crash_again(ran, &rig, (cut, survival), again)?;
            }
        }
        if self.next_seed().is_multiple_of(2) {
            tree = repeat(&mut rig, &tree, ran, allowed)?;
        }
        self.go_on(rig, tree)
    }

    /// A crash in a step of the recovery from another one.
    fn crash_again(
        &mut self,
        ran: &Ran,
        rig: &Rig,
        first: (&Cut, Survival),
        cut: &Cut,
    ) -> Result<(), String> {
        self.totals.crashes += 1;
        self.totals.nested += 1;
        let survival = match self.next_seed() % 3 {
            0 => Survival::Process,
            1 => Survival::Nothing,
            _ => Survival::Random,
        };
        // What the first crash left unflushed, a loss of power may still take.
        let worse = if survival == Survival::Process {
            first.1
        } else {
            survival
        };
        let allowed = ran.allowed(first.0.step(), worse);
        let past = rig.past_at(cut.step()).restarted(survival);
        let disk = cut.reboot(survival, self.next_seed());
        let told = |error| {
            format!(
                "then in {} of recovery, {survival:?}: {error}",
                step_of(cut)
            )
        };
        let (rig, tree) = self.recover(disk, past, ran, allowed).map_err(told)?;
        self.go_on(rig, tree).map_err(told)
    }

    fn next_seed(&mut self) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.seed >> 20
    }

    /// Opens what a crash left and compares it with the states that it may be.
    fn recover(
        &self,
        disk: Arc<SimDisk>,
        past: Past,
        ran: &Ran,
        allowed: Allowed,
    ) -> Result<(Rig, Tree), String> {
        let rig = Rig::open(disk, past, WORKLOAD, &[WORKLOAD, LATER]);
        let mut rig = rig.map_err(|error| format!("recovery: {error}"))?;
        if !rig.serves() {
            return Err("the brick does not serve again".to_owned());
        }
        let tree = look::tree(&mut rig)?;
        let states = &ran.states[allowed.least..=allowed.most];
        if states.contains(&tree) {
            return Ok((rig, tree));
        }
        let known = ran.states.iter().position(|state| *state == tree);
        let difference = match known {
            Some(count) => format!("the state is that after {count}"),
            None => compare(&tree, &states[states.len() - 1])
                .err()
                .unwrap_or_default(),
        };
        Err(format!(
            "operations {} to {} may be there; {difference}",
            allowed.least, allowed.most
        ))
    }

    /// After recovery: the brick takes changes; these and what it showed survive the loss of power.
    fn go_on(&mut self, mut rig: Rig, tree: Tree) -> Result<(), String> {
        rig.become_session(LATER);
        let size = 5_000 + (self.next_seed() % 3) as usize * 2_000;
        let content = pattern(7, size);
        client::write_new(&mut rig, &content)
            .map_err(|outcome| format!("after recovery: {outcome:?}"))?;
        match self.next_seed() % 4 {
            0 => {
                rig.pass_until_applied();
                rig.pass_until_checkpoint();
            }
            1 => rig.pass_until_applied(),
            _ => {}
        }
        let disk = rig.disk.reboot(Survival::Nothing);
        drop(rig);
        let device: Arc<dyn Device> = disk;
        let opened = Store::open(device.clone());
        let mut store = opened.map_err(|error| format!("second recovery: {error}"))?;
        let found = look::tree(&mut Plain(&store))?;
        check_new(&found, &content, &tree)?;
        store.announce(store.head().seq);
        store
            .settle(&mut |_| Vec::new())
            .map_err(|error| format!("applying: {error}"))?;
        let mut problems = look::problems(&store);
        if !problems.is_empty() {
            // A chunk that the tree gave up behind its last flush is free in memory and in use by the map on the medium.
            drop(store);
            store = Store::open(device).map_err(|error| format!("third opening: {error}"))?;
            problems = look::problems(&store);
        }
        if !problems.is_empty() {
            return Err(format!("problems: {}", problems.join("; ")));
        }
        compare(&look::tree(&mut Plain(&store))?, &found)
    }

    /// Lets each flush of a sequence fail, then ends the process; what the next run shows survives the loss of power.
    ///
    /// # Errors
    /// What was lost.
    pub fn failed_flushes(&mut self, steps: &[Step]) -> Result<(), String> {
        let told = |error: String| format!("[{}]: {error}", Shown(steps));
        let ran = self.run(steps, 0).map_err(told)?;
        if !changes(steps) {
            return Ok(());
        }
        for cut in &ran.cuts[..ran.cuts.len() - 1] {
            let step = cut.step();
            let (mut rig, answered) = self.run_failing(steps, step)?;
            self.totals.failures += 1;
            let past = rig.past_at(u64::MAX).restarted(Survival::Process);
            rig.disk = rig.disk.reboot(Survival::Process);
            let allowed = Allowed {
                least: answered,
                most: ran.states.len() - 1,
            };
            let failed = |error: String| told(format!("{} failed: {error}", step_of(cut)));
            let (rig, tree) = self
                .recover(rig.disk.clone(), past, &ran, allowed)
                .map_err(failed)?;
            self.go_on(rig, tree).map_err(failed)?;
        }
        Ok(())
    }

    /// Runs a sequence in which one step of the disk fails; says how many operations were answered well.
    fn run_failing(&self, steps: &[Step], step: u64) -> Result<(Rig, usize), String> {
        let mut rig = self.start()?;
        rig.disk
            .fail_at(step, mortar_server::device::sim::Fault::Error(libc::EIO));
        let mut answered = 0;
        for (place, (op, then)) in steps.iter().enumerate() {
            let outcome = client::perform(&mut rig, place, *op, *then == Then::Sync);
            match outcome {
                Outcome::Done(_) => answered += 1,
                Outcome::Refused(_) => {}
                Outcome::Unknown => break,
            }
            if matches!(then, Then::Apply | Then::Checkpoint) {
                rig.pass_until_applied();
            }
            if *then == Then::Checkpoint {
                rig.pass_until_checkpoint();
            }
        }
        rig.pass_until_applied();
        rig.pass_until_checkpoint();
        Ok((rig, answered))
    }
}

/// A step of the disk as people read it.
fn step_of(cut: &Cut) -> String {
    match cut.write() {
        Some((offset, len)) => format!("step {} (write of {len} at {offset})", cut.step()),
        None => format!("step {} (flush)", cut.step()),
    }
}

/// Sends the changes that are not there again, and the newest one that is: each happens once.
fn repeat(rig: &mut Rig, found: &Tree, ran: &Ran, allowed: Allowed) -> Result<Tree, String> {
    let states = &ran.states[..=allowed.most];
    let there = states.iter().rposition(|state| state == found).unwrap_or(0);
    for (at, sent) in ran.sent[..allowed.most].iter().enumerate() {
        if at + 1 >= there {
            let answer = rig.repeat(sent, at >= there);
            let done = answer.as_ref().map(|answer| answer.result.is_ok());
            if done != Some(true) {
                return Err(format!(
                    "{} of {} sent again: {answer:?}",
                    at + 1,
                    allowed.most
                ));
            }
        }
    }
    let tree = look::tree(rig)?;
    compare(&tree, &ran.states[allowed.most])
        .map_err(|text| format!("{there} were there, then the rest was sent again: {text}"))?;
    Ok(tree)
}

/// Whether the last operation of a sequence changes anything.
pub fn changes(steps: &[Step]) -> bool {
    let mut model = Model::new();
    let done = |(place, (op, _)): (usize, &(Op, Then))| model.apply(place, *op).is_ok();
    steps.iter().enumerate().map(done).last().unwrap_or(false)
}

/// What `found` has that is not `expected`, as text.
fn compare(found: &Tree, expected: &Tree) -> Result<(), String> {
    let mut text = String::new();
    for (path, node) in expected {
        match found.get(path) {
            Some(other) if other == node => {}
            Some(other) => text += &format!("{path} is {other:?} instead of {node:?}; "),
            None => text += &format!("{path} ({node:?}) is missing; "),
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        text += &format!("{path} is there; ");
    }
    if text.is_empty() { Ok(()) } else { Err(text) }
}

/// Compares what is there with what was before `/new`, and that.
fn check_new(found: &Tree, content: &[u8], before: &Tree) -> Result<(), String> {
    let mut rest = found.clone();
    let new = rest
        .remove("/new")
        .ok_or("/new, which was flushed, is lost")?;
    if new.content.len() != 100 + content.len() || new.content[100..] != *content {
        return Err(format!("/new is {new:?}"));
    }
    if let (Some(root), Some(was)) = (rest.get_mut("/"), before.get("/")) {
        root.mtime = was.mtime;
    }
    compare(&rest, before).map_err(|text| format!("after more changes and a loss of power: {text}"))
}
