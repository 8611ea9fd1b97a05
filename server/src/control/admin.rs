//! Answers management requests: checks what depends on this machine, proposes commands, has bricks formatted, opened
//! and closed.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mortar_protocol::admin::{
    AdminReply, AdminRequest, BrickSpec, BrickStatus, CreateVolume, NodeInfo,
};
use mortar_protocol::enrol::is_local;
use mortar_protocol::entry::Space;
use mortar_protocol::env_real::random_id;
use mortar_protocol::ids::{BrickId, RunId, SetIndex, VolumeId};
use mortar_protocol::transport::{Identity, Peer};
use mortar_protocol::view::{BrickInfo, Member, SetKind, VolumeInfo, VolumeState};
use mortar_protocol::watch::OpStats;

use super::machine::{Command, Outcome, State, Volume};
use super::store::Control;

/// How long a question for a newer layout stays open.
const LAYOUT_WAIT: Duration = Duration::from_secs(10);

/// A brick to be formatted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormatBrick {
    /// Its volume.
    pub volume: VolumeInfo,
    /// Its set.
    pub set: SetIndex,
    /// The brick.
    pub brick: BrickInfo,
    /// Size of a file brick in bytes, if a person named one.
    pub size: Option<u64>,
    /// What the target holds may be given up.
    pub force: bool,
}

/// How a brick of this node is doing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BrickHealth {
    /// It is open.
    pub online: bool,
    /// The run that has it open.
    pub run: Option<RunId>,
    /// What is wrong with it, if something is.
    pub reason: String,
    /// Its space, if it is open.
    pub space: Option<Space>,
}

/// The part of the daemon that has the bricks.
pub trait BrickHost: Send + Sync + 'static {
    /// Formats a brick. The error is told to a person.
    fn format(&self, brick: FormatBrick) -> BoxFuture<'static, Result<(), String>>;
    /// Takes back what [`Self::format`] made, as far as it is still what was made.
    fn unformat(&self, brick: BrickInfo) -> BoxFuture<'static, ()>;
    /// Opens the bricks of a started volume that are not open. The error names those that cannot be.
    fn open(&self, volume: VolumeInfo) -> BoxFuture<'static, Result<(), String>>;
    /// Closes the bricks of a volume in good order.
    fn close(&self, volume: VolumeInfo) -> BoxFuture<'static, ()>;
    /// Marks the bricks of a deleted volume, so that they are never opened again. Their contents stay.
    fn mark_deleted(&self, volume: VolumeInfo) -> BoxFuture<'static, ()>;
    /// How a brick is doing.
    fn health(&self, brick: BrickId) -> BrickHealth;
    /// Counts and latencies of what clients asked of these bricks of this node.
    fn stats(&self, _bricks: &[BrickId]) -> Vec<OpStats> {
        Vec::new()
    }
}

/// Answers management requests.
pub struct Admin {
    control: Arc<Control>,
    host: Arc<dyn BrickHost>,
    node: NodeInfo,
    /// uid of the daemon: besides root the one that may change things.
    uid: u32,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admin({:?})", self.node)
    }
}

/// How long a set may take to open beyond the time for which it waits for members.
const OPEN_TIME: Duration = Duration::from_secs(5);

/// A refusal: what a person is told.
type Refusal = String;

impl Admin {
    /// For a daemon that runs as `uid`.
    pub fn new(control: Arc<Control>, host: Arc<dyn BrickHost>, node: NodeInfo, uid: u32) -> Self {
        Self {
            control,
            host,
            node,
            uid,
        }
    }

    /// What must be done when a daemon starts: removes what an interrupted creation left, says where this node
    /// listens, and opens the bricks of started volumes.
    ///
    /// # Errors
    /// If the control plane cannot write.
    pub async fn recover(&self) -> Result<(), super::store::ControlError> {
        let announce = Command::Node {
            node: self.node.id,
            addrs: self.node.addrs.clone(),
        };
        if self.control.state().nodes.get(&self.node.id) != Some(&self.node.addrs) {
            self.control.propose(announce).await?;
        }
        let state = self.control.state();
        for (volume, info) in &state.creating {
            tracing::info!(
                volume = info.name,
                "gives up a creation that was interrupted"
            );
            for brick in info.sets.iter().flatten() {
                self.host.unformat(brick.clone()).await;
            }
            let abort = Command::AbortCreate { volume: *volume };
            self.control.propose(abort).await?;
        }
        for volume in state.volumes.values() {
            if volume.info.state == VolumeState::Started {
                // What cannot be opened stays offline; it is logged where that is found.
                let _ = self.host.open(volume.info.clone()).await;
            }
        }
        Ok(())
    }

    /// Answers a request.
    pub async fn handle(&self, peer: &Peer, request: AdminRequest) -> AdminReply {
        let changes = !matches!(
            request,
            AdminRequest::Layout { .. }
                | AdminRequest::OpenSession { .. }
                | AdminRequest::Views { .. }
                | AdminRequest::Info { .. }
                | AdminRequest::Status { .. }
                | AdminRequest::Node
                | AdminRequest::Stats { .. }
        );
        let allowed = match peer.identity {
            Identity::Node(_) | Identity::Client { uid: 0 } => true,
            Identity::Client { uid } => uid == self.uid,
        };
        if changes && !allowed {
            return AdminReply::Refused {
                message: "only root and the user mortard runs as may change volumes".to_owned(),
            };
        }
        self.answer(peer, request)
            .await
            .unwrap_or_else(|message| AdminReply::Refused { message })
    }

    async fn answer(&self, peer: &Peer, request: AdminRequest) -> Result<AdminReply, Refusal> {
        match request {
            AdminRequest::Layout { volume, newer_than } => {
                self.layout(peer, &volume, newer_than).await
            }
            AdminRequest::OpenSession { volume } => {
                let uid = match peer.identity {
                    Identity::Client { uid } => uid,
                    Identity::Node(_) => 0,
                };
                self.propose(Command::OpenSession { volume, uid }).await
            }
            AdminRequest::Views { sets } => {
                let state = self.control.state();
                let views = sets
                    .iter()
                    .filter_map(|set| state.set(*set)?.1.current.clone())
                    .collect();
                Ok(AdminReply::Views(views))
            }
            AdminRequest::Create(create) => self.create(create).await,
            AdminRequest::Start { volume, force } => self.start(volume, force).await,
            AdminRequest::Stop { volume, .. } => {
                let info = self.volume(&volume).map(|found| found.info);
                let reply = self.propose(Command::Stop { volume }).await?;
                if let Ok(info) = info {
                    self.host.close(info).await;
                }
                Ok(reply)
            }
            AdminRequest::Delete { volume } => {
                let info = self.volume(&volume).map(|found| found.info);
                let reply = self.propose(Command::Delete { volume }).await?;
                if let Ok(info) = info {
                    self.host.mark_deleted(info).await;
                }
                Ok(reply)
            }
            AdminRequest::Info { volume } => self.info(volume.as_deref()),
            AdminRequest::Status { volume } => self.status(&volume),
            AdminRequest::Stats { volume } => self.stats(&volume),
            AdminRequest::Set { volume, options } => {
                self.propose(Command::Set { volume, options }).await
            }
            AdminRequest::Reset { volume, option } => {
                self.propose(Command::Reset { volume, option }).await
            }
            AdminRequest::Node => Ok(AdminReply::Node(self.node.clone())),
            AdminRequest::Probe { .. }
            | AdminRequest::Detach { .. }
            | AdminRequest::Peers
            | AdminRequest::Cluster
            | AdminRequest::Operations => {
                Err("clusters of several nodes are being built".to_owned())
            }
        }
    }

    async fn propose(&self, command: Command) -> Result<AdminReply, Refusal> {
        match self.control.propose(command).await {
            Ok(Outcome::Done) => Ok(AdminReply::Done),
            Ok(Outcome::Notes(lines)) => Ok(AdminReply::Notes(lines)),
            Ok(Outcome::Session(session)) => Ok(AdminReply::Session(session)),
            Ok(Outcome::Refused(message)) => Err(message),
            Err(error) => Err(format!("the control plane cannot write: {error}")),
        }
    }

    fn volume(&self, name: &str) -> Result<Volume, Refusal> {
        let state = self.control.state();
        let volume = state.volume(name).cloned();
        volume.ok_or_else(|| format!("Volume {name} does not exist"))
    }

    async fn layout(
        &self,
        peer: &Peer,
        name: &str,
        newer_than: u64,
    ) -> Result<AdminReply, Refusal> {
        let mut watch = self.control.watch();
        let deadline = tokio::time::sleep(LAYOUT_WAIT);
        tokio::pin!(deadline);
        loop {
            watch.mark_unchanged();
            let state = self.control.state();
            let volume = self.volume(name)?;
            if volume.changed > newer_than {
                return Ok(layout_of(&state, &volume, peer.addr));
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() {
                    return Ok(layout_of(&state, &volume, peer.addr));
                },
                () = &mut deadline => return Ok(layout_of(&state, &volume, peer.addr)),
            }
        }
    }

    fn info(&self, name: Option<&str>) -> Result<AdminReply, Refusal> {
        let mut volumes: Vec<VolumeInfo> = match name {
            Some(name) => vec![self.volume(name)?.info],
            None => {
                let state = self.control.state();
                state.volumes.values().map(|v| v.info.clone()).collect()
            }
        };
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(AdminReply::Volumes(volumes))
    }

    fn stats(&self, name: &str) -> Result<AdminReply, Refusal> {
        let volume = self.volume(name)?;
        let sets = volume.info.sets.iter().flatten();
        let bricks: Vec<BrickId> = sets.map(|brick| brick.id).collect();
        Ok(AdminReply::Stats(self.host.stats(&bricks)))
    }

    fn status(&self, name: &str) -> Result<AdminReply, Refusal> {
        let volume = self.volume(name)?;
        if volume.info.state != VolumeState::Started {
            return Err(format!("Volume {name} is not started"));
        }
        let port = self.node.addrs.first().map_or(0, SocketAddr::port);
        let mut bricks = Vec::new();
        for (set, views) in volume.info.sets.iter().zip(&volume.sets) {
            let opened = views.current.as_ref().is_some_and(|view| {
                let runs = |member: &Member| self.host.health(member.brick).run == Some(member.run);
                view.members.iter().any(runs)
            });
            for brick in set {
                let health = self.host.health(brick.id);
                let in_sync = views.current.as_ref().is_some_and(|view| {
                    view.member(brick.id)
                        .is_some_and(|member| Some(member.run) == health.run)
                });
                let reason = match (&health.reason[..], health.online, in_sync) {
                    (_, true, true) => String::new(),
                    ("", false, _) => "not open".to_owned(),
                    ("", true, false) if !opened => "its set waits for members".to_owned(),
                    ("", true, false) => "joining its set".to_owned(),
                    (reason, ..) => reason.to_owned(),
                };
                bricks.push(BrickStatus {
                    brick: brick.id,
                    spec: BrickSpec {
                        host: brick.host.clone(),
                        path: brick.path.clone(),
                    },
                    online: health.online,
                    in_sync: health.online && in_sync,
                    port,
                    pid: self.node.pid,
                    reason,
                    space: health.space,
                });
            }
        }
        Ok(AdminReply::Status {
            clients: volume.sessions.len() as u32,
            volume: volume.info,
            bricks,
        })
    }

    async fn start(&self, name: String, force: bool) -> Result<AdminReply, Refusal> {
        let was_started = self
            .volume(&name)
            .is_ok_and(|volume| volume.info.state == VolumeState::Started);
        let reply = self
            .propose(Command::Start {
                volume: name.clone(),
                force,
            })
            .await?;
        let volume = self.volume(&name)?;
        let opened = self.host.open(volume.info.clone()).await;
        // A set with members that do not answer opens without them only after that time.
        let wait = Duration::from_secs(volume.seconds("cluster.open-wait")) + OPEN_TIME;
        let served = tokio::time::timeout(wait, self.all_serve(&name)).await;
        match (opened, served) {
            (Ok(()), Ok(())) => Ok(reply),
            // What can be served is; the person must know of the rest.
            (Err(error), Ok(())) => Ok(AdminReply::Notes(vec![error])),
            (opened, Err(_)) => {
                if !was_started {
                    // As before, so that another start says the same.
                    let stop = Command::Stop {
                        volume: name.clone(),
                    };
                    self.propose(stop).await?;
                    self.host.close(volume.info).await;
                }
                Err(match opened {
                    Err(error) => error,
                    Ok(()) => format!("not every set of {name} serves after {} s", wait.as_secs()),
                })
            }
        }
    }

    async fn all_serve(&self, name: &str) {
        let mut watch = self.control.watch();
        loop {
            watch.mark_unchanged();
            let all = self.control.state().volume(name).is_some_and(|volume| {
                volume.sets.iter().all(|set| {
                    set.current.as_ref().is_some_and(|view| {
                        view.effective
                            && view.members.iter().all(|member| {
                                let health = self.host.health(member.brick);
                                health.online && health.run == Some(member.run)
                            })
                    })
                })
            });
            if all || watch.changed().await.is_err() {
                return;
            }
        }
    }

    async fn create(&self, create: CreateVolume) -> Result<AdminReply, Refusal> {
        let bricks = self.locate(&create)?;
        let volume = VolumeId(random_id());
        self.propose(Command::BeginCreate {
            volume,
            name: create.name.clone(),
            kind: create.kind,
            bricks: bricks.clone(),
        })
        .await?;
        let formatted = self.format(volume, &create).await;
        match formatted {
            Ok(()) => self.propose(Command::FinishCreate { volume }).await,
            Err(message) => {
                self.propose(Command::AbortCreate { volume }).await?;
                Err(message)
            }
        }
    }

    async fn format(&self, id: VolumeId, create: &CreateVolume) -> Result<(), Refusal> {
        let state = self.control.state();
        let volume = state
            .creating
            .get(&id)
            .ok_or("the creation of this volume was given up")?;
        let mut made = Vec::new();
        for (index, set) in volume.sets.iter().enumerate() {
            for brick in set {
                let formatted = self
                    .host
                    .format(FormatBrick {
                        volume: volume.clone(),
                        set: SetIndex(index as u32),
                        brick: brick.clone(),
                        size: create.brick_size,
                        force: create.force,
                    })
                    .await;
                if let Err(message) = formatted {
                    for brick in made {
                        self.host.unformat(brick).await;
                    }
                    return Err(message);
                }
                made.push(brick.clone());
            }
        }
        Ok(())
    }

    /// Finds the nodes of the bricks and checks their paths.
    fn locate(&self, create: &CreateVolume) -> Result<Vec<BrickInfo>, Refusal> {
        let mut bricks = Vec::new();
        for spec in &create.bricks {
            let BrickSpec { host, path } = spec;
            if !self.is_here(host) {
                return Err(format!("Host {host} is not in 'Peer in Cluster' state"));
            }
            let path = normal(path).ok_or_else(|| {
                format!("{host}:{path}: a brick's path starts with / and has no ..")
            })?;
            if !create.force && in_root_partition(Path::new(&path)) {
                return Err(format!(
                    "The brick {host}:{path} is being created in the root partition. It is recommended that you \
                     don't use the system's root partition for storage backend. Or use 'force' at the end of the \
                     command if you want to override this behavior."
                ));
            }
            bricks.push(BrickInfo {
                id: BrickId(random_id()),
                node: self.node.id,
                host: host.clone(),
                path,
            });
        }
        let width = create.kind.width().max(1);
        let crowded = |set: &[BrickInfo]| {
            set.iter()
                .enumerate()
                .any(|(at, brick)| set[..at].iter().any(|other| other.node == brick.node))
        };
        let replicated = matches!(create.kind, SetKind::Replicate { .. });
        if replicated && !create.force && bricks.chunks(width).any(crowded) {
            return Err(
                "Multiple bricks of a replicate volume are present on the same server. This setup is not optimal. \
                 Bricks should be on different nodes to have best fault tolerant configuration. Use 'force' at the \
                 end of the command if you want to override this behavior."
                    .to_owned(),
            );
        }
        Ok(bricks)
    }

    fn is_here(&self, host: &str) -> bool {
        let own = rustix::system::uname();
        if own.nodename().to_bytes() == host.as_bytes() {
            return true;
        }
        // Resolving may ask a name server; commands are rare and the control plane's thread has no part in I/O.
        let resolved = (host, 0u16).to_socket_addrs();
        resolved.is_ok_and(|mut addrs| addrs.any(|addr| is_local(addr.ip())))
    }
}

/// What a client is told of a volume: its record, views, and where its nodes are reached.
pub fn layout_of(state: &State, volume: &Volume, asker: SocketAddr) -> AdminReply {
    let mut nodes = Vec::new();
    for brick in volume.info.sets.iter().flatten() {
        if nodes.iter().any(|(node, _)| *node == brick.node) {
            continue;
        }
        let known = state.nodes.get(&brick.node).cloned().unwrap_or_default();
        // Loopback addresses say nothing to another machine.
        let mut addrs: Vec<SocketAddr> = known
            .iter()
            .filter(|addr| asker.ip().is_loopback() || !addr.ip().is_loopback())
            .copied()
            .collect();
        if addrs.is_empty() {
            addrs = known;
        }
        nodes.push((brick.node, addrs));
    }
    AdminReply::Layout {
        volume: volume.info.clone(),
        views: volume.sets.iter().map(|set| set.current.clone()).collect(),
        nodes,
        version: volume.changed,
    }
}

/// An absolute path without `.`, `..` and doubled slashes.
fn normal(path: &str) -> Option<String> {
    let rest = path.strip_prefix('/')?;
    let mut parts = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part if part.contains('\0') => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("/{}", parts.join("/")))
}

/// Whether a path, or where it would be made, lies on the root file system. Block devices do not.
fn in_root_partition(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(root) = std::fs::metadata("/") else {
        return false;
    };
    for place in path.ancestors() {
        if let Ok(meta) = std::fs::metadata(place) {
            return !meta.file_type().is_block_device() && meta.dev() == root.dev();
        }
    }
    true
}

#[cfg(test)]
mod tests;
