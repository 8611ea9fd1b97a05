//! Unlinked files that are open, removed directories, the end of sessions, and files of several shards.

use mortar_protocol::ids::TxnId;

use super::super::{records, release};
use super::*;

const ROOT: InodeId = InodeId::ROOT;

fn renew(v: &mut Sets, set: u32, session: u64) -> (Vec<InodeId>, Vec<(InodeId, u64)>) {
    v.session = SessionId(session);
    let fop = Fop::Renew {
        open: vec![],
        released: vec![],
    };
    match v.ask(set, fop).unwrap().0 {
        Reply::Renewed {
            orphans, garbage, ..
        } => (orphans, garbage),
        other => panic!("{other:?}"),
    }
}

fn let_go(v: &mut Sets, set: u32, session: u64, id: InodeId) {
    v.session = SessionId(session);
    let executed = v.with(set, |state, cx| release(state, cx, &[id])).unwrap();
    v.apply(set, &executed);
}

fn two_sessions(sets: u32) -> Sets {
    let mut v = Sets::new(sets);
    v.sessions = vec![SessionId(1), SessionId(2)];
    v
}

#[test]
fn a_file_that_may_be_open_stays_until_all_let_go() {
    let mut v = two_sessions(1);
    let file = v.file(b"file");
    let id = file.gfid.id;
    v.write(id, 0, b"data").unwrap();
    let attrs = v.unlink(b"file", true).unwrap();
    assert_eq!(attrs[0].nlink, 0);
    assert_eq!(v.look(ROOT, b"file"), refused(Errno::ENOENT));
    assert_eq!(v.read(id, 0, 10).unwrap(), b"data");
    v.write(id, 4, b"more").unwrap();
    assert_eq!(renew(&mut v, 0, 1).0, [id]);
    assert_eq!(renew(&mut v, 0, 2).0, [id]);
    let_go(&mut v, 0, 2, id);
    assert!(renew(&mut v, 0, 2).0.is_empty());
    let open = Fop::Open {
        id,
        known: None,
        data: false,
    };
    assert_eq!(v.ask(0, open.clone()).map(|_| ()), refused(Errno::ESTALE));
    v.session = SessionId(1);
    assert!(v.ask(0, open).is_ok());
    let link = Part::LinkAdd {
        id,
        parent: ROOT,
        name: Bytes::from_static(b"back"),
    };
    assert_eq!(v.commit(0, vec![link]), refused(Errno::ENOENT));
    let_go(&mut v, 0, 1, id);
    assert_eq!(v.attr(id), refused(Errno::ESTALE));
    assert!(v.sets[0].objects.is_empty());
    let rest: Vec<u8> = v.sets[0].records.keys().map(|key| key[0]).collect();
    assert_eq!(rest, b"INP");
}

#[test]
fn the_end_of_a_session_lets_go() {
    let mut v = two_sessions(1);
    let id = v.file(b"file").gfid.id;
    v.unlink(b"file", false).unwrap();
    assert!(
        renew(&mut v, 0, 1).0.is_empty(),
        "the unlinking client said so"
    );
    v.session = SessionId(2);
    v.run(0, Fop::SessionEnd, b"").unwrap();
    assert_eq!(v.attr(id), refused(Errno::ESTALE));
}

#[test]
fn a_removed_directory_takes_nothing_more() {
    let mut v = two_sessions(1);
    let dir = v.dir(b"dir");
    v.commit(0, rmdir_parts(ROOT, b"dir", dir.gfid)).unwrap();
    assert_eq!(v.attr(dir.gfid.id).unwrap().nlink, 0);
    assert!(v.entries(0, dir.gfid.id, 4_096).is_empty());
    let late = v.make(dir.gfid.id, b"x", FileKind::File, 0o644);
    assert_eq!(late, refused(Errno::ENOENT));
    let_go(&mut v, 0, 2, dir.gfid.id);
    assert_eq!(v.attr(dir.gfid.id), refused(Errno::ESTALE));
}

#[test]
fn a_set_without_the_inode_remembers_the_removal() {
    let mut v = Sets::new(2);
    let dir = v.dir(b"dir");
    let other = 1 - v.set_of(dir.gfid.id);
    let close = vec![Part::DirClose {
        dir: dir.gfid.id,
        held_open: false,
    }];
    v.commit(other, close).unwrap();
    let name = (0..)
        .map(|n: u32| format!("n{n}"))
        .find(|name| v.name_set(dir.gfid.id, name.as_bytes()) == other)
        .unwrap();
    let late = v.make(dir.gfid.id, name.as_bytes(), FileKind::File, 0o644);
    assert_eq!(late, refused(Errno::ENOENT));
    assert_eq!(renew(&mut v, other, 1).0, [dir.gfid.id]);
    let_go(&mut v, other, 1, dir.gfid.id);
    let key = records::part_key(dir.gfid.id);
    assert!(!v.sets[other as usize].records.contains_key(&key));
}

/// The mark of a removed directory may be locked by a transaction when its last user lets it go.
#[test]
fn the_mark_of_a_directory_that_was_locked_when_it_was_let_go_can_be_purged() {
    let mut v = two_sessions(2);
    v.session = SessionId(1);
    // The highest set decides, so the mark is on the other.
    let mut dirs = (0..).map(|n| v.dir(format!("dir{n}").as_bytes()).gfid.id);
    let id = dirs.find(|id| Layout::even(2).inode_set(*id) == SetIndex(1));
    let (id, other) = (id.unwrap(), 0);
    let close = vec![Part::DirClose {
        dir: id,
        held_open: false,
    }];
    v.commit(other, close.clone()).unwrap();
    let txn = TxnId {
        session: SessionId(1),
        number: 9,
    };
    let prepare = Fop::Prepare {
        txn,
        decider: SetIndex(1),
        parts: close,
        time: v.time(),
    };
    v.run(other, prepare, b"").unwrap();
    let_go(&mut v, other, 1, id);
    let_go(&mut v, other, 2, id);
    assert_eq!(renew(&mut v, other, 1).1, [(id, 0)]);
    v.session = SessionId(1);
    v.run(other, Fop::Abort { txn }, b"").unwrap();
    for _ in 0..2 {
        v.commit(other, vec![Part::Purge { id }]).unwrap();
    }
    assert!(renew(&mut v, other, 1).1.is_empty());
    let key = records::part_key(id);
    assert!(!v.sets[other as usize].records.contains_key(&key));
}

/// A file with data in shards 0 to 9, spread over two sets.
fn spread(v: &mut Sets) -> InodeId {
    let id = v.file(b"big").gfid.id;
    v.change(id, vec![InodeOp::Extend { size: 10 * SHARD }], b"")
        .unwrap();
    let mut elsewhere = 0;
    for shard in 0..10 {
        let set = v.layout.shard_set(id, shard).0;
        let change = Change {
            id,
            inode: set == v.set_of(id),
            cut: Cut {
                opening: Opening(1),
                count: 0,
            },
            time: v.time(),
            ops: vec![InodeOp::Write {
                shard,
                offset: 0,
                len: 5_000,
            }],
        };
        match v.run(set, Fop::Change(change), &[3; 5_000]).unwrap() {
            Reply::Changed { attr, blocks, .. } => {
                assert_eq!(blocks, if attr.is_some() { 0 } else { 16 });
                elsewhere += blocks;
            }
            other => panic!("{other:?}"),
        }
    }
    let told = vec![InodeOp::AddBlocks { blocks: elsewhere }, InodeOp::Modified];
    assert_eq!(v.change(id, told, b"").unwrap().blocks, 160);
    id
}

#[test]
fn a_spread_file_is_garbage_until_its_shards_are_cut() {
    let mut v = Sets::new(2);
    let id = spread(&mut v);
    let (here, other) = (v.set_of(id), 1 - v.set_of(id));
    assert_eq!(v.unlink(b"big", false).unwrap()[0].nlink, 0);
    assert_eq!(renew(&mut v, here, 1), (vec![], vec![(id, 10 * SHARD)]));
    let cut = Part::ShardCut {
        id,
        size: 0,
        shard_size: SHARD,
        cut: Cut::GONE,
    };
    v.commit(other, vec![cut.clone()]).unwrap();
    v.commit(other, vec![cut]).unwrap();
    v.commit(here, vec![Part::Purge { id }]).unwrap();
    v.commit(here, vec![Part::Purge { id }]).unwrap();
    assert!(v.sets.iter().all(|set| set.objects.is_empty()));
    assert_eq!(renew(&mut v, here, 1), (vec![], vec![]));
    let late = Change {
        id,
        inode: false,
        cut: Cut {
            opening: Opening(1),
            count: 7,
        },
        time: v.time(),
        ops: vec![InodeOp::Write {
            shard: (1..10)
                .find(|shard| v.layout.shard_set(id, *shard).0 == other)
                .unwrap(),
            offset: 0,
            len: 1,
        }],
    };
    assert_eq!(
        v.run(other, Fop::Change(late), b"x"),
        refused(Errno::ESTALE)
    );
}

#[test]
fn a_file_in_use_is_not_purged() {
    let mut v = two_sessions(1);
    let id = v.file(b"file").gfid.id;
    let purge = vec![Part::Purge { id }];
    assert_eq!(v.commit(0, purge.clone()), refused(Errno::EBUSY));
    v.unlink(b"file", false).unwrap();
    assert_eq!(v.commit(0, purge), refused(Errno::EBUSY));
}

#[test]
fn cutting_a_spread_file_refuses_older_requests() {
    let mut v = Sets::new(2);
    let id = spread(&mut v);
    let (here, other) = (v.set_of(id), 1 - v.set_of(id));
    let truncate = vec![InodeOp::Truncate { size: 1 }];
    assert_eq!(v.change(id, truncate, b""), refused(Errno::EAGAIN));
    let size = SHARD + 100;
    let beyond = Fop::Blocks { id, size };
    let Reply::Blocks(other_blocks) = v.ask(other, beyond).unwrap().0 else {
        panic!("blocks");
    };
    let cut = Cut {
        opening: Opening(1),
        count: 1,
    };
    let cut_other = Part::ShardCut {
        id,
        size,
        shard_size: SHARD,
        cut,
    };
    let inode_cut = |cut| Part::InodeCut {
        id,
        size,
        cut,
        set: Default::default(),
        other_blocks,
    };
    let same = inode_cut(Cut { count: 0, ..cut });
    assert_eq!(v.commit(here, vec![same]), refused(Errno::EAGAIN));
    v.commit(other, vec![cut_other]).unwrap();
    let after = v.commit(here, vec![inode_cut(cut)]).unwrap()[0];
    let left: usize = v
        .sets
        .iter()
        .flat_map(|set| set.objects.values())
        .map(|b| b.len())
        .sum();
    assert_eq!(left, 3, "two blocks of shard 0, one of shard 1");
    assert_eq!(after.size, size);
    assert_eq!(after.blocks, 8 * left as u64);
    for shard in 0..2 {
        let fop = |cut| Fop::Read {
            id,
            shard,
            offset: 0,
            len: 10,
            cut,
        };
        let set = v.layout.shard_set(id, shard).0;
        let old = v.ask(set, fop(Cut { count: 0, ..cut }));
        assert_eq!(old.map(|_| ()), refused(Errno::ESTALE));
        assert_eq!(v.ask(set, fop(cut)).unwrap().1, [3; 10]);
    }
}
