//! Truncation of files of several shards: the cut number is raised on every set that may hold some.

use mortar_protocol::attr::{Attr, Cred, SetAttr, Time};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Change, Cut, Fop, InodeOp, Part, Reply};
use mortar_protocol::ids::{InodeId, SetIndex};

use super::Volume;
use super::call::unexpected;
use super::txn::Shares;
use crate::remote::How;

/// Shards looked at one by one to tell where their blocks lie.
const COUNTED: u64 = 65_536;
/// How often a truncation is made again because another change of the size came in between.
const AGAIN: usize = 64;

impl Volume {
    /// Sets the size of a file that has or had several shards. Gives its counter before, and its attributes.
    pub(super) async fn cut_file(
        &self,
        cred: &Cred,
        id: InodeId,
        size: u64,
        time: Time,
    ) -> Result<(u64, Attr), Fault> {
        for _ in 0..AGAIN {
            let (attr, cut) = self.attr_and_cut(id).await?;
            if size >= attr.size {
                match self.raise(cred, &attr, size, cut, time).await {
                    Err(Fault::Refused(Errno::ESTALE | Errno::EAGAIN)) => continue,
                    outcome => return outcome,
                }
            }
            let next = Cut {
                opening: cut.opening,
                count: cut.count + 1,
            };
            let shares = self.cut_shares(&attr, size, next);
            match self.commit(shares, cred, time, None).await {
                Ok(attrs) => {
                    let told = attrs.into_iter().find(|attr| attr.gfid.id == id);
                    let told = match told {
                        Some(attr) => attr,
                        None => self.getattr(id).await?,
                    };
                    self.0.files.told(&told, next, self.shard_size());
                    return Ok((attr.change, told));
                }
                Err(Fault::Refused(Errno::EAGAIN)) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Refused(Errno::EBUSY))
    }

    fn cut_shares(&self, attr: &Attr, size: u64, cut: Cut) -> Shares {
        let info = self.info();
        let id = attr.gfid.id;
        let home = info.layout.inode_set(id);
        let mut shares = Shares::new();
        // Another client may write beyond the size known here: every set gets the cut, not only those with a shard.
        for index in info.layout.sets().into_iter().filter(|set| *set != home) {
            let part = Part::ShardCut {
                id,
                size,
                shard_size: info.shard_size,
                cut,
            };
            shares.insert(index, vec![part]);
        }
        let part = Part::InodeCut {
            id,
            size,
            cut,
            set: SetAttr::default(),
            other_blocks: self.blocks_elsewhere(attr, size),
        };
        shares.insert(home, vec![part]);
        shares
    }

    /// About how many blocks the other sets give back: exact for a file without holes.
    fn blocks_elsewhere(&self, attr: &Attr, size: u64) -> u64 {
        let info = self.info();
        let (id, step) = (attr.gfid.id, info.shard_size);
        let home = info.layout.inode_set(id);
        let beyond = attr.size.saturating_sub(size);
        if beyond / step > COUNTED {
            // Shards lie evenly on the sets.
            let sets = info.layout.sets().len().max(1) as u64;
            return attr.blocks - attr.blocks / sets;
        }
        let mut bytes: u64 = 0;
        let mut at = size;
        while at < attr.size {
            let shard = at / step;
            let end = ((shard + 1) * step).min(attr.size);
            let set: SetIndex = info
                .layout
                .shard_set(id, u32::try_from(shard).unwrap_or(u32::MAX));
            if set != home {
                bytes += end - at;
            }
            at = end;
        }
        let blocks = u128::from(attr.blocks) * u128::from(bytes) / u128::from(attr.size.max(1));
        blocks as u64
    }

    /// Raises the size, if it is still what `attr` says: no shard loses anything.
    async fn raise(
        &self,
        cred: &Cred,
        attr: &Attr,
        size: u64,
        cut: Cut,
        time: Time,
    ) -> Result<(u64, Attr), Fault> {
        let id = attr.gfid.id;
        let known = InodeOp::SizeIs { size: attr.size };
        let fop = Fop::Change(Change {
            id,
            inode: true,
            cut,
            time,
            ops: vec![known, InodeOp::Extend { size }, InodeOp::Modified],
        });
        let how = How {
            cred: cred.clone(),
            durable: false,
        };
        let set = self.inode_set(id);
        match self.ask(&set, fop, how, bytes::Bytes::new()).await?.reply {
            Reply::Changed {
                before,
                attr: Some(attr),
                ..
            } => {
                self.0.files.changed(&attr, self.shard_size());
                Ok((before, attr))
            }
            other => Err(unexpected(&other).into()),
        }
    }
}
