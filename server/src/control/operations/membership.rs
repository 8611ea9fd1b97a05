//! Keeps the consensus as the state wants it: nodes that came follow, the right ones vote, nodes that leave are let go.

use std::time::Duration;

use mortar_protocol::admin::PeerState;
use mortar_protocol::ids::NodeId;
use mortar_protocol::node::NodeRequest;

use super::{LOOK, Operations, Refusal};
use crate::control::consensus::{Consensus, voters};
use crate::control::machine::Command;

impl Operations {
    /// Does the next step, if one is due. To be called now and then while this node leads; `silent` tells how long a
    /// node has not been heard of.
    ///
    /// # Errors
    /// If a step failed; the next call tries again.
    pub async fn tend(&self, silent: impl Fn(NodeId) -> Duration) -> Result<(), Refusal> {
        let Some(consensus) = self.control.consensus() else {
            return Ok(());
        };
        self.recover().await?;
        let state = self.control.state();
        let standing = consensus.standing();
        let follows =
            |node: &NodeId| standing.voters.contains(node) || standing.learners.contains(node);
        let nodes = state.nodes_in_order();
        for (node, record) in &nodes {
            if record.state == PeerState::Leaving {
                return self.let_go(consensus, *node).await;
            }
            let deaf = self.deaf.lock().filter(|(deaf, _)| deaf == node);
            if deaf.is_some_and(|(_, until)| self.env.now() < until) {
                continue;
            }
            if !follows(node) {
                tracing::info!(%node, host = record.host, "follows the control plane from now on");
                return consensus.add_learner(*node).await;
            }
        }
        let everybody = standing.voters.iter().chain(&standing.learners);
        for node in everybody {
            // Known to the consensus alone: it was forgotten before it was let go.
            if !state.nodes.contains_key(node) && !state.nodes.is_empty() {
                return self.let_go(consensus, *node).await;
            }
        }
        let candidates: Vec<voters::Candidate> = nodes
            .iter()
            .filter(|(_, record)| record.state == PeerState::Joined)
            .map(|(node, _)| voters::Candidate {
                node: *node,
                silent: match *node == self.own {
                    true => Duration::ZERO,
                    false => silent(*node),
                },
            })
            .collect();
        match voters::change(&standing.voters, &candidates, self.own) {
            Some(voters) => {
                tracing::info!(?voters, "other nodes vote from now on");
                consensus.set_voters(voters).await
            }
            None => Ok(()),
        }
    }

    /// Takes a node out of the consensus, tells it, and forgets it.
    async fn let_go(&self, consensus: &Consensus, node: NodeId) -> Result<(), Refusal> {
        let standing = consensus.standing();
        if standing.voters.contains(&node) {
            let rest = standing.voters.iter().copied();
            consensus
                .set_voters(rest.filter(|voter| *voter != node).collect())
                .await?;
        }
        if node == self.own {
            // Another node leads from here on and does the rest.
            return Ok(());
        }
        consensus.remove(node).await?;
        if self
            .nodes
            .ask(node, NodeRequest::Leave, LOOK)
            .await
            .is_err()
        {
            tracing::warn!(%node, "the node that was taken out does not answer");
        }
        self.propose(Command::Forget { node }).await.map(|_| ())
    }
}
