//! Messages between the members of a set, and how log entries travel with them.
//!
//! An [`PeerEnvelope`] is the head of a frame. What it refers to lies in the frame's body: entries (see
//! [`encode_entries`]) behind [`PeerMessage::Append`], raw bytes behind [`PeerMessage::StageData`]. Bricks of one
//! process exchange a [`PeerFrame`] as it is.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Space};
use crate::frame::{FrameError, PREFIX};
use crate::ids::{BrickId, Epoch, Pos, RunId, Seq, StageId};
use crate::view::View;

/// Most epochs a history names; a log that spans more is not comparable and its brick must pull everything.
pub const MAX_HISTORY: usize = 1_024;

/// A peer message with its addresses.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PeerEnvelope {
    /// Sender.
    pub from: BrickId,
    /// Run of the sender: what an earlier run of a member said counts for nothing (P8).
    pub run: RunId,
    /// Receiver.
    pub to: BrickId,
    /// Epoch of the sender's view.
    pub epoch: Epoch,
    /// The message.
    pub message: PeerMessage,
}

/// The positions of a log, compressed: within an epoch they follow each other.
///
/// An entry is identified by its position, and two logs that hold the same entry agree on everything before it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct History {
    /// Newest entry below which nothing is told (it is applied, or gone from the log).
    pub base: Pos,
    /// First entry of each epoch above `base`, rising; the first one is at `base.seq + 1`.
    pub starts: Vec<Pos>,
    /// Newest entry; equals `base` if there is none above it.
    pub head: Pos,
}

/// What members say to each other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum PeerMessage {
    /// Primary to member: the view begins; tell me your log. Answer: [`PeerMessage::State`].
    Begin {
        /// The view, for a member that the control plane has not told yet.
        view: View,
    },
    /// Where the sender's log stands. Sent to the primary at the beginning of a view, when an append did not fit, and
    /// by a brick that wants to join.
    State {
        /// Its positions.
        history: History,
        /// Newest entry that is in the sender's tree and can no longer be dropped.
        applied: Pos,
        /// Newest flushed entry.
        flushed: Seq,
        /// The sender is not a member and asks to become one.
        join: bool,
    },
    /// Primary to member or joiner: entries (in the body, possibly none) that follow `prev`. What the receiver holds
    /// behind `prev` and differs is dropped.
    Append {
        /// Position of the entry before the first one sent.
        prev: Pos,
        /// Everything up to here is committed.
        commit: Seq,
        /// Everything up to here is flushed by every member and may be applied.
        announced: Seq,
        /// Flush up to here as soon as possible (0: at leisure).
        flush: Seq,
        /// The view has taken effect.
        serving: bool,
    },
    /// Member to primary: how far its log is written and flushed.
    Written {
        /// Newest entry written.
        written: Pos,
        /// Newest entry flushed.
        flushed: Seq,
        /// Its space.
        space: Space,
    },
    /// Member to primary: tell me the commit position. Answer: [`PeerMessage::Append`] without entries.
    AskCommit,
    /// Member to primary: an entry attaches a stage that is not held here. Answer: [`PeerMessage::StageData`].
    StageWanted {
        /// The entry.
        at: Pos,
        /// The stage.
        stage: StageId,
    },
    /// The bytes of a stage are in the body.
    StageData {
        /// The stage.
        stage: StageId,
    },
}

impl PeerMessage {
    /// Short name for traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "begin",
            Self::State { .. } => "state",
            Self::Append { .. } => "append",
            Self::Written { .. } => "written",
            Self::AskCommit => "askcommit",
            Self::StageWanted { .. } => "stagewanted",
            Self::StageData { .. } => "stagedata",
        }
    }
}

/// A peer message with what it carries, as it passes between bricks of one process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerFrame {
    /// Addresses and message.
    pub envelope: PeerEnvelope,
    /// Entries of an [`PeerMessage::Append`].
    pub entries: Vec<Arc<Entry>>,
    /// Bytes of a [`PeerMessage::StageData`].
    pub data: Bytes,
}

impl PeerFrame {
    /// The frame's body on the wire. The head is `envelope` within a [`crate::fop::Request::Peer`].
    ///
    /// # Errors
    /// If an entry cannot be encoded.
    pub fn body(&self) -> Result<Bytes, FrameError> {
        match self.envelope.message {
            PeerMessage::Append { .. } => encode_entries(&self.entries),
            _ => Ok(self.data.clone()),
        }
    }

    /// Puts a received envelope and body together.
    ///
    /// # Errors
    /// If the body does not hold what the message refers to.
    pub fn decode(envelope: PeerEnvelope, body: Bytes) -> Result<Self, FrameError> {
        let (entries, data) = match envelope.message {
            PeerMessage::Append { .. } => (decode_entries(body)?, Bytes::new()),
            _ => (Vec::new(), body),
        };
        Ok(Self {
            envelope,
            entries,
            data,
        })
    }
}

/// Entries as they travel: for each its head's and body's length (u32 LE), head (postcard), body.
///
/// # Errors
/// If an entry cannot be encoded (never for entries that a brick made).
pub fn encode_entries(entries: &[Arc<Entry>]) -> Result<Bytes, FrameError> {
    let mut out = BytesMut::new();
    for entry in entries {
        let head = postcard::to_stdvec(entry.as_ref()).map_err(|_| FrameError::Head)?;
        out.put_u32_le(u32::try_from(head.len()).map_err(|_| FrameError::Length)?);
        out.put_u32_le(u32::try_from(entry.body.len()).map_err(|_| FrameError::Length)?);
        out.put_slice(&head);
        out.put_slice(&entry.body);
    }
    Ok(out.freeze())
}

/// The inverse of [`encode_entries`]; the entries' bodies are slices of `body`.
///
/// # Errors
/// If the bytes are not a sequence of entries.
pub fn decode_entries(mut body: Bytes) -> Result<Vec<Arc<Entry>>, FrameError> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        if body.len() < PREFIX {
            return Err(FrameError::Length);
        }
        let prefix = body.split_to(PREFIX);
        let word = |at: usize| {
            u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]])
                as usize
        };
        let (head, rest) = (word(0), word(4));
        if head.checked_add(rest).is_none_or(|len| len > body.len()) {
            return Err(FrameError::Length);
        }
        let head = body.split_to(head);
        let (mut entry, left): (Entry, _) =
            postcard::take_from_bytes(&head).map_err(|_| FrameError::Head)?;
        if !left.is_empty() {
            return Err(FrameError::Head);
        }
        entry.body = body.split_to(rest);
        entries.push(Arc::new(entry));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Effect, EntryKind};

    fn entry(seq: u64, body: &'static [u8]) -> Arc<Entry> {
        Arc::new(Entry {
            pos: Pos {
                epoch: Epoch(3),
                seq: Seq(seq),
            },
            kind: EntryKind::Internal,
            effects: vec![Effect::Del {
                key: Bytes::from_static(b"k"),
            }],
            body: Bytes::from_static(body),
        })
    }

    #[test]
    fn entries_round_trip() {
        let entries = vec![entry(1, b"one"), entry(2, b""), entry(3, b"three")];
        let body = encode_entries(&entries).unwrap();
        assert_eq!(decode_entries(body).unwrap(), entries);
    }

    #[test]
    fn truncated_entries_are_refused() {
        let body = encode_entries(&[entry(1, b"one"), entry(2, b"two")]).unwrap();
        let first = encode_entries(&[entry(1, b"one")]).unwrap().len();
        for len in (1..body.len()).filter(|len| *len != first) {
            assert!(decode_entries(body.slice(..len)).is_err(), "{len}");
        }
    }
}
