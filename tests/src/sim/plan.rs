//! What a seed means: the cluster, the clients and what goes wrong when.

use super::exec::{MILLI, SECOND};
use super::net::{Place, Weather};
use super::rng::Rng;

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The network changes.
    Weather(Weather),
    /// Nothing passes in this direction for a while.
    Cut(Place, Place, u64),
    /// A process dies and is started again later.
    Kill(usize, u64),
    /// All processes die; each is started again later.
    KillAll(Vec<u64>),
    /// A machine loses power and is started again later. Left out while another one has not recovered.
    PowerLoss(usize, u64),
    /// A process stops for a while.
    Freeze(usize, u64),
    /// A client dies; another one takes its place.
    KillClient(u32),
    /// The control plane's leader starts again and has to hear of everything anew.
    LeaderRestart,
}

/// A seed's meaning.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Machines: 3 with one brick of each set, or 1 with all.
    pub nodes: usize,
    /// Sets of three bricks.
    pub sets: usize,
    /// Clients.
    pub clients: u32,
    /// Tasks of each client.
    pub workers: u32,
    /// Calls of each task.
    pub calls: u32,
    /// Calls of 1000 that are about names.
    pub names: u64,
    /// Longest pause between two calls of a task.
    pub pause: u64,
    /// Largest write in blocks of 512 bytes.
    pub largest: u64,
    /// Appends of 1000 that are longer than what an entry holds inline.
    pub long_appends: u64,
    /// `network.session-timeout`, in seconds.
    pub session_timeout: u64,
    /// `cluster.open-wait`, in seconds.
    pub open_wait: u64,
    /// All machines, clients too, lose power when half of the calls are made.
    pub blackout: bool,
    /// Clients do not: they go on with servers that may have lost what was not flushed.
    pub clients_survive: bool,
    /// Calls of 1000 that take hold of a file first: by a lock, or by opening it.
    pub holds: u64,
    /// Brick processes have little memory for entries that are not applied: changes wait for it.
    pub tight: bool,
    /// What goes wrong, with its time after the start of the load.
    pub troubles: Vec<(u64, Trouble)>,
    /// Seed of what clients do.
    pub load: Rng,
}

impl Plan {
    /// Draws a plan; a volume has several sets only if that is asked for.
    pub fn draw(rng: &mut Rng, several_sets: bool) -> Self {
        let nodes = if rng.permille(750) { 3 } else { 1 };
        let clients = rng.range(2, 5) as u32;
        let mut plan = Self {
            nodes,
            sets: if rng.permille(350) && several_sets {
                2
            } else {
                1
            },
            clients,
            workers: rng.range(1, 3) as u32,
            calls: rng.range(20, 60) as u32,
            names: [300, 500, 800][rng.below(3) as usize],
            pause: [2 * MILLI, 20 * MILLI, 200 * MILLI][rng.below(3) as usize],
            largest: [8, 16, 300][rng.below(3) as usize],
            long_appends: [0, 0, 250][rng.below(3) as usize],
            session_timeout: rng.range(5, 8),
            open_wait: rng.range(1, 11),
            blackout: rng.permille(300),
            clients_survive: rng.permille(500),
            holds: [0, 50, 150][rng.below(3) as usize],
            tight: false,
            troubles: Vec::new(),
            load: rng.fork(),
        };
        plan.tight = plan.load.clone().permille(300);
        let span = plan.pause * u64::from(plan.calls) / 2 + 500 * MILLI;
        for _ in 0..rng.range(2, 10) {
            let at = rng.below(span);
            let trouble = plan.trouble(rng);
            plan.troubles.push((at, trouble));
        }
        plan.troubles.sort_by_key(|(at, _)| *at);
        plan
    }

    fn place(&self, rng: &mut Rng) -> Place {
        match rng.below(5) {
            0 => Place::Control,
            1 | 2 => Place::Client(rng.below(u64::from(self.clients)) as u32),
            _ => Place::Node(rng.below(self.nodes as u64) as usize),
        }
    }

    fn trouble(&self, rng: &mut Rng) -> Trouble {
        let node = rng.below(self.nodes as u64) as usize;
        let away = |rng: &mut Rng| match rng.below(4) {
            0 => rng.range(MILLI, 20 * MILLI),
            1 | 2 => rng.range(20 * MILLI, SECOND),
            _ => rng.range(SECOND, 8 * SECOND),
        };
        match rng.below(14) {
            0..=3 => Trouble::Weather(Weather {
                loss: [0, 10, 50, 200][rng.below(4) as usize],
                twice: [0, 20, 200][rng.below(3) as usize],
                late: [0, 20, 200][rng.below(3) as usize],
                late_by: [5 * MILLI, 100 * MILLI, 3 * SECOND][rng.below(3) as usize],
                breaks: [0, 10, 100][rng.below(3) as usize],
            }),
            4 | 5 => Trouble::Cut(self.place(rng), self.place(rng), away(rng)),
            6 | 7 => Trouble::Kill(node, away(rng)),
            8 => Trouble::KillAll((0..self.nodes).map(|_| away(rng)).collect()),
            9 if self.nodes > 1 => Trouble::PowerLoss(node, away(rng)),
            9 | 10 => Trouble::Freeze(node, away(rng) / 2),
            11 | 12 => Trouble::KillClient(rng.below(u64::from(self.clients)) as u32),
            _ => Trouble::LeaderRestart,
        }
    }
}
