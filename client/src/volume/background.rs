//! What goes on without being asked: renewal of the session, and removal of what nobody holds open any more.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use mortar_protocol::attr::Cred;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Cut, Part};
use mortar_protocol::ids::InodeId;

use super::txn::Shares;
use super::{Inner, Volume};

/// Sets notice a client's silence after 20 s.
const RENEWAL: Duration = Duration::from_secs(1);

/// Runs until the last [`Volume`] is dropped.
pub(super) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let env = inner.cluster.env().clone();
    let tick = env.clone();
    env.spawn(Box::pin(async move {
        loop {
            tick.sleep(RENEWAL).await;
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
    for renewal in volume.0.cluster.renew(&check).await {
        let told = volume.0.lock_loss.read().clone();
        for (id, owner) in renewal.lost {
            told(id, owner);
        }
        for (id, _) in renewal.garbage {
            if let Err(fault) = volume.purge(id).await {
                tracing::debug!(%id, ?fault, "a removed file's shards stay until the next round");
            }
        }
    }
    true
}

impl Volume {
    /// Removes an unlinked file of several shards: first its shards on the other sets, then the rest.
    async fn purge(&self, id: InodeId) -> Result<(), Fault> {
        let info = self.info();
        let home = info.layout.inode_set(id);
        let time = self.env().wall();
        let cred = Cred::default();
        let others = info.layout.sets().into_iter().filter(|set| *set != home);
        let cuts = others.map(|index| {
            let part = Part::ShardCut {
                id,
                size: 0,
                shard_size: info.shard_size,
                cut: Cut::GONE,
            };
            self.commit(Shares::from([(index, vec![part])]), &cred, time, None)
        });
        for done in join_all(cuts).await {
            done?;
        }
        let purge = Shares::from([(home, vec![Part::Purge { id }])]);
        self.commit(purge, &cred, time, None).await.map(drop)
    }
}
