//! What the client knows of one inode that is open here or has changes that were not answered yet.
//!
//! Pure state: [`super::Vfs`] locks it, sends what it gives out and tells it what came back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::env::Mono;
use mortar_protocol::error::Errno;
use mortar_protocol::ids::{InodeId, SessionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::backend::{Changed, SentAhead};
use super::held::{Batch, Held, Local, Want};

/// An inode with open handles or unanswered changes.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: InodeId,
    /// What is known of it.
    pub state: Mutex<State>,
    /// Told whenever changes were answered.
    pub answered: Notify,
}

/// A batch of at least this many bytes is worth sending its data ahead.
const AHEAD_FROM: usize = 128 << 10;

/// A batch waiting for its turn or its answer.
#[derive(Debug)]
pub struct Sent {
    /// Number, rising by one.
    pub number: u64,
    /// To be answered once flushed.
    pub durable: bool,
    /// Whether it has been sent.
    pub started: bool,
    /// Who made the changes.
    pub cred: Cred,
    /// The changes.
    pub batch: Arc<Batch>,
    /// Its bulk data on its way ahead; whether that was begun.
    pub ahead: (bool, Option<SentAhead>),
}

/// The whole contents of a small file as an open gave them.
#[derive(Clone, Debug)]
struct Contents {
    data: Bytes,
    at: Mono,
}

/// A read of a file that moves its atime.
#[derive(Debug)]
struct Access {
    time: Time,
    at: Mono,
    /// Who read.
    cred: Cred,
}

/// atime moves at least once in so many seconds in which the file is read.
const A_DAY: i64 = 24 * 60 * 60;

/// See [`Node`].
#[derive(Debug, Default)]
pub struct State {
    /// Newest attributes the servers gave, and when.
    base: Option<(Attr, Mono)>,
    /// The same with everything that was not answered yet.
    shown: Option<Attr>,
    /// Highest change counter this client has made or seen.
    seen: u64,
    /// Change counter that the kernel's pages stand for.
    pages: Option<u64>,
    /// Own changes answered out of order: counter before -> after.
    own: BTreeMap<u64, u64>,
    /// Changes under way that are not batches.
    direct: usize,
    /// Rises whenever data read earlier may no longer be right.
    version: u64,
    contents: Option<Contents>,
    /// Changes not sent yet, and since when.
    pub held: Held,
    /// Who made them.
    held_cred: Cred,
    /// When the oldest of them was made.
    pub held_since: Option<Mono>,
    /// A read that is to be told of.
    accessed: Option<Access>,
    /// Batches in order.
    pub sent: VecDeque<Sent>,
    sent_bytes: usize,
    next_number: u64,
    /// Whether a task is sending this inode's batches.
    pub pumping: bool,
    /// Open handles, and an error each has not been told yet.
    pub handles: BTreeMap<u64, Option<Errno>>,
    /// Owners that hold locks.
    pub lock_owners: BTreeSet<u64>,
    /// Session in which they got them.
    pub lock_session: SessionId,
    /// Owners some of whose locks are lost.
    pub lock_losers: BTreeSet<u64>,
}

impl Node {
    /// A node of which nothing is known.
    pub fn new(id: InodeId) -> Self {
        Self {
            id,
            state: Mutex::default(),
            answered: Notify::new(),
        }
    }
}

impl State {
    /// Attributes with everything unanswered, and when the servers' part was read.
    pub fn shown(&self) -> Option<(Attr, Mono)> {
        Some((self.shown?, self.base?.1))
    }

    /// Number that tells data read before from data read now.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Change counter of the kernel's pages.
    pub fn pages(&self) -> Option<u64> {
        self.pages
    }

    /// Whether changes were made that have not been answered.
    pub fn unanswered(&self) -> bool {
        !self.held.is_empty() || !self.sent.is_empty() || self.direct > 0
    }

    /// Bytes of changes not answered.
    pub fn bytes(&self) -> usize {
        self.held.bytes() + self.sent_bytes
    }

    /// Whether it may be forgotten.
    pub fn idle(&self) -> bool {
        self.handles.is_empty() && !self.unanswered() && !self.pumping
    }

    fn show(&mut self) {
        self.shown = self.base.map(|(mut attr, _)| {
            self.sent.iter().for_each(|sent| sent.batch.show(&mut attr));
            self.held.show(&mut attr);
            let read = self.accessed.as_ref().map(|access| access.time);
            attr.atime = attr.atime.max(read.unwrap_or(attr.atime));
            attr
        });
    }

    /// The file was read at `time`: shows that where atime does not say yet that it was read since its last change, or
    /// today (what `relatime` means). True if that is to be told to the servers, now or with the next change.
    pub fn read(&mut self, cred: &Cred, time: Time, now: Mono) -> bool {
        let Some(attr) = self.shown.as_mut().filter(|attr| {
            let old = attr.atime <= attr.mtime
                || attr.atime <= attr.ctime
                || attr.atime.secs.saturating_add(A_DAY) <= time.secs;
            attr.kind == FileKind::File && old && attr.atime < time
        }) else {
            return false;
        };
        if self.accessed.is_some() || self.handles.is_empty() {
            return false;
        }
        attr.atime = time;
        self.accessed = Some(Access {
            time,
            at: now,
            cred: cred.clone(),
        });
        true
    }

    /// Since when something waits to be sent.
    pub fn waits_since(&self) -> Option<Mono> {
        let read = self.accessed.as_ref().map(|access| access.at);
        self.held_since.into_iter().chain(read).min()
    }

    /// Whether a read is still to be told of.
    pub fn has_read(&self) -> bool {
        self.accessed.is_some()
    }

    /// Moves a read that no change has taken along to the batches.
    pub fn cut_read(&mut self) {
        if let Some(access) = self.accessed.take() {
            let batch = Batch::default().accessed(Some(access.time));
            self.push(batch, access.cred, false);
        }
    }

    /// Attributes arrived with an answer. Gives what to show instead, or `None` if the answer is older than what
    /// this client has made or seen, and nothing newer is at hand: it must ask again.
    pub fn arrived(&mut self, attr: Attr, now: Mono) -> Option<Attr> {
        if attr.change < self.seen {
            return self.shown;
        }
        let own = self.unanswered();
        if attr.change > self.seen && !own && self.seen != 0 {
            self.forget_data();
        }
        self.seen = attr.change;
        self.base = Some((attr, now));
        self.show();
        self.shown
    }

    /// The file was opened (or made) and the kernel keeps (or fetches) pages as of `attr`.
    pub fn opened(&mut self, attr: Attr, contents: Option<Bytes>, now: Mono) {
        if attr.change < self.seen {
            return;
        }
        self.arrived(attr, now);
        self.pages = Some(attr.change);
        if let Some(data) = contents
            && !self.unanswered()
        {
            self.contents = Some(Contents { data, at: now });
        }
    }

    /// Data read before may be wrong now.
    pub fn forget_data(&mut self) {
        self.version += 1;
        self.contents = None;
    }

    /// The kernel's pages are not known to be right.
    pub fn forget_pages(&mut self) {
        self.pages = None;
        self.own.clear();
        self.forget_data();
    }

    /// Holds one change: `hold` adds it. Its effect shows at once. Gives by how many bytes more is held.
    pub fn hold(&mut self, cred: &Cred, now: Mono, hold: impl FnOnce(&mut Held)) -> usize {
        if self.held_cred != *cred {
            self.cut(true, false);
            self.held_cred = cred.clone();
        }
        let before = self.held.bytes();
        hold(&mut self.held);
        self.held_since.get_or_insert(now);
        if let Some(attr) = &mut self.shown {
            self.held.show_last(attr);
        }
        self.held.bytes() - before
    }

    /// What the servers told last may be outdated: it is not shown without asking again.
    pub fn outdated(&mut self) {
        if let Some((_, at)) = &mut self.base {
            *at = Mono(0);
        }
    }

    /// Moves what is held to the batches; gives the number of the last one (0: none was ever made), and whether that
    /// one will be answered once flushed.
    pub fn cut(&mut self, everything: bool, durable: bool) -> (u64, bool) {
        if let Some(batch) = self.held.cut(everything) {
            if self.held.is_empty() {
                self.held_since = None;
            }
            let read = self.accessed.take().map(|access| access.time);
            self.push(batch.accessed(read), self.held_cred.clone(), durable);
        }
        let last = match self.sent.back_mut() {
            Some(last) => {
                last.durable |= durable && !last.started;
                last.durable
            }
            None => false,
        };
        (self.next_number, last)
    }

    fn push(&mut self, batch: Batch, cred: Cred, durable: bool) {
        self.next_number += 1;
        self.sent_bytes += batch.bytes();
        self.sent.push_back(Sent {
            number: self.next_number,
            durable,
            started: false,
            cred,
            batch: Arc::new(batch),
            ahead: (false, None),
        });
    }

    /// Batches with much data behind the one being sent, whose data may go ahead now.
    pub fn to_send_ahead(&mut self) -> Vec<(u64, Arc<Batch>)> {
        if !self.pumping {
            return Vec::new();
        }
        let behind = self.sent.iter_mut().skip(1);
        let new = behind.filter(|sent| !sent.ahead.0 && sent.batch.bytes() >= AHEAD_FROM);
        new.map(|sent| {
            sent.ahead.0 = true;
            (sent.number, sent.batch.clone())
        })
        .collect()
    }

    /// Keeps what was sent ahead of a batch, if that still waits.
    pub fn sent_ahead(&mut self, number: u64, ahead: SentAhead) {
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.number == number) {
            sent.ahead.1 = Some(ahead);
        }
    }

    /// Whether every batch up to `number` has been answered.
    pub fn answered(&self, number: u64) -> bool {
        self.sent.front().is_none_or(|sent| sent.number > number)
    }

    /// A change that is not a batch begins.
    pub fn direct_begins(&mut self) {
        self.direct += 1;
        self.forget_data();
    }

    /// A change that is not a batch was answered. Tells whether the kernel's pages must go.
    pub fn direct_ends(&mut self, result: Result<Changed, Errno>, now: Mono) -> bool {
        self.direct -= 1;
        self.forget_data();
        match result {
            Ok(changed) => self.changed(changed, now),
            Err(_) => self.chained(),
        }
    }

    /// The first batch was answered. Gives its size and whether the kernel's pages must go.
    pub fn batch_ends(&mut self, changed: Changed, now: Mono) -> (usize, bool) {
        let Some(sent) = self.sent.pop_front() else {
            return (0, false);
        };
        let bytes = sent.batch.bytes();
        self.sent_bytes -= bytes;
        let moved = sent.batch.append_shown() != changed.appended_at;
        let drop = self.changed(changed, now) | moved;
        if moved {
            self.forget_pages();
        }
        (bytes, drop)
    }

    /// The first batch only told of a read, and failed: nobody is to hear of it.
    pub fn read_failed(&mut self) {
        self.sent.pop_front();
        self.show();
    }

    /// The first batch failed: everything unanswered goes, every handle is to hear of it. Gives the bytes freed.
    pub fn batch_failed(&mut self, errno: Errno) -> usize {
        let bytes = self.bytes();
        self.sent.clear();
        self.sent_bytes = 0;
        self.held.clear();
        self.held_since = None;
        self.accessed = None;
        self.base = None;
        self.shown = None;
        self.forget_pages();
        for error in self.handles.values_mut() {
            *error = Some(errno);
        }
        bytes
    }

    fn changed(&mut self, changed: Changed, now: Mono) -> bool {
        if changed.attr.kind == FileKind::Dir {
            return false;
        }
        if changed.before == changed.attr.change {
            // Nothing but the time of a read: pages and what was read ahead stay right.
            self.arrived(changed.attr, now);
            self.show();
            return self.chained();
        }
        // What was read before the change is no longer right, also if another client did not interfere.
        self.contents = None;
        self.version += 1;
        self.own.insert(changed.before, changed.attr.change);
        if changed.attr.change >= self.seen {
            self.seen = changed.attr.change;
            self.base = Some((changed.attr, now));
        }
        self.show();
        self.chained()
    }

    /// Lets the pages' counter follow this client's own changes. When none is under way any more and a link of the
    /// chain is missing, another client changed the file: the pages must go.
    fn chained(&mut self) -> bool {
        while let Some(at) = self.pages
            && let Some(after) = self.own.remove(&at)
        {
            self.pages = Some(after);
            if after == at {
                break;
            }
        }
        if self.unanswered() || self.own.is_empty() {
            return false;
        }
        self.own.clear();
        let had = self.pages.is_some();
        self.forget_pages();
        had
    }

    /// What is known here of `[offset, end)`, `end` cut to the size shown. The contents of a small file count for
    /// `fresh` after they arrived.
    pub fn read_local(
        &self,
        offset: u64,
        len: u32,
        now: Mono,
        fresh: std::time::Duration,
    ) -> Local {
        let Some(size) = self.shown.map(|attr| attr.size) else {
            return Local::Some;
        };
        let end = offset.saturating_add(u64::from(len)).min(size);
        let mut want = Want::new(offset, end);
        self.held.fill(&mut want);
        for sent in self.sent.iter().rev() {
            sent.batch.fill(&mut want);
        }
        if let Some(contents) = &self.contents
            && now.since(contents.at) <= fresh
        {
            want.take(0, &contents.data);
            want.zero_from(contents.data.len() as u64);
        }
        match want.end() {
            // Behind the servers' end there is nothing but what is held and zeros between.
            Local::Nothing if self.base.is_none_or(|(base, _)| end > base.size) => Local::Some,
            local => local,
        }
    }

    /// A piece of a small file's contents, without copying, if nothing is unanswered.
    pub fn read_contents(
        &self,
        offset: u64,
        len: u32,
        now: Mono,
        fresh: std::time::Duration,
    ) -> Option<Bytes> {
        let contents = self.contents.as_ref()?;
        if self.unanswered() || now.since(contents.at) > fresh {
            return None;
        }
        let size = contents.data.len();
        let first = (offset.min(size as u64)) as usize;
        let last = (first + len as usize).min(size);
        Some(contents.data.slice(first..last))
    }

    /// Whether locks that somebody counts on are lost, with a session that ended or alone: the file fails until it is
    /// closed.
    pub fn lost_locks(&self, session: SessionId) -> bool {
        let ended = !self.lock_owners.is_empty() && self.lock_session != session;
        ended || !self.lock_losers.is_disjoint(&self.lock_owners)
    }

    /// Takes the error that a handle has not been told yet.
    pub fn take_error(&mut self, handle: u64) -> Option<Errno> {
        self.handles.get_mut(&handle)?.take()
    }
}
