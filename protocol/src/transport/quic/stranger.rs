//! Connections of strangers: a node that is to be taken into a cluster has no certificate of it yet. They carry a few
//! small frames, to a [`Strangers`], and end soon; nothing of them ever reaches the
//! [`Service`](crate::transport::Service).
//!
//! Neither side has shown who it is. What they say to each other has to prove that, bound to the connection by its
//! [binding](StrangerConnection::binding): both ends of one connection have the same, ends of different ones never do,
//! so a machine between them that relays what they say is found out.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, Endpoint, ReadError, ReadToEndError, RecvStream, VarInt};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::configs::client_configs;
use super::{Pinned, QuicError, bind, code, endpoint_config, write_frame};
use crate::env_real::{fill_random, random};
use crate::frame::{Frame, FrameError, PREFIX};
use crate::transport::tls::{ANY_NODE, stranger_tls};
use crate::transport::{Lost, ReplyTo, Strangers};

/// Connections of strangers at a time.
pub(super) const STRANGERS: usize = 16;
/// Requests on one of them.
pub(super) const REQUESTS: usize = 4;
/// How long one may last.
const STAY: Duration = Duration::from_secs(10);
/// Longest head and body together, in bytes.
pub const MAX_STRANGER_FRAME: usize = 64 << 10;
const LABEL: &[u8] = b"EXPORTER-mortar-join-1";
/// Ends of a connection by TLS: no common ALPN name, as a rule.
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Why a stranger's connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StrangerFault {
    /// Nobody answered in time.
    #[error("no answer")]
    Silent,
    /// The node has too many connections at the moment.
    #[error("too many connections")]
    Busy,
    /// Something answers that does not speak `mortar-join/1`.
    #[error("does not take strangers")]
    NotSpoken,
    /// This side could not begin.
    #[error(transparent)]
    Own(#[from] QuicError),
}

fn binding(connection: &Connection) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    connection
        .export_keying_material(&mut bytes, LABEL, &[])
        .ok()?;
    Some(bytes)
}

async fn read_small(recv: &mut RecvStream) -> Result<Frame, ReadToEndError> {
    let mut bytes = Bytes::from(recv.read_to_end(PREFIX + MAX_STRANGER_FRAME).await?);
    let bad = |_: FrameError| ReadToEndError::TooLong;
    let prefix: [u8; PREFIX] = match bytes.split_to(PREFIX.min(bytes.len()))[..].try_into() {
        Ok(prefix) => prefix,
        Err(_) => return Err(bad(FrameError::Length)),
    };
    let (head_len, body_len) = Frame::lengths(prefix).map_err(bad)?;
    if bytes.len() != head_len + body_len {
        return Err(bad(FrameError::Length));
    }
    let head = bytes.split_to(head_len);
    Ok(Frame { head, body: bytes })
}

/// A node's end: serves one stranger, for a while. `answer` makes the taker of a stream's answer.
pub(super) async fn serve(
    connection: &Connection,
    from: SocketAddr,
    strangers: &Arc<dyn Strangers>,
    answer: impl Fn(quinn::SendStream) -> ReplyTo,
) {
    let Some(binding) = binding(connection) else {
        connection.close(VarInt::from_u32(code::BUSY), b"no keying material");
        return;
    };
    let serving = async {
        for _ in 0..REQUESTS {
            let Ok((send, mut recv)) = connection.accept_bi().await else {
                return code::DONE;
            };
            match read_small(&mut recv).await {
                Ok(frame) => strangers.serve(from, binding, frame, answer(send)),
                Err(_) => return code::BAD_FRAME,
            }
        }
        match connection.accept_bi().await {
            Ok(_) => code::BUSY,
            Err(_) => code::DONE,
        }
    };
    let ended = timeout(STAY, serving).await.unwrap_or(code::DONE);
    connection.close(VarInt::from_u32(ended), b"no more is taken from a stranger");
}

/// A caller's end.
#[derive(Debug)]
pub struct StrangerConnection {
    connection: Connection,
    binding: [u8; 32],
}

impl StrangerConnection {
    /// Connects to whatever node listens on `addr`, within `time`. To be called on a tokio runtime, which then drives
    /// the connection.
    ///
    /// # Errors
    /// See [`StrangerFault`].
    pub async fn connect(addr: SocketAddr, time: Duration) -> Result<Self, StrangerFault> {
        let any: SocketAddr = if addr.is_ipv6() {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let tls = stranger_tls().map_err(QuicError::Tls)?;
        let [other, loopback] = client_configs(tls)?;
        let config = if addr.ip().is_loopback() {
            loopback
        } else {
            other
        };
        let mut reset = [0; 32];
        fill_random(&mut reset);
        let endpoint = Endpoint::new(
            endpoint_config(reset, random())?,
            None,
            bind(any)?,
            Arc::new(Pinned(Handle::current())),
        )
        .map_err(|error| QuicError::Socket(any, error))?;
        let connecting = endpoint
            .connect_with(config, addr, ANY_NODE)
            .map_err(|error| QuicError::Config(error.to_string()))?;
        let connection = match timeout(time, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(fault(&error)),
            Err(_) => return Err(StrangerFault::Silent),
        };
        let binding = binding(&connection)
            .ok_or_else(|| QuicError::Config("no keying material".to_owned()))?;
        Ok(Self {
            connection,
            binding,
        })
    }

    /// What only the two ends of this connection know: keying material exported from its TLS session.
    pub fn binding(&self) -> [u8; 32] {
        self.binding
    }

    /// Sends one request and waits for its answer, for `time` at most.
    ///
    /// # Errors
    /// [`Lost::NotSent`] if the node takes no more from a stranger, else [`Lost::Unknown`]; [`Lost::Rejected`] if it
    /// is not a small frame.
    pub async fn call(&self, frame: Frame, time: Duration) -> Result<Frame, Lost> {
        if frame.head.len() + frame.body.len() > MAX_STRANGER_FRAME {
            return Err(Lost::Rejected);
        }
        timeout(time, self.exchange(frame))
            .await
            .unwrap_or(Err(Lost::Unknown))
    }

    async fn exchange(&self, frame: Frame) -> Result<Frame, Lost> {
        let lost = |error: &ConnectionError| match error {
            ConnectionError::ApplicationClosed(close)
                if close.error_code == VarInt::from_u32(code::BUSY) =>
            {
                Lost::NotSent
            }
            _ => Lost::Unknown,
        };
        let (mut send, mut recv) = self
            .connection
            .open_bi()
            .await
            .map_err(|error| lost(&error))?;
        // A node that ends the connection meanwhile says why when the answer is read.
        let _ = write_frame(&mut send, frame).await;
        read_small(&mut recv).await.map_err(|fault| match fault {
            ReadToEndError::Read(ReadError::ConnectionLost(error)) => lost(&error),
            _ => Lost::Unknown,
        })
    }
}

impl Drop for StrangerConnection {
    fn drop(&mut self) {
        self.connection
            .close(VarInt::from_u32(code::DONE), b"not needed any more");
    }
}

fn fault(error: &ConnectionError) -> StrangerFault {
    match error {
        ConnectionError::VersionMismatch => StrangerFault::NotSpoken,
        ConnectionError::ConnectionClosed(close) => {
            if TLS_ALERTS.contains(&u64::from(close.error_code)) {
                StrangerFault::NotSpoken
            } else {
                // QUIC's own refusal, for one.
                StrangerFault::Busy
            }
        }
        ConnectionError::TransportError(_) => StrangerFault::NotSpoken,
        ConnectionError::ApplicationClosed(_) => StrangerFault::Busy,
        _ => StrangerFault::Silent,
    }
}
