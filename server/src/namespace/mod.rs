//! File operations as pure functions from state to effects.
//!
//! [`execute`] decides a numbered operation on the primary: it reads the newest [`State`] and answers with the effects
//! that every member applies. [`answer`] serves a read from any member's state as of its commit position. Neither has
//! a clock, randomness or a memory of its own; the same arguments give the same result.

mod access;
mod acl;
mod change;
mod claims;
mod data;
mod locks;
mod lookup;
#[cfg(test)]
mod memory;
mod orphans;
mod parts;
mod readdir;
pub mod records;
#[cfg(test)]
mod tests;
mod txn;
mod working;
mod xattr;

use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::attr::{Cred, FileKind, Time};
use mortar_protocol::entry::{Effect, Object, Space};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Fop, Reply};
use mortar_protocol::ids::{Gfid, InodeId, Opening, SessionId, SetIndex, StageId};
use mortar_protocol::placement::Layout;

pub use claims::opening;
pub use orphans::release;
use records::{Counters, Inode};
use working::Working;

/// What file operations read. Every method answers as of one position in the set log.
pub trait State {
    /// A record.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault>;
    /// Records with `from <= key < to`, in order, until `f` breaks.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault>;
    /// Blocks of 4 KiB (data and unwritten) in a block-aligned range; the range may end at `u64::MAX`.
    fn allocated(&self, object: Object, offset: u64, len: u64) -> Result<u64, Fault>;
    /// Next data (or hole: also unwritten blocks) at or after `offset`; beyond the last block all is hole.
    fn seek(&self, object: Object, offset: u64, hole: bool) -> Result<Option<u64>, Fault>;
    /// Bytes of an object, at most 1 MiB; holes read as zeros.
    fn read_now(&self, object: Object, offset: u64, len: usize) -> Result<Bytes, Fault>;
    /// crc32 of each block of a stage, if it is held whole.
    fn stage(&self, id: StageId) -> Option<Vec<u32>>;
    /// The least space of all members.
    fn space(&self) -> Space;
}

/// Who asks, when, and what the brick was told of its volume.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The asking session.
    pub session: SessionId,
    /// uid that the session's certificate binds it to; 0: the client is trusted to have checked permissions.
    pub uid_bound: u32,
    /// Who asks. For a bound session the brick has put its uid and the groups it vouches for here.
    pub cred: &'a Cred,
    /// Wall clock of this member.
    pub time: Time,
    /// All sessions alive on this set.
    pub sessions: &'a [SessionId],
    /// Which set owns which slots.
    pub layout: &'a Layout,
    /// This set.
    pub own: SetIndex,
    /// Size of a shard, in bytes.
    pub shard_size: u64,
    /// Opening number of this set.
    pub opening: Opening,
    /// `storage.reserve`, in percent.
    pub reserve_percent: u8,
}

impl Context<'_> {
    /// `storage.reserve` in bytes.
    fn reserve(&self, space: &Space) -> u64 {
        space.total / 100 * u64::from(self.reserve_percent.min(100))
    }

    /// Bytes that new data leaves free.
    fn kept_free(&self, space: &Space) -> u64 {
        space.cushion().max(self.reserve(space))
    }
}

/// What a numbered operation does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Executed {
    /// Changes, in order; none if there is nothing to change.
    pub effects: Vec<Effect>,
    /// The bytes that the effects refer to.
    pub body: Bytes,
    /// Answer.
    pub reply: Reply,
}

impl Executed {
    /// A reply without effects.
    fn nothing(reply: Reply) -> Self {
        Self {
            effects: Vec::new(),
            body: Bytes::new(),
            reply,
        }
    }
}

/// How a read is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadAnswer {
    /// With this.
    Reply(Reply),
    /// With this and these bytes of an object, exactly `len` of them (possibly none), in the body.
    Data {
        /// Object.
        object: Object,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
        /// Reply.
        reply: Reply,
    },
}

/// Decides a numbered operation. `body` holds the bytes of its writes.
///
/// # Errors
/// The fault to answer. Nothing is changed then.
pub fn execute(
    state: &dyn State,
    cx: &Context<'_>,
    fop: &Fop,
    body: &Bytes,
) -> Result<Executed, Fault> {
    match fop {
        Fop::SessionBegin => Ok(Executed::nothing(Reply::Done)),
        Fop::SessionEnd => orphans::end_session(state, cx),
        Fop::Commit { parts, time } => {
            let mut work = Working::new(state, cx, *time);
            work.check_access = true;
            parts::apply(&mut work, parts)?;
            let reply = parts::reply(&mut work)?;
            work.finish(reply)
        }
        Fop::Change(change) => change::execute(state, cx, change, body),
        Fop::Prepare {
            txn,
            decider,
            parts,
            time,
        } => txn::prepare(state, cx, *txn, *decider, parts, *time),
        Fop::Decide {
            txn,
            sets,
            parts,
            time,
        } => txn::decide(state, cx, *txn, sets, parts, *time),
        Fop::Finish { txn } => txn::finish(state, cx, *txn),
        Fop::Abort { txn } => txn::abort(state, cx, *txn),
        Fop::Forget { txn } => txn::forget(state, cx, *txn),
        Fop::Lock(request) => locks::execute(state, cx, request),
        Fop::Claim { opening, locks } => claims::execute(state, cx, *opening, locks),
        _ => Err(Fault::Protocol),
    }
}

/// Answers a read. [`Fop::Sync`] is not one for this layer; for [`Fop::LockWait`] it tells how the request stands now.
/// [`Fop::Renew`] is answered here, and what it releases is a change of its own: [`release`].
///
/// # Errors
/// The fault to answer.
pub fn answer(state: &dyn State, cx: &Context<'_>, fop: &Fop) -> Result<ReadAnswer, Fault> {
    let reply = match fop {
        Fop::Lookup { parent, name } => lookup::lookup(state, cx, *parent, name)?,
        Fop::GetAttr { id } => lookup::getattr(state, cx, *id)?,
        Fop::DirPart { dir } => lookup::dir_part(state, cx, *dir)?,
        Fop::Links { id } => lookup::links(state, cx, *id)?,
        Fop::ReadDir {
            dir,
            after,
            max,
            plus,
        } => readdir::readdir(state, cx, *dir, *after, *max, *plus)?,
        Fop::ReadLink { id } => lookup::readlink(state, cx, *id)?,
        Fop::GetXattr { id, name } => xattr::get(state, cx, *id, name)?,
        Fop::ListXattr { id } => xattr::list(state, cx, *id)?,
        Fop::Read {
            id,
            shard,
            offset,
            len,
            cut,
        } => return data::read(state, cx, *id, *shard, *offset, *len, *cut),
        Fop::Seek {
            id,
            shard,
            offset,
            hole,
        } => data::seek(state, cx, *id, *shard, *offset, *hole)?,
        Fop::Open { id, known, data } => return data::open(state, cx, *id, *known, *data),
        Fop::Blocks { id, size } => {
            let work = lookup::reading(state, cx);
            Reply::Blocks(change::blocks_beyond(&work, *id, *size)?)
        }
        Fop::StatFs => statfs(state, cx)?,
        Fop::LockTest(request) => locks::test(state, cx, request)?,
        Fop::LockWait(request) => locks::wait(state, cx, request)?,
        Fop::TxnState { txn } => Reply::Txn(txn::status(state, *txn)?),
        Fop::Renew { .. } => orphans::renew(state, cx)?,
        _ => return Err(Fault::Protocol),
    };
    Ok(ReadAnswer::Reply(reply))
}

fn statfs(state: &dyn State, cx: &Context<'_>) -> Result<Reply, Fault> {
    let space = state.space();
    let counters = match state.get(records::COUNTERS_KEY)? {
        Some(value) => records::decode::<Counters>(&value)?,
        None => Counters::default(),
    };
    Ok(Reply::StatFs {
        total: space.total,
        free: space.free,
        avail: space.free.saturating_sub(cx.kept_free(&space)),
        inodes: counters.inodes,
    })
}

/// What makes the root directory, on the set that owns slot 0; nothing if it is there.
///
/// # Errors
/// If the state cannot be read.
pub fn root(state: &dyn State, cx: &Context<'_>) -> Result<Option<Executed>, Fault> {
    if cx.layout.inode_set(InodeId::ROOT) != cx.own
        || state.get(&records::inode_key(InodeId::ROOT))?.is_some()
    {
        return Ok(None);
    }
    let mut work = Working::new(state, cx, cx.time);
    let inode = Inode::new(Gfid::ROOT, FileKind::Dir, 0o755, cx.time);
    work.insert_inode(InodeId::ROOT, inode)?;
    work.finish(Reply::Done).map(Some)
}
