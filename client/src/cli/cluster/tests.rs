//! Clusters that are well and not.

use mortar_protocol::admin::{
    BrickSpec, ClusterStatus, NodeStatus, NodeTold, PartialSet, PeerInfo, PeerState, Role,
};
use mortar_protocol::ids::{ClusterId, NodeId};

use super::*;
use crate::cli::flags::Program;
use crate::cli::tests::run;
use crate::cli::world::tests::Told;

const NOW: i64 = 1_000_000;

fn node(at: u8, role: Role) -> NodeStatus {
    NodeStatus {
        peer: PeerInfo {
            id: NodeId(u128::from(at)),
            host: format!("node{at}.example.org"),
            other_names: Vec::new(),
            addrs: vec![([10, 0, 0, at], 24_007).into()],
            state: PeerState::Joined,
            connected: true,
            is_self: at == 1,
        },
        role,
        told: Some(NodeTold {
            version: "0.1.0".to_owned(),
            pid: 100 + u32::from(at),
            clock_ms: 3 * i64::from(at - 1),
            uptime_secs: 93_784,
            applied: 5_000,
            bricks: 12,
            space: (3 << 40, 2 << 40),
        }),
    }
}

fn well() -> ClusterStatus {
    ClusterStatus {
        cluster: ClusterId(0x31c6_d837_b998_4efb_b2ea_4d02_5b27_690a),
        has_majority: true,
        nodes: vec![
            node(1, Role::Leader),
            node(2, Role::Voter),
            node(3, Role::Voter),
            node(4, Role::Learner),
        ],
        volumes: (5, 4),
        sets: 12,
        partial_sets: Vec::new(),
        operations: Vec::new(),
    }
}

fn silence(node: &mut NodeStatus) {
    node.peer.connected = false;
    node.told = None;
}

fn partial(index: u32, serves: bool) -> PartialSet {
    let spec = BrickSpec {
        host: "node3.example.org".to_owned(),
        path: format!("/b{index}"),
    };
    PartialSet {
        volume: "vol".to_owned(),
        index,
        serves,
        missing: vec![(spec, "its node does not answer".to_owned())],
    }
}

fn operation(age: i64) -> OperationInfo {
    OperationInfo {
        id: 7,
        what: "volume create".to_owned(),
        target: "new".to_owned(),
        since_secs: NOW - age,
        waits_for: "node3.example.org".to_owned(),
    }
}

fn problems_of(change: impl FnOnce(&mut ClusterStatus)) -> Vec<String> {
    let mut status = well();
    change(&mut status);
    problems::all(&status, NOW)
}

#[test]
fn a_cluster_that_is_well_says_so_on_one_screen() {
    assert_eq!(
        text::cluster(&well(), NOW),
        "All is well.\n\n\
         Cluster 31c6d837-b998-4efb-b2ea-4d025b27690a\n\
         Nodes: 4; voters: 3 of 3 answer, a majority\n\
         Volumes: 4 of 5 started; sets: 12 of 12 whole; space of open bricks: 8.0TB free of 12.0TB\n\n\
         \x20 NODE              ROLE    STATE     VERSION CLOCK UP    BRICKS FREE  OF\n\
         \x20 node1.example.org leader  asked     0.1.0   0     1d02h 12     2.0TB 3.0TB\n\
         \x20 node2.example.org voter   connected 0.1.0   +3ms  1d02h 12     2.0TB 3.0TB\n\
         \x20 node3.example.org voter   connected 0.1.0   +6ms  1d02h 12     2.0TB 3.0TB\n\
         \x20 node4.example.org learner connected 0.1.0   +9ms  1d02h 12     2.0TB 3.0TB\n\n\
         No operations in progress\n"
    );
}

#[test]
fn what_is_wrong_stands_first_worst_before_the_rest() {
    let mut status = well();
    status.has_majority = false;
    status.nodes[0].role = Role::Voter;
    silence(&mut status.nodes[1]);
    silence(&mut status.nodes[2]);
    status.partial_sets = vec![partial(1, true), partial(4, false)];
    status.operations = vec![operation(90)];
    let text = text::cluster(&status, NOW);
    let lines: Vec<&str> = text.lines().collect();
    let want = [
        "6 problems:",
        "  ! NO MAJORITY: 1 of 3 voters answer. Nothing can be created, changed or removed; files are served where all \
         members of a set are alive. Bring back node2.example.org, node3.example.org.",
        "  ! Volume vol, set 4, DOES NOT SERVE; missing: node3.example.org:/b4 (its node does not answer)",
        "  ! Node node2.example.org does not answer (UDP 10.0.0.2:24007): is mortard running there, and the network up?",
        "  ! Node node3.example.org does not answer (UDP 10.0.0.3:24007): is mortard running there, and the network up?",
        "  ! Volume vol, set 1, serves without node3.example.org:/b1 (its node does not answer)",
        "  ! volume create new: waits for node3.example.org, for 1m30s already.",
        "",
    ];
    assert_eq!(lines[..8], want, "{text}");
    assert!(text.contains("NO majority\n"), "{text}");
    assert!(
        text.contains("  node3.example.org voter   NO ANSWER -       -     -     -      -     -\n"),
        "{text}"
    );
    assert!(text.ends_with(
        "  OPERATION     TARGET FOR   WAITS FOR\n  volume create new    1m30s node3.example.org\n"
    ), "{text}");
}

#[test]
fn every_condition_is_a_line() {
    assert!(problems_of(|_| {}).is_empty());
    let told = |status: &mut ClusterStatus, change: fn(&mut NodeTold)| {
        change(status.nodes[1].told.as_mut().expect("it answers"));
    };
    let one = |lines: Vec<String>| {
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.concat()
    };
    let clock = one(problems_of(|status| {
        told(status, |told| told.clock_ms = -1_400)
    }));
    assert!(
        clock.starts_with("The clock of node node2.example.org is -1.4s against that of node1"),
        "{clock}"
    );
    assert!(problems_of(|status| told(status, |told| told.clock_ms = 1_000)).is_empty());
    let space = one(problems_of(|status| {
        told(status, |told| told.space = (1_000, 99))
    }));
    assert_eq!(space, "Node node2.example.org has 9 % of its space left.");
    assert!(problems_of(|status| told(status, |told| told.space = (0, 0))).is_empty());
    let behind = one(problems_of(|status| {
        told(status, |told| told.applied = 4_000)
    }));
    assert!(behind.contains("1000 commands behind"), "{behind}");
    let versions = one(problems_of(|status| {
        told(status, |told| told.version = "0.2.0".to_owned())
    }));
    assert_eq!(
        versions,
        "Versions differ: 0.1.0 on node1.example.org, node3.example.org, node4.example.org; 0.2.0 on \
         node2.example.org."
    );
    let leader = one(problems_of(|status| status.nodes[0].role = Role::Voter));
    assert!(leader.starts_with("No node leads yet"), "{leader}");
    let joining = one(problems_of(|status| {
        status.nodes[3].peer.state = PeerState::Joining
    }));
    assert!(joining.contains("was told to join"), "{joining}");
    let leaving = one(problems_of(|status| {
        status.nodes[3].peer.state = PeerState::Leaving
    }));
    assert!(leaving.contains("is being taken out"), "{leaving}");
    let fragile = problems_of(|status| silence(&mut status.nodes[2]));
    assert!(
        fragile[0].starts_with("No voter may be lost now: 2 of 3 answer."),
        "{fragile:?}"
    );
    assert_eq!(fragile.len(), 2);
    assert_eq!(
        problems_of(|status| silence(&mut status.nodes[3])).len(),
        1,
        "a learner has no vote"
    );
    assert!(problems_of(|status| status.operations = vec![operation(60)]).is_empty());
    assert_eq!(
        problems_of(|status| status.operations = vec![operation(61)]).len(),
        1
    );
}

#[test]
fn a_cluster_of_one_or_two_is_well_too() {
    for count in 1..=2 {
        assert!(
            problems_of(|status| status.nodes.truncate(count)).is_empty(),
            "{count}"
        );
    }
}

#[test]
fn durations_and_clocks_have_units() {
    for (secs, said) in [
        (-5, "0s"),
        (59, "59s"),
        (61, "1m01s"),
        (3_600, "1h00m"),
        (86_399, "23h59m"),
        (86_400, "1d00h"),
    ] {
        assert_eq!(text::age(secs), said);
    }
    for (millis, said) in [
        (0, "0"),
        (-7, "-7ms"),
        (1_400, "+1.4s"),
        (-7_200_000, "-2h00m"),
    ] {
        assert_eq!(text::clock(millis), said);
    }
}

#[test]
fn commands_ask_and_print() {
    let reply = || Told::with([AdminReply::Cluster(Box::new(well()))]);
    let said = run(Program::Mortar, "cluster status", &mut reply());
    assert!(said.out.starts_with("All is well.\n"), "{}", said.out);
    let said = run(Program::Mortar, "cluster status --json", &mut reply());
    let value: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(value["has_majority"], true);
    assert_eq!(value["problems"], serde_json::json!([]));
    assert_eq!(value["nodes"][0]["role"], "leader");
    assert_eq!(value["nodes"][1]["told"]["clock_ms"], 3);
    assert_eq!(
        value["volumes"],
        serde_json::json!({ "total": 5, "started": 4 })
    );
    let said = run(Program::Mortar, "cluster status --xml", &mut reply());
    assert!(
        said.out.contains("use --json") && said.code == 1,
        "{said:?}"
    );

    let said = run(
        Program::Mortar,
        "operation list",
        &mut Told::with([AdminReply::Operations(Vec::new())]),
    );
    assert_eq!(said.out, "No operations in progress\n");
    let reply = || Told::with([AdminReply::Operations(vec![operation(0)])]);
    let said = run(Program::Mortar, "operation list", &mut reply());
    assert!(
        said.out.starts_with("  OPERATION     TARGET FOR"),
        "{}",
        said.out
    );
    let said = run(Program::Mortar, "op list --json", &mut reply());
    let value: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(value["operations"][0]["target"], "new");
    assert_eq!(
        value["operations"][0]["id"],
        "00000000000000000000000000000007"
    );
    let no = AdminReply::Refused {
        message: "no".to_owned(),
    };
    let said = run(Program::Mortar, "cluster status", &mut Told::with([no]));
    assert_eq!(
        (said.err.as_str(), said.code),
        ("cluster status: failed: no\n", 1)
    );
}
