//! Handles, write-behind, read-ahead: what an open file is on the client.
//!
//! A [`Vfs`] stands between the kernel (or a program) and a volume. It knows only inodes that are open here or have
//! changes that were not answered yet ([`node`]); st_ino is the inode's id, so nothing else needs a table. Functions
//! named `try_*` never wait: they answer from what is held here, or say `None`; their `async` twins do the rest.
//!
//! Write-behind: writes and attribute changes of an open file are held, in order, up to a window or one second
//! ([`held`]), and sent as one change ([`flush`]). They belong to the inode, over all its handles. Whatever shows
//! attributes or data of the inode shows them with what is held.

pub mod ahead;
pub mod backend;
mod file;
mod flush;
pub mod held;
mod listing;
mod lock;
mod name;
pub mod node;
mod read;
mod recent;
mod volume;
mod xattr;

#[cfg(test)]
pub(crate) mod mem;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::attr::{Attr, Cred, FileKind};
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::error::Errno;
use mortar_protocol::ids::InodeId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use ahead::{Ahead, Budget};
pub use backend::{
    Backend, Changed, FileOp, Found, Listing, NewInode, Opened, RenameMode, Res, Space,
};
pub use file::{OpenFile, WriteHow};
use listing::Fetched;
pub use listing::Piece;
pub use lock::Waiter;
pub use name::Entry;
use node::Node;
use recent::Recent;

/// Most bytes held by a client, over all files.
const MAX_HELD: usize = 64 << 20;
/// Most bytes read ahead by a client, over all handles.
const MAX_AHEAD: usize = 64 << 20;
/// Longest time a change is held.
const MAX_AGE: Duration = Duration::from_secs(1);

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Hold writes (`performance.write-behind`).
    pub write_behind: bool,
    /// Most bytes held per file (`performance.write-behind-window-size`).
    pub window: usize,
    /// Reads change atime (`ctime.noatime off`).
    pub atime: bool,
    /// Read ahead of sequential readers (`performance.read-ahead`).
    pub read_ahead: bool,
    /// How long attributes may be shown without asking.
    pub attr_ttl: Duration,
    /// How long names may be shown without asking.
    pub entry_ttl: Duration,
    /// How long the absence of a name may be shown without asking.
    pub negative_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            write_behind: true,
            window: 4 << 20,
            atime: false,
            read_ahead: true,
            attr_ttl: Duration::from_secs(1),
            entry_ttl: Duration::from_secs(1),
            negative_ttl: Duration::ZERO,
        }
    }
}

/// What may change while mounted.
#[derive(Debug)]
struct Tuning {
    write_behind: AtomicBool,
    window: AtomicUsize,
    atime: AtomicBool,
}

impl Tuning {
    fn write_behind(&self) -> bool {
        self.write_behind.load(Ordering::Relaxed)
    }

    fn window(&self) -> usize {
        self.window.load(Ordering::Relaxed)
    }

    fn atime(&self) -> bool {
        self.atime.load(Ordering::Relaxed)
    }
}

/// The kernel's caches, as far as the Vfs must empty them.
pub trait Kernel: Send + Sync + 'static {
    /// Drops an inode's pages and attributes. Returns at once; the future ends when it is done.
    fn invalidate(&self, id: InodeId) -> BoxFuture<'static, ()>;
}

/// An open file or directory.
#[derive(Debug)]
struct Handle {
    number: u64,
    node: Arc<Node>,
    /// Who opened it.
    cred: Cred,
    /// Its reads leave atime alone (O_NOATIME).
    no_atime: bool,
    ahead: Mutex<Ahead>,
    listing: Mutex<Fetched>,
    /// Owners that took locks through it.
    lockers: Mutex<BTreeSet<u64>>,
}

/// Files with held changes, for the timer.
#[derive(Default)]
struct Dirty {
    nodes: Vec<Weak<Node>>,
    ticking: bool,
}

/// See the module. Cheap to clone.
pub struct Vfs<B>(Arc<Core<B>>);

impl<B> Clone for Vfs<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Shared state of a [`Vfs`].
struct Core<B> {
    backend: B,
    env: Arc<dyn Env>,
    options: Options,
    tuning: Tuning,
    nodes: Mutex<BTreeMap<InodeId, Arc<Node>>>,
    handles: RwLock<BTreeMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    recent: Recent,
    budget: Arc<Budget>,
    /// Bytes of changes not answered, over all files.
    held: AtomicUsize,
    /// Told when they become fewer.
    room: Notify,
    dirty: Mutex<Dirty>,
    kernel: OnceLock<Arc<dyn Kernel>>,
}

impl<B: Backend> Vfs<B> {
    /// A Vfs over a volume.
    pub fn new(backend: B, env: Arc<dyn Env>, options: Options) -> Self {
        let vfs = Self(Arc::new(Core {
            backend,
            env,
            tuning: Tuning {
                write_behind: AtomicBool::new(options.write_behind),
                window: AtomicUsize::new(options.window),
                atime: AtomicBool::new(options.atime),
            },
            options,
            nodes: Mutex::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            recent: Recent::new(),
            budget: Budget::new(MAX_AHEAD),
            held: AtomicUsize::new(0),
            room: Notify::new(),
            dirty: Mutex::default(),
            kernel: OnceLock::new(),
        }));
        let core = Arc::downgrade(&vfs.0);
        vfs.0.backend.set_open_check(Arc::new(move |id| {
            core.upgrade().is_some_and(|core| core.is_open(id))
        }));
        let core = Arc::downgrade(&vfs.0);
        vfs.0.backend.set_lock_loss(Arc::new(move |id, owner| {
            if let Some(node) = core.upgrade().and_then(|core| core.node(id)) {
                node.state.lock().lock_losers.insert(owner);
            }
        }));
        vfs
    }

    /// Says how to empty the kernel's caches.
    pub fn set_kernel(&self, kernel: Arc<dyn Kernel>) {
        // A second call would be a second mount of one Vfs; the first kernel stays.
        let _ = self.0.kernel.set(kernel);
    }

    /// Turns write-behind on or off and sizes it; what is held already goes as it would have.
    pub fn set_write_behind(&self, on: bool, window: usize) {
        self.0.tuning.write_behind.store(on, Ordering::Relaxed);
        self.0.tuning.window.store(window, Ordering::Relaxed);
    }

    /// Says whether reads change atime from now on.
    pub fn set_atime(&self, on: bool) {
        self.0.tuning.atime.store(on, Ordering::Relaxed);
    }

    /// The volume below.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    /// Options it was made with.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Time, randomness and tasks.
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.0.env
    }

    /// Bytes of changes that were not answered yet.
    pub fn held_bytes(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Bytes read ahead and not asked for yet.
    pub fn read_ahead_bytes(&self) -> usize {
        self.0.budget.used()
    }

    /// Open files and directories.
    pub fn open_handles(&self) -> usize {
        self.0.handles.read().len()
    }

    /// Inodes it knows.
    pub fn known_inodes(&self) -> usize {
        self.0.nodes.lock().len()
    }

    /// Sends everything held and waits for the answers.
    pub async fn flush_all(&self) {
        let nodes: Vec<Arc<Node>> = self.0.nodes.lock().values().cloned().collect();
        for node in &nodes {
            self.0.start_flush(node);
        }
        for node in &nodes {
            self.0.settle(node).await;
        }
    }

    /// Attributes from what is known here, and for how long they may be shown.
    pub fn try_getattr(&self, id: InodeId) -> Option<(Attr, Duration)> {
        let core = &self.0;
        let shown = core.node(id).and_then(|node| core.shown(&node));
        shown.or_else(|| {
            // The kernel forgets a directory's attributes with each change in it, and asks before the next one.
            let ttl = core.options.attr_ttl;
            let (attr, age) = core.backend.recent_dir(id, ttl)?;
            Some((core.arrived(attr)?, ttl.saturating_sub(age)))
        })
    }

    /// Attributes, and for how long they may be shown.
    ///
    /// # Errors
    ///
    /// Those of the volume; ENOENT or ESTALE if the inode is gone.
    pub async fn getattr(&self, id: InodeId) -> Res<(Attr, Duration)> {
        let attr = self.0.fetch_attr(id).await?;
        Ok((attr, self.0.options.attr_ttl))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn readlink(&self, id: InodeId) -> Res<Bytes> {
        self.0.backend.readlink(id).await
    }

    /// Space of the volume.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn statfs(&self) -> Res<Space> {
        self.0.backend.statfs().await
    }
}

impl<B: Backend> Core<B> {
    fn now(&self) -> Mono {
        self.env.now()
    }

    fn node(&self, id: InodeId) -> Option<Arc<Node>> {
        self.nodes.lock().get(&id).cloned()
    }

    fn handle(&self, number: u64) -> Res<Arc<Handle>> {
        self.handles
            .read()
            .get(&number)
            .cloned()
            .ok_or(Errno::EBADF)
    }

    /// Whether this client holds an inode open or still has changes of it to send.
    fn is_open(&self, id: InodeId) -> bool {
        self.node(id).is_some_and(|node| !node.state.lock().idle())
    }

    /// Makes a handle; `then` runs with its node locked. `flags` are those of open(2).
    fn add_handle<T>(
        &self,
        id: InodeId,
        cred: Cred,
        flags: i32,
        then: impl FnOnce(&mut node::State) -> T,
    ) -> (u64, T) {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let (node, result) = {
            let mut nodes = self.nodes.lock();
            let node = nodes
                .entry(id)
                .or_insert_with(|| Arc::new(Node::new(id)))
                .clone();
            let mut state = node.state.lock();
            state.handles.insert(number, None);
            let result = then(&mut state);
            drop(state);
            (node, result)
        };
        let handle = Handle {
            number,
            node,
            cred,
            no_atime: flags & libc::O_NOATIME != 0,
            ahead: Mutex::default(),
            listing: Mutex::default(),
            lockers: Mutex::default(),
        };
        self.handles.write().insert(number, Arc::new(handle));
        (number, result)
    }

    /// Forgets an inode that is neither open nor waiting for answers.
    fn forget_if_idle(&self, node: &Arc<Node>) {
        let mut nodes = self.nodes.lock();
        let state = node.state.lock();
        if state.idle() && nodes.get(&node.id).is_some_and(|n| Arc::ptr_eq(n, node)) {
            nodes.remove(&node.id);
            match state.shown() {
                Some((attr, at)) => self.recent.closed(&attr, state.pages(), at),
                None => self.recent.forget(node.id),
            }
        }
    }

    /// What a node shows without asking, and for how long.
    fn shown(&self, node: &Node) -> Option<(Attr, Duration)> {
        let state = node.state.lock();
        let (attr, at) = state.shown()?;
        let age = self.now().since(at);
        let left = self.options.attr_ttl.saturating_sub(age);
        (state.unanswered() || !left.is_zero()).then_some((attr, left))
    }

    /// Attributes arrived with an answer: what to show, or `None` to ask again.
    fn arrived(&self, attr: Attr) -> Option<Attr> {
        let now = self.now();
        // What a directory shows comes from several sets; nothing of it is held here.
        if attr.kind != FileKind::Dir
            && let Some(node) = self.node(attr.gfid.id)
        {
            return node.state.lock().arrived(attr, now);
        }
        self.recent.saw(&attr, now);
        Some(attr)
    }

    /// What to show of attributes that arrived; asks again while they are older than this client's own changes.
    async fn settled_attr(&self, attr: Attr) -> Res<Attr> {
        match self.arrived(attr) {
            Some(attr) => Ok(attr),
            None => self.fetch_attr(attr.gfid.id).await,
        }
    }

    /// Asks for attributes.
    async fn fetch_attr(&self, id: InodeId) -> Res<Attr> {
        const TRIES: u32 = 10;
        for _ in 0..TRIES {
            let attr = self.backend.getattr(id).await?;
            if let Some(attr) = self.arrived(attr) {
                return Ok(attr);
            }
        }
        // A set that keeps answering with a state before its own acknowledgements is broken.
        Err(Errno::EIO)
    }

    /// Drops the kernel's pages of an inode, in the background.
    fn invalidate(&self, id: InodeId) {
        if let Some(kernel) = self.kernel.get() {
            self.env.spawn(kernel.invalidate(id));
        }
    }
}
