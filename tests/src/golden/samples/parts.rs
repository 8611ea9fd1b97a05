//! Samples of the parts of changes.

use bytes::Bytes;
use mortar_protocol::attr::FileKind;
use mortar_protocol::fop::{Cut, InodeOp, ParentHint, Part, XattrMode};
use mortar_protocol::ids::{Gfid, InodeId};

use super::{CUT, GFID, ID, OTHER, STAGE, TIME, name, set_attr};

pub(super) fn parts() -> Vec<(&'static str, Part)> {
    let hint = ParentHint {
        setgid: Some(50),
        default_acl: Some(Bytes::from_static(&[2, 0, 0, 0])),
    };
    let (id, parent, name) = (ID, OTHER, name());
    let new = Part::InodeNew {
        gfid: GFID,
        kind: FileKind::CharDevice,
        perm: 0o666,
        umask: 0o22,
        uid: 1,
        gid: 2,
        rdev: 0x0103,
        target: Bytes::from_static(b"target"),
        parent,
        name: name.clone(),
        hint: Some(hint),
    };
    let add = Part::DirentAdd {
        parent,
        name: name.clone(),
        gfid: GFID,
        kind: FileKind::Fifo,
        replaces: Some(Gfid::ROOT),
    };
    let cut_shard = Part::ShardCut {
        id,
        size: 5_000,
        shard_size: 64 << 20,
        cut: Cut::GONE,
    };
    let cut_inode = Part::InodeCut {
        id,
        size: 5_000,
        cut: CUT,
        set: set_attr(),
        other_blocks: 8,
    };
    vec![
        ("InodeNew", new),
        ("DirentAdd", add),
        (
            "DirentRemove",
            Part::DirentRemove {
                parent,
                name: name.clone(),
                expect: GFID,
            },
        ),
        (
            "LinkAdd",
            Part::LinkAdd {
                id,
                parent,
                name: name.clone(),
            },
        ),
        (
            "LinkMove",
            Part::LinkMove {
                id,
                from: (parent, name.clone()),
                to: (InodeId::ROOT, name.clone()),
            },
        ),
        (
            "LinkRemove",
            Part::LinkRemove {
                id,
                parent,
                name,
                held_open: true,
            },
        ),
        (
            "DirClose",
            Part::DirClose {
                dir: id,
                held_open: false,
            },
        ),
        ("ParentIs", Part::ParentIs { dir: id, parent }),
        ("TreeLock", Part::TreeLock),
        ("ShardCut", cut_shard),
        ("InodeCut", cut_inode),
        ("Purge", Part::Purge { id }),
    ]
}

pub(super) fn inode_ops() -> Vec<(&'static str, InodeOp)> {
    let (shard, offset, len) = (3, 4_096, 8_192);
    let copy = InodeOp::CopyFrom {
        from: OTHER,
        from_shard: 1,
        from_offset: 12_288,
        shard,
        offset,
        len,
    };
    let set_xattr = InodeOp::SetXattr {
        name: Bytes::from_static(b"user.k"),
        value: Bytes::from_static(b"v"),
        mode: XattrMode::Create,
    };
    vec![
        (
            "Write",
            InodeOp::Write {
                shard,
                offset,
                len: 100,
            },
        ),
        ("Append", InodeOp::Append { len: 100 }),
        (
            "Attach",
            InodeOp::Attach {
                shard,
                offset,
                stage: STAGE,
                len: 65_536,
            },
        ),
        ("Extend", InodeOp::Extend { size: 1 << 40 }),
        ("Truncate", InodeOp::Truncate { size: 1 }),
        (
            "Reserve",
            InodeOp::Reserve {
                shard,
                offset,
                len,
                zero: true,
            },
        ),
        (
            "Punch",
            InodeOp::Punch {
                shard,
                offset,
                len: u64::MAX,
            },
        ),
        ("CopyFrom", copy),
        ("SetAttr", InodeOp::SetAttr(set_attr())),
        ("SetXattr", set_xattr),
        ("RemoveXattr", InodeOp::RemoveXattr { name: name() }),
        ("AddBlocks", InodeOp::AddBlocks { blocks: -16 }),
        ("Modified", InodeOp::Modified),
        ("DirTimes", InodeOp::DirTimes { others: 40 }),
        ("Grow", InodeOp::Grow { len: 1 << 20 }),
        ("SizeIs", InodeOp::SizeIs { size: 5_000 }),
        ("Accessed", InodeOp::Accessed { time: TIME }),
    ]
}
