//! A set in memory: the real set logs and the real decisions on views, over a network that loses, repeats and reorders,
//! and over media of three layers (memory, page cache, disk) that a kill or a power loss cuts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::entry::{Entry, EntryKind};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{
    BootId, BrickId, Epoch, NodeId, Opening, Pos, RunId, Seq, SetId, SetIndex, VolumeId,
};
use mortar_protocol::peer::{History, PeerFrame};
use mortar_protocol::report::{BrickEvent, FromBrick, MemberRuns};
use mortar_protocol::view::{SetKind, View};

use super::{Configured, Scene, Seen};
use crate::brick::lineage;
use crate::control::machine::SetViews;
use crate::setlog::{Action, LogGone, LogReader, Me, Positions, SetLog};

pub(super) const SET: SetId = SetId {
    volume: VolumeId(9),
    index: SetIndex(0),
};

/// A small generator: the tests are to give the same runs everywhere.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

struct Reader<'a>(&'a [Arc<Entry>]);

impl LogReader for Reader<'_> {
    fn entries_after(&self, pos: Pos, _max: usize) -> Result<Vec<Arc<Entry>>, LogGone> {
        Ok(self
            .0
            .iter()
            .skip(pos.seq.0 as usize)
            .take(3)
            .cloned()
            .collect())
    }
}

/// One brick and its medium.
pub(super) struct Node {
    pub(super) log: Option<SetLog>,
    run: u128,
    boot: u128,
    /// The log as the running process sees it.
    pub(super) mem: Vec<Arc<Entry>>,
    /// What a killed process leaves: a cut alone does not change it.
    cache: Vec<Arc<Entry>>,
    /// What survives power loss.
    disk: Vec<Arc<Entry>>,
    applied: Pos,
    member: Option<MemberRuns>,
    saved_view: Option<View>,
    flush: Option<(u64, Vec<Arc<Entry>>)>,
    to_append: VecDeque<Arc<Entry>>,
}

/// An acknowledged entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    pub(super) opening: Opening,
    pub(super) pos: Pos,
    /// Acknowledged as flushed by all.
    pub(super) flushed: bool,
}

/// The set.
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) net: Vec<PeerFrame>,
    reports: VecDeque<FromBrick>,
    pub(super) views: SetViews,
    seen: Seen,
    pub(super) now: Mono,
    /// Entries given to a primary and not acknowledged: (epoch of the primary, position).
    waiting: Vec<(usize, u128, Pos)>,
    pub(super) acked: Vec<Acked>,
    /// Every entry ever applied: it can never be another one.
    applied: BTreeMap<Seq, Pos>,
    kind: SetKind,
    pub(super) powered_off: bool,
}

impl Cluster {
    pub(super) fn new(bricks: usize) -> Self {
        let node = |_| Node {
            log: None,
            run: 0,
            boot: 1,
            mem: Vec::new(),
            cache: Vec::new(),
            disk: Vec::new(),
            applied: Pos::default(),
            member: None,
            saved_view: None,
            flush: None,
            to_append: VecDeque::new(),
        };
        let mut cluster = Self {
            nodes: (0..bricks).map(node).collect(),
            net: Vec::new(),
            reports: VecDeque::new(),
            views: SetViews::default(),
            seen: Seen::default(),
            now: Mono(1),
            waiting: Vec::new(),
            acked: Vec::new(),
            applied: BTreeMap::new(),
            kind: SetKind::Replicate {
                copies: bricks as u16,
            },
            powered_off: false,
        };
        for node in 0..bricks {
            cluster.start(node);
        }
        cluster
    }

    fn brick(node: usize) -> BrickId {
        BrickId(node as u128 + 1)
    }

    pub(super) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].log.is_some()
    }

    pub(super) fn start(&mut self, at: usize) {
        let kind = self.kind;
        let node = &mut self.nodes[at];
        if node.log.is_some() {
            return;
        }
        node.run += 1;
        node.mem = node.cache.clone();
        node.to_append.clear();
        node.flush = None;
        let mut history = History::default();
        node.mem
            .iter()
            .for_each(|entry| assert!(history.push(entry.pos)));
        let run = RunId(node.run * 100 + at as u128);
        let me = Me {
            set: SET,
            brick: Self::brick(at),
            run,
            kind,
        };
        // A new run rewrites and flushes what it found above the flushed mark before it counts it as flushed.
        let flushed = Seq(node.disk.len().min(node.mem.len()) as u64);
        node.log = Some(SetLog::new(
            me,
            history,
            flushed,
            node.applied,
            node.saved_view.clone(),
        ));
        self.report_started(at);
    }

    fn report_started(&mut self, at: usize) {
        let node = &self.nodes[at];
        let mut history = History::default();
        node.mem
            .iter()
            .for_each(|entry| assert!(history.push(entry.pos)));
        self.reports.push_back(FromBrick {
            set: SET,
            brick: Self::brick(at),
            run: RunId(node.run * 100 + at as u128),
            event: BrickEvent::Started {
                node: NodeId(at as u128),
                boot: BootId(node.boot),
                history,
                member: node.member.clone(),
                view: node.saved_view.clone(),
                damaged: false,
                space: Default::default(),
            },
        });
    }

    /// The control plane begins anew: it knows what is durable, and what those that run say again.
    pub(super) fn restart_control(&mut self) {
        self.seen = Seen::default();
        for at in 0..self.nodes.len() {
            if self.is_up(at) {
                self.report_started(at);
            }
        }
    }

    /// The process dies.
    pub(super) fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.log = None;
        node.mem.clear();
        node.flush = None;
    }

    /// The process ends in order: everything is flushed, and the superblock says so.
    pub(super) fn stop(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let member = node.log.as_ref().is_some_and(SetLog::is_member);
        assert!(member && node.mem.len() == node.disk.len());
        let run = RunId(node.run * 100 + at as u128);
        node.member = Some(lineage(node.member.take(), run, BootId(node.boot), true));
        self.reports.push_back(FromBrick {
            set: SET,
            brick: Self::brick(at),
            run,
            event: BrickEvent::Stopped,
        });
        self.kill(at);
    }

    /// The machine loses power; of what was not flushed, the first `kept` entries happen to be on the disk.
    pub(super) fn power_off(&mut self, at: usize, kept: usize) {
        self.kill(at);
        self.powered_off = true;
        let node = &mut self.nodes[at];
        node.boot += 1;
        let same = node
            .disk
            .iter()
            .zip(&node.cache)
            .all(|(a, b)| a.pos == b.pos);
        if same && node.cache.len() > node.disk.len() {
            let len = (node.disk.len() + kept).min(node.cache.len());
            node.disk = node.cache[..len].to_vec();
        }
        node.cache = node.disk.clone();
    }

    /// The brick that leads, if one does.
    pub(super) fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|at| self.nodes[*at].log.as_ref().is_some_and(SetLog::leads))
    }

    /// A client's change.
    pub(super) fn write(&mut self, flush: bool) {
        let Some(at) = self.leader() else { return };
        let Some(log) = &self.nodes[at].log else {
            return;
        };
        let pos = log.next_pos();
        let run = self.nodes[at].run;
        self.waiting.push((at, run, pos));
        self.make(at, EntryKind::Internal);
        if flush && let Some(log) = &mut self.nodes[at].log {
            log.want_flush(pos.seq);
        }
        self.settle(at);
    }

    fn make(&mut self, at: usize, kind: EntryKind) {
        let Some(log) = &self.nodes[at].log else {
            return;
        };
        let pos = log.next_pos();
        let entry = Arc::new(Entry {
            pos,
            kind,
            effects: Vec::new(),
            body: Bytes::new(),
        });
        self.append(at, entry);
    }

    fn append(&mut self, at: usize, entry: Arc<Entry>) {
        let node = &mut self.nodes[at];
        assert_eq!(
            entry.pos.seq.0,
            node.mem.len() as u64 + 1,
            "appends are in order"
        );
        node.mem.push(entry.clone());
        node.cache = node.mem.clone();
        let mut acts = Vec::new();
        if let Some(log) = &mut node.log {
            log.appended(&[entry], &mut acts);
        }
        self.perform(at, acts);
    }

    fn perform(&mut self, at: usize, acts: Vec<Action>) {
        for act in acts {
            let node = &mut self.nodes[at];
            match act {
                Action::Append(entries) => node.to_append.extend(entries),
                Action::Cut(pos) => {
                    assert!(
                        pos.seq >= node.applied.seq,
                        "what is applied is never dropped"
                    );
                    node.to_append.retain(|entry| entry.pos.seq <= pos.seq);
                    node.mem.truncate(pos.seq.0 as usize);
                }
                Action::Make(kind) => self.make(at, kind),
                Action::Send(frame) => self.net.push(frame),
                Action::Flush(round) => node.flush = Some((round, node.cache.clone())),
                Action::SaveView(view) => {
                    let run = RunId(node.run * 100 + at as u128);
                    node.member = Some(lineage(node.member.take(), run, BootId(node.boot), false));
                    node.saved_view = Some(view);
                }
                Action::Announce(seq) => self.apply(at, seq),
                Action::Report(report) => self.reports.push_back(report),
            }
        }
    }

    fn apply(&mut self, at: usize, seq: Seq) {
        let node = &mut self.nodes[at];
        assert!(
            node.disk.len() as u64 >= seq.0,
            "what is applied is flushed"
        );
        for place in node.applied.seq.0..seq.0 {
            let entry = &node.mem[place as usize];
            let known = self.applied.entry(entry.pos.seq).or_insert(entry.pos);
            assert_eq!(*known, entry.pos, "all members apply the same entries");
            node.applied = entry.pos;
        }
        let applied = node.applied;
        if let Some(log) = &mut node.log {
            log.applied(applied);
        }
    }

    /// Ends a batch on a brick, then checks what may now be acknowledged.
    pub(super) fn settle(&mut self, at: usize) {
        loop {
            while let Some(entry) = self.nodes[at].to_append.pop_front() {
                self.append(at, entry);
            }
            let node = &mut self.nodes[at];
            let Some(log) = &mut node.log else { return };
            let mut acts = Vec::new();
            log.finish(&Reader(&node.mem), &mut acts);
            if acts.is_empty() {
                break;
            }
            self.perform(at, acts);
        }
        self.acknowledge(at);
    }

    fn acknowledge(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Some(log) = node.log.as_ref().filter(|log| log.leads()) else {
            return;
        };
        let opening = log.view().map_or(Opening(0), |view| view.opening);
        let (committed, flushed) = (log.committed(), log.flushed_by_all());
        let run = node.run;
        let acked = &mut self.acked;
        self.waiting.retain(|(leader, leader_run, pos)| {
            let own = *leader == at && *leader_run == run;
            if own && pos.seq <= committed && log.position(pos.seq) == Some(*pos) {
                acked.push(Acked {
                    opening,
                    pos: *pos,
                    flushed: false,
                });
            }
            !(own && pos.seq <= committed)
        });
        for entry in acked.iter_mut().filter(|entry| entry.pos.seq <= flushed) {
            entry.flushed |= log.position(entry.pos.seq) == Some(entry.pos);
        }
        self.check_leader(at);
    }

    /// The oracle: what was acknowledged is in the log of whoever leads, or its loss is known by the openings.
    fn check_leader(&self, at: usize) {
        let log = &self.nodes[at].mem;
        let openings = openings(log);
        for acked in &self.acked {
            let held = log.get(acked.pos.seq.0 as usize - 1).map(|entry| entry.pos);
            if held == Some(acked.pos) {
                continue;
            }
            assert!(!acked.flushed, "{acked:?} was flushed by all and is gone");
            assert!(self.powered_off, "{acked:?} is gone without a power loss");
            let told = openings
                .iter()
                .any(|(number, adopted)| *number > acked.opening && *adopted < acked.pos.seq);
            assert!(told, "{acked:?} is gone and no opening tells; {openings:?}");
        }
    }

    /// Delivers one message.
    pub(super) fn deliver(&mut self, index: usize) {
        let frame = self.net.swap_remove(index);
        self.hand(frame);
    }

    /// Delivers a copy of one message.
    pub(super) fn repeat(&mut self, index: usize) {
        let frame = self.net[index].clone();
        self.hand(frame);
    }

    fn hand(&mut self, frame: PeerFrame) {
        let at = frame.envelope.to.0 as usize - 1;
        let mut acts = Vec::new();
        if let Some(log) = &mut self.nodes[at].log {
            log.on_peer(frame, &mut acts);
        }
        self.perform(at, acts);
        self.settle(at);
    }

    /// A flush under way ends.
    pub(super) fn end_flush(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some((round, image)) = node.flush.take() else {
            return;
        };
        let pos = image.last().map_or(Pos::default(), |entry| entry.pos);
        node.disk = image;
        let mut acts = Vec::new();
        if let Some(log) = &mut node.log {
            log.flushed(round, pos, &mut acts);
        }
        self.perform(at, acts);
        self.settle(at);
    }

    /// Time passes; nothing else.
    pub(super) fn tick(&mut self, span: Duration) {
        self.now = self.now.after(span);
        for at in 0..self.nodes.len() {
            let mut acts = Vec::new();
            let now = self.now;
            if let Some(log) = &mut self.nodes[at].log {
                log.tick(now, &mut acts);
                let outside = !log.is_member();
                if outside {
                    self.report_started(at);
                }
            }
            self.perform(at, acts);
            self.settle(at);
        }
    }

    /// The control plane takes in what was reported, decides, and tells the bricks.
    pub(super) fn control(&mut self) {
        while let Some(report) = self.reports.pop_front() {
            self.seen.report(&report);
            self.decide();
        }
        self.decide();
        self.tell_view();
    }

    /// The bricks hear of the newest view.
    pub(super) fn tell_view(&mut self) {
        let Some(view) = self.views.current.clone() else {
            return;
        };
        for at in 0..self.nodes.len() {
            let mut acts = Vec::new();
            if let Some(log) = &mut self.nodes[at].log {
                log.on_view(view.clone(), &mut acts);
            }
            self.perform(at, acts);
            self.settle(at);
        }
    }

    fn decide(&mut self) {
        let bricks: Vec<Configured> = (0..self.nodes.len())
            .map(|at| Configured {
                brick: Self::brick(at),
                node: NodeId(at as u128),
                keeps_data: true,
            })
            .collect();
        let scene = Scene {
            set: SET,
            bricks: &bricks,
            views: &self.views,
            open_wait: Duration::from_secs(10),
        };
        if let Some(view) = scene.decide(&mut self.seen, self.now) {
            let known = self.views.current.as_ref();
            let epoch = known.map_or(Epoch(0), |known| known.epoch);
            assert!(view.epoch > epoch || (view.effective && view.epoch == epoch));
            if view.effective {
                self.views.effective = Some(view.clone());
            }
            self.views.current = Some(view);
        }
    }

    /// Everything that is under way arrives.
    pub(super) fn quiet(&mut self) {
        for _ in 0..10_000 {
            self.control();
            for at in 0..self.nodes.len() {
                self.end_flush(at);
            }
            if !self.net.is_empty() {
                let frame = self.net.remove(0);
                self.hand(frame);
            } else if self.reports.is_empty() && self.nodes.iter().all(|n| n.flush.is_none()) {
                return;
            }
        }
        panic!("the set does not come to rest");
    }

    /// Everything works from here on: all bricks run, nothing is lost, time passes.
    pub(super) fn heal(&mut self) {
        for at in 0..self.nodes.len() {
            self.start(at);
        }
        for _ in 0..40 {
            self.tick(Duration::from_millis(500));
            self.quiet();
        }
    }
}

/// The openings that a log tells: number, and newest place adopted.
pub(super) fn openings(log: &[Arc<Entry>]) -> Vec<(Opening, Seq)> {
    let mut openings: Vec<(Opening, Seq)> = Vec::new();
    for entry in log {
        if let EntryKind::View(view) = &entry.kind
            && openings
                .last()
                .is_none_or(|(number, _)| view.opening > *number)
        {
            openings.push((view.opening, Seq(entry.pos.seq.0 - 1)));
        }
    }
    openings
}
