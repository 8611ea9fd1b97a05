//! Does operations as a client does: looks names up, then asks the brick for changes.

use bytes::Bytes;
use mortar_protocol::attr::{FileKind, SetAttr, Time};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Change, Cut, Fop, InodeOp, Part, Reply, XattrMode};
use mortar_protocol::ids::{Gfid, InodeId, Seq};
use mortar_protocol::placement::slot;

use super::model::{self, CUT_SIZE, FIRST_SIZE, HOLE, RESERVED, STAGE, TARGET, WRITE, XATTR};
use super::ops::{DIR, Name, Op};
use super::rig::Rig;

/// What was asked and answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// Place of the change in the set's log.
    pub seq: Seq,
    /// Up to where the answer said that the log is flushed.
    pub flushed: Seq,
}

/// What became of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done.
    Done(Done),
    /// Refused.
    Refused(Errno),
    /// No answer: the machine has ended or the brick has failed.
    Unknown,
}

/// Id of the directory that workloads start with.
pub fn dir_id() -> InodeId {
    new_gfid(InodeId::ROOT, DIR, 0).id
}

/// The identity of an inode that the operation at a place makes.
fn new_gfid(parent: InodeId, name: &[u8], place: usize) -> Gfid {
    Gfid {
        id: InodeId(u64::from(slot(parent, name)) << 48 | (1_000 + place as u64)),
        generation: place as u64 + 1,
    }
}

fn stamp(place: usize) -> Time {
    Time {
        secs: model::time(place),
        nanos: 0,
    }
}

/// A request with what goes with it.
struct Asked {
    fop: Fop,
    body: Bytes,
}

impl From<Fop> for Asked {
    fn from(fop: Fop) -> Self {
        Self {
            fop,
            body: Bytes::new(),
        }
    }
}

/// An operation of a client on a rig.
struct Doing<'a> {
    rig: &'a mut Rig,
    place: usize,
    time: Time,
}

type Found = (Gfid, FileKind);
type Parts = Result<Vec<Part>, Fault>;

impl Doing<'_> {
    fn parent(name: Name) -> InodeId {
        name.parent(dir_id())
    }

    fn look(&mut self, name: Name) -> Result<Option<Found>, Fault> {
        let fop = Fop::Lookup {
            parent: Self::parent(name),
            name: Bytes::from_static(name.text()),
        };
        match self.rig.get(fop) {
            Ok((Reply::Found { gfid, kind, .. }, _)) => Ok(Some((gfid, kind))),
            Ok(_) => Err(Fault::Protocol),
            Err(Fault::Refused(Errno::ENOENT)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    fn find(&mut self, name: Name) -> Result<Found, Fault> {
        self.look(name)?.ok_or(Fault::Refused(Errno::ENOENT))
    }

    fn file(&mut self, name: Name) -> Result<InodeId, Fault> {
        match self.find(name)? {
            (gfid, FileKind::File) => Ok(gfid.id),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn make(&mut self, parent: InodeId, text: &'static [u8], kind: FileKind, perm: u32) -> Fop {
        let gfid = new_gfid(parent, text, self.place);
        let name = Bytes::from_static(text);
        let target: &'static [u8] = if kind == FileKind::Symlink {
            TARGET
        } else {
            b""
        };
        let parts = vec![
            Part::InodeNew {
                gfid,
                kind,
                perm,
                umask: 0,
                uid: 0,
                gid: 0,
                rdev: 0,
                target: Bytes::from_static(target),
                parent,
                name: name.clone(),
                hint: None,
            },
            add(parent, name, (gfid, kind), None),
        ];
        Fop::Commit {
            parts,
            time: self.time,
        }
    }

    fn remove(&mut self, name: Name, dir: bool) -> Parts {
        let (gfid, kind) = self.find(name)?;
        match (kind == FileKind::Dir, dir) {
            (true, false) => return Err(Errno::EISDIR.into()),
            (false, true) => return Err(Errno::ENOTDIR.into()),
            _ => {}
        }
        let remove = Part::DirentRemove {
            parent: Self::parent(name),
            name: Bytes::from_static(name.text()),
            expect: gfid,
        };
        Ok(vec![remove, unlink(name, (gfid, kind))])
    }

    fn link(&mut self, from: Name, to: Name) -> Parts {
        let found = self.find(from)?;
        if found.1 == FileKind::Dir {
            return Err(Errno::EPERM.into());
        }
        let (parent, name) = pair(to);
        Ok(vec![
            add(parent, name.clone(), found, None),
            Part::LinkAdd {
                id: found.0.id,
                parent,
                name,
            },
        ])
    }

    fn rename(&mut self, from: Name, to: Name) -> Parts {
        let source = self.find(from)?;
        let target = self.look(to)?;
        if let Some(target) = target {
            if source.0 == target.0 {
                return Err(Errno::EAGAIN.into());
            }
            match (source.1 == FileKind::Dir, target.1 == FileKind::Dir) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                _ => {}
            }
        }
        let (to_parent, to_name) = pair(to);
        let (from_parent, from_name) = pair(from);
        let mut parts = move_lock(from, to, &[source]);
        parts.extend([
            Part::DirentRemove {
                parent: from_parent,
                name: from_name,
                expect: source.0,
            },
            add(to_parent, to_name, source, target.map(|found| found.0)),
            moved(source, from, to),
        ]);
        parts.extend(target.map(|found| unlink(to, found)));
        Ok(parts)
    }

    fn exchange(&mut self, one: Name, other: Name) -> Parts {
        let (first, second) = (self.find(one)?, self.find(other)?);
        if first.0 == second.0 {
            return Err(Errno::EAGAIN.into());
        }
        let mut parts = move_lock(one, other, &[first, second]);
        let (parent, name) = pair(one);
        parts.push(add(parent, name, second, Some(first.0)));
        let (parent, name) = pair(other);
        parts.push(add(parent, name, first, Some(second.0)));
        parts.push(moved(first, one, other));
        parts.push(moved(second, other, one));
        Ok(parts)
    }

    fn change(&self, id: InodeId, ops: Vec<InodeOp>) -> Fop {
        let cut = Cut {
            opening: self.rig.opening(),
            count: 0,
        };
        Fop::Change(Change {
            id,
            inode: true,
            cut,
            time: self.time,
            ops,
        })
    }

    fn fop(&mut self, op: Op) -> Result<Asked, Fault> {
        let commit = |parts: Vec<Part>, time: Time| Asked::from(Fop::Commit { parts, time });
        let time = self.time;
        Ok(match op {
            Op::Create(name) => self.new_name(name, FileKind::File, 0o644)?,
            Op::Mkdir(name) => self.new_name(name, FileKind::Dir, 0o755)?,
            Op::Symlink(name) => self.new_name(name, FileKind::Symlink, 0o777)?,
            Op::Link(from, to) => commit(self.link(from, to)?, time),
            Op::Rename(from, to) => commit(self.rename(from, to)?, time),
            Op::Exchange(one, other) => commit(self.exchange(one, other)?, time),
            Op::Unlink(name) => commit(self.remove(name, false)?, time),
            Op::Rmdir(name) => commit(self.remove(name, true)?, time),
            Op::Write(name) => {
                let id = self.file(name)?;
                self.write(id, WRITE.0, model::pattern(self.place, WRITE.1))
            }
            Op::Stage(name) => {
                let id = self.file(name)?;
                let data = model::pattern(self.place, STAGE.1);
                let stage = self.rig.stage(data.into())?;
                let attach = InodeOp::Attach {
                    shard: 0,
                    offset: STAGE.0,
                    stage,
                    len: STAGE.1 as u32,
                };
                self.change(id, vec![attach]).into()
            }
            Op::Truncate(name) => {
                let id = self.file(name)?;
                self.change(id, vec![InodeOp::Truncate { size: CUT_SIZE }])
                    .into()
            }
            Op::Allocate(name) => {
                let id = self.file(name)?;
                self.change(id, allocation()).into()
            }
            Op::SetXattr(name) => {
                let found = self.find(name)?;
                if found.1 == FileKind::Symlink {
                    return Err(Errno::EPERM.into());
                }
                let set = InodeOp::SetXattr {
                    name: Bytes::from_static(XATTR),
                    value: model::xattr_value(self.place).into(),
                    mode: XattrMode::Set,
                };
                self.change(found.0.id, vec![set]).into()
            }
            Op::Chmod(name) => {
                let found = self.find(name)?;
                if found.1 == FileKind::Symlink {
                    return Err(Errno::EOPNOTSUPP.into());
                }
                let set = InodeOp::SetAttr(SetAttr {
                    perm: Some(model::perm(self.place)),
                    ..SetAttr::default()
                });
                self.change(found.0.id, vec![set]).into()
            }
        })
    }

    fn new_name(&mut self, name: Name, kind: FileKind, perm: u32) -> Result<Asked, Fault> {
        if self.look(name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        Ok(self
            .make(Self::parent(name), name.text(), kind, perm)
            .into())
    }

    fn write(&self, id: InodeId, offset: u64, data: Vec<u8>) -> Asked {
        let write = InodeOp::Write {
            shard: 0,
            offset,
            len: data.len() as u32,
        };
        Asked {
            fop: self.change(id, vec![write]),
            body: data.into(),
        }
    }

    fn run(&mut self, asked: Result<Asked, Fault>, durable: bool) -> Outcome {
        let answer = match asked {
            Ok(asked) => match self.rig.ask(asked.fop, asked.body, durable) {
                Some((answer, _)) => answer,
                None => return Outcome::Unknown,
            },
            Err(Fault::Refused(errno)) => return Outcome::Refused(errno),
            Err(_) => return Outcome::Unknown,
        };
        match answer.result {
            Ok(_) => Outcome::Done(Done {
                seq: answer.mark.seq,
                flushed: answer.flushed,
            }),
            Err(Fault::Refused(errno)) => Outcome::Refused(errno),
            Err(_) => Outcome::Unknown,
        }
    }
}

/// What [`Op::Allocate`] asks for.
fn allocation() -> Vec<InodeOp> {
    let end = RESERVED.0 + RESERVED.1;
    vec![
        InodeOp::Punch {
            shard: 0,
            offset: HOLE.0,
            len: HOLE.1,
        },
        InodeOp::Reserve {
            shard: 0,
            offset: RESERVED.0,
            len: RESERVED.1,
            zero: false,
        },
        InodeOp::Extend { size: end },
    ]
}

fn pair(name: Name) -> (InodeId, Bytes) {
    (name.parent(dir_id()), Bytes::from_static(name.text()))
}

fn add(parent: InodeId, name: Bytes, (gfid, kind): Found, replaces: Option<Gfid>) -> Part {
    Part::DirentAdd {
        parent,
        name,
        gfid,
        kind,
        replaces,
    }
}

fn unlink(name: Name, (gfid, kind): Found) -> Part {
    if kind == FileKind::Dir {
        return Part::DirClose {
            dir: gfid.id,
            held_open: false,
        };
    }
    let (parent, name) = pair(name);
    Part::LinkRemove {
        id: gfid.id,
        parent,
        name,
        held_open: false,
    }
}

fn moved(found: Found, from: Name, to: Name) -> Part {
    Part::LinkMove {
        id: found.0.id,
        from: pair(from),
        to: pair(to),
    }
}

/// What a move of directories to other parents checks first.
fn move_lock(from: Name, to: Name, moving: &[Found]) -> Vec<Part> {
    let dir = dir_id();
    let moves = moving.iter().any(|found| found.1 == FileKind::Dir);
    if !moves || from.parent(dir) == to.parent(dir) {
        return Vec::new();
    }
    let parent = InodeId::ROOT;
    vec![Part::TreeLock, Part::ParentIs { dir, parent }]
}

/// Does the operation at a place of a sequence.
pub fn perform(rig: &mut Rig, place: usize, op: Op, durable: bool) -> Outcome {
    let time = stamp(place);
    let mut doing = Doing { rig, place, time };
    let asked = doing.fop(op);
    doing.run(asked, durable)
}

/// Makes what workloads start with, on a new brick.
///
/// # Errors
/// What the brick did not do.
pub fn populate(rig: &mut Rig) -> Result<(), Outcome> {
    let time = Time::default();
    let begun = rig.get(Fop::SessionBegin);
    begun.map_err(|fault| Outcome::Refused(fault.errno()))?;
    let mut doing = Doing {
        rig,
        place: 0,
        time,
    };
    let must = |made: Result<Asked, Fault>, doing: &mut Doing<'_>| match doing.run(made, true) {
        Outcome::Done(_) => Ok(()),
        outcome => Err(outcome),
    };
    let dir = doing.make(InodeId::ROOT, DIR, FileKind::Dir, 0o755);
    must(Ok(dir.into()), &mut doing)?;
    doing.place = 90;
    let file = doing.new_name(Name::A, FileKind::File, 0o644);
    must(file, &mut doing)?;
    let id = doing.file(Name::A);
    let write = id.map(|id| doing.write(id, 0, model::pattern(99, FIRST_SIZE)));
    must(write, &mut doing)?;
    doing.place = 91;
    let below = doing.new_name(Name::C, FileKind::Dir, 0o755);
    must(below, &mut doing)
}

/// Writes a file `/new` beside the workload's names, flushed.
///
/// # Errors
/// What the brick did not do.
pub fn write_new(rig: &mut Rig, content: &[u8]) -> Result<(), Outcome> {
    let begun = rig.get(Fop::SessionBegin);
    begun.map_err(|fault| Outcome::Refused(fault.errno()))?;
    let mut doing = Doing {
        rig,
        place: 95,
        time: stamp(95),
    };
    let make = doing.make(InodeId::ROOT, b"new", FileKind::File, 0o600);
    match doing.run(Ok(make.into()), false) {
        Outcome::Done(_) => {}
        outcome => return Err(outcome),
    }
    let id = new_gfid(InodeId::ROOT, b"new", 95).id;
    let write = doing.write(id, 100, content.to_vec());
    match doing.run(Ok(write), true) {
        Outcome::Done(done) if done.flushed >= done.seq => Ok(()),
        outcome => Err(outcome),
    }
}
