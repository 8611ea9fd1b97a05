//! Who votes in clusters of more than three nodes, and nodes that come back after the log they would need is gone.

use std::time::{Duration, Instant};

use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_tests::real::{Cluster, Net, admin, tool};
use serde_json::Value;

use crate::SOON;

/// A voter that has not answered for this long is replaced (`docs/operations.md`).
const LOST_AFTER: Duration = Duration::from_secs(30);

/// The nodes that have one of these roles, as node `n` has it.
fn with_role(cluster: &Cluster, n: u8, roles: &[&str]) -> Vec<u8> {
    let out = cluster.mortar(n, &["cluster", "status", "--json"]);
    let status: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let has = |at: &u8| {
        nodes.iter().any(|node| {
            let addrs = node["addresses"].as_array();
            let named = addrs.is_some_and(|addrs| addrs.contains(&cluster.server(*at).into()));
            named && roles.contains(&node["role"].as_str().unwrap_or_default())
        })
    };
    (1..=cluster.count()).filter(has).collect()
}

fn voting(cluster: &Cluster, n: u8) -> Vec<u8> {
    with_role(cluster, n, &["leader", "voter"])
}

/// A line of `cluster status` for people that is about a node.
fn line_of(cluster: &Cluster, n: u8, of: u8) -> String {
    let text = cluster.ok(n, &["cluster", "status"]);
    let name = cluster.name(of);
    let found = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&name));
    found
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .to_owned()
}

/// Every command, at one node: a volume over it and two others, and nodes.
fn answers_every_command(cluster: &Cluster, n: u8, stranger: u8) {
    let bricks: Vec<String> = [1, 2, n].map(|at| cluster.brick(at, "every")).to_vec();
    let mut create = vec!["volume", "create", "every", "replica", "3"];
    create.extend(bricks.iter().map(String::as_str));
    create.extend(["--brick-size", "256M", "force"]);
    let option = "performance.write-behind";
    let (new, server) = (cluster.server(stranger), cluster.server(3));
    for args in [
        &create[..],
        &["volume", "start", "every"],
        &["volume", "set", "every", option, "off"],
        &["volume", "reset", "every", option],
        &["volume", "get", "every", "all"],
        &["volume", "list"],
        &["volume", "info"],
        &["volume", "status", "every"],
        &["volume", "status", "every", "detail"],
        &["peer", "status"],
        &["pool", "list"],
        &["peer", "probe", &server],
        &["peer", "probe", &new],
        &["peer", "detach", &new],
        &["cluster", "status"],
        &["operation", "list"],
    ] {
        cluster.ok(n, args);
    }
    cluster.wait_whole(n, SOON);
    let mount = cluster.mount(&[cluster.server(n)], "every");
    std::fs::write(mount.join("file"), b"written").expect("write");
    mount.umount();
    cluster.ok(n, &["volume", "stop", "every"]);
    cluster.ok(n, &["volume", "delete", "every"]);
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn up_to_five_vote_and_one_that_is_lost_is_replaced() {
    const LEARNER: u8 = 6;
    let mut cluster = Cluster::apart(Net::Loopback, 7);
    for (count, voters) in [(2, 1), (3, 3), (4, 3), (5, 5), (LEARNER, 5)] {
        cluster.ok(count - 1, &["peer", "probe", &cluster.server(count)]);
        for n in 1..=count {
            // As soon as the new one is a member it answers; a little later it votes, if there is a seat.
            tool::wait_for("the voters", SOON, || {
                let first: Vec<u8> = (1..=voters).collect();
                let rest: Vec<u8> = (voters + 1..=count).collect();
                let learners = with_role(&cluster, n, &["learner"]);
                (voting(&cluster, n) == first && learners == rest).then_some(())
            });
        }
    }
    assert!(line_of(&cluster, 1, LEARNER).contains("learner"));
    answers_every_command(&cluster, LEARNER, 7);

    // One that does not lead is gone for good: the learner takes its seat, not at once, and commands go on meanwhile.
    let bricks = cluster.brick(1, "own");
    cluster.create_plain(2, "own", &bricks);
    let leader = cluster.leader(LEARNER);
    let lost = (2..=5).find(|n| *n != leader).expect("another");
    cluster.kill(lost);
    let (start, mut turn) = (Instant::now(), 0_u8);
    let left: Vec<u8> = (1..=LEARNER).filter(|n| *n != lost).collect();
    while voting(&cluster, LEARNER) != left {
        let value = ["off", "on"][usize::from(turn % 2)];
        let at = left[usize::from(turn) % left.len()];
        cluster.ok(
            at,
            &["volume", "set", "own", "performance.write-behind", value],
        );
        let line = line_of(&cluster, at, lost);
        assert!(
            start.elapsed() < Duration::from_secs(5) || line.contains("NO ANSWER"),
            "{line}"
        );
        assert!(
            start.elapsed() < LOST_AFTER + SOON,
            "{}",
            cluster.ok(1, &["cluster", "status"])
        );
        std::thread::sleep(Duration::from_millis(500));
        turn = turn.wrapping_add(1);
    }
    let took = start.elapsed();
    eprintln!(
        "node {lost}, which voted, was replaced {took:?} after its end; {turn} commands meanwhile"
    );
    assert!(took > LOST_AFTER - Duration::from_secs(3), "{took:?}");
    assert!(line_of(&cluster, 1, LEARNER).contains("voter"));

    // The new voter counts: two more may go, the leader among them.
    let leader = cluster.leader(LEARNER);
    let other = left
        .iter()
        .copied()
        .find(|n| *n != leader && *n != LEARNER && *n != 1);
    let other = other.expect("another");
    cluster.kill(leader);
    cluster.kill(other);
    for n in left.iter().copied().filter(|n| *n != leader && *n != other) {
        tool::wait_for("commands with three of five", SOON, || {
            let set = ["volume", "set", "own", "performance.write-behind", "off"];
            cluster.mortar(n, &set).status.success().then_some(())
        });
    }
    // Whoever comes back learns, as there is no seat.
    cluster.start(lost);
    tool::wait_for("the lost node as a learner", SOON, || {
        let learners = with_role(&cluster, lost, &["learner"]);
        (learners.contains(&lost) && line_of(&cluster, lost, lost).contains("asked")).then_some(())
    });
    cluster.ok(
        lost,
        &["volume", "set", "own", "performance.write-behind", "on"],
    );
}

/// Commands that a node has applied, as it says itself.
fn applied(cluster: &Cluster, n: u8) -> Option<u64> {
    let status = cluster.status(n);
    let nodes = status["nodes"].as_array()?.clone();
    let own = nodes.into_iter().find(|node| {
        let addrs = node["addresses"].as_array();
        addrs.is_some_and(|addrs| addrs.contains(&cluster.server(n).into()))
    });
    own?["told"]["applied"].as_u64()
}

/// What a node says of volumes.
fn volumes_of(cluster: &Cluster, n: u8) -> [String; 3] {
    [
        &["volume", "list"][..],
        &["volume", "info"],
        &["volume", "get", "vol", "all"],
    ]
    .map(|args| cluster.ok(n, args))
}

#[test]
fn a_node_that_missed_more_than_the_log_keeps_gets_a_snapshot() {
    // A snapshot is made every 1,024 commands, and the log then keeps 256 before it.
    const MISSED: u32 = 2_400;
    let mut cluster = Cluster::new(Net::Loopback, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let gone = cluster.brick(2, "gone");
    cluster.create_plain(1, "gone", &gone);
    cluster.wait_joined();
    let before = volumes_of(&cluster, 3);
    cluster.kill(3);
    cluster.ok(1, &["volume", "delete", "gone"]);
    let fresh = cluster.brick(1, "fresh");
    cluster.create_plain(2, "fresh", &fresh);
    let at = applied(&cluster, 1).expect("commands");
    let set = |n: u32| AdminRequest::Set {
        volume: "vol".to_owned(),
        options: vec![("cluster.open-wait".to_owned(), (n % 50 + 1).to_string())],
    };
    let requests = (0..MISSED).map(set).collect();
    let (answers, took) = tool::timed(|| admin::ask_all(&cluster.server(1), requests, 16));
    eprintln!("{MISSED} commands in {took:?}");
    let refused = answers
        .iter()
        .find(|answer| !matches!(answer, AdminReply::Done | AdminReply::Notes(_)));
    assert!(refused.is_none(), "{refused:?}");
    cluster.ok(1, &["volume", "set", "vol", "cluster.open-wait", "51"]);
    let newest = applied(&cluster, 1).expect("commands");
    assert!(
        newest > at + u64::from(MISSED),
        "{at} before, {newest} after"
    );

    cluster.start(3);
    cluster.wait_ready(3);
    let (_, took) = tool::timed(|| {
        tool::wait_for("all commands at the node that was away", SOON, || {
            (applied(&cluster, 3)? >= newest).then_some(())
        });
    });
    eprintln!("the node that was away has them {took:?} after it answered");
    cluster.wait_joined();
    cluster.wait_whole(3, SOON);
    let now = volumes_of(&cluster, 1);
    assert!(now[1].contains("cluster.open-wait: 51\n"), "{}", now[1]);
    assert!(
        now[0].contains("fresh\n") && !now[0].contains("gone"),
        "{}",
        now[0]
    );
    assert!(now != before);
    assert_eq!(volumes_of(&cluster, 3), now);
    // Of its own copy, with nobody to ask, also after a restart.
    cluster.kill(1);
    cluster.kill(2);
    assert_eq!(volumes_of(&cluster, 3), now);
    cluster.kill(3);
    cluster.start(3);
    cluster.wait_ready(3);
    assert_eq!(volumes_of(&cluster, 3), now);
}
