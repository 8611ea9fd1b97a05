//! Entries: appended, flushed, cut, handed to others.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mortar_protocol::entry::{Effect, Entry};
use mortar_protocol::ids::{Pos, Seq};
use mortar_protocol::limits::BLOCK;

use super::pending::Pending;
use super::{Held, LogGone, Store, StoreError};
use crate::alloc::Run;
use crate::wal::{StageAt, WalError};

/// Blocks that an entry's inline effects may need when they are applied.
fn blocks_needed(entry: &Entry) -> u64 {
    let span = |offset: u64, len: u64| (offset + len).div_ceil(BLOCK) - offset / BLOCK;
    entry
        .effects
        .iter()
        .map(|effect| match effect {
            Effect::Write { offset, len, .. } => span(*offset, u64::from(*len)),
            Effect::Reserve { offset, len, .. } => span(*offset, *len),
            Effect::Punch { .. } => 2,
            Effect::Share { len, .. } => len / BLOCK,
            _ => 0,
        })
        .sum()
}

impl Store {
    /// Appends entries that follow the newest one: one write to the log.
    ///
    /// # Errors
    /// [`StoreError::NoStage`], [`StoreError::Order`], [`StoreError::LogFull`], [`StoreError::NoSpace`] without effect; any other means that
    /// the brick is poisoned.
    pub fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), StoreError> {
        if let Some(why) = self.poisoned() {
            return Err(StoreError::Damaged(why.to_owned()));
        }
        let mut last = self.head();
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.pos.seq != last.seq.next() || entry.pos.epoch < last.epoch {
                return Err(StoreError::Order);
            }
            last = entry.pos;
            records.push((entry.clone(), self.places(entry)?));
        }
        self.release_log();
        let mut appended = self.wal.append(&records);
        if let Err(WalError::Full { .. }) = appended {
            self.wal.release(self.checkpointed);
            appended = self.wal.append(&records);
        }
        match appended {
            Ok(()) => {}
            Err(WalError::Full { .. }) => {
                self.checkpoint_wanted = true;
                return Err(StoreError::LogFull);
            }
            Err(WalError::HostFull(_)) => return Err(StoreError::NoSpace),
            Err(WalError::Io(err)) => return Err(self.fail(StoreError::Io(err))),
            Err(err) => return Err(self.fail(StoreError::Damaged(err.to_string()))),
        }
        for (entry, stages) in records {
            self.hold(entry, stages);
        }
        Ok(())
    }

    pub(super) fn places(&self, entry: &Entry) -> Result<Vec<StageAt>, StoreError> {
        let mut places = Vec::new();
        for effect in &entry.effects {
            if let Effect::Attach { stage, crcs, .. } = effect {
                let held = self.stages.get(stage).ok_or(StoreError::NoStage)?;
                let same = held.blocks.len() == crcs.len()
                    && held
                        .blocks
                        .iter()
                        .zip(crcs)
                        .all(|(block, crc)| block.crc == *crc);
                if !same || !held.written.load(Ordering::Acquire) {
                    return Err(StoreError::NoStage);
                }
                places.push((
                    *stage,
                    held.runs.iter().map(|run| (run.start, run.len)).collect(),
                ));
            }
        }
        Ok(places)
    }

    pub(super) fn hold(&mut self, entry: Arc<Entry>, stages: Vec<StageAt>) {
        for (id, _) in &stages {
            if let Some(stage) = self.stages.get_mut(id) {
                stage.attached = true;
            }
        }
        let known = &self.stages;
        self.pending.add(&entry, |id| {
            known.get(&id).map(|stage| stage.blocks.clone())
        });
        let weight = Pending::weight(&entry);
        let blocks = blocks_needed(&entry);
        self.reserved += blocks;
        // Also data may take the place of blocks that a file has: their own come on top until it is applied.
        let is_record = |effect: &Effect| matches!(effect, Effect::Put { .. } | Effect::Del { .. });
        self.held.push_back(Held {
            frees: !entry.effects.iter().all(is_record),
            entry,
            stages,
            weight,
            blocks,
        });
    }

    /// Starts a flush of everything appended so far; `done` gets the position it covers.
    pub fn start_flush(&mut self, done: Box<dyn FnOnce(io::Result<Pos>) + Send>) {
        let pos = self.head();
        self.device
            .start_flush(Box::new(move |result| done(result.map(|()| pos))));
    }

    /// A flush has completed.
    pub fn on_flushed(&mut self, pos: Pos) {
        let pos = pos.min(self.head());
        if pos > self.flushed {
            self.flushed = pos;
            self.wal.note_flushed(pos);
        }
    }

    /// Entries behind `pos`, at least one if there is any, about `max_bytes` of them.
    ///
    /// # Errors
    /// If the log no longer reaches back to `pos`.
    pub fn entries_after(&self, pos: Pos, max_bytes: usize) -> Result<Vec<Arc<Entry>>, LogGone> {
        if self.position_at(pos.seq) != Some(pos) {
            return Err(LogGone);
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut seq = pos.seq.next();
        let first_held = self.held.front().map(|held| held.entry.pos.seq);
        while seq <= self.head().seq && (found.is_empty() || bytes < max_bytes) {
            let held = first_held
                .and_then(|first| seq.0.checked_sub(first.0))
                .and_then(|at| self.held.get(at as usize))
                .map(|held| held.entry.clone());
            let entry = match held {
                Some(entry) => entry,
                None => Arc::new(self.wal.read_entry(seq).map_err(|_| LogGone)?.entry),
            };
            bytes += entry.body.len() + 256;
            found.push(entry);
            seq = seq.next();
        }
        Ok(found)
    }

    /// Drops everything behind `pos`, which must not be applied yet.
    ///
    /// # Errors
    /// If it is.
    pub fn cut_after(&mut self, pos: Pos) -> Result<(), StoreError> {
        if pos < self.applied || (pos >= self.head()) {
            return if pos >= self.head() {
                Ok(())
            } else {
                Err(StoreError::Order)
            };
        }
        self.wal
            .cut(pos)
            .map_err(|err| self.fail(StoreError::Damaged(err.to_string())))?;
        self.flushed = self.flushed.min(pos);
        let mut alloc = self.alloc.lock();
        while self.held.back().is_some_and(|held| held.entry.pos > pos) {
            let Some(held) = self.held.pop_back() else {
                break;
            };
            self.reserved -= held.blocks;
            for (id, runs) in held.stages {
                self.stages.remove(&id);
                // The medium may still name these blocks until something is appended over the tail.
                runs.into_iter()
                    .for_each(|(start, len)| alloc.free_run(Run { start, len }));
            }
        }
        drop(alloc);
        self.rebuild_pending();
        Ok(())
    }

    pub(super) fn rebuild_pending(&mut self) {
        let mut pending = Pending::default();
        let stages = &self.stages;
        for held in &self.held {
            pending.add(&held.entry, |id| {
                stages.get(&id).map(|stage| stage.blocks.clone())
            });
        }
        self.pending = pending;
    }

    /// Every member has flushed the log up to `seq`: it may be applied.
    pub fn announce(&mut self, seq: Seq) {
        self.announced = self.announced.max(seq.min(self.head().seq));
        self.wal.note_announced(self.announced);
    }
}
