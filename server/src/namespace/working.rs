//! The working overlay of one operation: the state with the changes made so far, collected as effects.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Time};
use mortar_protocol::entry::{Effect, Object};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::Reply;
use mortar_protocol::ids::{InodeId, SessionId, StageId, TxnId};
use mortar_protocol::limits::BLOCK;

use super::records::{self, Counters, DirPart, Dirent, Holder, Inode};
use super::{Context, Executed, State};

/// Units of `st_blocks` in an allocation block.
const SECTORS: i64 = (BLOCK / 512) as i64;
/// The block behind every object's last: an open end.
pub(super) const OPEN: u64 = u64::MAX / BLOCK;

/// Ranges of blocks by their start: end, and whether they are allocated.
type Ranges = BTreeMap<u64, (u64, bool)>;

/// A record that is read once, changed in memory and encoded at the end.
struct Slot<T> {
    now: Option<T>,
    changed: bool,
}

/// State plus the changes of this operation.
pub(super) struct Working<'a> {
    pub(super) state: &'a dyn State,
    pub(super) cx: &'a Context<'a>,
    /// Time of the change.
    pub(super) time: Time,
    /// The session on whose behalf it is done.
    pub(super) actor: SessionId,
    /// Whether the caller's permissions matter (they do for sessions bound to a uid).
    pub(super) check_access: bool,
    /// The transaction whose intents do not stand in the way.
    pub(super) txn: Option<TxnId>,
    /// A prepared share is done now: what was checked holds, and must not be refused.
    pub(super) finishing: bool,
    /// Inodes that the parts named, in order.
    pub(super) named: Vec<InodeId>,
    /// Records this operation locks if it becomes an intent, and whether exclusively.
    pub(super) claimed: Vec<(Bytes, bool)>,
    records: BTreeMap<Bytes, Option<Bytes>>,
    inodes: BTreeMap<InodeId, Slot<Inode>>,
    parts: BTreeMap<InodeId, Slot<DirPart>>,
    counters: Option<Slot<Counters>>,
    extents: BTreeMap<Object, Ranges>,
    written: BTreeSet<Object>,
    data: Vec<Effect>,
    body: Bytes,
    extra: Vec<u8>,
    /// Blocks that need space, and whether records grow.
    new_blocks: u64,
    grows: bool,
    /// Blocks that were written ahead become a file's: they have their space, but not from the reserve.
    attaches: bool,
}

impl<'a> Working<'a> {
    pub(super) fn new(state: &'a dyn State, cx: &'a Context<'a>, time: Time) -> Self {
        Self {
            state,
            cx,
            time,
            actor: cx.session,
            check_access: false,
            txn: None,
            finishing: false,
            named: Vec::new(),
            claimed: Vec::new(),
            records: BTreeMap::new(),
            inodes: BTreeMap::new(),
            parts: BTreeMap::new(),
            counters: None,
            extents: BTreeMap::new(),
            written: BTreeSet::new(),
            data: Vec::new(),
            body: Bytes::new(),
            extra: Vec::new(),
            new_blocks: 0,
            grows: false,
            attaches: false,
        }
    }

    /// The operation brings these bytes; writes refer to them by offset.
    pub(super) fn set_body(&mut self, body: &Bytes) {
        self.body = body.clone();
    }

    // Records

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.records.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.state.get(key),
        }
    }

    pub(super) fn put(&mut self, key: Bytes, value: Bytes) {
        self.records.insert(key, Some(value));
    }

    pub(super) fn del(&mut self, key: Bytes) {
        self.records.insert(key, None);
    }

    /// All keys with a prefix.
    pub(super) fn keys(&self, prefix: &[u8]) -> Result<Vec<Bytes>, Fault> {
        let end = records::prefix_end(prefix);
        let mut keys = BTreeSet::new();
        self.state.scan(prefix, &end, &mut |key, _| {
            keys.insert(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        })?;
        for (key, value) in &self.records {
            if key.starts_with(prefix) {
                if value.is_some() {
                    keys.insert(key.clone());
                } else {
                    keys.remove(key);
                }
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// The operation makes records larger: it is refused when space runs out.
    pub(super) fn note_growth(&mut self) {
        self.grows = true;
    }

    fn load_inode(&mut self, id: InodeId) -> Result<&mut Slot<Inode>, Fault> {
        use std::collections::btree_map::Entry;
        match self.inodes.entry(id) {
            Entry::Occupied(slot) => Ok(slot.into_mut()),
            Entry::Vacant(slot) => {
                let now = match self.state.get(&records::inode_key(id))? {
                    Some(value) => Some(records::decode(&value)?),
                    None => None,
                };
                Ok(slot.insert(Slot {
                    now,
                    changed: false,
                }))
            }
        }
    }

    /// An inode, if its record lies here.
    pub(super) fn inode(&mut self, id: InodeId) -> Result<Option<&Inode>, Fault> {
        Ok(self.load_inode(id)?.now.as_ref())
    }

    /// An inode to change; the first time its change counter rises and its ctime becomes the operation's time.
    /// `missing` is the answer if it is not there.
    pub(super) fn inode_mut(&mut self, id: InodeId, missing: Errno) -> Result<&mut Inode, Fault> {
        let time = self.time;
        let slot = self.load_inode(id)?;
        let inode = slot.now.as_mut().ok_or(Fault::Refused(missing))?;
        if !slot.changed {
            slot.changed = true;
            inode.change += 1;
            inode.ctime = inode.ctime.max(time);
        }
        Ok(inode)
    }

    /// Moves an inode's atime forward, and nothing else of it.
    pub(super) fn accessed(&mut self, id: InodeId, time: Time) -> Result<(), Fault> {
        let slot = self.load_inode(id)?;
        let inode = slot.now.as_mut().ok_or(Fault::Refused(Errno::ESTALE))?;
        if inode.atime >= time {
            return Ok(());
        }
        inode.atime = time;
        if !slot.changed {
            // Replaced at the end if this operation also changes the inode.
            let value = records::encode(inode);
            self.put(records::inode_key(id), value);
        }
        Ok(())
    }

    /// A new inode.
    pub(super) fn insert_inode(&mut self, id: InodeId, inode: Inode) -> Result<(), Fault> {
        self.inodes.insert(
            id,
            Slot {
                now: Some(inode),
                changed: true,
            },
        );
        self.note_growth();
        let counters = self.counters_mut()?;
        counters.inodes += 1;
        Ok(())
    }

    /// Removes an inode's record.
    pub(super) fn remove_inode(&mut self, id: InodeId) -> Result<(), Fault> {
        self.inodes.insert(
            id,
            Slot {
                now: None,
                changed: true,
            },
        );
        let counters = self.counters_mut()?;
        counters.inodes = counters.inodes.saturating_sub(1);
        Ok(())
    }

    fn load_part(&mut self, dir: InodeId) -> Result<&mut Slot<DirPart>, Fault> {
        use std::collections::btree_map::Entry;
        match self.parts.entry(dir) {
            Entry::Occupied(slot) => Ok(slot.into_mut()),
            Entry::Vacant(slot) => {
                let now = match self.state.get(&records::part_key(dir))? {
                    Some(value) => Some(records::decode(&value)?),
                    None => None,
                };
                Ok(slot.insert(Slot {
                    now,
                    changed: false,
                }))
            }
        }
    }

    /// This set's part of a directory, if there is one.
    pub(super) fn part(&mut self, dir: InodeId) -> Result<Option<&DirPart>, Fault> {
        Ok(self.load_part(dir)?.now.as_ref())
    }

    /// This set's part of a directory to change; the first time its change counter and time move on.
    pub(super) fn part_mut(&mut self, dir: InodeId) -> Result<&mut DirPart, Fault> {
        let time = self.time;
        let slot = self.load_part(dir)?;
        let part = slot.now.get_or_insert_default();
        if !slot.changed {
            slot.changed = true;
            part.change += 1;
            part.mtime = part.mtime.max(time);
        }
        Ok(part)
    }

    /// Removes this set's part of a directory.
    pub(super) fn remove_part(&mut self, dir: InodeId) {
        let gone = Slot {
            now: None,
            changed: true,
        };
        self.parts.insert(dir, gone);
    }

    /// A directory entry.
    pub(super) fn dirent(&self, key: &[u8]) -> Result<Option<Dirent>, Fault> {
        match self.get(key)? {
            Some(value) => Ok(Some(records::decode(&value)?)),
            None => Ok(None),
        }
    }

    fn load_counters(&mut self) -> Result<&mut Slot<Counters>, Fault> {
        if self.counters.is_none() {
            let now = match self.state.get(records::COUNTERS_KEY)? {
                Some(value) => Some(records::decode(&value)?),
                None => None,
            };
            self.counters = Some(Slot {
                now,
                changed: false,
            });
        }
        self.counters.as_mut().ok_or(Fault::Corrupt)
    }

    /// The set's counters to change.
    pub(super) fn counters_mut(&mut self) -> Result<&mut Counters, Fault> {
        let slot = self.load_counters()?;
        slot.changed = true;
        Ok(slot.now.get_or_insert_default())
    }

    // Intents

    /// Claims a record: refused with [`Fault::Intent`] if another transaction's intent is in the way.
    pub(super) fn claim(&mut self, key: Bytes, exclusive: bool) -> Result<(), Fault> {
        if self.load_counters()?.now.is_some_and(|now| now.intents > 0) {
            for holder in self.holders(&key)? {
                if Some(holder.txn) != self.txn && (exclusive || holder.exclusive) {
                    return Err(Fault::Intent {
                        txn: holder.txn,
                        decider: holder.decider,
                        age_ms: age_ms(holder.since, self.cx.time),
                    });
                }
            }
        }
        self.claimed.push((key, exclusive));
        Ok(())
    }

    /// The intents that lock a record.
    pub(super) fn holders(&self, key: &[u8]) -> Result<Vec<Holder>, Fault> {
        match self.get(&records::holders_key(key))? {
            Some(value) => records::decode(&value),
            None => Ok(Vec::new()),
        }
    }

    // Attributes

    /// Directories whose entries this operation changes.
    pub(super) fn changed_dirs(&self) -> Vec<InodeId> {
        let changed = self.parts.iter().filter(|(_, slot)| slot.changed);
        changed.map(|(dir, _)| *dir).collect()
    }

    /// Attributes of an inode as they stand now.
    pub(super) fn attr(&mut self, id: InodeId) -> Result<Option<Attr>, Fault> {
        let is_dir = match self.inode(id)? {
            Some(inode) => inode.is_dir(),
            None => return Ok(None),
        };
        let part = match is_dir {
            true => self.part(id)?.cloned(),
            false => None,
        };
        Ok(self.inode(id)?.map(|inode| inode.attr(id, part.as_ref())))
    }

    // Data

    /// Allocated blocks in `[start, end)`, counting this operation's changes.
    pub(super) fn allocated(&self, object: Object, start: u64, end: u64) -> Result<u64, Fault> {
        let base = |from: u64, to: u64| match from < to {
            true => {
                let len = match to {
                    OPEN => u64::MAX,
                    _ => (to - from).saturating_mul(BLOCK),
                };
                self.state
                    .allocated(object, from.saturating_mul(BLOCK), len)
            }
            false => Ok(0),
        };
        let (mut at, mut sum) = (start, 0);
        for (&from, &(to, allocated)) in self.extents.get(&object).into_iter().flatten() {
            let (from, to) = (from.max(start), to.min(end));
            if from >= to {
                continue;
            }
            sum += base(at, from)?;
            sum += if allocated { to - from } else { 0 };
            at = to;
        }
        Ok(sum + base(at, end)?)
    }

    /// Whether this operation has changed an object's data.
    pub(super) fn is_written(&self, object: Object) -> bool {
        self.written.contains(&object)
    }

    /// Notes that all blocks of `[start, end)` are allocated now (or none is), and gives the difference.
    fn account(
        &mut self,
        object: Object,
        start: u64,
        end: u64,
        allocated: bool,
    ) -> Result<i64, Fault> {
        self.written.insert(object);
        if start >= end {
            return Ok(0);
        }
        if let Some(difference) = self.account_dense(object, start, end, allocated)? {
            return Ok(difference);
        }
        let before = self.allocated(object, start, end)?;
        let ranges = self.extents.entry(object).or_default();
        let cut: Vec<(u64, u64, bool)> = ranges
            .iter()
            .filter(|(from, (to, _))| **from < end && start < *to)
            .map(|(from, (to, kind))| (*from, *to, *kind))
            .collect();
        for (from, to, kind) in cut {
            ranges.remove(&from);
            if from < start {
                ranges.insert(from, (start, kind));
            }
            if end < to {
                ranges.insert(end, (to, kind));
            }
        }
        ranges.insert(start, (end, allocated));
        if object.shard == 0
            && start == 0
            && end == OPEN
            && let Some(inode) = &mut self.load_inode(object.id)?.now
        {
            inode.dense = Some(0);
        }
        let after = if allocated { end - start } else { 0 };
        Ok(after as i64 - before as i64)
    }

    /// The same by arithmetic, where the inode says that shard 0 has no holes.
    fn account_dense(
        &mut self,
        object: Object,
        start: u64,
        end: u64,
        allocated: bool,
    ) -> Result<Option<i64>, Fault> {
        if object.shard > 0 {
            return Ok(None);
        }
        let Some(inode) = &mut self.load_inode(object.id)?.now else {
            return Ok(None);
        };
        let Some(dense) = inode.dense else {
            return Ok(None);
        };
        let have = u64::from(dense);
        let then = match allocated {
            true if start <= have => u32::try_from(end.max(have)).ok(),
            false if end >= have => u32::try_from(start.min(have)).ok(),
            _ => None,
        };
        inode.dense = then;
        if let Some(then) = then {
            return Ok(Some(i64::from(then) - i64::from(dense)));
        }
        let ranges = Ranges::from([(0, (have, true)), (have, (OPEN, false))]);
        self.extents.insert(object, ranges);
        Ok(None)
    }

    /// Writes `len` bytes at `at` of the operation's body. Gives the change of `st_blocks`, as all of these do.
    pub(super) fn write(
        &mut self,
        object: Object,
        offset: u64,
        at: u32,
        len: u32,
    ) -> Result<i64, Fault> {
        self.data.push(Effect::Write {
            object,
            offset,
            at,
            len,
        });
        let end = (offset + u64::from(len)).div_ceil(BLOCK);
        let blocks = self.account(object, offset / BLOCK, end, true)?;
        self.need(blocks);
        Ok(blocks * SECTORS)
    }

    /// Writes bytes that did not come with the operation.
    pub(super) fn write_extra(
        &mut self,
        object: Object,
        offset: u64,
        bytes: &[u8],
    ) -> Result<i64, Fault> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let at = u32::try_from(self.body.len() + self.extra.len()).map_err(|_| Fault::Protocol)?;
        let len = u32::try_from(bytes.len()).map_err(|_| Fault::Protocol)?;
        self.extra.extend_from_slice(bytes);
        self.write(object, offset, at, len)
    }

    /// Attaches a stage. Its blocks were taken when it arrived.
    pub(super) fn attach(
        &mut self,
        object: Object,
        offset: u64,
        stage: StageId,
        crcs: Vec<u32>,
    ) -> Result<i64, Fault> {
        let start = offset / BLOCK;
        let blocks = self.account(object, start, start + crcs.len() as u64, true)?;
        self.grows |= blocks > 0;
        self.attaches |= blocks > 0;
        self.data.push(Effect::Attach {
            object,
            offset,
            stage,
            crcs,
        });
        Ok(blocks * SECTORS)
    }

    /// Punches a hole; `len` of `u64::MAX` means to the end.
    pub(super) fn punch(&mut self, object: Object, offset: u64, len: u64) -> Result<i64, Fault> {
        self.data.push(Effect::Punch {
            object,
            offset,
            len,
        });
        let end = match offset.checked_add(len) {
            Some(end) if len != u64::MAX => end / BLOCK,
            _ => OPEN,
        };
        Ok(self.account(object, offset.div_ceil(BLOCK), end, false)? * SECTORS)
    }

    /// Reserves every block that the range touches; with `zero` the range then reads as zeros.
    pub(super) fn reserve(
        &mut self,
        object: Object,
        offset: u64,
        len: u64,
        zero: bool,
    ) -> Result<i64, Fault> {
        let (first, last) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
        self.data.push(Effect::Reserve {
            object,
            offset: first * BLOCK,
            len: (last - first) * BLOCK,
            zero: false,
        });
        if zero {
            let (start, end) = (offset.div_ceil(BLOCK), (offset + len) / BLOCK);
            if start < end {
                self.data.push(Effect::Reserve {
                    object,
                    offset: start * BLOCK,
                    len: (end - start) * BLOCK,
                    zero: true,
                });
            }
            let head = offset..(start * BLOCK).min(offset + len);
            let tail = (end * BLOCK).max(head.end)..offset + len;
            for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
                self.data.push(Effect::Punch {
                    object,
                    offset: part.start,
                    len: part.end - part.start,
                });
            }
        }
        let blocks = self.account(object, first, last, true)?;
        self.need(blocks);
        Ok(blocks * SECTORS)
    }

    /// Shares a block-aligned range that is all data in the source.
    pub(super) fn share(
        &mut self,
        from: Object,
        from_offset: u64,
        object: Object,
        offset: u64,
        len: u64,
    ) -> Result<i64, Fault> {
        self.data.push(Effect::Share {
            from,
            from_offset,
            object,
            offset,
            len,
        });
        let blocks = self.account(object, offset / BLOCK, (offset + len) / BLOCK, true)?;
        self.grows |= blocks > 0;
        Ok(blocks * SECTORS)
    }

    fn need(&mut self, blocks: i64) {
        self.new_blocks += u64::try_from(blocks).unwrap_or(0);
    }

    /// Notes that this set has data of a shard (the first one needs no note).
    pub(super) fn note_shard(&mut self, object: Object) -> Result<(), Fault> {
        if object.shard > 0 {
            let key = records::shard_key(object.id, object.shard);
            if self.get(&key)?.is_none() {
                self.put(key, Bytes::new());
            }
        }
        Ok(())
    }

    /// Shards above 0 of which this set has data.
    pub(super) fn shards(&self, id: InodeId) -> Result<Vec<u32>, Fault> {
        let keys = self.keys(&records::shards_prefix(id))?;
        keys.iter()
            .map(|key| records::parse_shard_key(key).ok_or(Fault::Corrupt))
            .collect()
    }

    // The end

    fn check_space(&self) -> Result<(), Fault> {
        if self.new_blocks == 0 && !self.grows {
            return Ok(());
        }
        let space = self.state.space();
        let needed = self
            .new_blocks
            .saturating_mul(BLOCK)
            .saturating_add(if self.grows { BLOCK } else { 0 });
        // A volume full of data still takes names.
        let kept = match self.new_blocks {
            0 if self.attaches => self.cx.reserve(&space).max(space.cushion() / 2),
            0 => space.cushion() / 2,
            _ => self.cx.kept_free(&space),
        };
        match space.free < needed.saturating_add(kept) {
            true => Err(Errno::ENOSPC.into()),
            false => Ok(()),
        }
    }

    /// The effects, if there is space for them.
    pub(super) fn finish(self, reply: Reply) -> Result<Executed, Fault> {
        self.check_space()?;
        Ok(self.finish_anyway(reply))
    }

    /// Forgets the effects and keeps the claims.
    pub(super) fn into_claims(self) -> Result<Vec<(Bytes, bool)>, Fault> {
        self.check_space()?;
        Ok(self.claimed)
    }

    /// The effects of what was already promised.
    pub(super) fn finish_anyway(mut self, reply: Reply) -> Executed {
        for (id, slot) in &self.inodes {
            if slot.changed {
                let value = slot.now.as_ref().map(records::encode);
                self.records.insert(records::inode_key(*id), value);
            }
        }
        for (dir, slot) in &self.parts {
            if slot.changed {
                let value = slot.now.as_ref().map(records::encode);
                self.records.insert(records::part_key(*dir), value);
            }
        }
        if let Some(slot) = self.counters.filter(|slot| slot.changed) {
            let value = slot.now.as_ref().map(records::encode);
            let key = Bytes::from_static(records::COUNTERS_KEY);
            self.records.insert(key, value);
        }
        let mut effects: Vec<Effect> = self
            .records
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => Effect::Put { key, value },
                None => Effect::Del { key },
            })
            .collect();
        effects.append(&mut self.data);
        let body = if self.extra.is_empty() {
            self.body
        } else {
            let mut body = self.body.to_vec();
            body.append(&mut self.extra);
            Bytes::from(body)
        };
        Executed {
            effects,
            body,
            reply,
        }
    }
}

/// Milliseconds from `since` to `now`, 0 if that is negative.
fn age_ms(since: Time, now: Time) -> u32 {
    let millis = |time: Time| i128::from(time.secs) * 1000 + i128::from(time.nanos / 1_000_000);
    u32::try_from((millis(now) - millis(since)).max(0)).unwrap_or(u32::MAX)
}
