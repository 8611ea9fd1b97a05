//! The meaning of file operations on real bricks: the namespace.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::attr::Cred;
use mortar_protocol::entry::{Effect, Object, Space};
use mortar_protocol::error::Fault;
use mortar_protocol::fop::Fop;
use mortar_protocol::ids::{InodeId, Opening, SessionId, StageId};

use super::rules::{Asked, Executed, ReadAnswer, Rules, StateAt};
use crate::namespace::{self, Context, State};

/// Group of a bound user of whom this machine knows nothing else.
const NO_GROUP: u32 = 65_534;

/// The namespace as the rules of bricks.
#[derive(Debug)]
pub struct Namespace {
    /// The daemon's own user and groups: with root the only ones that get certificates.
    own: Cred,
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Namespace {
    /// For a daemon that runs as the current user.
    pub fn new() -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        Self {
            own: Cred {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                groups: groups.into_iter().map(|group| group.as_raw()).collect(),
            },
        }
    }

    /// As whom a request runs: a bound session's as its user, with groups that this machine knows the user has.
    fn cred(&self, uid: u32, named: &Cred) -> Cred {
        if uid == 0 {
            return named.clone();
        }
        if uid != self.own.uid {
            return Cred {
                uid,
                gid: NO_GROUP,
                groups: Vec::new(),
            };
        }
        let known: BTreeSet<u32> = self.own.groups.iter().copied().collect();
        let has = |gid: u32| gid == self.own.gid || known.contains(&gid);
        Cred {
            uid,
            gid: if has(named.gid) {
                named.gid
            } else {
                self.own.gid
            },
            groups: self.own.groups.clone(),
        }
    }

    fn with<T>(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        f: impl FnOnce(&dyn State, &Context<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let cred = self.cred(asked.uid, asked.cred);
        let mut sessions: Vec<SessionId> = asked.others.to_vec();
        sessions.push(asked.session);
        let cx = Context {
            session: asked.session,
            uid_bound: asked.uid,
            cred: &cred,
            time: asked.wall,
            sessions: &sessions,
            layout: &asked.shape.layout,
            own: asked.shape.index,
            shard_size: asked.shape.shard_size,
            opening: asked.opening,
            reserve_percent: asked.shape.reserve_percent,
        };
        f(state, &cx)
    }
}

impl From<namespace::Executed> for Executed {
    fn from(executed: namespace::Executed) -> Self {
        Self {
            effects: executed.effects,
            body: executed.body,
            reply: executed.reply,
        }
    }
}

impl State for StateAt<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.storage.get(key, self.at)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.storage.scan(from, to, self.at, f)
    }

    fn allocated(&self, object: Object, offset: u64, len: u64) -> Result<u64, Fault> {
        self.storage.allocated(object, offset, len, self.at)
    }

    fn seek(&self, object: Object, offset: u64, hole: bool) -> Result<Option<u64>, Fault> {
        self.storage.seek(object, offset, hole, self.at)
    }

    fn read_now(&self, object: Object, offset: u64, len: usize) -> Result<Bytes, Fault> {
        self.storage.read_now(object, offset, len, self.at)
    }

    fn stage(&self, id: StageId) -> Option<Vec<u32>> {
        self.storage.stage_info(id).map(|stage| stage.crcs)
    }

    fn space(&self) -> Space {
        self.space
    }
}

impl Rules for Namespace {
    fn execute(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        fop: &Fop,
        body: &Bytes,
    ) -> Result<Executed, Fault> {
        self.with(state, asked, |state, cx| {
            namespace::execute(state, cx, fop, body).map(Executed::from)
        })
    }

    fn answer(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        fop: &Fop,
    ) -> Result<ReadAnswer, Fault> {
        let answer = self.with(state, asked, |state, cx| namespace::answer(state, cx, fop))?;
        Ok(match answer {
            namespace::ReadAnswer::Reply(reply) => ReadAnswer::Reply(reply, Bytes::new()),
            namespace::ReadAnswer::Data {
                object,
                offset,
                len,
                reply,
            } => ReadAnswer::Data {
                object,
                offset,
                len,
                reply,
            },
        })
    }

    fn session_begin(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
    ) -> Result<Option<Executed>, Fault> {
        self.with(state, asked, |state, cx| {
            Ok(namespace::root(state, cx)?.map(Executed::from))
        })
    }

    fn session_end(&self, state: &StateAt<'_>, asked: &Asked<'_>) -> Result<Executed, Fault> {
        self.with(state, asked, |state, cx| {
            namespace::execute(state, cx, &Fop::SessionEnd, &Bytes::new()).map(Executed::from)
        })
    }

    fn opening(&self, opening: Opening, sessions: Vec<SessionId>) -> Effect {
        namespace::opening(opening, sessions)
    }

    fn release(
        &self,
        state: &StateAt<'_>,
        asked: &Asked<'_>,
        released: &[InodeId],
    ) -> Result<Executed, Fault> {
        self.with(state, asked, |state, cx| {
            namespace::release(state, cx, released).map(Executed::from)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_users_cannot_claim_groups() {
        let rules = Namespace {
            own: Cred {
                uid: 1000,
                gid: 1000,
                groups: vec![7],
            },
        };
        let claims = Cred {
            uid: 0,
            gid: 0,
            groups: vec![0, 7],
        };
        assert_eq!(rules.cred(0, &claims), claims);
        let own = rules.cred(1000, &claims);
        assert_eq!((own.uid, own.gid, own.groups), (1000, 1000, vec![7]));
        let in_group = Cred {
            gid: 7,
            ..Cred::default()
        };
        assert_eq!(rules.cred(1000, &in_group).gid, 7);
        let stranger = rules.cred(1001, &claims);
        assert_eq!((stranger.uid, stranger.gid), (1001, NO_GROUP));
        assert!(stranger.groups.is_empty());
    }
}
