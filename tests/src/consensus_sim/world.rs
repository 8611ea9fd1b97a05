//! The machines of a simulated cluster, their processes, and what is known of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mortar_protocol::admin::{AdminReply, AdminRequest, NodeInfo};
use mortar_protocol::env::Env;
use mortar_protocol::ids::{BootId, ClusterId, NodeId};
use mortar_protocol::transport::{Identity, Peer};
use mortar_server::control::admin::Admin;
use mortar_server::control::caretaker::Caretaker;
use mortar_server::control::machine::State;
use mortar_server::control::operations::Operations;
use mortar_server::control::serve::{Formatting, Served};
use mortar_server::control::sessions::Sessions;
use mortar_server::control::store::{Control, Parts};
use mortar_server::node::leading::{self, Leading};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::Sabotage;
use super::host::{Bricks, Habits, Host, Shelf};
use super::image::{Disk, Image, SlowDisk};
use super::net::{self, Net, Ways};
use crate::sim::exec::{Exec, SimEnv};
use crate::sim::rng::Rng;

/// The identity of the cluster.
const CLUSTER: ClusterId = ClusterId(77);

/// A process of a node, as far as it has started.
struct Process {
    owner: u32,
    disk: Arc<SlowDisk>,
    up: Option<Up>,
}

/// A process that serves.
#[derive(Clone)]
pub struct Up {
    owner: u32,
    /// Its control plane.
    pub control: Arc<Control>,
    admin: Arc<Admin>,
    _served: Arc<Served>,
}

/// A machine.
struct Machine {
    image: Arc<Image>,
    shelf: Shelf,
    boot: BootId,
    process: Option<Process>,
}

/// What is known over the whole run.
#[derive(Default)]
struct Seen {
    /// Checksum of the state by the number of commands applied, and the node that showed it first.
    states: BTreeMap<u64, (u64, usize)>,
    leaders: BTreeMap<u64, usize>,
    failures: Vec<String>,
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The process alone.
    Killed,
    /// The machine loses power.
    PowerLost,
}

/// The cluster.
pub struct World {
    /// Time and tasks.
    pub exec: Arc<Exec>,
    /// The network.
    pub net: Arc<Net>,
    machines: Mutex<Vec<Machine>>,
    seen: Mutex<Seen>,
    rng: Mutex<Rng>,
    owners: AtomicU64,
    /// In thousandths: how often a write takes long.
    pub slow: Arc<AtomicU64>,
    habits: Habits,
    sabotage: Option<Sabotage>,
}

fn sum(state: &State) -> u64 {
    let bytes = postcard::to_stdvec(state).expect("a state can be encoded");
    let hash = blake3::hash(&bytes);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"))
}

impl World {
    /// Machines without processes.
    pub fn new(seed: u64, nodes: usize, failing: u64, sabotage: Option<Sabotage>) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let exec = Exec::sorted(rng.fork());
        let net = Net::new(&exec, rng.fork());
        let machine = |_| Machine {
            image: Arc::default(),
            shelf: Arc::default(),
            boot: BootId(rng.id()),
            process: None,
        };
        let machines: Vec<Machine> = (0..nodes).map(machine).collect();
        if sabotage == Some(Sabotage::NeverSync) {
            machines
                .iter()
                .for_each(|machine| machine.image.never_sync());
        }
        Arc::new(Self {
            exec,
            net,
            machines: Mutex::new(machines),
            seen: Mutex::default(),
            rng: Mutex::new(rng),
            owners: AtomicU64::new(1),
            slow: Arc::default(),
            habits: Habits {
                failing,
                clears_nothing: sabotage == Some(Sabotage::ClearNothing),
            },
            sabotage,
        })
    }

    /// Notes something that must not be.
    pub fn fail(&self, why: String) {
        self.exec.note(&format!("FAILED {why}"));
        let mut seen = self.seen.lock();
        if seen.failures.len() < 20 {
            seen.failures.push(why);
        }
    }

    /// What was found.
    pub fn failures(&self) -> Vec<String> {
        self.seen.lock().failures.clone()
    }

    /// Number of machines.
    pub fn nodes(&self) -> usize {
        self.machines.lock().len()
    }

    /// An owner for tasks.
    pub fn owner(&self) -> u32 {
        self.owners.fetch_add(1, Ordering::Relaxed) as u32
    }

    /// A sequence of random numbers of its own.
    pub fn fork(&self) -> Rng {
        self.rng.lock().fork()
    }

    /// Whether the machine has a process.
    pub fn runs(&self, node: usize) -> bool {
        self.machines.lock()[node].process.is_some()
    }

    /// The process of a node, if it serves.
    pub fn up(&self, node: usize) -> Option<Up> {
        self.machines.lock()[node].process.as_ref()?.up.clone()
    }

    /// What lies on a node's disks.
    pub fn shelf(&self, node: usize) -> Shelf {
        Arc::clone(&self.machines.lock()[node].shelf)
    }

    /// The node that leads, if one does.
    pub fn leader(&self) -> Option<usize> {
        let leads = |node: &usize| {
            let up = self.up(*node);
            up.is_some_and(|up| {
                up.control
                    .consensus()
                    .is_some_and(|part| part.standing().leads)
            })
        };
        (0..self.nodes()).find(leads)
    }

    /// Starts the process of a node.
    pub fn start(self: &Arc<Self>, node: usize) {
        if self.runs(node) {
            return;
        }
        let owner = self.owner();
        let me = format!("n{node}");
        self.exec.note(&format!("start {me}"));
        let disk = SlowDisk::new(&self.exec, self.fork(), Arc::clone(&self.slow), me.clone());
        let env: Arc<dyn Env> = SimEnv::new(Arc::clone(&self.exec), owner, self.fork());
        {
            let machine = &mut self.machines.lock()[node];
            machine.process = Some(Process {
                owner,
                disk: Arc::clone(&disk),
                up: None,
            });
        }
        let world = Arc::clone(self);
        self.exec.spawn(
            owner,
            Box::pin(async move {
                if let Err(why) = world.begin(node, owner, disk, env).await {
                    world.fail(format!("n{node} cannot start: {why}"));
                }
            }),
        );
    }

    async fn begin(
        self: &Arc<Self>,
        node: usize,
        owner: u32,
        disk: Arc<SlowDisk>,
        env: Arc<dyn Env>,
    ) -> Result<(), String> {
        let (image, shelf, boot) = {
            let machine = &self.machines.lock()[node];
            let image = Arc::clone(&machine.image);
            (image, Arc::clone(&machine.shelf), machine.boot)
        };
        let database = redb::Database::builder()
            .set_cache_size(1 << 20)
            .create_with_backend(image.open())
            .map_err(|error| error.to_string())?;
        let ways = Ways::new(&self.net, &env, node);
        let parts = Parts {
            own: net::id(node),
            env: Arc::clone(&env),
            disk: Arc::new(Disk(disk)),
            wire: Arc::clone(&ways) as _,
            forward: Arc::clone(&ways) as _,
            joins: node != 0,
        };
        let path = PathBuf::from(format!("n{node}/control.redb"));
        let control = Control::over(path, database, parts).await;
        let control = Arc::new(control.map_err(|error| error.to_string())?);
        let (to_leader, own_reports) = mpsc::unbounded_channel();
        let (leader_reports, reports) = mpsc::unbounded_channel();
        let name = (net::id(node), boot, format!("n{node}"));
        let host = Host::new(&self.exec, &env, name, &shelf, to_leader, self.habits);
        let host = Arc::new(Bricks(host));
        let operations = Arc::new(Operations::new(
            Arc::clone(&control),
            Arc::clone(&ways) as _,
            Arc::clone(&ways) as _,
            Arc::clone(&env),
            net::id(node),
        ));
        let formatting = Formatting::default();
        let served = Arc::new(Served {
            control: Arc::clone(&control),
            host: Arc::clone(&host) as _,
            formatting: formatting.clone(),
            operations: Arc::clone(&operations),
            reports: leader_reports,
            env: Arc::clone(&env),
            cluster: CLUSTER,
            version: ("1".to_owned(), owner),
            started: env.now(),
            left: watch::channel(false).0,
        });
        ways.connect(&control, &served);
        let addrs = vec![net::addr(node)];
        let info = NodeInfo {
            id: net::id(node),
            addrs: addrs.clone(),
            pid: owner,
            version: "1".to_owned(),
        };
        let sessions = Sessions::new(Arc::clone(&control), Arc::clone(&env), net::id(node));
        let admin = Arc::new(Admin::new(
            Arc::clone(&control),
            Arc::clone(&ways) as _,
            Arc::clone(&sessions),
            Arc::clone(&env),
            (CLUSTER, info),
            0,
        ));
        let silent = Arc::clone(&ways);
        let leading = Leading {
            control: Arc::clone(&control),
            orders: Arc::clone(&ways) as _,
            silent: Arc::new(move |node: NodeId| silent.silent(node)),
            env: Arc::clone(&env),
            operations,
            reports,
        };
        let own = (net::addr(node).ip().to_string(), addrs);
        let (control_of, env_of) = (Arc::clone(&control), Arc::clone(&env));
        let caretaker = Caretaker::new(control_of, (host, formatting), env_of, net::id(node), own);
        let told = Arc::clone(&env);
        let told = leading::report(Arc::clone(&control), ways, told, own_reports);
        env.spawn(Box::pin(told));
        env.spawn(Box::pin(caretaker.run()));
        env.spawn(Box::pin(sessions.run()));
        let world = Arc::clone(self);
        env.spawn(Box::pin(async move {
            if let Err(error) = leading.run().await {
                world.fail(format!("n{node} takes no part any more: {error}"));
            }
        }));
        self.watch(node, &control, &env);
        self.net.listen(node, owner, &served);
        let mut machines = self.machines.lock();
        if let Some(process) = &mut machines[node].process {
            process.up = Some(Up {
                owner,
                control,
                admin,
                _served: served,
            });
        }
        Ok(())
    }

    /// Looks at each state and each leader of a process.
    fn watch(self: &Arc<Self>, node: usize, control: &Arc<Control>, env: &Arc<dyn Env>) {
        let (world, of) = (Arc::clone(self), Arc::clone(control));
        env.spawn(Box::pin(async move {
            let mut watch = of.watch();
            loop {
                watch.mark_unchanged();
                world.state_seen(node, &of.state());
                if watch.changed().await.is_err() {
                    return;
                }
            }
        }));
        let (world, of) = (Arc::clone(self), Arc::clone(control));
        env.spawn(Box::pin(async move {
            let Some(part) = of.consensus() else { return };
            loop {
                let standing = part.standing();
                if standing.leads {
                    world.leader_seen(node, standing.term);
                }
                part.standing_after(&standing).await;
            }
        }));
    }

    fn state_seen(&self, node: usize, state: &State) {
        let sum = sum(state);
        let applied = state.applied;
        self.exec
            .note(&format!("n{node} applied {applied} {sum:016x}"));
        let (known, by) = *self
            .seen
            .lock()
            .states
            .entry(applied)
            .or_insert((sum, node));
        if known != sum {
            self.fail(format!(
                "after {applied} commands n{node} has another state than n{by} had"
            ));
        }
    }

    fn leader_seen(&self, node: usize, term: u64) {
        let first = *self.seen.lock().leaders.entry(term).or_insert(node);
        if first != node {
            self.fail(format!("n{first} and n{node} both lead in term {term}"));
        } else {
            self.exec.note(&format!("n{node} leads in term {term}"));
        }
    }

    /// Ends the process of a node, maybe in the middle of a write.
    pub fn end(&self, node: usize, how: End) {
        let mut rng = self.fork();
        let (process, image) = {
            let machine = &mut self.machines.lock()[node];
            let Some(process) = machine.process.take() else {
                return;
            };
            if how == End::PowerLost {
                machine.boot = BootId(rng.id());
            }
            (process, Arc::clone(&machine.image))
        };
        self.exec.note(&format!("end n{node} {how:?}"));
        self.net.deaf(node);
        let writing = process.disk.end();
        if rng.permille(600)
            && let Some(job) = writing
        {
            image.end_after(rng.below(14) as u32);
            job();
        }
        match how {
            End::Killed => image.let_go(),
            End::PowerLost => image.lose_power(&mut rng),
        }
        self.exec.kill(process.owner);
        drop(process);
        if self.sabotage == Some(Sabotage::ForgetEverything) {
            self.machines.lock()[node].image = Arc::default();
        }
    }

    /// Has a node answer a request; none: its process ended before it did, or there is none.
    pub async fn call(self: Arc<Self>, node: usize, request: AdminRequest) -> Option<AdminReply> {
        let up = self.up(node)?;
        let (tell, told) = oneshot::channel();
        let peer = Peer {
            identity: Identity::Client { uid: 0 },
            addr: net::addr(node),
            connection: 1,
        };
        let admin = Arc::clone(&up.admin);
        let task = Box::pin(async move {
            // Who asked may have given up.
            let _ = tell.send(admin.handle(&peer, request).await);
        });
        self.exec.spawn(up.owner, task);
        drop(up);
        told.await.ok()
    }

    /// Lets time pass.
    pub fn pass(&self, span: u64) {
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        self.exec
            .after(span, move || flag.store(true, Ordering::Relaxed));
        while !over.load(Ordering::Relaxed) && self.exec.step() {}
    }
}
