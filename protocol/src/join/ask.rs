//! The asking side: probes an address, and makes the node there one of the cluster.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::message::{
    Adoption, Facts, Introduction, JoinReply, JoinRequest, Prover, Refusal, clean_text,
};
use super::secret::{Secret, SecretFile};
use super::verdict::{JoinError, Verdict, may_probe};
use crate::frame::Frame;
use crate::ids::NodeId;
use crate::transport::Lost;
use crate::transport::quic::{StrangerConnection, StrangerFault};

/// How long an answer is waited for: the handshake, and the greeting.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How long the other may take to become a node of the cluster.
const ADOPT_TIME: Duration = Duration::from_secs(9);

/// A node that has been probed. The connection stands, for ten seconds in all.
#[derive(Debug)]
pub struct Probed {
    /// What it says of itself.
    pub facts: Facts,
    /// Whether it can be adopted.
    pub verdict: Verdict,
    addr: SocketAddr,
    own: Introduction,
    secret: Secret,
    file: SecretFile,
    connection: StrangerConnection,
}

/// Asks the node at `addr` who it is, and decides whether it may be taken in. Changes nothing. To be called on a tokio
/// runtime.
///
/// # Errors
/// One line for a person.
pub async fn probe(
    addr: SocketAddr,
    own: Introduction,
    file: &SecretFile,
) -> Result<Probed, JoinError> {
    let secret = file.load()?;
    let connection = StrangerConnection::connect(addr, ANSWER_TIME)
        .await
        .map_err(|fault| match fault {
            StrangerFault::Silent => JoinError::Silent { addr },
            StrangerFault::Busy => JoinError::Busy { addr },
            StrangerFault::NotSpoken => JoinError::NotSpoken { addr },
            StrangerFault::Own(error) => JoinError::Own {
                addr,
                why: error.to_string(),
            },
        })?;
    let prover = Prover {
        secret: &secret,
        binding: connection.binding(),
    };
    let hello = prover.hello(own.clone());
    let lost = || JoinError::Lost { addr };
    let reply = call(&connection, addr, &hello, ANSWER_TIME, lost).await?;
    let facts = match reply {
        JoinReply::Greeting { facts, proof } => {
            if !prover.accepts_greeting(&own, &facts, proof) {
                return Err(JoinError::Unproven { addr });
            }
            facts.clean()
        }
        JoinReply::Refused(refusal) => return Err(refused(refusal, addr, &own, file)),
        JoinReply::Adopted => return Err(JoinError::Garbled { addr }),
    };
    let verdict = may_probe(&own, &facts, addr)?;
    Ok(Probed {
        facts,
        verdict,
        addr,
        own,
        secret,
        file: file.clone(),
        connection,
    })
}

impl Probed {
    /// Makes the node one of the cluster. It has done so when this returns; a node that is one already is left as it
    /// is.
    ///
    /// # Errors
    /// One line for a person. After [`JoinError::Unknown`] the node may have joined.
    pub async fn adopt(self, adoption: Adoption) -> Result<(), JoinError> {
        let addr = self.addr;
        match self.verdict {
            Verdict::Fit => {}
            Verdict::Already => return Ok(()),
            Verdict::Itself => return Err(JoinError::Garbled { addr }),
        }
        let prover = Prover {
            secret: &self.secret,
            binding: self.connection.binding(),
        };
        let request = prover.adopt(self.own.clone(), adoption);
        let lost = || JoinError::Unknown { addr };
        match call(&self.connection, addr, &request, ADOPT_TIME, lost).await? {
            JoinReply::Adopted => Ok(()),
            JoinReply::Refused(refusal) => Err(refused(refusal, addr, &self.own, &self.file)),
            JoinReply::Greeting { .. } => Err(JoinError::Garbled { addr }),
        }
    }
}

/// [`probe`] and [`Probed::adopt`] in one, for a node that was probed before: node `node` must be there. Can be
/// repeated until it is known to have joined.
///
/// # Errors
/// One line for a person. After [`JoinError::Unknown`] the node may have joined.
pub async fn adopt(
    addr: SocketAddr,
    own: Introduction,
    file: &SecretFile,
    node: NodeId,
    adoption: Adoption,
) -> Result<(), JoinError> {
    let probed = probe(addr, own, file).await?;
    let found = probed.facts.who.node;
    if found != node {
        return Err(JoinError::OtherNode {
            addr,
            wanted: node,
            found,
        });
    }
    probed.adopt(adoption).await
}

async fn call(
    connection: &StrangerConnection,
    addr: SocketAddr,
    request: &JoinRequest,
    time: Duration,
    lost: impl Fn() -> JoinError,
) -> Result<JoinReply, JoinError> {
    let frame = Frame::new(request, Bytes::new()).map_err(|error| JoinError::Own {
        addr,
        why: error.to_string(),
    })?;
    let answer = connection
        .call(frame, time)
        .await
        .map_err(|error| match error {
            Lost::NotSent => JoinError::Busy { addr },
            Lost::Rejected => JoinError::Own {
                addr,
                why: "the list of the cluster's nodes is too long".to_owned(),
            },
            Lost::Unknown => lost(),
        })?;
    answer.message().map_err(|_| JoinError::Garbled { addr })
}

fn refused(refusal: Refusal, addr: SocketAddr, own: &Introduction, file: &SecretFile) -> JoinError {
    match refusal {
        Refusal::Proof => JoinError::OtherSecret {
            addr,
            file: file.path().to_owned(),
        },
        Refusal::TooMany => JoinError::TooMany { addr },
        Refusal::NoSecret => JoinError::ItsSecret { addr },
        Refusal::Busy => JoinError::Busy { addr },
        Refusal::Garbled => JoinError::Garbled { addr },
        Refusal::Failed(why) => JoinError::Failed {
            addr,
            why: clean_text(&why),
        },
        Refusal::Unfit(facts) => match may_probe(own, &facts.clean(), addr) {
            Err(error) => error,
            Ok(_) => JoinError::Garbled { addr },
        },
    }
}
