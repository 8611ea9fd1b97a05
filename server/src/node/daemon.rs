//! One daemon from start to end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::admin::NodeInfo;
use mortar_protocol::env_real::mono_now;
use mortar_protocol::logfile::take_stderr;
use mortar_protocol::report::FromBrick;
use mortar_protocol::transport::quic::{QuicError, QuicServer, ServerLimits};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::api;
use super::bricks::{Backend, Bricks, Host};
use super::data_dir::{DataDir, DataDirError};
use super::dump;
use super::enrolment::EnrolSocket;
use super::service::{ADMIN_QUEUE, AdminCall, NodeService, answer};
use crate::control::admin::Admin;
use crate::control::leader::Leader;
use crate::control::store::{Control, ControlError};

/// How often sets that wait for members are looked at.
const LEADER_TICK: Duration = Duration::from_millis(200);

/// What a daemon is told on its command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// UDP address to serve.
    pub listen: SocketAddr,
    /// TCP address of the HTTP port.
    pub api: SocketAddr,
    /// Core threads.
    pub threads: usize,
    /// The file that takes its messages, to be opened again on SIGHUP.
    pub log_file: Option<PathBuf>,
}

/// Why a daemon ended. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The control plane's file.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The UDP port.
    #[error("{0} (is another mortard or glusterd running? name another address with --listen)")]
    Listen(#[from] QuicError),
    /// The HTTP port.
    #[error("HTTP port {0}: {1} (name another address with --api)")]
    Api(SocketAddr, std::io::Error),
    /// Something the system refused.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// The addresses under which a daemon that listens on `bound` is reached.
fn reachable(bound: SocketAddr) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let mut addrs = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port()))];
    // Connecting a UDP socket sends nothing; it tells which address the way out has.
    let way_out = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect(("192.0.2.1", 9)).map(|()| socket))
        .and_then(|socket| socket.local_addr());
    if let Ok(IpAddr::V4(ip)) = way_out.map(|addr| addr.ip())
        && !ip.is_unspecified()
    {
        addrs.push(SocketAddr::from((ip, bound.port())));
    }
    addrs
}

/// Runs a daemon until SIGTERM or SIGINT, or until it cannot go on.
///
/// # Errors
/// See [`DaemonError`].
pub fn run(
    options: &Options,
    backend: impl FnOnce(&DataDir) -> Backend,
) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| DaemonError::System("runtime", error))?;
    runtime.block_on(async {
        let system = |error| DaemonError::System("signals", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        serve(options, backend, stop, |_| {}).await
    })
}

/// Runs a daemon on the current runtime until `stop` is ready. `backend` makes what this node's
/// bricks need; `ready` is called with the UDP address once it serves.
///
/// # Errors
/// See [`DaemonError`].
pub async fn serve(
    options: &Options,
    backend: impl FnOnce(&DataDir) -> Backend,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), DaemonError> {
    let system = |what| move |error| DaemonError::System(what, error);
    let data = Arc::new(DataDir::open(&options.data_dir)?);
    let control = Arc::new(Control::open(&data.path)?);
    let (reports, incoming) = mpsc::unbounded_channel();
    let other_nodes = Box::new(|frame: mortar_protocol::peer::PeerFrame| {
        tracing::debug!(to = %frame.envelope.to, "a message to a brick that is not open");
    });
    let bricks = Bricks::start(
        data.node,
        options.threads,
        backend(&data),
        reports,
        other_nodes,
    )
    .map_err(system("core threads"))?;
    let core = bricks
        .first_runtime()
        .ok_or_else(|| DaemonError::System("core threads", std::io::Error::other("none")))?;
    let (to_admin, admin_calls) = mpsc::channel(ADMIN_QUEUE);
    let service = Arc::new(NodeService::new(
        Arc::clone(&bricks),
        Arc::clone(&control),
        to_admin,
    ));
    let server = QuicServer::start(
        &data.credentials.clone().into(),
        options.listen,
        ServerLimits::default(),
        &core,
        service,
        None,
    )?;
    let api = api::start(options.api)
        .await
        .map_err(|error| DaemonError::Api(options.api, error))?;
    let addrs = reachable(server.local_addr());
    let node = NodeInfo {
        id: data.node,
        addrs: addrs.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let uid = rustix::process::geteuid().as_raw();
    let host = Arc::new(Host(Arc::clone(&bricks)));
    let admin = Arc::new(Admin::new(Arc::clone(&control), host, node, uid));
    let leader = Leader::new(Arc::clone(&control), Arc::clone(&bricks) as _);
    let mut leading = tokio::spawn(lead(leader, Arc::clone(&control), incoming));
    admin.recover().await?;
    let answering = tokio::spawn(manage(Arc::clone(&admin), admin_calls));
    let helpers = [
        tokio::spawn(dump::follow_slow(Arc::clone(&bricks))),
        tokio::spawn(tell_on_signals(
            Arc::clone(&bricks),
            Arc::clone(&control),
            Arc::clone(&data),
            options.log_file.clone(),
        )),
    ];
    let socket = EnrolSocket::start(&data, addrs, server.local_addr())
        .map_err(system("enrolment socket"))?;
    tracing::info!(
        node = %data.node, cluster = %data.cluster, listen = %server.local_addr(), %api,
        data = %data.path.display(), "mortard serves"
    );

    ready(server.local_addr());
    let failed = tokio::select! {
        () = stop => None,
        ended = &mut leading => ended.ok().and_then(Result::err),
    };
    tracing::info!("mortard stops");
    answering.abort();
    helpers.iter().for_each(tokio::task::JoinHandle::abort);
    // Bricks that stop are not dropped from their views: all of them come back.
    leading.abort();
    drop(socket);
    bricks.stop().await;
    server.close().await;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// On SIGHUP opens the log file again; on SIGUSR1 writes the state dump.
async fn tell_on_signals(
    bricks: Arc<Bricks>,
    control: Arc<Control>,
    data: Arc<DataDir>,
    log_file: Option<PathBuf>,
) {
    let (Ok(mut hang_up), Ok(mut user)) = (
        signal(SignalKind::hangup()),
        signal(SignalKind::user_defined1()),
    ) else {
        return tracing::error!("signals cannot be waited for");
    };
    loop {
        tokio::select! {
            _ = hang_up.recv() => {
                if let Some(path) = &log_file
                    && let Err(error) = take_stderr(path)
                {
                    tracing::error!(path = %path.display(), %error, "the log cannot be opened again");
                }
                tracing::info!("told to open the log again");
            }
            _ = user.recv() => match dump::write(&bricks, &control, &data.path).await {
                Ok(path) => tracing::info!(path = %path.display(), "wrote the state"),
                Err(error) => tracing::error!(%error, "the state cannot be written"),
            },
        }
    }
}

/// Answers management requests, each in a task of its own (some wait).
async fn manage(admin: Arc<Admin>, mut calls: mpsc::Receiver<AdminCall>) {
    while let Some(call) = calls.recv().await {
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let reply = admin.handle(&call.peer, call.request).await;
            answer(call.reply, &reply, Bytes::new());
        });
    }
}

/// Leads the sets until the control plane cannot write any more.
async fn lead(
    mut leader: Leader,
    control: Arc<Control>,
    mut incoming: mpsc::UnboundedReceiver<FromBrick>,
) -> Result<(), ControlError> {
    let mut changes = control.watch();
    let mut tick = tokio::time::interval(LEADER_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            report = incoming.recv() => {
                let Some(first) = report else { return Ok(()) };
                let mut reports = vec![first];
                while let Ok(next) = incoming.try_recv() {
                    reports.push(next);
                }
                leader.reports(reports, mono_now()).await?;
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                leader.changed();
            }
            _ = tick.tick() => leader.tick(mono_now()).await?,
        }
    }
}

#[cfg(test)]
mod tests;
