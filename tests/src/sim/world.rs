//! One simulated cluster: what it is made of, and how it is run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mortar_protocol::ids::{BootId, BrickId, ClusterId, InodeId, NodeId, SetIndex, VolumeId};
use mortar_protocol::view::{BrickInfo, SetKind, VolumeInfo};
use mortar_server::control::machine::{Command, Outcome};
use mortar_server::control::store::Control;
use mortar_server::device::Device;
use mortar_server::device::sim::SimDisk;
use mortar_server::store::{FormatParams, Store};
use mortar_server::superblock::MIN_SIZE;
use parking_lot::Mutex;

use super::control::ControlPlane;
use super::exec::{Exec, SECOND};
use super::history::History;
use super::net::Net;
use super::node::Node;
use super::plan::Plan;
use super::rng::Rng;

/// Name of the volume.
pub const VOLUME: &str = "sim";
/// Port of the first node; the others follow.
const PORT: u16 = 24_007;
/// Size of a shard, in bytes.
pub const SHARD: u64 = 4 << 20;
/// Most steps of one run: beyond it something goes round in circles.
const MAX_STEPS: u64 = 20_000_000;

/// A planted bug, to see whether the oracle finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// Entries are acknowledged to the primary for members that never get them.
    AcknowledgeUnwritten,
    /// fsync is answered without a flush.
    SkipFlushes,
    /// A request that is sent again runs again.
    RunRepeatsAgain,
}

/// One simulated cluster.
pub struct World {
    /// A planted bug.
    pub sabotage: Option<Sabotage>,
    /// Time, tasks and trace.
    pub exec: Arc<Exec>,
    /// What is drawn for the servers.
    pub rng: Mutex<Rng>,
    /// The network.
    pub net: Mutex<Net>,
    /// Machines with bricks.
    pub nodes: Vec<Node>,
    /// The control plane.
    pub control: ControlPlane,
    /// What clients did.
    pub history: History,
    /// What there is to be done.
    pub plan: Plan,
    /// Bricks that have stopped in good order.
    pub stopped: Mutex<BTreeSet<BrickId>>,
    /// Clients at work.
    pub working: Mutex<BTreeSet<u32>>,
    /// The directories that clients use, and the files they share.
    pub places: Mutex<(Vec<InodeId>, Vec<u64>)>,
    /// The file among them that has data on both sides of the end of its first shard, if there are several sets.
    pub wide: Mutex<Option<u64>>,
    /// When all machines lost power, by the clock of the history.
    pub blackout_at: Mutex<Option<u64>>,
    /// Whether a brick does not come back into its set.
    left_out: AtomicBool,
    /// Whether a set ever had less than the majority of its bricks.
    too_few: AtomicBool,
    /// Files clients have come across lately.
    pub known: Mutex<Vec<u64>>,
    /// Nothing goes wrong any more.
    pub calm: Mutex<bool>,
    /// No machine may lose power before this time.
    pub power_loss: Mutex<u64>,
    /// Why the run has failed.
    failures: Mutex<Vec<String>>,
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, PORT + node as u16))
}

/// Bit of a seed that lets the volume have several sets.
pub const SEVERAL_SETS: u64 = 1 << 62;

impl World {
    /// A cluster with a started volume whose bricks are formatted; no process runs yet.
    ///
    /// # Errors
    /// What went wrong.
    pub fn new(seed: u64, sabotage: Option<Sabotage>) -> Result<Arc<Self>, String> {
        let mut rng = Rng::new(seed & !SEVERAL_SETS);
        let plan = Plan::draw(&mut rng, seed & SEVERAL_SETS != 0);
        let control = ControlPlane::new(Control::in_memory());
        let volume = create(&control, &plan, &mut rng)?;
        let nodes = (0..plan.nodes).map(|at| {
            let id = NodeId(at as u128 + 1);
            let mut disks = Vec::new();
            for (index, set) in volume.sets.iter().enumerate() {
                let index = SetIndex(index as u32);
                for brick in set.iter().filter(|brick| brick.node == id) {
                    let disk = format(&volume, index, brick, rng.draw())?;
                    disks.push((brick.id, volume.set_id(index), disk));
                }
            }
            Ok(Node::new(id, BootId(rng.id()), disks))
        });
        let nodes = nodes.collect::<Result<Vec<Node>, String>>()?;
        let world = Arc::new(Self {
            sabotage,
            exec: Exec::new(rng.fork()),
            net: Mutex::new(Net::new(rng.fork())),
            rng: Mutex::new(rng),
            nodes,
            control,
            history: History::default(),
            plan,
            stopped: Mutex::default(),
            working: Mutex::default(),
            places: Mutex::default(),
            wide: Mutex::default(),
            blackout_at: Mutex::default(),
            left_out: AtomicBool::new(false),
            too_few: AtomicBool::new(false),
            known: Mutex::default(),
            calm: Mutex::default(),
            power_loss: Mutex::default(),
            failures: Mutex::default(),
        });
        Ok(world)
    }

    /// The run has failed.
    pub fn fail(&self, why: String) {
        self.exec.note(&format!("FAILED {why}"));
        self.failures.lock().push(why);
    }

    /// Why the run has failed, if it has.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().clone()
    }

    /// The node that a client reaches under an id or an address.
    pub fn node_at(&self, id: NodeId, addr: Option<SocketAddr>) -> Option<usize> {
        let by_id = self.nodes.iter().position(|node| node.id == id);
        by_id.or_else(|| (0..self.nodes.len()).find(|at| Some(address(*at)) == addr))
    }

    /// Where clients begin to ask.
    pub fn servers(&self) -> Vec<SocketAddr> {
        (0..self.nodes.len()).map(address).collect()
    }

    /// Runs until `done`, a failure, or `limit` nanoseconds of virtual time are over. Says whether it is done.
    pub fn run_until(&self, limit: u64, done: impl Fn() -> bool) -> bool {
        let until = self.exec.now() + limit;
        let mut steps = 0;
        while self.exec.now() < until && self.failures.lock().is_empty() {
            if done() {
                return true;
            }
            steps += 1;
            if steps > MAX_STEPS {
                self.fail("too many steps: something goes round in circles".to_owned());
            }
            if !self.exec.step() {
                break;
            }
        }
        done()
    }

    /// Whether all members of all sets are in sync and serve.
    pub fn is_whole(&self) -> bool {
        let state = self.control.state.state();
        state.volume(VOLUME).is_some_and(|volume| {
            let width = volume.info.kind.width();
            volume.sets.iter().all(|set| {
                set.current.as_ref().is_some_and(|view| {
                    let runs = |node: &Node| {
                        let own = view.members.iter().filter(|member| member.node == node.id);
                        own.clone()
                            .all(|member| node.runs(member.brick, member.run))
                    };
                    view.effective && view.members.len() == width && self.nodes.iter().all(runs)
                })
            })
        })
    }

    /// Notes that a brick does not come back into its set.
    pub fn leave_out(&self) {
        self.left_out.store(true, Ordering::Relaxed);
    }

    /// Whether a brick does not come back into its set.
    pub fn left_out(&self) -> bool {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Notes how many members a view has.
    pub fn saw_view(&self, members: usize) {
        let state = self.control.state.state();
        let width = state
            .volume(VOLUME)
            .map_or(0, |volume| volume.info.kind.width());
        if members * 2 <= width {
            self.too_few.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a set ever had less than the majority of its bricks, so that changes may have been refused.
    pub fn had_too_few(&self) -> bool {
        self.too_few.load(Ordering::Relaxed)
    }

    /// Sessions that have not ended.
    pub fn sessions(&self) -> usize {
        let state = self.control.state.state();
        state
            .volume(VOLUME)
            .map_or(0, |volume| volume.sessions.len())
    }

    /// Messages by what became of them.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.net.lock().counts.clone()
    }
}

/// Creates and starts the volume in the control plane.
fn create(control: &ControlPlane, plan: &Plan, rng: &mut Rng) -> Result<VolumeInfo, String> {
    let id = VolumeId(rng.id());
    let mut bricks = Vec::new();
    for brick in 0..plan.sets * 3 {
        let node = if plan.nodes == 1 { 0 } else { brick % 3 };
        bricks.push(BrickInfo {
            id: BrickId(brick as u128 + 1),
            node: NodeId(node as u128 + 1),
            host: format!("n{node}"),
            path: format!("/b{brick}"),
        });
    }
    let mut commands = Vec::new();
    for at in 0..plan.nodes {
        let (node, host) = (NodeId(at as u128 + 1), format!("n{at}"));
        if at > 0 {
            commands.push(Command::Invite {
                node,
                host: host.clone(),
                addrs: Vec::new(),
                now_secs: 0,
            });
        }
        commands.push(Command::Node {
            node,
            host,
            addrs: vec![address(at)],
        });
    }
    let option = |name: &str, value: String| (name.to_owned(), value);
    commands.extend([
        Command::BeginCreate {
            volume: id,
            name: VOLUME.to_owned(),
            kind: SetKind::Replicate { copies: 3 },
            bricks,
            now_secs: 0,
        },
        Command::FinishCreate { volume: id },
        Command::Set {
            volume: VOLUME.to_owned(),
            options: vec![
                option("network.session-timeout", plan.session_timeout.to_string()),
                option("cluster.open-wait", plan.open_wait.to_string()),
                option("features.shard-block-size", SHARD.to_string()),
            ],
        },
        Command::Start {
            volume: VOLUME.to_owned(),
            force: false,
        },
    ]);
    for command in commands {
        if let Outcome::Refused(why) = control.propose(command)? {
            return Err(why);
        }
    }
    let state = control.state.state();
    let volume = state.volume(VOLUME).ok_or("no volume")?;
    Ok(volume.info.clone())
}

fn format(
    volume: &VolumeInfo,
    set: SetIndex,
    brick: &BrickInfo,
    seed: u64,
) -> Result<Arc<SimDisk>, String> {
    let disk = SimDisk::new(MIN_SIZE, seed);
    let device: Arc<dyn Device> = Arc::clone(&disk) as _;
    let params = FormatParams {
        cluster: ClusterId(1),
        generation: 0,
        node: brick.node,
        brick: brick.id,
        set: volume.set_id(set),
        volume_name: volume.name.clone(),
        kind: volume.kind,
        shard_size: volume.shard_size,
        force: false,
    };
    Store::format(&device, &params).map_err(|error| error.to_string())?;
    Ok(disk)
}

/// Longest virtual time of a whole run.
pub const LONGEST: u64 = 600 * SECOND;
