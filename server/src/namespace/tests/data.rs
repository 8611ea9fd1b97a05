//! Data: writes, sizes, holes, copies, stages, blocks and space.

use mortar_protocol::attr::SetAttr;
use mortar_protocol::entry::Space;
use mortar_protocol::ids::StageId;
use mortar_protocol::limits::BLOCK;

use super::*;

fn blocks(v: &Sets, id: InodeId) -> u64 {
    let held = v.sets[v.set_of(id) as usize].objects.get(&v.object(id));
    held.map_or(0, |held| held.len() as u64 * 8)
}

#[test]
fn write_read_and_overwrite() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    let id = file.gfid.id;
    let after = v.write(id, 0, b"hello").unwrap();
    assert_eq!(
        (after.size, after.blocks, after.change),
        (5, 8, file.change + 1)
    );
    assert!(after.mtime > file.mtime && after.ctime == after.mtime);
    let after = v.write(id, 10_000, b"far").unwrap();
    assert_eq!((after.size, after.blocks), (10_003, 16));
    assert_eq!(v.write(id, 3, b"p me").unwrap().blocks, 16);
    let mut expected = b"help me".to_vec();
    expected.resize(10_000, 0);
    expected.extend_from_slice(b"far");
    assert_eq!(v.read(id, 0, 65_536).unwrap(), expected);
    assert_eq!(v.read(id, 10_001, 65_536).unwrap(), b"ar");
    assert_eq!(v.read(id, 20_000, 10), Ok(vec![]));
    assert_eq!(blocks(&v, id), 16);
}

#[test]
fn several_operations_are_one_change() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    let write = |offset, len| InodeOp::Write {
        shard: 0,
        offset,
        len,
    };
    let ops = vec![
        write(0, 3),
        InodeOp::Append { len: 2 },
        InodeOp::Extend { size: 100 },
        InodeOp::Append { len: 1 },
    ];
    let after = v.change(file.gfid.id, ops, b"abcdef").unwrap();
    assert_eq!((after.size, after.change), (101, file.change + 1));
    let mut expected = b"abcde".to_vec();
    expected.resize(100, 0);
    expected.push(b'f');
    assert_eq!(v.read(file.gfid.id, 0, 200).unwrap(), expected);
    for (ops, body) in [
        (vec![write(0, 4)], &b"abc"[..]),
        (vec![write(0, 2)], b"abc"),
        (vec![write(SHARD - 1, 2)], b"ab"),
        (vec![write(u64::MAX, 2)], b"ab"),
    ] {
        assert_eq!(v.change(file.gfid.id, ops, body), Err(Fault::Protocol));
    }
    let full = vec![InodeOp::Grow { len: SHARD }];
    assert_eq!(v.change(file.gfid.id, full, b"").unwrap().size, SHARD + 101);
    let beyond = vec![InodeOp::Append { len: 1 }];
    assert_eq!(v.change(file.gfid.id, beyond, b"x"), refused(Errno::E2BIG));
}

#[test]
fn a_change_on_condition_of_the_size_is_made_whole_or_not_at_all() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    v.write(id, 0, b"abc").unwrap();
    let append = |size| {
        let write = InodeOp::Write {
            shard: 0,
            offset: size,
            len: 2,
        };
        vec![InodeOp::SizeIs { size }, write]
    };
    assert_eq!(v.change(id, append(4), b"xy"), refused(Errno::EAGAIN));
    assert_eq!(v.change(id, append(2), b"xy"), refused(Errno::EAGAIN));
    assert_eq!(v.read(id, 0, 10).unwrap(), b"abc");
    assert_eq!(v.change(id, append(3), b"xy").unwrap().size, 5);
    let dir = v.dir(b"dir").gfid.id;
    assert_eq!(v.change(dir, append(0), b"xy"), refused(Errno::EISDIR));
}

#[test]
fn operations_on_what_is_no_file() {
    let mut v = Sets::new(1);
    let dir = v.dir(b"dir").gfid.id;
    assert_eq!(v.write(dir, 0, b"x"), refused(Errno::EISDIR));
    let ops = vec![InodeOp::Truncate { size: 0 }];
    assert_eq!(v.change(dir, ops.clone(), b""), refused(Errno::EISDIR));
    let fifo = v
        .make(InodeId::ROOT, b"fifo", FileKind::Fifo, 0o644)
        .unwrap();
    assert_eq!(
        v.change(fifo.gfid.id, ops.clone(), b""),
        refused(Errno::EINVAL)
    );
    assert_eq!(v.change(InodeId(5), ops, b""), refused(Errno::ESTALE));
}

#[test]
fn truncation_drops_and_zeroes() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    v.write(id, 0, &[7; 10_000]).unwrap();
    let cut = |size| vec![InodeOp::Truncate { size }];
    let after = v.change(id, cut(5_000), b"").unwrap();
    assert_eq!((after.size, after.blocks), (5_000, 16));
    let after = v.change(id, cut(9_000), b"").unwrap();
    assert_eq!((after.size, after.blocks), (9_000, 16));
    let mut expected = vec![7; 5_000];
    expected.resize(9_000, 0);
    assert_eq!(v.read(id, 0, 10_000).unwrap(), expected);
    let after = v.change(id, cut(0), b"").unwrap();
    assert_eq!((after.size, after.blocks), (0, 0));
    assert!(v.sets[0].objects.is_empty());
    let huge = mortar_protocol::limits::MAX_FILE_SIZE + 1;
    assert_eq!(v.change(id, cut(huge), b""), refused(Errno::EFBIG));
}

#[test]
fn reserving_punching_and_zeroing_count_blocks() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    v.write(id, 0, &[7; 12_288]).unwrap();
    let reserve = |offset, len, zero| InodeOp::Reserve {
        shard: 0,
        offset,
        len,
        zero,
    };
    let after = v
        .change(id, vec![reserve(20_000, 100, false)], b"")
        .unwrap();
    assert_eq!((after.size, after.blocks), (12_288, 32));
    let punch = InodeOp::Punch {
        shard: 0,
        offset: 100,
        len: 8_092,
    };
    let after = v.change(id, vec![punch], b"").unwrap();
    assert_eq!((after.size, after.blocks), (12_288, 24));
    let after = v
        .change(id, vec![reserve(6_000, 6_100, true)], b"")
        .unwrap();
    assert_eq!((after.size, after.blocks), (12_288, 32));
    let mut expected = vec![0; 12_288];
    expected[..100].fill(7);
    expected[12_100..].fill(7);
    assert_eq!(v.read(id, 0, 65_536).unwrap(), expected);
    assert_eq!(blocks(&v, id), 32);
    let seek = |offset, hole| {
        let fop = Fop::Seek {
            id,
            shard: 0,
            offset,
            hole,
        };
        v.ask(0, fop).unwrap().0
    };
    assert_eq!(seek(0, false), Reply::Seek(Some(0)));
    assert_eq!(seek(0, true), Reply::Seek(Some(4_096)));
    assert_eq!(seek(5_000, false), Reply::Seek(Some(8_192)));
    assert_eq!(seek(9_000, true), Reply::Seek(None), "only the file's end");
    assert_eq!(seek(12_288, false), Reply::Seek(None));
}

#[test]
fn copies_share_whole_blocks() {
    let mut v = Sets::new(1);
    let (from, to) = (v.file(b"from").gfid.id, v.file(b"to").gfid.id);
    let bytes: Vec<u8> = (0..20_000u32).map(|n| (n / 7) as u8).collect();
    v.write(from, 0, &bytes).unwrap();
    v.write(from, 40_960, b"end").unwrap();
    let copy = |from_offset, offset, len| {
        vec![InodeOp::CopyFrom {
            from,
            from_shard: 0,
            from_offset,
            shard: 0,
            offset,
            len,
        }]
    };
    let after = v.change(to, copy(100, 4_196, 40_863), b"").unwrap();
    assert_eq!(after.size, 45_059);
    assert_eq!(after.blocks, blocks(&v, to));
    let mut expected = vec![0; 4_196];
    expected.extend(v.read(from, 100, 40_863).unwrap());
    assert_eq!(v.read(to, 0, 65_536).unwrap(), expected);
    v.change(to, copy(1, 50_000, 5), b"").unwrap();
    assert_eq!(v.read(to, 50_000, 9).unwrap(), bytes[1..6]);
    assert_eq!(blocks(&v, to), v.attr(to).unwrap().blocks);
    assert_eq!(
        v.change(from, copy(0, 10, 100), b""),
        refused(Errno::EINVAL)
    );
    let mut late = vec![InodeOp::Write {
        shard: 0,
        offset: 0,
        len: 1,
    }];
    late.extend(copy(0, 100_000, 10));
    assert_eq!(v.change(from, late, b"x"), Err(Fault::Protocol));
}

#[test]
fn stages_are_attached_whole() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    let stage = StageId {
        session: SessionId(1),
        number: 4,
    };
    let attach = |offset, len, stage| {
        vec![InodeOp::Attach {
            shard: 0,
            offset,
            stage,
            len,
        }]
    };
    assert_eq!(
        v.change(id, attach(0, 8_192, stage), b""),
        Err(Fault::NoStage)
    );
    v.sets[0].stages.insert(stage, vec![9; 8_192]);
    for (offset, len) in [(1, 8_192), (0, 4_096), (0, 8_191), (0, 0)] {
        let wrong = v.change(id, attach(offset, len, stage), b"");
        assert_eq!(wrong, Err(Fault::Protocol));
    }
    let foreign = StageId {
        session: SessionId(2),
        ..stage
    };
    assert_eq!(
        v.change(id, attach(0, 8_192, foreign), b""),
        Err(Fault::Protocol)
    );
    let after = v.change(id, attach(4_096, 8_192, stage), b"").unwrap();
    assert_eq!((after.size, after.blocks), (12_288, 16));
    assert_eq!(v.read(id, 4_095, 2).unwrap(), [0, 9]);
}

#[test]
fn a_full_set_refuses_growth_only() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    v.write(id, 0, &[1; 8_192]).unwrap();
    v.sets[0].space = Space {
        total: 1 << 30,
        free: Space {
            total: 1 << 30,
            ..Space::default()
        }
        .cushion()
            + BLOCK,
        ..Space::default()
    };
    let statfs = v.ask(0, Fop::StatFs).unwrap().0;
    assert!(matches!(
        statfs,
        Reply::StatFs {
            avail: BLOCK,
            inodes: 2,
            ..
        }
    ));
    v.write(id, 8_192, b"one block fits").unwrap();
    assert_eq!(v.write(id, 12_288, &[1; 8_192]), refused(Errno::ENOSPC));
    v.make(InodeId::ROOT, b"name", FileKind::File, 0o644)
        .expect("a name still fits");
    v.sets[0].space.free = 0;
    v.write(id, 4_000, &[2; 4_000]).unwrap();
    assert_eq!(
        v.make(InodeId::ROOT, b"new", FileKind::File, 0o644),
        refused(Errno::ENOSPC)
    );
    let again = v.make(InodeId::ROOT, b"file", FileKind::File, 0o644);
    assert_eq!(again, refused(Errno::EEXIST));
    let xattr = InodeOp::SetXattr {
        name: Bytes::from_static(b"user.x"),
        value: Bytes::from_static(b"y"),
        mode: mortar_protocol::fop::XattrMode::Set,
    };
    assert_eq!(v.change(id, vec![xattr], b""), refused(Errno::ENOSPC));
    v.change(id, vec![InodeOp::Truncate { size: 10 }], b"")
        .unwrap();
    v.unlink(b"file", false).unwrap();
    assert!(v.sets[0].objects.is_empty());
}

#[test]
fn open_brings_small_contents_unless_known() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    let change = v.write(id, 0, b"contents").unwrap().change;
    let open = |v: &Sets, known| {
        let fop = Fop::Open {
            id,
            known,
            data: true,
        };
        match v.ask(0, fop).unwrap() {
            (Reply::Opened { data, cut, .. }, bytes) => {
                assert_eq!(cut.opening, Opening(1));
                (data, bytes)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(open(&v, None), (true, b"contents".to_vec()));
    assert_eq!(open(&v, Some(change - 1)), (true, b"contents".to_vec()));
    assert_eq!(open(&v, Some(change)), (false, vec![]));
    v.write(id, 65_536, b"x").unwrap();
    assert_eq!(open(&v, None), (false, vec![]));
}

#[test]
fn writes_and_chown_clear_what_they_must() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    let set = |perm, kill_suid| {
        InodeOp::SetAttr(SetAttr {
            perm,
            kill_suid,
            ..SetAttr::default()
        })
    };
    let write = InodeOp::Write {
        shard: 0,
        offset: 0,
        len: 1,
    };
    let perm = |v: &Sets| v.attr(id).unwrap().perm;
    v.change(id, vec![set(Some(0o6755), false)], b"").unwrap();
    v.change(id, vec![write.clone()], b"x").unwrap();
    assert_eq!(perm(&v), 0o6755, "the client says when to clear");
    v.change(id, vec![write.clone(), set(None, true)], b"x")
        .unwrap();
    assert_eq!(perm(&v), 0o755);
    v.change(id, vec![set(Some(0o6745), false)], b"").unwrap();
    v.change(id, vec![set(None, true)], b"").unwrap();
    assert_eq!(perm(&v), 0o2745, "no group execution: a lock mark");
    let before = v.attr(id).unwrap();
    assert_eq!(v.change(id, vec![set(None, true)], b""), Ok(before));
    v.change(id, vec![set(Some(0o4711), false)], b"").unwrap();
    let chown = SetAttr {
        uid: Some(5),
        ..SetAttr::default()
    };
    let after = v.change(id, vec![InodeOp::SetAttr(chown)], b"").unwrap();
    assert_eq!((after.uid, after.perm), (5, 0o711));
    let capability = InodeOp::SetXattr {
        name: Bytes::from_static(b"security.capability"),
        value: Bytes::from_static(b"caps"),
        mode: mortar_protocol::fop::XattrMode::Set,
    };
    assert!(v.change(id, vec![capability], b"").unwrap().has_xattr);
    assert!(!v.change(id, vec![write], b"x").unwrap().has_xattr);
}

#[test]
fn a_read_moves_atime_forward_and_nothing_else() {
    let mut v = Sets::new(1);
    let before = v.file(b"file");
    let id = before.gfid.id;
    let at = |secs| InodeOp::Accessed {
        time: Time { secs, nanos: 0 },
    };
    let later = before.atime.secs + 100;
    v.clock += 50;
    let after = v.change(id, vec![at(later)], b"").unwrap();
    let atime = Time {
        secs: later,
        nanos: 0,
    };
    assert_eq!(after, Attr { atime, ..before });
    assert_eq!(v.attr(id), Ok(after));
    assert_eq!(v.change(id, vec![at(later - 1)], b""), Ok(after));
    // With a change it goes before or behind.
    let write = InodeOp::Write {
        shard: 0,
        offset: 0,
        len: 1,
    };
    for (ops, secs) in [
        (vec![at(later + 1), write.clone()], later + 1),
        (vec![write.clone(), at(later + 2)], later + 2),
    ] {
        let before = v.attr(id).unwrap();
        let after = v.change(id, ops, b"x").unwrap();
        assert_eq!((after.atime.secs, after.change), (secs, before.change + 1));
        assert_eq!((after.ctime, after.mtime), (v.time(), v.time()));
    }
}

#[test]
fn ctime_never_runs_backwards() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    v.clock = 10;
    let after = v.write(file.gfid.id, 0, b"x").unwrap();
    assert_eq!((after.ctime, after.mtime), (file.ctime, file.ctime));
    let future = Time {
        secs: 9_999_999,
        nanos: 0,
    };
    let set = SetAttr {
        mtime: Some(future),
        ..SetAttr::default()
    };
    let after = v.change(file.gfid.id, vec![InodeOp::SetAttr(set)], b"");
    assert_eq!(after.unwrap().mtime, future);
    v.clock = 2_000;
    let after = v.write(file.gfid.id, 0, b"y").unwrap();
    assert_eq!(after.mtime, v.time(), "a time set by hand does not stay");
}
