//! Listings: pieces of a directory fetched from the servers, handed on as the kernel has room for them.
//!
//! While the kernel takes one piece the next is fetched: whoever lists a large directory looks at each entry before it
//! asks for more.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared, join_all};
use mortar_protocol::attr::FileKind;
use mortar_protocol::env::Mono;
use mortar_protocol::error::Errno;
use mortar_protocol::fop::DirEntry;
use mortar_protocol::ids::InodeId;

use super::backend::{Backend, Res};
use super::{Core, Vfs};

/// How much of a listing is fetched at once, in bytes of encoded entries.
const PIECE: u32 = 128 << 10;
/// How long fetched entries may wait to be asked for.
const AGE: Duration = Duration::from_secs(1);

/// Part of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Entries in order of their offsets.
    pub entries: Vec<DirEntry>,
    /// Whether none come behind them.
    pub end: bool,
    at: Mono,
    /// [`Core::changes`] when it was asked for.
    changes: u64,
}

/// Where a piece begins, and whether with attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Begin {
    /// The offset before.
    after: u64,
    plus: bool,
}

impl Begin {
    /// Whether what begins here answers a call for `wanted`. The kernel often asks for attributes first and not again.
    fn suffices(self, wanted: Self) -> bool {
        self.after == wanted.after && (self.plus || !wanted.plus)
    }
}

type Coming = Shared<BoxFuture<'static, Result<Arc<Piece>, Errno>>>;

/// What was fetched of a listing and not asked for yet.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// The rest of the piece that the kernel has taken a part of.
    rest: Option<(Begin, Piece)>,
    /// The piece after that one.
    next: Option<(Begin, Coming)>,
}

impl<B: Backend> Vfs<B> {
    /// Entries with offsets above `after`, with attributes if `plus`: as many as are at hand or come with one
    /// request. What the caller has no room for it gives back with [`Self::unread`].
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn readdir(&self, handle: u64, after: u64, plus: bool) -> Res<Piece> {
        let core = &self.0;
        let handle = core.handle(handle)?;
        let (rest, next) = {
            let mut fetched = handle.listing.lock();
            (fetched.rest.take(), fetched.next.take())
        };
        let wanted = Begin { after, plus };
        if let Some((begin, mut piece)) = rest {
            // Where nothing is left, no attributes are missing.
            let enough = begin.suffices(wanted) || begin.after == after && piece.entries.is_empty();
            if enough && core.still_holds(&piece) {
                handle.listing.lock().next = next;
                core.refresh(&mut piece);
                return Ok(piece);
            }
        }
        let mut piece = None;
        if let Some((_, coming)) = next.filter(|(begin, _)| begin.suffices(wanted)) {
            let came = coming.await.ok().map(Arc::unwrap_or_clone);
            piece = came.filter(|piece| core.still_holds(piece));
        }
        let mut piece = match piece {
            Some(piece) => piece,
            None => core.fetch(handle.node.id, wanted).await?,
        };
        core.refresh(&mut piece);
        if let Some(last) = piece.entries.last()
            && !piece.end
            && core.still_holds(&piece)
        {
            let begin = Begin {
                after: last.offset,
                ..wanted
            };
            let (fetching, id) = (core.clone(), handle.node.id);
            let coming = async move { fetching.fetch(id, begin).await.map(Arc::new) };
            let coming = coming.boxed().shared();
            handle.listing.lock().next = Some((begin, coming.clone()));
            core.env.spawn(Box::pin(coming.map(drop)));
        }
        Ok(piece)
    }

    /// How long ago a piece was asked for: its attributes may be shown for so much less.
    pub fn age(&self, piece: &Piece) -> Duration {
        self.0.now().since(piece.at)
    }

    /// Keeps the rest of a piece for the call that goes on behind offset `after`.
    pub fn unread(&self, handle: u64, after: u64, plus: bool, piece: Piece) {
        if piece.entries.is_empty() && !piece.end {
            return;
        }
        if let Ok(handle) = self.0.handle(handle) {
            handle.listing.lock().rest = Some((Begin { after, plus }, piece));
        }
    }
}

impl<B: Backend> Core<B> {
    async fn fetch(self: &Arc<Self>, dir: InodeId, begin: Begin) -> Res<Piece> {
        let (at, changes) = (self.now(), self.recent.changes());
        let listing = self.backend.readdir(dir, begin.after, PIECE, begin.plus);
        let listing = listing.await?;
        let mut piece = Piece {
            entries: listing.entries,
            end: listing.end,
            at,
            changes,
        };
        if begin.plus {
            self.complete(&mut piece.entries).await;
        }
        Ok(piece)
    }

    /// Whether a piece may still be shown: it is young, and this client has changed nothing since.
    fn still_holds(&self, piece: &Piece) -> bool {
        self.now().since(piece.at) <= AGE && piece.changes == self.recent.changes()
    }

    /// Shows what is held of open files, which may have changed since they were fetched.
    fn refresh(&self, piece: &mut Piece) {
        for entry in &mut piece.entries {
            if let Some(attr) = &mut entry.attr
                && attr.kind != FileKind::Dir
                && let Some(node) = self.node(attr.gfid.id)
                && let Some((shown, _)) = node.state.lock().shown()
            {
                *attr = shown;
            }
        }
    }

    /// Gives every entry the attributes to show; asks for those that did not come along. What is gone stays without.
    async fn complete(&self, entries: &mut [DirEntry]) {
        let missing = entries.iter_mut().filter_map(|entry| {
            entry.attr = entry.attr.and_then(|attr| self.arrived(attr));
            entry.attr.is_none().then_some(entry)
        });
        let asks = missing.map(|entry| async {
            entry.attr = self.fetch_attr(entry.gfid.id).await.ok();
        });
        join_all(asks).await;
    }
}
