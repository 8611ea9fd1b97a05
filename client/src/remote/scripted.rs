//! Tests' servers: a [`Transport`] whose answers a closure makes up, on virtual time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::attr::Time;
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Answer, Call, Reply, Request, Stage, StageAnswer};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{
    BrickId, Epoch, Mark, NodeId, Opening, RunId, Seq, SessionId, SetId, SetIndex, VolumeId,
};
use mortar_protocol::placement::Layout;
use mortar_protocol::transport::{Lost, Transport};
use mortar_protocol::view::{BrickInfo, Member, SetKind, View, VolumeInfo, VolumeState};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Virtual time: that of tokio's paused clock.
pub(crate) struct TestEnv {
    start: Instant,
    random: AtomicU64,
}

impl TestEnv {
    pub(crate) fn start() -> Arc<dyn Env> {
        Arc::new(Self {
            start: Instant::now(),
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
        })
    }
}

impl Env for TestEnv {
    fn now(&self) -> Mono {
        Mono(self.start.elapsed().as_nanos() as u64 + 1_000_000_000)
    }

    fn wall(&self) -> Time {
        let now = self.now().0;
        Time {
            secs: 1_700_000_000 + (now / 1_000_000_000) as i64,
            nanos: (now % 1_000_000_000) as u32,
        }
    }

    fn random(&self) -> u64 {
        let step = 0xd134_2543_de82_ef95;
        let drawn = self.random.fetch_add(step, Ordering::Relaxed);
        (drawn ^ (drawn >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(span))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}

/// What becomes of a request.
pub(crate) enum Act {
    /// It is answered.
    Reply(Reply),
    /// It is answered with a fault.
    Fault(Fault),
    /// It is lost in this way.
    Lost(Lost),
    /// It is answered after a while.
    Late(Duration, Reply),
    /// It is never answered.
    Hang,
}

type Script = Box<dyn FnMut(&Call, &Bytes) -> Act + Send>;

/// One node with one replicate set of three bricks (or several sets), and the control plane.
pub(crate) struct Scripted {
    script: Mutex<Script>,
    pub(crate) sets: u32,
    pub(crate) views: Mutex<Vec<View>>,
    sessions: AtomicU64,
    version: AtomicU64,
    pub(crate) mark: Mutex<(Mark, Seq)>,
    pub(crate) stages: Mutex<Vec<(NodeId, Stage, usize)>>,
    /// Answers to stages.
    pub(crate) stage_result: Mutex<Result<(), Fault>>,
    /// Identity and state of the volume; none: there is no such.
    pub(crate) record: Mutex<Option<(VolumeId, VolumeState)>>,
    /// Nothing is answered, not even by the control plane.
    pub(crate) dark: Mutex<bool>,
    /// This node opens no sessions.
    pub(crate) refuses: Mutex<Option<NodeId>>,
    /// Where all nodes are, and nowhere else.
    pub(crate) moved: Mutex<Option<SocketAddr>>,
}

/// A view of set `index` with its bricks on nodes 1, 1 and 2.
pub(crate) fn view(index: u32, epoch: u64, primary: u128) -> View {
    let base = u128::from(index) * 10;
    let member = |brick: u128, node| Member {
        brick: BrickId(base + brick),
        node: NodeId(node),
        run: RunId(1),
        keeps_data: true,
    };
    View {
        set: SetId {
            volume: VolumeId(7),
            index: SetIndex(index),
        },
        epoch: Epoch(epoch),
        primary: BrickId(base + primary),
        members: vec![member(1, 1), member(2, 1), member(3, 2)],
        absent: Vec::new(),
        opening: Opening(0),
        effective: true,
    }
}

impl Scripted {
    pub(crate) fn new(
        sets: u32,
        script: impl FnMut(&Call, &Bytes) -> Act + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(Box::new(script)),
            sets,
            views: Mutex::new((0..sets).map(|index| view(index, 1, 1)).collect()),
            sessions: AtomicU64::new(100),
            version: AtomicU64::new(1),
            mark: Mutex::default(),
            stages: Mutex::default(),
            stage_result: Mutex::new(Ok(())),
            record: Mutex::new(Some((VolumeId(7), VolumeState::Started))),
            dark: Mutex::new(false),
            refuses: Mutex::default(),
            moved: Mutex::default(),
        })
    }

    fn volume(&self, id: VolumeId, state: VolumeState) -> VolumeInfo {
        let brick = |set: u32, brick: u128| BrickInfo {
            id: BrickId(u128::from(set) * 10 + brick),
            node: NodeId(1),
            host: "host".to_owned(),
            path: "/brick".to_owned(),
        };
        VolumeInfo {
            id,
            name: "vol".to_owned(),
            kind: SetKind::Replicate { copies: 3 },
            state,
            layout: Layout::even(self.sets),
            sets: (0..self.sets)
                .map(|set| (1..4).map(|number| brick(set, number)).collect())
                .collect(),
            options: Default::default(),
            shard_size: 1 << 20,
            version: 1,
        }
    }

    fn admin(&self, request: &AdminRequest) -> Option<AdminReply> {
        let Some((id, state)) = *self.record.lock() else {
            let message = "Volume vol does not exist".to_owned();
            return Some(AdminReply::Refused { message });
        };
        if state != VolumeState::Started && matches!(request, AdminRequest::OpenSession { .. }) {
            let message = "Volume vol is not started".to_owned();
            return Some(AdminReply::Refused { message });
        }
        match request {
            AdminRequest::Layout { newer_than, .. } => {
                let version = self
                    .version
                    .fetch_add(u64::from(*newer_than == 0), Ordering::Relaxed);
                // A long poll never ends here: views are looked up when they are needed.
                (*newer_than == 0).then(|| AdminReply::Layout {
                    volume: self.volume(id, state),
                    views: self.views.lock().iter().cloned().map(Some).collect(),
                    nodes: [1, 2]
                        .map(|node| {
                            let first = SocketAddr::from(([127, 0, 0, 1], node as u16));
                            (NodeId(node), vec![self.moved.lock().unwrap_or(first)])
                        })
                        .to_vec(),
                    version: version + 1,
                })
            }
            AdminRequest::OpenSession { .. } => Some(AdminReply::Session(SessionId(
                self.sessions.fetch_add(1, Ordering::Relaxed),
            ))),
            _ => None,
        }
    }
}

impl Transport for Scripted {
    fn call(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: Frame,
    ) -> BoxFuture<'static, Result<Frame, Lost>> {
        let request: Request = frame.message().expect("a request");
        let reply = |frame: Frame| -> BoxFuture<'static, _> { Box::pin(async { Ok(frame) }) };
        let hang = || -> BoxFuture<'static, _> { Box::pin(std::future::pending()) };
        let moved = *self.moved.lock();
        if *self.dark.lock() || moved.is_some_and(|at| !addrs.contains(&at)) {
            return hang();
        }
        match request {
            Request::Admin(AdminRequest::OpenSession { .. })
                if *self.refuses.lock() == Some(node) =>
            {
                let message = "no space left".to_owned();
                let refused = AdminReply::Refused { message };
                reply(Frame::new(&refused, Bytes::new()).expect("a frame"))
            }
            Request::Admin(request) => match self.admin(&request) {
                Some(answer) => reply(Frame::new(&answer, Bytes::new()).expect("a frame")),
                None => hang(),
            },
            Request::Stage(stage) => {
                let results = vec![self.stage_result.lock().clone(); stage.bricks.len()];
                self.stages.lock().push((node, stage, frame.body.len()));
                reply(Frame::new(&StageAnswer { results }, Bytes::new()).expect("a frame"))
            }
            Request::Fop(call) => {
                let mut late = Duration::ZERO;
                let result = match (self.script.lock())(&call, &frame.body) {
                    Act::Reply(reply) => Ok(reply),
                    Act::Late(span, reply) => {
                        late = span;
                        Ok(reply)
                    }
                    Act::Fault(fault) => Err(fault),
                    Act::Lost(lost) => return Box::pin(async move { Err(lost) }),
                    Act::Hang => return hang(),
                };
                let (mark, flushed) = *self.mark.lock();
                let answer = Answer {
                    mark,
                    flushed,
                    result,
                };
                let frame = Frame::new(&answer, Bytes::new()).expect("a frame");
                if late.is_zero() {
                    return reply(frame);
                }
                Box::pin(async move {
                    tokio::time::sleep(late).await;
                    Ok(frame)
                })
            }
            Request::Peer(_) | Request::Node(_) => hang(),
        }
    }
}
