//! A volume's record, its sets and their views, kept up to date.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use mortar_protocol::admin::{AdminReply, AdminRequest, BrickStatus};
use mortar_protocol::env::Env;
use mortar_protocol::error::Errno;
use mortar_protocol::ids::{NodeId, SessionId, SetIndex, TxnId};
use mortar_protocol::transport::{Lost, Transport};
use mortar_protocol::view::{View, VolumeInfo, VolumeState};
use mortar_protocol::watch::Watch;
use parking_lot::RwLock;

use super::hub::{Hub, Service};
use super::servers::Resolve;
use super::set::Set;

/// A long poll is given up after this; the server answers after 10 s.
const LONG_POLL: Duration = Duration::from_secs(15);
/// Time for a look at the views that somebody waits for.
const LOOK: Duration = Duration::from_secs(2);
/// Shortest time between two such looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// The same where the volume is not there (who needs it sooner asks for it).
const WHILE_MISSING: Duration = Duration::from_secs(1);

/// Most bricks named in a line.
const NAMED: usize = 3;

/// Tells whether this client holds an inode open.
pub type OpenCheck = Arc<dyn Fn(mortar_protocol::ids::InodeId) -> bool + Send + Sync>;

/// Why a volume could not be connected. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered.
    #[error("no answer from {0}; is mortard running there?")]
    NoAnswer(String),
    /// The certificate, cluster or wire version does not fit.
    #[error("{0} refused this client: its certificate, cluster or version does not fit")]
    Rejected(String),
    /// The control plane refused; the text is its own.
    #[error("{0}")]
    Refused(String),
    /// The volume is not started.
    #[error("volume {0} is not started; run 'mortar volume start {0}'")]
    NotStarted(String),
    /// The servers answer, the volume's bricks do not.
    #[error("volume {0} does not answer ({1:?}); see 'mortar volume status {0}'")]
    NotServing(String, Errno),
    /// The servers answer, but its sets have not opened in the time they have for it (in seconds).
    #[error("volume {0} has not opened within {1} s: {2}; see 'mortar volume status {0}'")]
    NotOpen(String, u64, String),
}

struct Known {
    volume: Arc<VolumeInfo>,
    version: u64,
}

/// A volume's record and sets. Dropping it ends its background work.
pub struct Cluster {
    pub(super) hub: Arc<Hub>,
    known: RwLock<Known>,
    sets: RwLock<Arc<[Arc<Set>]>>,
}

struct Layout {
    volume: VolumeInfo,
    views: Vec<Option<View>>,
    nodes: Vec<(NodeId, Vec<SocketAddr>)>,
    version: u64,
}

impl Cluster {
    /// Finds the volume `name` through one of `servers` and opens a session, within `limit`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        env: Arc<dyn Env>,
        transport: Arc<dyn Transport>,
        servers: &[SocketAddr],
        name: &str,
        limit: Duration,
    ) -> Result<Arc<Self>, ConnectError> {
        let listed = || {
            let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
            servers.join(", ")
        };
        let until = env.now().after(limit);
        let hub = Arc::new(Hub::new(env, transport, servers.to_vec(), name.to_owned()));
        let layout = match ask_layout(&hub, 0, limit).await {
            Ok(Ok(layout)) => layout,
            Ok(Err(message)) => return Err(ConnectError::Refused(message)),
            Err(Lost::Rejected) => return Err(ConnectError::Rejected(listed())),
            Err(_) => return Err(ConnectError::NoAnswer(listed())),
        };
        if layout.volume.state != VolumeState::Started {
            return Err(ConnectError::NotStarted(name.to_owned()));
        }
        let cluster = Arc::new(Self {
            hub,
            known: RwLock::new(Known {
                volume: Arc::new(layout.volume.clone()),
                version: 0,
            }),
            sets: RwLock::new(Arc::from([])),
        });
        cluster.apply(layout);
        let hub = &cluster.hub;
        let left = until.since(hub.env.now());
        hub.first_session(left).await.map_err(|why| match why {
            Some(message) => ConnectError::Refused(message),
            None => ConnectError::NoAnswer(listed()),
        })?;
        hub.env
            .spawn(Box::pin(watch(Arc::downgrade(&cluster), hub.clone())));
        Ok(cluster)
    }

    /// What the control plane says of bricks that are not in their sets, in words; `None` if it does not answer.
    ///
    /// # Errors
    /// Its refusal: the volume is not in service.
    pub(crate) async fn missing(&self) -> Result<Option<String>, ConnectError> {
        let request = AdminRequest::Status {
            volume: self.hub.name.clone(),
        };
        match self.hub.admin(&request, LOOK, LOOK).await {
            Ok(AdminReply::Status { bricks, .. }) => Ok(Some(missing(&bricks))),
            Ok(AdminReply::Refused { message }) => Err(ConnectError::Refused(message)),
            _ => Ok(None),
        }
    }

    /// `cluster.open-wait`.
    pub(crate) fn open_wait(&self) -> Duration {
        option_seconds(&self.volume().options, "cluster.open-wait").unwrap_or_default()
    }

    /// Says who is told of what goes wrong outside of any operation.
    pub(crate) fn set_watch(&self, watch: Arc<Watch>) {
        self.hub.set_watch(watch);
    }

    /// Says how the names of the servers are resolved when none of them answers.
    pub(crate) fn set_resolve(&self, resolve: Resolve) {
        self.hub.set_resolve(resolve);
    }

    /// The volume's record.
    pub fn volume(&self) -> Arc<VolumeInfo> {
        self.known.read().volume.clone()
    }

    /// All sets, by index.
    pub fn sets(&self) -> Arc<[Arc<Set>]> {
        self.sets.read().clone()
    }

    /// One set; the last one if there is no such (a layout never names one that is not there).
    pub fn set(&self, index: SetIndex) -> Arc<Set> {
        let sets = self.sets.read();
        let at = (index.0 as usize).min(sets.len() - 1);
        sets[at].clone()
    }

    /// Time, randomness and tasks.
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.hub.env
    }

    /// The session; another number than before means that its locks are lost.
    pub fn session(&self) -> SessionId {
        self.hub.session()
    }

    /// An id for a transaction.
    pub fn txn_id(&self) -> TxnId {
        self.hub.txn_id()
    }

    /// Ends the session on every set that knows it, and the background work.
    pub async fn close(&self) {
        let sets = self.sets();
        let ends = sets.iter().map(|set| set.end());
        futures_util::future::join_all(ends).await;
        self.hub.close();
    }

    fn apply(&self, layout: Layout) {
        let Layout {
            volume,
            views,
            nodes,
            version,
        } = layout;
        if self.known.read().volume.id != volume.id {
            return self.serves(Service::Replaced);
        }
        self.serves(match volume.state {
            VolumeState::Started => Service::Started,
            VolumeState::Created | VolumeState::Stopped => Service::Stopped,
        });
        self.hub.set_nodes(nodes);
        if let Some(seconds) = option_seconds(&volume.options, "network.frame-timeout") {
            self.hub.set_frame_timeout(seconds);
        }
        if let Some(time) = option_seconds(&volume.options, "network.session-timeout") {
            self.hub.set_session_timeout(time);
        }
        let news = {
            let mut known = self.known.write();
            let news = known.version != version;
            known.version = version;
            if known.volume.version <= volume.version {
                known.volume = Arc::new(volume.clone());
            }
            news
        };
        if news {
            // Sets may ask something with the next renewal.
            self.hub.was_active();
            self.hub.changed.notify_waiters();
        }
        {
            let mut sets = self.sets.write();
            // Once an index is out it stays: requests name sets by it.
            let wanted = volume.sets.len().max(sets.len()).max(1) as u32;
            if wanted as usize != sets.len() {
                *sets = (0..wanted)
                    .map(|index| match sets.get(index as usize) {
                        Some(set) => set.clone(),
                        None => Arc::new(Set::new(SetIndex(index), self.hub.clone())),
                    })
                    .collect();
            }
        }
        for (set, view) in self.sets().iter().zip(views) {
            match view {
                Some(view) => drop(set.offer(view)),
                None => set.refresh(),
            }
        }
    }
}

impl Cluster {
    /// The volume's record as soon as it is not of this version.
    pub async fn newer_volume(&self, version: u64) -> Arc<VolumeInfo> {
        loop {
            let mut changed = std::pin::pin!(self.hub.changed.notified());
            changed.as_mut().enable();
            let volume = self.volume();
            if volume.version != version {
                return volume;
            }
            changed.await;
        }
    }

    /// Takes up whether the volume is in service, and wakes who waits if it is not.
    fn serves(&self, service: Service) {
        if self.hub.set_service(service) {
            let volume = &self.hub.name;
            match service {
                Service::Started => tracing::info!(volume, "the volume is started again"),
                _ => tracing::warn!(volume, "{}: calls end with ENOTCONN", service.why()),
            }
        }
        if service != Service::Started {
            self.sets().iter().for_each(|set| set.wake());
        }
        self.hub.looked.notify_waiters();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.hub.close();
    }
}

/// Bricks that are not in their sets, and why: first those that do not run, for which the others wait.
fn missing(bricks: &[BrickStatus]) -> String {
    let not_in_sync = |online: bool| {
        let bricks = bricks.iter();
        bricks.filter(move |brick| !brick.in_sync && brick.online == online)
    };
    let mut told: Vec<String> = not_in_sync(false)
        .chain(not_in_sync(true))
        .map(|brick| format!("{}:{}: {}", brick.spec.host, brick.spec.path, brick.reason))
        .collect();
    if told.len() > NAMED {
        let more = told.len() - NAMED;
        told.truncate(NAMED);
        told.push(format!("and {more} more bricks"));
    }
    match told.is_empty() {
        true => "its sets take up their work".to_owned(),
        false => told.join("; "),
    }
}

fn option_seconds(options: &BTreeMap<String, String>, name: &str) -> Option<Duration> {
    let value = match options.get(name) {
        Some(value) => value.as_str(),
        None => mortar_protocol::options::find(name)?.default,
    };
    let seconds: u64 = value.trim_end_matches(['s', 'S']).parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The layout, or why the control plane refuses it.
async fn ask_layout(
    hub: &Hub,
    newer_than: u64,
    limit: Duration,
) -> Result<Result<Layout, String>, Lost> {
    let request = AdminRequest::Layout {
        volume: hub.name.clone(),
        newer_than,
    };
    let each = if newer_than > 0 { LONG_POLL } else { LOOK };
    Ok(match hub.admin(&request, limit, each).await? {
        AdminReply::Layout {
            volume,
            views,
            nodes,
            version,
        } => Ok(Layout {
            volume,
            views,
            nodes,
            version,
        }),
        AdminReply::Refused { message } => Err(message),
        _ => Err("the server's answer is not one to the question".to_owned()),
    })
}

/// Follows the volume's record and views; looks at once when somebody needs newer ones.
async fn watch(cluster: Weak<Cluster>, hub: Arc<Hub>) {
    // While nobody answers, servers are looked for rather than waited for.
    let mut silent = false;
    loop {
        let Some(version) = cluster
            .upgrade()
            .map(|cluster| cluster.known.read().version)
        else {
            return;
        };
        if hub.is_closed() {
            return;
        }
        let (newer_than, limit) = match silent {
            true => (0, LOOK),
            false => (version, LONG_POLL),
        };
        let poll = std::pin::pin!(ask_layout(&hub, newer_than, limit));
        let poked = std::pin::pin!(hub.poked.notified());
        let layout = match select(poll, poked).await {
            Either::Left((layout, _)) => layout,
            Either::Right(_) => ask_layout(&hub, 0, LOOK).await,
        };
        let Some(cluster) = cluster.upgrade() else {
            return;
        };
        silent = layout.is_err();
        let pause = match layout {
            Ok(Ok(layout)) => {
                cluster.apply(layout);
                if hub.service() == Service::Replaced {
                    return;
                }
                BETWEEN_LOOKS
            }
            // The control plane refuses only what it does not know.
            Ok(Err(_)) => {
                cluster.serves(Service::Missing);
                WHILE_MISSING
            }
            Err(_) => AFTER_FAILURE,
        };
        drop(cluster);
        if pause == WHILE_MISSING {
            // The look that was asked for is made above.
            let poked = std::pin::pin!(hub.poked.notified());
            select(hub.env.sleep(pause), poked).await;
            hub.poke();
            hub.env.sleep(BETWEEN_LOOKS).await;
        } else {
            hub.env.sleep(pause).await;
        }
    }
}
