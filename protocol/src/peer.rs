//! Messages between the members of a set.

use serde::{Deserialize, Serialize};

use crate::ids::{BrickId, Epoch};

/// A peer message with its addresses. Entry bodies follow in the frame's body, in order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PeerEnvelope {
    /// Sender.
    pub from: BrickId,
    /// Receiver.
    pub to: BrickId,
    /// Epoch of the sender's view.
    pub epoch: Epoch,
    /// The message.
    pub message: PeerMessage,
}

/// What members say to each other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum PeerMessage {
    /// Placeholder until the set log defines its messages.
    Ping,
}
