//! Reading: data over shards, open, seek, and copies by reference.

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use mortar_protocol::attr::{Attr, Cred};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Change, Cut, Fop, InodeOp, Reply};
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::BLOCK;

use super::Volume;
use super::call::unexpected;
use super::plan::{Span, spans};
use super::types::{Changed, FileOp, Opened, Res};
use crate::remote::How;

/// Most bytes read with one request.
const MAX_READ: u64 = 1 << 20;
/// How often a read is made again because the file was cut meanwhile.
const AGAIN: usize = 8;
/// Most bytes copied through the client at a time.
const COPY: u64 = 1 << 20;

impl Volume {
    /// Opens a file; `known` is the change counter of the contents at hand, `data` asks for those of a small file.
    ///
    /// # Errors
    /// ESTALE if the inode is gone.
    pub async fn open(
        &self,
        cred: Cred,
        id: InodeId,
        known: Option<u64>,
        data: bool,
    ) -> Res<Opened> {
        let how = How {
            cred,
            durable: false,
        };
        let fop = Fop::Open { id, known, data };
        let answered = self.ask(&self.inode_set(id), fop, how, Bytes::new()).await;
        let answered = answered.map_err(|fault| fault.errno())?;
        match answered.reply {
            Reply::Opened { attr, cut, data } => {
                self.0.files.told(&attr, cut, self.shard_size());
                Ok(Opened {
                    attr,
                    data: data.then_some(answered.body),
                })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Reads; shorter at the end of the file.
    ///
    /// # Errors
    /// EIO if no member can read it; ESTALE if the inode is gone.
    pub async fn read(&self, id: InodeId, offset: u64, len: u32) -> Res<Bytes> {
        let size = self.shard_size();
        for _ in 0..AGAIN {
            let end = offset.saturating_add(u64::from(len));
            let mut facts = self.0.files.get(id);
            let mut upto = end;
            if end > size {
                // Shards beyond the first do not know where the file ends.
                let known = facts.filter(|facts| facts.size >= end);
                upto = match known {
                    Some(_) => end,
                    None => end.min(self.attr_and_cut(id).await?.0.size),
                };
                facts = self.0.files.get(id);
            }
            if upto <= offset {
                return Ok(Bytes::new());
            }
            let cut = facts.unwrap_or_default().cut;
            let spans = spans(offset, upto - offset, size).ok_or(Errno::EINVAL)?;
            match self.read_spans(id, &spans, cut).await {
                Ok(bytes) => return Ok(bytes),
                Err(Fault::Refused(Errno::ESTALE)) => {
                    if self.attr_and_cut(id).await?.1 == cut {
                        return Err(Errno::ESTALE);
                    }
                }
                Err(fault) => return Err(fault.errno()),
            }
        }
        Err(Errno::EIO)
    }

    async fn read_spans(&self, id: InodeId, spans: &[Span], cut: Cut) -> Result<Bytes, Fault> {
        let mut asked: Vec<Span> = Vec::with_capacity(1);
        for span in spans {
            let mut at = 0;
            while at < span.len {
                let len = MAX_READ.min(span.len - at);
                asked.push(Span {
                    shard: span.shard,
                    offset: span.offset + at,
                    len,
                });
                at += len;
            }
        }
        if let [one] = asked[..] {
            return self.read_one(id, one, cut).await;
        }
        let pieces = asked.iter().map(|span| self.read_one(id, *span, cut));
        let pieces = try_join_all(pieces).await?;
        let mut whole = BytesMut::with_capacity(asked.iter().map(|span| span.len as usize).sum());
        for (piece, span) in pieces.iter().zip(&asked) {
            whole.extend_from_slice(piece);
            if (piece.len() as u64) < span.len {
                break;
            }
        }
        Ok(whole.freeze())
    }

    /// Reads within a shard. What no member can give whole is put together from blocks that some member can read.
    async fn read_one(&self, id: InodeId, span: Span, cut: Cut) -> Result<Bytes, Fault> {
        match self.read_whole(id, span, cut).await {
            Err(Fault::Corrupt) if span.len > BLOCK => self.read_blocks(id, span, cut).await,
            outcome => outcome,
        }
    }

    async fn read_blocks(&self, id: InodeId, span: Span, cut: Cut) -> Result<Bytes, Fault> {
        let mut whole = BytesMut::with_capacity(span.len as usize);
        let end = span.offset + span.len;
        let mut offset = span.offset;
        while offset < end {
            let len = (BLOCK - offset % BLOCK).min(end - offset);
            let block = Span {
                offset,
                len,
                ..span
            };
            let read = self.read_whole(id, block, cut).await?;
            whole.extend_from_slice(&read);
            if (read.len() as u64) < len {
                break;
            }
            offset += len;
        }
        Ok(whole.freeze())
    }

    async fn read_whole(&self, id: InodeId, span: Span, cut: Cut) -> Result<Bytes, Fault> {
        let fop = Fop::Read {
            id,
            shard: span.shard,
            offset: span.offset,
            len: span.len as u32,
            cut,
        };
        let set = self.set(self.info().layout.shard_set(id, span.shard));
        let answered = self.ask(&set, fop, How::default(), Bytes::new()).await?;
        match answered.reply {
            Reply::Data { .. } if answered.body.len() as u64 <= span.len => Ok(answered.body),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Next data or hole at or after `offset`.
    ///
    /// # Errors
    /// ENXIO if there is none.
    pub async fn seek(&self, id: InodeId, offset: u64, hole: bool) -> Res<u64> {
        let (attr, _) = self.attr_and_cut(id).await?;
        if offset >= attr.size {
            return Err(Errno::ENXIO);
        }
        let step = self.shard_size();
        let mut at = offset;
        while at < attr.size {
            let shard = u32::try_from(at / step).map_err(|_| Errno::EINVAL)?;
            let fop = Fop::Seek {
                id,
                shard,
                offset: at % step,
                hole,
            };
            let set = self.set(self.info().layout.shard_set(id, shard));
            let base = u64::from(shard) * step;
            match self.look(&set, fop).await.map(|answered| answered.reply) {
                Ok(Reply::Seek(Some(found))) if base + found < attr.size && found < step => {
                    return Ok((base + found).max(offset));
                }
                Ok(Reply::Seek(_)) => {}
                Ok(other) => return Err(unexpected(&other)),
                // Nothing was ever written to this shard.
                Err(Errno::ESTALE | Errno::ENOENT) if shard > 0 => {
                    if hole {
                        return Ok(at);
                    }
                }
                Err(errno) => return Err(errno),
            }
            at = base + step;
        }
        if hole {
            Ok(attr.size)
        } else {
            Err(Errno::ENXIO)
        }
    }

    /// Copies a range between files, by reference where source and destination lie on one set and are aligned to each
    /// other; answers how much was copied, and the destination's change.
    ///
    /// # Errors
    /// ENOSPC; EFBIG; ESTALE if one of them is gone.
    pub async fn copy(
        &self,
        cred: Cred,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> Res<(u64, Changed)> {
        let time = self.env().wall();
        let (source, _) = self.attr_and_cut(from.0).await?;
        let len = len.min(source.size.saturating_sub(from.1));
        let mut done = 0;
        let mut changed: Option<Changed> = None;
        while done < len {
            let step = self.copy_step(from.1 + done, to.1 + done, len - done);
            let at = ((from.0, from.1 + done), (to.0, to.1 + done));
            let one = match self.copy_by_reference(&cred, at.0, at.1, step, time).await {
                Ok(one) => one,
                Err(Fault::Refused(Errno::EOPNOTSUPP)) => {
                    let (copied, one) = self.copy_through(&cred, at.0, at.1, step, time).await?;
                    if copied == 0 {
                        break;
                    }
                    done += copied;
                    changed = Some(joined(changed, one));
                    continue;
                }
                Err(fault) if done == 0 => return Err(fault.errno()),
                Err(_) => break,
            };
            done += step;
            changed = Some(joined(changed, one));
        }
        let changed = match changed {
            Some(changed) => changed,
            None => {
                let attr = self.getattr(to.0).await?;
                Changed {
                    before: attr.change,
                    attr,
                    appended_at: None,
                }
            }
        };
        Ok((done, changed))
    }

    /// How much is copied next: within one shard of each, and blocks or an unaligned end.
    fn copy_step(&self, from: u64, to: u64, len: u64) -> u64 {
        let size = self.shard_size();
        let step = len.min(size - from % size).min(size - to % size);
        if from % BLOCK != to % BLOCK {
            return step.min(COPY);
        }
        match (to % BLOCK, step / BLOCK * BLOCK) {
            (0, 0) => step,
            (0, blocks) => blocks,
            (into, _) => step.min(BLOCK - into),
        }
    }

    async fn copy_by_reference(
        &self,
        cred: &Cred,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
        time: mortar_protocol::attr::Time,
    ) -> Result<Changed, Fault> {
        let info = self.info();
        let size = info.shard_size;
        let shard =
            |offset: u64| u32::try_from(offset / size).map_err(|_| Fault::Refused(Errno::EFBIG));
        let (from_shard, to_shard) = (shard(from.1)?, shard(to.1)?);
        let home = info.layout.inode_set(to.0);
        let target = info.layout.shard_set(to.0, to_shard);
        if info.layout.shard_set(from.0, from_shard) != home || target != home {
            return Err(Fault::Refused(Errno::EOPNOTSUPP));
        }
        let mut ops = Vec::with_capacity(2);
        if to_shard > 0 {
            ops.push(InodeOp::Extend { size: to.1 + len });
        }
        ops.push(InodeOp::CopyFrom {
            from: from.0,
            from_shard,
            from_offset: from.1 % size,
            shard: to_shard,
            offset: to.1 % size,
            len,
        });
        let fop = Fop::Change(Change {
            id: to.0,
            inode: true,
            cut: self.0.files.get(to.0).unwrap_or_default().cut,
            time,
            ops,
        });
        let how = How {
            cred: cred.clone(),
            durable: false,
        };
        let answered = self.ask(&self.set(home), fop, how, Bytes::new()).await?;
        match answered.reply {
            Reply::Changed {
                before,
                attr: Some(attr),
                ..
            } => {
                self.seen(&attr);
                Ok(Changed {
                    before,
                    attr,
                    appended_at: None,
                })
            }
            other => Err(unexpected(&other).into()),
        }
    }

    /// Copies by reading and writing; less at the end of the source.
    async fn copy_through(
        &self,
        cred: &Cred,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
        time: mortar_protocol::attr::Time,
    ) -> Res<(u64, Changed)> {
        let data = self.read(from.0, from.1, len.min(COPY) as u32).await?;
        let copied = data.len() as u64;
        let offset = to.1;
        let ops = vec![FileOp::Write { offset, data }];
        let changed = self.change(cred.clone(), to.0, ops, time, false).await?;
        Ok((copied, changed))
    }
}

/// Two changes one after the other.
fn joined(first: Option<Changed>, second: Changed) -> Changed {
    let Some(first) = first else {
        return second;
    };
    let unbroken = first.before != 0 && follows(&first.attr, second.before);
    Changed {
        before: if unbroken { first.before } else { 0 },
        ..second
    }
}

fn follows(attr: &Attr, before: u64) -> bool {
    attr.change == before
}
