//! Daemon, client and mount in this process: the real parts on real sockets and files, with traced seams.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use mortar_benches::driven::Driven;
use mortar_benches::mortar::VOLUME;
use mortar_client::fuse::{Adapter, Caches};
use mortar_client::vfs::{Options as VfsOptions, Vfs};
use mortar_client::volume::Volume;
use mortar_protocol::admin::{AdminReply, AdminRequest, BrickSpec, CreateVolume};
use mortar_protocol::attr::Cred;
use mortar_protocol::enrol;
use mortar_protocol::env::Env;
use mortar_protocol::env_real::{RealEnv, mono_now};
use mortar_protocol::fop::{Call, Fop, Request};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BrickId, Epoch, InodeId, NodeId, SessionId};
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::transport::{Lost, Transport};
use mortar_protocol::view::SetKind;
use mortar_server::brick::Namespace;
use mortar_server::node::bricks::{Backend, Stores};
use mortar_server::node::daemon::{Options, serve};
use mortar_server::node::data_dir::DataDir;
use mortar_server::node::stores::FileStores;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::trace::Trace;
use crate::traced::Traced;

/// The daemon's thread; ends when dropped.
struct Daemon {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.take();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(why))) => eprintln!("mortard: {why}"),
            Some(Err(_)) => eprintln!("mortard ended by a panic"),
            _ => {}
        }
    }
}

/// A mounted replica 3 volume. Fields are dropped in this order.
pub(crate) struct World {
    session: Option<BackgroundSession>,
    vfs: Vfs<Volume>,
    transport: QuicTransport,
    addr: SocketAddr,
    client: Driven,
    _daemon: Daemon,
}

impl World {
    /// Starts everything below `scratch`, with bricks of `brick_mib` MiB in `bricks`, mounted on `mount`.
    pub(crate) fn start(
        scratch: &Path,
        bricks: &Path,
        brick_mib: u64,
        mount: &Path,
        trace: &Arc<Trace>,
    ) -> Result<Self, String> {
        let data = scratch.join("data");
        let (daemon, addr) = start_daemon(data.clone(), trace)?;
        let client = Driven::start("mortar-client")?;
        let runtime = client.handle();
        let enrolment =
            enrol::fetch(&data.join(enrol::SOCKET), None).map_err(|err| err.to_string())?;
        let transport =
            QuicTransport::new(&enrolment.credentials, runtime).map_err(|err| err.to_string())?;
        make_volume(runtime, &transport, addr, bricks, brick_mib)?;
        let env: Arc<dyn Env> = Arc::new(RealEnv::new(runtime.clone()));
        let traced = Arc::new(Traced::new(transport.clone(), trace));
        let volume = runtime
            .block_on(Volume::connect(Arc::clone(&env), traced, &[addr], VOLUME))
            .map_err(|err| err.to_string())?;
        let vfs = Vfs::new(volume, env, VfsOptions::default());
        let session = Session::new(Adapter::new(vfs.clone()), mount, &config())
            .map_err(|err| format!("mount: {err}"))?;
        let caches = Caches::start(session.notifier()).map_err(|err| err.to_string())?;
        vfs.set_kernel(Arc::new(caches));
        let session = session.spawn().map_err(|err| format!("mount: {err}"))?;
        std::fs::metadata(mount).map_err(|err| format!("the mount does not answer: {err}"))?;
        Ok(Self {
            session: Some(session),
            vfs,
            transport,
            addr,
            client,
            _daemon: daemon,
        })
    }

    /// Microseconds of each of `count` requests with `body` bytes that the daemon answers at the door.
    pub(crate) fn round_trips(&self, body: &Bytes, count: usize) -> Result<Vec<f64>, String> {
        let call = Call {
            // Nobody serves this brick.
            brick: BrickId(1),
            epoch: Epoch(1),
            session: SessionId(1),
            number: 0,
            answered_below: 0,
            repeat: false,
            after: 0,
            cred: Cred::default(),
            durable: false,
            fop: Fop::GetAttr { id: InodeId::ROOT },
        };
        let frame = Frame::new(&Request::Fop(call), body.clone()).map_err(|err| err.to_string())?;
        let (transport, addr) = (self.transport.clone(), self.addr);
        // On the thread that drives the connection, as a mount's requests are.
        let measuring = self.client.wait(async move {
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let start = mono_now();
                transport.call(NodeId(0), &[addr], frame.clone()).await?;
                times.push(mono_now().since(start).as_nanos() as f64 / 1_000.0);
            }
            Ok::<_, Lost>(times)
        });
        measuring?.map_err(|err| err.to_string())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(err) = session.umount_and_join()
        {
            eprintln!("unmount: {err}");
        }
        self.client.handle().block_on(async {
            self.vfs.flush_all().await;
            self.vfs.backend().close().await;
            self.transport.close().await;
        });
    }
}

/// As `mortar mount` sets it for root.
fn config() -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("mortar-steps".to_owned()),
        MountOption::CUSTOM("subtype=mortar".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.clamp(2, 8));
    config.clone_fd = true;
    config
}

/// The daemon of `mortard`, on a thread.
fn start_daemon(data_dir: PathBuf, trace: &Arc<Trace>) -> Result<(Daemon, SocketAddr), String> {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options {
        secret_file: data_dir.join("secret"),
        data_dir,
        listen: free,
        api: free,
        threads: 1,
        log_file: None,
    };
    let trace = Arc::clone(trace);
    let backend = move |data: &DataDir| {
        let stores: Arc<dyn Stores> = FileStores::new(data.cluster, data.node);
        Backend {
            stores: Arc::new(Traced::new(stores, &trace)),
            rules: Arc::new(Traced::new(Namespace::new(), &trace)),
        }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let failed = ready.clone();
    let work = move || {
        let result = (|| {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|err| err.to_string())?;
            let stop = async {
                // The other end is dropped to stop.
                let _ = stopped.await;
            };
            let told = |addr| {
                // The starter waits for it.
                let _ = ready.send(Ok(addr));
            };
            let served = runtime.block_on(serve(&options, backend, stop, told));
            served.map(|_| ()).map_err(|err| err.to_string())
        })();
        if let Err(why) = &result {
            // Nobody waits any more once it has served.
            let _ = failed.send(Err(format!("mortard: {why}")));
        }
        result
    };
    let thread = std::thread::Builder::new()
        .name("mortard".to_owned())
        .spawn(work)
        .map_err(|err| err.to_string())?;
    let daemon = Daemon {
        stop: Some(stop),
        thread: Some(thread),
    };
    let addr = is_ready.recv().map_err(|_| "mortard ended".to_owned())??;
    Ok((daemon, addr))
}

fn make_volume(
    runtime: &Handle,
    transport: &QuicTransport,
    addr: SocketAddr,
    bricks: &Path,
    brick_mib: u64,
) -> Result<(), String> {
    let bricks = (1..=3)
        .map(|n| BrickSpec {
            host: "127.0.0.1".to_owned(),
            path: bricks.join(format!("steps{n}")).display().to_string(),
        })
        .collect();
    let create = AdminRequest::Create(CreateVolume {
        name: VOLUME.to_owned(),
        kind: SetKind::Replicate { copies: 3 },
        bricks,
        brick_size: Some(brick_mib << 20),
        force: true,
    });
    let start = AdminRequest::Start {
        volume: VOLUME.to_owned(),
        force: false,
    };
    for request in [create, start] {
        let frame =
            Frame::new(&Request::Admin(request), Bytes::new()).map_err(|err| err.to_string())?;
        let answer = runtime
            .block_on(transport.call(NodeId(0), &[addr], frame))
            .map_err(|err| err.to_string())?;
        match answer.message::<AdminReply>() {
            Ok(AdminReply::Done) => {}
            other => return Err(format!("the daemon said {other:?}")),
        }
    }
    Ok(())
}
