//! The control plane: the real state machine and the real leader, fed with the bricks' reports.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::env::Mono;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BrickId, NodeId, SessionId};
use mortar_protocol::report::{BrickEvent, FromBrick, ToBrick};
use mortar_protocol::transport::mem::{decode, encode};
use mortar_protocol::transport::{Peer, ReplyTo};
use mortar_server::control::admin::layout_of;
use mortar_server::control::leader::{Leader, Orders};
use mortar_server::control::machine::{Command, Outcome};
use mortar_server::control::store::{Control, ControlError};
use parking_lot::Mutex;

use super::exec::{MILLI, SECOND};
use super::net::{Deliver, Place};
use super::node::answer;
use super::world::{VOLUME, World};

/// The leader looks at the time this often.
const TICK: u64 = 200 * MILLI;
/// How long a question for a newer layout stays open.
const LAYOUT_WAIT: u64 = 10 * SECOND;

#[derive(Default)]
struct Outgoing(Mutex<Vec<(BrickId, ToBrick)>>);

impl Orders for Outgoing {
    fn order(&self, (_, brick): (NodeId, BrickId), order: ToBrick) {
        self.0.lock().push((brick, order));
    }
}

/// A client that waits for a newer layout.
struct Waiting {
    number: u64,
    newer_than: u64,
    peer: Peer,
    reply: ReplyTo,
}

/// The control plane's process.
pub struct ControlPlane {
    /// Its durable state.
    pub state: Arc<Control>,
    leader: Mutex<Option<Leader>>,
    outgoing: Arc<Outgoing>,
    waiting: Mutex<Vec<Waiting>>,
    told: Mutex<u64>,
}

impl ControlPlane {
    /// Over a state machine.
    pub fn new(state: Control) -> Self {
        Self {
            state: Arc::new(state),
            leader: Mutex::new(None),
            outgoing: Arc::default(),
            waiting: Mutex::default(),
            told: Mutex::new(0),
        }
    }

    /// Makes a command durable. Nothing here ever waits.
    pub fn propose(&self, command: Command) -> Result<Outcome, String> {
        let done = self.state.propose(command).now_or_never();
        let done = done.ok_or("the control plane waits for itself")?;
        done.map_err(|error| error.to_string())
    }
}

impl World {
    /// Starts (again) to lead: what bricks have said is forgotten.
    pub fn lead(self: &Arc<Self>) {
        let control = &self.control;
        let orders = Arc::clone(&control.outgoing);
        *control.leader.lock() = Some(Leader::new(Arc::clone(&control.state), orders as _));
        self.exec.note("leader starts");
    }

    /// Ends leading: views do not change any more.
    pub fn stop_leading(&self) {
        *self.control.leader.lock() = None;
    }

    /// Lets the leader look at the time, again and again.
    pub fn tick_leader(self: &Arc<Self>) {
        let world = Arc::downgrade(self);
        self.exec.after(TICK, move || {
            if let Some(world) = world.upgrade() {
                world.with_leader(|leader, now| leader.tick(now).now_or_never());
                world.tick_leader();
            }
        });
    }

    fn with_leader(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Leader, Mono) -> Option<Result<(), ControlError>>,
    ) {
        let now = Mono(self.exec.now());
        let done = {
            let mut leader = self.control.leader.lock();
            leader.as_mut().map(|leader| act(leader, now))
        };
        match done {
            Some(Some(Err(error))) => self.fail(format!("the control plane: {error}")),
            Some(None) => self.fail("the leader waits for something".to_owned()),
            _ => {}
        }
        self.control_changed();
    }

    /// Follows up a change of the control plane's state: orders go out, waiting clients are answered.
    fn control_changed(self: &Arc<Self>) {
        let applied = self.control.state.state().applied;
        if std::mem::replace(&mut *self.control.told.lock(), applied) != applied
            && let Some(leader) = self.control.leader.lock().as_mut()
        {
            leader.changed();
        }
        let orders = std::mem::take(&mut *self.control.outgoing.0.lock());
        for (brick, order) in orders {
            if let ToBrick::View(view) = &order {
                self.saw_view(view.members.len());
            }
            self.send_order(brick, &order);
        }
        let state = self.control.state.state();
        let Some(volume) = state.volume(VOLUME) else {
            return;
        };
        let ready: Vec<Waiting> = {
            let mut waiting = self.control.waiting.lock();
            let (ready, rest) = waiting
                .drain(..)
                .partition(|waiting| volume.changed > waiting.newer_than);
            *waiting = rest;
            ready
        };
        for waiting in ready {
            let layout = layout_of(&state, volume, waiting.peer.addr);
            answer(waiting.reply, &layout, Bytes::new());
        }
    }

    /// Sends a brick's report to the control plane.
    pub fn send_report(self: &Arc<Self>, from: usize, report: &FromBrick) {
        let debug = format!("{:?}", report.event);
        let what = debug.split([' ', '(', '{']).next().unwrap_or_default();
        let what = match &report.event {
            BrickEvent::Poisoned { reason } => format!("report {} {reason}", report.brick.0),
            _ => format!("report {} {what}", report.brick.0),
        };
        let Ok(frame) = Frame::new(report, Bytes::new()) else {
            return self.fail(format!("{what} cannot be encoded"));
        };
        let world = Arc::downgrade(self);
        let deliver: Deliver = Arc::new(move |bytes| {
            let Some(world) = world.upgrade() else { return };
            match decode(&bytes).and_then(|frame| frame.message::<FromBrick>()) {
                Ok(report) => {
                    if matches!(report.event, BrickEvent::Stopped) {
                        world.stopped.lock().insert(report.brick);
                    }
                    world.with_leader(|leader, now| {
                        leader.reports(vec![report], now).now_or_never()
                    });
                }
                Err(error) => world.fail(format!("a report cannot be read: {error}")),
            }
        });
        let way = (Place::Node(from), Place::Control);
        self.send(way, &what, &encode(&frame), true, &deliver);
    }

    /// Answers a management request.
    pub fn admin(self: &Arc<Self>, peer: &Peer, request: AdminRequest, reply: ReplyTo) {
        let state = self.control.state.state();
        let given = match request {
            AdminRequest::Layout { newer_than, .. } => match state.volume(VOLUME) {
                Some(volume) if volume.changed > newer_than => layout_of(&state, volume, peer.addr),
                _ => return self.wait_for_layout(newer_than, peer.clone(), reply),
            },
            AdminRequest::OpenSession { volume } => match self.open_session(&volume) {
                Ok(session) => AdminReply::Session(session),
                Err(message) => AdminReply::Refused { message },
            },
            other => AdminReply::Refused {
                message: format!("not simulated: {other:?}"),
            },
        };
        answer(reply, &given, Bytes::new());
        self.control_changed();
    }

    fn open_session(&self, name: &str) -> Result<SessionId, String> {
        let state = self.control.state.state();
        let volume = state.volume(name).ok_or("no such volume")?.info.id;
        let node = *state.nodes.keys().next().ok_or("no node")?;
        let told = self.control.propose(Command::SetAside { node, count: 1 });
        told.map_err(|error| error.to_string())?;
        let state = self.control.state.state();
        let aside = state.set_aside.get(&node).and_then(|own| own.first());
        let session = *aside.ok_or("no number was set aside")?;
        let told = self.control.propose(Command::OpenSession {
            node,
            session,
            volume,
            uid: 0,
        });
        match told {
            Ok(Outcome::Done) => Ok(session),
            other => Err(format!("{other:?}")),
        }
    }

    fn wait_for_layout(self: &Arc<Self>, newer_than: u64, peer: Peer, reply: ReplyTo) {
        let number = self.exec.stamp();
        self.control.waiting.lock().push(Waiting {
            number,
            newer_than,
            peer,
            reply,
        });
        let world = Arc::downgrade(self);
        self.exec.after(LAYOUT_WAIT, move || {
            let Some(world) = world.upgrade() else { return };
            let late = {
                let mut waiting = world.control.waiting.lock();
                let at = waiting.iter().position(|waiting| waiting.number == number);
                at.map(|at| waiting.remove(at))
            };
            let state = world.control.state.state();
            if let (Some(late), Some(volume)) = (late, state.volume(VOLUME)) {
                let layout = layout_of(&state, volume, late.peer.addr);
                answer(late.reply, &layout, Bytes::new());
            }
        });
    }
}
