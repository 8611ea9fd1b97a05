//! Finds the nodes of the bricks that a person names.

use mortar_protocol::admin::{BrickSpec, CreateVolume};
use mortar_protocol::ids::{BrickId, NodeId};
use mortar_protocol::view::{BrickInfo, SetKind};

use super::{Admin, Refusal};
use crate::control::hosts;
use crate::control::machine::{State, check_count};
use crate::control::nodes::draw_id;

impl Admin {
    /// The bricks of a new volume, with their nodes.
    pub(super) async fn locate(&self, create: &CreateVolume) -> Result<Vec<BrickInfo>, Refusal> {
        check_count(create.bricks.len())?;
        let mut bricks = Vec::new();
        for BrickSpec { host, path } in &create.bricks {
            let node = self.node_of(host).await;
            let node =
                node.ok_or_else(|| format!("Host {host} is not in 'Peer in Cluster' state"))?;
            let path = normal(path).ok_or_else(|| {
                format!(
                    "{host}:{}: a brick's path starts with /, has no .. and can be printed",
                    path.escape_debug()
                )
            })?;
            bricks.push(BrickInfo {
                id: BrickId(draw_id(&self.env)),
                node,
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

    async fn node_of(&self, host: &str) -> Option<NodeId> {
        let state = self.control.state();
        let resolved = self.nodes.resolve(host).await;
        let port = self
            .node
            .addrs
            .first()
            .map_or(hosts::PORT, |addr| addr.port());
        let known = hosts::known(&state, host, &resolved, port);
        let here = || {
            let own = resolved.iter().any(|addr| self.nodes.is_own(*addr));
            (own && self.owns_the_machine(&state)).then_some(self.node.id)
        };
        known.or_else(here)
    }

    /// Whether any address of this machine means this node: not where nodes share it, each with an address of its own.
    fn owns_the_machine(&self, state: &State) -> bool {
        state.nodes.len() <= 1 || self.node.addrs.iter().any(|addr| !addr.ip().is_loopback())
    }
}

/// An absolute path without `.`, `..` and doubled slashes.
pub(super) fn normal(path: &str) -> Option<String> {
    let rest = path.strip_prefix('/')?;
    let mut parts = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part if part.contains(char::is_control) => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("/{}", parts.join("/")))
}
