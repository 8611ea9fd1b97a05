//! The door of the cluster: takes other nodes in, and lets this one be taken in.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};

use futures_util::future::BoxFuture;
use mortar_protocol::env::Env;
use mortar_protocol::env_real::random;
use mortar_protocol::ids::NodeId;
use mortar_protocol::join::{
    self, Adoption, Candidate, Facts, Introduction, SecretFile, Verdict, Wire,
};
use tokio::sync::watch;

use super::data_dir::DataDir;
use crate::control::hosts;
use crate::control::nodes::{Found, Gate, wall_ms};
use crate::control::store::Control;

/// See the module.
pub struct Door {
    data: Arc<DataDir>,
    secret: SecretFile,
    env: Arc<dyn Env>,
    run: u64,
    host: String,
    addrs: OnceLock<Vec<SocketAddr>>,
    control: OnceLock<Weak<Control>>,
    /// Told when this node has become one of another cluster and has to start over.
    joined: watch::Sender<bool>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({})", self.secret.path().display())
    }
}

impl Door {
    /// Of the node whose data directory this is.
    pub fn new(
        data: Arc<DataDir>,
        secret: SecretFile,
        env: Arc<dyn Env>,
        host: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            data,
            secret,
            env,
            run: random(),
            host,
            addrs: OnceLock::new(),
            control: OnceLock::new(),
            joined: watch::channel(false).0,
        })
    }

    /// Tells what knows the cluster, and where this node listens.
    pub fn connect(&self, control: &Arc<Control>, addrs: Vec<SocketAddr>) {
        // Both are told once, at the start.
        let _ = self.control.set(Arc::downgrade(control));
        let _ = self.addrs.set(addrs);
    }

    /// Tells when this node has become one of another cluster.
    pub fn joined(&self) -> watch::Receiver<bool> {
        self.joined.subscribe()
    }

    fn introduction(&self) -> Introduction {
        Introduction {
            cluster: self.data.cluster,
            node: self.data.node,
            run: self.run,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            wire: Wire::OWN,
            wall_ms: wall_ms(&self.env),
        }
    }
}

/// [`Door`], shared.
#[derive(Clone, Debug)]
pub struct SharedDoor(pub Arc<Door>);

impl Gate for SharedDoor {
    fn probe(&self, addr: SocketAddr) -> BoxFuture<'static, Result<Found, String>> {
        let door = Arc::clone(&self.0);
        Box::pin(async move {
            let probed = join::probe(addr, door.introduction(), &door.secret)
                .await
                .map_err(|error| error.to_string())?;
            let mut addrs = hosts::outside(&probed.facts.addrs);
            // The way it was found is one that works.
            addrs.retain(|other| *other != addr);
            addrs.insert(0, addr);
            Ok(Found {
                node: probed.facts.who.node,
                addrs,
                belongs: probed.verdict != Verdict::Fit,
            })
        })
    }

    fn adopt(
        &self,
        addr: SocketAddr,
        node: NodeId,
        others: Vec<(NodeId, Vec<SocketAddr>)>,
    ) -> BoxFuture<'static, Result<(), String>> {
        let door = Arc::clone(&self.0);
        Box::pin(async move {
            let adoption = Adoption {
                cluster: door.data.cluster,
                authority: door.data.authority.to_parts(),
                nodes: others,
            };
            join::adopt(addr, door.introduction(), &door.secret, node, adoption)
                .await
                .map_err(|error| error.to_string())
        })
    }
}

impl Candidate for Door {
    fn facts(&self) -> Facts {
        let state = self.control.get().and_then(Weak::upgrade);
        let state = state.map(|control| control.state());
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Facts {
            who: self.introduction(),
            others: state
                .as_ref()
                .map_or(0, |state| count(state.nodes.len().saturating_sub(1))),
            volumes: state
                .as_ref()
                .map_or(0, |state| count(state.volumes.len() + state.creating.len())),
            host: self.host.clone(),
            addrs: self.addrs.get().cloned().unwrap_or_default(),
        }
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'static, Result<(), String>> {
        // A file in the data directory; what it says is done by the start that follows.
        let noted = self.data.note_adoption(&adoption);
        let joined = self.joined.clone();
        Box::pin(async move {
            noted.map_err(|error| error.to_string())?;
            joined.send_replace(true);
            Ok(())
        })
    }
}
