//! The brick in the golden image: every kind of file, and a log whose tail is in no checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::attr::{FileKind, SetAttr, Time};
use mortar_protocol::fop::{Change, Cut, Fop, InodeOp, Part, XattrMode};
use mortar_protocol::ids::{Gfid, InodeId, SessionId};
use mortar_protocol::limits::SHARD_SIZE;
use mortar_protocol::placement::slot;
use mortar_server::device::sim::SimDisk;

use crate::crash::model::pattern;
use crate::crash::rig::{Past, Rig, format};

const SESSION: SessionId = SessionId(1);
/// Time of every change.
pub const TIME: Time = Time {
    secs: 1_700_000_000,
    nanos: 987_654_321,
};
/// An access control list: user 1000 may read a file of mode 0640.
pub const ACL: &[u8] = &[
    2, 0, 0, 0, // version
    1, 0, 6, 0, 255, 255, 255, 255, // owner rw-
    2, 0, 4, 0, 232, 3, 0, 0, // user 1000 r--
    4, 0, 4, 0, 255, 255, 255, 255, // group r--
    16, 0, 4, 0, 255, 255, 255, 255, // mask r--
    32, 0, 0, 0, 255, 255, 255, 255, // others ---
];
/// The name of an extended attribute that several inodes have.
pub const XATTR: &[u8] = b"user.color";
/// What the golden brick's long file holds in its second shard, from the shard's first byte on.
pub const IN_SECOND_SHARD: usize = 5_000;

/// What regular files hold, by path. The long file is not among them.
pub fn contents() -> BTreeMap<&'static str, Vec<u8>> {
    let mut holes = vec![0; 200_000];
    holes[100_000..101_000].copy_from_slice(&pattern(3, 1_000));
    let mut staged = pattern(4, 192 << 10);
    staged[70_000..70_010].copy_from_slice(b"overwrite!");
    BTreeMap::from([
        ("/empty", Vec::new()),
        ("/inline", pattern(1, 777)),
        ("/dir/linked", pattern(2, 9_000)),
        ("/dir/other-name", pattern(2, 9_000)),
        ("/dir/below/holes", holes),
        ("/staged", staged),
        ("/late", pattern(5, 3_000)),
        ("/latest", pattern(6, 64 << 10)),
    ])
}

/// The id of what was made under a name.
pub fn id_of(parent: InodeId, name: &str) -> InodeId {
    InodeId(u64::from(slot(parent, name.as_bytes())) << 48 | 0x0042)
}

struct Maker {
    rig: Rig,
}

type Res<T> = Result<T, String>;

impl Maker {
    fn ask(&mut self, fop: Fop, body: Vec<u8>) -> Res<()> {
        let text = format!("{fop:?}");
        match self.rig.ask(fop, body.into(), false) {
            Some((answer, _)) if answer.result.is_ok() => Ok(()),
            answer => Err(format!("{text}: {answer:?}")),
        }
    }

    fn commit(&mut self, parts: Vec<Part>) -> Res<()> {
        self.ask(Fop::Commit { parts, time: TIME }, Vec::new())
    }

    fn make(&mut self, parent: InodeId, text: &'static str, kind: FileKind) -> Res<InodeId> {
        let name = Bytes::from_static(text.as_bytes());
        let gfid = Gfid {
            id: id_of(parent, text),
            generation: 0x5eed,
        };
        let link: &'static [u8] = if kind == FileKind::Symlink {
            b"dir/linked"
        } else {
            b""
        };
        let new = Part::InodeNew {
            gfid,
            kind,
            perm: if kind == FileKind::Dir { 0o751 } else { 0o640 },
            umask: 0,
            uid: 1_000,
            gid: 100,
            rdev: u32::from(kind == FileKind::CharDevice) * 0x0103,
            target: Bytes::from_static(link),
            parent,
            name: name.clone(),
            hint: None,
        };
        let add = Part::DirentAdd {
            parent,
            name,
            gfid,
            kind,
            replaces: None,
        };
        self.commit(vec![new, add])?;
        Ok(gfid.id)
    }

    fn change(&mut self, id: InodeId, ops: Vec<InodeOp>, body: Vec<u8>) -> Res<()> {
        let change = Change {
            id,
            inode: true,
            cut: Cut {
                opening: self.rig.opening(),
                count: 0,
            },
            time: TIME,
            ops,
        };
        self.ask(Fop::Change(change), body)
    }

    fn write(&mut self, id: InodeId, shard: u32, offset: u64, data: Vec<u8>) -> Res<()> {
        let write = InodeOp::Write {
            shard,
            offset,
            len: data.len() as u32,
        };
        self.change(id, vec![write], data)
    }

    fn stage(&mut self, id: InodeId, data: Vec<u8>) -> Res<()> {
        let len = data.len() as u32;
        let stage = self.rig.stage(data.into());
        let attach = InodeOp::Attach {
            shard: 0,
            offset: 0,
            stage: stage.map_err(|fault| format!("{fault:?}"))?,
            len,
        };
        self.change(id, vec![attach], Vec::new())
    }

    fn set_xattr(&mut self, id: InodeId, name: &'static [u8], value: &'static [u8]) -> Res<()> {
        let set = InodeOp::SetXattr {
            name: Bytes::from_static(name),
            value: Bytes::from_static(value),
            mode: XattrMode::Set,
        };
        self.change(id, vec![set], Vec::new())
    }

    /// What a checkpoint holds.
    fn first(&mut self) -> Res<()> {
        let root = InodeId::ROOT;
        let files = contents();
        self.ask(Fop::SessionBegin, Vec::new())?;
        self.make(root, "empty", FileKind::File)?;
        let inline = self.make(root, "inline", FileKind::File)?;
        self.write(inline, 0, 0, files["/inline"].clone())?;
        self.set_xattr(inline, XATTR, b"blue")?;
        self.set_xattr(inline, b"system.posix_acl_access", ACL)?;
        let dir = self.make(root, "dir", FileKind::Dir)?;
        self.set_xattr(dir, XATTR, b"green")?;
        let linked = self.make(dir, "linked", FileKind::File)?;
        self.write(linked, 0, 0, files["/dir/linked"].clone())?;
        let below = self.make(dir, "below", FileKind::Dir)?;
        let holes = self.make(below, "holes", FileKind::File)?;
        self.write(holes, 0, 100_000, pattern(3, 1_000))?;
        let reserve = InodeOp::Reserve {
            shard: 0,
            offset: 150_000,
            len: 20_000,
            zero: false,
        };
        let extend = InodeOp::Extend { size: 200_000 };
        self.change(holes, vec![reserve, extend], Vec::new())?;
        let staged = self.make(root, "staged", FileKind::File)?;
        self.stage(staged, pattern(4, 192 << 10))?;
        let long = self.make(root, "long", FileKind::File)?;
        let extend = InodeOp::Extend {
            size: SHARD_SIZE + IN_SECOND_SHARD as u64,
        };
        self.change(long, vec![extend], Vec::new())?;
        self.write(long, 1, 0, pattern(7, IN_SECOND_SHARD))?;
        self.make(root, "link", FileKind::Symlink)?;
        self.make(root, "pipe", FileKind::Fifo)?;
        self.make(root, "null", FileKind::CharDevice).map(drop)
    }

    /// What is in the tree, or only in the log.
    fn second(&mut self) -> Res<()> {
        let root = InodeId::ROOT;
        let dir = id_of(root, "dir");
        let id = id_of(dir, "linked");
        let name = Bytes::from_static(b"other-name");
        let gfid = Gfid {
            id,
            generation: 0x5eed,
        };
        let add = Part::DirentAdd {
            parent: dir,
            name: name.clone(),
            gfid,
            kind: FileKind::File,
            replaces: None,
        };
        let parent = dir;
        self.commit(vec![add, Part::LinkAdd { id, parent, name }])?;
        let staged = id_of(root, "staged");
        self.write(staged, 0, 70_000, b"overwrite!".to_vec())?;
        self.rig.pass_until_applied();
        let files = contents();
        let late = self.make(root, "late", FileKind::File)?;
        self.write(late, 0, 0, files["/late"].clone())?;
        let set = SetAttr {
            perm: Some(0o4711),
            ..SetAttr::default()
        };
        self.change(late, vec![InodeOp::SetAttr(set)], Vec::new())?;
        let latest = self.make(root, "latest", FileKind::File)?;
        self.stage(latest, files["/latest"].clone())
    }
}

/// Makes the brick; it is left as a process leaves it that is killed.
///
/// # Errors
/// What it did not do.
pub fn make() -> Result<Arc<SimDisk>, String> {
    let disk = format(1).map_err(|error| error.to_string())?;
    let rig = Rig::open(disk, Past::default(), SESSION, &[SESSION]);
    let rig = rig.map_err(|error| error.to_string())?;
    let mut maker = Maker { rig };
    maker.first()?;
    maker.rig.pass_until_applied();
    maker.rig.pass_until_checkpoint();
    maker.second()?;
    Ok(maker
        .rig
        .disk
        .reboot(mortar_server::device::sim::Survival::Process))
}
