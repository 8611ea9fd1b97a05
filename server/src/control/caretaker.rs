//! Keeps this node as the control plane's state wants it: bricks of started volumes open, all others closed, those that
//! no volume has any more dealt with, and the node's own addresses told. Follows the node's own copy of the state, so
//! that it also works while no majority answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use mortar_protocol::admin::PeerState;
use mortar_protocol::env::Env;
use mortar_protocol::ids::{BrickId, NodeId, VolumeId};
use mortar_protocol::view::{VolumeInfo, VolumeState};

use super::machine::{Command, Outcome, State};
use super::nodes::BrickHost;
use super::serve::Formatting;
use super::store::Control;

/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct Caretaker {
    control: Arc<Control>,
    host: Arc<dyn BrickHost>,
    formatting: Formatting,
    env: Arc<dyn Env>,
    own: NodeId,
    host_name: String,
    addrs: Vec<SocketAddr>,
    /// Number of the start for which each volume's bricks were opened.
    opened: BTreeMap<VolumeId, u64>,
}

/// Bricks of this node, by what is to be done with them.
#[derive(PartialEq, Eq, Debug, Default)]
struct Plan {
    /// Volumes whose bricks are to be opened, with the number of their start.
    open: Vec<(VolumeInfo, u64)>,
    close: Vec<BrickId>,
    clear: Vec<BrickId>,
    announce: bool,
}

impl Caretaker {
    /// For the node `own` on `host_name`, reached under `addrs`.
    pub fn new(
        control: Arc<Control>,
        (host, formatting): (Arc<dyn BrickHost>, Formatting),
        env: Arc<dyn Env>,
        own: NodeId,
        (host_name, addrs): (String, Vec<SocketAddr>),
    ) -> Self {
        Self {
            control,
            host,
            formatting,
            env,
            own,
            host_name,
            addrs,
            opened: BTreeMap::new(),
        }
    }

    /// Follows the state for ever.
    pub async fn run(mut self) {
        let mut watch = self.control.watch();
        loop {
            watch.mark_unchanged();
            let all_done = self.look().await;
            let changed = std::pin::pin!(watch.changed());
            if all_done {
                if changed.await.is_err() {
                    return;
                }
            } else if let Either::Left((Err(_), _)) = select(changed, self.env.sleep(AGAIN)).await {
                return;
            }
        }
    }

    /// Does what is to be done now; whether nothing is left.
    async fn look(&mut self) -> bool {
        let state = self.control.state();
        let plan = self.plan(&state);
        if !plan.close.is_empty() {
            self.host.close(plan.close).await;
        }
        for (volume, start) in &plan.open {
            self.opened.insert(volume.id, *start);
        }
        let opening = plan
            .open
            .into_iter()
            .map(|(volume, _)| self.host.open(volume));
        join_all(opening).await;
        let announced = !plan.announce || self.announce().await;
        let cleared = self.clear(&state, plan.clear).await;
        announced && cleared
    }

    fn plan(&self, state: &State) -> Plan {
        let mut plan = Plan::default();
        let mut wanted = BTreeSet::new();
        for volume in state.volumes.values() {
            let own = |info: &VolumeInfo| {
                let bricks = info.sets.iter().flatten();
                let own = bricks.filter(|brick| brick.node == self.own);
                own.map(|brick| brick.id).collect::<Vec<_>>()
            };
            if volume.info.state != VolumeState::Started {
                continue;
            }
            let own = own(&volume.info);
            if !own.is_empty() && self.opened.get(&volume.info.id) != Some(&volume.starts) {
                plan.open.push((volume.info.clone(), volume.starts));
            }
            wanted.extend(own);
        }
        plan.close = self.host.is_open();
        plan.close.retain(|brick| !wanted.contains(brick));
        let left_over = state.left_over.iter();
        plan.clear = left_over
            .filter(|(_, left)| left.brick.node == self.own)
            .map(|(id, _)| *id)
            .collect();
        plan.announce = match state.nodes.get(&self.own) {
            Some(record) => {
                record.addrs != self.addrs && record.state != PeerState::Leaving
                    || record.state == PeerState::Joining
            }
            None => state.nodes.is_empty(),
        };
        plan
    }

    async fn announce(&self) -> bool {
        // A node that joins knows nobody until it has heard of the cluster's state.
        let alone = self.control.state().nodes.is_empty();
        if alone
            && self
                .control
                .consensus()
                .is_some_and(|part| !part.standing().leads)
        {
            return false;
        }
        let command = Command::Node {
            node: self.own,
            host: self.host_name.clone(),
            addrs: self.addrs.clone(),
        };
        match self.control.propose(command).await {
            Ok(Outcome::Refused(why)) => {
                tracing::warn!(why, "the cluster does not take this node's addresses");
                false
            }
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "this node's addresses are not told yet");
                false
            }
        }
    }

    async fn clear(&self, state: &State, bricks: Vec<BrickId>) -> bool {
        if bricks.is_empty() {
            return true;
        }
        let (later, now): (Vec<_>, Vec<_>) =
            bricks.into_iter().partition(|id| self.formatting.has(*id));
        if now.is_empty() {
            return false;
        }
        for id in &now {
            if let Some(left) = state.left_over.get(id) {
                self.host.clear(left.brick.clone(), left.chore).await;
            }
        }
        let told = self.control.propose(Command::Cleared { bricks: now }).await;
        told.is_ok() && later.is_empty()
    }
}
