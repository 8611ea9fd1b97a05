//! Samples of what nodes ask each other, and of what a person asks about a cluster.

use mortar_protocol::admin::{
    AdminReply, AdminRequest, BrickSpec, ClusterStatus, CreateVolume, NodeStatus, NodeTold,
    OperationInfo, PartialSet, PeerInfo, PeerState, Role,
};
use mortar_protocol::ids::{BrickId, ClusterId, NodeId, RunId, SetIndex};
use mortar_protocol::node::{BrickHealth, BrickTask, NodeHealth, NodeReply, NodeRequest, RaftKind};
use mortar_protocol::report::{BrickEvent, FromBrick, ToBrick};
use mortar_protocol::view::{BrickInfo, SetKind};
use mortar_protocol::watch::Sum;

use super::cluster::{SPACE, addr, addr6, volume};
use super::{SET, view};

fn peer() -> PeerInfo {
    PeerInfo {
        id: NodeId(5),
        host: "node-5".to_owned(),
        other_names: vec!["node-5.example.org".to_owned()],
        addrs: vec![addr(), addr6()],
        state: PeerState::Joined,
        connected: true,
        is_self: false,
    }
}

fn told() -> NodeTold {
    NodeTold {
        version: "0.1.0".to_owned(),
        pid: 99,
        clock_ms: -1_500,
        uptime_secs: 86_400,
        applied: 1_000,
        bricks: 12,
        space: (1 << 42, 1 << 41),
    }
}

fn operation() -> OperationInfo {
    OperationInfo {
        id: 0x0102_0304,
        what: "volume create".to_owned(),
        target: "vol".to_owned(),
        since_secs: 1_700_000_000,
        waits_for: "node-5".to_owned(),
    }
}

fn cluster_status() -> ClusterStatus {
    let spec = BrickSpec {
        host: "node-5".to_owned(),
        path: "/bricks/1".to_owned(),
    };
    let node = |role, told| NodeStatus {
        peer: peer(),
        role,
        told,
    };
    ClusterStatus {
        cluster: ClusterId(1),
        has_majority: true,
        nodes: vec![node(Role::Leader, Some(told())), node(Role::Learner, None)],
        volumes: (5, 4),
        sets: 12,
        partial_sets: vec![PartialSet {
            volume: "vol".to_owned(),
            index: 3,
            serves: true,
            missing: vec![(spec, "its node does not answer".to_owned())],
        }],
        operations: vec![operation()],
    }
}

/// States of a node, and its parts in the consensus.
pub(super) fn node_words() -> (Vec<PeerState>, Vec<Role>) {
    (
        vec![PeerState::Joining, PeerState::Joined, PeerState::Leaving],
        vec![Role::Leader, Role::Voter, Role::Learner, Role::Outside],
    )
}

pub(super) fn cluster_requests() -> Vec<(&'static str, AdminRequest)> {
    let host = || "node-5".to_owned();
    vec![
        ("Probe", AdminRequest::Probe { host: host() }),
        (
            "Detach",
            AdminRequest::Detach {
                host: host(),
                force: true,
            },
        ),
        ("Peers", AdminRequest::Peers),
        ("Cluster", AdminRequest::Cluster),
        ("Operations", AdminRequest::Operations),
    ]
}

pub(super) fn cluster_replies() -> Vec<(&'static str, AdminReply)> {
    vec![
        ("Peers", AdminReply::Peers(vec![peer()])),
        ("Cluster", AdminReply::Cluster(Box::new(cluster_status()))),
        ("Operations", AdminReply::Operations(vec![operation()])),
    ]
}

pub(super) fn raft_kinds() -> Vec<(&'static str, RaftKind)> {
    let snapshot = RaftKind::Snapshot {
        offset: 1 << 20,
        total: 3 << 20,
    };
    vec![
        ("Append", RaftKind::Append),
        ("Vote", RaftKind::Vote),
        ("Snapshot", snapshot),
    ]
}

fn brick() -> BrickInfo {
    BrickInfo {
        id: BrickId(1),
        node: NodeId(5),
        host: "node-5".to_owned(),
        path: "/bricks/1".to_owned(),
    }
}

pub(super) fn node_requests() -> Vec<(&'static str, NodeRequest)> {
    let task = || BrickTask {
        volume: volume(),
        set: SetIndex(1),
        brick: brick(),
        size: Some(1 << 30),
        force: true,
    };
    let report = FromBrick {
        set: SET,
        brick: BrickId(1),
        run: RunId(2),
        event: BrickEvent::Stopped,
    };
    let create = CreateVolume {
        name: "vol".to_owned(),
        kind: SetKind::Plain,
        bricks: vec![BrickSpec {
            host: "node-5".to_owned(),
            path: "/bricks/1".to_owned(),
        }],
        brick_size: None,
        force: false,
    };
    let orders = vec![
        (BrickId(1), ToBrick::View(view())),
        (BrickId(2), ToBrick::Stop),
    ];
    vec![
        ("Raft", NodeRequest::Raft(RaftKind::Vote)),
        ("Reports", NodeRequest::Reports(vec![report])),
        ("Orders", NodeRequest::Orders(orders)),
        ("Propose", NodeRequest::Propose),
        ("Lead", NodeRequest::Lead(AdminRequest::Peers)),
        (
            "Create",
            NodeRequest::Create {
                volume: SET.volume,
                create,
                bricks: vec![brick()],
            },
        ),
        ("Check", NodeRequest::Check(task())),
        ("Format", NodeRequest::Format(task())),
        ("Health", NodeRequest::Health),
        ("Stats", NodeRequest::Stats(vec![BrickId(1), BrickId(2)])),
        ("Leave", NodeRequest::Leave),
    ]
}

pub(super) fn node_replies() -> Vec<(&'static str, NodeReply)> {
    let brick = BrickHealth {
        online: true,
        run: Some(RunId(2)),
        reason: "it catches up".to_owned(),
        space: Some(SPACE),
    };
    let health = NodeHealth {
        cluster: ClusterId(1),
        told: told(),
        bricks: vec![(BrickId(1), brick), (BrickId(2), BrickHealth::default())],
    };
    vec![
        ("Raft", NodeReply::Raft),
        ("Taken", NodeReply::Taken),
        ("NotLeader", NodeReply::NotLeader(Some(NodeId(5)))),
        ("Outcome", NodeReply::Outcome),
        ("Admin", NodeReply::Admin(Box::new(AdminReply::Done))),
        ("Failed", NodeReply::Failed("no".to_owned())),
        ("Health", NodeReply::Health(Box::new(health))),
        ("Stats", NodeReply::Stats(vec![Sum::default(); 2])),
    ]
}
