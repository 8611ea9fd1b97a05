//! The simulated control plane: three to five nodes in one process, on virtual time, from one seed.
//!
//! # What is real
//! On each node: [`mortar_server::control::store::Control`] with the consensus library over redb, operations, caretaker,
//! what answers other nodes and people, and the loop that leads. They meet through the seams that production has too:
//!
//! | seam | here |
//! |---|---|
//! | `Env` | [`crate::sim::exec`]: one thread, one queue of timed events; which ready task runs next is drawn from the seed. All tasks of a process end with it |
//! | `Wire`, `Forward`, `Nodes`, `Orders`, `Gate` | [`net`]: requests and answers are late, lost, or cut off one way |
//! | `ControlDisk` and redb's storage | [`image`]: each write runs late, up to seconds; a process may end in the middle of one; a loss of power keeps what was synced, and of the rest some sectors |
//! | `BrickHost` | [`host`]: pretended bricks. What is formatted outlives the process, formatting takes time and may fail; open bricks report and adopt views, but do not join again after a restart |
//!
//! Not simulated: QUIC, enrolment and certificates (a node that is probed joins), file operations, `peer detach`.
//!
//! # A run
//! [`run`]: node 0 probes the others; 2 to 4 clients make random commands about volumes of their own at any node
//! ([`clients`]) while nodes are killed, lose power and are cut off, messages are lost and disks are slow. Then all
//! becomes calm, and everything must settle. [`kills`]: the leader ends at the n-th event after a command was sent, for n
//! = 1, 2, 3 and so on until the command is done before.
//!
//! # The oracles
//! - After the same number of commands all nodes have the same state, at any time, also across restarts; no two nodes
//!   lead in one term; no node fails or cannot start.
//! - Once all is calm every node has the same state, nothing is being created or left over, the bricks on each node's disk
//!   are those of its volumes, and all others that were formatted are marked as deleted.
//! - What was answered as done is so; what was refused is not so. Only an answer that says so, or none, leaves it open.
//! - No command takes longer than 110 s; once all is calm every node answers within 10 s.
//! - Each seed runs twice and must give the same trace.

pub mod clients;
pub mod host;
pub mod image;
pub mod kills;
pub mod net;
pub mod regressions;
pub mod settle;
mod trouble;
pub mod world;

use std::sync::Arc;

use clients::{Book, Counts};
use mortar_protocol::env::Env;
use world::World;

use crate::sim::exec::{MILLI, SECOND, SimEnv};
use crate::sim::rng::Rng;

/// Bugs planted by the simulation, to see that the oracles find them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// Disks sync nothing: votes and entries are acknowledged before they are kept.
    NeverSync,
    /// A process that ends loses its file: its vote and its log.
    ForgetEverything,
    /// Nodes do not clear bricks that were left over.
    ClearNothing,
}

/// What a run showed.
#[derive(Default)]
pub struct Outcome {
    /// What must not be.
    pub failures: Vec<String>,
    /// The trace.
    pub lines: Vec<String>,
    /// Counts.
    pub counts: Counts,
    /// Virtual time it took, in nanoseconds.
    pub time: u64,
}

/// Clients may take this long, in virtual seconds, after the trouble is over.
const PATIENCE: u64 = 150;

/// Runs a seed.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut rng = Rng::new(seed ^ 0xc0_5e_45_05);
    let nodes = rng.range(3, 6) as usize;
    let failing = if rng.permille(500) { 60 } else { 0 };
    let world = World::new(rng.draw(), nodes, failing, sabotage);
    let book = Arc::new(Book::default());
    if settle::form(&world, &book) {
        let clients = rng.range(2, 5) as usize;
        for number in 0..clients {
            let owner = world.owner();
            let env: Arc<dyn Env> = SimEnv::new(Arc::clone(&world.exec), owner, rng.fork());
            let task = clients::client(
                Arc::clone(&world),
                Arc::clone(&book),
                number,
                Arc::clone(&env),
                rng.fork(),
            );
            book.waiting
                .lock()
                .insert(u64::MAX - number as u64, format!("client {number}"));
            let book = Arc::clone(&book);
            env.spawn(Box::pin(async move {
                task.await;
                book.waiting.lock().remove(&(u64::MAX - number as u64));
            }));
        }
        trouble::make(&world, &mut rng);
        settle::calm(&world);
        let until = world.exec.now() + PATIENCE * SECOND;
        while !book.waiting.lock().is_empty() && world.exec.now() < until {
            world.pass(500 * MILLI);
        }
        for what in book.waiting.lock().values() {
            world.fail(format!(
                "{what} has not ended {PATIENCE} s after the trouble"
            ));
        }
        settle::settled(&world, &book);
    }
    finish(&world, &book)
}

fn finish(world: &Arc<World>, book: &Book) -> Outcome {
    let failures = world.failures();
    let time = world.exec.now();
    for node in 0..world.nodes() {
        world.end(node, world::End::Killed);
    }
    world.exec.clear();
    let counts = book.counts.lock().clone();
    Outcome {
        failures,
        lines: world.exec.take_lines(),
        counts,
        time,
    }
}

/// Runs something twice; both traces must be the same.
pub fn twice(run: impl Fn() -> Outcome) -> Outcome {
    let mut first = run();
    let second = run();
    if first.lines != second.lines {
        let mut lines = first.lines.iter().zip(&second.lines);
        let at = lines.position(|(one, other)| one != other);
        let at = at.unwrap_or(first.lines.len().min(second.lines.len()));
        let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
        first.failures.push(format!(
            "not deterministic from line {at}:\n    {}\n    {}",
            line(&first.lines),
            line(&second.lines)
        ));
    }
    first
}

/// Runs a seed twice.
pub fn run_twice(seed: u64) -> Outcome {
    twice(|| run(seed, None))
}
