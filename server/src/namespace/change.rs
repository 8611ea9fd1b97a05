//! Changes of one inode and its data.

use bytes::Bytes;
use mortar_protocol::attr::{FileKind, SetAttr};
use mortar_protocol::entry::Object;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Change, Cut, InodeOp, Reply};
use mortar_protocol::ids::{InodeId, StageId};
use mortar_protocol::limits::{BLOCK, MAX_FILE_SIZE, MAX_INLINE};

use super::acl::{self, Acl};
use super::lookup::shown_cut;
use super::records::{self, HandTime};
use super::working::{OPEN, Working};
use super::{Context, Executed, State, access, xattr};

/// Most operations of one request.
const MAX_OPS: usize = 16_384;
/// Most pieces into which a copy by reference is cut by holes.
const MAX_PIECES: usize = 1_024;

/// One change on its way.
struct Run<'w, 'a, 'c> {
    work: &'w mut Working<'a>,
    change: &'c Change,
    /// Bytes of the body used so far.
    used: u32,
    body_len: u32,
    /// Change of `st_blocks`.
    blocks: i64,
    appended_at: Option<u64>,
}

pub(super) fn execute(
    state: &dyn State,
    cx: &Context<'_>,
    change: &Change,
    body: &Bytes,
) -> Result<Executed, Fault> {
    if change.ops.len() > MAX_OPS {
        return Err(Fault::Protocol);
    }
    let mut work = Working::new(state, cx, change.time);
    work.check_access = true;
    work.set_body(body);
    let mut before = 0;
    if change.inode {
        work.claim(records::inode_key(change.id), true)?;
        let attr = work.attr(change.id)?;
        before = attr.ok_or(Fault::Refused(Errno::ESTALE))?.change;
    } else if cx.layout.inode_set(change.id) == cx.own {
        return Err(Fault::Protocol);
    } else {
        work.claim(records::cut_key(change.id), true)?;
    }
    let mut run = Run {
        work: &mut work,
        change,
        used: 0,
        body_len: u32::try_from(body.len()).map_err(|_| Fault::Protocol)?,
        blocks: 0,
        appended_at: None,
    };
    for op in &change.ops {
        run.apply(op)?;
    }
    if run.used != run.body_len {
        return Err(Fault::Protocol);
    }
    let (blocks, appended_at) = (run.blocks, run.appended_at);
    if change.inode && blocks != 0 {
        let inode = work.inode_mut(change.id, Errno::ESTALE)?;
        inode.blocks = inode.blocks.saturating_add_signed(blocks);
    }
    let attr = work.attr(change.id)?.filter(|_| change.inode);
    work.finish(Reply::Changed {
        before,
        attr,
        appended_at,
        blocks: if change.inode { 0 } else { blocks },
    })
}

impl Run<'_, '_, '_> {
    fn apply(&mut self, op: &InodeOp) -> Result<(), Fault> {
        let id = self.change.id;
        match op {
            InodeOp::Write { shard, offset, len } => self.write(*shard, *offset, *len),
            InodeOp::Attach {
                shard,
                offset,
                stage,
                len,
            } => self.attach(*shard, *offset, *stage, *len),
            InodeOp::Reserve {
                shard,
                offset,
                len,
                zero,
            } => {
                let object = self.object(*shard, *offset, *len)?;
                self.work.note_shard(object)?;
                self.blocks += self.work.reserve(object, *offset, *len, *zero)?;
                self.modified()
            }
            InodeOp::Punch { shard, offset, len } => {
                let object = self.object(*shard, *offset, *len)?;
                self.blocks += self.work.punch(object, *offset, *len)?;
                self.modified()
            }
            InodeOp::CopyFrom {
                from,
                from_shard,
                from_offset,
                shard,
                offset,
                len,
            } => {
                let source = Object {
                    id: *from,
                    shard: *from_shard,
                };
                self.copy(source, *from_offset, *shard, *offset, *len)
            }
            _ if !self.change.inode => Err(Fault::Protocol),
            InodeOp::Append { len } => self.append(*len),
            InodeOp::Extend { size } => {
                self.check_file()?;
                self.check_cut()?;
                self.modified()?;
                self.grow(*size)
            }
            InodeOp::Grow { len } => {
                self.check_file()?;
                let size = self.work.inode(id)?.map_or(0, |inode| inode.size);
                self.appended_at.get_or_insert(size);
                self.modified()?;
                self.grow(size.checked_add(*len).ok_or(Errno::EFBIG)?)
            }
            InodeOp::SizeIs { size } => {
                self.check_file()?;
                let known = self.work.inode(id)?.map(|inode| inode.size);
                match known == Some(*size) {
                    true => Ok(()),
                    false => Err(Errno::EAGAIN.into()),
                }
            }
            InodeOp::Truncate { size } => self.truncate(*size),
            InodeOp::SetAttr(set) => set_attr(self.work, id, set),
            InodeOp::SetXattr { name, value, mode } => {
                xattr::set(self.work, id, name, value, *mode)
            }
            InodeOp::RemoveXattr { name } => xattr::remove(self.work, id, name),
            InodeOp::AddBlocks { blocks } => {
                let inode = self.work.inode_mut(id, Errno::ESTALE)?;
                inode.blocks = inode.blocks.saturating_add_signed(*blocks);
                Ok(())
            }
            InodeOp::Modified => self.modified(),
            InodeOp::Accessed { time } => match access::check(self.work, id, access::READ) {
                Ok(()) => self.work.accessed(id, *time),
                // The changes that it came with are made all the same.
                Err(Fault::Refused(Errno::EACCES)) => Ok(()),
                Err(fault) => Err(fault),
            },
            InodeOp::DirTimes { others } => {
                let inode = self.work.inode_mut(id, Errno::ESTALE)?;
                if let Some(hand) = &mut inode.hand {
                    hand.others = Some(*others);
                }
                Ok(())
            }
        }
    }

    fn check_file(&mut self) -> Result<(), Fault> {
        access::check(self.work, self.change.id, access::WRITE)?;
        check_is_file(self.work, self.change.id)
    }

    /// Refuses a request that knows less cuts than there were.
    fn check_cut(&mut self) -> Result<(), Fault> {
        let id = self.change.id;
        let known = if self.change.inode {
            let inode = self.work.inode(id)?;
            inode.filter(|inode| inode.sharded).map(|inode| inode.cut)
        } else {
            match self.work.get(&records::cut_key(id))? {
                Some(value) => Some(records::decode::<Cut>(&value)?),
                None => None,
            }
        };
        match known.is_some_and(|known| self.change.cut < known) {
            true => Err(Errno::ESTALE.into()),
            false => Ok(()),
        }
    }

    /// The object that a range lies in, after every check.
    fn object(&mut self, shard: u32, offset: u64, len: u64) -> Result<Object, Fault> {
        let (id, cx) = (self.change.id, self.work.cx);
        if cx.layout.shard_set(id, shard) != cx.own {
            return Err(Fault::Protocol);
        }
        let end = offset.checked_add(len).ok_or(Fault::Protocol)?;
        if end > cx.shard_size {
            return Err(Fault::Protocol);
        }
        let start = u64::from(shard).checked_mul(cx.shard_size);
        if start.is_none_or(|start| start > MAX_FILE_SIZE - end) {
            return Err(Errno::EFBIG.into());
        }
        if self.change.inode {
            self.check_file()?;
        }
        self.check_cut()?;
        Ok(Object { id, shard })
    }

    /// The data has changed: times, and privileges that do not survive that.
    fn modified(&mut self) -> Result<(), Fault> {
        if !self.change.inode {
            return Ok(());
        }
        let id = self.change.id;
        let inode = self.work.inode_mut(id, Errno::ESTALE)?;
        inode.mtime = inode.ctime;
        match access::matters(self.work) {
            true => drop_privileges(self.work, id),
            false => xattr::erase(self.work, id, xattr::CAPABILITY).map(|_| ()),
        }
    }

    fn grow(&mut self, size: u64) -> Result<(), Fault> {
        if size > MAX_FILE_SIZE {
            return Err(Errno::EFBIG.into());
        }
        let shard_size = self.work.cx.shard_size;
        let inode = self.work.inode_mut(self.change.id, Errno::ESTALE)?;
        inode.size = inode.size.max(size);
        inode.sharded |= inode.size > shard_size;
        Ok(())
    }

    /// After data was written to a range.
    fn wrote(&mut self, object: Object, end: u64) -> Result<(), Fault> {
        self.work.note_shard(object)?;
        self.modified()?;
        match self.change.inode {
            true if object.shard == 0 => self.grow(end),
            true => {
                let inode = self.work.inode_mut(object.id, Errno::ESTALE)?;
                inode.sharded = true;
                Ok(())
            }
            false => Ok(()),
        }
    }

    fn take(&mut self, len: u32) -> Result<u32, Fault> {
        let at = self.used;
        self.used = at.checked_add(len).ok_or(Fault::Protocol)?;
        match self.used <= self.body_len {
            true => Ok(at),
            false => Err(Fault::Protocol),
        }
    }

    fn write(&mut self, shard: u32, offset: u64, len: u32) -> Result<(), Fault> {
        let object = self.object(shard, offset, len.into())?;
        let at = self.take(len)?;
        if len > 0 {
            self.blocks += self.work.write(object, offset, at, len)?;
            self.wrote(object, offset + u64::from(len))?;
        }
        Ok(())
    }

    fn append(&mut self, len: u32) -> Result<(), Fault> {
        self.check_file()?;
        let inode = self.work.inode(self.change.id)?;
        let offset = inode.map_or(0, |inode| inode.size);
        if offset + u64::from(len) > self.work.cx.shard_size {
            return Err(Errno::E2BIG.into());
        }
        self.appended_at.get_or_insert(offset);
        let object = Object {
            id: self.change.id,
            shard: 0,
        };
        let at = self.take(len)?;
        if len > 0 {
            self.blocks += self.work.write(object, offset, at, len)?;
            self.wrote(object, offset + u64::from(len))?;
        }
        Ok(())
    }

    fn attach(&mut self, shard: u32, offset: u64, stage: StageId, len: u32) -> Result<(), Fault> {
        let len = u64::from(len);
        let object = self.object(shard, offset, len)?;
        let aligned = offset.is_multiple_of(BLOCK) && len % BLOCK == 0 && len > 0;
        if !aligned || stage.session != self.work.cx.session {
            return Err(Fault::Protocol);
        }
        let crcs = self.work.state.stage(stage).ok_or(Fault::NoStage)?;
        if crcs.len() as u64 * BLOCK != len {
            return Err(Fault::Protocol);
        }
        self.blocks += self.work.attach(object, offset, stage, crcs)?;
        self.wrote(object, offset + len)
    }

    fn truncate(&mut self, size: u64) -> Result<(), Fault> {
        self.check_file()?;
        if size > MAX_FILE_SIZE {
            return Err(Errno::EFBIG.into());
        }
        let id = self.change.id;
        let inode = self.work.inode_mut(id, Errno::ESTALE)?;
        if inode.sharded {
            return Err(Errno::EAGAIN.into());
        }
        let old = std::mem::replace(&mut inode.size, size);
        if size <= old && (inode.blocks > 0 || self.blocks > 0) {
            self.blocks += self.work.punch(Object { id, shard: 0 }, size, u64::MAX)?;
        }
        self.grow(size)?;
        self.modified()
    }

    fn copy(
        &mut self,
        source: Object,
        from: u64,
        shard: u32,
        offset: u64,
        len: u64,
    ) -> Result<(), Fault> {
        let object = self.object(shard, offset, len)?;
        self.check_source(source, from, len)?;
        if source == object && from < offset + len && offset < from + len {
            return Err(Errno::EINVAL.into());
        }
        if len == 0 {
            return Ok(());
        }
        if from % BLOCK == offset % BLOCK {
            let head = (offset.next_multiple_of(BLOCK) - offset).min(len);
            let middle = (len - head) / BLOCK * BLOCK;
            let tail = head + middle;
            self.copy_bytes(source, from, object, offset, head)?;
            self.share(source, from + head, object, offset + head, middle)?;
            self.copy_bytes(source, from + tail, object, offset + tail, len - tail)?;
        } else {
            self.copy_bytes(source, from, object, offset, len)?;
        }
        self.wrote(object, offset + len)
    }

    fn check_source(&mut self, source: Object, from: u64, len: u64) -> Result<(), Fault> {
        let cx = self.work.cx;
        let inside = from
            .checked_add(len)
            .is_some_and(|end| end <= cx.shard_size);
        if !inside
            || cx.layout.shard_set(source.id, source.shard) != cx.own
            || self.work.is_written(source)
        {
            return Err(Fault::Protocol);
        }
        if cx.layout.inode_set(source.id) == cx.own {
            self.work.claim(records::inode_key(source.id), true)?;
            if self.work.inode(source.id)?.is_none() {
                return Err(Errno::ESTALE.into());
            }
            check_is_file(self.work, source.id)?;
            access::check(self.work, source.id, access::READ)?;
        } else {
            self.work.claim(records::cut_key(source.id), true)?;
        }
        Ok(())
    }

    fn copy_bytes(
        &mut self,
        source: Object,
        from: u64,
        object: Object,
        offset: u64,
        len: u64,
    ) -> Result<(), Fault> {
        if len > MAX_INLINE as u64 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        if len == 0 {
            return Ok(());
        }
        let len = usize::try_from(len).map_err(|_| Fault::Protocol)?;
        let bytes = self.work.state.read_now(source, from, len)?;
        if bytes.len() != len {
            return Err(Fault::Corrupt);
        }
        self.blocks += self.work.write_extra(object, offset, &bytes)?;
        Ok(())
    }

    /// Shares the data of whole blocks, and punches holes where the source has none.
    fn share(
        &mut self,
        source: Object,
        from: u64,
        object: Object,
        offset: u64,
        len: u64,
    ) -> Result<(), Fault> {
        let (mut at, mut pieces) = (0, 0);
        while at < len {
            pieces += 1;
            if pieces > MAX_PIECES {
                return Err(Errno::EOPNOTSUPP.into());
            }
            let found = self.work.state.seek(source, from + at, false)?;
            let data = found.map_or(len, |data| (data / BLOCK * BLOCK).max(from + at) - from);
            let data = data.min(len);
            if data > at {
                self.blocks += self.work.punch(object, offset + at, data - at)?;
                at = data;
                continue;
            }
            let found = self.work.state.seek(source, from + at, true)?;
            let hole = found.map_or(len, |hole| hole.next_multiple_of(BLOCK) - from);
            let end = hole.clamp(at + BLOCK, len);
            self.blocks += self
                .work
                .share(source, from + at, object, offset + at, end - at)?;
            at = end;
        }
        Ok(())
    }
}

fn check_is_file(work: &mut Working<'_>, id: InodeId) -> Result<(), Fault> {
    match work.inode(id)?.map(|inode| inode.kind) {
        Some(FileKind::File) => Ok(()),
        Some(FileKind::Dir) => Err(Errno::EISDIR.into()),
        Some(_) => Err(Errno::EINVAL.into()),
        None => Err(Errno::ESTALE.into()),
    }
}

/// Clears setuid, setgid of a group-executable file, and file capabilities.
fn drop_privileges(work: &mut Working<'_>, id: InodeId) -> Result<(), Fault> {
    let Some(inode) = work.inode(id)?.filter(|inode| !inode.is_dir()) else {
        return Ok(());
    };
    let mut clear = inode.perm & libc::S_ISUID;
    if inode.perm & libc::S_IXGRP != 0 {
        clear |= inode.perm & libc::S_ISGID;
    }
    if clear != 0 {
        work.inode_mut(id, Errno::ESTALE)?.perm &= !clear;
    }
    xattr::erase(work, id, xattr::CAPABILITY).map(|_| ())
}

/// Changes attributes.
///
/// # Errors
/// EPERM or EACCES for a bound session.
fn set_attr(work: &mut Working<'_>, id: InodeId, set: &SetAttr) -> Result<(), Fault> {
    access::check_setattr(work, id, set)?;
    let chown = set.uid.is_some() || set.gid.is_some();
    if chown || set.kill_suid {
        drop_privileges(work, id)?;
    }
    let only_kills = SetAttr {
        kill_suid: true,
        ..SetAttr::default()
    };
    if *set == only_kills {
        return Ok(());
    }
    let part_change = match work.inode(id)?.is_some_and(|inode| inode.is_dir()) {
        true => work.part(id)?.map_or(0, |part| part.change),
        false => 0,
    };
    let inode = work.inode_mut(id, Errno::ESTALE)?;
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    inode.atime = set.atime.unwrap_or(inode.atime);
    inode.ctime = inode.ctime.max(set.ctime.unwrap_or(inode.ctime));
    if let Some(mtime) = set.mtime {
        inode.mtime = mtime;
        inode.hand = inode.is_dir().then_some(HandTime {
            own: part_change,
            others: None,
        });
    }
    match set.perm {
        Some(perm) => chmod(work, id, perm & 0o7777),
        None => Ok(()),
    }
}

fn chmod(work: &mut Working<'_>, id: InodeId, mut perm: u32) -> Result<(), Fault> {
    let (bound, cred) = (access::matters(work), work.cx.cred);
    let inode = work.inode_mut(id, Errno::ESTALE)?;
    if bound && !inode.is_dir() && !cred.in_group(inode.gid) {
        perm &= !libc::S_ISGID;
    }
    inode.perm = perm;
    if inode.xattrs == 0 {
        return Ok(());
    }
    let acl = work.get(&records::xattr_key(id, acl::ACCESS))?;
    if let Some(mut acl) = acl.map(|value| Acl::parse(&value)).transpose()?.flatten() {
        acl.chmod(perm);
        xattr::store(work, id, acl::ACCESS, &acl.encode())?;
    }
    Ok(())
}

/// Drops the data from `size` on in the shards that lie here; gives the change of `st_blocks`.
fn cut_shards(work: &mut Working<'_>, id: InodeId, size: u64, first: bool) -> Result<i64, Fault> {
    let shard_size = work.cx.shard_size;
    let mut shards = work.shards(id)?;
    if first {
        shards.push(0);
    }
    let mut blocks = 0;
    for shard in shards {
        let start = u64::from(shard).saturating_mul(shard_size);
        let object = Object { id, shard };
        if start.saturating_add(shard_size) > size {
            blocks += work.punch(object, size.saturating_sub(start), u64::MAX)?;
            if shard > 0 && start >= size {
                work.del(records::shard_key(id, shard));
            }
        }
    }
    Ok(blocks)
}

/// [`Part::ShardCut`](mortar_protocol::fop::Part::ShardCut).
///
/// # Errors
/// EAGAIN if a later cut is known.
pub(super) fn shard_cut(
    work: &mut Working<'_>,
    id: InodeId,
    size: u64,
    cut: Cut,
) -> Result<(), Fault> {
    if work.cx.layout.inode_set(id) == work.cx.own {
        return Err(Fault::Protocol);
    }
    let key = records::cut_key(id);
    work.claim(key.clone(), true)?;
    let known = match work.get(&key)? {
        Some(value) => records::decode::<Cut>(&value)?,
        None => Cut::default(),
    };
    if cut < known {
        return Err(Errno::EAGAIN.into());
    }
    cut_shards(work, id, size, false)?;
    work.put(key, records::encode(&cut));
    Ok(())
}

/// [`Part::InodeCut`](mortar_protocol::fop::Part::InodeCut).
///
/// # Errors
/// EAGAIN if the cut number is not a new one; ESTALE, EISDIR or EINVAL if there is no such file.
pub(super) fn inode_cut(
    work: &mut Working<'_>,
    id: InodeId,
    size: u64,
    cut: Cut,
    set: &SetAttr,
    other_blocks: u64,
) -> Result<(), Fault> {
    work.claim(records::inode_key(id), true)?;
    let opening = work.cx.opening;
    let shown = work.inode(id)?.map(|inode| shown_cut(inode, opening));
    if work.finishing {
        // The file may have gone in the meantime, and the set may have opened again.
        if shown.is_none() {
            return Ok(());
        }
    } else {
        check_is_file(work, id)?;
        access::check(work, id, access::WRITE)?;
        if shown.is_some_and(|shown| cut <= shown) {
            return Err(Errno::EAGAIN.into());
        }
    }
    let blocks = cut_shards(work, id, size, true)?;
    let shard_size = work.cx.shard_size;
    let inode = work.inode_mut(id, Errno::ESTALE)?;
    inode.size = size;
    inode.cut = cut.max(inode.cut);
    inode.sharded |= size > shard_size;
    inode.blocks = inode
        .blocks
        .saturating_add_signed(blocks)
        .saturating_sub(other_blocks);
    inode.mtime = inode.ctime;
    xattr::erase(work, id, xattr::CAPABILITY)?;
    match *set == SetAttr::default() {
        true => Ok(()),
        false => set_attr(work, id, set),
    }
}

/// Blocks (512 bytes) of a file's shards on this set at or beyond `size` bytes of the file.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn blocks_beyond(work: &Working<'_>, id: InodeId, size: u64) -> Result<u64, Fault> {
    let shard_size = work.cx.shard_size;
    let mut blocks = 0;
    for shard in work.shards(id)? {
        let from = size.saturating_sub(u64::from(shard).saturating_mul(shard_size));
        if from < shard_size {
            let object = Object { id, shard };
            blocks += work.allocated(object, from.div_ceil(BLOCK), OPEN)?;
        }
    }
    Ok(blocks * (BLOCK / 512))
}
