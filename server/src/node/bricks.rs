//! The bricks of this node: which are open on which core, and how they are formatted, opened and closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use mortar_protocol::env_real::random_id;
use mortar_protocol::fop::Fop;
use mortar_protocol::ids::{BootId, BrickId, NodeId, RunId, SetIndex};
use mortar_protocol::node::{BrickHealth, BrickTask};
use mortar_protocol::peer::PeerFrame;
use mortar_protocol::report::{BrickEvent, FromBrick, ToBrick};
use mortar_protocol::view::{BrickInfo, VolumeInfo};
use mortar_protocol::watch::{Sum, Watch};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, watch};

use super::core_thread::{CoreThread, Post};
use crate::brick::{BrickConfig, BrickState, Message, PendingBudget, Rules, SpaceGauge, Storage};
use crate::control::machine::Chore;
use crate::control::nodes::BrickHost;

/// Bricks that are opened at a time: each reads its ring and its maps, and a node may have thousands.
const OPENINGS: usize = 8;
/// How long a brick has to flush and stop in good order.
const STOP_TIME: Duration = Duration::from_secs(8);

/// How long a core has to say how its bricks stand.
const DUMP_TIME: Duration = Duration::from_secs(2);

/// A store whose earlier owner in this process is just letting it go is tried again this often ...
const BUSY_TRIES: u32 = 60;
/// ... after this long each.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Why a brick that was away stays out.
const LAGS: &str = "it lacks changes that the log of its set no longer holds";
/// Why a brick stays out that has lost something.
const DAMAGED: &str = "its log is damaged: something that was flushed is lost";

/// Where bricks' stores come from. Methods block.
pub trait Stores: Send + Sync + 'static {
    /// Whether a brick could be formatted.
    ///
    /// # Errors
    /// What a person is told.
    fn check(&self, brick: &BrickTask) -> Result<(), String>;
    /// Formats a brick.
    ///
    /// # Errors
    /// What a person is told.
    fn format(&self, brick: &BrickTask) -> Result<(), String>;
    /// Removes what [`Self::format`] made, as far as it is still what was made.
    fn unformat(&self, brick: &BrickInfo);
    /// Marks a brick as that of a deleted volume.
    ///
    /// # Errors
    /// What a person is told.
    fn mark_deleted(&self, brick: &BrickInfo) -> Result<(), OpenFailure>;
    /// Opens a brick's store.
    ///
    /// # Errors
    /// See [`OpenFailure`].
    fn open(
        &self,
        volume: &VolumeInfo,
        set: SetIndex,
        brick: &BrickInfo,
    ) -> Result<Box<dyn Storage>, OpenFailure>;
}

/// Why a brick's store cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenFailure {
    /// This process still has it open, for a brick that is being closed.
    pub busy: bool,
    /// What a person is told.
    pub message: String,
}

/// What bricks are made of.
#[derive(Clone)]
pub struct Backend {
    /// Their stores.
    pub stores: Arc<dyn Stores>,
    /// The meaning of file operations.
    pub rules: Arc<dyn Rules>,
}

/// An open brick.
struct OpenBrick {
    core: usize,
    watch: Arc<Watch>,
    run: RunId,
    gauge: SpaceGauge,
    poisoned: Option<String>,
    /// Why it cannot be in its set in this run, if so.
    left_out: Option<&'static str>,
    stopped: bool,
}

/// Takes what goes to other nodes.
pub type ToOtherNodes = Box<dyn Fn(PeerFrame) + Send + Sync>;

/// The bricks of this node.
pub struct Bricks {
    node: NodeId,
    boot: BootId,
    stores: Arc<dyn Stores>,
    /// Bricks that may be opened at a time.
    opening: Semaphore,
    budget: Arc<PendingBudget>,
    cores: RwLock<Vec<CoreThread>>,
    open: RwLock<BTreeMap<BrickId, OpenBrick>>,
    failed: Mutex<BTreeMap<BrickId, String>>,
    /// Runs of other nodes' bricks that cannot be in their sets, as the primaries here say.
    left_out: Mutex<BTreeMap<BrickId, (RunId, &'static str)>>,
    reports: mpsc::UnboundedSender<FromBrick>,
    changed: watch::Sender<u64>,
    other_nodes: ToOtherNodes,
}

impl std::fmt::Debug for Bricks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.open.read().keys()).finish()
    }
}

/// The machine's boot, or a random one where the kernel does not tell (then no restart counts as the same boot).
fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().parse().unwrap_or(BootId(random_id()))
}

impl Bricks {
    /// Starts `threads` cores without bricks. Reports go to `reports`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        node: NodeId,
        threads: usize,
        backend: Backend,
        reports: mpsc::UnboundedSender<FromBrick>,
        other_nodes: ToOtherNodes,
    ) -> std::io::Result<Arc<Self>> {
        let bricks = Arc::new(Self {
            node,
            boot: boot_id(),
            stores: backend.stores,
            opening: Semaphore::new(OPENINGS),
            budget: PendingBudget::new(),
            cores: RwLock::new(Vec::new()),
            open: RwLock::new(BTreeMap::new()),
            failed: Mutex::new(BTreeMap::new()),
            left_out: Mutex::new(BTreeMap::new()),
            reports,
            changed: watch::channel(0).0,
            other_nodes,
        });
        for number in 0..threads.max(1) {
            let (rules, budget) = (Arc::clone(&backend.rules), Arc::clone(&bricks.budget));
            let core = CoreThread::start(number, rules, budget, Arc::clone(&bricks) as _)?;
            bricks.cores.write().push(core);
        }
        Ok(bricks)
    }

    /// The runtime of the first core.
    pub fn first_runtime(&self) -> Option<tokio::runtime::Handle> {
        self.cores.read().first().map(|core| core.runtime().clone())
    }

    /// The core that serves a brick.
    pub fn core_of(&self, brick: BrickId) -> Option<usize> {
        self.open.read().get(&brick).map(|open| open.core)
    }

    /// The core that serves a brick, and what is asked of the brick.
    pub fn place_of(&self, brick: BrickId) -> Option<(usize, Arc<Watch>)> {
        let open = self.open.read();
        let open = open.get(&brick)?;
        Some((open.core, Arc::clone(&open.watch)))
    }

    /// What is asked of each open brick.
    pub fn watches(&self) -> Vec<(BrickId, Arc<Watch>)> {
        let open = self.open.read();
        open.iter()
            .map(|(id, open)| (*id, Arc::clone(&open.watch)))
            .collect()
    }

    /// How all open bricks stand. Cores that do not answer in time are left out.
    pub async fn states(&self) -> Vec<BrickState> {
        let mut answers = Vec::new();
        for core in self.cores.read().iter() {
            let (tell, told) = tokio::sync::oneshot::channel();
            core.push(Message::Dump(Box::new(move |states| {
                // Whoever asked may have given up.
                let _ = tell.send(states);
            })));
            answers.push(tokio::time::timeout(DUMP_TIME, told));
        }
        let told = join_all(answers).await;
        told.into_iter()
            .filter_map(|told| told.ok()?.ok())
            .flatten()
            .collect()
    }

    /// Bytes of entries not applied in all bricks, and the bound.
    pub fn pending(&self) -> (usize, usize) {
        self.budget.state()
    }

    /// Gives a core a message.
    pub fn push(&self, core: usize, message: Message) {
        if let Some(core) = self.cores.read().get(core) {
            core.push(message);
        }
    }

    /// Closes all bricks in good order and ends the cores.
    pub async fn stop(&self) {
        let all: Vec<BrickId> = self.open.read().keys().copied().collect();
        self.close_all(all).await;
        let cores = std::mem::take(&mut *self.cores.write());
        for core in cores {
            core.join();
        }
    }

    fn tell(&self, brick: BrickId, order: ToBrick) {
        if let Some(core) = self.core_of(brick) {
            self.push(core, Message::Order { brick, order });
        }
    }

    async fn close_all(&self, bricks: Vec<BrickId>) {
        let mut changed = self.changed.subscribe();
        for brick in &bricks {
            self.tell(*brick, ToBrick::Stop);
        }
        let all_stopped = async {
            loop {
                changed.mark_unchanged();
                let stopped = {
                    let open = self.open.read();
                    bricks.iter().all(|brick| {
                        open.get(brick)
                            .is_none_or(|open| open.stopped || open.poisoned.is_some())
                    })
                };
                if stopped || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(STOP_TIME, all_stopped).await.is_err() {
            tracing::warn!(
                "not every brick stopped in good order; they will join again by their logs"
            );
        }
        for brick in bricks {
            if let Some(open) = self.open.write().remove(&brick) {
                self.push(open.core, Message::Close(brick));
            }
        }
    }

    /// The core with the fewest bricks.
    fn lightest(&self) -> usize {
        let mut load = vec![0usize; self.cores.read().len().max(1)];
        for open in self.open.read().values() {
            load[open.core] += 1;
        }
        let least = load.iter().enumerate().min_by_key(|(_, count)| **count);
        least.map_or(0, |(core, _)| core)
    }

    async fn open_brick(
        self: Arc<Self>,
        volume: VolumeInfo,
        set: SetIndex,
        brick: BrickInfo,
    ) -> Result<(), String> {
        if self.core_of(brick.id).is_some() {
            return Ok(());
        }
        let (id, path) = (brick.id, brick.path.clone());
        let set_id = volume.set_id(set);
        let what = Arc::new((volume, brick));
        let mut patience = BUSY_TRIES;
        let store = loop {
            let (stores, what) = (Arc::clone(&self.stores), Arc::clone(&what));
            let opening = move || stores.open(&what.0, set, &what.1);
            // A failure to acquire would mean that it was closed.
            let turn = self.opening.acquire().await;
            let opened = tokio::task::spawn_blocking(opening).await;
            drop(turn);
            match opened {
                Ok(Ok(store)) => break store,
                Ok(Err(failure)) if failure.busy && patience > 0 => {
                    patience -= 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Ok(Err(failure)) => return Err(self.cannot_open(id, failure.message)),
                Err(error) => return Err(self.cannot_open(id, format!("{path}: {error}"))),
            }
        };
        self.failed.lock().remove(&id);
        let run = RunId(random_id());
        let gauge = SpaceGauge::default();
        gauge.set(store.space());
        let core = {
            let core = self.lightest();
            let mut open = self.open.write();
            if open.contains_key(&id) {
                return Ok(());
            }
            let entry = OpenBrick {
                core,
                watch: Watch::new(Fop::NAMES),
                run,
                gauge: gauge.clone(),
                poisoned: None,
                left_out: None,
                stopped: false,
            };
            open.insert(id, entry);
            core
        };
        let config = BrickConfig {
            brick: id,
            node: self.node,
            boot: self.boot,
            run,
            set: set_id,
            storage: store,
            gauge,
        };
        self.push(core, Message::Open(Box::new(config)));
        tracing::info!(brick = %id, path, "open");
        Ok(())
    }

    async fn mark_deleted(&self, brick: BrickInfo) {
        let path = brick.path.clone();
        self.failed.lock().remove(&brick.id);
        for patience in (0..BUSY_TRIES).rev() {
            let (stores, brick) = (Arc::clone(&self.stores), brick.clone());
            let marking = move || stores.mark_deleted(&brick);
            let failure = match tokio::task::spawn_blocking(marking).await {
                Ok(Ok(())) => return,
                Ok(Err(failure)) => failure,
                Err(error) => OpenFailure {
                    busy: false,
                    message: error.to_string(),
                },
            };
            if !failure.busy || patience == 0 {
                let why = failure.message;
                tracing::warn!(path, why, "the brick could not be marked as deleted");
                return;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }

    fn cannot_open(&self, brick: BrickId, error: String) -> String {
        tracing::error!(%brick, "stays offline: {error}");
        self.failed.lock().insert(brick, error.clone());
        error
    }

    /// Notes, and logs once, why a run of a brick cannot be in its set. It may be another node's: then its primary is
    /// here.
    fn note_left_out(&self, brick: BrickId, run: RunId, why: &'static str) {
        let news = match self.open.write().get_mut(&brick) {
            Some(open) if open.run == run => open.left_out.replace(why) != Some(why),
            Some(_) => false,
            None => self.left_out.lock().insert(brick, (run, why)) != Some((run, why)),
        };
        if news {
            tracing::error!(%brick, "stays out of its set: {why}");
        }
    }
}

/// This node's bricks of a volume, with their sets.
fn own_bricks(volume: &VolumeInfo, node: NodeId) -> Vec<(SetIndex, BrickInfo)> {
    let mut own = Vec::new();
    for (index, set) in volume.sets.iter().enumerate() {
        for brick in set.iter().filter(|brick| brick.node == node) {
            own.push((SetIndex(index as u32), brick.clone()));
        }
    }
    own
}

impl Post for Bricks {
    fn send_peer(&self, frame: PeerFrame) {
        match self.core_of(frame.envelope.to) {
            Some(core) => self.push(core, Message::Peer(frame)),
            None => (self.other_nodes)(frame),
        }
    }

    fn report(&self, report: FromBrick) {
        match &report.event {
            BrickEvent::CannotFollow { member, run, .. } => {
                self.note_left_out(*member, *run, LAGS);
            }
            BrickEvent::Started { damaged: true, .. } => {
                self.note_left_out(report.brick, report.run, DAMAGED);
            }
            _ => {}
        }
        let notable = {
            let mut open = self.open.write();
            match (open.get_mut(&report.brick), &report.event) {
                (Some(open), BrickEvent::Poisoned { reason }) if open.run == report.run => {
                    open.poisoned = Some(reason.clone());
                    true
                }
                (Some(open), BrickEvent::Stopped) if open.run == report.run => {
                    open.stopped = true;
                    true
                }
                _ => false,
            }
        };
        if notable {
            self.changed.send_modify(|count| *count += 1);
        }
        // Nobody listens any more while the daemon stops.
        let _ = self.reports.send(report);
    }
}

/// [`Bricks`] as the control plane sees them.
#[derive(Clone, Debug)]
pub struct Host(pub Arc<Bricks>);

/// Runs what blocks on another thread.
fn off_thread(
    job: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> BoxFuture<'static, Result<(), String>> {
    Box::pin(async move {
        let done = tokio::task::spawn_blocking(job).await;
        done.unwrap_or_else(|error| Err(error.to_string()))
    })
}

impl BrickHost for Host {
    fn check(&self, brick: BrickTask) -> BoxFuture<'static, Result<(), String>> {
        let stores = Arc::clone(&self.0.stores);
        off_thread(move || stores.check(&brick))
    }

    fn format(&self, brick: BrickTask) -> BoxFuture<'static, Result<(), String>> {
        let stores = Arc::clone(&self.0.stores);
        off_thread(move || stores.format(&brick))
    }

    fn clear(&self, brick: BrickInfo, chore: Chore) -> BoxFuture<'static, ()> {
        let bricks = Arc::clone(&self.0);
        Box::pin(async move {
            match chore {
                Chore::Unformat => {
                    let stores = Arc::clone(&bricks.stores);
                    let job = move || {
                        stores.unformat(&brick);
                        Ok(())
                    };
                    if let Err(error) = off_thread(job).await {
                        tracing::error!(%error, "what was formatted could not be removed");
                    }
                }
                Chore::MarkDeleted => bricks.mark_deleted(brick).await,
            }
        })
    }

    fn open(&self, volume: VolumeInfo) -> BoxFuture<'static, ()> {
        let bricks = Arc::clone(&self.0);
        Box::pin(async move {
            let opening = own_bricks(&volume, bricks.node)
                .into_iter()
                .map(|(set, brick)| Arc::clone(&bricks).open_brick(volume.clone(), set, brick));
            // What cannot be opened stays offline; it is logged where that is found.
            join_all(opening).await;
        })
    }

    fn close(&self, ids: Vec<BrickId>) -> BoxFuture<'static, ()> {
        let bricks = Arc::clone(&self.0);
        Box::pin(async move { bricks.close_all(ids).await })
    }

    fn is_open(&self) -> Vec<BrickId> {
        self.0.open.read().keys().copied().collect()
    }

    fn stats(&self, bricks: &[BrickId]) -> Vec<Sum> {
        let mut sums = vec![Sum::default(); Fop::NAMES.len()];
        for brick in bricks {
            let Some((_, watch)) = self.0.place_of(*brick) else {
                continue;
            };
            for (sum, more) in sums.iter_mut().zip(watch.sums()) {
                sum.merge(&more);
            }
        }
        sums
    }

    fn order(&self, brick: BrickId, order: ToBrick) {
        tracing::debug!(%brick, ?order, "an order");
        self.0.tell(brick, order);
    }

    fn health(&self, brick: BrickId) -> BrickHealth {
        match self.0.open.read().get(&brick) {
            Some(open) => BrickHealth {
                online: open.poisoned.is_none() && !open.stopped,
                run: Some(open.run),
                reason: match (&open.poisoned, open.left_out) {
                    (Some(reason), _) => reason.clone(),
                    (None, why) => why.unwrap_or_default().to_owned(),
                },
                space: Some(open.gauge.get()),
            },
            None => {
                let failed = self.0.failed.lock().get(&brick).cloned();
                let known = self.0.left_out.lock().get(&brick).copied();
                let (run, reason) = match (failed, known) {
                    (Some(why), _) => (None, why),
                    (None, Some((run, why))) => (Some(run), why.to_owned()),
                    (None, None) => (None, String::new()),
                };
                BrickHealth {
                    run,
                    reason,
                    ..BrickHealth::default()
                }
            }
        }
    }
}
