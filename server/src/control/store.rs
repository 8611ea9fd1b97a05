//! The control plane as the rest of a node sees it: the state as of the newest command, and a way to propose commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, join_all, select};
use mortar_protocol::env::Env;
use mortar_protocol::ids::NodeId;
use mortar_protocol::transport::Lost;
use parking_lot::RwLock;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, StorageBackend};
use tokio::sync::watch;

use super::consensus::{Consensus, ControlDisk, NotProposed, Wire};
use super::machine::{Command, Outcome, State};
use super::patient::{Patient, Shortage};
use super::sessions::Given;

/// Name of the file in the data directory.
pub const FILE: &str = "control.redb";

/// How long a command waits for a leader.
pub(in crate::control) const LEADER_WAIT: Duration = Duration::from_millis(3_500);
/// Pause before a node that does not know better is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the control plane's file cannot be used, or a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The file cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// It was written by another version.
    #[error(
        "{path} has format {found}, this mortard reads and writes format {known}: use the mortard that wrote it; to start \
         anew, move the data directory away (the bricks keep their contents, 'mortar brick export' reads them)"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format of this build.
        known: u64,
    },
    /// No leader could be found in time; the command has not been applied.
    #[error("no majority of the voting nodes answers{}", silent(.0))]
    NoMajority(Vec<String>),
    /// The command has been written down by the leader, and no majority has confirmed it in time.
    #[error(
        "no majority of the voting nodes answers{}; the command counts if one has it when they do: look then",
        silent(.0)
    )]
    Unconfirmed(Vec<String>),
    /// This node leads, and cannot write the command down.
    #[error("{0}: the command counts once there is some; look then")]
    Full(String),
    /// The leader, or the way to it, was lost before it answered.
    #[error("the leading node was lost before it answered; look whether the command was done")]
    Unknown,
    /// The consensus has ended on this node.
    #[error("the control plane has failed on this node: {0}")]
    Failed(String),
}

fn silent(nodes: &[String]) -> String {
    if nodes.is_empty() {
        String::new()
    } else {
        format!(" (no answer from {})", nodes.join(", "))
    }
}

/// Carries a command to the node that leads.
pub trait Forward: Send + Sync + 'static {
    /// Asks a node to propose a command; the inner error is the node that leads as far as it knows.
    fn propose(
        &self,
        to: NodeId,
        command: &Command,
    ) -> BoxFuture<'static, Result<Result<Outcome, Option<NodeId>>, Lost>>;
    /// Whether a node answers within [`THERE`](super::nodes::THERE).
    fn is_there(&self, node: NodeId) -> BoxFuture<'static, bool>;
}

/// One node's view of the control plane.
pub struct Control(Way);

enum Way {
    /// No log and no other nodes: simulations of bricks.
    Memory(Memory),
    Consensus(Joint),
}

struct Memory {
    state: RwLock<Arc<State>>,
    changed: watch::Sender<u64>,
}

struct Joint {
    env: Arc<dyn Env>,
    consensus: Consensus,
    forward: Arc<dyn Forward>,
    path: PathBuf,
    shortage: Shortage,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control({})", self.state().applied)
    }
}

/// What a node needs to take part in the control plane.
pub struct Parts {
    /// This node.
    pub own: NodeId,
    /// Time, randomness and tasks.
    pub env: Arc<dyn Env>,
    /// Where writes run.
    pub disk: Arc<dyn ControlDisk>,
    /// The way to other nodes.
    pub wire: Arc<dyn Wire>,
    /// Carries commands to the leader.
    pub forward: Arc<dyn Forward>,
    /// The node has been told to join a cluster: it does not become one of its own.
    pub joins: bool,
}

/// Opens or makes the file.
fn open_file(path: &Path) -> Result<(Database, Shortage), String> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.to_string()),
    };
    // Damage can make the library panic.
    let sound = crate::guard::catch(|| content.is_empty() || is_whole(&content));
    if sound != Some(true) {
        return Err("it is damaged; to start anew, move the data directory away (the bricks keep their contents, \
             'mortar brick export' reads them)"
            .to_owned());
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(|error| error.to_string())?;
    let backend = FileBackend::new(file).map_err(|error| error.to_string())?;
    let (file, shortage) = Patient::new(backend, path.to_owned());
    let database = Database::builder()
        .set_cache_size(1 << 20)
        .create_with_backend(file)
        .map_err(|error| error.to_string())?;
    shortage.is_waited_for();
    Ok((database, shortage))
}

/// Whether all pages have the right checksums. Looked at in a copy: the library would repair a file by going back to
/// the write before the last, which may have been acknowledged.
fn is_whole(content: &[u8]) -> bool {
    let copy = InMemoryBackend::new();
    let filled = copy
        .set_len(content.len() as u64)
        .and_then(|()| copy.write(0, content));
    let opened = filled
        .ok()
        .and_then(|()| Database::builder().create_with_backend(copy).ok());
    opened.is_some_and(|mut database| database.check_integrity().is_ok_and(|clean| clean))
}

impl Control {
    /// Opens the state in `dir`, or begins one, and takes part in the consensus.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub async fn open(dir: &Path, parts: Parts) -> Result<Self, ControlError> {
        let path = dir.join(FILE);
        let (database, shortage) = open_file(&path).map_err(|why| ControlError::File {
            path: path.clone(),
            why,
        })?;
        Self::with((path, database, shortage), parts).await
    }

    /// As [`Self::open`], over any database.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub async fn over(
        path: PathBuf,
        database: Database,
        parts: Parts,
    ) -> Result<Self, ControlError> {
        Self::with((path, database, Shortage::default()), parts).await
    }

    async fn with(
        (path, database, shortage): (PathBuf, Database, Shortage),
        parts: Parts,
    ) -> Result<Self, ControlError> {
        let Parts {
            own,
            env,
            disk,
            wire,
            forward,
            joins,
        } = parts;
        let file = (path.clone(), database);
        let consensus = Consensus::start(own, Arc::clone(&env), file, disk, wire, joins).await?;
        Ok(Self(Way::Consensus(Joint {
            env,
            consensus,
            forward,
            path,
            shortage,
        })))
    }

    /// A state that lives in memory and ends with it, where each command counts at once: for simulations of bricks.
    pub fn in_memory() -> Self {
        Self(Way::Memory(Memory {
            state: RwLock::default(),
            changed: watch::channel(0).0,
        }))
    }

    /// The state as of the newest command.
    pub fn state(&self) -> Arc<State> {
        match &self.0 {
            Way::Memory(memory) => Arc::clone(&memory.state.read()),
            Way::Consensus(joint) => joint.consensus.state(),
        }
    }

    /// Tells the number of the newest command whenever there is a new one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        match &self.0 {
            Way::Memory(memory) => memory.changed.subscribe(),
            Way::Consensus(joint) => joint.consensus.watch(),
        }
    }

    /// Completes when the state is as wanted, or no command can come any more.
    pub(in crate::control) async fn when(&self, wanted: impl Fn(&State) -> bool) {
        let mut watch = self.watch();
        loop {
            watch.mark_unchanged();
            if wanted(&self.state()) || watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// This node's part in the consensus, if it has one.
    pub fn consensus(&self) -> Option<&Consensus> {
        match &self.0 {
            Way::Memory(_) => None,
            Way::Consensus(joint) => Some(&joint.consensus),
        }
    }

    /// That no majority answers, and who does not.
    pub(in crate::control) async fn no_majority(&self) -> ControlError {
        match &self.0 {
            Way::Memory(_) => ControlError::NoMajority(Vec::new()),
            Way::Consensus(joint) => joint.no_majority().await,
        }
    }

    /// The sessions this node had opened when it ended last.
    pub(in crate::control) fn given(&self) -> Vec<Given> {
        match &self.0 {
            Way::Memory(_) => Vec::new(),
            Way::Consensus(joint) => joint.consensus.given(),
        }
    }

    /// That nothing can be noted on this node for want of space, if so.
    pub(in crate::control) fn shortage(&self) -> Option<String> {
        match &self.0 {
            Way::Memory(_) => None,
            Way::Consensus(joint) => joint.shortage(),
        }
    }

    /// Notes the sessions this node has opened, in the order of the calls; completes when that is durable.
    pub(in crate::control) fn note_given(
        &self,
        given: &[Given],
    ) -> BoxFuture<'static, Result<(), String>> {
        match &self.0 {
            Way::Memory(_) => Box::pin(async { Ok(()) }),
            Way::Consensus(joint) => joint.consensus.note_given(given),
        }
    }

    /// Has a command made durable and applied, by whichever node leads.
    ///
    /// # Errors
    /// If there is no leader, or it is lost.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ControlError> {
        match &self.0 {
            Way::Memory(memory) => {
                let mut state = (*self.state()).clone();
                let outcome = state.apply(&command);
                let applied = state.applied;
                *memory.state.write() = Arc::new(state);
                memory.changed.send_replace(applied);
                Ok(outcome)
            }
            Way::Consensus(joint) => joint.propose(command).await,
        }
    }

    /// As [`Self::propose`], but only if this node leads; the inner error is the node that does, if it is known.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn propose_here(
        &self,
        command: Command,
    ) -> Result<Result<Outcome, Option<NodeId>>, ControlError> {
        let Way::Consensus(joint) = &self.0 else {
            return self.propose(command).await.map(Ok);
        };
        match joint.consensus.propose(command).await {
            Ok(outcome) => Ok(Ok(outcome)),
            Err(NotProposed::NotLeader(leader)) => Ok(Err(leader)),
            Err(NotProposed::Alone) => match joint.missed().await {
                Some(error) => Err(error),
                None => Ok(Err(None)),
            },
            Err(NotProposed::Unconfirmed) => Err(joint.unconfirmed().await),
            Err(NotProposed::Failed(why)) => Err(ControlError::Failed(why)),
        }
    }
}

impl Joint {
    /// Names of voters that do not answer now.
    async fn silent_voters(&self) -> Vec<String> {
        let voters = self.consensus.standing().voters.into_iter();
        let others = voters.filter(|node| *node != self.consensus.own());
        let looks = others.map(|node| {
            let there = self.forward.is_there(node);
            async move { (!there.await).then_some(node) }
        });
        let silent = join_all(looks).await.into_iter().flatten();
        let state = self.consensus.state();
        silent.map(|node| state.host_of(node)).collect()
    }

    async fn no_majority(&self) -> ControlError {
        ControlError::NoMajority(self.silent_voters().await)
    }

    /// For a command that is on its way and was not confirmed in time.
    async fn unconfirmed(&self) -> ControlError {
        match self.shortage() {
            Some(why) => ControlError::Full(why),
            None => ControlError::Unconfirmed(self.silent_voters().await),
        }
    }

    fn shortage(&self) -> Option<String> {
        let path = self.path.display();
        let why = || format!("no space left on the disk of {path}");
        self.shortage.is_there().then(why)
    }

    /// For a leader that no majority has answered for some time: that, unless one answers now. Then it has been away
    /// itself, and is about to hear of another leader.
    async fn missed(&self) -> Option<ControlError> {
        let silent = self.silent_voters().await;
        let voters = self.consensus.standing().voters.len();
        (2 * silent.len() >= voters).then_some(ControlError::NoMajority(silent))
    }

    /// Another node of the cluster, a different one with each turn.
    fn another(&self, turn: usize) -> Option<NodeId> {
        let state = self.consensus.state();
        let own = self.consensus.own();
        let others: Vec<NodeId> = state
            .nodes
            .keys()
            .copied()
            .filter(|node| *node != own)
            .collect();
        others.get(turn % others.len().max(1)).copied()
    }

    async fn propose(&self, command: Command) -> Result<Outcome, ControlError> {
        let until = self.env.now().after(LEADER_WAIT);
        let own = self.consensus.own();
        let mut told = None;
        let mut turn = 0;
        loop {
            let leader = match self.consensus.propose(command.clone()).await {
                Ok(outcome) => return Ok(outcome),
                Err(NotProposed::NotLeader(leader)) => leader.filter(|leader| *leader != own),
                Err(NotProposed::Alone) => match self.missed().await {
                    Some(error) => return Err(error),
                    None => None,
                },
                Err(NotProposed::Unconfirmed) => return Err(self.unconfirmed().await),
                Err(NotProposed::Failed(why)) => return Err(ControlError::Failed(why)),
            };
            // A node whose address has changed hears of no leader until it has told the new one: it asks around.
            turn += 1;
            let asked = leader.or(told.take()).or_else(|| self.another(turn));
            if let Some(asked) = asked
                && self.forward.is_there(asked).await
            {
                match self.forward.propose(asked, &command).await {
                    Ok(Ok(outcome)) => return Ok(outcome),
                    Err(Lost::Unknown) => return Err(ControlError::Unknown),
                    Ok(Err(other)) => told = other.filter(|other| *other != own && *other != asked),
                    Err(Lost::NotSent | Lost::Rejected) => {}
                }
                if told.is_some() {
                    continue;
                }
            }
            let left = until.since(self.env.now());
            if left.is_zero() {
                return Err(self.no_majority().await);
            }
            let known = self.consensus.standing();
            let news = std::pin::pin!(self.consensus.standing_after(&known));
            match select(news, self.env.sleep(left.min(PAUSE * 4))).await {
                Either::Left(_) => {}
                Either::Right(_) => self.env.sleep(PAUSE).await,
            }
        }
    }
}
