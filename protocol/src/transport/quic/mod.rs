//! QUIC: one UDP port per node, TLS 1.3 with certificates on both sides, one bidirectional stream per request.
//!
//! [`QuicServer`] serves a node's port; [`QuicTransport`] is a caller's end. Both run on one tokio runtime each, and
//! no task of theirs ever moves to another thread. [`StrangerConnection`] is the end of a caller without certificate.

mod assemble;
mod calls;
mod client;
mod configs;
mod server;
mod socket;
mod stranger;
#[cfg(test)]
mod tests;

pub use client::QuicTransport;
pub use server::{QuicServer, ServerLimits};
pub use stranger::{MAX_STRANGER_FRAME, StrangerConnection, StrangerFault};

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{
    AsyncTimer, AsyncUdpSocket, ConnectionError, EndpointConfig, MtuDiscoveryConfig, Runtime,
    SendStream, TokioRuntime, TransportConfig, VarInt, WriteError,
};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::runtime::Handle;

use super::tls::TlsError;
use crate::frame::{Frame, PREFIX};

/// Largest datagram path discovery tries, in bytes: ten of them, quinn's largest batch, stay below 65,507.
const MAX_MTU: u16 = 6_400;
/// Largest datagram taken, in bytes.
const MAX_DATAGRAM: u16 = 6_500;
/// Requests in progress on one connection.
const STREAMS: u32 = 4_096;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const SEND_WINDOW: u64 = 16 << 20;
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// A connection without calls that is silent for so long has ended; one with calls is given up sooner.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// Bodies up to this size are copied behind their head, so that the stream gets one piece.
const JOIN_BODY: usize = 2 << 10;
/// Buffer of the UDP socket asked for, in bytes.
const SOCKET_BUFFER: usize = 4 << 20;

/// Stream and connection error codes.
mod code {
    /// Nothing is wrong: the connection is no longer needed.
    pub(super) const DONE: u32 = 0;
    /// A frame broke the format or a limit.
    pub(super) const BAD_FRAME: u32 = 1;
    /// The service gave no answer.
    pub(super) const NO_ANSWER: u32 = 2;
    /// The server has too many connections.
    pub(super) const BUSY: u32 = 3;
    /// The client showed no certificate.
    pub(super) const UNPROVEN: u32 = 4;
}

/// Why an end of the transport could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The UDP socket.
    #[error("UDP socket {0}: {1}")]
    Socket(SocketAddr, std::io::Error),
    /// TLS cannot be used for QUIC.
    #[error("TLS cannot be used for QUIC: {0}")]
    Config(String),
}

fn transport_config(loopback: bool) -> TransportConfig {
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_MTU);
    config
        .mtu_discovery_config(Some(discovery))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(
            VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32).into(),
        ))
        // Datagrams only carry probes ("are you still there?"); nobody reads them.
        .datagram_receive_buffer_size(Some(2_048))
        .datagram_send_buffer_size(2_048);
    if loopback {
        config.initial_mtu(MAX_MTU);
    }
    config
}

/// Keys that stay the same over restarts, so that a restarted node recognises and ends its earlier connections.
fn endpoint_config(reset: [u8; 32], ids: u64) -> Result<EndpointConfig, QuicError> {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(reset)));
    config
        .max_udp_payload_size(MAX_DATAGRAM)
        .map_err(|error| QuicError::Config(error.to_string()))?
        .min_reset_interval(Duration::from_millis(1))
        // The fixed bit is always set, so that other datagrams can be told by their first byte.
        .grease_quic_bit(false)
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    Ok(config)
}

struct ResetKey([u8; 32]);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        let hash = blake3::keyed_hash(&self.0, data);
        let count = out.len().min(32);
        out[..count].copy_from_slice(&hash.as_bytes()[..count]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        // blake3::Hash compares in constant time.
        let given: [u8; 32] = signature
            .try_into()
            .map_err(|_| quinn::crypto::CryptoError)?;
        if blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(given) {
            Ok(())
        } else {
            Err(quinn::crypto::CryptoError)
        }
    }
}

/// quinn's tasks on one given tokio runtime, whatever thread asks for them.
#[derive(Debug)]
struct Pinned(Handle);

impl Runtime for Pinned {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _context = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        let _context = self.0.enter();
        Ok(socket::Watched::new(socket)?)
    }
}

fn bind(addr: SocketAddr) -> Result<std::net::UdpSocket, QuicError> {
    use rustix::net::sockopt;
    let socket = std::net::UdpSocket::bind(addr).map_err(|error| QuicError::Socket(addr, error))?;
    // More than the system's limit needs privileges; whatever there is will do (a smaller buffer costs throughput
    // under bursts, not correctness).
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    }
    Ok(socket)
}

/// Writes a frame and ends the stream.
async fn write_frame(send: &mut SendStream, frame: Frame) -> Result<(), WriteError> {
    let inline = if frame.body.len() <= JOIN_BODY {
        frame.body.len()
    } else {
        0
    };
    let mut front = BytesMut::with_capacity(PREFIX + frame.head.len() + inline);
    front.put_slice(&frame.prefix());
    front.put_slice(&frame.head);
    if inline == frame.body.len() {
        front.put_slice(&frame.body);
        send.write_all_chunks(&mut [front.freeze()]).await?;
    } else {
        send.write_all_chunks(&mut [front.freeze(), frame.body])
            .await?;
    }
    send.finish().map_err(|_| WriteError::ClosedStream)
}

/// Whether the other side (or this one) ended a connection over certificates or wire versions.
fn is_rejection(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        ConnectionError::VersionMismatch => return true,
        ConnectionError::ApplicationClosed(close) => {
            return close.error_code == VarInt::from_u32(code::UNPROVEN);
        }
        _ => return false,
    };
    // TLS alerts.
    (0x100..0x200).contains(&code)
}

/// A piece of a probe: long enough that a node which does not know the connection may answer with a reset.
const PROBE: Bytes = Bytes::from_static(&[0; 48]);
