//! A sample of every message.

use bytes::Bytes;
use mortar_protocol::admin::AdminRequest;
use mortar_protocol::attr::{Attr, Cred, FileKind, SetAttr, Time};
use mortar_protocol::enrol::{EnrolReply, Enrolment};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{
    Answer, Call, Change, Cut, DirEntry, Fop, InodeOp, LeftTxn, LockHeld, LockKind, LockOutcome,
    LockRequest, Part, Reply, Request, Stage, StageAnswer, TxnStatus, XattrMode,
};
use mortar_protocol::ids::{
    BrickId, ClusterId, Epoch, Gfid, InodeId, Mark, NodeId, Opening, Pos, RunId, Seq, SessionId,
    SetId, SetIndex, StageId, TxnId, VolumeId,
};
use mortar_protocol::node::NodeRequest;
use mortar_protocol::peer::{PeerEnvelope, PeerMessage};
use mortar_protocol::report::{BrickEvent, FromBrick};
use mortar_protocol::transport::tls::Credentials;
use mortar_protocol::view::{Member, SetKind, View, VolumeState};

use super::messages::Sample;
use cluster::{
    addr, addr6, admin_replies, admin_requests, effects, entries, entry_kinds, events, orders,
    peer_messages,
};
use nodes::{
    cluster_replies, cluster_requests, node_replies, node_requests, node_words, raft_kinds,
};
use parts::{inode_ops, parts};

mod cluster;
mod nodes;
mod parts;

pub(super) const ID: InodeId = InodeId(0x1234_0000_0000_0042);

pub(super) const OTHER: InodeId = InodeId(0xfedc_0000_0000_0007);

pub(super) const GFID: Gfid = Gfid {
    id: ID,
    generation: 0x0102_0304_0506_0708,
};

const TIME: Time = Time {
    secs: 1_700_000_000,
    nanos: 123_456_789,
};

pub(super) const CUT: Cut = Cut {
    opening: Opening(3),
    count: 2,
};

pub(super) const SESSION: SessionId = SessionId(77);

const TXN: TxnId = TxnId {
    session: SESSION,
    number: 9,
};

pub(super) const STAGE: StageId = StageId {
    session: SESSION,
    number: 300,
};

pub(super) const SET: SetId = SetId {
    volume: VolumeId(0x00ff_1122_3344_5566_7788_99aa_bbcc_ddee),
    index: SetIndex(1),
};

pub(super) fn name() -> Bytes {
    Bytes::from_static(b"name \xff")
}

pub(super) fn pos(epoch: u64, seq: u64) -> Pos {
    Pos {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    }
}

fn attr() -> Attr {
    Attr {
        gfid: GFID,
        kind: FileKind::File,
        perm: 0o4755,
        nlink: 2,
        uid: 1_000,
        gid: 100,
        rdev: 0,
        size: 123_456,
        blocks: 248,
        atime: TIME,
        mtime: Time { secs: -1, nanos: 0 },
        ctime: TIME,
        btime: Time::default(),
        change: 17,
        has_xattr: true,
    }
}

pub(super) fn set_attr() -> SetAttr {
    SetAttr {
        perm: Some(0o640),
        uid: Some(1),
        gid: Some(2),
        atime: Some(TIME),
        mtime: None,
        ctime: Some(TIME),
        kill_suid: true,
    }
}

fn cred() -> Cred {
    Cred {
        uid: 1_000,
        gid: 100,
        groups: vec![4, 24, 27],
    }
}

pub(super) fn view() -> View {
    let member = |brick, keeps_data| Member {
        brick: BrickId(brick),
        node: NodeId(5),
        run: RunId(6),
        keeps_data,
    };
    View {
        set: SET,
        epoch: Epoch(1 << 48 | 5),
        primary: BrickId(1),
        members: vec![member(1, true), member(2, false)],
        absent: vec![BrickId(3)],
        opening: Opening(2),
        effective: true,
    }
}

fn lock(kind: LockKind) -> LockRequest {
    LockRequest {
        id: ID,
        owner: u64::MAX,
        start: 10,
        end: u64::MAX,
        kind,
        pid: 4_321,
        wait: true,
    }
}

/// One file operation of each kind.
pub fn fops() -> Vec<Fop> {
    let (id, name) = (ID, name());
    let sets = vec![SetIndex(0), SetIndex(2)];
    let some = || vec![Part::TreeLock, Part::Purge { id }];
    vec![
        Fop::Lookup {
            parent: OTHER,
            name: name.clone(),
        },
        Fop::GetAttr { id },
        Fop::DirPart { dir: id },
        Fop::Links { id },
        Fop::ReadDir {
            dir: id,
            after: 3,
            max: 65_536,
            plus: true,
        },
        Fop::ReadLink { id },
        Fop::GetXattr { id, name },
        Fop::ListXattr { id },
        Fop::Read {
            id,
            shard: 2,
            offset: 100,
            len: 1 << 20,
            cut: CUT,
        },
        Fop::Seek {
            id,
            shard: 2,
            offset: 100,
            hole: true,
        },
        Fop::Open {
            id,
            known: Some(16),
            data: true,
        },
        Fop::Blocks { id, size: 70 },
        Fop::StatFs,
        Fop::Sync {
            upto: Mark {
                opening: Opening(2),
                seq: Seq(99),
            },
        },
        Fop::LockTest(lock(LockKind::Read)),
        Fop::LockWait(lock(LockKind::Write)),
        Fop::TxnState { txn: TXN },
        Fop::Renew {
            open: vec![ID],
            released: vec![OTHER],
        },
        Fop::SessionBegin,
        Fop::SessionEnd,
        Fop::Commit {
            parts: some(),
            time: TIME,
        },
        Fop::Change(Change {
            id,
            inode: true,
            cut: CUT,
            time: TIME,
            ops: vec![InodeOp::Modified],
        }),
        Fop::Prepare {
            txn: TXN,
            decider: SetIndex(2),
            parts: some(),
            time: TIME,
        },
        Fop::Decide {
            txn: TXN,
            sets,
            parts: some(),
            time: TIME,
        },
        Fop::Finish { txn: TXN },
        Fop::Abort { txn: TXN },
        Fop::Forget { txn: TXN },
        Fop::Lock(lock(LockKind::Unlock)),
        Fop::Claim {
            opening: Opening(3),
            locks: vec![lock(LockKind::Write)],
        },
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let entry = DirEntry {
        name: name(),
        gfid: GFID,
        kind: FileKind::Symlink,
        offset: 1 << 62,
        attr: Some(attr()),
    };
    let held = LockHeld {
        session: SESSION,
        owner: 5,
        start: 0,
        end: 9,
        kind: LockKind::Write,
        pid: 1,
    };
    let changed = Reply::Changed {
        before: 16,
        attr: Some(attr()),
        appended_at: Some(123),
        blocks: -8,
    };
    let statfs = Reply::StatFs {
        total: 4,
        free: 3,
        avail: 2,
        inodes: 1,
    };
    vec![
        ("Done", Reply::Done),
        (
            "Found",
            Reply::Found {
                gfid: GFID,
                kind: FileKind::Dir,
                attr: Some(attr()),
                missing: true,
            },
        ),
        ("Attr", Reply::Attr(attr(), CUT)),
        (
            "DirPart",
            Reply::DirPart {
                entries: 10,
                subdirs: 2,
                mtime: TIME,
                change: 33,
            },
        ),
        (
            "Links",
            Reply::Links {
                links: vec![(OTHER, name())],
                many: true,
            },
        ),
        (
            "Entries",
            Reply::Entries {
                entries: vec![entry],
                end: true,
            },
        ),
        ("Bytes", Reply::Bytes(Bytes::from_static(b"bytes"))),
        ("Data", Reply::Data { change: 17 }),
        ("Seek", Reply::Seek(Some(8_192))),
        (
            "Opened",
            Reply::Opened {
                attr: attr(),
                cut: CUT,
                data: true,
            },
        ),
        ("Blocks", Reply::Blocks(24)),
        ("StatFs", statfs),
        ("Lock", Reply::Lock(Some(held))),
        (
            "Locked",
            Reply::Locked {
                outcome: LockOutcome::Queued,
                attr: Some(attr()),
            },
        ),
        ("Txn", Reply::Txn(TxnStatus::Decided(vec![SetIndex(0)]))),
        (
            "Renewed",
            Reply::Renewed {
                orphans: vec![ID],
                garbage: vec![(OTHER, 1 << 30)],
                claim: Some(Opening(3)),
                left: vec![
                    LeftTxn::Intent {
                        txn: TXN,
                        decider: SetIndex(1),
                    },
                    LeftTxn::Decided {
                        txn: TXN,
                        sets: vec![SetIndex(0)],
                    },
                ],
            },
        ),
        ("Parts", Reply::Parts(vec![attr()])),
        ("Changed", changed),
        (
            "DirAttr",
            Reply::DirAttr {
                attr: attr(),
                others: 40,
                otherwise: TIME,
            },
        ),
        (
            "Claimed",
            Reply::Claimed {
                lost: vec![(ID, 5)],
            },
        ),
    ]
}

fn faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("Refused", Fault::Refused(Errno::ENOTEMPTY)),
        ("NotPrimary", Fault::NotPrimary(Some(Box::new(view())))),
        ("NotServing", Fault::NotServing),
        ("UnknownBrick", Fault::UnknownBrick),
        ("UnknownSession", Fault::UnknownSession),
        (
            "Intent",
            Fault::Intent {
                txn: TXN,
                decider: SetIndex(1),
                age_ms: 500,
            },
        ),
        ("IdTaken", Fault::IdTaken),
        ("NoStage", Fault::NoStage),
        ("Protocol", Fault::Protocol),
        ("Lost", Fault::Lost(Opening(4))),
        ("Corrupt", Fault::Corrupt),
        ("NotAuthorised", Fault::NotAuthorised),
        ("StaleView", Fault::StaleView(Epoch(8))),
    ]
}

fn call(fop: Fop) -> Call {
    Call {
        brick: BrickId(1),
        epoch: Epoch(5),
        session: SESSION,
        number: 12,
        answered_below: 10,
        repeat: true,
        after: 11,
        cred: cred(),
        durable: true,
        fop,
    }
}

fn answer(result: Result<Reply, Fault>) -> Answer {
    Answer {
        mark: Mark {
            opening: Opening(2),
            seq: Seq(99),
        },
        flushed: Seq(98),
        result,
    }
}

pub(super) fn envelope(message: PeerMessage) -> PeerEnvelope {
    PeerEnvelope {
        from: BrickId(1),
        run: RunId(2),
        to: BrickId(3),
        epoch: Epoch(4),
        message,
    }
}

/// Words: enums without much in them.
fn words(all: &mut Vec<Sample>) {
    let kinds = [
        FileKind::File,
        FileKind::Dir,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::CharDevice,
        FileKind::BlockDevice,
    ];
    all.extend(kinds.map(|kind| Sample::new(&format!("FileKind.{kind:?}"), kind)));
    all.extend(Errno::ALL.map(|errno| Sample::new(&format!("Errno.{errno:?}"), errno)));
    let modes = [XattrMode::Set, XattrMode::Create, XattrMode::Replace];
    all.extend(modes.map(|mode| Sample::new(&format!("XattrMode.{mode:?}"), mode)));
    let locks = [LockKind::Read, LockKind::Write, LockKind::Unlock];
    all.extend(locks.map(|kind| Sample::new(&format!("LockKind.{kind:?}"), kind)));
    let outcomes = [LockOutcome::Granted, LockOutcome::Queued, LockOutcome::Busy];
    all.extend(outcomes.map(|word| Sample::new(&format!("LockOutcome.{word:?}"), word)));
    let states = [
        VolumeState::Created,
        VolumeState::Started,
        VolumeState::Stopped,
    ];
    all.extend(states.map(|word| Sample::new(&format!("VolumeState.{word:?}"), word)));
    all.push(Sample::new(
        "TxnStatus.Decided",
        TxnStatus::Decided(vec![SetIndex(1)]),
    ));
    all.push(Sample::new("TxnStatus.Aborted", TxnStatus::Aborted));
    all.push(Sample::new("TxnStatus.Unknown", TxnStatus::Unknown));
    all.push(Sample::new("SetKind.Plain", SetKind::Plain));
    all.push(Sample::new(
        "SetKind.Replicate",
        SetKind::Replicate { copies: 3 },
    ));
    all.push(Sample::new(
        "SetKind.Disperse",
        SetKind::Disperse {
            data: 4,
            redundancy: 2,
        },
    ));
}

/// What nodes ask each other.
fn between_nodes(all: &mut Vec<Sample>) {
    let (states, roles) = node_words();
    let states = states.into_iter();
    all.extend(states.map(|word| Sample::new(&format!("PeerState.{word:?}"), word)));
    let roles = roles.into_iter();
    all.extend(roles.map(|word| Sample::new(&format!("Role.{word:?}"), word)));
    let kinds = raft_kinds().into_iter();
    all.extend(kinds.map(|(name, kind)| Sample::new(&format!("RaftKind.{name}"), kind)));
    let asked = node_requests().into_iter();
    all.extend(asked.map(|(name, asked)| Sample::new(&format!("NodeRequest.{name}"), asked)));
    let replies = node_replies().into_iter();
    all.extend(replies.map(|(name, reply)| Sample::new(&format!("NodeReply.{name}"), reply)));
    all.push(Sample::new(
        "Request.Node",
        Request::Node(NodeRequest::Health),
    ));
}

/// Every message.
pub fn all() -> Vec<Sample> {
    let mut all = Vec::new();
    words(&mut all);
    all.extend(
        parts()
            .into_iter()
            .map(|(name, part)| Sample::new(&format!("Part.{name}"), part)),
    );
    all.extend(
        inode_ops()
            .into_iter()
            .map(|(name, op)| Sample::new(&format!("InodeOp.{name}"), op)),
    );
    all.extend(
        fops()
            .into_iter()
            .map(|fop| Sample::new(&format!("Fop.{}", fop.name()), fop)),
    );
    all.extend(
        replies()
            .into_iter()
            .map(|(name, reply)| Sample::new(&format!("Reply.{name}"), reply)),
    );
    all.extend(
        faults()
            .into_iter()
            .map(|(name, fault)| Sample::new(&format!("Fault.{name}"), fault)),
    );
    let peers = peer_messages().into_iter();
    all.extend(peers.map(|peer| Sample::new(&format!("PeerMessage.{}", peer.name()), peer)));
    all.extend(
        effects()
            .into_iter()
            .map(|(name, effect)| Sample::new(&format!("Effect.{name}"), effect)),
    );
    all.extend(
        entry_kinds()
            .into_iter()
            .map(|(name, kind)| Sample::new(&format!("EntryKind.{name}"), kind)),
    );
    all.extend(
        events()
            .into_iter()
            .map(|(name, event)| Sample::new(&format!("BrickEvent.{name}"), event)),
    );
    all.extend(
        orders()
            .into_iter()
            .map(|(name, order)| Sample::new(&format!("ToBrick.{name}"), order)),
    );
    let asked = admin_requests().into_iter().chain(cluster_requests());
    all.extend(asked.map(|(name, asked)| Sample::new(&format!("AdminRequest.{name}"), asked)));
    let replies = admin_replies().into_iter().chain(cluster_replies());
    all.extend(replies.map(|(name, reply)| Sample::new(&format!("AdminReply.{name}"), reply)));
    between_nodes(&mut all);

    let stage = Stage {
        stage: STAGE,
        bricks: vec![BrickId(1), BrickId(2)],
    };
    all.push(Sample::new("Request.Fop", Request::Fop(call(Fop::StatFs))));
    all.push(Sample::new("Request.Stage", Request::Stage(stage)));
    let peer = Request::Peer(envelope(PeerMessage::AskCommit));
    all.push(Sample::new("Request.Peer", peer));
    all.push(Sample::new(
        "Request.Admin",
        Request::Admin(AdminRequest::Node),
    ));
    let stage_answer = StageAnswer {
        results: vec![Ok(()), Err(Fault::UnknownBrick)],
    };
    let from = FromBrick {
        set: SET,
        brick: BrickId(1),
        run: RunId(2),
        event: BrickEvent::Stopped,
    };
    all.push(Sample::new("answer", answer(Ok(Reply::Done))));
    all.push(Sample::new(
        "refusal",
        answer(Err(Fault::Refused(Errno::ENOSPC))),
    ));
    all.push(Sample::new("stage-answer", stage_answer));
    all.push(Sample::new("report", from));
    all.push(Sample::new("entries", entries().to_vec()));
    let granted = Enrolment {
        cluster: ClusterId(1),
        node: NodeId(2),
        addrs: vec![addr(), addr6()],
        credentials: Credentials {
            authority: vec![1, 2, 3],
            certificate: vec![4, 5],
            key: vec![6],
        },
    };
    all.push(Sample::new(
        "EnrolReply.Granted",
        EnrolReply::Granted(granted),
    ));
    all.push(Sample::new(
        "EnrolReply.Refused",
        EnrolReply::Refused { daemon: 1_000 },
    ));
    all
}
