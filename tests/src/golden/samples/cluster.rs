//! Samples of what members, the control plane and people say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::admin::{
    AdminReply, AdminRequest, BrickSpec, BrickStatus, CreateVolume, NodeInfo,
};
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object, Space};
use mortar_protocol::ids::{BootId, BrickId, Epoch, NodeId, RunId, Seq, SessionId, SetIndex};
use mortar_protocol::peer::{History, PeerFrame, PeerMessage};
use mortar_protocol::placement::Layout;
use mortar_protocol::report::{BrickEvent, MemberRuns, SetShape, ToBrick};
use mortar_protocol::view::{BrickInfo, SetKind, VolumeInfo, VolumeState};
use mortar_protocol::watch::OpStats;

use super::{ID, OTHER, SESSION, SET, STAGE, envelope, pos, view};

const OBJECT: Object = Object { id: ID, shard: 4 };

pub(super) const SPACE: Space = Space {
    total: 1 << 40,
    free: 1 << 39,
    free_now: 1 << 38,
    ring_free: 8 << 20,
    inodes: 1_000,
};

pub(super) fn volume() -> VolumeInfo {
    let brick = |id: u128| BrickInfo {
        id: BrickId(id),
        node: NodeId(5),
        host: "host".to_owned(),
        path: format!("/bricks/{id}"),
    };
    VolumeInfo {
        id: SET.volume,
        name: "vol".to_owned(),
        kind: SetKind::Replicate { copies: 3 },
        state: VolumeState::Started,
        layout: Layout::even(2),
        sets: vec![vec![brick(1), brick(2), brick(3)], vec![brick(4)]],
        options: BTreeMap::from([("auth.allow".to_owned(), "*".to_owned())]),
        shard_size: 64 << 20,
        version: 12,
    }
}

pub(super) fn addr() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 24_007))
}

pub(super) fn addr6() -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 24_007))
}

fn history() -> History {
    History {
        base: pos(1, 10),
        starts: vec![pos(1, 11), pos(3, 20)],
        head: pos(3, 25),
    }
}

pub(super) fn peer_messages() -> Vec<PeerMessage> {
    vec![
        PeerMessage::Begin { view: view() },
        PeerMessage::State {
            history: history(),
            applied: pos(1, 9),
            flushed: Seq(24),
            join: true,
        },
        PeerMessage::Append {
            prev: pos(3, 25),
            commit: Seq(24),
            announced: Seq(20),
            flush: Seq(25),
            serving: true,
        },
        PeerMessage::Written {
            written: pos(3, 25),
            flushed: Seq(24),
            space: SPACE,
        },
        PeerMessage::AskCommit,
        PeerMessage::StageWanted {
            at: pos(3, 26),
            stage: STAGE,
        },
        PeerMessage::StageData { stage: STAGE },
    ]
}

pub(super) fn effects() -> Vec<(&'static str, Effect)> {
    let (object, offset, len) = (OBJECT, 4_096, 8_192);
    let share = Effect::Share {
        from: Object {
            id: OTHER,
            shard: 0,
        },
        from_offset: 0,
        object,
        offset,
        len,
    };
    vec![
        (
            "Put",
            Effect::Put {
                key: Bytes::from_static(b"Ikey"),
                value: Bytes::from_static(b"value"),
            },
        ),
        (
            "Del",
            Effect::Del {
                key: Bytes::from_static(b"Ikey"),
            },
        ),
        (
            "Write",
            Effect::Write {
                object,
                offset: 100,
                at: 3,
                len: 4,
            },
        ),
        (
            "Attach",
            Effect::Attach {
                object,
                offset,
                stage: STAGE,
                crcs: vec![0, u32::MAX, 7],
            },
        ),
        (
            "Punch",
            Effect::Punch {
                object,
                offset,
                len: u64::MAX,
            },
        ),
        (
            "Reserve",
            Effect::Reserve {
                object,
                offset,
                len,
                zero: true,
            },
        ),
        ("Share", share),
    ]
}

pub(super) fn entry_kinds() -> Vec<(&'static str, EntryKind)> {
    let change = EntryKind::Change {
        session: SESSION,
        number: 12,
        answered_below: 10,
        result: Bytes::from_static(b"\x00\x01"),
    };
    vec![
        ("Change", change),
        ("View", EntryKind::View(view())),
        ("Joiner", EntryKind::Joiner(BrickId(3))),
        (
            "SessionBegin",
            EntryKind::SessionBegin {
                session: SESSION,
                uid: 1_000,
            },
        ),
        ("SessionEnd", EntryKind::SessionEnd(SESSION)),
        ("Internal", EntryKind::Internal),
    ]
}

pub(super) fn events() -> Vec<(&'static str, BrickEvent)> {
    let started = BrickEvent::Started {
        node: NodeId(5),
        boot: BootId(6),
        history: history(),
        member: Some(MemberRuns {
            runs: vec![RunId(1), RunId(2)],
            boot: BootId(5),
            clean: true,
        }),
        view: Some(view()),
        damaged: true,
        space: SPACE,
    };
    let (epoch, joiner, run) = (Epoch(4), BrickId(3), RunId(9));
    vec![
        ("Started", started),
        ("Adopted", BrickEvent::Adopted { epoch }),
        ("Joining", BrickEvent::Joining { epoch, joiner, run }),
        ("Propose", BrickEvent::Propose { epoch, joiner, run }),
        (
            "CannotFollow",
            BrickEvent::CannotFollow {
                epoch,
                member: joiner,
                run,
            },
        ),
        (
            "Poisoned",
            BrickEvent::Poisoned {
                reason: "a flush failed".to_owned(),
            },
        ),
        (
            "SilentSessions",
            BrickEvent::SilentSessions {
                sessions: vec![SESSION],
            },
        ),
        ("Stopped", BrickEvent::Stopped),
    ]
}

pub(super) fn orders() -> Vec<(&'static str, ToBrick)> {
    let shape = SetShape {
        index: SetIndex(1),
        kind: SetKind::Disperse {
            data: 4,
            redundancy: 2,
        },
        layout: Layout::even(3),
        shard_size: 64 << 20,
        durable: true,
        session_timeout_ms: 20_000,
        open_wait_ms: 10_000,
        read_only: false,
        reserve_percent: 0,
    };
    vec![
        ("View", ToBrick::View(view())),
        ("Shape", ToBrick::Shape(shape)),
        (
            "Sessions",
            ToBrick::Sessions {
                below: SessionId(80),
                live: vec![SESSION],
            },
        ),
        ("Report", ToBrick::Report),
        ("Stop", ToBrick::Stop),
    ]
}

pub(super) fn admin_requests() -> Vec<(&'static str, AdminRequest)> {
    let volume = || "vol".to_owned();
    let create = CreateVolume {
        name: volume(),
        kind: SetKind::Plain,
        bricks: vec![BrickSpec {
            host: "host".to_owned(),
            path: "/bricks/1".to_owned(),
        }],
        brick_size: Some(1 << 30),
        force: true,
    };
    let options = vec![("auth.allow".to_owned(), "*".to_owned())];
    let option = Some("auth.allow".to_owned());
    vec![
        (
            "Layout",
            AdminRequest::Layout {
                volume: volume(),
                newer_than: 4,
            },
        ),
        (
            "OpenSession",
            AdminRequest::OpenSession { volume: volume() },
        ),
        ("Views", AdminRequest::Views { sets: vec![SET] }),
        ("Create", AdminRequest::Create(create)),
        (
            "Start",
            AdminRequest::Start {
                volume: volume(),
                force: true,
            },
        ),
        (
            "Stop",
            AdminRequest::Stop {
                volume: volume(),
                force: false,
            },
        ),
        ("Delete", AdminRequest::Delete { volume: volume() }),
        (
            "Info",
            AdminRequest::Info {
                volume: Some(volume()),
            },
        ),
        ("Status", AdminRequest::Status { volume: volume() }),
        (
            "Set",
            AdminRequest::Set {
                volume: volume(),
                options,
            },
        ),
        (
            "Reset",
            AdminRequest::Reset {
                volume: volume(),
                option,
            },
        ),
        ("Node", AdminRequest::Node),
        ("Stats", AdminRequest::Stats { volume: volume() }),
    ]
}

pub(super) fn stats() -> Vec<OpStats> {
    vec![OpStats {
        name: "read".to_owned(),
        count: 1_000,
        failed: 1,
        mean_ns: 120_000,
        p50_ns: 100_000,
        p90_ns: 200_000,
        p99_ns: 300_000,
        p999_ns: 400_000,
        max_ns: 5_000_000_000,
    }]
}

pub(super) fn admin_replies() -> Vec<(&'static str, AdminReply)> {
    let layout = AdminReply::Layout {
        volume: volume(),
        views: vec![Some(view()), None],
        nodes: vec![(NodeId(5), vec![addr(), addr6()])],
        version: 7,
    };
    let brick = BrickStatus {
        brick: BrickId(1),
        spec: BrickSpec {
            host: "host".to_owned(),
            path: "/bricks/1".to_owned(),
        },
        online: true,
        in_sync: false,
        port: 24_007,
        pid: 99,
        reason: "it catches up".to_owned(),
        space: Some(SPACE),
    };
    let node = NodeInfo {
        id: NodeId(5),
        addrs: vec![addr()],
        pid: 99,
        version: "0.1.0".to_owned(),
    };
    let status = AdminReply::Status {
        volume: volume(),
        bricks: vec![brick],
        clients: 2,
    };
    vec![
        ("Layout", layout),
        ("Session", AdminReply::Session(SESSION)),
        ("Views", AdminReply::Views(vec![view()])),
        ("Done", AdminReply::Done),
        ("Notes", AdminReply::Notes(vec!["a note".to_owned()])),
        ("Volumes", AdminReply::Volumes(vec![volume()])),
        ("Status", status),
        ("Node", AdminReply::Node(node)),
        (
            "Refused",
            AdminReply::Refused {
                message: "no".to_owned(),
            },
        ),
        ("Stats", AdminReply::Stats(stats())),
    ]
}

/// Entries as they travel behind an append.
pub(super) fn entries() -> Bytes {
    let entry = |(at, (_, kind)): (usize, (&str, EntryKind))| {
        Arc::new(Entry {
            pos: pos(3, 26 + at as u64),
            kind,
            effects: effects().into_iter().map(|(_, effect)| effect).collect(),
            body: Bytes::from(vec![at as u8; at]),
        })
    };
    let frame = PeerFrame {
        envelope: envelope(PeerMessage::AskCommit),
        entries: entry_kinds().into_iter().enumerate().map(entry).collect(),
        data: Bytes::new(),
    };
    mortar_protocol::peer::encode_entries(&frame.entries).unwrap_or_default()
}
