//! The simulated cluster: a whole replicated volume in one process, on virtual time, from one seed.
//!
//! # What is real
//! The bricks ([`mortar_server::brick::Core`] with the namespace's rules over [`mortar_server::store::Store`]), the
//! control plane's state machine and leader, and the client library ([`mortar_client::volume::Volume`]). They meet
//! through the seams that production has too:
//!
//! | seam | here |
//! |---|---|
//! | `Env` | [`exec`]: one thread, one queue of timed events; which ready task runs next is drawn from the seed |
//! | `Transport`, messages between bricks, reports, orders | [`net`]: every message is encoded and decoded; it may be lost, late, repeated, or cut off one way |
//! | `Device` | [`mortar_server::device::sim::SimDisk`]: operations complete late and out of order; a power loss tears what was not flushed. Checkpoints, which production runs on a worker thread, run within one event |
//! | the daemon's threads | [`node`]: each machine is one core, run shortly after something arrived and every 100 ms |
//!
//! Not simulated: QUIC, the FUSE mount, the management requests beside layouts and sessions.
//!
//! # A run
//! [`plan`] says what a seed means: 3 machines with one brick of each set or 1 with all, 1 or 2 sets of three bricks, 2
//! to 4 clients with 1 or 2 tasks each, what they do, and what goes wrong when ([`plan::Trouble`]). [`load`] has the
//! clients make random calls on 8 names in 2 directories, 3 shared files and whatever files they come across; all calls
//! are written down with their answers ([`history`]). With 2 sets most changes of names are transactions, and one file
//! has blocks on both sides of the end of its first shard. Clients also take locks and open files ([`hold`]). In 3 of 10
//! seeds all machines lose power in the middle of it, in half of these the clients' machines too. Then all becomes calm,
//! one more client looks at everything, and the bricks stop. Each seed runs twice, and both traces must be the same.
//!
//! # The oracle
//! - [`oracle::names`]: all answers about names fit one order of the calls (linearizability).
//! - [`oracle::data`]: so do all answers about each file. Every block of 512 bytes is tagged ([`tags`]), so that a torn,
//!   misplaced, lost or stale block is seen, and a write must be seen whole or not at all.
//! - [`oracle::wide`]: of a file over several sets no answered write is lost, nothing that was cut comes back.
//! - [`oracle::xattrs`]: the answers about each extended attribute fit one order.
//! - [`oracle::holds`]: no two hold a lock at once that excludes the other, also after all servers lost power; an open
//!   file stays.
//! - [`oracle::promises`]: after the loss of power, nothing that fsync had promised is older than it was.
//! - [`oracle::bricks`]: members are equal, references lead somewhere, on whatever set, counters count what is there, `brick check` finds
//!   nothing (so space is accounted to the block), and nothing is left of sessions, orphans and transactions.
//! - No call hangs, every member comes back, no brick is poisoned.
//!
//! # Looking at a seed
//! `cargo sim SEED --trace` prints the trace, then what was found. A line is the virtual time in seconds and
//! - `c2 call 31 Create { .. }` and `c2 31 -> Made(..)`: a call of client 2 and its answer; the oracle names calls by
//!   these numbers;
//! - `c2>n0 Commit 4#17! 9f2c55a1/89 [120]`: a message from client 2 to machine 0: request 17 of session 4 (`!`: marked as
//!   a repeat), checksum and length, and the delays in microseconds after which its copies arrive; `lost[]` and `cut[]`
//!   say that none does;
//! - `n0>n1 peer append 2.35+1 commit 34 ..`: a message of the set log: one entry behind entry 35 of epoch 2;
//! - `TROUBLE ..`, `kill n1 Random`, `start n1`, `frozen n1 true`, `calm`, `stop`: what happened to the cluster.
//!
//! `cargo sim SEED --count N` runs N seeds. One that failed goes into [`regressions`] with its reason. A change of the
//! plan or the load gives seeds another meaning: what a regression is about should have a test of its own, too.

pub mod control;
pub mod exec;
pub mod history;
mod hold;
pub mod load;
pub mod net;
pub mod node;
pub mod oracle;
pub mod plan;
pub mod regressions;
pub mod rng;
pub mod tags;
mod trouble;
pub mod world;

pub use world::SEVERAL_SETS;

use std::collections::BTreeMap;
use std::sync::Arc;

use exec::SECOND;
use history::Record;
use mortar_protocol::report::ToBrick;
use mortar_server::device::sim::Survival;
use world::{Sabotage, World};

/// What a run showed.
#[derive(Default)]
pub struct Outcome {
    /// The trace.
    pub lines: Vec<String>,
    /// What must not have happened.
    pub failures: Vec<String>,
    /// Searches of the oracle that were given up.
    pub undecided: usize,
    /// Whether a brick was left out of its set in the end.
    pub left_out: bool,
    /// Calls of clients.
    pub calls: usize,
    /// Calls whose outcome the client does not know.
    pub unknown: usize,
    /// Messages by what became of them.
    pub messages: BTreeMap<&'static str, u64>,
    /// Virtual time it took, in nanoseconds.
    pub time: u64,
}

/// Runs a seed once.
pub fn run(seed: u64) -> Outcome {
    run_with(seed, None)
}

/// Runs a seed once, on a cluster with a planted bug.
pub fn run_with(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let world = match World::new(seed, sabotage) {
        Ok(world) => world,
        Err(why) => {
            return Outcome {
                failures: vec![why],
                ..Outcome::default()
            };
        }
    };
    let look = play(&world);
    let records = world.history.records();
    let mut outcome = Outcome {
        failures: world.failures(),
        calls: records.len(),
        unknown: records.iter().filter(|r| r.known().is_none()).count(),
        messages: world.counts(),
        time: world.exec.now(),
        ..Outcome::default()
    };
    if outcome.failures.is_empty() {
        // After a blackout only what was flushed has to be there.
        let wide = *world.wide.lock();
        let findings = oracle::check(&before_blackout(&world, &records), wide);
        outcome.failures = findings.violations;
        if let Some(id) = wide.filter(|_| !world.plan.blackout) {
            outcome
                .failures
                .extend(oracle::wide::check(&records, look, id));
        }
        if world.plan.blackout {
            // A file that was made and not flushed may be gone, open or not.
            outcome.failures.extend(oracle::holds::locks(&records));
        }
        outcome
            .failures
            .extend(oracle::promises::check(&records, look));
        outcome.undecided = findings.undecided;
        if !world.had_too_few() && records.iter().any(Record::is_refused) {
            let why = "changes were refused although there were always members enough";
            outcome.failures.push(why.to_owned());
        }
        outcome.left_out = world.left_out();
        if !outcome.left_out {
            outcome.failures.extend(check_bricks(&world));
        }
    }
    outcome.lines = world.exec.take_lines();
    world.exec.clear();
    outcome
}

/// The calls that were made before all lost power, with the answers until then; else all.
fn before_blackout(world: &World, records: &[Record]) -> Vec<Record> {
    let Some(at) = *world.blackout_at.lock() else {
        return records.to_vec();
    };
    let before = records.iter().filter(|record| record.start < at);
    let cut = |record: &Record| {
        let mut record = record.clone();
        record.answer = record.answer.filter(|(end, _)| *end < at);
        record
    };
    before.map(cut).collect()
}

/// Runs a seed twice; both must be the same.
pub fn run_twice(seed: u64) -> Outcome {
    let mut first = run(seed);
    let second = run(seed);
    if first.lines != second.lines {
        let at = first
            .lines
            .iter()
            .zip(&second.lines)
            .take_while(|(a, b)| a == b)
            .count();
        let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
        first.failures.push(format!(
            "two runs differ from line {at} on:\n  {}\n  {}",
            line(&first.lines),
            line(&second.lines)
        ));
    }
    first
}

/// The course of a run; gives the number of the first call of the last look.
fn play(world: &Arc<World>) -> usize {
    match act(world) {
        Ok(look) => look,
        Err(why) => {
            world.fail(why);
            0
        }
    }
}

fn act(world: &Arc<World>) -> Result<usize, String> {
    let must = |done: bool, why: &str| if done { Ok(()) } else { Err(why.to_owned()) };
    world.exec.note(&format!("{:?}", world.plan));
    world.lead();
    world.tick_leader();
    for node in 0..world.nodes.len() {
        world.start_node(node);
    }
    let idle = || world.working.lock().is_empty();
    world.prepare();
    let began = world.run_until(60 * SECOND, idle);
    must(began, "the cluster does not begin to serve")?;
    for client in 0..world.plan.clients {
        world.start_client(client);
    }
    world.start_troubles();
    let plan = &world.plan;
    let half = plan.clients * plan.workers * plan.calls / 2;
    let over = || idle() || (plan.blackout && world.history.len() >= half as usize);
    if !world.run_until(world::LONGEST, over) {
        return Err(format!("stuck: {:?} do not end", world.working.lock()));
    }
    if world.plan.blackout {
        world.black_out();
    }
    world.calm_down();
    if !world.run_until(world::LONGEST, idle) {
        return Err(format!("stuck: {:?} do not end", world.working.lock()));
    }
    come_back(world);
    let look = world.history.records().len();
    world.look_at_all();
    let looked = world.run_until(120 * SECOND, idle);
    must(looked, "the last look does not end")?;
    world.run_until(2 * SECOND, || false);
    let stopped = stop(world);
    match world.left_out() {
        // What is not in its set need not stop in good order.
        true => Ok(look),
        false => stopped.map(|()| look),
    }
}

/// Waits until every brick is in its set. One that was dropped while it was cut off from the control plane hears of
/// that only when its daemon is started again (docs/limits.md), so all are, once. One may still be left out for good:
/// its set has released the part of the log that it lacks, and there is no other way back yet.
fn come_back(world: &Arc<World>) {
    if world.run_until(60 * SECOND, || world.is_whole()) {
        return;
    }
    world.exec.note("restart");
    for node in 0..world.nodes.len() {
        world.kill_node(node, Survival::Process);
        world.start_node(node);
    }
    if !world.run_until(60 * SECOND, || world.is_whole()) {
        world.exec.note("left out");
        world.leave_out();
    }
}

/// Stops all bricks in good order.
fn stop(world: &Arc<World>) -> Result<(), String> {
    world.exec.note("stop");
    world.stop_leading();
    let mut bricks = Vec::new();
    for node in &world.nodes {
        bricks.extend(node.disks().into_iter().map(|(brick, _)| brick));
    }
    for brick in &bricks {
        world.send_order(*brick, &ToBrick::Stop);
    }
    let all = bricks.len();
    if !world.run_until(20 * SECOND, || world.stopped.lock().len() == all) {
        return Err("not every brick stops in good order".to_owned());
    }
    for node in 0..world.nodes.len() {
        world.kill_node(node, Survival::Process);
    }
    Ok(())
}

fn check_bricks(world: &Arc<World>) -> Vec<String> {
    let mut sets: BTreeMap<u128, Vec<_>> = BTreeMap::new();
    for node in &world.nodes {
        for (brick, disk) in node.disks() {
            sets.entry((brick.0 - 1) / 3)
                .or_default()
                .push((brick, disk));
        }
    }
    let sets: Vec<_> = sets.into_values().collect();
    oracle::bricks::check(&sets)
}
