//! What was last heard of names and directories. Only hints: every change names the inode it expects, and is made
//! again after a look if the hint was wrong.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::time::Duration;

use mortar_protocol::attr::{Attr, FileKind};
use mortar_protocol::env::Mono;
use mortar_protocol::fop::ParentHint;
use mortar_protocol::ids::{Gfid, InodeId};
use parking_lot::Mutex;

/// Entries of one of two generations.
const GENERATION: usize = 8_192;
/// How long what a directory gives to new inodes is believed: as long as attributes.
const PARENT_TTL: Duration = Duration::from_secs(1);
const PARENTS: usize = 4_096;

/// A map that forgets what was not used for a while: two generations of bounded size.
pub(super) struct Recent<K, V> {
    young: HashMap<K, V, BuildHasherDefault<DefaultHasher>>,
    old: HashMap<K, V, BuildHasherDefault<DefaultHasher>>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
        }
    }
}

impl<K: Hash + Eq + Copy, V> Recent<K, V> {
    pub(super) fn get(&self, key: K) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: K) {
        self.young.remove(&key);
        self.old.remove(&key);
    }
}

/// What a name leads to.
pub(super) type Target = (Gfid, FileKind);

struct Hint {
    parent: InodeId,
    name: Box<[u8]>,
    target: Option<Target>,
}

/// Names looked up, made and removed lately.
#[derive(Default)]
pub(super) struct Names(Mutex<Recent<u64, Hint>>);

impl Names {
    /// What the name led to, or that it led nowhere; `None` if nothing is known.
    pub(super) fn get(&self, parent: InodeId, name: &[u8]) -> Option<Option<Target>> {
        let recent = self.0.lock();
        let hint = recent.get(key(parent, name))?;
        (hint.parent == parent && *hint.name == *name).then_some(hint.target)
    }

    pub(super) fn put(&self, parent: InodeId, name: &[u8], target: Option<Target>) {
        let hint = Hint {
            parent,
            name: name.into(),
            target,
        };
        self.0.lock().put(key(parent, name), hint);
    }

    pub(super) fn forget(&self, parent: InodeId, name: &[u8]) {
        self.0.lock().remove(key(parent, name));
    }
}

fn key(parent: InodeId, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parent.hash(&mut hasher);
    name.hash(&mut hasher);
    hasher.finish()
}

/// Attributes of directories as answers to this client's own changes showed them.
#[derive(Default)]
pub(super) struct Dirs(Mutex<Recent<InodeId, (Mono, Attr)>>);

impl Dirs {
    /// Attributes that came with the answer to a request sent at `at`. Answers may overtake each other: the highest
    /// change counter stays.
    pub(super) fn saw(&self, attr: &Attr, at: Mono) {
        if attr.kind != FileKind::Dir {
            return;
        }
        let (id, mut dirs) = (attr.gfid.id, self.0.lock());
        if dirs
            .get(id)
            .is_none_or(|(_, known)| known.change <= attr.change)
        {
            dirs.put(id, (at, *attr));
        }
    }

    /// Attributes not older than `max`, and their age.
    pub(super) fn get(&self, id: InodeId, now: Mono, max: Duration) -> Option<(Attr, Duration)> {
        let dirs = self.0.lock();
        let (at, attr) = dirs.get(id)?;
        let age = now.since(*at);
        (age < max).then_some((*attr, age))
    }

    pub(super) fn forget(&self, id: InodeId) {
        self.0.lock().remove(id);
    }
}

/// What directories on other sets give to inodes made in them.
#[derive(Default)]
pub(super) struct Parents(Mutex<BTreeMap<InodeId, (Mono, ParentHint)>>);

impl Parents {
    pub(super) fn get(&self, dir: InodeId, now: Mono) -> Option<ParentHint> {
        let parents = self.0.lock();
        let (at, hint) = parents.get(&dir)?;
        (now.since(*at) < PARENT_TTL).then(|| hint.clone())
    }

    pub(super) fn put(&self, dir: InodeId, now: Mono, hint: ParentHint) {
        let mut parents = self.0.lock();
        if parents.len() >= PARENTS {
            parents.retain(|_, (at, _)| now.since(*at) < PARENT_TTL);
        }
        if parents.len() >= PARENTS {
            parents.clear();
        }
        parents.insert(dir, (now, hint));
    }

    pub(super) fn forget(&self, dir: InodeId) {
        self.0.lock().remove(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_the_newest_stay() {
        let names = Names::default();
        let target = Some((Gfid::ROOT, FileKind::Dir));
        for number in 0..100_000u64 {
            names.put(InodeId(9), &number.to_be_bytes(), target);
        }
        let recent = names.0.lock();
        assert!(recent.young.len() + recent.old.len() <= 2 * GENERATION);
        drop(recent);
        assert_eq!(
            names.get(InodeId(9), &99_999u64.to_be_bytes()),
            Some(target)
        );
        assert_eq!(names.get(InodeId(9), &0u64.to_be_bytes()), None);
        names.put(InodeId(9), b"gone", None);
        assert_eq!(names.get(InodeId(9), b"gone"), Some(None));
        names.forget(InodeId(9), b"gone");
        assert_eq!(names.get(InodeId(9), b"gone"), None);
    }
}
