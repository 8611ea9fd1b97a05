//! Renewal of the session, once a second, and what the sets ask with it: who holds unlinked inodes open?

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use mortar_protocol::fop::{Fop, Reply};
use mortar_protocol::ids::{InodeId, SetIndex};

use super::cluster::{Cluster, OpenCheck};
use super::set::{How, Set};
use super::within;

/// A renewal unanswered for this long is left to the next round.
const TRY: Duration = Duration::from_millis(900);
/// Orphans named in one message.
const AT_ONCE: usize = 1_024;

/// Unlinked files of several shards that a set wants removed, with their sizes.
pub type Garbage = (SetIndex, Vec<(InodeId, u64)>);

impl Cluster {
    /// Renews the session on every set that knows it, and says which of the inodes they ask about are open.
    pub async fn renew(&self, is_open: &OpenCheck) -> Vec<Garbage> {
        let sets = self.sets();
        let renewals = sets.iter().filter(|set| set.is_begun()).map(|set| async {
            let renewal = set.renew(is_open);
            let garbage = within(self.env(), TRY, renewal).await.unwrap_or_default();
            (set.index(), garbage)
        });
        let mut garbage = join_all(renewals).await;
        garbage.retain(|(_, files)| !files.is_empty());
        garbage
    }
}

impl Set {
    async fn renew(&self, is_open: &OpenCheck) -> Vec<(InodeId, u64)> {
        let (mut open, mut released) = (Vec::new(), Vec::new());
        loop {
            let answering = !open.is_empty() || !released.is_empty();
            let fop = Fop::Renew {
                open: std::mem::take(&mut open),
                released: std::mem::take(&mut released),
            };
            let mut call = self.request(fop, How::default());
            let answered = self.run(&mut call, &Bytes::new()).await;
            let Ok(Reply::Renewed { orphans, garbage }) = answered.map(|answered| answered.reply)
            else {
                return Vec::new();
            };
            // What is open is asked about again and again; one answer a round is enough.
            if answering || orphans.is_empty() {
                return garbage;
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
}
