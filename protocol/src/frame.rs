//! Frames: what one message is on a stream. A head (postcard) and a body (raw bytes, not copied by the codec).
//!
//! ```text
//! | head length u32 LE | body length u32 LE | head | body |
//! ```

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{MAX_BODY, MAX_HEAD};

/// Bytes before the head.
pub const PREFIX: usize = 8;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// Encoded message.
    pub head: Bytes,
    /// Bulk bytes that the message refers to.
    pub body: Bytes,
}

/// A frame that breaks the format or a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Head longer than [`MAX_HEAD`].
    #[error("head of {0} bytes is over the limit of {MAX_HEAD}")]
    HeadTooLong(usize),
    /// Body longer than [`MAX_BODY`].
    #[error("body of {0} bytes is over the limit of {MAX_BODY}")]
    BodyTooLong(usize),
    /// The bytes end inside a frame or go on behind it.
    #[error("frame is truncated or followed by other bytes")]
    Length,
    /// The head is not a message of this version.
    #[error("head is not a known message")]
    Head,
}

impl Frame {
    /// Encodes `message` as the head of a frame.
    ///
    /// # Errors
    /// If it is longer than [`MAX_HEAD`].
    pub fn new<T: Serialize>(message: &T, body: Bytes) -> Result<Self, FrameError> {
        // Serialising our own types into memory cannot fail for another reason than length.
        let head = postcard::to_stdvec(message).map_err(|_| FrameError::Head)?;
        if head.len() > MAX_HEAD {
            return Err(FrameError::HeadTooLong(head.len()));
        }
        if body.len() > MAX_BODY {
            return Err(FrameError::BodyTooLong(body.len()));
        }
        Ok(Self {
            head: head.into(),
            body,
        })
    }

    /// A frame of a message that may be longer than a head: then the head is empty and the message is the body.
    ///
    /// # Errors
    /// If it is longer than [`MAX_BODY`].
    pub fn of_any_length<T: Serialize>(message: &T) -> Result<Self, FrameError> {
        let bytes: Bytes = postcard::to_stdvec(message)
            .map_err(|_| FrameError::Head)?
            .into();
        match bytes.len() {
            len if len > MAX_BODY => Err(FrameError::BodyTooLong(len)),
            len if len > MAX_HEAD => Ok(Self {
                head: Bytes::new(),
                body: bytes,
            }),
            _ => Ok(Self {
                head: bytes,
                body: Bytes::new(),
            }),
        }
    }

    /// The inverse of [`Self::of_any_length`].
    ///
    /// # Errors
    /// If it is not a `T`.
    pub fn message_of_any_length<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        let bytes = if self.head.is_empty() {
            &self.body
        } else {
            &self.head
        };
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(FrameError::Head),
        }
    }

    /// Decodes the head; it must be consumed whole.
    ///
    /// # Errors
    /// If the head is not a `T`.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        let (message, rest) =
            postcard::take_from_bytes(&self.head).map_err(|_| FrameError::Head)?;
        if rest.is_empty() {
            Ok(message)
        } else {
            Err(FrameError::Head)
        }
    }

    /// The eight bytes before the head.
    pub fn prefix(&self) -> [u8; PREFIX] {
        let mut prefix = [0; PREFIX];
        prefix[..4].copy_from_slice(&(self.head.len() as u32).to_le_bytes());
        prefix[4..].copy_from_slice(&(self.body.len() as u32).to_le_bytes());
        prefix
    }

    /// Head and body length from a prefix, checked against the limits.
    ///
    /// # Errors
    /// If a length is over its limit.
    pub fn lengths(prefix: [u8; PREFIX]) -> Result<(usize, usize), FrameError> {
        let word = |at: usize| {
            u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]])
                as usize
        };
        let (head, body) = (word(0), word(4));
        if head > MAX_HEAD {
            return Err(FrameError::HeadTooLong(head));
        }
        if body > MAX_BODY {
            return Err(FrameError::BodyTooLong(body));
        }
        Ok((head, body))
    }
}
