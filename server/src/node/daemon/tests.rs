//! A daemon with sockets and threads, but with stores that cannot be opened.

use std::collections::BTreeSet;

use mortar_protocol::admin::{AdminReply, AdminRequest, BrickSpec, CreateVolume};
use mortar_protocol::enrol;
use mortar_protocol::entry::Effect;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Fop, Request};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{NodeId, SetIndex};
use mortar_protocol::transport::Transport;
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::view::{BrickInfo, SetKind, VolumeInfo};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::brick::{Asked, Executed, ReadAnswer, Rules, StateAt, Storage};
use crate::control::admin::FormatBrick;
use crate::node::bricks::{OpenFailure, Stores};
use crate::node::stores::FileStores;

#[derive(Default)]
struct NoStores(Mutex<BTreeSet<String>>);

impl Stores for NoStores {
    fn format(&self, brick: &FormatBrick) -> Result<(), String> {
        self.0.lock().insert(brick.brick.path.clone());
        Ok(())
    }

    fn unformat(&self, brick: &BrickInfo) {
        self.0.lock().remove(&brick.path);
    }

    fn open(
        &self,
        _volume: &VolumeInfo,
        _set: SetIndex,
        brick: &BrickInfo,
    ) -> Result<Box<dyn Storage>, OpenFailure> {
        Err(OpenFailure {
            busy: false,
            message: format!("{} is gone", brick.path),
        })
    }
}

struct NoRules;

impl Rules for NoRules {
    fn execute(
        &self,
        _: &StateAt<'_>,
        _: &Asked<'_>,
        _: &Fop,
        _: &Bytes,
    ) -> Result<Executed, Fault> {
        Err(Fault::Protocol)
    }

    fn answer(&self, _: &StateAt<'_>, _: &Asked<'_>, _: &Fop) -> Result<ReadAnswer, Fault> {
        Err(Fault::Protocol)
    }

    fn session_end(&self, _: &StateAt<'_>, _: &Asked<'_>) -> Result<Vec<Effect>, Fault> {
        Err(Fault::Protocol)
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<(), DaemonError>>,
    addr: SocketAddr,
}

fn no_stores(_: &DataDir) -> Backend {
    Backend {
        stores: Arc::new(NoStores::default()),
        rules: Arc::new(NoRules),
    }
}

fn file_stores(data: &DataDir) -> Backend {
    Backend {
        stores: FileStores::new(data.cluster, data.node),
        rules: Arc::new(NoRules),
    }
}

fn start(dir: &std::path::Path, backend: fn(&DataDir) -> Backend) -> Running {
    let options = Options {
        data_dir: dir.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        api: SocketAddr::from(([127, 0, 0, 1], 0)),
        threads: 1,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let stop = async {
            let _ = stopped.await;
        };
        runtime.block_on(serve(&options, backend, stop, |addr| {
            ready.send(addr).unwrap();
        }))
    });
    Running {
        stop,
        thread,
        addr: is_ready.recv().unwrap(),
    }
}

impl Running {
    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

async fn ask(transport: &QuicTransport, addr: SocketAddr, request: AdminRequest) -> AdminReply {
    let frame = Frame::new(&Request::Admin(request), Bytes::new()).unwrap();
    let answer = transport.call(NodeId(0), &[addr], frame).await.unwrap();
    answer.message().unwrap()
}

fn client(dir: &std::path::Path, runtime: &tokio::runtime::Runtime) -> QuicTransport {
    let enrolled = enrol::fetch(&dir.join(enrol::SOCKET), None).unwrap();
    QuicTransport::new(&enrolled.credentials, runtime.handle()).unwrap()
}

#[test]
fn commands_reach_the_control_plane_and_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let daemon = start(&data, no_stores);
    let transport = client(&data, &runtime);
    let create = AdminRequest::Create(CreateVolume {
        name: "v".to_owned(),
        kind: SetKind::Plain,
        bricks: vec![BrickSpec {
            host: "localhost".to_owned(),
            path: dir.path().join("b").display().to_string(),
        }],
        brick_size: None,
        force: true,
    });
    let start_volume = AdminRequest::Start {
        volume: "v".to_owned(),
        force: false,
    };
    let wait = AdminRequest::Set {
        volume: "v".to_owned(),
        options: vec![("cluster.open-wait".to_owned(), "1".to_owned())],
    };
    runtime.block_on(async {
        let addr = daemon.addr;
        assert_eq!(ask(&transport, addr, create).await, AdminReply::Done);
        assert_eq!(ask(&transport, addr, wait).await, AdminReply::Done);
        let refused = ask(&transport, addr, start_volume).await;
        assert!(
            matches!(&refused, AdminReply::Refused { message } if message.ends_with("is gone")),
            "{refused:?}"
        );
    });
    daemon.stop();
    let daemon = start(&data, no_stores);
    runtime.block_on(async {
        let info = ask(&transport, daemon.addr, AdminRequest::Info { volume: None }).await;
        let AdminReply::Volumes(volumes) = info else {
            panic!("{info:?}")
        };
        assert_eq!(volumes.len(), 1);
    });
    daemon.stop();
}

fn created(name: &str, dir: &std::path::Path) -> AdminRequest {
    AdminRequest::Create(CreateVolume {
        name: name.to_owned(),
        kind: SetKind::Replicate { copies: 3 },
        bricks: ["a", "b", "c"]
            .iter()
            .map(|brick| BrickSpec {
                host: "localhost".to_owned(),
                path: dir.join(brick).display().to_string(),
            })
            .collect(),
        brick_size: Some(256 << 20),
        force: true,
    })
}

async fn in_sync(transport: &QuicTransport, addr: SocketAddr) -> usize {
    let status = AdminRequest::Status {
        volume: "v".to_owned(),
    };
    match ask(transport, addr, status).await {
        AdminReply::Status { bricks, .. } => bricks.iter().filter(|brick| brick.in_sync).count(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replicated_volume_opens_stops_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let volume = || "v".to_owned();
    let start_volume = || AdminRequest::Start {
        volume: volume(),
        force: false,
    };
    let daemon = start(&data, file_stores);
    let transport = client(&data, &runtime);
    runtime.block_on(async {
        let addr = daemon.addr;
        assert_eq!(ask(&transport, addr, created("v", dir.path())).await, AdminReply::Done);
        for _ in 0..2 {
            assert_eq!(ask(&transport, addr, start_volume()).await, AdminReply::Done);
            assert_eq!(in_sync(&transport, addr).await, 3);
            let stop = AdminRequest::Stop {
                volume: volume(),
                force: false,
            };
            assert_eq!(ask(&transport, addr, stop).await, AdminReply::Done);
        }
        assert_eq!(ask(&transport, addr, start_volume()).await, AdminReply::Done);
        // Their paths are taken, whatever is asked.
        let again = ask(&transport, addr, created("w", dir.path())).await;
        assert!(matches!(again, AdminReply::Refused { message } if message.contains("already part of a volume")));
    });
    daemon.stop();
    let daemon = start(&data, file_stores);
    let begun = mono_now();
    runtime.block_on(async {
        // The layout tells when there is something new.
        let mut newer_than = 0;
        while in_sync(&transport, daemon.addr).await < 3 {
            let layout = AdminRequest::Layout {
                volume: volume(),
                newer_than,
            };
            let AdminReply::Layout { version, .. } = ask(&transport, daemon.addr, layout).await
            else {
                panic!("no layout")
            };
            newer_than = version;
        }
    });
    let took = mono_now().since(begun);
    assert!(took < Duration::from_secs(3), "{took:?}");
    daemon.stop();
}
