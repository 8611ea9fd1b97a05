//! Requests from the wire: to the core of their brick, or to the control plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::admin::AdminRequest;
use mortar_protocol::env_real::mono_now;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Answer, Call, Request, Stage, StageAnswer};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BrickId, Mark, NodeId, Seq};
use mortar_protocol::log_gate::LogGate;
use mortar_protocol::node::{NodeReply, NodeRequest};
use mortar_protocol::peer::{PeerEnvelope, PeerFrame};
use mortar_protocol::transport::{Identity, Peer, ReplyTo, Service};
use mortar_protocol::view::VolumeState;
use mortar_protocol::watch::{Flight, Op, Watch};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;

use super::bricks::Bricks;
use crate::brick::Message;
use crate::control::machine::Volume;
use crate::control::store::Control;

/// A management request on its way to the control plane's thread.
pub struct AdminCall {
    /// Who asks.
    pub peer: Peer,
    /// What.
    pub request: AdminRequest,
    /// Takes the answer.
    pub reply: ReplyTo,
}

/// What another node asks, on its way to the control plane's thread.
pub struct NodeCall {
    /// Who asks.
    pub from: NodeId,
    /// What.
    pub request: NodeRequest,
    /// What is behind it.
    pub body: Bytes,
    /// Takes the answer.
    pub reply: ReplyTo,
}

/// What waits for the control plane's thread.
pub enum ControlCall {
    /// A management request.
    Admin(AdminCall),
    /// What another node asks.
    Node(NodeCall),
}

/// Requests that may wait for the control plane; more are not answered.
pub const CONTROL_QUEUE: usize = 4_096;

/// Serves a node's requests.
pub struct NodeService {
    bricks: Arc<Bricks>,
    control: Arc<Control>,
    calls: mpsc::Sender<ControlCall>,
    /// For lines that whoever asks can cause.
    gate: LogGate,
}

impl NodeService {
    /// A service over this node's bricks; what concerns the control plane goes to `calls`.
    pub fn new(
        bricks: Arc<Bricks>,
        control: Arc<Control>,
        calls: mpsc::Sender<ControlCall>,
    ) -> Self {
        Self {
            bricks,
            control,
            calls,
            gate: LogGate::default(),
        }
    }

    fn control(&self, call: ControlCall) {
        if self.calls.try_send(call).is_err()
            && let Some(more) = self.gate.pass()
        {
            tracing::warn!(more, "too many requests for the control plane at a time");
        }
    }

    fn node(&self, peer: &Peer, request: NodeRequest, body: Bytes, reply: ReplyTo) {
        let Identity::Node(from) = peer.identity else {
            if let Some(more) = self.gate.pass() {
                tracing::warn!(from = %peer.addr, more, "a client spoke as if it were a node");
            }
            return answer(reply, &refusal(Fault::Protocol), Bytes::new());
        };
        if !self.belongs(from) {
            let why = "the node that asks does not belong to the cluster any more".to_owned();
            return answer(reply, &NodeReply::Failed(why), Bytes::new());
        }
        self.control(ControlCall::Node(NodeCall {
            from,
            request,
            body,
            reply,
        }));
    }

    /// Whether a node that has shown its certificate has not been taken out since. A node that has just joined knows
    /// nobody yet.
    fn belongs(&self, node: NodeId) -> bool {
        let state = self.control.state();
        state.nodes.is_empty() || state.nodes.contains_key(&node)
    }

    /// What to say of a brick that is not open here: ask again if it will be, else ask elsewhere.
    fn absent(&self, brick: BrickId) -> Fault {
        let state = self.control.state();
        let serves = |volume: &Volume| volume.info.state == VolumeState::Started;
        match state.set_of(brick).and_then(|set| state.set(set)) {
            Some((volume, _)) if serves(volume) => Fault::NotServing,
            _ => Fault::UnknownBrick,
        }
    }

    fn fop(&self, uid: u32, call: Call, body: Bytes, reply: ReplyTo) {
        let Some((core, watch)) = self.bricks.place_of(call.brick) else {
            return answer(reply, &refusal(self.absent(call.brick)), Bytes::new());
        };
        let flight = InFlight::new(&watch, &call);
        let message = Message::Call {
            call: Box::new(call),
            body,
            uid,
            reply: Box::new(move |given, body| {
                flight.answered(&given);
                answer(reply, &given, body);
            }),
        };
        self.bricks.push(core, message);
    }

    fn stage(&self, uid: u32, stage: Stage, data: Bytes, reply: ReplyTo) {
        let mut by_core: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut results = Vec::new();
        for (place, brick) in stage.bricks.iter().enumerate() {
            if let Some(core) = self.bricks.core_of(*brick) {
                by_core.entry(core).or_default().push(place);
                results.push(Err(Fault::NotServing));
            } else {
                results.push(Err(self.absent(*brick)));
            }
        }
        let all = Arc::new(Gather {
            results: Mutex::new(results),
            reply: Mutex::new(Some(reply)),
        });
        for (core, places) in by_core {
            let bricks = places.iter().map(|place| stage.bricks[*place]).collect();
            let all = Arc::clone(&all);
            let message = Message::Stage {
                stage: Stage {
                    stage: stage.stage,
                    bricks,
                },
                data: data.clone(),
                uid,
                reply: Box::new(move |given| {
                    let mut results = all.results.lock();
                    for (place, result) in places.into_iter().zip(given.results) {
                        results[place] = result;
                    }
                }),
            };
            self.bricks.push(core, message);
        }
    }

    fn peer(&self, peer: &Peer, envelope: PeerEnvelope, body: Bytes, reply: ReplyTo) {
        match peer.identity {
            Identity::Node(node) if self.belongs(node) => {}
            Identity::Node(_) => return,
            Identity::Client { .. } => {
                return tracing::warn!(from = %peer.addr, "a client spoke as if it were a brick");
            }
        }
        match PeerFrame::decode(envelope, body) {
            Ok(frame) => {
                if let Some(core) = self.bricks.core_of(frame.envelope.to) {
                    self.bricks.push(core, Message::Peer(frame));
                }
                reply(Frame::default());
            }
            Err(error) => {
                tracing::warn!(from = %peer.addr, %error, "a node sent entries that cannot be read");
            }
        }
    }
}

/// A request that a brick has not answered.
struct InFlight(Arc<Flight>);

impl InFlight {
    fn new(watch: &Arc<Watch>, call: &Call) -> Self {
        let op = Op {
            kind: call.fop.kind(),
            inode: call.fop.inode().map_or(0, |id| id.0),
            asker: call.session.0,
            number: call.number,
            started: mono_now(),
        };
        let flight = watch.flight(op, None);
        watch.list(&flight);
        Self(flight)
    }

    fn answered(&self, answer: &Answer) {
        if matches!(
            answer.result,
            Err(Fault::Refused(_) | Fault::Corrupt | Fault::Lost(_))
        ) {
            self.0.mark_failed();
        }
        self.0.end(mono_now());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // The brick has gone away; one that was answered is not listed any more.
        self.0.leave();
    }
}

/// Puts the answers of several cores together; sends them when the last one has come (or been dropped).
struct Gather {
    results: Mutex<Vec<Result<(), Fault>>>,
    reply: Mutex<Option<ReplyTo>>,
}

impl Drop for Gather {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.get_mut().take() {
            let results = std::mem::take(self.results.get_mut());
            answer(reply, &StageAnswer { results }, Bytes::new());
        }
    }
}

fn refusal(fault: Fault) -> Answer {
    Answer {
        mark: Mark::default(),
        flushed: Seq::default(),
        result: Err(fault),
    }
}

/// Sends an answer; one that cannot be encoded is replaced by an error.
pub fn answer<T: Serialize>(reply: ReplyTo, message: &T, body: Bytes) {
    match Frame::new(message, body) {
        Ok(frame) => reply(frame),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be sent");
            if let Ok(frame) = Frame::new(&refusal(Fault::Protocol), Bytes::new()) {
                reply(frame);
            }
        }
    }
}

/// Sends an answer that may be longer than a head.
pub fn answer_of_any_length<T: Serialize>(reply: ReplyTo, message: &T) {
    match Frame::of_any_length(message) {
        Ok(frame) => reply(frame),
        Err(error) => tracing::error!(%error, "an answer cannot be sent"),
    }
}

impl Service for NodeService {
    fn serve(&self, peer: Peer, frame: Frame, reply: ReplyTo) {
        let body = frame.body.clone();
        let uid = match peer.identity {
            Identity::Client { uid } => uid,
            Identity::Node(_) => 0,
        };
        match frame.message::<Request>() {
            Ok(Request::Fop(call)) => self.fop(uid, call, body, reply),
            Ok(Request::Stage(stage)) => self.stage(uid, stage, body, reply),
            Ok(Request::Peer(envelope)) => self.peer(&peer, envelope, body, reply),
            Ok(Request::Admin(request)) => {
                self.control(ControlCall::Admin(AdminCall {
                    peer,
                    request,
                    reply,
                }));
            }
            Ok(Request::Node(request)) => self.node(&peer, request, body, reply),
            Err(error) => {
                if let Some(more) = self.gate.pass() {
                    tracing::warn!(from = %peer.addr, %error, more, "refused a request");
                }
                answer(reply, &refusal(Fault::Protocol), Bytes::new());
            }
        }
    }
}
