//! Small bounded memories of what was seen lately, for inodes that are not open.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use mortar_protocol::attr::{Attr, FileKind};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::InodeId;
use parking_lot::Mutex;

use super::backend::Changed;

/// Most facts kept (two generations of half as many).
const FACTS: usize = 16_384;
/// Most names kept.
const NAMES: usize = 2_048;

/// A map that forgets: when its young half is full, the old half goes.
#[derive(Debug)]
struct Forgetful<K, V> {
    young: BTreeMap<K, V>,
    old: BTreeMap<K, V>,
    half: usize,
}

impl<K: Ord, V: Clone> Forgetful<K, V> {
    fn new(capacity: usize) -> Self {
        Self {
            young: BTreeMap::new(),
            old: BTreeMap::new(),
            half: capacity / 2,
        }
    }

    fn get(&self, key: &K) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).cloned()
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// What is remembered of an inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fact {
    /// Type.
    pub(super) kind: FileKind,
    /// Whether it had any extended attribute.
    pub(super) has_xattr: bool,
    /// When that was.
    pub(super) at: Mono,
    /// Change counter that the kernel's pages of it stand for.
    pub(super) pages: Option<u64>,
}

impl Fact {
    fn new(attr: &Attr, at: Mono, pages: Option<u64>) -> Self {
        Self {
            kind: attr.kind,
            has_xattr: attr.has_xattr,
            at,
            pages,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recent {
    facts: Mutex<Forgetful<InodeId, Fact>>,
    names: Mutex<Forgetful<(InodeId, Bytes), InodeId>>,
    parents: Mutex<Forgetful<InodeId, InodeId>>,
    changes: AtomicU64,
}

impl Recent {
    /// Remembers nothing yet.
    pub(super) fn new() -> Self {
        Self {
            facts: Mutex::new(Forgetful::new(FACTS)),
            names: Mutex::new(Forgetful::new(NAMES)),
            parents: Mutex::new(Forgetful::new(NAMES)),
            changes: AtomicU64::new(0),
        }
    }

    /// A count that differs after each change of this client: what was fetched before may show less than it did.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// This client changed something.
    pub(super) fn has_changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// What is remembered of an inode.
    pub(super) fn fact(&self, id: InodeId) -> Option<Fact> {
        self.facts.lock().get(&id)
    }

    /// Attributes were seen.
    pub(super) fn saw(&self, attr: &Attr, now: Mono) {
        let mut facts = self.facts.lock();
        let id = attr.gfid.id;
        let pages = facts.get(&id).and_then(|fact| fact.pages);
        facts.put(id, Fact::new(attr, now, pages));
    }

    /// A change of this client was answered: its pages follow if nobody else came between.
    pub(super) fn changed(&self, changed: &Changed, now: Mono) {
        self.has_changed();
        let attr = &changed.attr;
        let mut facts = self.facts.lock();
        let pages = facts
            .get(&attr.gfid.id)
            .and_then(|fact| fact.pages)
            .filter(|pages| *pages == changed.before)
            .map(|_| attr.change);
        facts.put(attr.gfid.id, Fact::new(attr, now, pages));
    }

    /// The kernel has no pages of an inode any more.
    pub(super) fn pages_gone(&self, id: InodeId) {
        let mut facts = self.facts.lock();
        if let Some(fact) = facts.get(&id)
            && fact.pages.is_some()
        {
            facts.put(
                id,
                Fact {
                    pages: None,
                    ..fact
                },
            );
        }
    }

    /// A file was closed with the kernel's pages as of this change counter.
    pub(super) fn closed(&self, attr: &Attr, pages: Option<u64>, at: Mono) {
        self.facts
            .lock()
            .put(attr.gfid.id, Fact::new(attr, at, pages));
    }

    /// Its attributes changed in a way not known here.
    pub(super) fn forget(&self, id: InodeId) {
        self.has_changed();
        self.facts.lock().remove(&id);
    }

    /// A name was seen to lead to an inode.
    pub(super) fn named(&self, parent: InodeId, name: &Bytes, attr: &Attr) {
        let id = attr.gfid.id;
        self.names.lock().put((parent, name.clone()), id);
        if attr.kind == FileKind::Dir {
            self.parents.lock().put(id, parent);
        }
    }

    /// A name no longer leads there.
    pub(super) fn unnamed(&self, parent: InodeId, name: &Bytes) {
        self.has_changed();
        self.names.lock().remove(&(parent, name.clone()));
    }

    /// Where a name led lately.
    pub(super) fn lookup(&self, parent: InodeId, name: &Bytes) -> Option<InodeId> {
        self.names.lock().get(&(parent, name.clone()))
    }

    /// Where a directory was seen lately.
    pub(super) fn parent(&self, dir: InodeId) -> Option<InodeId> {
        self.parents.lock().get(&dir)
    }

    /// A directory was moved.
    pub(super) fn moved(&self, dir: InodeId) {
        self.parents.lock().remove(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgetful_map_stays_bounded_and_keeps_the_latest() {
        let mut map = Forgetful::new(100);
        for i in 0..10_000 {
            map.put(i, i * 2);
            assert!(map.young.len() + map.old.len() <= 100);
        }
        assert_eq!(map.get(&9_999), Some(19_998));
        assert_eq!(map.get(&9_960), Some(19_920));
        assert_eq!(map.get(&1), None);
        map.remove(&9_999);
        assert_eq!(map.get(&9_999), None);
    }
}
