//! What a brick needs of its store. The seam lets the brick's own tests run over memory.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::entry::{Entry, Object, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::error::Fault;
use mortar_protocol::ids::{Pos, Seq, SessionId, StageId};
use mortar_protocol::report::MemberRuns;
use mortar_protocol::view::View;

use crate::setlog::LogReader;

/// The newest state, including entries that are not committed.
pub const NEWEST: Seq = Seq(u64::MAX);

/// What stages hold: crc32 of each block of 4 KiB, and the length in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldStage {
    /// crc32 of each block.
    pub crcs: Vec<u32>,
    /// Length in bytes.
    pub len: usize,
}

/// Why entries were not appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendError {
    /// No room until a checkpoint.
    Full,
    /// The brick is poisoned, and why.
    Failed(String),
}

/// Called with the outcome of a flush: the newest entry it covers.
pub type FlushDone = Box<dyn FnOnce(io::Result<Pos>) + Send>;
/// Called with the bytes of a read, or why they cannot be had ([`Fault::Corrupt`]).
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, Fault>) + Send>;
/// Called once a stage is held.
pub type StageDone = Box<dyn FnOnce(io::Result<()>) + Send>;
/// Records to store (`None`: to remove) together with all entries up to a place.
pub type Extra<'a> = &'a mut dyn FnMut(Seq) -> Vec<(Bytes, Option<Bytes>)>;

/// The store of one brick. An error of a change is the reason why the brick is poisoned.
pub trait Storage: LogReader + Send {
    /// Newest entry appended.
    fn head(&self) -> Pos;
    /// Newest entry flushed.
    fn flushed(&self) -> Pos;
    /// Newest entry in the tree.
    fn applied(&self) -> Pos;
    /// Oldest entry behind which the log still has everything.
    fn log_start(&self) -> Pos;
    /// Appends entries; all their stages are held.
    ///
    /// # Errors
    /// If there is no room at the moment, or the medium failed; nothing is appended then.
    fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), AppendError>;
    /// Flushes everything appended so far.
    fn start_flush(&mut self, done: FlushDone);
    /// The flush that covers `pos` has ended well.
    fn on_flushed(&mut self, pos: Pos);
    /// Drops the entries behind `pos`.
    ///
    /// # Errors
    /// If the medium failed or they are applied.
    fn cut_after(&mut self, pos: Pos) -> Result<(), String>;
    /// Entries up to here may be applied.
    fn announce(&mut self, seq: Seq);
    /// Applies what is due, with `extra` records for each batch; starts checkpoints that are due.
    ///
    /// # Errors
    /// If the medium or the tree failed.
    fn poll(&mut self, now: Mono, extra: Extra<'_>) -> Result<(), String>;
    /// Starts a checkpoint now, unless one runs.
    fn want_checkpoint(&mut self);
    /// Whether entries up to `upto` wait to be applied that may give back space then: removals, and data in the place of
    /// blocks that a file has.
    fn may_free(&self, upto: Seq) -> bool;
    /// For an orderly stop, after which nothing is appended: applies what may be applied and has a checkpoint hold it.
    /// True once that is done; call it again until then.
    ///
    /// # Errors
    /// If the medium or the tree failed.
    fn settle(&mut self, now: Mono, extra: Extra<'_>) -> Result<bool, String>;
    /// Whether entries stay in the log that a checkpoint holds, as far as there is room: somebody may lack them. With
    /// `insist`, changes rather wait for space than that their data is given up.
    fn keep_log(&mut self, keep: bool, insist: bool);
    /// Position of the entry at `seq`, if the log holds it or begins right behind it.
    fn position_at(&self, seq: Seq) -> Option<Pos>;
    /// The medium has failed: nothing is changed or checkpointed any more. What a failed flush was to cover may never
    /// reach the medium, also if a later flush succeeds.
    fn poison(&mut self, reason: &str);
    /// Why the brick can serve no more, if so.
    fn poisoned(&self) -> Option<String>;

    /// Keeps bulk data until an entry attaches it.
    fn stage(&mut self, id: StageId, data: Bytes, done: StageDone);
    /// A stage that is held.
    fn stage_info(&self, id: StageId) -> Option<HeldStage>;
    /// The bytes that an entry of the log attached, whatever has overwritten them since.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if the log no longer holds the entry, or they cannot be read.
    fn read_attached(&self, seq: Seq, id: StageId) -> Result<Bytes, Fault>;
    /// Forgets a stage, unless an entry attaches it.
    fn drop_stage(&mut self, id: StageId);
    /// Forgets the stages of a session that has ended.
    fn drop_stages(&mut self, session: SessionId);

    /// A record as of an entry.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn get(&self, key: &[u8], at: Seq) -> Result<Option<Bytes>, Fault>;
    /// The records of a range of keys as of an entry, in order.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        at: Seq,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault>;
    /// Reads a range (object, offset, length) as of an entry. What is small and cached is there before this returns;
    /// so may be what is not cached, if the brick is `idle`: nothing else waits meanwhile.
    fn start_read(&self, range: (Object, u64, usize), at: Seq, idle: bool, done: ReadDone);
    /// Reads data as of an entry, blocking.
    ///
    /// # Errors
    /// [`Fault::Corrupt`].
    fn read_now(&self, object: Object, offset: u64, len: usize, at: Seq) -> Result<Bytes, Fault>;
    /// Blocks of 4 KiB allocated in a range.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn allocated(&self, object: Object, offset: u64, len: u64, at: Seq) -> Result<u64, Fault>;
    /// Next data or hole.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn seek(&self, object: Object, offset: u64, hole: bool, at: Seq) -> Result<Option<u64>, Fault>;
    /// Space.
    fn space(&self) -> Space;
    /// Bytes of the pending map in use, and its bound.
    fn pending(&self) -> (usize, usize);

    /// Last view the superblock names.
    fn view(&self) -> Option<View>;
    /// The runs that last were members.
    fn member_runs(&self) -> Option<MemberRuns>;
    /// Whether the log is damaged below its flushed mark.
    fn damaged(&self) -> bool;
    /// Saves the view and the runs that are members, durably.
    ///
    /// # Errors
    /// If the medium failed.
    fn save_member(&mut self, view: &View, member: &MemberRuns) -> Result<(), String>;
}
