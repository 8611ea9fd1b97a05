//! Tests by topic. [`Sets`] is a volume of one or more sets in memory.

mod claims;
mod data;
mod locks;
mod model;
mod names;
mod orphans;
mod permissions;
mod transactions;
mod xattrs;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::entry::Object;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Change, Cut, DirEntry, Fop, InodeOp, Part, Reply};
use mortar_protocol::ids::{Gfid, InodeId, Opening, SessionId, SetIndex};
use mortar_protocol::placement::{Layout, slot};

use super::memory::Memory;
use super::{Context, Executed, ReadAnswer};

/// Size of a shard in these tests.
pub(super) const SHARD: u64 = 256 << 10;

/// A volume.
pub(super) struct Sets {
    pub(super) sets: Vec<Memory>,
    pub(super) layout: Layout,
    pub(super) sessions: Vec<SessionId>,
    pub(super) session: SessionId,
    pub(super) cred: Cred,
    pub(super) bound: u32,
    pub(super) clock: i64,
    pub(super) drawn: u64,
}

impl Sets {
    pub(super) fn new(sets: u32) -> Self {
        let mut volume = Self {
            sets: (0..sets).map(|_| Memory::new()).collect(),
            layout: Layout::even(sets),
            sessions: vec![SessionId(1)],
            session: SessionId(1),
            cred: Cred::default(),
            bound: 0,
            clock: 1_000,
            drawn: 0,
        };
        for set in 0..sets {
            let root = volume.with(set, |state, cx| super::root(state, cx));
            if let Some(root) = root.unwrap() {
                volume.sets[set as usize].apply(&root);
            }
        }
        volume
    }

    pub(super) fn time(&self) -> Time {
        Time {
            secs: self.clock,
            nanos: 0,
        }
    }

    pub(super) fn with<T>(&self, set: u32, f: impl FnOnce(&Memory, &Context<'_>) -> T) -> T {
        let cx = Context {
            session: self.session,
            uid_bound: self.bound,
            cred: &self.cred,
            time: self.time(),
            sessions: &self.sessions,
            layout: &self.layout,
            own: SetIndex(set),
            shard_size: SHARD,
            opening: Opening(1),
            reserve_percent: 0,
        };
        f(&self.sets[set as usize], &cx)
    }

    pub(super) fn apply(&mut self, set: u32, executed: &Executed) {
        self.sets[set as usize].apply(executed);
    }

    /// Runs a numbered fop on a set; the same arguments must give the same result.
    pub(super) fn run(&mut self, set: u32, fop: Fop, body: &[u8]) -> Result<Reply, Fault> {
        self.clock += 1;
        let body = Bytes::copy_from_slice(body);
        let executed = self.with(set, |state, cx| {
            let first = super::execute(state, cx, &fop, &body);
            assert_eq!(first, super::execute(state, cx, &fop, &body));
            first
        })?;
        self.apply(set, &executed);
        Ok(executed.reply)
    }

    /// Commits parts; gives the attributes of the inodes that they name, without those of the directories changed.
    pub(super) fn commit(&mut self, set: u32, parts: Vec<Part>) -> Result<Vec<Attr>, Fault> {
        let named: Vec<InodeId> = parts
            .iter()
            .filter_map(|part| match part {
                Part::InodeNew { gfid, .. } => Some(gfid.id),
                Part::LinkAdd { id, .. }
                | Part::LinkMove { id, .. }
                | Part::LinkRemove { id, .. }
                | Part::InodeCut { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        let time = Time {
            secs: self.clock + 1,
            nanos: 0,
        };
        match self.run(set, Fop::Commit { parts, time }, b"")? {
            Reply::Parts(mut attrs) => {
                attrs.retain(|attr| named.contains(&attr.gfid.id));
                Ok(attrs)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn ask(&self, set: u32, fop: Fop) -> Result<(Reply, Vec<u8>), Fault> {
        match self.with(set, |state, cx| super::answer(state, cx, &fop))? {
            ReadAnswer::Reply(reply) => Ok((reply, Vec::new())),
            ReadAnswer::Data {
                object,
                offset,
                len,
                reply,
            } => Ok((reply, self.sets[set as usize].bytes(object, offset, len))),
        }
    }

    pub(super) fn set_of(&self, id: InodeId) -> u32 {
        self.layout.inode_set(id).0
    }

    pub(super) fn name_set(&self, parent: InodeId, name: &[u8]) -> u32 {
        self.layout.name_set(parent, name).0
    }

    pub(super) fn draw(&mut self, parent: InodeId, name: &[u8]) -> Gfid {
        self.drawn += 1;
        Gfid {
            id: InodeId((u64::from(slot(parent, name)) << 48) | (0x1000 + self.drawn)),
            generation: self.drawn,
        }
    }

    pub(super) fn new_parts(
        &self,
        parent: InodeId,
        name: &[u8],
        gfid: Gfid,
        kind: FileKind,
        perm: u32,
    ) -> Vec<Part> {
        let name = Bytes::copy_from_slice(name);
        let target = match kind {
            FileKind::Symlink => Bytes::from_static(b"target"),
            _ => Bytes::new(),
        };
        vec![
            Part::InodeNew {
                gfid,
                kind,
                perm,
                umask: 0o022,
                uid: self.cred.uid,
                gid: self.cred.gid,
                rdev: 7,
                target,
                parent,
                name: name.clone(),
                hint: None,
            },
            Part::DirentAdd {
                parent,
                name,
                gfid,
                kind,
                replaces: None,
            },
        ]
    }

    pub(super) fn make(
        &mut self,
        parent: InodeId,
        name: &[u8],
        kind: FileKind,
        perm: u32,
    ) -> Result<Attr, Fault> {
        let gfid = self.draw(parent, name);
        let parts = self.new_parts(parent, name, gfid, kind, perm);
        let attrs = self.commit(self.name_set(parent, name), parts)?;
        assert_eq!(attrs.len(), 1);
        Ok(attrs[0])
    }

    pub(super) fn file(&mut self, name: &[u8]) -> Attr {
        self.make(InodeId::ROOT, name, FileKind::File, 0o666)
            .unwrap()
    }

    pub(super) fn dir(&mut self, name: &[u8]) -> Attr {
        self.make(InodeId::ROOT, name, FileKind::Dir, 0o777)
            .unwrap()
    }

    pub(super) fn look(&self, parent: InodeId, name: &[u8]) -> Result<Gfid, Fault> {
        let name = Bytes::copy_from_slice(name);
        let set = self.name_set(parent, &name);
        match self.ask(set, Fop::Lookup { parent, name })?.0 {
            Reply::Found { gfid, .. } => Ok(gfid),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn attr(&self, id: InodeId) -> Result<Attr, Fault> {
        match self.ask(self.set_of(id), Fop::GetAttr { id })?.0 {
            Reply::Attr(attr, _) | Reply::DirAttr { attr, .. } => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn change(
        &mut self,
        id: InodeId,
        ops: Vec<InodeOp>,
        body: &[u8],
    ) -> Result<Attr, Fault> {
        let change = Change {
            id,
            inode: true,
            cut: Cut::default(),
            time: Time {
                secs: self.clock + 1,
                nanos: 0,
            },
            ops,
        };
        match self.run(self.set_of(id), Fop::Change(change), body)? {
            Reply::Changed { attr, .. } => Ok(attr.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn write(&mut self, id: InodeId, offset: u64, bytes: &[u8]) -> Result<Attr, Fault> {
        let op = InodeOp::Write {
            shard: 0,
            offset,
            len: bytes.len() as u32,
        };
        self.change(id, vec![op], bytes)
    }

    pub(super) fn read(&self, id: InodeId, offset: u64, len: u32) -> Result<Vec<u8>, Fault> {
        let fop = Fop::Read {
            id,
            shard: 0,
            offset,
            len,
            cut: Cut::default(),
        };
        Ok(self.ask(self.set_of(id), fop)?.1)
    }

    pub(super) fn entries(&self, set: u32, dir: InodeId, max: u32) -> Vec<DirEntry> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let fop = Fop::ReadDir {
                dir,
                after,
                max,
                plus: true,
            };
            match self.ask(set, fop).unwrap().0 {
                Reply::Entries { entries, end } => {
                    after = entries.last().map_or(after, |entry| entry.offset);
                    all.extend(entries);
                    if end {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn unlink(&mut self, name: &[u8], held_open: bool) -> Result<Vec<Attr>, Fault> {
        let gfid = self.look(InodeId::ROOT, name)?;
        let parts = unlink_parts(InodeId::ROOT, name, gfid, held_open);
        self.commit(self.name_set(InodeId::ROOT, name), parts)
    }

    pub(super) fn object(&self, id: InodeId) -> Object {
        Object { id, shard: 0 }
    }
}

pub(super) fn unlink_parts(parent: InodeId, name: &[u8], gfid: Gfid, held_open: bool) -> Vec<Part> {
    let name = Bytes::copy_from_slice(name);
    vec![
        Part::DirentRemove {
            parent,
            name: name.clone(),
            expect: gfid,
        },
        Part::LinkRemove {
            id: gfid.id,
            parent,
            name,
            held_open,
        },
    ]
}

pub(super) fn rmdir_parts(parent: InodeId, name: &[u8], gfid: Gfid) -> Vec<Part> {
    vec![
        Part::DirentRemove {
            parent,
            name: Bytes::copy_from_slice(name),
            expect: gfid,
        },
        Part::DirClose {
            dir: gfid.id,
            held_open: false,
        },
    ]
}

pub(super) fn refused<T>(errno: Errno) -> Result<T, Fault> {
    Err(Fault::Refused(errno))
}
