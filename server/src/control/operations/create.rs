//! `volume create`: checked on all nodes, recorded, formatted on all nodes, published. What fails is taken back.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use mortar_protocol::admin::{AdminReply, CreateVolume};
use mortar_protocol::ids::{BrickId, NodeId, SetIndex, VolumeId};
use mortar_protocol::node::{BrickTask, NodeReply, NodeRequest};
use mortar_protocol::view::{BrickInfo, VolumeInfo};

use super::{Operations, Refusal};
use crate::control::machine::Command;

/// How long a node has to look at a brick's place.
const CHECK: Duration = Duration::from_secs(3);
/// How long a node has to format a brick.
const FORMAT: Duration = Duration::from_secs(60);
/// How long nodes have to take back what was formatted before the person is answered.
const TAKE_BACK: Duration = Duration::from_secs(3);

impl Operations {
    /// Creates a volume whose bricks have been found.
    pub async fn create(
        &self,
        volume: VolumeId,
        create: CreateVolume,
        bricks: Vec<BrickInfo>,
    ) -> AdminReply {
        self.creating.lock().insert(volume);
        let done = self.create_steps(volume, &create, bricks).await;
        self.creating.lock().remove(&volume);
        done.unwrap_or_else(|message| AdminReply::Refused { message })
    }

    async fn create_steps(
        &self,
        volume: VolumeId,
        create: &CreateVolume,
        bricks: Vec<BrickInfo>,
    ) -> Result<AdminReply, Refusal> {
        if self.control.state().volumes.contains_key(&volume) {
            return Ok(AdminReply::Done);
        }
        let nodes: BTreeSet<NodeId> = bricks.iter().map(|brick| brick.node).collect();
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        for (node, health) in self.health(&nodes).await {
            if health.is_none() {
                return Err(format!("Host {} not connected", self.host_of(node)));
            }
        }
        self.propose(Command::BeginCreate {
            volume,
            name: create.name.clone(),
            kind: create.kind,
            bricks: bricks.clone(),
            now_secs: self.now_secs(),
        })
        .await?;
        match self.format(volume, create).await {
            Ok(()) => self.propose(Command::FinishCreate { volume }).await,
            Err(message) => {
                self.propose(Command::AbortCreate { volume }).await?;
                let ids: Vec<BrickId> = bricks.iter().map(|brick| brick.id).collect();
                self.cleared(&ids, &nodes, TAKE_BACK).await;
                Err(message)
            }
        }
    }

    async fn format(&self, id: VolumeId, create: &CreateVolume) -> Result<(), Refusal> {
        let state = self.control.state();
        let creating = state
            .creating
            .get(&id)
            .ok_or("the creation of this volume was given up")?;
        let tasks = tasks(&creating.info, create);
        self.on_all(&tasks, CHECK, NodeRequest::Check).await?;
        self.on_all(&tasks, FORMAT, NodeRequest::Format).await
    }

    /// Asks for each brick's node; the first refusal in the order of the bricks counts.
    async fn on_all(
        &self,
        tasks: &[BrickTask],
        limit: Duration,
        request: impl Fn(BrickTask) -> NodeRequest,
    ) -> Result<(), Refusal> {
        // On which node, if there are several.
        let alone = self.control.state().nodes.len() == 1;
        let answers = tasks.iter().map(|task| {
            let node = task.brick.node;
            let asked = self.nodes.ask(node, request(task.clone()), limit);
            async move {
                match asked.await {
                    Ok(NodeReply::Taken) => Ok(()),
                    Ok(NodeReply::Failed(message)) if alone => Err(message),
                    Ok(NodeReply::Failed(message)) => Err(format!(
                        "Staging failed on {}. Error: {message}",
                        task.brick.host
                    )),
                    Ok(_) => Err(format!(
                        "host {} gave an answer that this version does not know",
                        task.brick.host
                    )),
                    Err(_) => Err(format!("Host {} not connected", task.brick.host)),
                }
            }
        });
        join_all(answers).await.into_iter().collect()
    }
}

fn tasks(volume: &VolumeInfo, create: &CreateVolume) -> Vec<BrickTask> {
    let mut tasks = Vec::new();
    for (index, set) in volume.sets.iter().enumerate() {
        for brick in set {
            tasks.push(BrickTask {
                volume: volume.clone(),
                set: SetIndex(index as u32),
                brick: brick.clone(),
                size: create.brick_size,
                force: create.force,
            });
        }
    }
    tasks
}
