//! Renewal of the session, once a second unless nothing happens, and what the sets ask with it: who holds unlinked
//! inodes open, which locks does the client hold, and what have ended sessions left to be resolved?

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use mortar_protocol::fop::{Fop, LeftTxn, Reply};
use mortar_protocol::ids::{InodeId, Opening, SetIndex};

use super::cluster::{Cluster, OpenCheck};
use super::set::{How, Set};
use super::within;

/// A renewal unanswered for this long is left to the next round.
const TRY: Duration = Duration::from_millis(900);
/// Orphans named in one message.
const AT_ONCE: usize = 1_024;

/// Is told which locks are lost: inode and owner.
pub type LockLoss = Arc<dyn Fn(InodeId, u64) + Send + Sync>;

/// What one set says to a renewal.
#[derive(Default, Debug)]
pub struct Renewal {
    /// The set.
    pub set: SetIndex,
    /// Unlinked files of several shards that it wants removed, with their sizes.
    pub garbage: Vec<(InodeId, u64)>,
    /// Locks that are lost: inodes and owners.
    pub lost: Vec<(InodeId, u64)>,
    /// Transactions of ended sessions that it wants resolved.
    pub left: Vec<LeftTxn>,
}

impl Cluster {
    /// Until the next renewal: longer while nothing happens.
    pub fn renewal_due(&self) -> impl Future<Output = ()> + Send + use<> {
        let hub = self.hub.clone();
        async move { hub.renewal_due().await }
    }

    /// What was just done makes a set ask for something with the next renewal: it comes at once.
    pub fn renew_soon(&self) {
        self.hub.renew_soon();
    }

    /// Renews the session on every set that knows it, says which of the inodes they ask about are open, and claims
    /// the locks where a set may have lost some.
    pub async fn renew(&self, is_open: &OpenCheck) -> Vec<Renewal> {
        let sets = self.sets();
        let renewals = sets.iter().filter(|set| set.is_begun()).map(|set| async {
            let renewal = within(self.env(), TRY, set.renew(is_open)).await;
            if renewal.is_none() {
                self.hub.was_active();
            }
            let (mut renewal, claim) = renewal.unwrap_or_default();
            if let Some(opening) = claim {
                let claimed = within(self.env(), TRY, set.claim(opening)).await;
                renewal.lost = claimed.unwrap_or_default();
            }
            renewal
        });
        join_all(renewals).await
    }
}

impl Set {
    async fn renew(&self, is_open: &OpenCheck) -> (Renewal, Option<Opening>) {
        let (mut open, mut released) = (Vec::new(), Vec::new());
        loop {
            let answering = !open.is_empty() || !released.is_empty();
            let fop = Fop::Renew {
                open: std::mem::take(&mut open),
                released: std::mem::take(&mut released),
            };
            let mut call = self.request(fop, How::default());
            let answered = self.run(&mut call, &Bytes::new()).await;
            let Ok(Reply::Renewed {
                orphans,
                garbage,
                claim,
                left,
            }) = answered.map(|answered| answered.reply)
            else {
                return Default::default();
            };
            // What is open is asked about again and again; one answer a round is enough.
            if answering || orphans.is_empty() {
                let renewal = Renewal {
                    set: self.index(),
                    garbage,
                    left,
                    ..Renewal::default()
                };
                return (renewal, claim);
            }
            for id in orphans.into_iter().take(AT_ONCE) {
                if is_open(id) {
                    open.push(id);
                } else {
                    released.push(id);
                }
            }
        }
    }

    /// Claims the locks held here. Gives those that are lost. Without an answer the next renewal asks for it again.
    async fn claim(&self, opening: Opening) -> Vec<(InodeId, u64)> {
        let mut claim = self.book(|book, session| book.claim(session));
        let fop = Fop::Claim {
            opening,
            locks: claim.locks,
        };
        let mut call = self.request(fop, How::default());
        match self.run(&mut call, &Bytes::new()).await {
            Ok(answered) => match answered.reply {
                Reply::Claimed { lost } => claim.lost.extend(lost),
                _ => return Vec::new(),
            },
            Err(_) => return Vec::new(),
        }
        for (id, owner) in &claim.lost {
            tracing::warn!(set = self.index().0, %id, owner, "a lock is lost");
        }
        self.book(|book, _| book.lost(&claim.lost));
        claim.lost
    }
}
