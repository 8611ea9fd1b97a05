//! What the leading node carries out for a person: operations of several steps over all nodes. Each is recorded before
//! it starts; what a leader that died has left is taken back by the next one.

mod create;
mod membership;
mod peers;
mod volumes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::ids::{BrickId, NodeId, VolumeId};
use mortar_protocol::node::{NodeHealth, NodeReply, NodeRequest};
use parking_lot::Mutex;

use super::machine::{Command, Outcome};
use super::nodes::{Gate, Nodes, wall_ms};
use super::store::Control;

/// A refusal: what a person is told.
pub(super) type Refusal = String;

/// How long a node has to say how it is doing.
pub(super) const LOOK: Duration = Duration::from_millis(1_500);
/// Between two looks at how other nodes do.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Carries out operations while this node leads.
pub struct Operations {
    control: Arc<Control>,
    nodes: Arc<dyn Nodes>,
    gate: Arc<dyn Gate>,
    env: Arc<dyn Env>,
    own: NodeId,
    /// A node that was just told to join starts over, and hears nobody until this moment.
    deaf: Mutex<Option<(NodeId, Mono)>>,
    /// Creations that are being carried out here.
    creating: Mutex<BTreeSet<VolumeId>>,
}

impl std::fmt::Debug for Operations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operations({})", self.own)
    }
}

impl Operations {
    /// Over the control plane and the ways to all nodes, on the node `own`.
    pub fn new(
        control: Arc<Control>,
        nodes: Arc<dyn Nodes>,
        gate: Arc<dyn Gate>,
        env: Arc<dyn Env>,
        own: NodeId,
    ) -> Self {
        Self {
            control,
            nodes,
            gate,
            env,
            own,
            deaf: Mutex::default(),
            creating: Mutex::default(),
        }
    }

    /// Carries out a command that any leader can carry out.
    pub async fn run(&self, request: AdminRequest) -> AdminReply {
        let done = match request {
            AdminRequest::Start { volume, force } => self.start(volume, force).await,
            AdminRequest::Stop { volume, .. } => self.stop(volume).await,
            AdminRequest::Delete { volume } => self.delete(volume).await,
            AdminRequest::Set { volume, options } => {
                self.propose(Command::Set { volume, options }).await
            }
            AdminRequest::Reset { volume, option } => {
                self.propose(Command::Reset { volume, option }).await
            }
            AdminRequest::Probe { host } => self.probe(host).await,
            AdminRequest::Detach { host, force } => self.detach(host, force).await,
            _ => Err("this is not a command for the leading node".to_owned()),
        };
        done.unwrap_or_else(|message| AdminReply::Refused { message })
    }

    /// Takes back what other leaders have left unfinished: those before this one, and one that has not noticed that it
    /// leads no more. To be called now and then while this node leads.
    ///
    /// # Errors
    /// If this node does not lead any more.
    pub async fn recover(&self) -> Result<(), Refusal> {
        for (volume, creating) in &self.control.state().creating {
            if self.creating.lock().contains(volume) {
                continue;
            }
            tracing::info!(
                volume = creating.info.name,
                "gives up a creation that was interrupted"
            );
            let abort = Command::AbortCreate { volume: *volume };
            self.propose(abort).await?;
        }
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<AdminReply, Refusal> {
        match self.control.propose(command).await {
            Ok(Outcome::Done) => Ok(AdminReply::Done),
            Ok(Outcome::Notes(lines)) => Ok(AdminReply::Notes(lines)),
            Ok(Outcome::Refused(message)) => Err(message),
            Err(error) => Err(error.to_string()),
        }
    }

    fn now_secs(&self) -> i64 {
        self.env.wall().secs
    }

    /// The host a node is known by.
    fn host_of(&self, node: NodeId) -> String {
        self.control.state().host_of(node)
    }

    /// How nodes are doing, asked side by side; nothing from those that do not answer.
    async fn health(&self, nodes: &[NodeId]) -> Vec<(NodeId, Option<NodeHealth>)> {
        health(&self.env, &self.nodes, nodes).await
    }

    /// Waits until the bricks have been dealt with by those of these nodes that answer, for at most `limit`.
    async fn cleared(&self, bricks: &[BrickId], nodes: &[NodeId], limit: Duration) {
        let answering: Vec<NodeId> = self
            .health(nodes)
            .await
            .into_iter()
            .filter_map(|(node, health)| health.map(|_| node))
            .collect();
        let until = self.env.now().after(limit);
        loop {
            let state = self.control.state();
            let waits = bricks.iter().any(|brick| {
                let left = state.left_over.get(brick);
                left.is_some_and(|left| answering.contains(&left.brick.node))
            });
            if !waits || !self.pause(until).await {
                return;
            }
        }
    }

    /// A short pause; false if there is no time left.
    async fn pause(&self, until: Mono) -> bool {
        let left = until.since(self.env.now());
        self.env.sleep(left.min(BETWEEN_LOOKS)).await;
        !left.is_zero()
    }
}

/// How nodes are doing, asked side by side; nothing from those that do not answer. Their clocks are told as what they are
/// ahead of this node's.
pub(super) async fn health(
    env: &Arc<dyn Env>,
    nodes: &Arc<dyn Nodes>,
    asked: &[NodeId],
) -> Vec<(NodeId, Option<NodeHealth>)> {
    let answers = asked.iter().map(|node| async move {
        let asked_at = wall_ms(env);
        let told = match nodes.ask(*node, NodeRequest::Health, LOOK).await {
            Ok(NodeReply::Health(mut health)) => {
                let here = i64::midpoint(asked_at, wall_ms(env));
                health.told.clock_ms = health.told.clock_ms.saturating_sub(here);
                Some(*health)
            }
            _ => None,
        };
        (*node, told)
    });
    join_all(answers).await
}
