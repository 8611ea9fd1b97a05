//! The rules of views and openings (P1, P3, P8), one test each. The traces were found by a model of openings that was
//! run with one rule left out at a time: without the rule that a test is named after, it fails.

use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BootId, BrickId, Epoch, NodeId, Opening, Pos, RunId, Seq};
use mortar_protocol::peer::History;
use mortar_protocol::report::{BrickEvent, FromBrick, MemberRuns};
use mortar_protocol::view::{Member, View};

use super::cluster::{Cluster, SET, openings};
use super::{Configured, Scene, Seen};
use crate::control::machine::SetViews;

const WAIT: Duration = Duration::from_secs(11);

/// A set of two that has acknowledged one entry; no member has flushed it.
fn acknowledged() -> Cluster {
    acknowledged_by(2)
}

fn acknowledged_by(bricks: usize) -> Cluster {
    let mut cluster = Cluster::new(bricks);
    cluster.quiet();
    assert_eq!(cluster.leader(), Some(0));
    cluster.write(false);
    while cluster.acked.is_empty() {
        assert!(!cluster.net.is_empty(), "acknowledged without a flush");
        cluster.deliver(0);
    }
    assert!(!cluster.acked[0].flushed);
    cluster
}

/// Whether a brick has the acknowledged entry.
fn holds(cluster: &Cluster, node: usize) -> bool {
    let acked = cluster.acked[0];
    let log = &cluster.nodes[node].mem;
    log.get(acked.pos.seq.0 as usize - 1)
        .is_some_and(|entry| entry.pos == acked.pos)
}

/// Whether the set, led by a node, says that the acknowledged entry may be lost.
fn told(cluster: &Cluster, leader: usize) -> bool {
    let acked = cluster.acked[0];
    let mut openings = openings(&cluster.nodes[leader].mem).into_iter();
    openings.any(|(number, adopted)| number > acked.opening && adopted < acked.pos.seq)
}

fn opening(cluster: &Cluster) -> Opening {
    cluster.views.current.as_ref().expect("a view").opening
}

/// The set opens over brick 1 alone, once it has waited for the other.
fn opens_over_brick_1_after_waiting(cluster: &mut Cluster) {
    assert_eq!(cluster.leader(), None, "the other member is waited for");
    cluster.tick(WAIT);
    cluster.quiet();
    assert_eq!(cluster.leader(), Some(1));
}

#[test]
fn a_view_counts_only_once_it_took_effect() {
    let mut cluster = acknowledged();
    cluster.kill(0);
    cluster.start(0);
    cluster.control();
    let view = cluster.views.current.clone().expect("a view");
    assert!(!view.effective && view.members.len() == 1);
    // The only member of the view loses all. A set that opened over this view would open over nobody else.
    cluster.power_off(1, 0);
    cluster.start(1);
    cluster.quiet();
    assert!(cluster.leader().is_some());
    cluster.heal();
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
    assert_eq!(opening(&cluster), Opening(1));
}

#[test]
fn a_view_serves_only_once_all_its_members_have_flushed_its_entry() {
    let mut cluster = acknowledged_by(3);
    for node in 0..3 {
        cluster.kill(node);
    }
    // Nothing is heard of brick 2.
    cluster.restart_control();
    for node in 0..2 {
        cluster.start(node);
    }
    cluster.control();
    cluster.tick(WAIT);
    for _ in 0..100 {
        cluster.control();
        if cluster.leader().is_some() {
            break;
        }
        match cluster.net.is_empty() {
            false => cluster.deliver(0),
            true => (0..2).for_each(|node| cluster.end_flush(node)),
        }
    }
    let view = cluster.views.current.clone().expect("a view");
    assert!(view.effective && view.members.len() == 2 && view.opening == Opening(1));
    // From here on brick 2, which has the entry too, is not asked.
    for node in 0..2 {
        cluster.power_off(node, 0);
    }
    for node in 0..3 {
        cluster.start(node);
    }
    cluster.heal();
    assert!((0..3).all(|node| holds(&cluster, node)));
}

#[test]
fn boot_and_clean_mark_are_written_by_members_alone() {
    let mut cluster = acknowledged();
    cluster.kill(0);
    cluster.power_off(1, 0);
    // A run of the new boot that is told of the view and is no member.
    cluster.start(1);
    cluster.control();
    cluster.restart_control();
    cluster.kill(1);
    cluster.start(1);
    cluster.quiet();
    opens_over_brick_1_after_waiting(&mut cluster);
    assert!(!holds(&cluster, 1) && told(&cluster, 1));
    // Nor does such a run take the clean mark of the last member away.
    let mut cluster = acknowledged();
    cluster.tick(Duration::from_secs(2));
    cluster.quiet();
    for node in 0..2 {
        cluster.stop(node);
    }
    cluster.control();
    cluster.restart_control();
    cluster.start(1);
    cluster.control();
    cluster.power_off(1, 0);
    cluster.start(1);
    cluster.quiet();
    opens_over_brick_1_after_waiting(&mut cluster);
    assert!(holds(&cluster, 1) && opening(&cluster) == Opening(1));
}

#[test]
fn an_opening_is_lossless_only_with_a_member_whose_machine_kept_running() {
    let mut cluster = acknowledged();
    for node in 0..2 {
        cluster.power_off(node, 0);
        cluster.start(node);
    }
    cluster.quiet();
    assert_eq!(opening(&cluster), Opening(2));
    assert!(!holds(&cluster, 0) && told(&cluster, 0));
    // One of two is enough.
    let mut cluster = acknowledged();
    cluster.kill(0);
    cluster.power_off(1, 0);
    for node in 0..2 {
        cluster.start(node);
    }
    cluster.quiet();
    assert_eq!(opening(&cluster), Opening(1));
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
}

#[test]
fn a_clean_mark_counts_until_the_next_membership() {
    let mut cluster = acknowledged();
    cluster.tick(Duration::from_secs(2));
    cluster.quiet();
    for node in 0..2 {
        cluster.stop(node);
    }
    // What was stopped in order has nothing to lose.
    for node in 0..2 {
        cluster.power_off(node, 0);
        cluster.start(node);
    }
    cluster.quiet();
    assert_eq!(opening(&cluster), Opening(1));
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
    // These runs are members and stop without order.
    let before = cluster.acked.len();
    cluster.write(false);
    while cluster.acked.len() == before {
        cluster.deliver(0);
    }
    for node in 0..2 {
        cluster.power_off(node, 0);
        cluster.start(node);
    }
    cluster.quiet();
    assert_eq!(opening(&cluster), Opening(2));
}

#[test]
fn an_opening_adopts_the_highest_log() {
    let mut cluster = acknowledged();
    // The first brick has lost the entry, the other one has it.
    cluster.power_off(0, 0);
    cluster.kill(1);
    for node in 0..2 {
        cluster.start(node);
    }
    cluster.quiet();
    assert_eq!(cluster.leader(), Some(1));
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
}

#[test]
fn entries_of_views_that_never_took_effect_make_no_log_higher() {
    let mut cluster = acknowledged();
    cluster.kill(0);
    cluster.power_off(1, 0);
    cluster.start(1);
    cluster.restart_control();
    cluster.control();
    cluster.tick(WAIT);
    cluster.control();
    let view = cluster.views.current.clone().expect("a view");
    assert!(!view.effective && view.primary == BrickId(2));
    // Brick 1 wrote the entry of that view behind a log that lost what was acknowledged, and is gone again.
    cluster.kill(1);
    cluster.start(0);
    cluster.start(1);
    cluster.quiet();
    assert_eq!(cluster.leader(), Some(0));
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
}

#[test]
fn an_opening_waits_for_members_that_have_not_answered() {
    let mut cluster = acknowledged();
    cluster.kill(0);
    cluster.power_off(1, 0);
    cluster.start(1);
    cluster.restart_control();
    cluster.quiet();
    cluster.tick(Duration::from_secs(9));
    cluster.quiet();
    assert_eq!(cluster.leader(), None);
    cluster.start(0);
    cluster.quiet();
    assert_eq!(opening(&cluster), Opening(1));
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
}

#[test]
fn a_membership_ends_with_its_run() {
    let mut cluster = acknowledged();
    // The primary comes back without the entry, and hears of the view that names it before anybody notices.
    cluster.power_off(0, 0);
    cluster.start(0);
    cluster.tell_view();
    assert_eq!(cluster.leader(), None);
    cluster.quiet();
    cluster.heal();
    assert!(holds(&cluster, 0) && holds(&cluster, 1));
    assert_eq!(opening(&cluster), Opening(1));
}

#[test]
fn a_lone_member_of_a_replicated_set_acknowledges_only_what_is_flushed() {
    let mut cluster = Cluster::new(2);
    cluster.quiet();
    cluster.kill(1);
    cluster.start(1);
    cluster.control();
    // The joiner's messages stay under way: member 0 is alone.
    let before = cluster.acked.len();
    for _ in 0..20 {
        cluster.end_flush(0);
        cluster.control();
    }
    assert_eq!(cluster.leader(), Some(0));
    cluster.write(false);
    assert_eq!(cluster.acked.len(), before);
    cluster.end_flush(0);
    assert_eq!(cluster.acked.len(), before + 1);
}

/// A set as the control plane sees it: bricks 1, 2 and so on, of which some may be without data.
struct Told {
    bricks: Vec<Configured>,
    views: SetViews,
    seen: Seen,
}

fn pos(epoch: u64, seq: u64) -> Pos {
    Pos {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    }
}

impl Told {
    /// All are members of an effective view of epoch 5, in run 1 of boot 1.
    fn new(keep_data: &[bool]) -> Self {
        let member = |(number, keeps_data): (u128, &bool)| Member {
            brick: BrickId(number),
            node: NodeId(number),
            run: RunId(1),
            keeps_data: *keeps_data,
        };
        let members: Vec<Member> = (1..).zip(keep_data).map(member).collect();
        let bricks = members.iter().map(|member| Configured {
            brick: member.brick,
            node: member.node,
            keeps_data: member.keeps_data,
        });
        let bricks = bricks.collect();
        let view = View {
            set: SET,
            epoch: Epoch(5),
            primary: BrickId(1),
            members,
            absent: Vec::new(),
            opening: Opening(3),
            effective: true,
        };
        let mut told = Self {
            bricks,
            views: SetViews::default(),
            seen: Seen::default(),
        };
        told.views.effective = Some(view.clone());
        told.views.current = Some(view);
        told
    }

    fn report(&mut self, brick: u128, run: u128, event: BrickEvent) {
        self.seen.report(&FromBrick {
            set: SET,
            brick: BrickId(brick),
            run: RunId(run),
            event,
        });
    }

    /// A run says that it is there; `runs` are those its superblock names, of boot 1.
    fn started(&mut self, brick: u128, run: u128, runs: &[u128]) {
        let history = History {
            head: pos(5, 9),
            ..History::default()
        };
        let event = BrickEvent::Started {
            node: NodeId(brick),
            boot: BootId(1),
            history,
            member: Some(MemberRuns {
                runs: runs.iter().copied().map(RunId).collect(),
                boot: BootId(1),
                clean: false,
            }),
            view: None,
            damaged: false,
            space: Default::default(),
        };
        self.report(brick, run, event);
    }

    fn decide(&mut self, now: Mono) -> Option<View> {
        let scene = Scene {
            set: SET,
            bricks: &self.bricks,
            views: &self.views,
            open_wait: Duration::from_secs(10),
        };
        let view = scene.decide(&mut self.seen, now)?;
        if view.effective {
            self.views.effective = Some(view.clone());
        }
        self.views.current = Some(view.clone());
        Some(view)
    }
}

const NOW: Mono = Mono(1_000_000_000);

#[test]
fn an_adoption_counts_for_its_view_and_run_alone() {
    let mut told = Told::new(&[true, true]);
    told.started(1, 1, &[1]);
    told.started(2, 2, &[1]);
    let view = told.decide(NOW).expect("a view without the second");
    assert_eq!((view.epoch, view.effective), (Epoch(6), false));
    told.report(1, 1, BrickEvent::Adopted { epoch: Epoch(5) });
    assert_eq!(told.decide(NOW), None, "a late report of the view before");
    told.report(1, 9, BrickEvent::Adopted { epoch: Epoch(6) });
    assert_eq!(told.decide(NOW), None, "another run");
    told.report(1, 1, BrickEvent::Adopted { epoch: Epoch(6) });
    let view = told.decide(NOW).expect("the view");
    assert_eq!((view.epoch, view.effective), (Epoch(6), true));
}

#[test]
fn there_is_no_view_and_no_opening_without_the_data() {
    let mut told = Told::new(&[true, false]);
    told.started(1, 1, &[1]);
    told.started(2, 1, &[1]);
    assert_eq!(told.decide(NOW), None);
    told.report(1, 1, BrickEvent::Stopped);
    assert_eq!(told.decide(NOW), None, "the one that stays has no data");
    assert_eq!(told.decide(NOW.after(WAIT)), None, "nor has an opening");
    told.started(1, 2, &[1]);
    let view = told.decide(NOW.after(WAIT)).expect("an opening");
    assert_eq!((view.primary, view.opening), (BrickId(1), Opening(3)));
    // Who follows a primary that has ended.
    let mut told = Told::new(&[true, false, true]);
    (1..4).for_each(|brick| told.started(brick, 1, &[1]));
    told.started(1, 2, &[1]);
    let view = told.decide(NOW).expect("a view without the first");
    assert_eq!((view.primary, view.members.len()), (BrickId(3), 2));
}

#[test]
fn an_opening_is_lossless_only_by_the_run_that_the_view_names() {
    for (runs, expected) in [(vec![1, 7], Opening(3)), (vec![7], Opening(4))] {
        let mut told = Told::new(&[true, true]);
        // A superblock that does not know of the run in the view, as an older copy of the device has it.
        told.started(1, 8, &runs);
        told.started(2, 8, &[]);
        let view = told.decide(NOW).expect("an opening");
        assert_eq!(view.opening, expected);
    }
}
