//! One daemon from start to end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mortar_protocol::admin::NodeInfo;
use mortar_protocol::env::Env;
use mortar_protocol::env_real::{RealEnv, mono_now, wall_now};
use mortar_protocol::ids::NodeId;
use mortar_protocol::join::{Answerer, SecretFile};
use mortar_protocol::logfile::take_stderr;
use mortar_protocol::peer::PeerFrame;
use mortar_protocol::transport::quic::{QuicError, QuicServer, QuicTransport, ServerLimits};
use mortar_protocol::transport::tls::LiveCredentials;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::api;
use super::bricks::{Backend, Bricks, Host};
use super::data_dir::{DataDir, DataDirError};
use super::dump;
use super::enrolment::EnrolSocket;
use super::gate::{Door, SharedDoor};
use super::leading::{self, Leading};
use super::log;
use super::peers::{OrderBook, Peers, Ways};
use super::service::{CONTROL_QUEUE, ControlCall, NodeService, answer, answer_of_any_length};
use crate::control::admin::Admin;
use crate::control::caretaker::Caretaker;
use crate::control::consensus::ControlDisk;
use crate::control::nodes::Nodes;
use crate::control::operations::Operations;
use crate::control::serve::{Formatting, Served};
use crate::control::sessions::Sessions;
use crate::control::store::{Control, ControlError, Parts};

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
    /// The secret that nodes prove to each other.
    pub secret_file: PathBuf,
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
    /// The data directory is a copy of another one that is in use.
    #[error(
        "{path} is a copy: a mortard at {addr} answers as the same node ({node}); stop this copy for good, or remove it so \
         that a node with an id of its own begins here"
    )]
    Copy {
        /// The data directory.
        path: PathBuf,
        /// Where the other one is.
        addr: SocketAddr,
        /// Whose id both have.
        node: NodeId,
    },
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

/// How long another daemon with the same identity has to show itself.
const COPY_TIME: Duration = Duration::from_secs(1);

/// Makes sure that nobody serves as this node where it was last, if that is another address than now: the data directory
/// would be a copy. At the same address the port is taken.
async fn only_one(data: &DataDir, peers: &Peers, listen: SocketAddr) -> Result<(), DaemonError> {
    let now = reachable(listen);
    for addr in data.last_addrs()? {
        if !now.contains(&addr) && peers.is_there(addr, COPY_TIME).await {
            return Err(DaemonError::Copy {
                path: data.path.clone(),
                addr,
                node: data.node,
            });
        }
    }
    Ok(())
}

/// Runs a daemon until SIGTERM or SIGINT, or until it cannot go on.
///
/// # Errors
/// See [`DaemonError`].
pub fn run(
    options: &Options,
    backend: impl FnOnce(&DataDir) -> Backend,
) -> Result<Ended, DaemonError> {
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
) -> Result<Ended, DaemonError> {
    let data = Arc::new(DataDir::open(&options.data_dir)?);
    let running = Running::start(options, Arc::clone(&data), backend).await?;
    ready(running.server.local_addr());
    let ended = running.until(stop).await?;
    data.release();
    Ok(ended)
}

/// Why a daemon has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Its node belongs to another cluster from now on: it has to be started again.
    Moved,
}

/// A node that starts over gives its last answers this time to leave.
const LAST_ANSWERS: Duration = Duration::from_millis(100);
/// How often the node's certificate is looked at.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(3_600);

/// A daemon that serves.
struct Running {
    bricks: Arc<Bricks>,
    control: Arc<Control>,
    peers: Arc<Peers>,
    server: QuicServer,
    data: Arc<DataDir>,
    joined: watch::Receiver<bool>,
    left: watch::Receiver<bool>,
    leading: JoinHandle<Result<(), ControlError>>,
    helpers: Vec<JoinHandle<()>>,
    _socket: EnrolSocket,
}

impl Running {
    async fn start(
        options: &Options,
        data: Arc<DataDir>,
        backend: impl FnOnce(&DataDir) -> Backend,
    ) -> Result<Self, DaemonError> {
        let system = |what| move |error| DaemonError::System(what, error);
        let (reports, own_reports) = mpsc::unbounded_channel();
        let others = Arc::new(OnceLock::<Arc<Peers>>::new());
        let to_others = Arc::clone(&others);
        let other_nodes = Box::new(move |frame: PeerFrame| {
            if let Some(peers) = to_others.get() {
                peers.send_peer(frame);
            }
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
        let main = Handle::current();
        let live = LiveCredentials::new(data.credentials.clone());
        let peers = Peers::new(
            data.node,
            (
                QuicTransport::with_live(&live, &main)?,
                QuicTransport::with_live(&live, &core)?,
            ),
            core.clone(),
            data.first_known.clone(),
        );
        let _ = others.set(Arc::clone(&peers));
        let ways = Arc::new(Ways(Arc::clone(&peers)));
        let env: Arc<dyn Env> = Arc::new(RealEnv::new(main));
        let parts = Parts {
            own: data.node,
            env: Arc::clone(&env),
            disk: Arc::new(ControlThread::start().map_err(system("control thread"))?),
            wire: Arc::clone(&ways) as _,
            forward: Arc::clone(&ways) as _,
            joins: data.joins,
        };
        only_one(&data, &peers, options.listen).await?;
        let control = Arc::new(Control::open(&data.path, parts).await?);
        let (to_control, calls) = mpsc::channel(CONTROL_QUEUE);
        let service = NodeService::new(Arc::clone(&bricks), Arc::clone(&control), to_control);
        let host_name = rustix::system::uname();
        let host_name = host_name.nodename().to_string_lossy().into_owned();
        let secret = SecretFile::new(&options.secret_file);
        if let Err(error) = secret.ensure() {
            tracing::warn!(%error, "no node can be taken in, nor this one, until that is mended");
        }
        let door = Door::new(
            Arc::clone(&data),
            secret.clone(),
            Arc::clone(&env),
            host_name.clone(),
        );
        let strangers = Answerer::new(Arc::clone(&door) as _, secret, Arc::clone(&env));
        let server = QuicServer::start(
            &live,
            options.listen,
            ServerLimits::default(),
            &core,
            Arc::new(service),
            Some(Arc::new(strangers)),
        )?;
        let api = api::start(options.api)
            .await
            .map_err(|error| DaemonError::Api(options.api, error))?;
        let addrs = reachable(server.local_addr());
        data.note_addrs(&addrs)?;
        door.connect(&control, addrs.clone());
        let node = NodeInfo {
            id: data.node,
            addrs: addrs.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let nodes: Arc<dyn Nodes> = ways;
        let operations = Arc::new(Operations::new(
            Arc::clone(&control),
            Arc::clone(&nodes),
            Arc::new(SharedDoor(Arc::clone(&door))),
            Arc::clone(&env),
            data.node,
        ));
        let (leader_reports, reports) = mpsc::unbounded_channel();
        let host = Arc::new(Host(Arc::clone(&bricks)));
        let formatting = Formatting::default();
        let served = Arc::new(Served {
            control: Arc::clone(&control),
            host: Arc::clone(&host) as _,
            formatting: formatting.clone(),
            operations: Arc::clone(&operations),
            reports: leader_reports,
            env: Arc::clone(&env),
            cluster: data.cluster,
            version: (node.version.clone(), node.pid),
            started: mono_now(),
            left: watch::channel(false).0,
        });
        peers.connect(&control, &served);
        let left = served.left.subscribe();
        let uid = rustix::process::geteuid().as_raw();
        let sessions = Sessions::new(Arc::clone(&control), Arc::clone(&env), data.node);
        let admin = Admin::new(
            Arc::clone(&control),
            Arc::clone(&nodes),
            Arc::clone(&sessions),
            Arc::clone(&env),
            (data.cluster, node),
            uid,
        );
        let leading = Leading {
            control: Arc::clone(&control),
            orders: Arc::new(OrderBook::new(Arc::clone(&peers))),
            silent: {
                let peers = Arc::clone(&peers);
                Arc::new(move |node| peers.silent(node))
            },
            env: Arc::clone(&env),
            operations,
            reports,
        };
        let caretaker = Caretaker::new(
            Arc::clone(&control),
            (host, formatting),
            Arc::clone(&env),
            data.node,
            (host_name, addrs.clone()),
        );
        let helpers = vec![
            tokio::spawn(leading::report(
                Arc::clone(&control),
                nodes,
                env,
                own_reports,
            )),
            tokio::spawn(caretaker.run()),
            tokio::spawn(sessions.run()),
            tokio::spawn(answer_calls(Arc::new(admin), served, calls)),
            tokio::spawn(dump::follow_slow(Arc::clone(&bricks))),
            tokio::spawn(log::follow(Arc::clone(&control), data.node)),
            tokio::spawn(renew(Arc::clone(&data), live)),
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
        Ok(Self {
            bricks,
            control,
            peers,
            server,
            data,
            joined: door.joined(),
            left,
            leading: tokio::spawn(leading.run()),
            helpers,
            _socket: socket,
        })
    }

    /// Serves until it is told to stop, or cannot go on.
    async fn until(mut self, stop: impl Future<Output = ()>) -> Result<Ended, DaemonError> {
        let mut why = Ended::Stopped;
        let failed = tokio::select! {
            () = stop => None,
            ended = &mut self.leading => ended.ok().and_then(Result::err),
            _ = self.joined.changed() => {
                // The answer to who asked is on its way.
                tokio::time::sleep(LAST_ANSWERS).await;
                why = Ended::Moved;
                None
            }
            _ = self.left.changed() => {
                self.data.note_leave()?;
                tokio::time::sleep(LAST_ANSWERS).await;
                why = Ended::Moved;
                None
            }
        };
        tracing::info!(?why, "mortard stops");
        self.helpers.iter().for_each(JoinHandle::abort);
        // Bricks that stop are not dropped from their views: all of them come back.
        self.leading.abort();
        self.bricks.stop().await;
        if let Some(part) = self.control.consensus() {
            part.stop().await;
        }
        self.peers.close().await;
        self.server.close().await;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(why),
        }
    }
}

/// Renews the node's certificate whenever that is due.
async fn renew(data: Arc<DataDir>, live: LiveCredentials) {
    loop {
        match data
            .authority
            .renew_if_due(&data.tls(), &live, data.node, wall_now())
        {
            Ok(false) => {}
            Ok(true) => tracing::info!("renewed this node's certificate"),
            Err(error) => tracing::error!(%error, "this node's certificate cannot be renewed"),
        }
        tokio::time::sleep(CERTIFICATE_LOOK).await;
    }
}

/// Runs what writes to the control plane's file, on a thread of its own.
struct ControlThread(std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl ControlThread {
    fn start() -> std::io::Result<Self> {
        let (jobs, waiting) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::Builder::new()
            .name("mortar-control".to_owned())
            .spawn(move || {
                while let Ok(job) = waiting.recv() {
                    job();
                }
            })?;
        Ok(Self(jobs))
    }
}

impl ControlDisk for ControlThread {
    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        // The thread ends only after this sender.
        let _ = self.0.send(job);
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

/// Answers what reaches the control plane, each in a task of its own (some wait).
async fn answer_calls(
    admin: Arc<Admin>,
    served: Arc<Served>,
    mut calls: mpsc::Receiver<ControlCall>,
) {
    while let Some(call) = calls.recv().await {
        match call {
            ControlCall::Admin(call) => {
                let admin = Arc::clone(&admin);
                tokio::spawn(async move {
                    let reply = admin.handle(&call.peer, call.request).await;
                    answer_of_any_length(call.reply, &reply);
                });
            }
            ControlCall::Node(call) => {
                let served = Arc::clone(&served);
                tokio::spawn(async move {
                    let (reply, body) = served.serve(call.from, call.request, call.body).await;
                    if body.is_empty() {
                        answer_of_any_length(call.reply, &reply);
                    } else {
                        answer(call.reply, &reply, body);
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
