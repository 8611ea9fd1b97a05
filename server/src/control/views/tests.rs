//! Decisions on views, on simulated clusters of bricks and control plane.

use super::cluster::{Cluster, Rng};
use std::time::Duration;

use mortar_protocol::ids::Opening;

const WAIT: Duration = Duration::from_secs(11);

fn opened(bricks: usize) -> Cluster {
    let mut cluster = Cluster::new(bricks);
    cluster.quiet();
    assert_eq!(cluster.leader(), Some(0));
    cluster
}

fn acknowledged(cluster: &mut Cluster) {
    let before = cluster.acked.len();
    cluster.write(false);
    while cluster.acked.len() == before {
        assert!(
            !cluster.net.is_empty(),
            "the write is acknowledged without a flush"
        );
        cluster.deliver(0);
    }
}

fn holds(cluster: &Cluster, node: usize) -> bool {
    let acked = cluster.acked[0];
    let log = &cluster.nodes[node].mem;
    log.get(acked.pos.seq.0 as usize - 1)
        .is_some_and(|entry| entry.pos == acked.pos)
}

#[test]
fn a_set_opens_writes_and_takes_a_restarted_member_back() {
    let mut cluster = opened(3);
    acknowledged(&mut cluster);
    cluster.kill(2);
    cluster.start(2);
    cluster.quiet();
    cluster.heal();
    let view = cluster.views.current.clone().expect("a view");
    assert!(view.effective && view.members.len() == 3 && view.opening == Opening(1));
    assert!((0..3).all(|node| holds(&cluster, node)));
}

#[test]
fn restart_of_all_is_lossless_while_no_machine_lost_power() {
    let mut cluster = opened(3);
    acknowledged(&mut cluster);
    for node in 0..3 {
        cluster.kill(node);
        cluster.start(node);
    }
    cluster.quiet();
    let view = cluster.views.current.clone().expect("a view");
    assert!(view.effective && view.opening == Opening(1));
    assert!((0..3).all(|node| holds(&cluster, node)));
}

#[test]
fn nothing_acknowledged_is_lost_under_random_faults() {
    for seed in 1..=400u64 {
        let power = seed.is_multiple_of(2);
        let outcome = std::panic::catch_unwind(|| random_run(seed, power));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

fn random_run(seed: u64, power: bool) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let bricks = 2 + rng.below(2);
    let mut cluster = Cluster::new(bricks);
    let mut faults = 8;
    for _ in 0..600 {
        let node = rng.below(bricks);
        match rng.below(100) {
            0..45 if !cluster.net.is_empty() => {
                let first = rng.below(cluster.net.len().min(3));
                cluster.deliver(first);
            }
            45..48 if !cluster.net.is_empty() => {
                let index = rng.below(cluster.net.len());
                cluster.repeat(index);
            }
            48..50 if !cluster.net.is_empty() => {
                let index = rng.below(cluster.net.len());
                cluster.net.swap_remove(index);
            }
            50..62 => cluster.write(rng.below(3) == 0),
            62..74 => cluster.end_flush(node),
            74..84 => cluster.control(),
            84..92 => cluster.tick(Duration::from_millis(100 + rng.below(600) as u64)),
            92..93 => cluster.tick(WAIT),
            93..96 if faults > 0 => {
                faults -= 1;
                if power && rng.below(2) == 0 {
                    let kept = rng.below(4);
                    cluster.power_off(node, kept);
                } else {
                    cluster.kill(node);
                }
            }
            96..100 if !cluster.is_up(node) => cluster.start(node),
            _ => {}
        }
    }
    cluster.heal();
    assert!(cluster.leader().is_some(), "the set serves again");
    let view = cluster.views.current.clone().expect("a view");
    assert!(
        view.effective && view.members.len() == bricks,
        "all are members again"
    );
    if !power {
        assert_eq!(view.opening, Opening(1), "no power was lost");
    }
    let before = cluster.acked.len();
    cluster.write(true);
    cluster.quiet();
    assert_eq!(cluster.acked.len(), before + 1);
    for node in 1..bricks {
        let positions = |at: usize| -> Vec<_> {
            cluster.nodes[at]
                .mem
                .iter()
                .map(|entry| entry.pos)
                .collect()
        };
        assert_eq!(positions(node), positions(0), "members are equal");
    }
}

#[test]
fn a_member_tells_of_room_also_when_nothing_else_moves() {
    use mortar_protocol::entry::Space;

    let mut cluster = Cluster::new(3);
    cluster.heal();
    let leader = cluster.leader().expect("a leader");
    let member = (leader + 1) % 3;
    let room = |cluster: &mut Cluster, ring_free| {
        for at in 0..3 {
            let space = Space {
                ring_free: if at == member { ring_free } else { 1 << 20 },
                ..Space::default()
            };
            let log = cluster.nodes[at].log.as_mut();
            log.expect("runs").set_space(space);
        }
    };
    let least = |cluster: &Cluster| {
        let log = cluster.nodes[leader].log.as_ref();
        log.expect("runs").least_space().ring_free
    };
    room(&mut cluster, 0);
    cluster.write(true);
    cluster.quiet();
    assert_eq!(least(&cluster), 0);
    // A checkpoint gives room; no entry, no flush, no question comes by.
    room(&mut cluster, 1 << 20);
    cluster.tick(Duration::from_millis(200));
    cluster.quiet();
    assert_eq!(least(&cluster), 1 << 20);
    // Said once: nothing is sent for what is known.
    cluster.tick(Duration::from_millis(200));
    assert!(cluster.net.is_empty(), "{:?}", cluster.net);
}

#[test]
fn the_log_is_kept_while_a_brick_of_the_set_is_away() {
    let mut cluster = Cluster::new(3);
    cluster.heal();
    let keeps = |cluster: &Cluster| -> Vec<bool> {
        let logs = cluster.nodes.iter().filter_map(|node| node.log.as_ref());
        logs.map(|log| log.keeps_log()).collect()
    };
    assert_eq!(keeps(&cluster), [false; 3]);
    let away = (cluster.leader().expect("a leader") + 1) % 3;
    cluster.write(true);
    cluster.quiet();
    cluster.stop(away);
    cluster.quiet();
    assert_eq!(keeps(&cluster), [true; 2]);
    // Nobody knows yet who is there: it may be that somebody is not.
    cluster.start(away);
    assert_eq!(keeps(&cluster), [true; 3]);
    cluster.heal();
    assert_eq!(keeps(&cluster), [false; 3]);
}
