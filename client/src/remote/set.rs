//! One set: numbered requests to its primary, exactly once, through view changes, restarts and lost answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::Cred;
use mortar_protocol::env::Mono;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Answer, Call, Fop, InodeOp, Reply};
use mortar_protocol::ids::{BrickId, Epoch, InodeId, Mark, NodeId, Seq, SessionId, SetIndex};
use mortar_protocol::transport::Lost;
use mortar_protocol::view::View;
use mortar_protocol::watch::{Wait, fails_because, waits_for};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use super::ask::{Target, Way};
use super::book::Book;
use super::hedge::Hedge;
use super::hub::Hub;
use super::marks::{Marks, Told};
use super::numbers::Numbers;
use super::tries::Tries;

/// Time for one try, after which it is repeated.
const TRY: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug)]
pub struct Answered {
    /// The reply.
    pub reply: Reply,
    /// Its data.
    pub body: Bytes,
}

/// How a request is made.
#[derive(Clone, Default, Debug)]
pub struct How {
    /// Who asks.
    pub cred: Cred,
    /// Answer only once it is flushed on every member.
    pub durable: bool,
}

/// What a state dump shows of a set.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct SetState {
    /// Its place in the volume.
    pub index: u32,
    /// Epoch of the view known.
    pub epoch: Option<u64>,
    /// The brick that requests go to.
    pub primary: Option<String>,
    /// Where that is.
    pub addresses: Vec<String>,
    /// Whether the session has begun there.
    pub knows_session: bool,
    /// All requests below this number are answered.
    pub answered_below: u64,
    /// Whether calls have waited in vain since the last answer.
    pub away: bool,
    /// Age of the last answer.
    pub heard_ms_ago: u64,
    /// Reads that were sent to another member too, because the first took long.
    pub reads_sent_twice: u64,
}

/// A set of the volume.
pub struct Set {
    index: SetIndex,
    pub(super) hub: Arc<Hub>,
    pub(super) inner: Mutex<Inner>,
    /// Another view or address is known.
    pub(super) changed: Notify,
    /// There is room for another number, or another session.
    pub(super) room: Notify,
    /// Held while the session is begun on this set.
    pub(super) turn: tokio::sync::Mutex<()>,
}

pub(super) struct Inner {
    pub(super) view: Option<View>,
    pub(super) target: Option<Target>,
    pub(super) reads: Hedge,
    pub(super) session: SessionId,
    pub(super) begun: bool,
    pub(super) numbers: Numbers,
    marks: Marks,
    book: Book,
    /// Calls have waited in vain, and no answer has come since.
    pub(super) away: bool,
    /// When the last answer came.
    pub(super) heard: Mono,
}

/// A node and its bricks that take stages.
pub(super) struct StageTarget {
    pub(super) node: NodeId,
    pub(super) addrs: Arc<[SocketAddr]>,
    pub(super) bricks: Vec<BrickId>,
}

/// A number in use; answered or given up when dropped.
struct Ticket<'a> {
    set: &'a Set,
    session: SessionId,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut inner = self.set.inner.lock();
        if inner.session == self.session && inner.numbers.done(self.number) {
            drop(inner);
            self.set.room.notify_waiters();
        }
    }
}

impl Inner {
    /// Follows the volume's session: numbers belong to a session.
    pub(super) fn follow(&mut self, session: SessionId) {
        if self.session != session {
            self.session = session;
            self.begun = false;
            self.numbers = Numbers::new();
        }
    }
}

impl Set {
    pub(super) fn new(index: SetIndex, hub: Arc<Hub>) -> Self {
        Self {
            index,
            inner: Mutex::new(Inner {
                view: None,
                target: None,
                reads: Hedge::default(),
                session: hub.session(),
                begun: false,
                numbers: Numbers::new(),
                marks: Marks::default(),
                book: Book::default(),
                away: true,
                heard: hub.env.now(),
            }),
            hub,
            changed: Notify::new(),
            room: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Its place in the volume.
    pub fn index(&self) -> SetIndex {
        self.index
    }

    /// A request for this set, to be given to [`Self::run`].
    pub fn request(&self, fop: Fop, how: How) -> Call {
        Call {
            brick: BrickId::default(),
            epoch: Epoch::default(),
            session: SessionId::default(),
            number: 0,
            answered_below: 0,
            repeat: false,
            after: 0,
            cred: how.cred,
            durable: how.durable,
            fop,
        }
    }

    /// Does a request. It may be run again after a fault (under a new number).
    ///
    /// # Errors
    /// A fault that the caller must act on: refused, intent, id taken, stage missing, lost, corrupt, not authorised.
    /// ENOTCONN if no server answers; EIO if it is not known whether the request was done, because the session has
    /// ended meanwhile.
    pub async fn run(&self, call: &mut Call, body: &Bytes) -> Result<Answered, Fault> {
        let started = self.hub.env.now();
        let renews = matches!(call.fop, Fop::Renew { .. });
        let _at_work = (!renews).then(|| self.hub.at_work());
        call.repeat = false;
        loop {
            let ticket = self.ticket(call, started).await?;
            if let Some(fault) = is_late(call) {
                return Err(fault);
            }
            let outcome = self.drive(call, body, started).await;
            drop(ticket);
            tracing::trace!(
                set = self.index.0,
                number = call.number,
                fop = ?call.fop,
                took = ?self.hub.env.now().since(started),
                outcome = ?outcome.as_ref().map(|answered| &answered.reply),
                "asked"
            );
            match outcome {
                Err(Fault::UnknownSession) => self.session_refused(call, started).await?,
                outcome => return outcome,
            }
        }
    }

    /// Fills in session and number, once the set knows the session and a number is free.
    async fn ticket(&self, call: &mut Call, started: Mono) -> Result<Option<Ticket<'_>>, Fault> {
        let mut tries = Tries::new(started);
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            let begun = {
                let mut inner = self.inner.lock();
                inner.follow(self.hub.session());
                call.session = inner.session;
                call.number = 0;
                if inner.begun {
                    if call.fop.is_read() {
                        return Ok(None);
                    }
                    if let Some(number) = inner.numbers.take() {
                        call.number = number;
                        return Ok(Some(Ticket {
                            set: self,
                            session: inner.session,
                            number,
                        }));
                    }
                    room.as_mut().enable();
                }
                inner.begun
            };
            if begun {
                // The others end in time, with an answer or without.
                waits_for(Wait::Room(self.index.0));
                room.await;
            } else {
                self.begin(&mut tries).await?;
            }
        }
    }

    /// Sends a request until somebody answers it.
    pub(super) async fn drive(
        &self,
        call: &mut Call,
        body: &Bytes,
        started: Mono,
    ) -> Result<Answered, Fault> {
        let mut tries = Tries::new(started);
        // Members that could not read a block.
        let mut corrupt: Vec<BrickId> = Vec::new();
        loop {
            let Some(mut way) = self.aim(call, &corrupt) else {
                self.pause(&mut tries, false).await?;
                continue;
            };
            let time = self.left(&tries, true).min(TRY);
            let frame = match self.ask(call, body, &mut way, time).await? {
                Some(Ok(frame)) => frame,
                Some(Err(Lost::NotSent | Lost::Rejected)) => {
                    self.pause(&mut tries, true).await?;
                    continue;
                }
                Some(Err(Lost::Unknown)) | None => {
                    call.repeat = true;
                    self.pause(&mut tries, true).await?;
                    continue;
                }
            };
            let answer = frame.message::<Answer>().map_err(|error| {
                tracing::warn!(set = self.index.0, %error, "an answer is not one");
                Fault::Protocol
            })?;
            match answer.result {
                Ok(reply) => {
                    self.heard(&call.fop, &way, answer.mark, answer.flushed);
                    return Ok(Answered {
                        reply,
                        body: frame.body,
                    });
                }
                Err(Fault::NotPrimary(Some(view))) if self.offer((*view).clone()) => {}
                Err(
                    Fault::NotPrimary(_)
                    | Fault::NotServing
                    | Fault::UnknownBrick
                    | Fault::StaleView(_),
                ) => self.pause(&mut tries, false).await?,
                Err(Fault::Corrupt) if call.fop.is_read() => {
                    corrupt.push(way.to.brick);
                    let other = self.aim(call, &corrupt).map(|way| way.to.brick);
                    self.unreadable(&call.fop, way.to.brick, other)?;
                }
                Err(fault) => {
                    self.heard(&Fop::StatFs, &way, answer.mark, answer.flushed);
                    if matches!(fault.errno(), Errno::EIO | Errno::ENOSPC) {
                        fails_because(|| {
                            let (set, brick) = (self.index.0, way.to.brick);
                            format!("refused by set {set}, brick {brick}: {fault:?}")
                        });
                    }
                    return Err(fault);
                }
            }
        }
    }

    /// A brick could not read what `fop` asks for. Another member is asked, if there is one.
    fn unreadable(&self, fop: &Fop, brick: BrickId, other: Option<BrickId>) -> Result<(), Fault> {
        let set = self.index.0;
        let what = match fop {
            Fop::Read {
                id,
                shard,
                offset,
                len,
                ..
            } => format!(
                "{len} bytes at offset {offset} of shard {shard} of gfid {}",
                id.gfid_half()
            ),
            other => format!("what {} asks for", other.name()),
        };
        let Some(other) = other else {
            fails_because(|| {
                format!("no member of set {set} can read {what}; brick {brick} was asked last")
            });
            return Err(Fault::Corrupt);
        };
        let told = format!("brick {brick} of set {set} cannot read {what}; brick {other} is asked");
        let inode = match fop {
            Fop::Read { id, .. } | Fop::Open { id, .. } | Fop::GetAttr { id } => *id,
            _ => InodeId(0),
        };
        self.hub.remark(inode, &told);
        Ok(())
    }

    /// It answered something that is no sign of its state.
    pub(super) fn is_alive(&self) {
        let now = self.hub.env.now();
        self.inner.lock().heard = now;
    }

    fn heard(&self, fop: &Fop, way: &Way, mark: Mark, flushed: Seq) {
        let now = self.hub.env.now();
        let mut inner = self.inner.lock();
        inner.heard = now;
        inner.away = false;
        Self::answered(&mut inner, way, now);
        inner.marks.note(mark, flushed, told(fop));
    }

    /// Has everybody who waits look again.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Takes up a view if it is newer than the known one; says whether it was.
    pub(super) fn offer(&self, view: View) -> bool {
        let mut inner = self.inner.lock();
        let newer = inner.view.as_ref().is_none_or(|known| {
            view.epoch > known.epoch
                || (view.epoch == known.epoch && view.effective && !known.effective)
        });
        if newer {
            inner.view = Some(view);
        }
        self.retarget(&mut inner);
        drop(inner);
        if newer {
            self.changed.notify_waiters();
        }
        newer
    }

    /// Takes up new addresses.
    pub(super) fn refresh(&self) {
        self.retarget(&mut self.inner.lock());
    }

    /// What a state dump shows of it.
    pub fn state(&self) -> SetState {
        let inner = self.inner.lock();
        let now = self.hub.env.now();
        SetState {
            index: self.index.0,
            epoch: inner.view.as_ref().map(|view| view.epoch.0),
            primary: inner.target.as_ref().map(|to| to.brick.to_string()),
            addresses: inner
                .target
                .as_ref()
                .map(|to| to.addrs.iter().map(SocketAddr::to_string).collect())
                .unwrap_or_default(),
            knows_session: inner.begun,
            answered_below: inner.numbers.answered_below(),
            away: inner.away,
            heard_ms_ago: now.since(inner.heard).as_millis() as u64,
            reads_sent_twice: inner.reads.count(),
        }
    }

    /// The nodes that take stages: all data-keeping members.
    pub(super) fn stage_targets(&self) -> Vec<StageTarget> {
        let inner = self.inner.lock();
        let mut targets: Vec<StageTarget> = Vec::new();
        let members = inner.view.iter().flat_map(|view| &view.members);
        for member in members.filter(|member| member.keeps_data) {
            if let Some(target) = targets.iter_mut().find(|target| target.node == member.node) {
                target.bricks.push(member.brick);
            } else if let Some(addrs) = self.hub.addrs(member.node) {
                targets.push(StageTarget {
                    node: member.node,
                    addrs,
                    bricks: vec![member.brick],
                });
            }
        }
        targets
    }

    /// A look at the marks.
    pub fn marks<T>(&self, look: impl FnOnce(&mut Marks) -> T) -> T {
        look(&mut self.inner.lock().marks)
    }

    /// A look at the locks held here, with the session.
    pub(super) fn book<T>(&self, look: impl FnOnce(&mut Book, SessionId) -> T) -> T {
        look(&mut self.inner.lock().book, self.hub.session())
    }

    /// Waits until everything this client made or was shown is flushed: of `file`'s part here, and of names.
    ///
    /// # Errors
    /// EIO (once) if some of it is lost; else as [`Self::run`].
    pub async fn sync(&self, file: Option<InodeId>, names: bool) -> Result<(), Fault> {
        let (own, named) = self.marks(|marks| {
            let own = file.and_then(|id| marks.of_file(id));
            (own, if names { marks.of_names() } else { None })
        });
        // One request covers both, unless they are of different openings.
        let mut wanted = [own, named];
        if let [Some(a), Some(b)] = wanted
            && a.opening == b.opening
        {
            wanted = [Some(a.max(b)), None];
        }
        let mut outcome = Ok(());
        for upto in wanted.into_iter().flatten() {
            let mut call = self.request(Fop::Sync { upto }, How::default());
            let lost = match self.run(&mut call, &Bytes::new()).await {
                Ok(_) => false,
                Err(Fault::Lost(opening)) => {
                    tracing::warn!(
                        set = self.index.0,
                        ?upto,
                        ?opening,
                        "unflushed changes are lost"
                    );
                    fails_because(|| {
                        format!(
                            "set {} has restarted and lost changes that were not flushed",
                            self.index.0
                        )
                    });
                    outcome = Err(Fault::Refused(Errno::EIO));
                    true
                }
                Err(fault) => return Err(fault),
            };
            self.marks(|marks| {
                marks.synced(upto, lost);
                if let Some(id) = file {
                    marks.synced_file(id, upto);
                }
            });
        }
        outcome
    }
}

fn told(fop: &Fop) -> Told {
    match fop {
        Fop::Change(change) => Told::File(change.id),
        Fop::Lookup { .. }
        | Fop::ReadDir { .. }
        | Fop::Commit { .. }
        | Fop::Prepare { .. }
        | Fop::Decide { .. }
        | Fop::Finish { .. } => Told::Names,
        _ => Told::Other,
    }
}

/// What a request that builds on an earlier one of its session fails with, if that session has ended since: its stages
/// went with it, and so may what was prepared for its transaction.
fn is_late(call: &Call) -> Option<Fault> {
    let attaches = |op: &InodeOp| match op {
        InodeOp::Attach { stage, .. } => stage.session != call.session,
        _ => false,
    };
    match &call.fop {
        Fop::Change(change) => change.ops.iter().any(attaches).then_some(Fault::NoStage),
        Fop::Prepare { txn, .. } | Fop::Decide { txn, .. } => {
            (txn.session != call.session).then_some(Fault::Refused(Errno::EAGAIN))
        }
        _ => None,
    }
}
