//! A plain brick on a simulated disk: the real store, rules and set log behind the real core, with the real decisions
//! on views, driven by hand in simulated time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::{Cred, Time};
use mortar_protocol::env::Mono;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Answer, Call, Fop, Reply, Stage, StageAnswer};
use mortar_protocol::ids::{
    BootId, BrickId, ClusterId, Epoch, NodeId, Opening, RunId, SessionId, SetId, SetIndex, StageId,
    VolumeId,
};
use mortar_protocol::limits::SHARD_SIZE;
use mortar_protocol::peer::PeerFrame;
use mortar_protocol::placement::Layout;
use mortar_protocol::report::{BrickEvent, FromBrick, SetShape, ToBrick};
use mortar_protocol::view::SetKind;
use mortar_server::brick::{
    BrickConfig, Completions, Core, Message, Namespace, Outbox, PendingBudget,
};
use mortar_server::control::machine::SetViews;
use mortar_server::control::views::{Configured, Scene, Seen};
use mortar_server::device::Device;
use mortar_server::device::sim::{SimDisk, Survival};
use mortar_server::store::{FormatError, FormatParams, OpenError, Store};
use mortar_server::superblock::MIN_SIZE;
use parking_lot::Mutex;

const BRICK: BrickId = BrickId(1);
const NODE: NodeId = NodeId(1);
/// The set that the brick is all of.
pub const SET: SetId = SetId {
    volume: VolumeId(1),
    index: SetIndex(0),
};
/// No brick comes to rest later than after so many rounds.
const ROUNDS: usize = 1_000;

type Slot<T> = Arc<Mutex<Option<T>>>;

#[derive(Default)]
struct Out(Vec<FromBrick>);

impl Outbox for Out {
    fn send_peer(&mut self, _frame: PeerFrame) {}

    fn report(&mut self, report: FromBrick) {
        self.0.push(report);
    }
}

/// What a set of one plain brick is told of its volume.
pub fn shape() -> SetShape {
    SetShape {
        index: SetIndex(0),
        kind: SetKind::Plain,
        layout: Layout::even(1),
        shard_size: SHARD_SIZE,
        durable: false,
        session_timeout_ms: 20_000,
        open_wait_ms: 10_000,
        read_only: false,
        reserve_percent: 0,
    }
}

/// A new brick of the smallest size on a simulated disk.
///
/// # Errors
/// If it cannot be formatted.
pub fn format(seed: u64) -> Result<Arc<SimDisk>, FormatError> {
    let disk = SimDisk::new(MIN_SIZE, seed);
    let device: Arc<dyn Device> = disk.clone();
    let params = FormatParams {
        cluster: ClusterId(1),
        generation: 1,
        node: NODE,
        brick: BRICK,
        set: SET,
        volume_name: "volume".to_owned(),
        kind: SetKind::Plain,
        shard_size: SHARD_SIZE,
        force: false,
    };
    Store::format(&device, &params)?;
    Ok(disk)
}

/// What outlives a run of the brick beside its disk: the decisions of the control plane, and how often what began.
#[derive(Clone, Default)]
pub struct Past {
    views: SetViews,
    /// Starts of the machine.
    boots: u64,
    /// Starts of the process.
    runs: u64,
}

impl Past {
    /// After a crash, of the process alone or of the machine.
    #[must_use]
    pub fn restarted(mut self, survival: Survival) -> Self {
        self.boots += u64::from(survival != Survival::Process);
        self.runs += 1;
        self
    }
}

/// A change as it was sent, so that it can be sent again.
#[derive(Clone, Debug)]
pub struct Sent {
    call: Call,
    body: Bytes,
    stage: Option<(StageId, Bytes)>,
}

/// A brick that runs.
pub struct Rig {
    core: Core,
    /// Its disk.
    pub disk: Arc<SimDisk>,
    past: Past,
    /// The control plane's views, with the number of disk steps done when they were decided.
    decided: Vec<(u64, SetViews)>,
    seen: Seen,
    session: SessionId,
    live: Vec<SessionId>,
    now: Mono,
    number: u64,
    staged: Option<(StageId, Bytes)>,
    sent: Option<Sent>,
}

impl Rig {
    /// Opens the brick on a disk: recovery. Of the sessions that began, those of `live` are alive; `session` asks. The
    /// brick may have failed on its way to serve.
    ///
    /// # Errors
    /// If it is refused.
    pub fn open(
        disk: Arc<SimDisk>,
        past: Past,
        session: SessionId,
        live: &[SessionId],
    ) -> Result<Self, OpenError> {
        let device: Arc<dyn Device> = disk.clone();
        let config = BrickConfig {
            brick: BRICK,
            set: SET,
            node: NODE,
            boot: BootId(u128::from(past.boots) + 1),
            run: RunId(u128::from(past.runs) + 1),
            storage: Box::new(Store::open(device)?),
            gauge: Default::default(),
        };
        let completions = Completions::new(Box::new(|| {}));
        let mut core = Core::new(
            Arc::new(Namespace::new()),
            completions,
            PendingBudget::new(),
        );
        core.push(Message::Open(Box::new(config)));
        let mut rig = Self {
            core,
            disk,
            decided: vec![(0, past.views.clone())],
            past,
            seen: Seen::default(),
            session,
            live: live.to_vec(),
            now: Mono(1),
            number: 0,
            staged: None,
            sent: None,
        };
        rig.settle();
        Ok(rig)
    }

    /// Whether the brick leads its set, so that it can be asked.
    pub fn serves(&self) -> bool {
        let view = self.past.views.current.as_ref();
        view.is_some_and(|view| view.effective)
    }

    /// What the control plane knew when this step of the disk began.
    pub fn past_at(&self, step: u64) -> Past {
        let before = self.decided.iter().rev().find(|(done, _)| *done < step);
        Past {
            views: before.map_or_else(SetViews::default, |(_, views)| views.clone()),
            ..self.past.clone()
        }
    }

    fn order(&mut self, order: ToBrick) {
        self.core.push(Message::Order {
            brick: BRICK,
            order,
        });
    }

    /// Runs until nothing is under way.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let mut out = Out::default();
            let mut busy = self.core.run(self.now, Time::default(), &mut out);
            busy |= !out.0.is_empty();
            out.0.iter().for_each(|report| self.control(report));
            if !(busy | self.decide()) {
                return;
            }
        }
        panic!("the brick does not come to rest");
    }

    /// What the control plane does with a report.
    fn control(&mut self, report: &FromBrick) {
        if let BrickEvent::Started { .. } = &report.event {
            self.order(ToBrick::Shape(shape()));
            let live = self.live.clone();
            let below = SessionId(live.iter().map(|id| id.0).max().unwrap_or(0) + 1);
            self.order(ToBrick::Sessions { below, live });
            if let Some(view) = self.past.views.current.clone() {
                self.order(ToBrick::View(view));
            }
        }
        self.seen.report(report);
    }

    fn decide(&mut self) -> bool {
        let bricks = [Configured {
            brick: BRICK,
            node: NODE,
            keeps_data: true,
        }];
        let scene = Scene {
            set: SET,
            bricks: &bricks,
            views: &self.past.views,
            open_wait: Duration::from_secs(10),
        };
        let Some(view) = scene.decide(&mut self.seen, self.now) else {
            return false;
        };
        if view.effective {
            self.past.views.effective = Some(view.clone());
        }
        self.past.views.current = Some(view.clone());
        let steps = self.disk.steps();
        self.decided.push((steps, self.past.views.clone()));
        self.order(ToBrick::View(view));
        true
    }

    /// Lets time pass in steps.
    pub fn pass(&mut self, steps: u32, step: Duration) {
        for _ in 0..steps {
            self.now = self.now.after(step);
            self.settle();
        }
    }

    /// Lets enough time pass for what was written to be flushed and applied to the tree.
    pub fn pass_until_applied(&mut self) {
        self.pass(13, Duration::from_millis(100));
    }

    /// Lets enough time pass for a checkpoint, once something is applied.
    pub fn pass_until_checkpoint(&mut self) {
        self.pass(1, Duration::from_secs(31));
        self.pass(2, Duration::from_millis(100));
    }

    /// From now on another session asks.
    pub fn become_session(&mut self, session: SessionId) {
        self.session = session;
        self.number = 0;
    }

    /// Opening number of the set.
    pub fn opening(&self) -> Opening {
        let view = self.past.views.current.as_ref();
        view.map_or(Opening(0), |view| view.opening)
    }

    fn call_of(&mut self, fop: Fop, durable: bool) -> Call {
        let numbered = !fop.is_read() && !matches!(fop, Fop::SessionBegin | Fop::SessionEnd);
        self.number += u64::from(numbered);
        let view = self.past.views.current.as_ref();
        Call {
            brick: BRICK,
            epoch: view.map_or(Epoch(0), |view| view.epoch),
            session: self.session,
            number: if numbered { self.number } else { 0 },
            answered_below: 1,
            repeat: false,
            after: 0,
            cred: Cred::default(),
            durable,
            fop,
        }
    }

    /// Asks the brick; `None` if it does not answer (its machine has ended).
    pub fn ask(&mut self, fop: Fop, body: Bytes, durable: bool) -> Option<(Answer, Bytes)> {
        let call = self.call_of(fop, durable);
        if call.number > 0 {
            self.sent = Some(Sent {
                call: call.clone(),
                body: body.clone(),
                stage: self.staged.take(),
            });
        }
        self.send(call, body)
    }

    /// The last change that was sent.
    pub fn sent(&mut self) -> Option<Sent> {
        self.sent.take()
    }

    /// Sends a change again, as a client does that got no answer; with its bulk data, if `afresh`.
    pub fn repeat(&mut self, sent: &Sent, afresh: bool) -> Option<Answer> {
        if let Some((stage, data)) = sent.stage.clone().filter(|_| afresh) {
            self.send_stage(stage, data).ok()?;
        }
        let view = self.past.views.current.as_ref();
        let call = Call {
            epoch: view.map_or(Epoch(0), |view| view.epoch),
            repeat: true,
            ..sent.call.clone()
        };
        self.send(call, sent.body.clone()).map(|(answer, _)| answer)
    }

    fn send(&mut self, call: Call, body: Bytes) -> Option<(Answer, Bytes)> {
        let slot = Slot::default();
        let filled = Arc::clone(&slot);
        self.core.push(Message::Call {
            call: Box::new(call),
            body,
            uid: 0,
            reply: Box::new(move |answer, body| *filled.lock() = Some((answer, body))),
        });
        self.settle();
        slot.lock().take()
    }

    /// Asks for a read or a change without bytes.
    ///
    /// # Errors
    /// The brick's fault; [`Fault::NotServing`] if it does not answer.
    pub fn get(&mut self, fop: Fop) -> Result<(Reply, Bytes), Fault> {
        let (answer, body) = self
            .ask(fop, Bytes::new(), false)
            .ok_or(Fault::NotServing)?;
        answer.result.map(|reply| (reply, body))
    }

    /// Sends bulk data.
    ///
    /// # Errors
    /// The brick's fault; [`Fault::NotServing`] if it does not answer.
    pub fn stage(&mut self, data: Bytes) -> Result<StageId, Fault> {
        self.number += 1; // any number not used yet
        let stage = StageId {
            session: self.session,
            number: self.number,
        };
        self.staged = Some((stage, data.clone()));
        self.send_stage(stage, data).map(|()| stage)
    }

    fn send_stage(&mut self, stage: StageId, data: Bytes) -> Result<(), Fault> {
        let slot: Slot<StageAnswer> = Slot::default();
        let filled = Arc::clone(&slot);
        self.core.push(Message::Stage {
            stage: Stage {
                stage,
                bricks: vec![BRICK],
            },
            data,
            uid: 0,
            reply: Box::new(move |answer| *filled.lock() = Some(answer)),
        });
        self.settle();
        let answer = slot.lock().take().ok_or(Fault::NotServing)?;
        answer
            .results
            .into_iter()
            .next()
            .unwrap_or(Err(Fault::NotServing))
    }
}
