//! A UDP socket that notices datagrams which cannot be ours. quinn drops them without a word; an operator who looks
//! for a wrong port or an attack should find a line in the log.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::LogGate;

#[derive(Debug)]
pub(super) struct Watched {
    inner: Arc<dyn AsyncUdpSocket>,
    gate: LogGate,
}

impl Watched {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            gate: LogGate::default(),
        })
    }

    fn look(&self, meta: &RecvMeta, bytes: &[u8]) {
        if !may_be_quic(bytes)
            && let Some(held) = self.gate.pass()
        {
            tracing::warn!(
                from = %meta.addr, bytes = meta.len, more = held,
                "dropped a datagram that is not QUIC version 1"
            );
        }
    }
}

/// Shape of a datagram: a short header with the fixed bit, or a long one of version 1. (A long header of another
/// version is answered with a version negotiation and is as wrong here.)
fn may_be_quic(bytes: &[u8]) -> bool {
    let Some(first) = bytes.first() else {
        return false;
    };
    let fixed = first & 0x40 != 0;
    let long = first & 0x80 != 0;
    fixed && (!long && bytes.len() >= 21 || long && bytes.get(1..5) == Some(&[0, 0, 0, 1]))
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &polled {
            for (meta, buf) in meta.iter().zip(bufs.iter()).take(*count) {
                self.look(meta, &buf[..meta.len.min(buf.len())]);
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert!(!may_be_quic(b""));
        assert!(!may_be_quic(b"GET / HTTP/1.1\r\n"));
        assert!(!may_be_quic(&[0; 100]));
        assert!(may_be_quic(&[0x40; 100]));
        assert!(!may_be_quic(&[0xc0, 9, 9, 9, 9, 0, 0]));
        assert!(may_be_quic(&[0xc0, 0, 0, 0, 1, 0, 0]));
    }
}
