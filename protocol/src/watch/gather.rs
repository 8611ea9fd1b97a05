//! Messages that repeat: the first is written, the others are counted and told later. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::env::Mono;

/// Repeats within this span are gathered.
pub const SPAN: Duration = Duration::from_secs(10);
/// Kinds of messages remembered; beyond it the oldest is told and forgotten.
const KINDS: usize = 64;
/// Messages about single files are repeats of each other as far as the files share one of so many places.
const FILES: u64 = 16;

/// The place of a file among those that messages tell apart.
pub fn place_of(inode: u64) -> u64 {
    inode % FILES
}

/// What a line says at its end of those like it that were only counted.
pub fn and_more(more: u64) -> String {
    match more {
        0 => String::new(),
        more => format!(" ({more} more since the last such line)"),
    }
}

#[derive(Debug)]
struct Told {
    at: Mono,
    more: u64,
}

/// See the module. `K` says which messages are repeats of each other.
#[derive(Debug)]
pub struct Gather<K> {
    told: BTreeMap<K, Told>,
}

impl<K> Default for Gather<K> {
    fn default() -> Self {
        Self {
            told: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Gather<K> {
    /// A message of this kind: `Some(n)` if it is to be written, after `n` like it that were not; `None` if it is only
    /// counted.
    pub fn offer(&mut self, kind: &K, now: Mono) -> Option<u64> {
        if let Some(told) = self.told.get_mut(kind) {
            if now.since(told.at) < SPAN {
                told.more += 1;
                return None;
            }
            let more = std::mem::take(&mut told.more);
            told.at = now;
            return Some(more);
        }
        if self.told.len() >= KINDS {
            let oldest = self.told.iter().min_by_key(|(_, told)| told.at);
            let oldest = oldest.map(|(kind, _)| kind.clone());
            oldest.and_then(|kind| self.told.remove(&kind));
        }
        self.told.insert(kind.clone(), Told { at: now, more: 0 });
        Some(0)
    }

    /// Kinds whose span is over: how many were counted since the line written. To be called now and then.
    pub fn due(&mut self, now: Mono) -> Vec<(K, u64)> {
        let mut due = Vec::new();
        self.told.retain(|kind, told| {
            let over = now.since(told.at) >= SPAN;
            if over && told.more > 0 {
                due.push((kind.clone(), told.more));
            }
            !over
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_told_once() {
        let at = |secs: u64| Mono(secs * 1_000_000_000);
        let mut gather = Gather::default();
        assert_eq!(gather.offer(&"a", at(1)), Some(0));
        assert_eq!(gather.offer(&"a", at(2)), None);
        assert_eq!(gather.offer(&"b", at(2)), Some(0));
        assert_eq!(gather.offer(&"a", at(10)), None);
        assert_eq!(gather.due(at(10)), []);
        assert_eq!(gather.offer(&"a", at(11)), Some(2));
        assert_eq!(gather.offer(&"a", at(12)), None);
        assert_eq!(gather.due(at(21)), [("a", 1)]);
        assert_eq!(gather.due(at(40)), []);
        assert_eq!(gather.offer(&"a", at(41)), Some(0));
        for n in 0..1_000u64 {
            let mut many = Gather::default();
            assert_eq!(many.offer(&n, at(n)), Some(0));
        }
    }

    #[test]
    fn only_so_many_kinds_are_remembered() {
        let mut gather = Gather::default();
        for n in 0..1_000u64 {
            assert_eq!(gather.offer(&n, Mono(n)), Some(0));
        }
        assert_eq!(gather.told.len(), KINDS);
        assert_eq!(gather.offer(&999, Mono(1_000)), None);
    }
}
