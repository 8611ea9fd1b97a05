//! `peer probe` and `peer detach`.

use std::net::SocketAddr;
use std::time::Duration;

use mortar_protocol::admin::{AdminReply, PeerState};
use mortar_protocol::ids::NodeId;

use super::{Operations, Refusal};
use crate::control::hosts;
use crate::control::machine::Command;

/// How long a node that was told to join has to say that it belongs to the cluster.
const JOIN_TIME: Duration = Duration::from_secs(20);
/// How long a node that was told to join takes to start over.
const START_OVER: Duration = Duration::from_millis(300);
/// How long it may take to take a node out.
const LEAVE_TIME: Duration = Duration::from_secs(10);

impl Operations {
    pub(super) async fn probe(&self, host: String) -> Result<AdminReply, Refusal> {
        let (name, port) = hosts::split(&host)?;
        let state = self.control.state();
        let resolved = self.nodes.resolve(&name).await;
        let Some(ip) = resolved.first() else {
            return Err(format!(
                "Probe returned with unknown errno 107: {name} has no address"
            ));
        };
        let addr = SocketAddr::new(*ip, port);
        if let Some(known) = hosts::known(&state, &name, &resolved, port)
            && state
                .nodes
                .get(&known)
                .is_some_and(|node| node.state != PeerState::Joining)
        {
            if known != self.own {
                self.also_named(known, &name).await?;
            }
            return Ok(already(&name, port));
        }
        let found = self.gate.probe(addr).await?;
        if found.belongs && state.nodes.contains_key(&found.node) {
            self.also_named(found.node, &name).await?;
            return Ok(already(&name, port));
        }
        let same = state.nodes.get(&found.node);
        if same.is_some_and(|node| node.state != PeerState::Joining) {
            return Err(format!(
                "{addr} has the id of a node of this cluster ({}): its data directory is a copy; stop mortard there, remove that copy (its identity with it) and start mortard again, so that it gets an id of its own",
                found.node
            ));
        }
        self.take_in(found.node, &name, addr, found.addrs).await
    }

    async fn also_named(&self, node: NodeId, name: &str) -> Result<AdminReply, Refusal> {
        let host = name.to_owned();
        self.propose(Command::AlsoNamed { node, host }).await
    }

    async fn take_in(
        &self,
        node: NodeId,
        host: &str,
        addr: SocketAddr,
        addrs: Vec<SocketAddr>,
    ) -> Result<AdminReply, Refusal> {
        let joins = self.env.now().after(JOIN_TIME);
        *self.deaf.lock() = Some((node, joins));
        self.propose(Command::Invite {
            node,
            host: host.to_owned(),
            addrs,
            now_secs: self.now_secs(),
        })
        .await?;
        let state = self.control.state();
        let others = state
            .nodes
            .iter()
            .filter(|(id, _)| **id != node)
            .map(|(id, record)| (*id, record.addrs.clone()))
            .collect();
        let adopted = self.gate.adopt(addr, node, others).await;
        *self.deaf.lock() = Some((node, self.env.now().after(START_OVER)));
        if let Err(message) = adopted {
            self.propose(Command::Forget { node }).await?;
            return Err(message);
        }
        let until = self.env.now().after(JOIN_TIME);
        loop {
            let state = self.control.state();
            let joined = state.nodes.get(&node).map(|record| record.state);
            if joined == Some(PeerState::Joined) {
                return Ok(AdminReply::Done);
            }
            if !self.pause(until).await {
                return Err(format!(
                    "{host} was told to join and has not answered since; look at its log, then probe or detach it again"
                ));
            }
        }
    }

    pub(super) async fn detach(&self, host: String, force: bool) -> Result<AdminReply, Refusal> {
        let (name, port) = hosts::split(&host)?;
        let state = self.control.state();
        let resolved = self.nodes.resolve(&name).await;
        let node = hosts::known(&state, &name, &resolved, port)
            .ok_or_else(|| format!("{name} is not part of cluster"))?;
        if node == self.own && state.nodes.len() == 1 {
            return Err(format!("{name} is localhost"));
        }
        let answers = self.health(&[node]).await;
        if answers.iter().any(|(_, health)| health.is_none()) && !force {
            return Err(format!(
                "One of the peers is probably down. Check with 'peer status' ({} does not answer; with 'force' at the \
                 end of the command it is taken out all the same)",
                self.host_of(node)
            ));
        }
        self.propose(Command::Detach { node }).await?;
        // The rest is done by whoever leads, see `membership`.
        let until = self.env.now().after(LEAVE_TIME);
        while self.control.state().nodes.contains_key(&node) {
            if !self.pause(until).await {
                return Err(format!(
                    "{name} is still being taken out; 'mortar operation list' tells what that waits for"
                ));
            }
        }
        Ok(AdminReply::Done)
    }
}

fn already(name: &str, port: u16) -> AdminReply {
    AdminReply::Notes(vec![format!(
        "Host {name} port {port} already in peer list"
    )])
}
