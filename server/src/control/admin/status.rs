//! What a person is shown: bricks of a volume, nodes, the cluster on one screen.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use mortar_protocol::admin::{
    AdminReply, BrickSpec, BrickStatus, ClusterStatus, NodeStatus, OperationInfo, PartialSet,
    PeerInfo, PeerState, Role,
};
use mortar_protocol::fop::Fop;
use mortar_protocol::ids::{BrickId, NodeId, RunId, SetIndex};
use mortar_protocol::node::{BrickHealth, NodeHealth, NodeReply, NodeRequest};
use mortar_protocol::view::{BrickInfo, VolumeState};
use mortar_protocol::watch::{Sum, named};

use super::{Admin, Refusal};
use crate::control::consensus::Standing;
use crate::control::machine::{Chore, NodeRecord, SetViews, State};
use crate::control::operations::health;

/// How long a node has to tell its counts.
const STATS: Duration = Duration::from_secs(2);

/// What nodes say of themselves; none from those that do not answer.
type Told = Vec<(NodeId, Option<NodeHealth>)>;

impl Admin {
    pub(super) async fn status(&self, name: &str) -> Result<AdminReply, Refusal> {
        let volume = self.volume(name)?;
        if volume.info.state != VolumeState::Started {
            return Err(format!("Volume {name} is not started"));
        }
        let state = self.control.state();
        let sets = volume.info.sets.iter().flatten();
        let nodes: BTreeSet<NodeId> = sets.map(|brick| brick.node).collect();
        let told = health(
            &self.env,
            &self.nodes,
            &nodes.into_iter().collect::<Vec<_>>(),
        )
        .await;
        let mut bricks = Vec::new();
        for (set, views) in volume.info.sets.iter().zip(&volume.sets) {
            for brick in set {
                let (health, in_sync, reason) = stands(brick, set, views, &told);
                let node = told_by(&told, brick.node);
                let record = state.nodes.get(&brick.node);
                let port = record.and_then(|record| record.addrs.first());
                bricks.push(BrickStatus {
                    brick: brick.id,
                    spec: spec(brick),
                    online: health.online,
                    in_sync: health.online && in_sync,
                    port: port.map_or(0, SocketAddr::port),
                    pid: node.map_or(0, |node| node.told.pid),
                    reason,
                    space: health.space,
                });
            }
        }
        Ok(AdminReply::Status {
            clients: volume.sessions.len() as u32,
            volume: volume.info.clone(),
            bricks,
        })
    }

    pub(super) async fn stats(&self, name: &str) -> Result<AdminReply, Refusal> {
        let volume = self.volume(name)?;
        let bricks: Vec<&BrickInfo> = volume.info.sets.iter().flatten().collect();
        let nodes: BTreeSet<NodeId> = bricks.iter().map(|brick| brick.node).collect();
        let mut sums = vec![Sum::default(); Fop::NAMES.len()];
        for node in nodes {
            let own = bricks.iter().filter(|brick| brick.node == node);
            let own: Vec<BrickId> = own.map(|brick| brick.id).collect();
            match self.nodes.ask(node, NodeRequest::Stats(own), STATS).await {
                Ok(NodeReply::Stats(more)) => {
                    for (sum, more) in sums.iter_mut().zip(&more) {
                        sum.merge(more);
                    }
                }
                _ => tracing::warn!(%node, "a node does not tell its counts"),
            }
        }
        Ok(AdminReply::Stats(named(Fop::NAMES, &sums)))
    }

    async fn told(&self, state: &State) -> Told {
        let nodes: Vec<NodeId> = state.nodes.keys().copied().collect();
        health(&self.env, &self.nodes, &nodes).await
    }

    pub(super) async fn peers(&self) -> Vec<PeerInfo> {
        let state = self.control.state();
        let told = self.told(&state).await;
        self.peers_of(&state, &told)
    }

    /// This node first, then the others in the order in which they came.
    fn peers_of(&self, state: &State, told: &Told) -> Vec<PeerInfo> {
        let mut nodes = state.nodes_in_order();
        nodes.sort_by_key(|(id, _)| *id != self.node.id);
        let info = |(id, record): (NodeId, &NodeRecord)| PeerInfo {
            id,
            host: record.host.clone(),
            other_names: record.other_names.clone(),
            addrs: record.addrs.clone(),
            state: record.state,
            connected: told_by(told, id).is_some(),
            is_self: id == self.node.id,
        };
        nodes.into_iter().map(info).collect()
    }

    fn standing(&self) -> Standing {
        let consensus = self.control.consensus();
        consensus.map_or_else(Standing::default, |part| part.standing())
    }

    pub(super) async fn cluster(&self) -> ClusterStatus {
        let state = self.control.state();
        let told = self.told(&state).await;
        let standing = self.standing();
        let answering = standing
            .voters
            .iter()
            .filter(|voter| told_by(&told, **voter).is_some())
            .count();
        let nodes = self
            .peers_of(&state, &told)
            .into_iter()
            .map(|peer| NodeStatus {
                role: role(&standing, peer.id),
                told: told_by(&told, peer.id).map(|health| health.told.clone()),
                peer,
            })
            .collect();
        let started = |volume: &&std::sync::Arc<crate::control::machine::Volume>| {
            volume.info.state == VolumeState::Started
        };
        ClusterStatus {
            cluster: self.cluster,
            has_majority: answering * 2 > standing.voters.len() && standing.leader.is_some(),
            nodes,
            volumes: (
                state.volumes.values().filter(started).count() as u32,
                state.volumes.len() as u32,
            ),
            sets: state
                .volumes
                .values()
                .filter(started)
                .map(|volume| volume.sets.len() as u32)
                .sum(),
            partial_sets: partial_sets(&state, &told),
            operations: self.operations(),
        }
    }

    pub(super) fn operations(&self) -> Vec<OperationInfo> {
        let state = self.control.state();
        let mut all = Vec::new();
        for (id, creating) in &state.creating {
            all.push(OperationInfo {
                id: id.0,
                what: "volume create".to_owned(),
                target: creating.info.name.clone(),
                since_secs: creating.since_secs,
                waits_for: "its bricks are being formatted".to_owned(),
            });
        }
        for (id, left) in &state.left_over {
            let host = &left.brick.host;
            all.push(OperationInfo {
                id: id.0,
                what: match left.chore {
                    Chore::Unformat => "volume create (taken back)".to_owned(),
                    Chore::MarkDeleted => "volume delete".to_owned(),
                },
                target: format!("{host}:{}", left.brick.path),
                since_secs: left.since_secs,
                waits_for: format!("{host} has to deal with the brick of {}", left.volume),
            });
        }
        for (id, record) in &state.nodes {
            let (what, waits_for) = match record.state {
                PeerState::Joined => continue,
                PeerState::Joining => ("peer probe", "it has to confirm that it has joined"),
                PeerState::Leaving => ("peer detach", "it is being taken out of the consensus"),
            };
            all.push(OperationInfo {
                id: id.0,
                what: what.to_owned(),
                target: record.host.clone(),
                since_secs: record.since_secs,
                waits_for: waits_for.to_owned(),
            });
        }
        all.sort_by_key(|operation| (operation.since_secs, operation.id));
        all
    }
}

fn spec(brick: &BrickInfo) -> BrickSpec {
    BrickSpec {
        host: brick.host.clone(),
        path: brick.path.clone(),
    }
}

fn told_by(told: &Told, node: NodeId) -> Option<&NodeHealth> {
    let found = told.iter().find(|(id, _)| *id == node)?;
    found.1.as_ref()
}

fn brick_health(told: &Told, brick: &BrickInfo) -> BrickHealth {
    match told_by(told, brick.node) {
        Some(node) => {
            let own = node.bricks.iter().find(|(id, _)| *id == brick.id);
            own.map(|(_, own)| own.clone()).unwrap_or_default()
        }
        None => BrickHealth {
            reason: "its node does not answer".to_owned(),
            ..BrickHealth::default()
        },
    }
}

/// Why this run of a brick cannot be in its set, as far as other members found out.
fn known_elsewhere<'a>(told: &'a Told, brick: &BrickInfo, run: Option<RunId>) -> Option<&'a str> {
    let others = told.iter().filter(|(node, _)| *node != brick.node);
    let mut heard = others.flat_map(|(_, node)| node.iter().flat_map(|node| &node.bricks));
    let is_meant = |(id, health): &&(BrickId, BrickHealth)| {
        *id == brick.id && health.run == run && !health.reason.is_empty()
    };
    heard.find(is_meant).map(|(_, health)| &health.reason[..])
}

/// How a brick is doing, whether it is in its set, and why not.
fn stands(
    brick: &BrickInfo,
    set: &[BrickInfo],
    views: &SetViews,
    told: &Told,
) -> (BrickHealth, bool, String) {
    let health = brick_health(told, brick);
    let current = views.current.as_ref();
    let in_run = |id: BrickId, health: &BrickHealth| {
        let member = current.and_then(|view| view.member(id));
        member.is_some_and(|member| Some(member.run) == health.run)
    };
    let in_sync = in_run(brick.id, &health);
    let opened = || {
        set.iter()
            .any(|other| in_run(other.id, &brick_health(told, other)))
    };
    let reason = match (&health.reason[..], health.online, in_sync) {
        (_, true, true) => String::new(),
        ("", false, _) => "not open".to_owned(),
        ("", true, false) if !opened() => "its set waits for members".to_owned(),
        ("", true, false) => known_elsewhere(told, brick, health.run)
            .unwrap_or("joining its set")
            .to_owned(),
        (reason, ..) => reason.to_owned(),
    };
    (health, in_sync, reason)
}

fn partial_sets(state: &State, told: &Told) -> Vec<PartialSet> {
    let mut partial = Vec::new();
    for volume in state.volumes.values() {
        if volume.info.state != VolumeState::Started {
            continue;
        }
        for (index, (set, views)) in volume.info.sets.iter().zip(&volume.sets).enumerate() {
            let mut missing = Vec::new();
            let mut serving = 0;
            for brick in set {
                match stands(brick, set, views, told) {
                    (health, true, _) if health.online => serving += 1,
                    (_, _, reason) => missing.push((spec(brick), reason)),
                }
            }
            let view = views.current.as_ref();
            let serves = view.is_some_and(|view| view.effective && view.members.len() == serving);
            if !missing.is_empty() || !serves {
                partial.push(PartialSet {
                    volume: volume.info.name.clone(),
                    index: SetIndex(index as u32).0,
                    serves,
                    missing,
                });
            }
        }
    }
    partial
}

fn role(standing: &Standing, node: NodeId) -> Role {
    if standing.leader == Some(node) {
        Role::Leader
    } else if standing.voters.contains(&node) {
        Role::Voter
    } else if standing.learners.contains(&node) {
        Role::Learner
    } else {
        Role::Outside
    }
}

#[cfg(test)]
mod tests {
    use mortar_protocol::admin::NodeTold;
    use mortar_protocol::ids::{ClusterId, Epoch, Opening, SetId, VolumeId};
    use mortar_protocol::view::{Member, View};

    use super::*;

    fn node(bricks: Vec<(BrickId, BrickHealth)>) -> Option<NodeHealth> {
        Some(NodeHealth {
            cluster: ClusterId(1),
            told: NodeTold {
                version: "1".to_owned(),
                pid: 1,
                clock_ms: 0,
                uptime_secs: 1,
                applied: 1,
                bricks: 1,
                space: (0, 0),
            },
            bricks,
        })
    }

    #[test]
    fn what_a_primary_found_out_about_another_nodes_brick_is_shown() {
        let brick = |n: u128| BrickInfo {
            id: BrickId(n),
            node: NodeId(n),
            host: format!("host{n}"),
            path: "/brick".to_owned(),
        };
        let set = [brick(1), brick(2)];
        let member = Member {
            brick: BrickId(1),
            node: NodeId(1),
            run: RunId(10),
            keeps_data: true,
        };
        let view = View {
            set: SetId {
                volume: VolumeId(7),
                index: SetIndex(0),
            },
            epoch: Epoch(3),
            primary: BrickId(1),
            members: vec![member],
            absent: vec![BrickId(2)],
            opening: Opening(1),
            effective: true,
        };
        let views = SetViews {
            current: Some(view),
            effective: None,
        };
        let online = |run| BrickHealth {
            online: true,
            run: Some(RunId(run)),
            ..BrickHealth::default()
        };
        let lags = |run| BrickHealth {
            run: Some(RunId(run)),
            reason: "it lags".to_owned(),
            ..BrickHealth::default()
        };
        let reason = |first: Vec<(BrickId, BrickHealth)>| {
            let first = [vec![(BrickId(1), online(10))], first].concat();
            let told = vec![
                (NodeId(1), node(first)),
                (NodeId(2), node(vec![(BrickId(2), online(20))])),
            ];
            stands(&set[1], &set, &views, &told).2
        };
        assert_eq!(reason(Vec::new()), "joining its set");
        assert_eq!(reason(vec![(BrickId(2), lags(20))]), "it lags");
        // Said of an earlier run.
        assert_eq!(reason(vec![(BrickId(2), lags(19))]), "joining its set");
    }
}
