//! What goes on without being asked: renewal of the session, removal of what nobody holds open any more, and the end of
//! transactions whose clients are gone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use futures_util::future::join_all;
use mortar_protocol::attr::{Attr, Cred};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Cut, Fop, LeftTxn, Part};
use mortar_protocol::ids::{InodeId, SetIndex};

use super::txn::Shares;
use super::{Inner, Volume};
use crate::remote::Renewal;

/// Runs until the last [`Volume`] is dropped.
pub(super) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let env = inner.cluster.env().clone();
    env.spawn(Box::pin(async move {
        loop {
            let due = weak.upgrade().map(|inner| inner.cluster.renewal_due());
            let Some(due) = due else { return };
            due.await;
            if !renew(&weak).await {
                return;
            }
        }
    }));
}

async fn renew(weak: &Weak<Inner>) -> bool {
    let Some(volume) = weak.upgrade().map(Volume) else {
        return false;
    };
    let check = volume.0.open_check.read().clone();
    let renewals = volume.0.cluster.renew(&check).await;
    let told = volume.0.lock_loss.read().clone();
    for (id, owner) in renewals.iter().flat_map(|renewal| &renewal.lost) {
        told(*id, *owner);
    }
    let asked = renewals
        .iter()
        .any(|renewal| !renewal.garbage.is_empty() || !renewal.left.is_empty());
    // Not awaited: a set that is away must not keep the session from being renewed on the others.
    if asked && !volume.0.at_chores.swap(true, Ordering::Relaxed) {
        let env = volume.env().clone();
        env.spawn(Box::pin(async move {
            volume.do_chores(renewals).await;
            volume.0.at_chores.store(false, Ordering::Relaxed);
        }));
    }
    true
}

impl Volume {
    /// Names were taken from these inodes: a file of several shards that nobody uses any more is given back by a client
    /// that is told so.
    pub(super) fn gives_back(&self, left: &[Attr]) {
        let shard_size = self.shard_size();
        if left
            .iter()
            .any(|attr| attr.nlink == 0 && attr.size > shard_size)
        {
            self.0.cluster.renew_soon();
        }
    }

    /// What sets ask any client to do.
    async fn do_chores(&self, renewals: Vec<Renewal>) {
        for renewal in renewals {
            for (id, _) in renewal.garbage {
                if let Err(fault) = self.purge(renewal.set, id).await {
                    tracing::debug!(%id, ?fault, "what was removed stays until the next round");
                }
            }
            for left in renewal.left {
                if let Err(fault) = self.resolve_left(renewal.set, &left).await {
                    tracing::debug!(?left, ?fault, "it stays until the next round");
                }
            }
        }
    }

    /// Brings a transaction to its end that an ended session has left.
    async fn resolve_left(&self, index: SetIndex, left: &LeftTxn) -> Result<(), Fault> {
        let set = self.set(index);
        match left {
            // Nobody is at work on it: its age does not matter.
            LeftTxn::Intent { txn, decider } => self.clear(&set, *txn, *decider, u32::MAX).await,
            LeftTxn::Decided { txn, sets } => {
                for other in sets {
                    let finish = Fop::Finish { txn: *txn };
                    self.txn_step(&self.set(*other), finish).await?;
                }
                self.txn_step(&set, Fop::Forget { txn: *txn }).await
            }
        }
    }

    /// Removes what nobody holds open any more: of an unlinked file first its shards on the other sets, then the rest.
    /// Beside its inode's set, a set has only the mark of a removed directory.
    async fn purge(&self, index: SetIndex, id: InodeId) -> Result<(), Fault> {
        let info = self.info();
        let time = self.env().wall();
        let cred = Cred::default();
        let sets = info.layout.sets().into_iter();
        let file = info.layout.inode_set(id) == index;
        let others = sets.filter(|set| file && *set != index);
        let cuts = others.map(|other| {
            let part = Part::ShardCut {
                id,
                size: 0,
                shard_size: info.shard_size,
                cut: Cut::GONE,
            };
            self.commit(Shares::from([(other, vec![part])]), &cred, time, None)
        });
        for done in join_all(cuts).await {
            done?;
        }
        let purge = Shares::from([(index, vec![Part::Purge { id }])]);
        self.commit(purge, &cred, time, None).await.map(drop)
    }
}
