//! The simulated network: every message is encoded, and may be lost, late, repeated or cut off one way.
//!
//! What a transport over connections promises is kept: a request reaches its server at most once under one call. What
//! repeats are the copies that clients send again, and messages between servers, which may arrive any number of times.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::fop::{Answer, Fop, Reply, Request};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{Mark, NodeId, Seq};
use mortar_protocol::transport::mem::{decode, encode};
use mortar_protocol::transport::{Identity, Lost, Peer, ReplyTo, Transport};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::exec::{MICRO, MILLI, SECOND};
use super::rng::Rng;
use super::world::{Sabotage, World};

/// An end of the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A client.
    Client(u32),
    /// A brick process.
    Node(usize),
    /// The control plane.
    Control,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(number) => write!(f, "c{number}"),
            Self::Node(number) => write!(f, "n{number}"),
            Self::Control => f.write_str("ctl"),
        }
    }
}

/// How the network behaves, in cases of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Messages lost.
    pub loss: u64,
    /// Messages that arrive twice.
    pub twice: u64,
    /// Messages that are late by up to [`Self::late_by`].
    pub late: u64,
    /// Longest delay of a late message, in nanoseconds.
    pub late_by: u64,
    /// Calls whose connection breaks although the request is on its way.
    pub breaks: u64,
}

/// The network's state.
pub struct Net {
    rng: Rng,
    /// How it behaves now.
    pub weather: Weather,
    /// Directions in which nothing passes.
    pub cuts: BTreeSet<(Place, Place)>,
    /// Messages by what became of them.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Net {
    /// A calm network.
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            weather: Weather::default(),
            cuts: BTreeSet::new(),
            counts: BTreeMap::new(),
        }
    }

    fn delay(&mut self) -> u64 {
        let base = self.rng.range(20 * MICRO, 300 * MICRO);
        let weather = self.weather;
        if self.rng.permille(weather.late) {
            return base + self.rng.below(weather.late_by);
        }
        base
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// Takes a message where it arrives; once per copy.
pub type Deliver = Arc<dyn Fn(Bytes) + Send + Sync>;
/// Where the answer of a call goes; whoever takes the sender first answers.
type Waiter = Arc<Mutex<Option<oneshot::Sender<Result<Frame, Lost>>>>>;

fn give(answer: &Waiter, result: Result<Frame, Lost>) {
    let sender = answer.lock().take();
    if let Some(sender) = sender {
        // The caller may have given up.
        let _ = sender.send(result);
    }
}

impl World {
    /// Sends a message; false if it is lost. `repeats`: it may arrive twice.
    pub fn send(
        &self,
        (from, to): (Place, Place),
        what: &str,
        bytes: &Bytes,
        repeats: bool,
        deliver: &Deliver,
    ) -> bool {
        let crc = crc32fast::hash(bytes);
        let (fate, delays) = {
            let mut net = self.net.lock();
            let loss = net.weather.loss;
            if net.cuts.contains(&(from, to)) {
                net.count("cut");
                ("cut", Vec::new())
            } else if net.rng.permille(loss) {
                net.count("lost");
                ("lost", Vec::new())
            } else {
                let mut delays = vec![net.delay()];
                let twice = net.weather.twice;
                net.count("arrived");
                if repeats && net.rng.permille(twice) {
                    net.count("repeated");
                    delays.push(net.delay() * 3);
                }
                ("", delays)
            }
        };
        let spans: Vec<u64> = delays.iter().map(|delay| delay / MICRO).collect();
        self.exec.note(&format!(
            "{from}>{to} {what} {crc:08x}/{} {fate}{spans:?}",
            bytes.len()
        ));
        for delay in delays {
            let (bytes, deliver) = (bytes.clone(), Arc::clone(deliver));
            self.exec.after(delay, move || deliver(bytes));
        }
        fate.is_empty()
    }

    /// A request of a client is on its way, or not.
    fn request(self: &Arc<Self>, from: Place, node: usize, frame: &Frame, answer: Waiter) {
        let to = Place::Node(node);
        if !self.nodes[node].is_up() {
            let span = self.net.lock().rng.range(5 * MILLI, 50 * MILLI);
            self.exec.note(&format!("{from}>{to} nobody there"));
            self.exec
                .after(span, move || give(&answer, Err(Lost::NotSent)));
            return;
        }
        let frame = &self.spoilt(frame);
        let (what, repeats) = describe(frame);
        if self.sabotage == Some(Sabotage::SkipFlushes)
            && let Ok(Request::Fop(call)) = frame.message::<Request>()
            && matches!(call.fop, Fop::Sync { .. })
        {
            let done = Answer {
                mark: Mark::default(),
                flushed: Seq(0),
                result: Ok(Reply::Done),
            };
            let frame = Frame::new(&done, Bytes::new()).map_err(|_| Lost::Unknown);
            self.exec.after(MILLI, move || give(&answer, frame));
            return;
        }
        let (world, own) = (Arc::downgrade(self), Arc::clone(&answer));
        let deliver: Deliver = Arc::new(move |bytes| {
            let Some(world) = world.upgrade() else { return };
            let peer = Peer {
                identity: Identity::Client { uid: 0 },
                addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
                connection: 0,
            };
            let reply = world.reply((to, from), Arc::clone(&own));
            if let Ok(frame) = decode(&bytes) {
                world.serve(node, peer, frame, reply);
            }
        });
        let sent = self.send((from, to), &what, &encode(frame), repeats, &deliver);
        let span = {
            let mut net = self.net.lock();
            let breaks = net.weather.breaks;
            match sent {
                // Silence, or the connection is found to be dead.
                false if net.rng.permille(100) => Some(12 * SECOND),
                false => Some(net.rng.range(20 * MILLI, 800 * MILLI)),
                true if net.rng.permille(breaks) => Some(net.rng.range(MILLI, 100 * MILLI)),
                // Nothing waits for ever.
                true => Some(60 * SECOND),
            }
        };
        if let Some(span) = span {
            self.exec
                .after(span, move || give(&answer, Err(Lost::Unknown)));
        }
    }

    /// The request as a sabotaged cluster gets it.
    fn spoilt(&self, frame: &Frame) -> Frame {
        if self.sabotage == Some(Sabotage::RunRepeatsAgain)
            && let Ok(Request::Fop(mut call)) = frame.message::<Request>()
            && call.repeat
            && call.number > 0
        {
            call.number += 400;
            call.repeat = false;
            if let Ok(frame) = Frame::new(&Request::Fop(call), frame.body.clone()) {
                return frame;
            }
        }
        frame.clone()
    }

    /// Carries the answer of a call back; dropped unused, it tells the caller that there will be none.
    fn reply(self: &Arc<Self>, way: (Place, Place), answer: Waiter) -> ReplyTo {
        let mut back = Back {
            world: Arc::downgrade(self),
            way,
            answer: Some(answer),
        };
        Box::new(move |frame| back.send(Some(&frame)))
    }
}

struct Back {
    world: std::sync::Weak<World>,
    way: (Place, Place),
    answer: Option<Waiter>,
}

impl Back {
    fn send(&mut self, frame: Option<&Frame>) {
        let (Some(world), Some(answer)) = (self.world.upgrade(), self.answer.take()) else {
            return;
        };
        match frame {
            Some(frame) => {
                let deliver: Deliver =
                    Arc::new(move |bytes| give(&answer, decode(&bytes).map_err(|_| Lost::Unknown)));
                world.send(self.way, &answered(frame), &encode(frame), true, &deliver);
            }
            None => {
                let deliver: Deliver = Arc::new(move |_| give(&answer, Err(Lost::Unknown)));
                world.send(self.way, "reset", &Bytes::new(), true, &deliver);
            }
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.send(None);
    }
}

/// What an answer is: a fault is named.
fn answered(frame: &Frame) -> String {
    match frame.message::<Answer>().map(|answer| answer.result) {
        Ok(Err(fault)) => {
            let debug = format!("{fault:?}");
            let name = debug.split(['{', ' ']).next().unwrap_or_default();
            format!("answer {}", name.trim_end_matches("(View"))
        }
        _ => "answer".to_owned(),
    }
}

/// What a request is, and whether two copies of it may arrive: of a numbered request only the marked ones.
fn describe(frame: &Frame) -> (String, bool) {
    match frame.message::<Request>() {
        Ok(Request::Fop(call)) => {
            let repeats = call.repeat || call.number == 0;
            let mark = if call.repeat { "!" } else { "" };
            let debug = format!("{:?}", call.fop);
            let name = debug.split([' ', '(', '{']).next().unwrap_or_default();
            let text = format!("{name} {}#{}{mark}", call.session, call.number);
            (text, repeats)
        }
        Ok(Request::Stage(stage)) => (format!("Stage {:?}", stage.stage.number), true),
        Ok(Request::Admin(_)) => ("Admin".to_owned(), false),
        Ok(Request::Peer(_)) => ("Peer".to_owned(), true),
        Ok(Request::Node(_)) => ("Node".to_owned(), false),
        Err(_) => ("?".to_owned(), false),
    }
}

/// A client's end.
pub struct ClientEnd {
    world: Arc<World>,
    place: Place,
}

impl ClientEnd {
    /// For a client.
    pub fn new(world: Arc<World>, number: u32) -> Arc<Self> {
        Arc::new(Self {
            world,
            place: Place::Client(number),
        })
    }
}

impl Transport for ClientEnd {
    fn call(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: Frame,
    ) -> BoxFuture<'static, Result<Frame, Lost>> {
        let (world, from) = (Arc::clone(&self.world), self.place);
        let addr = addrs.first().copied();
        Box::pin(async move {
            let Some(node) = world.node_at(node, addr) else {
                return Err(Lost::NotSent);
            };
            let (sender, answered) = oneshot::channel();
            let answer = Arc::new(Mutex::new(Some(sender)));
            world.request(from, node, &frame, answer);
            answered.await.unwrap_or(Err(Lost::Unknown))
        })
    }
}
