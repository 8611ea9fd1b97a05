//! What names should lead to.

use mortar_client::volume::RenameMode;
use mortar_protocol::error::Errno;
use std::collections::BTreeSet;

use super::super::history::{Act, DIRS, NAMES, Name, Record, Told};
use super::search::{Model, Span, Verdict, search};

/// An inode: known, or made by a call that was never answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Inode {
    Known(u64),
    Of(usize),
}

/// All names, and which inodes unanswered calls have turned out to have made.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Names {
    slots: Vec<Option<(Inode, bool)>>,
    found: Vec<u64>,
}

struct Calls<'a> {
    records: &'a [Record],
    /// Inodes that answered calls made.
    made: BTreeSet<u64>,
}

/// Looks for an order of all calls on names.
pub fn check(records: &[Record]) -> Verdict {
    let made = records.iter().filter_map(|record| match record.known() {
        Some((_, Told::Made(id))) => Some(*id),
        _ => None,
    });
    let calls = Calls {
        records,
        made: made.collect(),
    };
    let spans: Vec<Span> = records
        .iter()
        .enumerate()
        .filter(|(_, record)| is_about_names(&record.act))
        .filter(|(_, record)| record.known().is_some() || changes(&record.act))
        .map(|(call, record)| Span {
            call,
            start: record.start,
            end: record.known().map(|(end, _)| end),
        })
        .collect();
    let names = Names {
        slots: vec![None; DIRS * NAMES],
        found: Vec::new(),
    };
    search(&calls, names, &spans)
}

fn is_about_names(act: &Act) -> bool {
    changes(act) || matches!(act, Act::Lookup { .. } | Act::List { .. })
}

fn changes(act: &Act) -> bool {
    matches!(
        act,
        Act::Create { .. } | Act::Remove { .. } | Act::Rename { .. } | Act::Link { .. }
    )
}

impl Names {
    /// Whether a slot holds this inode, given that an unanswered call may have made it.
    fn shows(&self, at: Name, id: u64, made: &BTreeSet<u64>) -> Option<Self> {
        match self.slots[at]? {
            (Inode::Known(known), _) => (known == id).then(|| self.clone()),
            (Inode::Of(call), _) => {
                if made.contains(&id) || self.found.contains(&id) {
                    return None;
                }
                let mut bound = self.clone();
                bound.found.push(id);
                bound.found.sort_unstable();
                for (inode, _) in bound.slots.iter_mut().flatten() {
                    if *inode == Inode::Of(call) {
                        *inode = Inode::Known(id);
                    }
                }
                Some(bound)
            }
        }
    }

    fn with(&self, at: Name, slot: Option<(Inode, bool)>) -> Self {
        let mut new = self.clone();
        new.slots[at] = slot;
        new
    }

    fn rename(&self, from: Name, to: Name, mode: RenameMode) -> Option<Self> {
        let (source, target) = (self.slots[from]?, self.slots[to]);
        let same = from == to || target.is_some_and(|target| target.0 == source.0);
        match mode {
            RenameMode::NoReplace if target.is_some() => None,
            RenameMode::Exchange if target.is_none() => None,
            RenameMode::Replace | RenameMode::Exchange if same => Some(self.clone()),
            RenameMode::Exchange => Some(self.with(from, target).with(to, Some(source))),
            RenameMode::Replace if target.is_some_and(|target| target.1 != source.1) => None,
            _ => Some(self.with(from, None).with(to, Some(source))),
        }
    }

    fn holds(&self, id: u64) -> bool {
        let known = |slot: &(Inode, bool)| slot.0 == Inode::Known(id);
        self.slots.iter().flatten().any(known)
    }

    /// The state after a change that was done; `id` is the inode that it made.
    fn change(&self, act: &Act, made: Inode) -> Option<Self> {
        match *act {
            Act::Create { at, dir } => {
                (self.slots[at].is_none()).then(|| self.with(at, Some((made, dir))))
            }
            Act::Remove { at, dir } => {
                let fits = self.slots[at].is_some_and(|slot| slot.1 == dir);
                fits.then(|| self.with(at, None))
            }
            Act::Rename { from, to, mode } => self.rename(from, to, mode),
            Act::Link { id, at } => {
                let fits = self.slots[at].is_none() && self.holds(id);
                fits.then(|| self.with(at, Some((Inode::Known(id), false))))
            }
            _ => None,
        }
    }

    /// Whether a refusal fits. What a call looked up in two steps may be refused for what was true at one of them.
    fn refuses(&self, act: &Act, errno: Errno) -> bool {
        let kind = |at: Name| self.slots[at].map(|slot| slot.1);
        match (*act, errno) {
            (Act::Create { at, .. } | Act::Link { at, .. }, Errno::EEXIST) => kind(at).is_some(),
            (Act::Link { id, .. }, Errno::ENOENT | Errno::ESTALE) => !self.holds(id),
            (Act::Remove { at, .. } | Act::Lookup { at }, Errno::ENOENT) => kind(at).is_none(),
            (Act::Remove { at, dir: false }, Errno::EISDIR) => kind(at) == Some(true),
            (Act::Remove { at, dir: true }, Errno::ENOTDIR) => kind(at) == Some(false),
            (Act::Rename { from, to, mode }, Errno::ENOENT) => {
                kind(from).is_none() || (mode == RenameMode::Exchange && kind(to).is_none())
            }
            (Act::Rename { from, to, mode }, Errno::EEXIST) => {
                mode == RenameMode::NoReplace && (from == to || kind(to).is_some())
            }
            (Act::Rename { .. }, Errno::EISDIR | Errno::ENOTDIR) => true,
            (_, Errno::EBUSY) => true,
            _ => false,
        }
    }
}

impl Model for Calls<'_> {
    type State = Names;

    fn apply(&self, state: &Names, call: usize) -> Option<Names> {
        let record = &self.records[call];
        let told = record.known().map(|(_, told)| told);
        if record.is_refused() {
            return Some(state.clone());
        }
        match (&record.act, told) {
            (act, None) => state.change(act, Inode::Of(call)),
            (act, Some(Told::Failed(errno))) => state.refuses(act, *errno).then(|| state.clone()),
            (act, Some(Told::Made(id))) => state.change(act, Inode::Known(*id)),
            (Act::Lookup { at }, Some(Told::Found(id, dir))) => {
                let fits = state.slots[*at].is_some_and(|slot| slot.1 == *dir);
                fits.then(|| state.shows(*at, *id, &self.made)).flatten()
            }
            (Act::List { dir }, Some(Told::Listed(list))) => {
                let mut state = state.clone();
                for at in dir * NAMES..(dir + 1) * NAMES {
                    match list.iter().find(|(name, _)| *name == at) {
                        Some((_, id)) => state = state.shows(at, *id, &self.made)?,
                        None if state.slots[at].is_some() => return None,
                        None => {}
                    }
                }
                Some(state)
            }
            (act, Some(Told::Done)) => state.change(act, Inode::Of(call)),
            _ => None,
        }
    }
}
