//! The brick's storage seam on the real store.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::{Entry, Object, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::ids::{Pos, Seq, SessionId, StageId};
use mortar_protocol::report::MemberRuns;
use mortar_protocol::view::View;

use super::storage::{AppendError, Extra, FlushDone, HeldStage, ReadDone, StageDone, Storage};
use crate::setlog::{LogGone, LogReader};
use crate::store::{MAX_PENDING, ReadError, Store, StoreError};

fn fault(err: &StoreError) -> Fault {
    match err {
        StoreError::NoSpace => Fault::Refused(Errno::ENOSPC),
        StoreError::NoStage => Fault::NoStage,
        _ => Fault::Corrupt,
    }
}

fn read_fault(err: &ReadError) -> Fault {
    match err {
        ReadError::Corrupt | ReadError::Io(_) => Fault::Corrupt,
        ReadError::Metadata(err) => fault(err),
    }
}

impl LogReader for Store {
    fn entries_after(&self, pos: Pos, max: usize) -> Result<Vec<Arc<Entry>>, LogGone> {
        Self::entries_after(self, pos, max).map_err(|_| LogGone)
    }
}

impl Storage for Store {
    fn head(&self) -> Pos {
        Self::head(self)
    }

    fn flushed(&self) -> Pos {
        Self::flushed(self)
    }

    fn applied(&self) -> Pos {
        Self::applied(self)
    }

    fn log_start(&self) -> Pos {
        Self::log_start(self)
    }

    fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), AppendError> {
        Self::append(self, entries).map_err(|err| match err {
            StoreError::LogFull | StoreError::NoSpace => AppendError::Full,
            err => AppendError::Failed(err.to_string()),
        })
    }

    fn start_flush(&mut self, done: FlushDone) {
        Self::start_flush(self, done);
    }

    fn on_flushed(&mut self, pos: Pos) {
        Self::on_flushed(self, pos);
    }

    fn cut_after(&mut self, pos: Pos) -> Result<(), String> {
        Self::cut_after(self, pos).map_err(|err| err.to_string())
    }

    fn announce(&mut self, seq: Seq) {
        Self::announce(self, seq);
    }

    fn poll(&mut self, now: Mono, extra: Extra<'_>) -> Result<(), String> {
        Self::poll(self, now, extra).map_err(|err| err.to_string())
    }

    fn want_checkpoint(&mut self) {
        Self::want_checkpoint(self);
    }

    fn may_free(&self, upto: Seq) -> bool {
        Self::may_free(self, upto)
    }

    fn settle(&mut self, now: Mono, extra: Extra<'_>) -> Result<bool, String> {
        Self::go_on_settling(self, now, extra).map_err(|err| err.to_string())
    }

    fn keep_log(&mut self, keep: bool, insist: bool) {
        Self::keep_log(self, keep, insist);
    }

    fn position_at(&self, seq: Seq) -> Option<Pos> {
        Self::position_at(self, seq)
    }

    fn poison(&mut self, reason: &str) {
        Self::poison(self, reason);
    }

    fn poisoned(&self) -> Option<String> {
        Self::poisoned(self).map(str::to_owned)
    }

    fn stage(&mut self, id: StageId, data: Bytes, done: StageDone) {
        Self::stage(self, id, data, done);
    }

    fn stage_info(&self, id: StageId) -> Option<HeldStage> {
        let info = Self::stage_info(self, id)?;
        Some(HeldStage {
            crcs: info.crcs,
            len: info.len as usize,
        })
    }

    fn read_attached(&self, seq: Seq, id: StageId) -> Result<Bytes, Fault> {
        Self::read_attached(self, seq, id).map_err(|err| read_fault(&err))
    }

    fn drop_stage(&mut self, id: StageId) {
        Self::drop_stage(self, id);
    }

    fn drop_stages(&mut self, session: SessionId) {
        Self::drop_stages(self, session);
    }

    fn get(&self, key: &[u8], at: Seq) -> Result<Option<Bytes>, Fault> {
        Self::get(self, key, at).map_err(|err| fault(&err))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        at: Seq,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        Self::scan(self, from, to, at, f).map_err(|err| fault(&err))
    }

    fn start_read(&self, range: (Object, u64, usize), at: Seq, idle: bool, done: ReadDone) {
        let unreadable = Arc::clone(self.unreadable());
        let (object, offset, len) = range;
        let done = Box::new(move |result: Result<Bytes, ReadError>| {
            done(result.map_err(|err| {
                unreadable.met(object, offset, len, &err);
                read_fault(&err)
            }));
        });
        Self::start_read(self, range, at, idle, done);
    }

    fn read_now(&self, object: Object, offset: u64, len: usize, at: Seq) -> Result<Bytes, Fault> {
        Self::read_now(self, object, offset, len, at).map_err(|err| {
            self.unreadable().met(object, offset, len, &err);
            read_fault(&err)
        })
    }

    fn allocated(&self, object: Object, offset: u64, len: u64, at: Seq) -> Result<u64, Fault> {
        Self::allocated(self, object, offset, len, at).map_err(|err| fault(&err))
    }

    fn seek(&self, object: Object, offset: u64, hole: bool, at: Seq) -> Result<Option<u64>, Fault> {
        Self::seek(self, object, offset, hole, at).map_err(|err| fault(&err))
    }

    fn space(&self) -> Space {
        Self::space(self)
    }

    fn pending(&self) -> (usize, usize) {
        (self.pending_bytes(), MAX_PENDING)
    }

    fn view(&self) -> Option<View> {
        self.superblock().view.clone()
    }

    fn member_runs(&self) -> Option<MemberRuns> {
        let block = self.superblock();
        (!block.runs.is_empty()).then(|| MemberRuns {
            runs: block.runs.clone(),
            boot: block.boot,
            clean: block.clean,
        })
    }

    fn damaged(&self) -> bool {
        self.log_damaged()
    }

    fn save_member(&mut self, view: &View, member: &MemberRuns) -> Result<(), String> {
        self.write_superblock(|block| {
            block.view = Some(view.clone());
            block.runs = member.runs.clone();
            block.boot = member.boot;
            block.clean = member.clean;
        })
        .map_err(|err| err.to_string())
    }
}
