//! The simulated cluster. (Documentation follows below.)

pub mod control;
pub mod exec;
pub mod history;
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

use std::collections::BTreeMap;
use std::sync::Arc;

use exec::SECOND;
use mortar_protocol::report::ToBrick;
use mortar_server::device::sim::Survival;
use world::World;

/// What a run showed.
#[derive(Default)]
pub struct Outcome {
    /// The trace.
    pub lines: Vec<String>,
    /// What must not have happened.
    pub failures: Vec<String>,
    /// Searches of the oracle that were given up.
    pub undecided: usize,
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
    let world = match World::new(seed) {
        Ok(world) => world,
        Err(why) => {
            return Outcome {
                failures: vec![why],
                ..Outcome::default()
            };
        }
    };
    play(&world);
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
        let findings = oracle::check(&records);
        outcome.failures = findings.violations;
        outcome.undecided = findings.undecided;
        outcome.failures.extend(check_bricks(&world));
    }
    outcome.lines = world.exec.take_lines();
    world.exec.clear();
    outcome
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

fn play(world: &Arc<World>) {
    world.exec.note(&format!("{:?}", world.plan));
    world.lead();
    world.tick_leader();
    for node in 0..world.nodes.len() {
        world.start_node(node);
    }
    let idle = || world.working.lock().is_empty();
    world.prepare();
    if !world.run_until(60 * SECOND, idle) {
        return world.fail("the cluster does not begin to serve".to_owned());
    }
    for client in 0..world.plan.clients {
        world.start_client(client);
    }
    world.start_troubles();
    if !world.run_until(world::LONGEST, idle) {
        return world.fail(format!("stuck: {:?} do not end", world.working.lock()));
    }
    world.calm_down();
    if !world.run_until(60 * SECOND, || world.is_whole()) {
        return world.fail("not every member comes back".to_owned());
    }
    world.look_at_all();
    if !world.run_until(120 * SECOND, idle) {
        return world.fail("the last look does not end".to_owned());
    }
    // Sessions of dead clients end, and what they held goes.
    world.run_until((world.plan.session_timeout + 8) * SECOND, || false);
    stop(world);
}

/// Stops all bricks in good order.
fn stop(world: &Arc<World>) {
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
        return world.fail("not every brick stops in good order".to_owned());
    }
    for node in 0..world.nodes.len() {
        world.kill_node(node, Survival::Process);
    }
}

fn check_bricks(world: &Arc<World>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut sets: BTreeMap<u128, Vec<_>> = BTreeMap::new();
    for node in &world.nodes {
        for (brick, disk) in node.disks() {
            sets.entry((brick.0 - 1) / 3)
                .or_default()
                .push((brick, disk));
        }
    }
    for disks in sets.values() {
        wrong.extend(oracle::bricks::check(disks));
    }
    wrong
}
