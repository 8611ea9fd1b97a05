//! Answers management requests on any node: from the node's own copy of the state where that will do, else through the
//! node that leads.

mod locate;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::admin::{AdminReply, AdminRequest, CreateVolume, NodeInfo};
use mortar_protocol::env::Env;
use mortar_protocol::ids::{ClusterId, NodeId, VolumeId};
use mortar_protocol::node::{NodeReply, NodeRequest};
use mortar_protocol::transport::{Identity, Lost, Peer};
use mortar_protocol::view::VolumeInfo;

use super::consensus::Consensus;
use super::hosts;
use super::machine::{State, Volume};
use super::nodes::{Nodes, draw_id, in_time};
use super::sessions::Sessions;
use super::store::{Control, ControlError, LEADER_WAIT};

/// How long a question for a newer layout stays open.
const LAYOUT_WAIT: Duration = Duration::from_secs(10);
/// How long a command may take on the node that leads.
const COMMAND: Duration = Duration::from_secs(100);
/// Pause between two looks for it.
const PAUSE: Duration = Duration::from_millis(100);

/// A refusal: what a person is told.
type Refusal = String;

/// Answers management requests on one node.
pub struct Admin {
    control: Arc<Control>,
    nodes: Arc<dyn Nodes>,
    sessions: Arc<Sessions>,
    env: Arc<dyn Env>,
    cluster: ClusterId,
    node: NodeInfo,
    /// uid of the daemon: besides root the one that may change things.
    uid: u32,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admin({:?})", self.node)
    }
}

impl Admin {
    /// For the node `node` of `cluster`, whose daemon runs as `uid`.
    pub fn new(
        control: Arc<Control>,
        nodes: Arc<dyn Nodes>,
        sessions: Arc<Sessions>,
        env: Arc<dyn Env>,
        (cluster, node): (ClusterId, NodeInfo),
        uid: u32,
    ) -> Self {
        Self {
            control,
            nodes,
            sessions,
            env,
            cluster,
            node,
            uid,
        }
    }

    /// Answers a request.
    pub async fn handle(&self, peer: &Peer, request: AdminRequest) -> AdminReply {
        if is_change(&request) && !self.may_change(peer) {
            return AdminReply::Refused {
                message: "only root and the user mortard runs as may change volumes".to_owned(),
            };
        }
        let answer = self.answer(peer, request).await;
        answer.unwrap_or_else(|message| AdminReply::Refused { message })
    }

    fn may_change(&self, peer: &Peer) -> bool {
        match peer.identity {
            Identity::Node(_) | Identity::Client { uid: 0 } => true,
            Identity::Client { uid } => uid == self.uid,
        }
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
                self.sessions
                    .open(&volume, uid)
                    .await
                    .map(AdminReply::Session)
            }
            AdminRequest::Views { sets } => {
                let state = self.control.state();
                let views = sets
                    .iter()
                    .filter_map(|set| state.set(*set)?.1.current.clone())
                    .collect();
                Ok(AdminReply::Views(views))
            }
            AdminRequest::Info { volume } => self.info(volume.as_deref()),
            AdminRequest::Status { volume } => self.status(&volume).await,
            AdminRequest::Stats { volume } => self.stats(&volume).await,
            AdminRequest::Node => Ok(AdminReply::Node(self.node.clone())),
            AdminRequest::Peers => Ok(AdminReply::Peers(self.peers().await)),
            AdminRequest::Cluster => Ok(AdminReply::Cluster(Box::new(self.cluster().await))),
            AdminRequest::Operations => Ok(AdminReply::Operations(self.operations())),
            AdminRequest::Create(create) => self.create(create).await,
            AdminRequest::Probe { host } => self.probe(host).await,
            other => self.lead(NodeRequest::Lead(other)).await,
        }
    }

    /// Has the node that leads carry out something.
    async fn lead(&self, request: NodeRequest) -> Result<AdminReply, Refusal> {
        let until = self.env.now().after(LEADER_WAIT);
        let mut next = None;
        loop {
            let consensus = self.control.consensus();
            let standing = consensus.map(Consensus::standing).unwrap_or_default();
            let leader = next.take().or(standing.leader);
            // A command that is on its way to a node that has gone silent is lost, and nobody knows whether it was done.
            if let Some(leader) = leader
                && self.nodes.is_there(leader).await
            {
                match self.nodes.ask(leader, request.clone(), COMMAND).await {
                    Ok(NodeReply::Admin(reply)) => return Ok(*reply),
                    Ok(NodeReply::NotLeader(Some(other))) if other != leader => next = Some(other),
                    Ok(_) | Err(Lost::NotSent | Lost::Rejected) => {}
                    Err(Lost::Unknown) => return Err(ControlError::Unknown.to_string()),
                }
            }
            if until.since(self.env.now()).is_zero() {
                return Err(self.control.no_majority().await.to_string());
            }
            self.env.sleep(PAUSE).await;
        }
    }

    fn volume(&self, name: &str) -> Result<Arc<Volume>, Refusal> {
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
        let until = self.env.now().after(LAYOUT_WAIT);
        loop {
            watch.mark_unchanged();
            let state = self.control.state();
            let volume = self.volume(name)?;
            let left = until.since(self.env.now());
            if volume.changed > newer_than || left.is_zero() {
                return Ok(layout_of(&state, &volume, peer.addr));
            }
            if let Some(Err(_)) = in_time(&self.env, left, watch.changed()).await {
                return Ok(layout_of(&state, &volume, peer.addr));
            }
        }
    }

    fn info(&self, name: Option<&str>) -> Result<AdminReply, Refusal> {
        let mut volumes: Vec<VolumeInfo> = match name {
            Some(name) => vec![self.volume(name)?.info.clone()],
            None => {
                let state = self.control.state();
                state.volumes.values().map(|v| v.info.clone()).collect()
            }
        };
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(AdminReply::Volumes(volumes))
    }

    async fn create(&self, create: CreateVolume) -> Result<AdminReply, Refusal> {
        let bricks = self.locate(&create).await?;
        let volume = VolumeId(draw_id(&self.env));
        let request = NodeRequest::Create {
            volume,
            create,
            bricks,
        };
        let lost = ControlError::Unknown.to_string();
        match self.lead(request).await {
            Err(message) if message == lost => self.was_created(volume).await,
            other => other,
        }
    }

    /// The node that led a creation was lost: the next one takes it back unless it was finished.
    async fn was_created(&self, volume: VolumeId) -> Result<AdminReply, Refusal> {
        let until = self.env.now().after(LEADER_WAIT);
        loop {
            let state = self.control.state();
            if state.volumes.contains_key(&volume) {
                return Ok(AdminReply::Done);
            }
            if until.since(self.env.now()).is_zero() {
                return Err(
                    "the node that led the creation was lost; what it began is taken back: try again"
                        .to_owned(),
                );
            }
            self.env.sleep(PAUSE).await;
        }
    }

    /// A probe of the node that was asked is answered here: to the leader it would be another node.
    async fn probe(&self, host: String) -> Result<AdminReply, Refusal> {
        let (name, port) = hosts::split(&host)?;
        let resolved = self.nodes.resolve(&name).await;
        let known = hosts::known(&self.control.state(), &name, &resolved, port);
        let own = self.node.addrs.iter();
        let listens = own
            .clone()
            .any(|addr| resolved.contains(&addr.ip()) && addr.port() == port);
        if known == Some(self.node.id) || listens {
            return Ok(AdminReply::Notes(vec![
                "Probe on localhost not needed".to_owned(),
            ]));
        }
        self.lead(NodeRequest::Lead(AdminRequest::Probe { host }))
            .await
    }
}

/// Whether a request changes something, so that only administrators may make it.
fn is_change(request: &AdminRequest) -> bool {
    !matches!(
        request,
        AdminRequest::Layout { .. }
            | AdminRequest::OpenSession { .. }
            | AdminRequest::Views { .. }
            | AdminRequest::Info { .. }
            | AdminRequest::Status { .. }
            | AdminRequest::Node
            | AdminRequest::Stats { .. }
            | AdminRequest::Peers
            | AdminRequest::Cluster
            | AdminRequest::Operations
    )
}

/// What a client is told of a volume: its record, views, and where its nodes are reached.
pub fn layout_of(state: &State, volume: &Volume, asker: SocketAddr) -> AdminReply {
    let mut nodes: Vec<(NodeId, Vec<SocketAddr>)> = Vec::new();
    for brick in volume.info.sets.iter().flatten() {
        if nodes.iter().any(|(node, _)| *node == brick.node) {
            continue;
        }
        let known = state.nodes.get(&brick.node);
        let known = known.map_or_else(Vec::new, |node| node.addrs.clone());
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

#[cfg(test)]
mod tests;
