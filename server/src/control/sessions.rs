//! Gives numbers to new sessions, from those that were set aside for this node: a mount waits for no majority.
//!
//! A number is noted in the node's own file before it is given, so that no number is ever given twice. The control plane
//! hears of the session as soon as a majority answers; until then the number counts as alive because it is set aside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, join_all, select};
use mortar_protocol::env::Env;
use mortar_protocol::ids::{NodeId, SessionId, VolumeId};
use mortar_protocol::view::VolumeState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::machine::{Command, MAX_SESSIONS, State};
use super::nodes::in_time;
use super::store::Control;

/// Numbers that are set aside for each node.
const SET_ASIDE: u32 = 32;
/// With so few left, more are asked for.
const FEW: usize = 16;
/// How long a client waits until the control plane has heard of its session; it is given its number also without.
const KNOWN_TIME: Duration = Duration::from_millis(500);
/// How long a client waits for a number, if there is none left.
const NUMBER_TIME: Duration = Duration::from_secs(3);
/// How long noting it may take: less than a client waits.
const NOTE_TIME: Duration = Duration::from_millis(1_500);
/// Pause before the control plane is told again.
const AGAIN: Duration = Duration::from_millis(500);

/// A session that was given a number and that the control plane may not have heard of.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(in crate::control) struct Given {
    /// The number.
    pub(in crate::control) session: SessionId,
    /// The volume.
    pub(in crate::control) volume: VolumeId,
    /// uid it is bound to (0: none).
    pub(in crate::control) uid: u32,
}

/// What was given. Pure.
#[derive(Default, Debug)]
struct Book(BTreeMap<SessionId, Given>);

impl Book {
    fn new(given: Vec<Given>) -> Self {
        Self(given.into_iter().map(|one| (one.session, one)).collect())
    }

    /// Forgets what the control plane has heard of: its numbers are not set aside any more.
    fn settle(&mut self, set_aside: &BTreeSet<SessionId>) {
        self.0.retain(|session, _| set_aside.contains(session));
    }

    /// Gives the lowest number that is left.
    fn give(
        &mut self,
        set_aside: &BTreeSet<SessionId>,
        volume: VolumeId,
        uid: u32,
    ) -> Option<SessionId> {
        self.settle(set_aside);
        let session = *set_aside.iter().find(|one| !self.0.contains_key(one))?;
        let given = Given {
            session,
            volume,
            uid,
        };
        self.0.insert(session, given);
        Some(session)
    }

    fn all(&self) -> Vec<Given> {
        self.0.values().copied().collect()
    }
}

fn unnoted(why: &str) -> String {
    format!("this node cannot note a new session: {why}; another node can")
}

/// See the module.
pub struct Sessions {
    control: Arc<Control>,
    env: Arc<dyn Env>,
    own: NodeId,
    book: Mutex<Book>,
    /// A number was given.
    given: Notify,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sessions({:?})", self.book.lock())
    }
}

impl Sessions {
    /// Of the node `own`. [`Self::run`] has to run beside it.
    pub fn new(control: Arc<Control>, env: Arc<dyn Env>, own: NodeId) -> Arc<Self> {
        let book = Book::new(control.given());
        Arc::new(Self {
            control,
            env,
            own,
            book: Mutex::new(book),
            given: Notify::new(),
        })
    }

    /// A session of a started volume.
    ///
    /// # Errors
    /// What a person is told, if the volume is not started or no number is left.
    pub async fn open(&self, volume: &str, uid: u32) -> Result<SessionId, String> {
        if let Some(why) = self.control.shortage() {
            return Err(unnoted(&why));
        }
        let given = in_time(&self.env, NUMBER_TIME, self.give(volume, uid)).await;
        let (session, noted) = given.ok_or(
            "no majority of the voting nodes answers, and this node has no numbers for sessions left",
        )??;
        in_time(&self.env, NOTE_TIME, noted).await.ok_or_else(|| {
            let slow = || "its disk does not answer in time".to_owned();
            unnoted(&self.control.shortage().unwrap_or_else(slow))
        })??;
        self.given.notify_one();
        let told = |state: &State| !set_aside(state, self.own).contains(&session);
        let known = self.control.when(told);
        in_time(&self.env, KNOWN_TIME, known).await;
        Ok(session)
    }

    /// A number, as soon as there is one, and what has to be waited for before it may be told.
    async fn give(
        &self,
        name: &str,
        uid: u32,
    ) -> Result<(SessionId, BoxFuture<'static, Result<(), String>>), String> {
        let mut watch = self.control.watch();
        loop {
            watch.mark_unchanged();
            let state = self.control.state();
            let volume = state.volume(name);
            let volume = volume.ok_or_else(|| format!("Volume {name} does not exist"))?;
            if volume.info.state != VolumeState::Started {
                return Err(format!("Volume {name} is not started"));
            }
            if volume.sessions.len() >= MAX_SESSIONS {
                return Err(format!("Volume {name} has {MAX_SESSIONS} sessions already"));
            }
            let given = {
                let mut book = self.book.lock();
                let given = book.give(set_aside(&state, self.own), volume.info.id, uid);
                // Under the lock: a later note holds more.
                given.map(|session| (session, self.control.note_given(&book.all())))
            };
            if let Some(given) = given {
                return Ok(given);
            }
            self.given.notify_one();
            if watch.changed().await.is_err() {
                return Err("the daemon stops".to_owned());
            }
        }
    }

    /// Tells the control plane of what was given, and has new numbers set aside, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut watch = self.control.watch();
        loop {
            watch.mark_unchanged();
            let commands = self.commands();
            let proposals = commands.into_iter().map(|one| self.control.propose(one));
            let done = join_all(proposals).await;
            if done.iter().any(Result::is_err) {
                self.env.sleep(AGAIN).await;
                continue;
            }
            let given = std::pin::pin!(self.given.notified());
            let changed = std::pin::pin!(watch.changed());
            if let Either::Left((Err(_), _)) = select(changed, given).await {
                return;
            }
        }
    }

    /// What the control plane is to be told.
    fn commands(&self) -> Vec<Command> {
        let state = self.control.state();
        // A node that joins is no member yet.
        if !state.nodes.contains_key(&self.own) {
            return Vec::new();
        }
        let aside = set_aside(&state, self.own);
        let mut book = self.book.lock();
        book.settle(aside);
        let given = book.all();
        let left = aside.len() - given.len();
        let opened = given.into_iter().map(|one| Command::OpenSession {
            node: self.own,
            session: one.session,
            volume: one.volume,
            uid: one.uid,
        });
        let mut commands: Vec<Command> = opened.collect();
        if left < FEW {
            commands.push(Command::SetAside {
                node: self.own,
                count: SET_ASIDE,
            });
        }
        commands
    }
}

static NONE: BTreeSet<SessionId> = BTreeSet::new();

fn set_aside(state: &State, node: NodeId) -> &BTreeSet<SessionId> {
    state.set_aside.get(&node).unwrap_or(&NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(3);

    fn numbers(range: std::ops::Range<u64>) -> BTreeSet<SessionId> {
        range.map(SessionId).collect()
    }

    #[test]
    fn no_number_is_given_twice() {
        let mut book = Book::default();
        let aside = numbers(4..6);
        assert_eq!(book.give(&aside, VOLUME, 0), Some(SessionId(4)));
        assert_eq!(book.give(&aside, VOLUME, 0), Some(SessionId(5)));
        assert_eq!(book.give(&aside, VOLUME, 0), None);
        // Not after a restart either.
        let mut book = Book::new(book.all());
        assert_eq!(book.give(&aside, VOLUME, 0), None);
        // The control plane has heard of one, and has set more aside.
        assert_eq!(book.give(&numbers(5..8), VOLUME, 7), Some(SessionId(6)));
        let given = Given {
            session: SessionId(6),
            volume: VOLUME,
            uid: 7,
        };
        assert_eq!(book.all().len(), 2);
        assert_eq!(book.all()[1], given);
    }

    #[test]
    fn nothing_is_given_that_is_not_set_aside() {
        assert_eq!(Book::default().give(&numbers(0..0), VOLUME, 0), None);
    }
}
