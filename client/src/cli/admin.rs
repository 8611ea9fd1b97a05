//! Asks the control plane.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::NodeId;
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::transport::{Lost, Transport};

use crate::credentials;

/// How long a daemon has to answer the first request.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// A connection to a daemon.
pub(crate) struct Admin {
    runtime: tokio::runtime::Runtime,
    transport: QuicTransport,
    addrs: Vec<SocketAddr>,
    server: String,
}

fn resolve(server: &str) -> Result<Vec<SocketAddr>, String> {
    let with_port = if server
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        server.to_owned()
    } else {
        format!("{server}:24007")
    };
    let addrs: Vec<SocketAddr> = with_port
        .to_socket_addrs()
        .map_err(|err| format!("{server}: {err}"))?
        .collect();
    if addrs.is_empty() {
        Err(format!("{server} has no address"))
    } else {
        Ok(addrs)
    }
}

impl Admin {
    /// Connects to the daemon at `server` (HOST\[:PORT\]) with this user's certificate.
    ///
    /// # Errors
    /// One line for a person.
    pub(crate) fn connect(server: &str) -> Result<Self, String> {
        let addrs = resolve(server)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| format!("no runtime: {err}"))?;
        let credentials = credentials::find(&addrs).map_err(|err| err.to_string())?;
        let transport = {
            let _inside = runtime.enter();
            QuicTransport::new(&credentials, runtime.handle())
                .map_err(|err| format!("transport: {err}"))?
        };
        Ok(Self {
            runtime,
            transport,
            addrs,
            server: server.to_owned(),
        })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// One line for a person, if the daemon does not answer.
    pub(crate) fn ask(&self, request: AdminRequest) -> Result<AdminReply, String> {
        let frame =
            Frame::new(&Request::Admin(request), Bytes::new()).map_err(|err| err.to_string())?;
        let limit = COMMAND;
        let answer = self.runtime.block_on(async {
            let call = self.transport.call(NodeId(0), &self.addrs, frame);
            tokio::time::timeout(limit, call).await
        });
        match answer {
            Ok(Ok(frame)) => frame.message_of_any_length().map_err(|err| {
                format!(
                    "{} answered something this version cannot read: {err}",
                    self.server
                )
            }),
            Ok(Err(Lost::Rejected)) => Err(format!(
                "{} refused this user's certificate: run as root or as the daemon's user on one of its nodes",
                self.server
            )),
            Ok(Err(Lost::NotSent)) => Err(format!(
                "no mortard answers at {} within {} s: is it running, and is --server (or MORTAR_SERVER) right?",
                self.server,
                FIRST_ANSWER.as_secs()
            )),
            Ok(Err(Lost::Unknown)) | Err(_) => Err(format!(
                "the connection to {} was lost before it answered; look whether the command was done",
                self.server
            )),
        }
    }
}
