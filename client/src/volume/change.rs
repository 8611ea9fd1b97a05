//! Changes of one inode: one entry where they fit, several in order where they do not, other sets in between.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Change, Fop, InodeOp, Reply};
use mortar_protocol::ids::{InodeId, SetIndex};
use mortar_protocol::limits::{MAX_FILE_SIZE, MAX_INLINE};

use super::Volume;
use super::call::unexpected;
use super::plan::{self, Place, Plan, Planned};
use super::types::{Changed, FileOp, Res};
use crate::remote::{How, Piece, Set};

/// How often an entry is made again because the file was cut, or a stage was missing.
const AGAIN: usize = 8;
/// How often appended data goes to the end of the file as it was last seen, before it is split.
const RACES: usize = 4;
/// The same for data that cannot be split.
const RACES_WHOLE: usize = 64;

/// What the replies to the parts of a change add up to.
#[derive(Default)]
struct Sum {
    /// Counter before the first, and after the last so far.
    counters: Option<(u64, u64)>,
    /// Another client's change came in between.
    broken: bool,
    attr: Option<Attr>,
    appended_at: Option<u64>,
    /// Blocks taken on other sets and not told to the inode's set yet.
    blocks: i64,
}

impl Sum {
    fn add(&mut self, before: u64, attr: Option<Attr>, appended_at: Option<u64>) {
        if let Some(attr) = attr {
            match &mut self.counters {
                Some((_, after)) => {
                    self.broken |= *after != before;
                    *after = attr.change;
                }
                None => self.counters = Some((before, attr.change)),
            }
            self.attr = Some(attr);
        }
        self.appended_at = self.appended_at.or(appended_at);
    }

    /// Attributes from a truncation, whose reply does not tell the counter before.
    pub(super) fn cut(&mut self, before: u64, attr: Attr) {
        self.add(before, Some(attr), None);
    }
}

/// Who changes what, when.
struct Order<'a> {
    cred: &'a Cred,
    id: InodeId,
    time: Time,
}

impl Volume {
    /// Changes an inode: all operations in order, in one entry where they fit. With `sync` it is answered once
    /// everything this client did to the inode is flushed.
    ///
    /// # Errors
    /// ESTALE if the inode is gone; ENOSPC; EFBIG; those of extended attributes.
    pub async fn change(
        &self,
        cred: Cred,
        id: InodeId,
        ops: Vec<FileOp>,
        time: Time,
        sync: bool,
    ) -> Res<Changed> {
        let order = Order {
            cred: &cred,
            id,
            time,
        };
        let sent = self.env().now();
        self.check_sizes(&ops)?;
        let ops = self.clip(id, ops).await?;
        let dir_times = self.dir_times(id, &ops).await?;
        let mut sum = Sum::default();
        let mut rest = &ops[..];
        while !rest.is_empty() {
            let (run, behind) = rest.split_at(self.run_len(id, rest));
            let last = behind.is_empty();
            let outcome = self
                .run(
                    &order,
                    run,
                    &mut sum,
                    sync && last,
                    dir_times.filter(|_| last),
                )
                .await;
            match outcome {
                Ok(()) => rest = behind,
                Err(fault) => return Err(fault.errno()),
            }
        }
        if sync {
            self.fsync(id).await?;
        }
        let attr = match sum.attr {
            Some(attr) => attr,
            None => self.getattr(id).await?,
        };
        if ops.iter().any(|op| !plan::is_data(op)) {
            self.0.parents.forget(id);
            if attr.kind == FileKind::Dir {
                self.0.dirs.forget(id);
                self.0.dirs.saw(&attr, sent);
            }
        }
        let before = match sum.counters {
            Some((before, _)) if !sum.broken => before,
            _ => 0,
        };
        Ok(Changed {
            before,
            attr,
            appended_at: sum.appended_at,
        })
    }

    fn check_sizes(&self, ops: &[FileOp]) -> Res<()> {
        let numbered = self.shard_size().saturating_mul(u64::from(u32::MAX));
        let max = MAX_FILE_SIZE.min(numbered);
        let too_big = |offset: u64, len: u64| offset.checked_add(len).is_none_or(|end| end > max);
        for op in ops {
            let bad = match op {
                FileOp::Write { offset, data } => too_big(*offset, data.len() as u64),
                FileOp::Truncate { size } => too_big(*size, 0),
                FileOp::Reserve { offset, len, .. } => too_big(*offset, *len),
                _ => false,
            };
            if bad {
                return Err(Errno::EFBIG);
            }
        }
        Ok(())
    }

    /// Holes are punched up to the end of the file only: beyond it there is nothing but numbers of shards.
    async fn clip(&self, id: InodeId, mut ops: Vec<FileOp>) -> Res<Vec<FileOp>> {
        let shard = self.shard_size();
        for at in 0..ops.len() {
            let FileOp::Punch { offset, len } = ops[at] else {
                continue;
            };
            let end = offset.saturating_add(len);
            if end <= shard {
                continue;
            }
            let held = ops[..at].iter().map(|op| match op {
                FileOp::Write { offset, data } => offset + data.len() as u64,
                FileOp::Truncate { size } => *size,
                FileOp::Reserve { offset, len, .. } => offset + len,
                _ => 0,
            });
            let held = held.max().unwrap_or(0);
            // What lies in the first shard costs nothing, and the change is to be seen in the times.
            let size = self.attr_and_cut(id).await?.0.size.max(held).max(shard);
            let len = end.min(size).saturating_sub(offset);
            ops[at] = match len {
                0 => FileOp::Punch {
                    offset: offset % shard,
                    len: 0,
                },
                len => FileOp::Punch { offset, len },
            };
        }
        Ok(ops)
    }

    /// Where a directory's mtime is set by hand and other sets have parts of it: their counters.
    async fn dir_times(&self, id: InodeId, ops: &[FileOp]) -> Res<Option<u64>> {
        let by_hand = |op: &FileOp| matches!(op, FileOp::Set(set) if set.mtime.is_some());
        if !self.is_distributed() || !ops.iter().any(by_hand) {
            return Ok(None);
        }
        let kind = match self.0.files.kind(id) {
            Some(kind) => kind,
            None => self.attr_and_cut(id).await?.0.kind,
        };
        match kind {
            FileKind::Dir => self.other_counters(id).await.map(Some),
            _ => Ok(None),
        }
    }

    /// How many of the first operations can be done in one go: a truncation of a file of several shards stands alone,
    /// and where other sets are concerned data comes before the rest.
    fn run_len(&self, id: InodeId, ops: &[FileOp]) -> usize {
        let size = self.shard_size();
        let several = self.0.files.get(id).is_some();
        if several && matches!(ops[0], FileOp::Truncate { .. }) {
            return 1;
        }
        let beyond = |op: &FileOp| match op {
            FileOp::Write { offset, data } => offset + data.len() as u64 > size,
            FileOp::Reserve { offset, len, .. } => offset + len > size,
            FileOp::Punch { offset, len } => offset.saturating_add(*len) > size,
            FileOp::Append { .. } => several,
            _ => false,
        };
        let elsewhere = self.is_distributed() && ops.iter().any(beyond);
        let mut about_inode = false;
        for (at, op) in ops.iter().enumerate() {
            let cuts = |op: &FileOp| matches!(op, FileOp::Truncate { .. });
            let alone = (several && cuts(op))
                || (elsewhere && plan::is_data(op) && (cuts(op) || cuts(&ops[0])));
            // Appends may turn out to have no room in the first shard, and are then made in another way.
            let turns = matches!(op, FileOp::Append { .. })
                != matches!(ops[0], FileOp::Append { .. })
                && plan::is_data(op);
            let late = elsewhere && about_inode && plan::is_data(op);
            if at > 0 && (alone || late || turns) {
                return at;
            }
            about_inode |= !plan::is_data(op);
        }
        ops.len()
    }

    /// Does one run of operations.
    async fn run(
        &self,
        order: &Order<'_>,
        ops: &[FileOp],
        sum: &mut Sum,
        sync: bool,
        dir_times: Option<u64>,
    ) -> Result<(), Fault> {
        if let [FileOp::Truncate { size }] = ops
            && self.0.files.get(order.id).is_some()
        {
            return self.run_cut(order, *size, sum).await;
        }
        let appended = appended(ops);
        if appended > 0 && !self.fits(order.id, appended) {
            return self.append_far(order, ops, sum, sync).await;
        }
        match self.run_plan(order, ops, sum, sync, dir_times).await {
            Err(Fault::Refused(Errno::E2BIG)) if has_append(ops) => {
                self.append_far(order, ops, sum, sync).await
            }
            Err(Fault::Refused(Errno::EAGAIN)) if has_truncate(ops) => {
                // It has, or had, several shards: look, then one by one.
                self.attr_and_cut(order.id).await?;
                for op in ops {
                    let one = std::slice::from_ref(op);
                    Box::pin(self.run_one(order, one, sum, sync, dir_times)).await?;
                }
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// One operation of a run that could not be made in one go.
    fn run_one<'a>(
        &'a self,
        order: &'a Order<'_>,
        op: &'a [FileOp],
        sum: &'a mut Sum,
        sync: bool,
        dir_times: Option<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>> {
        Box::pin(async move {
            match op {
                [FileOp::Truncate { size }] => self.run_cut(order, *size, sum).await,
                op => self.run_plan(order, op, sum, sync, dir_times).await,
            }
        })
    }

    async fn run_cut(&self, order: &Order<'_>, size: u64, sum: &mut Sum) -> Result<(), Fault> {
        let (before, attr) = self
            .cut_file(order.cred, order.id, size, order.time)
            .await?;
        sum.cut(before, attr);
        Ok(())
    }

    /// Whether appended data goes in one entry to shard 0, as far as is known.
    fn fits(&self, id: InodeId, appended: usize) -> bool {
        let full = self
            .0
            .files
            .get(id)
            .is_some_and(|facts| facts.size + appended as u64 > self.shard_size());
        appended <= MAX_INLINE && !full
    }

    /// Appends more than an entry holds inline, or beyond the first shard: in one entry all the same if one set has it
    /// all, made on condition that the file still ends where the data was laid.
    async fn append_far(
        &self,
        order: &Order<'_>,
        ops: &[FileOp],
        sum: &mut Sum,
        sync: bool,
    ) -> Result<(), Fault> {
        let many = ops.iter().filter(|op| is_append(op)).count() > 1;
        for _ in 0..if many { RACES } else { RACES_WHOLE } {
            let at = self.attr_and_cut(order.id).await?.0.size;
            let writes = writes_at(ops, at);
            self.check_sizes(&writes)?;
            let Some(entry) = self.one_entry(order.id, &writes, at)? else {
                break;
            };
            let home = self.inode_set(order.id);
            match self.entry(order, &home, true, &entry, sync, sum).await {
                Err(Fault::Refused(Errno::EAGAIN)) => {}
                Ok(()) => {
                    sum.appended_at = sum.appended_at.or(Some(at));
                    return Ok(());
                }
                Err(fault) => return Err(fault),
            }
        }
        if many {
            // Each is to be whole, and may have others' data between it and the next.
            for (at, op) in ops.iter().enumerate() {
                let last = at + 1 == ops.len();
                let one = std::slice::from_ref(op);
                self.run_again(order, one, sum, sync && last).await?;
            }
            return Ok(());
        }
        let writes = self.grow(order, ops, sum).await?;
        self.run_plan(order, &writes, sum, sync, None).await
    }

    /// A part of a run.
    fn run_again<'a>(
        &'a self,
        order: &'a Order<'_>,
        ops: &'a [FileOp],
        sum: &'a mut Sum,
        sync: bool,
    ) -> Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>> {
        Box::pin(self.run(order, ops, sum, sync, None))
    }

    /// Writes at the end of a file as one entry of its inode's set, if that is possible.
    fn one_entry(
        &self,
        id: InodeId,
        writes: &[FileOp],
        size: u64,
    ) -> Result<Option<Vec<Planned>>, Fault> {
        let info = self.info();
        let place = Place {
            id,
            layout: &info.layout,
            shard_size: info.shard_size,
        };
        let plan = place.plan(writes).ok_or(Fault::Refused(Errno::EFBIG))?;
        if !plan.others.is_empty() {
            return Ok(None);
        }
        let mut ops = vec![Planned::Op(InodeOp::SizeIs { size })];
        ops.extend(plan.first);
        let mut entries = plan::entries(ops);
        Ok(match entries.len() {
            1 => entries.pop(),
            _ => None,
        })
    }

    /// Makes room at the end of the file, and writes of the appends.
    async fn grow(
        &self,
        order: &Order<'_>,
        ops: &[FileOp],
        sum: &mut Sum,
    ) -> Result<Vec<FileOp>, Fault> {
        let grow = Planned::Op(InodeOp::Grow {
            len: appended(ops) as u64,
        });
        let home = self.inode_set(order.id);
        let mut grown = Sum::default();
        self.entry(order, &home, true, &[grow], false, &mut grown)
            .await?;
        let at = grown.appended_at.ok_or(Fault::Protocol)?;
        if let (Some((before, _)), attr) = (grown.counters, grown.attr) {
            sum.add(before, attr, Some(at));
        }
        Ok(writes_at(ops, at))
    }

    async fn run_plan(
        &self,
        order: &Order<'_>,
        ops: &[FileOp],
        sum: &mut Sum,
        sync: bool,
        dir_times: Option<u64>,
    ) -> Result<(), Fault> {
        let info = self.info();
        let place = Place {
            id: order.id,
            layout: &info.layout,
            shard_size: info.shard_size,
        };
        let Plan {
            mut first,
            others,
            mut last,
        } = place.plan(ops).ok_or(Fault::Refused(Errno::EFBIG))?;
        let home = self.set(place.home());
        if let Some(others) = dir_times {
            first.push(Planned::Op(InodeOp::DirTimes { others }));
        }
        let alone = others.is_empty();
        self.entries(order, &home, true, first, sync && alone, sum)
            .await?;
        if alone {
            return Ok(());
        }
        let writes = others
            .into_iter()
            .map(|(index, ops)| async move { self.other_set(order, index, ops, sync).await });
        let blocks: i64 = try_join_all(writes).await?.into_iter().sum();
        last.insert(0, Planned::Op(InodeOp::Modified));
        if blocks != 0 {
            last.insert(0, Planned::Op(InodeOp::AddBlocks { blocks }));
        }
        self.entries(order, &home, true, last, sync, sum).await
    }

    /// Writes to shards on another set than the inode's; gives the blocks taken there.
    async fn other_set(
        &self,
        order: &Order<'_>,
        index: SetIndex,
        ops: Vec<Planned>,
        sync: bool,
    ) -> Result<i64, Fault> {
        let mut sum = Sum::default();
        let set = self.set(index);
        self.entries(order, &set, false, ops, sync, &mut sum)
            .await?;
        Ok(sum.blocks)
    }

    async fn entries(
        &self,
        order: &Order<'_>,
        set: &Arc<Set>,
        inode: bool,
        ops: Vec<Planned>,
        sync: bool,
        sum: &mut Sum,
    ) -> Result<(), Fault> {
        let entries = plan::entries(ops);
        let count = entries.len();
        for (at, entry) in entries.into_iter().enumerate() {
            let durable = sync && at + 1 == count;
            self.entry(order, set, inode, &entry, durable, sum).await?;
        }
        Ok(())
    }

    /// Makes one entry: sends its stages ahead, and again if the file was cut or a stage is missing.
    async fn entry(
        &self,
        order: &Order<'_>,
        set: &Arc<Set>,
        inode: bool,
        planned: &[Planned],
        durable: bool,
        sum: &mut Sum,
    ) -> Result<(), Fault> {
        let id = order.id;
        let (mut pieces, mut sent) = match self.0.ahead.take(planned).await {
            // Under the same names in any case: what has arrived of it would keep its space for a while.
            Some(sent) => sent,
            None => {
                let pieces = name_pieces(set, planned);
                let none = pieces.is_empty();
                (pieces, none)
            }
        };
        for _ in 0..AGAIN {
            if !sent {
                match set.stage(&pieces).await {
                    Ok(()) => sent = true,
                    Err(Fault::NoStage) => {
                        pieces = name_pieces(set, planned);
                        continue;
                    }
                    Err(fault) => return Err(fault),
                }
            }
            let cut = self.0.files.get(id).unwrap_or_default().cut;
            let (ops, body) = assemble(planned, &pieces);
            let fop = Fop::Change(Change {
                id,
                inode,
                cut,
                time: order.time,
                ops,
            });
            let how = How {
                cred: order.cred.clone(),
                durable,
            };
            match self.ask(set, fop, how, body).await {
                Ok(answered) => {
                    let Reply::Changed {
                        before,
                        attr,
                        appended_at,
                        blocks,
                    } = answered.reply
                    else {
                        return Err(unexpected(&answered.reply).into());
                    };
                    if let Some(attr) = &attr {
                        self.seen(attr);
                    }
                    sum.add(before, attr, appended_at);
                    sum.blocks += blocks;
                    return Ok(());
                }
                Err(Fault::NoStage) => {
                    sent = false;
                    if pieces
                        .iter()
                        .any(|piece| piece.stage.session != self.session())
                    {
                        pieces = name_pieces(set, planned);
                    }
                }
                Err(Fault::Refused(Errno::ESTALE)) => {
                    let (_, newer) = self.attr_and_cut(id).await?;
                    if newer == cut {
                        return Err(Fault::Refused(Errno::ESTALE));
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Refused(Errno::EIO))
    }
}

fn appended(ops: &[FileOp]) -> usize {
    ops.iter()
        .map(|op| match op {
            FileOp::Append { data } => data.len(),
            _ => 0,
        })
        .sum()
}

fn is_append(op: &FileOp) -> bool {
    matches!(op, FileOp::Append { .. })
}

fn has_append(ops: &[FileOp]) -> bool {
    ops.iter().any(is_append)
}

/// The operations with writes from `at` on in place of the appends.
fn writes_at(ops: &[FileOp], mut at: u64) -> Vec<FileOp> {
    let write = |op: &FileOp| match op {
        FileOp::Append { data } => {
            let offset = at;
            at += data.len() as u64;
            let data = data.clone();
            FileOp::Write { offset, data }
        }
        other => other.clone(),
    };
    ops.iter().map(write).collect()
}

fn has_truncate(ops: &[FileOp]) -> bool {
    ops.iter().any(|op| matches!(op, FileOp::Truncate { .. }))
}

/// Names for the staged pieces, in order.
pub(super) fn name_pieces(set: &Set, planned: &[Planned]) -> Vec<Piece> {
    let staged = planned.iter().filter_map(|op| match op {
        Planned::Staged { data, .. } => Some(data.clone()),
        _ => None,
    });
    staged
        .map(|data| Piece {
            stage: set.stage_id(),
            data,
        })
        .collect()
}

/// The operations on the wire, and the body of those whose bytes ride along.
fn assemble(planned: &[Planned], pieces: &[Piece]) -> (Vec<InodeOp>, Bytes) {
    let mut stages = pieces.iter().map(|piece| piece.stage);
    let mut riding: Vec<&Bytes> = Vec::new();
    let mut ops = Vec::with_capacity(planned.len());
    for op in planned {
        match op {
            Planned::Op(op) => ops.push(op.clone()),
            Planned::Inline {
                shard,
                offset,
                data,
            } => {
                ops.push(InodeOp::Write {
                    shard: *shard,
                    offset: *offset,
                    len: data.len() as u32,
                });
                riding.push(data);
            }
            Planned::Append(data) => {
                let len = data.len() as u32;
                ops.push(InodeOp::Append { len });
                riding.push(data);
            }
            Planned::Staged {
                shard,
                offset,
                data,
            } => {
                if let Some(stage) = stages.next() {
                    ops.push(InodeOp::Attach {
                        shard: *shard,
                        offset: *offset,
                        stage,
                        len: data.len() as u32,
                    });
                }
            }
        }
    }
    let body = match riding.as_slice() {
        [] => Bytes::new(),
        [one] => (*one).clone(),
        many => {
            let mut body = BytesMut::with_capacity(many.iter().map(|data| data.len()).sum());
            many.iter().for_each(|data| body.extend_from_slice(data));
            body.freeze()
        }
    };
    (ops, body)
}
