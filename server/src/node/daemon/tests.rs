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

fn start(dir: &std::path::Path) -> Running {
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
        let backend = Backend {
            stores: Arc::new(NoStores::default()),
            rules: Arc::new(NoRules),
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
    let daemon = start(&data);
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
    let daemon = start(&data);
    runtime.block_on(async {
        let info = ask(&transport, daemon.addr, AdminRequest::Info { volume: None }).await;
        let AdminReply::Volumes(volumes) = info else {
            panic!("{info:?}")
        };
        assert_eq!(volumes.len(), 1);
    });
    daemon.stop();
}
