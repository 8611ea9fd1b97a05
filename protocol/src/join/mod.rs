//! How a node is taken into a cluster (`peer probe`): two nodes that know of each other nothing but an address and a
//! shared secret.
//!
//! The node that asks ([`probe`], [`adopt`]) connects as a stranger
//! ([`StrangerConnection`](crate::transport::quic::StrangerConnection)); the one that is asked answers with an
//! [`Answerer`]. Each proves to the other that it knows the secret, without sending it and bound to this one
//! connection: the asker first, and only then does the other say anything of itself. Both then decide with the same
//! function, [`may_probe`]; what it refuses has changed nothing on either side. At last the asker sends the cluster's
//! authority ([`Adoption`]), with which the other becomes a node of the cluster.
//!
//! Who knows the secret may join and may take in: it is worth as much as the authority's key.

mod answer;
mod ask;
mod message;
mod secret;
#[cfg(test)]
mod tests;
mod verdict;

pub use answer::{Answerer, Candidate};
pub use ask::{Probed, adopt, probe};
pub use message::{Adoption, Facts, Introduction, JoinReply, JoinRequest, Proof, Refusal, Wire};
pub use secret::{SECRET_FILE, Secret, SecretError, SecretFile};
pub use verdict::{JoinError, MAX_CLOCK_OFFSET_MS, Verdict, may_probe};
