//! Brick processes: the real [`Core`] over real stores on simulated disks, driven as the daemon's core thread drives
//! it. A process can be killed, lose power, freeze and start again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use mortar_protocol::entry::Space;
use mortar_protocol::env::Mono;
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BootId, BrickId, NodeId, RunId, SetId};
use mortar_protocol::peer::{PeerEnvelope, PeerFrame, PeerMessage};
use mortar_protocol::report::{FromBrick, ToBrick};
use mortar_protocol::transport::mem::{decode, encode};
use mortar_protocol::transport::{Peer, ReplyTo};
use mortar_server::brick::{
    BrickConfig, Completions, Core, Message, Namespace, Outbox, PendingBudget,
};
use mortar_server::device::sim::{SimDisk, Survival};
use mortar_server::store::Store;
use parking_lot::Mutex;
use serde::Serialize;

use super::exec::{MICRO, MILLI};
use super::net::{Deliver, Place};
use super::world::{Sabotage, VOLUME, World};

/// A process looks at the time this often.
const TICK: u64 = 100 * MILLI;

/// A brick and its disk.
pub struct Platter {
    /// The brick.
    pub brick: BrickId,
    /// Its set.
    pub set: SetId,
    /// Its disk, as of the last start.
    pub disk: Arc<SimDisk>,
    /// Its run, if its process runs.
    run: Option<RunId>,
    /// Operations of the disk that have a time to complete.
    promised: usize,
}

/// A machine with a brick process.
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// A run of the core is due.
    due: AtomicBool,
    state: Mutex<State>,
}

struct State {
    core: Option<Core>,
    /// Counts the processes: what concerns an earlier one is ignored.
    process: u64,
    frozen: bool,
    boot: BootId,
    platters: Vec<Platter>,
}

#[derive(Default)]
struct Out {
    peers: Vec<PeerFrame>,
    reports: Vec<FromBrick>,
}

impl Outbox for Out {
    fn send_peer(&mut self, frame: PeerFrame) {
        self.peers.push(frame);
    }

    fn report(&mut self, report: FromBrick) {
        self.reports.push(report);
    }
}

impl Node {
    /// A machine that is switched off, with formatted disks.
    pub fn new(id: NodeId, boot: BootId, disks: Vec<(BrickId, SetId, Arc<SimDisk>)>) -> Self {
        let platters = disks.into_iter().map(|(brick, set, disk)| Platter {
            brick,
            set,
            disk,
            run: None,
            promised: 0,
        });
        Self {
            id,
            due: AtomicBool::new(false),
            state: Mutex::new(State {
                core: None,
                process: 0,
                frozen: false,
                boot,
                platters: platters.collect(),
            }),
        }
    }

    /// Whether a process runs.
    pub fn is_up(&self) -> bool {
        self.state.lock().core.is_some()
    }

    /// Whether it has a brick.
    pub fn has(&self, brick: BrickId) -> bool {
        self.state
            .lock()
            .platters
            .iter()
            .any(|platter| platter.brick == brick)
    }

    /// Whether a brick of it runs in this run.
    pub fn runs(&self, brick: BrickId, run: RunId) -> bool {
        let state = self.state.lock();
        let same = |platter: &Platter| platter.brick == brick && platter.run == Some(run);
        state.platters.iter().any(same)
    }

    /// Its bricks and their disks.
    pub fn disks(&self) -> Vec<(BrickId, Arc<SimDisk>)> {
        let state = self.state.lock();
        let pair = |platter: &Platter| (platter.brick, Arc::clone(&platter.disk));
        state.platters.iter().map(pair).collect()
    }
}

impl World {
    /// Starts the process of a node: its bricks are opened.
    pub fn start_node(self: &Arc<Self>, at: usize) {
        let node = &self.nodes[at];
        if node.is_up() {
            return;
        }
        let world = Arc::downgrade(self);
        let completions = Completions::new(Box::new(move || {
            if let Some(world) = world.upgrade() {
                world.wake_node(at);
            }
        }));
        let budget = match self.plan.tight {
            true => PendingBudget::of(64 << 10, 4 << 10),
            false => PendingBudget::new(),
        };
        let mut core = Core::new(Arc::new(Namespace::new()), Arc::clone(&completions), budget);
        let mut state = node.state.lock();
        let boot = state.boot;
        for platter in &mut state.platters {
            platter.disk.queue(false);
            let store = Store::open(Arc::clone(&platter.disk) as _);
            platter.disk.queue(true);
            platter.promised = 0;
            match store {
                Ok(store) => {
                    let run = RunId(self.rng.lock().id());
                    platter.run = Some(run);
                    let config = BrickConfig {
                        brick: platter.brick,
                        set: platter.set,
                        node: node.id,
                        boot,
                        run,
                        storage: Box::new(store),
                        gauge: Default::default(),
                    };
                    core.push(Message::Open(Box::new(config)));
                }
                Err(error) => self.fail(format!(
                    "brick {} cannot be opened: {error}",
                    platter.brick.0
                )),
            }
        }
        state.core = Some(core);
        state.process += 1;
        state.frozen = false;
        let process = state.process;
        drop(state);
        self.exec.note(&format!("start n{at}"));
        self.wake_node(at);
        self.tick_node(at, process);
    }

    /// Ends the process of a node. Its connections break.
    pub fn kill_node(self: &Arc<Self>, at: usize, survival: Survival) {
        let node = &self.nodes[at];
        let ended = {
            let mut state = node.state.lock();
            let ended = state.core.take();
            if ended.is_none() {
                return;
            }
            state.process += 1;
            for platter in &mut state.platters {
                platter.disk = platter.disk.reboot(survival);
                platter.run = None;
            }
            if survival != Survival::Process {
                state.boot = BootId(self.rng.lock().id());
            }
            ended
        };
        self.exec.note(&format!("kill n{at} {survival:?}"));
        drop(ended);
    }

    /// Stops the process of a node for a while; messages wait.
    pub fn freeze_node(self: &Arc<Self>, at: usize, frozen: bool) {
        self.nodes[at].state.lock().frozen = frozen;
        self.exec.note(&format!("frozen n{at} {frozen}"));
        self.wake_node(at);
    }

    fn tick_node(self: &Arc<Self>, at: usize, process: u64) {
        let world = Arc::downgrade(self);
        self.exec.after(TICK, move || {
            if let Some(world) = world.upgrade()
                && world.nodes[at].state.lock().process == process
            {
                world.wake_node(at);
                world.tick_node(at, process);
            }
        });
    }

    /// Has the core of a node run soon.
    fn wake_node(self: &Arc<Self>, at: usize) {
        if self.nodes[at].due.swap(true, Ordering::Relaxed) {
            return;
        }
        let span = self.rng.lock().range(2 * MICRO, 60 * MICRO);
        let world = Arc::downgrade(self);
        self.exec.after(span, move || {
            if let Some(world) = world.upgrade() {
                world.run_node(at);
            }
        });
    }

    fn run_node(self: &Arc<Self>, at: usize) {
        let node = &self.nodes[at];
        node.due.store(false, Ordering::Relaxed);
        let mut out = Out::default();
        let (mut disks, process, again) = {
            let mut state = node.state.lock();
            if state.frozen {
                return;
            }
            let Some(core) = &mut state.core else { return };
            let again = core.run(Mono(self.exec.now()), self.exec.wall(), &mut out);
            let mut disks = Vec::new();
            for (index, platter) in state.platters.iter_mut().enumerate() {
                while platter.promised < platter.disk.waiting() {
                    platter.promised += 1;
                    disks.push((index, Arc::clone(&platter.disk)));
                }
            }
            (disks, state.process, again)
        };
        for (index, disk) in disks.drain(..) {
            self.promise(at, process, index, disk);
        }
        for frame in out.peers {
            let sabotaged = self.sabotage == Some(Sabotage::AcknowledgeUnwritten);
            if !(sabotaged && self.acknowledge_unwritten(at, &frame)) {
                self.send_peer(at, &frame);
            }
        }
        for report in out.reports {
            self.send_report(at, &report);
        }
        if again {
            self.wake_node(at);
        }
    }

    /// Gives an operation of a disk a time to complete.
    fn promise(self: &Arc<Self>, at: usize, process: u64, index: usize, disk: Arc<SimDisk>) {
        let (span, place) = {
            let mut rng = self.rng.lock();
            let slow = rng.permille(20);
            let longest = if slow { 40 * MILLI } else { MILLI };
            (rng.range(20 * MICRO, longest), rng.below(3))
        };
        let world = Arc::downgrade(self);
        self.exec.after(span, move || {
            let Some(world) = world.upgrade() else { return };
            {
                let mut state = world.nodes[at].state.lock();
                if state.process != process {
                    return;
                }
                state.platters[index].promised -= 1;
            }
            if !disk.run(place as usize) {
                disk.run(0);
            }
            // Whatever it started is found by the next run.
            world.wake_node(at);
        });
    }

    fn push(self: &Arc<Self>, at: usize, message: Message) {
        let left = {
            let mut state = self.nodes[at].state.lock();
            match &mut state.core {
                Some(core) => {
                    core.push(message);
                    None
                }
                None => Some(message),
            }
        };
        match left {
            None => self.wake_node(at),
            Some(message) => drop(message),
        }
    }

    /// A request has arrived at a node.
    pub fn serve(self: &Arc<Self>, at: usize, peer: Peer, frame: Frame, reply: ReplyTo) {
        if !self.nodes[at].is_up() {
            return;
        }
        let body = frame.body.clone();
        match frame.message::<Request>() {
            Ok(Request::Fop(call)) => {
                let reply = Box::new(move |given, body| answer(reply, &given, body));
                let call = Box::new(call);
                let message = Message::Call {
                    call,
                    body,
                    uid: 0,
                    reply,
                };
                self.push(at, message);
            }
            Ok(Request::Stage(stage)) => {
                let reply = Box::new(move |given| answer(reply, &given, Bytes::new()));
                let message = Message::Stage {
                    stage,
                    data: body,
                    uid: 0,
                    reply,
                };
                self.push(at, message);
            }
            Ok(Request::Admin(request)) => self.admin(&peer, request, reply),
            Ok(Request::Peer(_) | Request::Node(_)) | Err(_) => {
                self.fail("a request is not one".to_owned())
            }
        }
    }

    fn send_peer(self: &Arc<Self>, from: usize, frame: &PeerFrame) {
        let Some(to) = self
            .nodes
            .iter()
            .position(|node| node.has(frame.envelope.to))
        else {
            return;
        };
        let what = format!("peer {}", describe(frame));
        let bytes = frame
            .body()
            .and_then(|body| Frame::new(&Request::Peer(frame.envelope.clone()), body));
        let Ok(bytes) = bytes.map(|frame| encode(&frame)) else {
            return self.fail(format!("{what} cannot be encoded"));
        };
        let world = Arc::downgrade(self);
        let deliver: Deliver = Arc::new(move |bytes| {
            let Some(world) = world.upgrade() else { return };
            let frame = decode(&bytes).and_then(|frame| {
                let body = frame.body.clone();
                match frame.message::<Request>()? {
                    Request::Peer(envelope) => PeerFrame::decode(envelope, body).map(Some),
                    _ => Ok(None),
                }
            });
            match frame {
                Ok(Some(frame)) => world.push(to, Message::Peer(frame)),
                _ => world.fail("a message of a brick cannot be read".to_owned()),
            }
        });
        let way = (Place::Node(from), Place::Node(to));
        self.send(way, &what, &bytes, true, &deliver);
    }

    /// Holds up, now and then, entries on their way to a backup and tells the primary that they are written.
    fn acknowledge_unwritten(self: &Arc<Self>, from: usize, frame: &PeerFrame) -> bool {
        let Some(last) = frame.entries.last() else {
            return false;
        };
        let ended = self.plan.blackout || self.nodes.len() == 1;
        let views = self.control.state.state();
        let run = views.volume(VOLUME).and_then(|volume| {
            let views = volume.sets.iter().filter_map(|set| set.current.as_ref());
            let member = views
                .filter_map(|view| view.member(frame.envelope.to))
                .next()?;
            Some(member.run)
        });
        let (Some(run), false) = (run, ended || !self.rng.lock().permille(30)) else {
            return false;
        };
        let envelope = PeerEnvelope {
            from: frame.envelope.to,
            run,
            to: frame.envelope.from,
            epoch: frame.envelope.epoch,
            message: PeerMessage::Written {
                written: last.pos,
                flushed: last.pos.seq,
                space: Space {
                    total: 1 << 40,
                    free: 1 << 40,
                    free_now: 1 << 40,
                    ring_free: 1 << 40,
                    inodes: 0,
                },
            },
        };
        self.exec.note("SABOTAGE acknowledges what is not written");
        let forged = PeerFrame {
            envelope,
            entries: Vec::new(),
            data: Bytes::new(),
        };
        self.push(from, Message::Peer(forged));
        let (world, frame) = (Arc::downgrade(self), frame.clone());
        self.exec.after(500 * MILLI, move || {
            if let Some(world) = world.upgrade() {
                world.send_peer(from, &frame);
            }
        });
        true
    }

    /// Sends an order of the control plane to the brick's node.
    pub fn send_order(self: &Arc<Self>, brick: BrickId, order: &ToBrick) {
        let Some(to) = self.nodes.iter().position(|node| node.has(brick)) else {
            return;
        };
        let debug = format!("{order:?}");
        let what = debug.split([' ', '(', '{']).next().unwrap_or_default();
        let what = match order {
            ToBrick::View(view) => format!(
                "order {} View e{} of {} o{}{}",
                brick.0,
                view.epoch,
                view.members.len(),
                view.opening,
                if view.effective { "" } else { " forming" }
            ),
            _ => format!("order {} {what}", brick.0),
        };
        let Ok(frame) = Frame::new(order, Bytes::new()) else {
            return self.fail(format!("{what} cannot be encoded"));
        };
        let world = Arc::downgrade(self);
        let deliver: Deliver = Arc::new(move |bytes| {
            let Some(world) = world.upgrade() else { return };
            match decode(&bytes).and_then(|frame| frame.message::<ToBrick>()) {
                Ok(order) => world.push(to, Message::Order { brick, order }),
                Err(error) => world.fail(format!("an order cannot be read: {error}")),
            }
        });
        let way = (Place::Control, Place::Node(to));
        self.send(way, &what, &encode(&frame), true, &deliver);
    }
}

fn describe(frame: &PeerFrame) -> String {
    match &frame.envelope.message {
        PeerMessage::State {
            history,
            applied,
            flushed,
            join,
        } => {
            let head = history.head;
            format!("state {head} applied {applied} flushed {flushed} join {join}")
        }
        PeerMessage::Append {
            prev,
            commit,
            announced,
            flush,
            ..
        } => format!(
            "append {prev}+{} commit {commit} announced {announced} flush {flush}",
            frame.entries.len()
        ),
        PeerMessage::Written {
            written, flushed, ..
        } => format!("written {written} flushed {flushed}"),
        other => other.name().to_owned(),
    }
}

/// Sends an answer.
pub fn answer<T: Serialize>(reply: ReplyTo, message: &T, body: Bytes) {
    if let Ok(frame) = Frame::new(message, body) {
        reply(frame);
    }
}
