//! Applying what every member has flushed to the tree, in batches.

use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::Entry;
use mortar_protocol::ids::{Pos, Seq};

use super::apply::{Committed, Plan};
use super::{APPLY_ENTRIES, Extra, META, Meta, Store, StoreError, metadata_reserve};
use crate::alloc::Run;
use crate::tree::TreeError;
use crate::wal::WalPosition;

impl Store {
    /// Whether what is announced needs more blocks than the host has space for.
    pub(super) fn host_is_short(&self) -> bool {
        let alloc = self.alloc.lock();
        alloc.ready() < self.reserved && alloc.ready() + alloc.aside() < alloc.free_now()
    }

    /// The newest announced entry that can be applied now. Admission counts freed blocks as free, but they can be
    /// handed out only after a checkpoint: where entries need those, what comes before them is applied, and a
    /// checkpoint is asked for.
    pub(super) fn applicable(&mut self) -> Seq {
        self.have_ready(self.reserved);
        let (free, helps, short) = {
            let alloc = self.alloc.lock();
            let tree = metadata_reserve(alloc.blocks()) / 2;
            let now = alloc.free_now();
            let free = now.saturating_sub(tree).min(alloc.ready());
            (free, alloc.free() > now, self.tree_is_short(&alloc))
        };
        let mut need = 0;
        let mut upto = self.applied.seq;
        for (count, held) in self.held.iter().enumerate() {
            need += held.blocks;
            let full = need > free || (short && count >= APPLY_ENTRIES);
            if held.entry.pos.seq > self.announced || full {
                break;
            }
            upto = held.entry.pos.seq;
        }
        self.checkpoint_wanted |= short && self.since_checkpoint > 0;
        if upto < self.announced {
            if upto == self.applied.seq && !helps {
                return match self.host_is_short() {
                    true => upto,
                    false => self.announced,
                };
            }
            self.want_blocks();
        }
        upto
    }

    /// Applies all entries up to `upto`, which is announced, to the tree.
    pub(super) fn apply(&mut self, upto: Seq, extra: Extra<'_>) -> Result<(), StoreError> {
        let batch: Vec<Arc<Entry>> = self
            .held
            .iter()
            .take_while(|held| held.entry.pos.seq <= upto)
            .map(|held| held.entry.clone())
            .collect();
        let Some(last) = batch.last().map(|entry| entry.pos) else {
            return Ok(());
        };
        let wal = self.wal.behind(last).ok_or(StoreError::Order)?;
        let records = extra(last.seq);
        let committed = match self.apply_batch(last, wal, &records) {
            Ok(committed) => committed,
            Err(StoreError::NoSpace) => {
                // Nothing has changed; the host may have space later.
                tracing::debug!("applying waits for space");
                self.checkpoint_wanted |= self.since_checkpoint > 0;
                return Ok(());
            }
            Err(err) => return Err(self.fail(err)),
        };
        self.shares |= committed.shares;
        self.applied = last;
        self.applied_wal = wal;
        self.since_checkpoint += batch.len();
        self.pending.forget_upto(upto, &batch);
        let mut alloc = self.alloc.lock();
        while self
            .held
            .front()
            .is_some_and(|held| held.entry.pos.seq <= upto)
        {
            let Some(held) = self.held.pop_front() else {
                break;
            };
            self.reserved -= held.blocks;
            for (id, runs) in held.stages {
                self.stages.remove(&id);
                for (start, len) in runs {
                    for at in start..start + u64::from(len) {
                        // A staged block that was overwritten within the batch: the log still names it.
                        if committed.attached.binary_search(&at).is_err() && !alloc.attached(at) {
                            alloc.free_run(Run { start: at, len: 1 });
                        }
                    }
                }
            }
        }
        drop(alloc);
        let held = self.held.iter().map(|held| held.weight).sum();
        self.pending.recount(held);
        Ok(())
    }

    pub(super) fn apply_batch(
        &self,
        last: Pos,
        wal: WalPosition,
        extra: &[(Bytes, Option<Bytes>)],
    ) -> Result<Committed, StoreError> {
        let upto = last.seq;
        let reader = self.reader()?;
        let mut plan = Plan::make(&self.pending, &reader, upto)?;
        plan.write(&self.alloc, &*self.device, self.extents_at())?;
        let meta = postcard::to_stdvec(&Meta { applied: last, wal })
            .map_err(|err| StoreError::Damaged(err.to_string()))?;
        let mut failure = None;
        let result = self.tree.apply(|batch| {
            let extra = extra.iter().map(|(key, value)| (key, value.as_ref()));
            for (key, value) in self.pending.records_upto(upto).chain(extra) {
                match value {
                    Some(value) => batch.put(key, value)?,
                    None => batch.del(key)?,
                }
            }
            batch.put(META, &meta)?;
            // The tree takes chunks from the allocator whenever its cache is full, not only when it commits: no lock is
            // held over a put.
            plan.commit(batch, &self.alloc, self.shares).map_err(|err| {
                let text = err.to_string();
                failure = Some(err);
                TreeError::Failed(text)
            })
        });
        match (result, failure) {
            (Ok(committed), _) => Ok(committed),
            (Err(_), Some(err)) => Err(err),
            (Err(err), None) => Err(err.into()),
        }
    }
}
