//! Makes things go wrong, as the plan says.

use std::sync::Arc;

use mortar_server::device::sim::Survival;

use super::exec::MILLI;
use super::net::Weather;
use super::plan::Trouble;
use super::world::World;

impl World {
    /// Has the plan's troubles happen from now on.
    pub fn start_troubles(self: &Arc<Self>) {
        for (span, trouble) in self.plan.troubles.clone() {
            let world = Arc::downgrade(self);
            self.exec.after(span, move || {
                if let Some(world) = world.upgrade()
                    && !*world.calm.lock()
                {
                    world.cause(&trouble);
                }
            });
        }
    }

    fn cause(self: &Arc<Self>, trouble: &Trouble) {
        self.exec.note(&format!("TROUBLE {trouble:?}"));
        match trouble {
            Trouble::Weather(weather) => self.net.lock().weather = *weather,
            Trouble::Cut(from, to, span) => {
                let way = (*from, *to);
                self.net.lock().cuts.insert(way);
                self.later(*span, move |world| {
                    world.exec.note(&format!("cut ends {way:?}"));
                    world.net.lock().cuts.remove(&way);
                });
            }
            Trouble::Kill(node, away) => self.restart(*node, Survival::Process, *away),
            Trouble::KillAll(away) => {
                for (node, away) in away.iter().enumerate() {
                    self.restart(node, Survival::Process, *away);
                }
            }
            Trouble::PowerLoss(node, away) => {
                // Two members that lose power at once may lose what was not flushed: that is another test.
                if self.is_whole() && self.exec.now() > *self.power_loss.lock() {
                    *self.power_loss.lock() = u64::MAX;
                    self.restart(*node, Survival::Random, *away);
                    self.wait_for_whole();
                }
            }
            Trouble::Freeze(node, span) => {
                let node = *node;
                self.freeze_node(node, true);
                self.later(*span, move |world| world.freeze_node(node, false));
            }
            Trouble::KillClient(client) => {
                if self.working.lock().contains(client) {
                    self.kill_client(*client);
                    let next = client + 100;
                    self.working.lock().insert(next);
                    self.later(50 * MILLI, move |world| {
                        if world.working.lock().contains(&next) {
                            world.start_client(next);
                        }
                    });
                }
            }
            Trouble::LeaderRestart => self.lead(),
        }
    }

    fn later(self: &Arc<Self>, span: u64, act: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let world = Arc::downgrade(self);
        self.exec.after(span, move || {
            if let Some(world) = world.upgrade() {
                act(&world);
            }
        });
    }

    fn restart(self: &Arc<Self>, node: usize, survival: Survival, away: u64) {
        self.kill_node(node, survival);
        self.later(away, move |world| world.start_node(node));
    }

    /// Another machine may lose power once all members are in sync again.
    fn wait_for_whole(self: &Arc<Self>) {
        self.later(100 * MILLI, |world| {
            if world.is_whole() && world.nodes.iter().all(super::node::Node::is_up) {
                *world.power_loss.lock() = 0;
            } else {
                world.wait_for_whole();
            }
        });
    }

    /// All machines lose power: what was not flushed may be lost, also if clients were told that it was done. The
    /// clients' machines too, unless the plan says otherwise.
    pub fn black_out(self: &Arc<Self>) {
        *self.calm.lock() = true;
        *self.blackout_at.lock() = Some(self.exec.stamp());
        if !self.plan.clients_survive {
            let clients: Vec<u32> = self.working.lock().iter().copied().collect();
            for client in clients {
                self.kill_client(client);
            }
        }
        let survival = match self.rng.lock().below(3) {
            0 => Survival::Nothing,
            _ => Survival::Random,
        };
        for node in 0..self.nodes.len() {
            self.kill_node(node, survival);
        }
    }

    /// Ends all trouble: everybody runs, everything passes.
    pub fn calm_down(self: &Arc<Self>) {
        self.exec.note("calm");
        *self.calm.lock() = true;
        {
            let mut net = self.net.lock();
            net.weather = Weather::default();
            net.cuts.clear();
        }
        for node in 0..self.nodes.len() {
            self.start_node(node);
            self.freeze_node(node, false);
        }
    }
}
