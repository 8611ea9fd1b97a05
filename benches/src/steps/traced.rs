//! The seams of daemon and client with spans around them: what lies behind is the real thing.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::entry::{Effect, Entry, Object, Space};
use mortar_protocol::env::Mono;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::Fop;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{InodeId, NodeId, Opening, Pos, Seq, SessionId, SetIndex, StageId};
use mortar_protocol::node::BrickTask;
use mortar_protocol::report::MemberRuns;
use mortar_protocol::transport::{Lost, Transport};
use mortar_protocol::view::{BrickInfo, View, VolumeInfo};
use mortar_server::brick::{
    AppendError, Asked, Executed, Extra, FlushDone, HeldStage, ReadAnswer, ReadDone, Rules,
    StageDone, StateAt, Storage,
};
use mortar_server::node::bricks::{OpenFailure, Stores};
use mortar_server::setlog::{LogGone, LogReader};

use crate::trace::{Span, Trace};

/// Something real, and where its spans go.
pub(crate) struct Traced<T> {
    inner: T,
    trace: Arc<Trace>,
}

impl<T> Traced<T> {
    /// Watches `inner`.
    pub(crate) fn new(inner: T, trace: &Arc<Trace>) -> Self {
        Self {
            inner,
            trace: Arc::clone(trace),
        }
    }
}

impl<T: Transport> Transport for Traced<T> {
    fn call(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: Frame,
    ) -> BoxFuture<'static, Result<Frame, Lost>> {
        let open = self.trace.request(&frame);
        let call = self.inner.call(node, addrs, frame);
        Box::pin(async move {
            let answer = call.await;
            drop(open);
            answer
        })
    }
}

impl Stores for Traced<Arc<dyn Stores>> {
    fn check(&self, brick: &BrickTask) -> Result<(), String> {
        self.inner.check(brick)
    }

    fn format(&self, brick: &BrickTask) -> Result<(), String> {
        self.inner.format(brick)
    }

    fn unformat(&self, brick: &BrickInfo) {
        self.inner.unformat(brick);
    }

    fn mark_deleted(&self, brick: &BrickInfo) -> Result<(), OpenFailure> {
        self.inner.mark_deleted(brick)
    }

    fn open(
        &self,
        volume: &VolumeInfo,
        set: SetIndex,
        brick: &BrickInfo,
    ) -> Result<Box<dyn Storage>, OpenFailure> {
        let storage = self.inner.open(volume, set, brick)?;
        Ok(Box::new(Traced::new(storage, &self.trace)))
    }
}

impl<R: Rules> Rules for Traced<R> {
    fn execute(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        fop: &Fop,
        body: &Bytes,
    ) -> Result<Executed, Fault> {
        let _open = self.trace.open(Span::Execute);
        self.inner.execute(state, asked, fop, body)
    }

    fn answer(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        fop: &Fop,
    ) -> Result<ReadAnswer, Fault> {
        let _open = self.trace.open(Span::Execute);
        self.inner.answer(state, asked, fop)
    }

    fn session_begin(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
    ) -> Result<Option<Executed>, Fault> {
        self.inner.session_begin(state, asked)
    }

    fn session_end(&self, state: &StateAt<'_>, asked: &Asked<'_>) -> Result<Executed, Fault> {
        self.inner.session_end(state, asked)
    }

    fn opening(&self, opening: Opening, sessions: Vec<SessionId>) -> Effect {
        self.inner.opening(opening, sessions)
    }

    fn release(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        released: &[InodeId],
    ) -> Result<Executed, Fault> {
        self.inner.release(state, asked, released)
    }
}

impl LogReader for Traced<Box<dyn Storage>> {
    fn entries_after(&self, pos: Pos, max: usize) -> Result<Vec<Arc<Entry>>, LogGone> {
        self.inner.entries_after(pos, max)
    }
}

impl Storage for Traced<Box<dyn Storage>> {
    fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), AppendError> {
        let _open = self.trace.open(Span::Append);
        self.inner.append(entries)
    }

    fn start_flush(&mut self, done: FlushDone) {
        let open = self.trace.open(Span::Flush);
        self.inner.start_flush(Box::new(move |result| {
            drop(open);
            done(result);
        }));
    }

    fn poll(&mut self, now: Mono, extra: Extra<'_>) -> Result<(), String> {
        let _open = self.trace.open(Span::Apply);
        self.inner.poll(now, extra)
    }

    fn get(&self, key: &[u8], at: Seq) -> Result<Option<Bytes>, Fault> {
        let _open = self.trace.open(Span::Records);
        self.inner.get(key, at)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        at: Seq,
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let _open = self.trace.open(Span::Records);
        self.inner.scan(from, to, at, f)
    }

    fn start_read(&self, range: (Object, u64, usize), at: Seq, idle: bool, done: ReadDone) {
        let open = self.trace.open(Span::ReadData);
        let done: ReadDone = Box::new(move |result| {
            drop(open);
            done(result);
        });
        self.inner.start_read(range, at, idle, done);
    }

    fn read_now(&self, object: Object, offset: u64, len: usize, at: Seq) -> Result<Bytes, Fault> {
        let _open = self.trace.open(Span::ReadData);
        self.inner.read_now(object, offset, len, at)
    }

    fn allocated(&self, object: Object, offset: u64, len: u64, at: Seq) -> Result<u64, Fault> {
        let _open = self.trace.open(Span::Records);
        self.inner.allocated(object, offset, len, at)
    }

    fn seek(&self, object: Object, offset: u64, hole: bool, at: Seq) -> Result<Option<u64>, Fault> {
        self.inner.seek(object, offset, hole, at)
    }

    fn head(&self) -> Pos {
        self.inner.head()
    }

    fn flushed(&self) -> Pos {
        self.inner.flushed()
    }

    fn applied(&self) -> Pos {
        self.inner.applied()
    }

    fn log_start(&self) -> Pos {
        self.inner.log_start()
    }

    fn on_flushed(&mut self, pos: Pos) {
        self.inner.on_flushed(pos);
    }

    fn cut_after(&mut self, pos: Pos) -> Result<(), String> {
        self.inner.cut_after(pos)
    }

    fn announce(&mut self, seq: Seq) {
        self.inner.announce(seq);
    }

    fn want_checkpoint(&mut self) {
        self.inner.want_checkpoint();
    }

    fn may_free(&self, upto: Seq) -> bool {
        self.inner.may_free(upto)
    }

    fn settle(&mut self, now: Mono, extra: Extra<'_>) -> Result<bool, String> {
        self.inner.settle(now, extra)
    }

    fn keep_log(&mut self, keep: bool, insist: bool) {
        self.inner.keep_log(keep, insist);
    }

    fn position_at(&self, seq: Seq) -> Option<Pos> {
        self.inner.position_at(seq)
    }

    fn poison(&mut self, reason: &str) {
        self.inner.poison(reason);
    }

    fn poisoned(&self) -> Option<String> {
        self.inner.poisoned()
    }

    fn stage(&mut self, id: StageId, data: Bytes, done: StageDone) {
        self.inner.stage(id, data, done);
    }

    fn stage_info(&self, id: StageId) -> Option<HeldStage> {
        self.inner.stage_info(id)
    }

    fn read_attached(&self, seq: Seq, id: StageId) -> Result<Bytes, Fault> {
        self.inner.read_attached(seq, id)
    }

    fn drop_stage(&mut self, id: StageId) {
        self.inner.drop_stage(id);
    }

    fn drop_stages(&mut self, session: SessionId) {
        self.inner.drop_stages(session);
    }

    fn space(&self) -> Space {
        self.inner.space()
    }

    fn pending(&self) -> (usize, usize) {
        self.inner.pending()
    }

    fn view(&self) -> Option<View> {
        self.inner.view()
    }

    fn member_runs(&self) -> Option<MemberRuns> {
        self.inner.member_runs()
    }

    fn damaged(&self) -> bool {
        self.inner.damaged()
    }

    fn save_member(&mut self, view: &View, member: &MemberRuns) -> Result<(), String> {
        self.inner.save_member(view, member)
    }
}
