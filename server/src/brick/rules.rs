//! What file operations mean, as the brick sees it: state in, effects and replies out.

use bytes::Bytes;
use mortar_protocol::attr::{Cred, Time};
use mortar_protocol::entry::{Effect, Object, Space};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Fop, Reply};
use mortar_protocol::ids::{InodeId, Opening, Seq, SessionId};
use mortar_protocol::report::SetShape;

use super::storage::Storage;

/// A brick's state as of an entry.
pub struct StateAt<'a> {
    /// The store.
    pub storage: &'a dyn Storage,
    /// The entry.
    pub at: Seq,
    /// Least space of all members.
    pub space: Space,
}

/// Who asks, when, and what the brick knows of its volume.
pub struct Asked<'a> {
    /// The session.
    pub session: SessionId,
    /// uid that the session is bound to (0: none).
    pub uid: u32,
    /// Whom the request names.
    pub cred: &'a Cred,
    /// Wall-clock time.
    pub wall: Time,
    /// Other live sessions.
    pub others: &'a [SessionId],
    /// Opening number of the set.
    pub opening: Opening,
    /// The volume.
    pub shape: &'a SetShape,
}

/// A change, decided.
pub struct Executed {
    /// What it changes.
    pub effects: Vec<Effect>,
    /// Bytes its writes refer to.
    pub body: Bytes,
    /// What the client is told once it is committed.
    pub reply: Reply,
}

/// A read, answered.
pub enum ReadAnswer {
    /// At once; the bytes are the reply's body.
    Reply(Reply, Bytes),
    /// With data to be read.
    Data {
        /// From where.
        object: Object,
        /// Offset in it.
        offset: u64,
        /// Length; the data is the reply's body.
        len: usize,
        /// The reply.
        reply: Reply,
    },
}

/// The meaning of file operations.
pub trait Rules: Send + Sync {
    /// Decides a change.
    ///
    /// # Errors
    /// Why it is refused.
    fn execute(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        fop: &Fop,
        body: &Bytes,
    ) -> Result<Executed, Fault>;

    /// Answers a read.
    ///
    /// # Errors
    /// Why it is refused.
    fn answer(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        fop: &Fop,
    ) -> Result<ReadAnswer, Fault>;

    /// What must be there before the first session runs anything (the root directory), if it is not.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn session_begin(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
    ) -> Result<Option<Executed>, Fault>;

    /// What the end of a session changes.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn session_end(&self, state: &StateAt<'_>, asked: &Asked<'_>) -> Result<Executed, Fault>;

    /// What the entry of a view adds whose opening may have lost something, while these sessions are alive.
    fn opening(&self, opening: Opening, sessions: Vec<SessionId>) -> Effect;

    /// What follows from a session's word that it does not use these orphans.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn release(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        released: &[InodeId],
    ) -> Result<Executed, Fault>;
}
