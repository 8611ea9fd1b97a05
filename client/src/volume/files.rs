//! What is known of files that have several shards: their cut number and a size that they have at least.
//!
//! A size known under a cut never shrinks under it (every truncation raises the cut), and a shard refuses requests
//! with an older cut: so a known size needs no second look until a request is refused.

use mortar_protocol::attr::{Attr, FileKind};
use mortar_protocol::fop::Cut;
use mortar_protocol::ids::InodeId;
use parking_lot::Mutex;

use super::hints::Recent;

/// What is known of a file that has, or had, more than one shard.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Facts {
    /// Its cut number.
    pub(super) cut: Cut,
    /// Size it has at least under that cut.
    pub(super) size: u64,
}

/// Facts of files, and types of inodes, as heard lately.
#[derive(Default)]
pub(super) struct Files {
    facts: Mutex<Recent<InodeId, Facts>>,
    kinds: Mutex<Recent<InodeId, FileKind>>,
}

impl Files {
    /// What is known; `None` for a file that has one shard as far as is known.
    pub(super) fn get(&self, id: InodeId) -> Option<Facts> {
        self.facts.lock().get(id).copied()
    }

    /// Attributes with the cut were told.
    pub(super) fn told(&self, attr: &Attr, cut: Cut, shard_size: u64) {
        if attr.kind != FileKind::File {
            return;
        }
        let id = attr.gfid.id;
        let mut facts = self.facts.lock();
        if attr.size > shard_size || cut != Cut::default() {
            let size = attr.size;
            facts.put(id, Facts { cut, size });
        } else if facts.get(id).is_some() {
            facts.remove(id);
        }
    }

    /// Attributes after a change were told.
    pub(super) fn changed(&self, attr: &Attr, shard_size: u64) {
        if attr.kind != FileKind::File {
            return;
        }
        let id = attr.gfid.id;
        let mut facts = self.facts.lock();
        let cut = facts.get(id).map(|known| known.cut);
        if cut.is_some() || attr.size > shard_size {
            let cut = cut.unwrap_or_default();
            let size = attr.size;
            facts.put(id, Facts { cut, size });
        }
    }

    pub(super) fn kind(&self, id: InodeId) -> Option<FileKind> {
        self.kinds.lock().get(id).copied()
    }

    pub(super) fn put_kind(&self, id: InodeId, kind: FileKind) {
        self.kinds.lock().put(id, kind);
    }
}
