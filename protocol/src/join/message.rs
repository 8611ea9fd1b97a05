//! What the two sides say to each other, and how they prove that they know the secret.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use crate::ids::{ClusterId, NodeId};
use crate::limits::WIRE_VERSIONS;
use crate::transport::tls::AuthorityParts;

/// Longest text of the other side that is shown, in characters.
const MAX_TEXT: usize = 255;
/// Most addresses of a node that are taken.
const MAX_ADDRS: usize = 64;

/// The wire versions a build speaks.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Wire {
    /// Oldest.
    pub oldest: u16,
    /// Newest.
    pub newest: u16,
}

impl Wire {
    /// Those of this build.
    pub const OWN: Self = Self {
        oldest: *WIRE_VERSIONS.start(),
        newest: *WIRE_VERSIONS.end(),
    };

    /// Whether both speak one version.
    pub fn meets(self, other: Self) -> bool {
        self.oldest.max(other.oldest) <= self.newest.min(other.newest)
    }
}

impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            write!(f, "wire version {}", self.newest)
        } else {
            write!(f, "wire versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// What a node says of itself to one that has not proven anything yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Introduction {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its identity.
    pub node: NodeId,
    /// Drawn when its daemon started: tells a node that meets itself from one that meets a copy of itself.
    pub run: u64,
    /// Version of its daemon.
    pub release: String,
    /// The wire versions it speaks.
    pub wire: Wire,
    /// Its wall clock, in milliseconds since 1970.
    pub wall_ms: i64,
}

/// What a node says of itself to one that has proven that it knows the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Facts {
    /// Who it is.
    pub who: Introduction,
    /// Other nodes in its cluster.
    pub others: u32,
    /// Volumes of its cluster.
    pub volumes: u32,
    /// Its host name.
    pub host: String,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
}

impl Facts {
    /// As it is kept and shown: texts of bounded length without control characters, a bounded number of addresses.
    pub(super) fn clean(mut self) -> Self {
        self.who.release = clean_text(&self.who.release);
        self.host = clean_text(&self.host);
        self.addrs.truncate(MAX_ADDRS);
        self
    }
}

/// A text of the other side, fit for one line on a terminal.
pub(super) fn clean_text(text: &str) -> String {
    text.chars()
        .take(MAX_TEXT)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// What makes a node one of a cluster. It issues its own certificate with the authority it is given.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Adoption {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its authority.
    pub authority: AuthorityParts,
    /// Its nodes, and where they listen.
    pub nodes: Vec<(NodeId, Vec<SocketAddr>)>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum JoinRequest {
    /// Who the asker is, proven. Answer: [`JoinReply::Greeting`].
    Hello {
        /// The asker.
        who: Introduction,
        /// Over `who`.
        proof: Proof,
    },
    /// Become a node of this cluster. Answer: [`JoinReply::Adopted`].
    Adopt {
        /// The asker.
        who: Introduction,
        /// What it needs.
        adoption: Box<Adoption>,
        /// Over both.
        proof: Proof,
    },
}

/// Answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum JoinReply {
    /// Who the other is, proven.
    Greeting {
        /// The other.
        facts: Box<Facts>,
        /// Over the asker's introduction and `facts`.
        proof: Proof,
    },
    /// It belongs to the cluster now.
    Adopted,
    /// Not done, and nothing changed.
    Refused(Refusal),
}

/// Why not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Refusal {
    /// The proof is wrong: another secret, or somebody in between.
    Proof,
    /// Too many wrong proofs came within a minute; none is looked at for the rest of it.
    TooMany,
    /// The node's own secret file cannot be used.
    NoSecret,
    /// The request cannot be read.
    Garbled,
    /// It is being adopted by another one.
    Busy,
    /// It is not fit for being adopted; this is how it is.
    Unfit(Box<Facts>),
    /// It tried and could not, for this reason.
    Failed(String),
}

/// Shows that who made it knows the secret, who the parties are, and on which connection it was made.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof([u8; 32]);

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(..)")
    }
}

/// Whose proof it is, and of what: one is never taken for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Hello,
    Greeting,
    Adopt,
}

impl Role {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Hello => b"mortar join 1 hello",
            Self::Greeting => b"mortar join 1 greeting",
            Self::Adopt => b"mortar join 1 adopt",
        }
    }
}

/// One side's end of a connection on which proofs are made and checked.
pub(super) struct Prover<'a> {
    pub(super) secret: &'a Secret,
    pub(super) binding: [u8; 32],
}

impl Prover<'_> {
    fn hash<A: Serialize, B: Serialize>(&self, role: Role, first: &A, second: &B) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret.0);
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(role.label());
        part(&self.binding);
        // Own types into memory: that cannot fail.
        part(&postcard::to_stdvec(first).unwrap_or_default());
        part(&postcard::to_stdvec(second).unwrap_or_default());
        hasher.finalize()
    }

    fn is_right<A: Serialize, B: Serialize>(
        &self,
        role: Role,
        first: &A,
        second: &B,
        proof: Proof,
    ) -> bool {
        // blake3::Hash compares in constant time.
        self.hash(role, first, second) == blake3::Hash::from_bytes(proof.0)
    }

    pub(super) fn hello(&self, who: Introduction) -> JoinRequest {
        let proof = Proof(self.hash(Role::Hello, &who, &()).into());
        JoinRequest::Hello { who, proof }
    }

    pub(super) fn adopt(&self, who: Introduction, adoption: Adoption) -> JoinRequest {
        let proof = Proof(self.hash(Role::Adopt, &who, &adoption).into());
        JoinRequest::Adopt {
            who,
            adoption: Box::new(adoption),
            proof,
        }
    }

    pub(super) fn greeting(&self, who: &Introduction, facts: Facts) -> JoinReply {
        let proof = Proof(self.hash(Role::Greeting, who, &facts).into());
        JoinReply::Greeting {
            facts: Box::new(facts),
            proof,
        }
    }

    /// Whether the asker has proven itself.
    pub(super) fn accepts(&self, request: &JoinRequest) -> bool {
        match request {
            JoinRequest::Hello { who, proof } => self.is_right(Role::Hello, who, &(), *proof),
            JoinRequest::Adopt {
                who,
                adoption,
                proof,
            } => self.is_right(Role::Adopt, who, adoption.as_ref(), *proof),
        }
    }

    /// Whether the one asked has.
    pub(super) fn accepts_greeting(&self, who: &Introduction, facts: &Facts, proof: Proof) -> bool {
        self.is_right(Role::Greeting, who, facts, proof)
    }
}
