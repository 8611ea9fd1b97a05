//! Names: creates, look-ups, listings, links, renames, removals.

use super::*;

const ROOT: InodeId = InodeId::ROOT;

fn name(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn rename_parts(
    from: &'static str,
    to: &'static str,
    moved: Attr,
    over: Option<Attr>,
) -> Vec<Part> {
    let mut parts = vec![
        Part::DirentRemove {
            parent: ROOT,
            name: name(from),
            expect: moved.gfid,
        },
        Part::DirentAdd {
            parent: ROOT,
            name: name(to),
            gfid: moved.gfid,
            kind: moved.kind,
            replaces: over.map(|over| over.gfid),
        },
    ];
    match over {
        Some(over) if over.kind == FileKind::Dir => parts.push(Part::DirClose {
            dir: over.gfid.id,
            held_open: false,
        }),
        Some(over) => parts.push(Part::LinkRemove {
            id: over.gfid.id,
            parent: ROOT,
            name: name(to),
            held_open: false,
        }),
        None => {}
    }
    parts.push(Part::LinkMove {
        id: moved.gfid.id,
        from: (ROOT, name(from)),
        to: (ROOT, name(to)),
    });
    parts
}

#[test]
fn create_is_found_and_listed() {
    let mut v = Sets::new(1);
    let before = v.attr(ROOT).unwrap();
    let file = v.file(b"file");
    assert_eq!(
        (file.perm, file.nlink, file.size, file.blocks),
        (0o644, 1, 0, 0)
    );
    assert_eq!(v.look(ROOT, b"file"), Ok(file.gfid));
    assert_eq!(v.attr(file.gfid.id), Ok(file));
    let root = v.attr(ROOT).unwrap();
    assert_eq!((root.size, root.nlink), (1, 2));
    assert!(root.mtime > before.mtime && root.ctime == root.mtime);
    assert!(root.change > before.change);
    let listed = v.entries(0, ROOT, 4096);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].attr, Some(file));
    assert_eq!(v.look(ROOT, b"none"), refused(Errno::ENOENT));
    let long = vec![b'x'; 256];
    assert_eq!(v.look(ROOT, &long), refused(Errno::ENAMETOOLONG));
}

#[test]
fn every_kind_keeps_what_it_was_given() {
    let mut v = Sets::new(1);
    let link = v.make(ROOT, b"link", FileKind::Symlink, 0o777).unwrap();
    assert_eq!((link.perm, link.size), (0o777, 6));
    let target = v.ask(0, Fop::ReadLink { id: link.gfid.id }).unwrap().0;
    assert_eq!(target, Reply::Bytes(name("target")));
    let device = v.make(ROOT, b"dev", FileKind::CharDevice, 0o600).unwrap();
    assert_eq!((device.rdev, device.kind), (7, FileKind::CharDevice));
    let fifo = v.make(ROOT, b"fifo", FileKind::Fifo, 0o644).unwrap();
    assert_eq!(fifo.rdev, 0);
    let fop = Fop::ReadLink { id: fifo.gfid.id };
    assert_eq!(v.ask(0, fop).map(|_| ()), refused(Errno::EINVAL));
    let dir = v.dir(b"dir");
    assert_eq!((dir.nlink, dir.perm), (2, 0o755));
    assert_eq!(v.attr(ROOT).unwrap().nlink, 3);
}

#[test]
fn create_refuses_what_exists_and_bad_names() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    let again = v.make(ROOT, b"file", FileKind::Dir, 0o777);
    assert_eq!(again, refused(Errno::EEXIST));
    let parts = v.new_parts(ROOT, b"other", file.gfid, FileKind::File, 0o644);
    assert_eq!(v.commit(0, parts), Err(Fault::IdTaken));
    assert_eq!(
        v.look(ROOT, b"other"),
        refused(Errno::ENOENT),
        "all or none"
    );
    for (bad, errno) in [
        (&b"."[..], Errno::EINVAL),
        (b"a/b", Errno::EINVAL),
        (b"", Errno::EINVAL),
        (&[b'n'; 256], Errno::ENAMETOOLONG),
    ] {
        assert_eq!(v.make(ROOT, bad, FileKind::File, 0o644), refused(errno));
    }
    let under_file = v.make(file.gfid.id, b"x", FileKind::File, 0o644);
    assert_eq!(under_file, refused(Errno::ENOTDIR));
    let nowhere = v.make(InodeId(99), b"x", FileKind::File, 0o644);
    assert_eq!(nowhere, refused(Errno::ENOENT));
}

#[test]
fn link_and_unlink_count_names() {
    let mut v = Sets::new(1);
    let file = v.file(b"a");
    let parts = vec![
        Part::LinkAdd {
            id: file.gfid.id,
            parent: ROOT,
            name: name("b"),
        },
        Part::DirentAdd {
            parent: ROOT,
            name: name("b"),
            gfid: file.gfid,
            kind: FileKind::File,
            replaces: None,
        },
    ];
    let attrs = v.commit(0, parts).unwrap();
    assert_eq!(attrs[0].nlink, 2);
    assert!(attrs[0].ctime > file.ctime && attrs[0].mtime == file.mtime);
    let links = v.ask(0, Fop::Links { id: file.gfid.id }).unwrap().0;
    let both = vec![(ROOT, name("a")), (ROOT, name("b"))];
    assert_eq!(
        links,
        Reply::Links {
            links: both,
            many: false
        }
    );
    assert_eq!(v.unlink(b"a", false).unwrap()[0].nlink, 1);
    assert_eq!(v.unlink(b"b", false), Ok(vec![]), "gone");
    assert_eq!(v.attr(file.gfid.id), refused(Errno::ESTALE));
    let records: Vec<u8> = v.sets[0].records.keys().map(|key| key[0]).collect();
    assert_eq!(records, b"INP", "root, counters, root's part");
}

#[test]
fn many_links_are_counted_and_not_listed() {
    let mut v = Sets::new(1);
    let file = v.file(b"0");
    let add = |n: u32| {
        let name = Bytes::from(format!("n{n}"));
        vec![
            Part::LinkAdd {
                id: file.gfid.id,
                parent: ROOT,
                name: name.clone(),
            },
            Part::DirentAdd {
                parent: ROOT,
                name,
                gfid: file.gfid,
                kind: FileKind::File,
                replaces: None,
            },
        ]
    };
    for n in 0..20 {
        v.commit(0, add(n)).unwrap();
    }
    assert_eq!(v.attr(file.gfid.id).unwrap().nlink, 21);
    match v.ask(0, Fop::Links { id: file.gfid.id }).unwrap().0 {
        Reply::Links { links, many } => assert_eq!((links.len(), many), (16, true)),
        other => panic!("{other:?}"),
    }
    let parts = vec![Part::LinkAdd {
        id: v.dir(b"dir").gfid.id,
        parent: ROOT,
        name: name("x"),
    }];
    assert_eq!(v.commit(0, parts), refused(Errno::EPERM));
}

#[test]
fn rename_replaces_and_guards() {
    let mut v = Sets::new(1);
    let (a, b) = (v.file(b"a"), v.file(b"b"));
    let stale = rename_parts("a", "b", a, None);
    assert_eq!(v.commit(0, stale), refused(Errno::EEXIST));
    let wrong = rename_parts("a", "b", a, Some(a));
    assert_eq!(v.commit(0, wrong), refused(Errno::EAGAIN));
    let attrs = v.commit(0, rename_parts("a", "b", a, Some(b))).unwrap();
    assert_eq!(attrs.len(), 1, "the replaced file is gone");
    assert!(attrs[0].ctime > a.ctime);
    assert_eq!(v.look(ROOT, b"b"), Ok(a.gfid));
    assert_eq!(v.look(ROOT, b"a"), refused(Errno::ENOENT));
    assert_eq!(v.attr(ROOT).unwrap().size, 1);
    let gone = rename_parts("a", "c", a, None);
    assert_eq!(v.commit(0, gone), refused(Errno::ENOENT));
}

#[test]
fn rename_over_a_directory_keeps_the_counts() {
    let mut v = Sets::new(1);
    let (a, b) = (v.dir(b"a"), v.dir(b"b"));
    v.make(b.gfid.id, b"x", FileKind::File, 0o644).unwrap();
    let parts = rename_parts("a", "b", a, Some(b));
    assert_eq!(v.commit(0, parts.clone()), refused(Errno::ENOTEMPTY));
    let x = v.look(b.gfid.id, b"x").unwrap();
    v.commit(0, unlink_parts(b.gfid.id, b"x", x, false))
        .unwrap();
    v.commit(0, parts).unwrap();
    let root = v.attr(ROOT).unwrap();
    assert_eq!((root.size, root.nlink), (1, 3));
    assert_eq!(v.attr(b.gfid.id), refused(Errno::ESTALE));
}

#[test]
fn exchange_swaps_a_file_and_a_directory() {
    let mut v = Sets::new(1);
    let sub = v.dir(b"sub");
    let (a, b) = (
        v.file(b"a"),
        v.make(sub.gfid.id, b"b", FileKind::Dir, 0o755).unwrap(),
    );
    let (at_a, at_b) = ((ROOT, name("a")), (sub.gfid.id, name("b")));
    let add = |at: &(InodeId, Bytes), new: Attr, old: Attr| Part::DirentAdd {
        parent: at.0,
        name: at.1.clone(),
        gfid: new.gfid,
        kind: new.kind,
        replaces: Some(old.gfid),
    };
    let moved = |attr: Attr, from: &(InodeId, Bytes), to: &(InodeId, Bytes)| Part::LinkMove {
        id: attr.gfid.id,
        from: from.clone(),
        to: to.clone(),
    };
    let parts = vec![
        add(&at_a, b, a),
        add(&at_b, a, b),
        moved(a, &at_a, &at_b),
        moved(b, &at_b, &at_a),
    ];
    assert_eq!(v.commit(0, parts).unwrap().len(), 2);
    assert_eq!(v.look(ROOT, b"a"), Ok(b.gfid));
    assert_eq!(v.look(sub.gfid.id, b"b"), Ok(a.gfid));
    assert_eq!(v.attr(ROOT).unwrap().nlink, 4);
    assert_eq!(v.attr(sub.gfid.id).unwrap().nlink, 2);
    let parts = vec![Part::ParentIs {
        dir: b.gfid.id,
        parent: ROOT,
    }];
    assert_eq!(v.commit(0, parts), Ok(vec![]));
    let parts = vec![Part::ParentIs {
        dir: b.gfid.id,
        parent: sub.gfid.id,
    }];
    assert_eq!(v.commit(0, parts), refused(Errno::EAGAIN));
}

#[test]
fn rmdir_refuses_and_removes() {
    let mut v = Sets::new(1);
    let dir = v.dir(b"dir");
    v.make(dir.gfid.id, b"x", FileKind::File, 0o644).unwrap();
    let parts = rmdir_parts(ROOT, b"dir", dir.gfid);
    assert_eq!(v.commit(0, parts.clone()), refused(Errno::ENOTEMPTY));
    let x = v.look(dir.gfid.id, b"x").unwrap();
    v.commit(0, unlink_parts(dir.gfid.id, b"x", x, false))
        .unwrap();
    assert_eq!(v.commit(0, parts), Ok(vec![]));
    assert_eq!(v.attr(dir.gfid.id), refused(Errno::ESTALE));
    assert_eq!(v.attr(ROOT).unwrap().nlink, 2);
    let late = v.make(dir.gfid.id, b"y", FileKind::File, 0o644);
    assert_eq!(late, refused(Errno::ENOENT));
    let file = v.file(b"file");
    let parts = rmdir_parts(ROOT, b"file", file.gfid);
    assert_eq!(v.commit(0, parts), refused(Errno::ENOTDIR));
    let dir = v.dir(b"dir");
    let parts = unlink_parts(ROOT, b"dir", dir.gfid, false);
    assert_eq!(v.commit(0, parts), refused(Errno::EISDIR));
}

#[test]
fn listing_in_pieces_gives_every_name_once_in_order() {
    let mut v = Sets::new(1);
    for n in 0..300 {
        v.file(format!("some file {n}").as_bytes());
    }
    let listed = v.entries(0, ROOT, 1024);
    assert_eq!(listed.len(), 300);
    assert!(
        listed
            .windows(2)
            .all(|pair| pair[0].offset < pair[1].offset)
    );
    assert_eq!(listed, v.entries(0, ROOT, 1 << 20));
}

#[test]
fn a_name_whose_inode_is_missing_is_told() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    let key = super::super::records::inode_key(file.gfid.id);
    v.sets[0].records.remove(&key);
    let fop = Fop::Lookup {
        parent: ROOT,
        name: name("file"),
    };
    match v.ask(0, fop).unwrap().0 {
        Reply::Found { attr, missing, .. } => assert!(attr.is_none() && missing),
        other => panic!("{other:?}"),
    }
    let parts = vec![Part::DirentRemove {
        parent: ROOT,
        name: name("file"),
        expect: file.gfid,
    }];
    assert_eq!(v.commit(0, parts), Ok(vec![]));
    assert_eq!(v.attr(ROOT).unwrap().size, 0);
}

#[test]
fn damaged_records_are_faults() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    let key = super::super::records::inode_key(file.gfid.id);
    for bad in [&b""[..], b"\x02abc", b"\x01\xff\xff"] {
        v.sets[0]
            .records
            .insert(key.clone(), Bytes::copy_from_slice(bad));
        assert_eq!(v.attr(file.gfid.id), Err(Fault::Corrupt));
        assert_eq!(v.write(file.gfid.id, 0, b"x"), Err(Fault::Corrupt));
    }
}

#[test]
fn times_set_by_hand_hold_until_the_directory_changes() {
    let mut v = Sets::new(1);
    let dir = v.dir(b"dir");
    v.make(dir.gfid.id, b"x", FileKind::File, 0o644).unwrap();
    let old = Time { secs: 5, nanos: 6 };
    let set = mortar_protocol::attr::SetAttr {
        mtime: Some(old),
        ..Default::default()
    };
    let ops = vec![InodeOp::SetAttr(set.clone())];
    assert_eq!(v.change(dir.gfid.id, ops, b"").unwrap().mtime, old);
    assert_eq!(v.attr(dir.gfid.id).unwrap().mtime, old);
    v.make(dir.gfid.id, b"y", FileKind::File, 0o644).unwrap();
    assert_eq!(v.attr(dir.gfid.id).unwrap().mtime, v.time());

    let mut v = Sets::new(2);
    let dir = v.dir(b"dir");
    let ops = vec![InodeOp::SetAttr(set), InodeOp::DirTimes { others: 3 }];
    v.change(dir.gfid.id, ops, b"").unwrap();
    let reply = v.ask(v.set_of(dir.gfid.id), Fop::GetAttr { id: dir.gfid.id });
    match reply.unwrap().0 {
        Reply::DirAttr { attr, others, .. } => assert_eq!((attr.mtime, others), (old, 3)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_of_names_brings_the_directorys_attributes_where_one_set_holds_all() {
    for sets in [1, 2] {
        let mut v = Sets::new(sets);
        let name = b"name";
        let gfid = v.draw(InodeId::ROOT, name);
        let parts = v.new_parts(InodeId::ROOT, name, gfid, FileKind::File, 0o644);
        let (set, time) = (v.name_set(InodeId::ROOT, name), v.time());
        let reply = v.run(set, Fop::Commit { parts, time }, b"").unwrap();
        let Reply::Parts(attrs) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(attrs[0].gfid, gfid);
        match sets {
            1 => assert_eq!(attrs[1..], [v.attr(InodeId::ROOT).unwrap()]),
            _ => assert_eq!(attrs.len(), 1),
        }
    }
}
