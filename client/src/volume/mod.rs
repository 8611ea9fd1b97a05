//! A volume as a library: the translators above single sets. What `libgfapi` is for GlusterFS.
//!
//! [`Volume`] addresses inodes by id; errors are POSIX errors, answered as Linux would. [`paths`] has a small facade
//! with paths and files. All methods may be called from any task, and a [`Volume`] is cheap to clone.
//!
//! | methods | |
//! |---|---|
//! | [`Volume::connect`], [`Volume::close`] | begin and end |
//! | [`Volume::lookup`], [`Volume::getattr`], [`Volume::parent`], [`Volume::readlink`], [`Volume::readdir`] | names |
//! | [`Volume::create`], [`Volume::link`], [`Volume::remove`], [`Volume::rename`] | changes of names |
//! | [`Volume::open`], [`Volume::read`], [`Volume::seek`], [`Volume::getxattr`], [`Volume::listxattr`] | reading |
//! | [`Volume::change`], [`Volume::copy`] | writing: data, size, attributes, space, extended attributes |
//! | [`Volume::fsync`], [`Volume::sync_all`] | until it is on the medium of every member |
//! | [`Volume::lock`], [`Volume::lock_wait`], [`Volume::lock_test`] | locks |
//! | [`Volume::statfs`], [`Volume::info`], [`Volume::session`] | about the volume |
//!
//! Where things lie: a directory entry on the set that owns the slot of its name, an inode (and the first shard of
//! its data) on the set of its own id, further shards on the sets of theirs. What touches one set is one entry of its
//! log; what touches several is a transaction ([`txn`]).

mod ahead;
mod background;
mod call;
mod change;
mod data;
mod files;
mod hints;
mod lookup;
mod make;
pub mod paths;
mod plan;
pub mod questions;
mod rename;
mod sync;
#[cfg(test)]
mod tests;
mod truncate;
pub mod txn;
mod types;

pub use crate::remote::{ConnectError, LockLoss};
pub use ahead::KeptAhead;
pub use types::{
    Changed, FileOp, Found, Listing, NewInode, OpenCheck, Opened, RenameMode, Res, Space,
};

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mortar_protocol::env::Env;
use mortar_protocol::error::Errno;
use mortar_protocol::ids::{InodeId, SessionId, SetIndex};
use mortar_protocol::transport::Transport;
use mortar_protocol::view::VolumeInfo;
use mortar_protocol::watch::Watch;
use parking_lot::RwLock;

use crate::remote::{Cluster, Resolve, Set, SetState, within};
use ahead::Ahead;
use call::Finishing;
use files::Files;
use hints::{Dirs, Names, Parents};
use paths::Opens;

/// Connecting gives up after this: a mount of a server that is not there fails within 5 s.
const CONNECT: Duration = Duration::from_secs(4);
/// Beyond `cluster.open-wait`: the time in which a set opens once it waits for nobody any more.
const OPENING: Duration = Duration::from_secs(5);
/// Closing waits so long for transactions to be finished.
const FINISH: Duration = Duration::from_secs(2);

/// A connected volume. See the module.
#[derive(Clone)]
pub struct Volume(Arc<Inner>);

struct Inner {
    cluster: Arc<Cluster>,
    ahead: Arc<Ahead>,
    names: Names,
    parents: Parents,
    dirs: Dirs,
    files: Files,
    opens: Arc<Opens>,
    open_check: RwLock<OpenCheck>,
    lock_loss: RwLock<LockLoss>,
    /// Chores for the sets are being done.
    at_chores: AtomicBool,
    finishing: Arc<Finishing>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({})", self.info().name)
    }
}

impl Volume {
    /// Connects to the volume `name` through one of `servers`.
    ///
    /// # Errors
    /// See [`ConnectError`]; within 5 s, unless the servers answer and a set still waits for members.
    pub async fn connect(
        env: Arc<dyn Env>,
        transport: Arc<dyn Transport>,
        servers: &[SocketAddr],
        name: &str,
    ) -> Result<Self, ConnectError> {
        let volume = Self::reach(env, transport, servers, name).await?;
        volume.opened(|_| {}).await?;
        Ok(volume)
    }

    /// Connects without waiting for the sets: [`Self::opened`] must follow.
    pub(crate) async fn reach(
        env: Arc<dyn Env>,
        transport: Arc<dyn Transport>,
        servers: &[SocketAddr],
        name: &str,
    ) -> Result<Self, ConnectError> {
        let cluster = Cluster::connect(env, transport, servers, name, CONNECT).await?;
        let opens = Arc::new(Opens::default());
        let check = Arc::clone(&opens);
        Ok(Self(Arc::new(Inner {
            cluster,
            ahead: Arc::default(),
            names: Names::default(),
            parents: Parents::default(),
            dirs: Dirs::default(),
            files: Files::default(),
            opens,
            open_check: RwLock::new(Arc::new(move |id| check.is_open(id))),
            lock_loss: RwLock::new(Arc::new(|_, _| {})),
            at_chores: AtomicBool::new(false),
            finishing: Arc::default(),
        })))
    }

    /// Waits until the volume's root answers: for a moment, or, where the servers say that a set still waits for
    /// members, for as long as they may. `waiting` is told once what for.
    pub(crate) async fn opened(&self, waiting: impl Fn(&str)) -> Result<(), ConnectError> {
        let (cluster, start) = (&self.0.cluster, self.env().now());
        let name = || self.info().name.clone();
        let mut told = false;
        loop {
            let errno = match self.getattr(InodeId::ROOT).await {
                Ok(_) => break,
                Err(errno) => errno,
            };
            let waited = self.env().now().since(start);
            let not_serving = ConnectError::NotServing(name(), errno);
            if errno != Errno::ENOTCONN {
                return Err(not_serving);
            }
            let Some(missing) = cluster.missing().await? else {
                if waited < CONNECT {
                    continue;
                }
                return Err(not_serving);
            };
            let most = cluster.open_wait() + OPENING;
            if waited >= most {
                return Err(ConnectError::NotOpen(name(), waited.as_secs(), missing));
            }
            if !std::mem::replace(&mut told, true) {
                waiting(&format!(
                    "volume {} is opening (up to {} s): {missing}",
                    name(),
                    most.as_secs()
                ));
            }
        }
        background::start(&self.0);
        Ok(())
    }

    /// Ends the session on all sets, once the sets have heard how its transactions ended (or after a while: others tell
    /// them then). What was not answered by then may or may not have been done.
    pub async fn close(&self) {
        let finished = self.0.finishing.all();
        let _ = within(self.env(), FINISH, finished).await;
        self.0.cluster.close().await;
    }

    /// Says how the names of the servers are resolved, should no server answer any more.
    pub(crate) fn set_resolve(&self, resolve: Resolve) {
        self.0.cluster.set_resolve(resolve);
    }

    /// The volume's record as last heard of.
    pub fn info(&self) -> Arc<VolumeInfo> {
        self.0.cluster.volume()
    }

    /// The volume's record as soon as it is not of this version.
    pub async fn newer_info(&self, version: u64) -> Arc<VolumeInfo> {
        self.0.cluster.newer_volume(version).await
    }

    /// The session. Another number than before means that it ended and its locks are lost: handles that hold some
    /// must fail.
    pub fn session(&self) -> SessionId {
        self.0.cluster.session()
    }

    /// How each set stands, for a state dump.
    pub fn set_states(&self) -> Vec<SetState> {
        let sets = self.0.cluster.sets();
        sets.iter().map(|set| set.state()).collect()
    }

    /// Says how to find out whether this client holds an inode open: an unlinked file lives on while it does.
    pub fn set_open_check(&self, check: OpenCheck) {
        let own = Arc::clone(&self.0.opens);
        *self.0.open_check.write() = Arc::new(move |id| own.is_open(id) || check(id));
    }

    /// Says whom to tell of locks that a set has lost, by inode and owner: their holder must not go on as if it had
    /// them.
    pub fn set_lock_loss(&self, told: LockLoss) {
        *self.0.lock_loss.write() = told;
    }

    /// Says who is told of what goes wrong outside of any operation: data read ahead that one member cannot read.
    pub fn set_watch(&self, watch: Arc<Watch>) {
        self.0.cluster.set_watch(watch);
    }

    /// Size of a shard in bytes: files up to it lie on one set.
    pub fn shard_size(&self) -> u64 {
        self.info().shard_size
    }

    /// Whether the volume has several sets, so that a directory's attributes are merged from them.
    pub fn is_distributed(&self) -> bool {
        self.0.cluster.sets().len() > 1
    }

    fn env(&self) -> &Arc<dyn Env> {
        self.0.cluster.env()
    }

    fn is_open(&self, id: InodeId) -> bool {
        let check = self.0.open_check.read().clone();
        check(id)
    }

    fn set(&self, index: SetIndex) -> Arc<Set> {
        self.0.cluster.set(index)
    }

    fn inode_set(&self, id: InodeId) -> Arc<Set> {
        self.set(self.info().layout.inode_set(id))
    }

    fn name_set(&self, parent: InodeId, name: &[u8]) -> Arc<Set> {
        self.set(self.info().layout.name_set(parent, name))
    }
}
