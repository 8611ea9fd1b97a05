//! `volume start`, `stop`, `delete`: proposed, then carried out by each node for its own bricks and waited for here.

use std::collections::BTreeSet;
use std::time::Duration;

use mortar_protocol::admin::AdminReply;
use mortar_protocol::ids::{BrickId, NodeId};
use mortar_protocol::node::BrickHealth;
use mortar_protocol::view::{VolumeInfo, VolumeState};

use super::{Operations, Refusal};
use crate::control::machine::{Command, Volume};

/// How long a set may take to open beyond the time for which it waits for members.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// How long bricks have to stop in good order, and a little more.
const STOP_TIME: Duration = Duration::from_secs(9);
/// How long nodes have to mark the bricks of a deleted volume before the person is answered.
const MARK_TIME: Duration = Duration::from_secs(4);

/// How a brick is doing; `None`: its node does not answer.
type Told = (BrickId, Option<BrickHealth>);

impl Operations {
    fn volume(&self, name: &str) -> Result<std::sync::Arc<Volume>, Refusal> {
        let state = self.control.state();
        let volume = state.volume(name).cloned();
        volume.ok_or_else(|| format!("Volume {name} does not exist"))
    }

    pub(super) async fn start(&self, name: String, force: bool) -> Result<AdminReply, Refusal> {
        let was_started = self
            .volume(&name)
            .is_ok_and(|volume| volume.info.state == VolumeState::Started);
        let command = Command::Start {
            volume: name.clone(),
            force,
        };
        let reply = self.propose(command).await?;
        let volume = self.volume(&name)?;
        // A set with members that do not answer opens without them only after that time.
        let wait = Duration::from_secs(volume.seconds("cluster.open-wait")) + OPEN_TIME;
        let until = self.env.now().after(wait);
        loop {
            let volume = self.volume(&name)?;
            let told = self.bricks(&volume.info).await;
            let wrong = what_is_wrong(&volume.info, &told);
            if all_serve(&volume, &told) {
                // What can be served is; the person must know of the rest.
                return Ok(match wrong {
                    None => reply,
                    Some(wrong) => AdminReply::Notes(vec![wrong]),
                });
            }
            if !self.pause(until).await {
                if !was_started {
                    // As before, so that another start says the same.
                    self.stop(name.clone()).await?;
                }
                return Err(wrong.unwrap_or_else(|| {
                    format!("not every set of {name} serves after {} s", wait.as_secs())
                }));
            }
        }
    }

    pub(super) async fn stop(&self, name: String) -> Result<AdminReply, Refusal> {
        let reply = self
            .propose(Command::Stop {
                volume: name.clone(),
            })
            .await?;
        let Ok(volume) = self.volume(&name) else {
            return Ok(reply);
        };
        let until = self.env.now().after(STOP_TIME);
        loop {
            let told = self.bricks(&volume.info).await;
            let open = told
                .iter()
                .any(|(_, health)| health.as_ref().is_some_and(|health| health.run.is_some()));
            if !open || !self.pause(until).await {
                return Ok(reply);
            }
        }
    }

    pub(super) async fn delete(&self, name: String) -> Result<AdminReply, Refusal> {
        let info = self.volume(&name).map(|found| found.info.clone());
        let now_secs = self.now_secs();
        let command = Command::Delete {
            volume: name,
            now_secs,
        };
        let reply = self.propose(command).await?;
        let Ok(info) = info else {
            return Ok(reply);
        };
        let bricks: Vec<BrickId> = info.sets.iter().flatten().map(|brick| brick.id).collect();
        self.cleared(&bricks, &nodes_of(&info), MARK_TIME).await;
        let state = self.control.state();
        let waits: BTreeSet<&str> = info
            .sets
            .iter()
            .flatten()
            .filter(|brick| state.left_over.contains_key(&brick.id))
            .map(|brick| brick.host.as_str())
            .collect();
        if waits.is_empty() {
            return Ok(reply);
        }
        let waits: Vec<&str> = waits.into_iter().collect();
        Ok(AdminReply::Notes(vec![format!(
            "bricks on {} will be marked as deleted when it answers again",
            waits.join(", ")
        )]))
    }

    async fn bricks(&self, volume: &VolumeInfo) -> Vec<Told> {
        let health = self.health(&nodes_of(volume)).await;
        let mut told = Vec::new();
        for brick in volume.sets.iter().flatten() {
            let node = health.iter().find(|(node, _)| *node == brick.node);
            let node = node.and_then(|(_, health)| health.as_ref());
            let own = node.map(|health| {
                let own = health.bricks.iter().find(|(id, _)| *id == brick.id);
                own.map(|(_, own)| own.clone()).unwrap_or_default()
            });
            told.push((brick.id, own));
        }
        told
    }
}

fn nodes_of(volume: &VolumeInfo) -> Vec<NodeId> {
    let nodes: BTreeSet<NodeId> = volume
        .sets
        .iter()
        .flatten()
        .map(|brick| brick.node)
        .collect();
    nodes.into_iter().collect()
}

fn of(told: &[Told], brick: BrickId) -> Option<&BrickHealth> {
    let found = told.iter().find(|(id, _)| *id == brick)?;
    found.1.as_ref()
}

/// Whether each set's view has taken effect and all its members serve in the runs that are its members.
fn all_serve(volume: &Volume, told: &[Told]) -> bool {
    volume.sets.iter().all(|set| {
        set.current.as_ref().is_some_and(|view| {
            view.effective
                && view.members.iter().all(|member| {
                    of(told, member.brick)
                        .is_some_and(|health| health.online && health.run == Some(member.run))
                })
        })
    })
}

/// Why bricks cannot serve, for a person.
fn what_is_wrong(volume: &VolumeInfo, told: &[Told]) -> Option<String> {
    let mut wrong = Vec::new();
    for brick in volume.sets.iter().flatten() {
        match of(told, brick.id) {
            Some(health) if health.online || health.reason.is_empty() => {}
            Some(health) => wrong.push(health.reason.clone()),
            None => wrong.push(format!(
                "{}:{}: its node does not answer",
                brick.host, brick.path
            )),
        }
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}
