//! The UDP socket under an endpoint.
//!
//! It is watched for arriving datagrams alone. With room to send watched as well, as usual, the kernel would wake this
//! thread each time the other side has taken a datagram off its queue: once more per request, for nothing. Room is
//! waited for only after a send has found none.
//!
//! It also notices datagrams which cannot be ours. quinn drops them without a word; an operator who looks for a wrong
//! port or an attack should find a line in the log.

#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::log_gate::LogGate;

#[derive(Debug)]
pub(super) struct Watched {
    io: AsyncFd<UdpSocket>,
    udp: UdpSocketState,
    /// Whether the last send found no room.
    blocked: AtomicBool,
    gate: LogGate,
}

impl Watched {
    /// Takes a bound socket. To be called within the runtime that drives it.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            udp: UdpSocketState::new((&socket).into())?,
            io: register(socket, Interest::READABLE)?,
            blocked: AtomicBool::new(false),
            gate: LogGate::default(),
        }))
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

fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a `UdpSocket` owns its descriptor, which stays the same and open as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Waits for room to send.
#[derive(Debug)]
struct Room {
    socket: Arc<Watched>,
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let waiting = match &mut this.waiting {
            Some(waiting) => waiting,
            None if !this.socket.blocked.load(Ordering::Relaxed) => return Poll::Ready(Ok(())),
            none => {
                let again = this.socket.io.get_ref().try_clone()?;
                none.insert(register(again, Interest::WRITABLE)?)
            }
        };
        let room = ready!(waiting.poll_write_ready(cx)).map(drop);
        this.waiting = None;
        this.socket.blocked.store(false, Ordering::Relaxed);
        Poll::Ready(room)
    }
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.udp.send(self.io.get_ref().into(), transmit);
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.blocked.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io.poll_read_ready(cx))?;
            let received = match self.udp.recv(self.io.get_ref().into(), bufs, meta) {
                Ok(count) => {
                    if count < bufs.len() {
                        // That was all: what comes later is told anew.
                        guard.clear_ready();
                    }
                    Ok(count)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                    continue;
                }
                Err(error) => Err(error),
            };
            if let Ok(count) = received {
                for (meta, buf) in meta.iter().zip(bufs.iter()).take(count) {
                    self.look(meta, &buf[..meta.len.min(buf.len())]);
                }
            }
            return Poll::Ready(received);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
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
