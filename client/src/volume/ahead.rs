//! Bulk data sent while the change before its own is still under way, so that a writer of much data does not wait for
//! one to be answered before the next begins to move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use mortar_protocol::ids::{InodeId, SetIndex};
use parking_lot::Mutex;

use super::Volume;
use super::plan::{self, Planned};
use super::types::FileOp;
use crate::remote::Piece;

/// Whether pieces have arrived.
type Arriving = Shared<BoxFuture<'static, bool>>;

/// Pieces on their way ahead of their changes.
#[derive(Default)]
pub(super) struct Ahead {
    sent: Mutex<Vec<Sent>>,
    last: AtomicU64,
}

struct Sent {
    number: u64,
    piece: Piece,
    arriving: Arriving,
}

/// Keeps what was sent ahead; dropped when its change has been made.
pub struct KeptAhead {
    ahead: Arc<Ahead>,
    number: u64,
}

impl std::fmt::Debug for KeptAhead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeptAhead({})", self.number)
    }
}

impl Drop for KeptAhead {
    fn drop(&mut self) {
        let number = self.number;
        self.ahead.sent.lock().retain(|sent| sent.number != number);
    }
}

impl Ahead {
    /// The names under which all bulk data of an entry was sent ahead, if it was, and whether it has arrived.
    pub(super) async fn take(&self, planned: &[Planned]) -> Option<(Vec<Piece>, bool)> {
        let (mut pieces, mut waits): (Vec<Piece>, Vec<Arriving>) = (Vec::new(), Vec::new());
        {
            let sent = self.sent.lock();
            if sent.is_empty() {
                return None;
            }
            for op in planned {
                let Planned::Staged { data, .. } = op else {
                    continue;
                };
                // The very same memory, which the list keeps alive.
                let found = sent.iter().find(|sent| {
                    let held = &sent.piece.data;
                    held.as_ptr() == data.as_ptr() && held.len() == data.len()
                })?;
                pieces.push(found.piece.clone());
                waits.push(found.arriving.clone());
            }
        }
        let mut arrived = true;
        for arriving in waits {
            arrived &= arriving.await;
        }
        (!pieces.is_empty()).then_some((pieces, arrived))
    }
}

impl Volume {
    /// Begins to send the bulk data of writes whose change will be made later, with the same buffers.
    pub fn send_ahead(&self, id: InodeId, ops: &[FileOp]) -> Option<KeptAhead> {
        let info = self.info();
        let mut by_set: std::collections::BTreeMap<SetIndex, Vec<Planned>> = Default::default();
        for op in ops {
            let FileOp::Write { offset, data } = op else {
                continue;
            };
            let mut from = 0;
            for span in plan::spans(*offset, data.len() as u64, info.shard_size)? {
                let part = data.slice(from..from + span.len as usize);
                from += span.len as usize;
                let set = info.layout.shard_set(id, span.shard);
                let out = by_set.entry(set).or_default();
                plan::pieces(span.shard, span.offset, &part, out);
            }
        }
        let ahead = self.0.ahead.clone();
        let number = ahead.last.fetch_add(1, Ordering::Relaxed);
        let mut any = false;
        for (index, planned) in by_set {
            let set = self.set(index);
            let pieces = super::change::name_pieces(&set, &planned);
            if pieces.is_empty() {
                continue;
            }
            any = true;
            let own = pieces.clone();
            // A failure is met again, and told, when the change itself is made.
            let arriving = async move { set.stage(&own).await.is_ok() };
            let arriving = arriving.boxed().shared();
            let mut sent = ahead.sent.lock();
            sent.extend(pieces.into_iter().map(|piece| Sent {
                number,
                piece,
                arriving: arriving.clone(),
            }));
            drop(sent);
            self.env().spawn(Box::pin(arriving.map(drop)));
        }
        any.then_some(KeptAhead { ahead, number })
    }
}
