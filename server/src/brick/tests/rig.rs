//! One core of real bricks on simulated disks, with the real decisions on views, driven by hand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::{Cred, FileKind, Time};
use mortar_protocol::env::Mono;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{
    Answer, Call, Change, Cut, Fop, InodeOp, Part, Reply, Stage, StageAnswer,
};
use mortar_protocol::ids::{
    BootId, BrickId, ClusterId, Gfid, InodeId, Mark, NodeId, Opening, RunId, SessionId, SetId,
    SetIndex, StageId, VolumeId,
};
use mortar_protocol::limits::SHARD_SIZE;
use mortar_protocol::peer::{PeerFrame, PeerMessage};
use mortar_protocol::placement::Layout;
use mortar_protocol::report::{FromBrick, SetShape, ToBrick};
use mortar_protocol::view::{SetKind, View};
use parking_lot::Mutex;

use super::super::{
    BrickConfig, BrickState, Completions, Core, Message, Namespace, Outbox, PendingBudget,
};
use crate::control::machine::SetViews;
use crate::control::views::{Configured, Scene, Seen};
use crate::device::Device;
use crate::device::sim::{SimDisk, Survival};
use crate::store::{FormatParams, Store};

const SET: SetId = SetId {
    volume: VolumeId(1),
    index: SetIndex(0),
};
pub(super) const SESSION: SessionId = SessionId(1);
/// The file that [`Rig::create`] makes.
pub(super) const FILE: Gfid = Gfid {
    id: InodeId(0x1234_0000_0000_0001),
    generation: 5,
};

/// Where an answer arrives.
pub(super) type Slot = Arc<Mutex<Option<(Answer, Bytes)>>>;

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

/// A set, each brick in a core of its own: messages between them pass here, in order.
pub(super) struct Rig {
    cores: Vec<Core>,
    budget: Arc<PendingBudget>,
    pub(super) disks: Vec<Arc<SimDisk>>,
    boots: Vec<u128>,
    runs: u128,
    kind: SetKind,
    views: SetViews,
    seen: Seen,
    pub(super) live: Vec<SessionId>,
    now: Mono,
    number: u64,
    /// Sessions that bricks reported as silent or ended.
    pub(super) gone: Vec<SessionId>,
    /// Messages of these kinds are lost.
    pub(super) lose: Vec<&'static str>,
    /// How many messages of each kind passed.
    pub(super) passed: Vec<&'static str>,
    /// Bricks whose disks complete nothing.
    hung: BTreeSet<usize>,
    /// The control plane decides on no view: it stops too.
    resting: bool,
    /// Bricks that said that they have stopped.
    pub(super) stopped: BTreeSet<BrickId>,
    /// Bricks that are left out for good: their primary said that they cannot follow.
    pub(super) cannot_follow: BTreeSet<BrickId>,
}

pub(super) fn brick(at: usize) -> BrickId {
    BrickId(at as u128 + 1)
}

impl Rig {
    pub(super) fn new(bricks: usize) -> Self {
        Self::sharing(bricks, PendingBudget::new())
    }

    /// A set in a daemon that has others too.
    pub(super) fn sharing(bricks: usize, budget: Arc<PendingBudget>) -> Self {
        let kind = match bricks {
            1 => SetKind::Plain,
            copies => SetKind::Replicate {
                copies: copies as u16,
            },
        };
        let disks = (0..bricks)
            .map(|at| {
                let disk = SimDisk::new(256 << 20, at as u64 + 1);
                let device: Arc<dyn Device> = disk.clone();
                let params = FormatParams {
                    cluster: ClusterId(1),
                    generation: 1,
                    node: NodeId(1),
                    brick: brick(at),
                    set: SET,
                    volume_name: "v".to_owned(),
                    kind,
                    shard_size: SHARD_SIZE,
                    force: false,
                };
                Store::format(&device, &params).expect("format");
                disk
            })
            .collect();
        let mut rig = Self {
            cores: Vec::new(),
            budget,
            disks,
            boots: vec![1; bricks],
            runs: 0,
            kind,
            views: SetViews::default(),
            seen: Seen::default(),
            live: vec![SESSION],
            now: Mono(1),
            number: 0,
            gone: Vec::new(),
            lose: Vec::new(),
            passed: Vec::new(),
            hung: BTreeSet::new(),
            resting: false,
            stopped: BTreeSet::new(),
            cannot_follow: BTreeSet::new(),
        };
        for at in 0..bricks {
            let core = rig.opened(at);
            rig.cores.push(core);
        }
        rig.settle();
        rig
    }

    fn core(&self) -> Core {
        let rules = Arc::new(Namespace::new());
        Core::new(
            rules,
            Completions::new(Box::new(|| {})),
            self.budget.clone(),
        )
    }

    fn opened(&mut self, at: usize) -> Core {
        let device: Arc<dyn Device> = self.disks[at].clone();
        self.runs += 1;
        let config = BrickConfig {
            brick: brick(at),
            set: SET,
            node: NodeId(1),
            boot: BootId(self.boots[at]),
            run: RunId(self.runs),
            storage: Box::new(Store::open(device).expect("the brick opens")),
            gauge: Default::default(),
        };
        let mut core = self.core();
        core.push(Message::Open(Box::new(config)));
        core
    }

    /// Stops bricks in good order; those of the set that go on make a view without them.
    pub(super) fn stop(&mut self, bricks: &[usize]) {
        self.resting = bricks.len() == self.cores.len();
        for at in bricks {
            self.order(*at, ToBrick::Stop);
        }
        let all: BTreeSet<BrickId> = bricks.iter().map(|at| brick(*at)).collect();
        for _ in 0..100 {
            self.pass(Duration::from_millis(100));
            if all.is_subset(&self.stopped) {
                break;
            }
        }
        assert!(all.is_subset(&self.stopped), "{:?} stopped", self.stopped);
        for at in bricks {
            self.cores[*at] = self.core();
        }
    }

    /// From now on, or no longer, a brick's disk completes nothing that is started.
    pub(super) fn hang(&mut self, at: usize, hung: bool) {
        self.disks[at].queue(hung);
        match hung {
            true => self.hung.insert(at),
            false => self.hung.remove(&at),
        };
    }

    /// What a state dump shows of a brick.
    pub(super) fn state(&mut self, at: usize) -> BrickState {
        let slot: Arc<Mutex<Option<BrickState>>> = Arc::default();
        let filled = Arc::clone(&slot);
        self.cores[at].push(Message::Dump(Box::new(move |mut states| {
            *filled.lock() = states.pop();
        })));
        self.settle();
        let state = slot.lock().take();
        state.expect("the core answers")
    }

    /// What a stopped brick's store holds.
    pub(super) fn store(&self, at: usize) -> Store {
        let device: Arc<dyn Device> = self.disks[at].reboot(Survival::Process);
        Store::open(device).expect("the brick opens")
    }

    /// Ends a brick's process or machine and starts it again.
    pub(super) fn reboot(&mut self, at: usize, survival: Survival) {
        self.disks[at] = self.disks[at].reboot(survival);
        self.boots[at] += u128::from(survival != Survival::Process);
        self.cores[at] = self.opened(at);
    }

    pub(super) fn view(&self) -> View {
        self.views.current.clone().expect("a view")
    }

    pub(super) fn primary(&self) -> usize {
        self.view().primary.0 as usize - 1
    }

    /// Runs everything until nothing is under way.
    pub(super) fn settle(&mut self) {
        for _ in 0..1_000 {
            if !self.round() {
                return;
            }
        }
        panic!("the set does not come to rest");
    }

    fn round(&mut self) -> bool {
        let mut busy = false;
        for at in 0..self.cores.len() {
            let mut out = Out::default();
            busy |= self.cores[at].run(self.now, Time::default(), &mut out);
            if !self.hung.contains(&at) {
                self.disks[at].run_all();
            }
            busy |= !out.peers.is_empty() || !out.reports.is_empty();
            for frame in out.peers {
                let name = frame.envelope.message.name();
                self.passed.push(name);
                if !self.lose.contains(&name) {
                    // Through the codec, as between nodes.
                    let body = frame.body().expect("encodes");
                    let frame = PeerFrame::decode(frame.envelope, body).expect("decodes");
                    let to = frame.envelope.to.0 as usize - 1;
                    self.cores[to].push(Message::Peer(frame));
                }
            }
            for report in out.reports {
                self.control(&report);
            }
        }
        busy |= self.decide();
        busy
    }

    fn order(&mut self, at: usize, order: ToBrick) {
        self.cores[at].push(Message::Order {
            brick: brick(at),
            order,
        });
    }

    /// Tells all bricks which sessions are alive.
    pub(super) fn tell_sessions(&mut self) {
        for at in 0..self.cores.len() {
            let order = ToBrick::Sessions {
                below: SessionId(100),
                live: self.live.clone(),
            };
            self.order(at, order);
        }
    }

    fn control(&mut self, report: &FromBrick) {
        let at = report.brick.0 as usize - 1;
        if let mortar_protocol::report::BrickEvent::Started { .. } = report.event {
            let shape = SetShape {
                index: SetIndex(0),
                kind: self.kind,
                layout: Layout::even(1),
                shard_size: SHARD_SIZE,
                durable: false,
                session_timeout_ms: 20_000,
                open_wait_ms: 10_000,
                read_only: false,
                reserve_percent: 0,
            };
            self.order(at, ToBrick::Shape(shape));
            let order = ToBrick::Sessions {
                below: SessionId(100),
                live: self.live.clone(),
            };
            self.order(at, order);
            if let Some(view) = self.views.current.clone() {
                self.order(at, ToBrick::View(view));
            }
        }
        match &report.event {
            mortar_protocol::report::BrickEvent::Stopped => {
                self.stopped.insert(report.brick);
            }
            mortar_protocol::report::BrickEvent::CannotFollow { member, .. } => {
                self.cannot_follow.insert(*member);
            }
            _ => {}
        }
        if let mortar_protocol::report::BrickEvent::SilentSessions { sessions } = &report.event {
            self.gone.extend(sessions);
        }
        self.seen.report(report);
        while self.decide() {}
    }

    fn decide(&mut self) -> bool {
        let bricks: Vec<Configured> = (0..self.disks.len())
            .map(|at| Configured {
                brick: brick(at),
                node: NodeId(1),
                keeps_data: true,
            })
            .collect();
        let scene = Scene {
            set: SET,
            bricks: &bricks,
            views: &self.views,
            open_wait: Duration::from_secs(10),
        };
        let decided = scene.decide(&mut self.seen, self.now);
        let Some(view) = decided.filter(|_| !self.resting) else {
            return false;
        };
        if view.effective {
            self.views.effective = Some(view.clone());
        }
        self.views.current = Some(view.clone());
        for at in 0..self.cores.len() {
            self.order(at, ToBrick::View(view.clone()));
        }
        true
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, span: Duration) {
        let end = self.now.after(span);
        while self.now < end {
            self.now = self.now.after(Duration::from_millis(100));
            self.settle();
        }
    }

    /// Sends a request; the answer arrives in the slot.
    pub(super) fn send(&mut self, at: usize, call: Call, body: Bytes) -> Slot {
        let slot = Slot::default();
        let filled = Arc::clone(&slot);
        let call = Call {
            brick: brick(at),
            ..call
        };
        self.cores[at].push(Message::Call {
            call: Box::new(call),
            body,
            uid: 0,
            reply: Box::new(move |answer, body| *filled.lock() = Some((answer, body))),
        });
        slot
    }

    /// A request of the session; changes get the next number.
    pub(super) fn request(&mut self, fop: Fop) -> Call {
        let numbered = !fop.is_read() && !matches!(fop, Fop::SessionBegin | Fop::SessionEnd);
        self.number += u64::from(numbered);
        Call {
            brick: brick(0),
            epoch: self.view().epoch,
            session: SESSION,
            number: if numbered { self.number } else { 0 },
            answered_below: 1,
            repeat: false,
            after: 0,
            cred: Cred::default(),
            durable: false,
            fop,
        }
    }

    pub(super) fn call(&mut self, at: usize, fop: Fop, body: &[u8]) -> (Answer, Bytes) {
        let call = self.request(fop);
        let slot = self.send(at, call, Bytes::copy_from_slice(body));
        self.settle();
        let answer = slot.lock().take();
        answer.expect("an answer")
    }

    /// As [`Rig::call`], of the primary, and it must be done.
    pub(super) fn done(&mut self, fop: Fop, body: &[u8]) -> Answer {
        let primary = self.primary();
        let (answer, _) = self.call(primary, fop, body);
        assert!(answer.result.is_ok(), "{answer:?}");
        answer
    }

    /// Begins the session and makes a file.
    pub(super) fn create(&mut self) {
        self.done(Fop::SessionBegin, b"");
        self.done(create(FILE, b"file"), b"");
    }

    /// Bulk data is on its way to one brick.
    pub(super) fn begin_stage(
        &mut self,
        number: u64,
        data: Bytes,
        at: usize,
    ) -> Arc<Mutex<Option<StageAnswer>>> {
        let slot: Arc<Mutex<Option<StageAnswer>>> = Arc::default();
        let filled = Arc::clone(&slot);
        let stage = StageId {
            session: SESSION,
            number,
        };
        self.cores[at].push(Message::Stage {
            stage: Stage {
                stage,
                bricks: vec![brick(at)],
            },
            data,
            uid: 0,
            reply: Box::new(move |answer| *filled.lock() = Some(answer)),
        });
        self.settle();
        slot
    }

    pub(super) fn stage(
        &mut self,
        number: u64,
        data: Bytes,
        at: &[usize],
    ) -> Vec<Result<(), Fault>> {
        let mut results = Vec::new();
        for at in at {
            let answer = self.begin_stage(number, data.clone(), *at).lock().take();
            results.extend(answer.expect("an answer").results);
        }
        results
    }

    /// What a brick answers to a read of the whole file.
    pub(super) fn read(&mut self, at: usize, len: u32) -> Result<Bytes, Fault> {
        let (answer, body) = self.call(at, read(len), b"");
        answer.result.map(|_| body)
    }

    /// Waits until everything up to the mark is flushed everywhere.
    pub(super) fn sync(&mut self, upto: Mark) -> Result<Reply, Fault> {
        let primary = self.primary();
        self.call(primary, Fop::Sync { upto }, b"").0.result
    }

    /// Whether a message of this kind passed.
    pub(super) fn saw(&self, message: &PeerMessage) -> bool {
        self.passed.contains(&message.name())
    }
}

pub(super) fn create(gfid: Gfid, name: &'static [u8]) -> Fop {
    let (parent, name) = (InodeId::ROOT, Bytes::from_static(name));
    Fop::Commit {
        parts: vec![
            Part::InodeNew {
                gfid,
                kind: FileKind::File,
                perm: 0o644,
                umask: 0,
                uid: 0,
                gid: 0,
                rdev: 0,
                target: Bytes::new(),
                parent,
                name: name.clone(),
                hint: None,
            },
            Part::DirentAdd {
                parent,
                name,
                gfid,
                kind: FileKind::File,
                replaces: None,
            },
        ],
        time: Time::default(),
    }
}

pub(super) fn change(op: InodeOp) -> Fop {
    Fop::Change(Change {
        id: FILE.id,
        inode: true,
        cut: Cut {
            opening: Opening(1),
            count: 0,
        },
        time: Time::default(),
        ops: vec![op],
    })
}

pub(super) fn write(offset: u64, len: usize) -> Fop {
    change(InodeOp::Write {
        shard: 0,
        offset,
        len: len as u32,
    })
}

pub(super) fn read(len: u32) -> Fop {
    let cut = Cut {
        opening: Opening(1),
        count: 0,
    };
    Fop::Read {
        id: FILE.id,
        shard: 0,
        offset: 0,
        len,
        cut,
    }
}
