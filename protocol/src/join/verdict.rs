//! Whether a node may be taken into a cluster: one decision, made on both sides. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::message::{Facts, Introduction, Wire};
use super::secret::SecretError;
use crate::ids::{ClusterId, NodeId};

/// Furthest that the clocks of two nodes may be apart, in milliseconds.
pub const MAX_CLOCK_OFFSET_MS: u64 = 60_000;

/// What a probe has found that is no error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The node can be taken into the cluster.
    Fit,
    /// It belongs to this cluster already.
    Already,
    /// It is the node that asks.
    Itself,
}

/// Why a node could not be taken in. Each prints as one line: what, why, what to do. Nothing has changed on either side,
/// except where the line says that this is not known.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers.
    #[error(
        "no answer on UDP {addr} within 5 s: is mortard running there, and does a firewall let UDP {} through?",
        .addr.port()
    )]
    Silent {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// It has another secret.
    #[error(
        "{addr} has another secret than this node: copy {} from here to the secret file there (/etc/mortar/secret, or \
         what its --secret-file says) with mode 0600; no restart is needed",
        .file.display()
    )]
    OtherSecret {
        /// Who was asked.
        addr: SocketAddr,
        /// This node's secret file.
        file: PathBuf,
    },
    /// It has had too many wrong proofs.
    #[error(
        "{addr} answers no probe for up to a minute, because too many came with a wrong secret: try again then; if \
         nobody here did that, look into its log for who did"
    )]
    TooMany {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// It took this node's proof and gave none.
    #[error(
        "what answers on {addr} could not prove that it knows the secret: it is no node that may be added, or somebody \
         stands in between; it was told nothing"
    )]
    Unproven {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// This node's secret file cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The other's cannot.
    #[error("{addr} cannot use its secret file: its log says why and what to do")]
    ItsSecret {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// Nothing that can be probed listens there.
    #[error(
        "what answers on {addr} does not take part in probes (it does not speak mortar-join/1): upgrade mortard there, \
         or check the address"
    )]
    NotSpoken {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// No common wire version.
    #[error(
        "{addr} runs Mortar {its_release} ({its_wire}), this node Mortar {release} ({wire}): they have no wire version \
         in common; upgrade the older one"
    )]
    Versions {
        /// Who was asked.
        addr: SocketAddr,
        /// This node's version.
        release: String,
        /// Wire versions of this node.
        wire: Wire,
        /// The other's version.
        its_release: String,
        /// Wire versions of the other.
        its_wire: Wire,
    },
    /// Two nodes with one identity.
    #[error(
        "{addr} has the id of a node of this cluster ({node}): its data directory is a copy; stop mortard there, remove \
         that copy (its identity with it) and start mortard again, so that it gets an id of its own"
    )]
    Clone {
        /// Who was asked.
        addr: SocketAddr,
        /// The identity of both.
        node: NodeId,
    },
    /// It has a cluster.
    #[error(
        "{addr} belongs to another cluster ({cluster}, with {}): `mortar peer detach` it there first",
        count(*.others, "other node")
    )]
    OtherCluster {
        /// Who was asked.
        addr: SocketAddr,
        /// Its cluster.
        cluster: ClusterId,
        /// How many more nodes that has.
        others: u32,
    },
    /// It has volumes.
    #[error(
        "{addr} has {} of its own: `mortar volume delete` there first, or probe the nodes of this cluster from there if \
         they have none",
        count(*.volumes, "volume")
    )]
    HasVolumes {
        /// Who was asked.
        addr: SocketAddr,
        /// How many.
        volumes: u32,
    },
    /// The clocks differ.
    #[error(
        "the clock of {addr} is {} this node's, and more than {} s is not allowed: set both right (NTP), then probe again",
        offset(*.ahead_ms),
        MAX_CLOCK_OFFSET_MS / 1_000
    )]
    Clock {
        /// Who was asked.
        addr: SocketAddr,
        /// Its clock minus this node's, in milliseconds.
        ahead_ms: i64,
    },
    /// It has too much to do.
    #[error("{addr} is busy with other probes: try again in ten seconds")]
    Busy {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// It stopped answering before it was told to join.
    #[error("{addr} stopped answering during the probe; it was told nothing: probe it again")]
    Lost {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// It stopped answering after it was told to join.
    #[error(
        "{addr} did not say whether it has joined: probe it again, which goes on where this ended"
    )]
    Unknown {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// It tried and could not.
    #[error("{addr} could not join and is as it was before: {why}")]
    Failed {
        /// Who was asked.
        addr: SocketAddr,
        /// Its reason.
        why: String,
    },
    /// It says something that makes no sense.
    #[error("{addr} gave an answer that makes no sense here: is its mortard of a newer version?")]
    Garbled {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// Another node than the one wanted.
    #[error("{addr} is node {found} now, not {wanted}: check the address")]
    OtherNode {
        /// Who was asked.
        addr: SocketAddr,
        /// Who should be there.
        wanted: NodeId,
        /// Who is.
        found: NodeId,
    },
    /// This node could not ask.
    #[error("cannot ask {addr}: {why}")]
    Own {
        /// Who was to be asked.
        addr: SocketAddr,
        /// Why not.
        why: String,
    },
}

fn count(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn offset(ahead_ms: i64) -> String {
    let tenths = ahead_ms.unsigned_abs() / 100;
    let way = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("{}.{} s {way}", tenths / 10, tenths % 10)
}

/// Whether the asker's cluster may take the other node in. `addr` is where the other was asked, for the line that says
/// why not.
///
/// # Errors
/// What stands against it.
pub fn may_probe(
    asker: &Introduction,
    other: &Facts,
    addr: SocketAddr,
) -> Result<Verdict, JoinError> {
    let who = &other.who;
    if asker.node == who.node {
        if asker.run == who.run && asker.cluster == who.cluster {
            return Ok(Verdict::Itself);
        }
        let node = who.node;
        return Err(JoinError::Clone { addr, node });
    }
    if !asker.wire.meets(who.wire) {
        return Err(JoinError::Versions {
            addr,
            release: asker.release.clone(),
            wire: asker.wire,
            its_release: who.release.clone(),
            its_wire: who.wire,
        });
    }
    if asker.cluster == who.cluster {
        return Ok(Verdict::Already);
    }
    if other.others > 0 {
        return Err(JoinError::OtherCluster {
            addr,
            cluster: who.cluster,
            others: other.others,
        });
    }
    if other.volumes > 0 {
        let volumes = other.volumes;
        return Err(JoinError::HasVolumes { addr, volumes });
    }
    let ahead_ms = who.wall_ms.saturating_sub(asker.wall_ms);
    if ahead_ms.unsigned_abs() > MAX_CLOCK_OFFSET_MS {
        return Err(JoinError::Clock { addr, ahead_ms });
    }
    Ok(Verdict::Fit)
}
