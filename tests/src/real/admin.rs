//! Many commands at a daemon over one connection: `mortar` makes one for each, which takes longer than most commands.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use mortar_client::credentials;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::NodeId;
use mortar_protocol::transport::Transport;
use mortar_protocol::transport::quic::QuicTransport;

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Asks the daemon at `server`, which has to be on this machine's own network, with `at_once` requests on their way.
/// Panics if one has no answer; gives the answers in order.
pub fn ask_all(server: &str, requests: Vec<AdminRequest>, at_once: usize) -> Vec<AdminReply> {
    let addr: SocketAddr = server.parse().expect("address");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let credentials = credentials::find_for_commands(&[addr]).expect("certificate");
    let transport = {
        let _inside = runtime.enter();
        QuicTransport::new(&credentials, runtime.handle()).expect("transport")
    };
    let ask = |request: AdminRequest| {
        let frame = Frame::new(&Request::Admin(request), Bytes::new()).expect("request");
        let answer = transport.call(NodeId(0), &[addr], frame);
        async move {
            let answer = tokio::time::timeout(LIMIT, answer).await;
            let answer = answer.expect("an answer in time").expect("an answer");
            answer.message_of_any_length().expect("readable answer")
        }
    };
    runtime.block_on(
        stream::iter(requests)
            .map(ask)
            .buffered(at_once)
            .collect::<Vec<AdminReply>>(),
    )
}
