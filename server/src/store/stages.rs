//! Bulk data, written to new blocks before the entry that attaches it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::entry::Effect;
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{Seq, SessionId, StageId};
use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use super::pending::StagedBlock;
use super::{ReadError, Store, kept_back};
use crate::alloc::Run;
use crate::device::Done;

/// A stage that no entry has attached after this time is given back.
const STAGE_LIFE: Duration = Duration::from_secs(30);
/// Most stages that are known to wait for space.
const SHORT_MAX: usize = 4_096;

/// What is known of a stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StageInfo {
    /// crc32 of each block.
    pub crcs: Vec<u32>,
    /// Length in bytes.
    pub len: u64,
}

/// Bulk data that is written, or on its way to the device.
pub(super) struct Stage {
    pub(super) runs: Vec<Run>,
    pub(super) blocks: Arc<[StagedBlock]>,
    pub(super) written: Arc<AtomicBool>,
    pub(super) attached: bool,
    /// When it arrived, as of the last [`Store::poll`].
    pub(super) since: Mono,
}

impl Store {
    /// Writes bulk data, a whole number of blocks, to new blocks; an entry attaches it later.
    pub fn stage(&mut self, id: StageId, data: Bytes, done: Done<()>) {
        if self.stages.contains_key(&id) {
            return done(Ok(())); // a repeat; the entry that attaches it checks that it is written
        }
        let count = data.len() as u64 / BLOCK;
        if data.is_empty() || !(data.len() as u64).is_multiple_of(BLOCK) {
            return done(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a stage is whole blocks",
            )));
        }
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        // Bulk data does not wait for the log or the pending map, only for space.
        let cushion = self.space().cushion() / BLOCK;
        let (free, free_now, kept) = {
            let alloc = self.alloc.lock();
            let limited = self.host.limit(&alloc);
            (limited.free, limited.free_now, kept_back(&alloc))
        };
        let need = count + cushion + self.reserved + kept;
        if free_now < need {
            if free < need && !self.may_wait(id) {
                return done(Err(full()));
            }
            tracing::debug!(free, free_now, need, "bulk data waits for a checkpoint");
            if !self.is_returning() {
                self.want_blocks();
            }
            return done(Err(io::ErrorKind::WouldBlock.into()));
        }
        if !self.have_ready(count + self.reserved) {
            let kept = self.alloc.lock().kept() > 0;
            if kept || self.is_returning() || self.may_wait(id) {
                if !self.is_returning() {
                    self.want_blocks();
                }
                return done(Err(io::ErrorKind::WouldBlock.into()));
            }
            return done(Err(full()));
        }
        let Some(runs) = self.alloc.lock().allocate(count as u32) else {
            return done(Err(full()));
        };
        let places = runs
            .iter()
            .flat_map(|run| run.start..run.start + u64::from(run.len));
        let blocks: Arc<[StagedBlock]> = places
            .zip(data.chunks_exact(BLOCK as usize))
            .map(|(at, bytes)| StagedBlock {
                at,
                crc: crc32fast::hash(bytes),
            })
            .collect();
        let written = Arc::new(AtomicBool::new(false));
        let stage = Stage {
            runs: runs.clone(),
            blocks,
            written: written.clone(),
            attached: false,
            since: self.now,
        };
        self.stages.insert(id, stage);
        self.short.remove(&id);
        let state = Arc::new(Mutex::new((runs.len(), None::<io::Error>, Some(done))));
        let mut from = 0;
        for run in runs {
            let bytes = run.len as usize * BLOCK as usize;
            let (state, written) = (state.clone(), written.clone());
            let at = self.extents_at() + run.start * BLOCK;
            let finished: Done<()> = Box::new(move |result| {
                let mut state = state.lock();
                state.0 -= 1;
                if let Err(err) = result {
                    state.1 = Some(err);
                }
                if state.0 == 0
                    && let Some(done) = state.2.take()
                {
                    let outcome = state.1.take();
                    drop(state);
                    match outcome {
                        Some(err) => done(Err(err)),
                        None => {
                            written.store(true, Ordering::Release);
                            done(Ok(()));
                        }
                    }
                }
            });
            self.device
                .start_write(at, data.slice(from..from + bytes), finished);
            from += bytes;
        }
    }

    /// Whether a stage without space may find some later: it is refused once everything is applied that was logged
    /// before it came first. What comes meanwhile does not count, else it might wait for ever.
    fn may_wait(&mut self, id: StageId) -> bool {
        if self.short.len() >= SHORT_MAX {
            self.short.clear();
        }
        let head = self.head().seq;
        let upto = *self.short.entry(id).or_insert(head);
        let waits = self.may_free(upto);
        if !waits {
            self.short.remove(&id);
        }
        waits
    }

    /// What is known of a stage that is held and written.
    pub fn stage_info(&self, id: StageId) -> Option<StageInfo> {
        let stage = self
            .stages
            .get(&id)
            .filter(|stage| stage.written.load(Ordering::Acquire))?;
        Some(StageInfo {
            crcs: stage.blocks.iter().map(|block| block.crc).collect(),
            len: stage.blocks.len() as u64 * BLOCK,
        })
    }

    /// Whether a stage is held and written.
    pub fn has_stage(&self, id: StageId) -> bool {
        self.stages
            .get(&id)
            .is_some_and(|stage| stage.written.load(Ordering::Acquire))
    }

    /// The bytes of a stage that is held, for a peer that lacks it.
    ///
    /// # Errors
    /// If it is not held, or cannot be read.
    pub fn read_stage(&self, id: StageId) -> Result<Bytes, ReadError> {
        let stage = self.stages.get(&id).ok_or(ReadError::Corrupt)?;
        let mut out = vec![0; stage.blocks.len() * BLOCK as usize];
        for (block, part) in stage
            .blocks
            .iter()
            .zip(out.chunks_exact_mut(BLOCK as usize))
        {
            let at = self.extents_at() + block.at * BLOCK;
            self.device.read_at(at, part).map_err(ReadError::Io)?;
            if crc32fast::hash(part) != block.crc {
                return Err(ReadError::Corrupt);
            }
        }
        Ok(out.into())
    }

    /// The bytes that the entry `seq` attached, for a peer that lacks them. They are there as long as the log holds the
    /// entry (blocks that later entries freed are not used again before), unless space was short meanwhile: see
    /// [`Store::keep_log`].
    ///
    /// # Errors
    /// If the log no longer holds the entry, it attaches no such stage, or its blocks cannot be read.
    pub fn read_attached(&self, seq: Seq, id: StageId) -> Result<Bytes, ReadError> {
        let read = self.wal.read_entry(seq).map_err(|_| ReadError::Corrupt)?;
        let found = read.stages.iter().find(|(found, _)| *found == id);
        let (_, runs) = found.ok_or(ReadError::Corrupt)?;
        let crcs = read.entry.effects.iter().find_map(|effect| match effect {
            Effect::Attach { stage, crcs, .. } if *stage == id => Some(crcs),
            _ => None,
        });
        let mut out = Vec::new();
        for (start, len) in runs {
            let from = out.len();
            out.resize(from + *len as usize * BLOCK as usize, 0);
            let at = self.extents_at() + start * BLOCK;
            self.device
                .read_at(at, &mut out[from..])
                .map_err(ReadError::Io)?;
        }
        let sound = |crcs: &Vec<u32>| {
            let held = out.chunks_exact(BLOCK as usize).map(crc32fast::hash);
            held.eq(crcs.iter().copied())
        };
        match crcs {
            Some(crcs) if sound(crcs) => Ok(out.into()),
            _ => Err(ReadError::Corrupt),
        }
    }

    /// Gives a stage back that failed or will not be attached.
    pub fn drop_stage(&mut self, id: StageId) {
        if self.stages.get(&id).is_some_and(|stage| !stage.attached)
            && let Some(stage) = self.stages.remove(&id)
        {
            let mut alloc = self.alloc.lock();
            // A write may still be on its way: not before the next checkpoint.
            stage.runs.into_iter().for_each(|run| alloc.free_run(run));
        }
    }

    /// Gives back stages that no entry has attached for long: their change was refused, or its client has gone. One
    /// that is still wanted is sent again.
    pub(super) fn drop_old_stages(&mut self) {
        let now = self.now;
        self.drop_unattached(|_, stage| now.since(stage.since) >= STAGE_LIFE);
    }

    /// Gives back all stages of a session that no entry attaches.
    pub fn drop_stages(&mut self, session: SessionId) {
        self.short.retain(|id, _| id.session != session);
        self.drop_unattached(|id, _| id.session == session);
    }

    pub(super) fn drop_unattached(&mut self, which: impl Fn(&StageId, &Stage) -> bool) {
        let ids: Vec<StageId> = self
            .stages
            .iter()
            .filter(|(id, stage)| !stage.attached && which(id, stage))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().for_each(|id| self.drop_stage(id));
    }
}
