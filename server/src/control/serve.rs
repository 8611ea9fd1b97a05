//! Answers what other nodes (and this one) ask of this node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::admin::NodeTold;
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::ids::{BrickId, ClusterId, NodeId};
use mortar_protocol::node::{BrickTask, NodeHealth, NodeReply, NodeRequest};
use mortar_protocol::report::FromBrick;
use mortar_protocol::view::VolumeState;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::machine::Command;
use super::nodes::{BrickHost, in_time, wall_ms};
use super::operations::Operations;
use super::store::Control;

/// How long this node's copy of the state may take to show a creation whose bricks are to be formatted.
const CREATION_KNOWN: Duration = Duration::from_secs(5);

/// Bricks that are being formatted on this node: they are not cleared meanwhile.
#[derive(Clone, Default, Debug)]
pub struct Formatting(Arc<Mutex<BTreeSet<BrickId>>>);

impl Formatting {
    /// Whether a brick is being formatted.
    pub fn has(&self, brick: BrickId) -> bool {
        self.0.lock().contains(&brick)
    }
}

/// See the module.
pub struct Served {
    /// The control plane.
    pub control: Arc<Control>,
    /// The bricks.
    pub host: Arc<dyn BrickHost>,
    /// Bricks that are being formatted.
    pub formatting: Formatting,
    /// Operations, for the time in which this node leads.
    pub operations: Arc<Operations>,
    /// Takes reports in, for the time in which this node leads.
    pub reports: mpsc::UnboundedSender<FromBrick>,
    /// Time.
    pub env: Arc<dyn Env>,
    /// The cluster.
    pub cluster: ClusterId,
    /// Version and process of the daemon.
    pub version: (String, u32),
    /// When the daemon started.
    pub started: Mono,
    /// Told that this node has been taken out of the cluster.
    pub left: watch::Sender<bool>,
}

impl Served {
    /// Answers a request. `from` is the node that asks.
    pub async fn serve(
        &self,
        from: NodeId,
        request: NodeRequest,
        body: Bytes,
    ) -> (NodeReply, Bytes) {
        let nothing = Bytes::new;
        match request {
            NodeRequest::Raft(kind) => match self.control.consensus() {
                Some(part) => match part.serve(from, kind, body).await {
                    Some(answer) => (NodeReply::Raft, answer),
                    None => (not_understood(), nothing()),
                },
                None => (not_understood(), nothing()),
            },
            NodeRequest::Propose => self.propose(&body).await,
            NodeRequest::Reports(reports) => (self.reports(reports), nothing()),
            NodeRequest::Orders(orders) => {
                for (brick, order) in orders {
                    self.host.order(brick, order);
                }
                (NodeReply::Taken, nothing())
            }
            NodeRequest::Lead(request) => {
                let reply = match self.not_leader() {
                    Some(other) => other,
                    None => NodeReply::Admin(Box::new(self.operations.run(request).await)),
                };
                (reply, nothing())
            }
            NodeRequest::Create {
                volume,
                create,
                bricks,
            } => {
                let reply = match self.not_leader() {
                    Some(other) => other,
                    None => {
                        let done = self.operations.create(volume, create, bricks).await;
                        NodeReply::Admin(Box::new(done))
                    }
                };
                (reply, nothing())
            }
            NodeRequest::Check(task) => (done(self.host.check(task).await), nothing()),
            NodeRequest::Format(task) => (done(self.format(task).await), nothing()),
            NodeRequest::Health => (NodeReply::Health(Box::new(self.health())), nothing()),
            NodeRequest::Stats(bricks) => (NodeReply::Stats(self.host.stats(&bricks)), nothing()),
            NodeRequest::Leave => {
                tracing::warn!("this node has been taken out of the cluster");
                self.left.send_replace(true);
                (NodeReply::Taken, nothing())
            }
        }
    }

    /// Formats a brick of a volume that is being created. A request may arrive, or still be carried out, when the
    /// creation was given up: what it makes must not outlive the clearing.
    async fn format(&self, task: BrickTask) -> Result<(), String> {
        let volume = task.volume.id;
        // This node may not have heard of the creation yet.
        let begun = self
            .control
            .when(|state| state.creating.contains_key(&volume));
        in_time(&self.env, CREATION_KNOWN, begun).await;
        let brick = task.brick.id;
        // Noted before the state is looked at: whoever clears the brick sees the note, or this the newer state.
        self.formatting.0.lock().insert(brick);
        let done = match self.control.state().creating.contains_key(&volume) {
            true => self.host.format(task).await,
            false => Err("the creation of this volume was given up".to_owned()),
        };
        self.formatting.0.lock().remove(&brick);
        done
    }

    async fn propose(&self, body: &[u8]) -> (NodeReply, Bytes) {
        let Ok(command) = postcard::from_bytes::<Command>(body) else {
            return (not_understood(), Bytes::new());
        };
        match self.control.propose_here(command).await {
            Ok(Ok(outcome)) => match postcard::to_stdvec(&outcome) {
                Ok(bytes) => (NodeReply::Outcome, bytes.into()),
                Err(error) => (NodeReply::Failed(error.to_string()), Bytes::new()),
            },
            Ok(Err(leader)) => (NodeReply::NotLeader(leader), Bytes::new()),
            Err(error) => (NodeReply::Failed(error.to_string()), Bytes::new()),
        }
    }

    fn not_leader(&self) -> Option<NodeReply> {
        let standing = self.control.consensus()?.standing();
        (!standing.leads).then_some(NodeReply::NotLeader(standing.leader))
    }

    fn reports(&self, reports: Vec<FromBrick>) -> NodeReply {
        if let Some(other) = self.not_leader() {
            return other;
        }
        for report in reports {
            // Nobody listens any more while the daemon stops.
            let _ = self.reports.send(report);
        }
        NodeReply::Taken
    }

    fn health(&self) -> NodeHealth {
        let state = self.control.state();
        let own = self.control.consensus().map(|part| part.own());
        let (mut bricks, mut others) = (Vec::new(), Vec::new());
        let mut space = (0, 0);
        for volume in state.volumes.values() {
            if volume.info.state != VolumeState::Started {
                continue;
            }
            for brick in volume.info.sets.iter().flatten() {
                if Some(brick.node) == own {
                    bricks.push(brick.id);
                    continue;
                }
                let known = self.host.health(brick.id);
                if !known.reason.is_empty() {
                    others.push((brick.id, known));
                }
            }
        }
        // Bricks of a volume that was just stopped are on their way out and count until they are.
        let open = self.host.is_open();
        bricks.extend(open.iter().copied());
        bricks.sort_unstable();
        bricks.dedup();
        let mut bricks: Vec<_> = bricks
            .into_iter()
            .map(|brick: BrickId| (brick, self.host.health(brick)))
            .collect();
        bricks.append(&mut others);
        for (_, health) in &bricks {
            if let Some(own) = &health.space {
                space.0 += own.total;
                space.1 += own.free;
            }
        }
        NodeHealth {
            cluster: self.cluster,
            told: NodeTold {
                version: self.version.0.clone(),
                pid: self.version.1,
                clock_ms: wall_ms(&self.env),
                uptime_secs: self.env.now().since(self.started).as_secs(),
                applied: state.applied,
                bricks: open.len() as u32,
                space,
            },
            bricks,
        }
    }
}

fn not_understood() -> NodeReply {
    NodeReply::Failed("the message makes no sense to this version".to_owned())
}

fn done(result: Result<(), String>) -> NodeReply {
    match result {
        Ok(()) => NodeReply::Taken,
        Err(message) => NodeReply::Failed(message),
    }
}
