//! Random operations keep the invariants that tie records together.

use std::collections::BTreeMap;

use mortar_protocol::fop::XattrMode;
use proptest::prelude::*;

use super::super::records::{self, Counters, DirPart, Dirent, Inode, Orphan};
use super::super::release;
use super::*;

const ROOT: InodeId = InodeId::ROOT;
/// Files written here stay below this size.
const MAX: usize = 60_000;

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize, bool),
    Remove(usize, usize, bool),
    Link(usize, usize, usize, usize),
    Rename(usize, usize, usize, usize),
    Exchange(usize, usize, usize, usize),
    Write(usize, usize, usize, usize),
    Truncate(usize, usize, usize),
    Punch(usize, usize, usize, usize),
    Reserve(usize, usize, usize, usize, bool),
    Copy(usize, usize, usize, usize, usize),
    Xattr(usize, usize, bool),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let (d, n) = (0..3usize, 0..4usize);
    let (at, len) = (0..MAX / 2, 1..MAX / 2);
    let from = (d.clone(), n.clone());
    let pair = (d.clone(), n.clone(), d.clone(), n.clone());
    let piece = (d.clone(), n.clone(), at.clone(), len.clone());
    prop_oneof![
        4 => (d.clone(), n.clone(), prop::bool::weighted(0.3)).prop_map(|(d, n, k)| Step::Create(d, n, k)),
        3 => (d.clone(), n.clone(), any::<bool>()).prop_map(|(d, n, h)| Step::Remove(d, n, h)),
        2 => pair.clone().prop_map(|(a, b, c, d)| Step::Link(a, b, c, d)),
        3 => pair.clone().prop_map(|(a, b, c, d)| Step::Rename(a, b, c, d)),
        1 => pair.prop_map(|(a, b, c, d)| Step::Exchange(a, b, c, d)),
        5 => piece.clone().prop_map(|(d, n, a, l)| Step::Write(d, n, a, l)),
        2 => (d.clone(), n.clone(), at.clone()).prop_map(|(d, n, s)| Step::Truncate(d, n, s)),
        2 => piece.clone().prop_map(|(d, n, a, l)| Step::Punch(d, n, a, l)),
        2 => (piece, any::<bool>()).prop_map(|((d, n, a, l), z)| Step::Reserve(d, n, a, l, z)),
        2 => (d, n.clone(), n, at, len).prop_map(|(d, n, m, a, l)| Step::Copy(d, n, m, a, l)),
        1 => (from, any::<bool>()).prop_map(|((d, n), s)| Step::Xattr(d, n, s)),
        1 => Just(Step::Release),
    ]
}

/// A volume of one set and what its files should contain.
struct World {
    v: Sets,
    dirs: [InodeId; 3],
    contents: BTreeMap<InodeId, Vec<u8>>,
    fill: u8,
}

impl World {
    fn new() -> Self {
        let mut v = Sets::new(1);
        v.sessions = vec![SessionId(1), SessionId(2)];
        let dirs = [ROOT, v.dir(b"one").gfid.id, v.dir(b"two").gfid.id];
        Self {
            v,
            dirs,
            contents: BTreeMap::new(),
            fill: 0,
        }
    }

    fn found(&self, d: usize, n: usize) -> Option<(Dirent, InodeId, Bytes)> {
        let (parent, name) = (self.dirs[d], Bytes::from(format!("n{n}")));
        let value = self.v.sets[0]
            .records
            .get(&records::dirent_key(parent, &name))?;
        Some((records::decode(value).unwrap(), parent, name))
    }

    fn file(&self, d: usize, n: usize) -> Option<InodeId> {
        let (dirent, ..) = self.found(d, n)?;
        (dirent.kind == FileKind::File).then_some(dirent.gfid.id)
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Create(d, n, dir) => {
                let kind = if *dir { FileKind::Dir } else { FileKind::File };
                let exists = self.found(*d, *n).is_some();
                let made = self
                    .v
                    .make(self.dirs[*d], format!("n{n}").as_bytes(), kind, 0o755);
                assert_eq!(made.is_err(), exists);
                if let Ok(attr) = made {
                    self.contents.insert(attr.gfid.id, Vec::new());
                }
            }
            Step::Remove(d, n, held) => {
                if let Some((dirent, parent, name)) = self.found(*d, *n) {
                    let parts = match dirent.kind {
                        FileKind::Dir => rmdir_parts(parent, &name, dirent.gfid),
                        _ => unlink_parts(parent, &name, dirent.gfid, *held),
                    };
                    self.v.commit(0, parts).unwrap();
                }
            }
            Step::Link(d, n, to_d, to_n) => self.link((*d, *n), (*to_d, *to_n)),
            Step::Rename(d, n, to_d, to_n) => self.rename((*d, *n), (*to_d, *to_n)),
            Step::Exchange(d, n, to_d, to_n) => self.exchange((*d, *n), (*to_d, *to_n)),
            Step::Release => {
                for session in [2, 1] {
                    self.v.session = SessionId(session);
                    let orphans = match self.v.ask(
                        0,
                        Fop::Renew {
                            open: vec![],
                            released: vec![],
                        },
                    ) {
                        Ok((Reply::Renewed { orphans, .. }, _)) => orphans,
                        other => panic!("{other:?}"),
                    };
                    let done = self.v.with(0, |s, cx| release(s, cx, &orphans)).unwrap();
                    self.v.apply(0, &done);
                }
            }
            _ => self.change(step),
        }
    }

    fn link(&mut self, from: (usize, usize), to: (usize, usize)) {
        let Some(id) = self.file(from.0, from.1) else {
            return;
        };
        let (dirent, ..) = self.found(from.0, from.1).unwrap();
        let (parent, name) = (self.dirs[to.0], Bytes::from(format!("n{}", to.1)));
        let exists = self.found(to.0, to.1).is_some();
        let parts = vec![
            Part::LinkAdd {
                id,
                parent,
                name: name.clone(),
            },
            Part::DirentAdd {
                parent,
                name,
                gfid: dirent.gfid,
                kind: dirent.kind,
                replaces: None,
            },
        ];
        assert_eq!(self.v.commit(0, parts).is_err(), exists);
    }

    fn rename(&mut self, from: (usize, usize), to: (usize, usize)) {
        let Some((moved, parent, name)) = self.found(from.0, from.1) else {
            return;
        };
        let old = self.found(to.0, to.1).map(|(old, ..)| old);
        if old.is_some_and(|old| old.gfid == moved.gfid || old.kind != moved.kind) {
            return;
        }
        let (to_parent, to_name) = (self.dirs[to.0], Bytes::from(format!("n{}", to.1)));
        let mut parts = vec![
            Part::DirentRemove {
                parent,
                name: name.clone(),
                expect: moved.gfid,
            },
            Part::DirentAdd {
                parent: to_parent,
                name: to_name.clone(),
                gfid: moved.gfid,
                kind: moved.kind,
                replaces: old.map(|old| old.gfid),
            },
            Part::LinkMove {
                id: moved.gfid.id,
                from: (parent, name),
                to: (to_parent, to_name.clone()),
            },
        ];
        parts.extend(old.map(|old| match old.kind {
            FileKind::Dir => Part::DirClose {
                dir: old.gfid.id,
                held_open: false,
            },
            _ => Part::LinkRemove {
                id: old.gfid.id,
                parent: to_parent,
                name: to_name,
                held_open: false,
            },
        }));
        self.v.commit(0, parts).unwrap();
    }

    fn exchange(&mut self, a: (usize, usize), b: (usize, usize)) {
        let (Some(a), Some(b)) = (self.found(a.0, a.1), self.found(b.0, b.1)) else {
            return;
        };
        if a.0.gfid == b.0.gfid {
            return;
        }
        let mut parts = Vec::new();
        for (at, new) in [(&a, &b), (&b, &a)] {
            parts.push(Part::DirentAdd {
                parent: at.1,
                name: at.2.clone(),
                gfid: new.0.gfid,
                kind: new.0.kind,
                replaces: Some(at.0.gfid),
            });
            parts.push(Part::LinkMove {
                id: new.0.gfid.id,
                from: (new.1, new.2.clone()),
                to: (at.1, at.2.clone()),
            });
        }
        self.v.commit(0, parts).unwrap();
    }

    fn change(&mut self, step: &Step) {
        let (Step::Write(d, n, ..)
        | Step::Truncate(d, n, _)
        | Step::Punch(d, n, ..)
        | Step::Reserve(d, n, ..)
        | Step::Copy(d, n, ..)
        | Step::Xattr(d, n, _)) = step
        else {
            return;
        };
        let Some(id) = self.file(*d, *n) else { return };
        self.fill = self.fill.wrapping_add(1).max(1);
        let content = self.contents.get_mut(&id).unwrap();
        let grow = |content: &mut Vec<u8>, end: usize| content.resize(content.len().max(end), 0);
        let (mut body, mut ops) = (Vec::new(), Vec::new());
        match step {
            Step::Write(_, _, at, len) => {
                body = vec![self.fill; *len];
                grow(content, at + len);
                content[*at..at + len].fill(self.fill);
                // In two pieces, and a bit of the first again.
                let half = len / 2;
                for (from, len) in [(0, half), (half, len - half)] {
                    ops.push(InodeOp::Write {
                        shard: 0,
                        offset: (at + from) as u64,
                        len: len as u32,
                    });
                }
            }
            Step::Truncate(_, _, size) => {
                content.resize(*size, 0);
                ops.push(InodeOp::Truncate { size: *size as u64 });
            }
            Step::Punch(_, _, at, len) => {
                let end = (at + len).min(content.len());
                content[(*at).min(end)..end].fill(0);
                ops.push(InodeOp::Punch {
                    shard: 0,
                    offset: *at as u64,
                    len: *len as u64,
                });
            }
            Step::Reserve(_, _, at, len, zero) => {
                let end = (at + len).min(content.len());
                if *zero {
                    content[(*at).min(end)..end].fill(0);
                }
                ops.push(InodeOp::Reserve {
                    shard: 0,
                    offset: *at as u64,
                    len: *len as u64,
                    zero: *zero,
                });
            }
            Step::Copy(d, _, m, at, len) => {
                let Some(from) = self.file(*d, *m).filter(|from| *from != id) else {
                    return;
                };
                let source = self.contents[&from].clone();
                if *len > source.len() {
                    return;
                }
                let from_at = (source.len() - len) / 4096 * 4096 + at % 4096 * (at % 2);
                if from_at + len > source.len() {
                    return;
                }
                let to_at = at / 4096 * 4096 + from_at % 4096 * (len % 2);
                let content = self.contents.get_mut(&id).unwrap();
                grow(content, to_at + len);
                content[to_at..to_at + len].copy_from_slice(&source[from_at..from_at + len]);
                ops.push(InodeOp::CopyFrom {
                    from,
                    from_shard: 0,
                    from_offset: from_at as u64,
                    shard: 0,
                    offset: to_at as u64,
                    len: *len as u64,
                });
            }
            Step::Xattr(_, _, set) => {
                let name = Bytes::from_static(b"user.x");
                if !set && !self.v.attr(id).unwrap().has_xattr {
                    return;
                }
                ops.push(match set {
                    true => InodeOp::SetXattr {
                        name,
                        value: vec![self.fill; 3].into(),
                        mode: XattrMode::Set,
                    },
                    false => InodeOp::RemoveXattr { name },
                });
            }
            _ => return,
        }
        let attr = self.v.change(id, ops, &body).unwrap();
        let content = &self.contents[&id];
        assert_eq!(attr.size, content.len() as u64, "{step:?}");
        assert_eq!(self.v.read(id, 0, 1 << 20).unwrap(), *content, "{step:?}");
    }

    /// What must hold between any two operations.
    fn check(&self) {
        let set = &self.v.sets[0];
        let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
        let mut parts: BTreeMap<InodeId, (u64, u64)> = BTreeMap::new();
        let mut inodes: BTreeMap<InodeId, Inode> = BTreeMap::new();
        let mut xattrs: BTreeMap<InodeId, (u32, u32)> = BTreeMap::new();
        for (key, value) in &set.records {
            let id = records::parse_id(key).unwrap_or_default();
            match key[0] {
                b'I' => {
                    inodes.insert(id, records::decode(value).unwrap());
                }
                b'D' => {
                    let dirent: Dirent = records::decode(value).unwrap();
                    *names.entry(dirent.gfid.id).or_default() += 1;
                    let part = parts.entry(id).or_default();
                    part.0 += 1;
                    part.1 += u64::from(dirent.kind == FileKind::Dir);
                }
                b'X' => {
                    let sum = xattrs.entry(id).or_default();
                    sum.0 += 1;
                    sum.1 += (key.len() - 9 + value.len()) as u32;
                }
                _ => {}
            }
        }
        assert!(
            names.keys().all(|id| inodes.contains_key(id)),
            "no dangling name"
        );
        for (key, value) in set.records.iter().filter(|(key, _)| key[0] == b'P') {
            let id = records::parse_id(key).unwrap();
            let part: DirPart = records::decode(value).unwrap();
            let real = parts.remove(&id).unwrap_or_default();
            assert_eq!((part.entries, part.subdirs), real);
            assert!(inodes.contains_key(&id));
        }
        assert!(parts.is_empty());
        for (id, inode) in &inodes {
            let count = names.get(id).copied().unwrap_or(0);
            let orphan = set.records.get(&records::orphan_key(*id));
            if inode.is_dir() {
                assert_eq!(inode.nlink == 2, count == 1 || *id == ROOT);
            } else {
                assert_eq!(inode.nlink, count);
                assert_eq!(inode.links.len() as u32, count);
                let held = set.objects.get(&self.v.object(*id));
                let held = held.map_or(0, |blocks| blocks.len() as u64);
                assert_eq!(inode.blocks, held * 8);
                assert!(inode.dense.is_none_or(|dense| u64::from(dense) == held));
            }
            assert_eq!(orphan.is_some(), inode.nlink == 0);
            if let Some(orphan) = orphan {
                let orphan: Orphan = records::decode(orphan).unwrap();
                assert!(!orphan.sessions.is_empty());
            }
            let sum = xattrs.remove(id).unwrap_or_default();
            assert_eq!((inode.xattrs, inode.xattr_bytes), sum);
        }
        assert!(xattrs.is_empty());
        assert!(
            set.objects
                .keys()
                .all(|object| inodes.contains_key(&object.id))
        );
        let counters: Counters = records::decode(&set.records[records::COUNTERS_KEY]).unwrap();
        assert_eq!(counters.inodes, inodes.len() as u64);
        assert_eq!(counters.intents, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_keep_the_records_together(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.v.session = SessionId(1);
            world.run(step);
            world.check();
        }
        world.v.session = SessionId(1);
        world.run(&Step::Release);
        let set = &world.v.sets[0];
        let orphans = set.records.keys().filter(|key| key[0] == b'O').count();
        prop_assert_eq!(orphans, 0);
        world.check();
    }
}
