//! fsync, and what concerns the volume as a whole.

use futures_util::future::join_all;
use mortar_protocol::attr::{Attr, Cred};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Fop, LockHeld, LockOutcome, LockRequest, Reply};
use mortar_protocol::ids::InodeId;

use super::Volume;
use super::call::unexpected;
use super::types::{Res, Space};
use crate::remote::{Answered, How};

impl Volume {
    /// Flushes everything this client did to the inode, or was shown of it, and all names it made or was shown.
    ///
    /// # Errors
    /// EIO, once, if some of it is lost.
    pub async fn fsync(&self, id: InodeId) -> Res<()> {
        let home = self.info().layout.inode_set(id);
        // Shards may lie anywhere.
        let several = self.0.files.get(id).is_some();
        self.sync_sets(|index| (several || index == home).then_some(id))
            .await
    }

    /// Flushes everything this client did.
    ///
    /// # Errors
    /// As [`Self::fsync`].
    pub async fn sync_all(&self) -> Res<()> {
        self.sync_sets(|_| Some(InodeId::ROOT)).await
    }

    async fn sync_sets(
        &self,
        file: impl Fn(mortar_protocol::ids::SetIndex) -> Option<InodeId>,
    ) -> Res<()> {
        let sets = self.0.cluster.sets();
        if let [set] = &sets[..] {
            return set
                .sync(file(set.index()), true)
                .await
                .map_err(|fault| fault.errno());
        }
        let syncs = sets.iter().map(|set| set.sync(file(set.index()), true));
        let done: Result<(), Fault> = join_all(syncs).await.into_iter().collect();
        done.map_err(|fault| fault.errno())
    }

    /// Space, over all sets.
    ///
    /// # Errors
    /// ENOTCONN if a set does not answer.
    pub async fn statfs(&self) -> Res<Space> {
        let sets = self.0.cluster.sets();
        let asked = sets.iter().map(|set| self.look(set, Fop::StatFs));
        let mut space = Space::default();
        for answered in join_all(asked).await {
            match answered?.reply {
                Reply::StatFs {
                    total,
                    free,
                    avail,
                    inodes,
                } => {
                    space.total += total;
                    space.free += free;
                    space.avail += avail;
                    space.inodes += inodes;
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(space)
    }

    /// Takes, queues or releases a lock. With the attributes of the inode if it was granted.
    ///
    /// # Errors
    /// EDEADLK, ENOLCK.
    pub async fn lock(&self, cred: Cred, request: LockRequest) -> Res<(LockOutcome, Option<Attr>)> {
        let set = self.inode_set(request.id);
        locked(set.lock(request, by(cred)).await)
    }

    /// Waits, at most about a second, for a queued lock. `Busy`: it is not queued any more, to be asked for again.
    ///
    /// # Errors
    /// ENOTCONN.
    pub async fn lock_wait(
        &self,
        cred: Cred,
        request: LockRequest,
    ) -> Res<(LockOutcome, Option<Attr>)> {
        let set = self.inode_set(request.id);
        locked(set.lock_wait(request, by(cred)).await)
    }

    /// The lock that would conflict.
    ///
    /// # Errors
    /// ENOTCONN.
    pub async fn lock_test(&self, _cred: Cred, request: LockRequest) -> Res<Option<LockHeld>> {
        let set = self.inode_set(request.id);
        match self.look(&set, Fop::LockTest(request)).await?.reply {
            Reply::Lock(held) => Ok(held),
            other => Err(unexpected(&other)),
        }
    }
}

fn by(cred: Cred) -> How {
    How {
        cred,
        durable: false,
    }
}

fn locked(answered: Result<Answered, Fault>) -> Res<(LockOutcome, Option<Attr>)> {
    match answered.map_err(|fault| fault.errno())?.reply {
        Reply::Locked { outcome, attr } => Ok((outcome, attr)),
        other => Err(unexpected(&other)),
    }
}
