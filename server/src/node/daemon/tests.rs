//! A daemon with sockets and threads, but with stores that cannot be opened.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::admin::{AdminReply, AdminRequest, BrickSpec, CreateVolume};
use mortar_protocol::attr::{Cred, FileKind};
use mortar_protocol::enrol;
use mortar_protocol::env_real::wall_now;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Answer, Call, Change, Cut, Fop, InodeOp, Part, Reply, Request};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BrickId, Epoch, Gfid, InodeId, NodeId, SessionId, SetIndex};
use mortar_protocol::node::BrickTask;
use mortar_protocol::placement::slot;
use mortar_protocol::transport::Transport;
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::view::{BrickInfo, SetKind, VolumeInfo};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::brick::{Namespace, Storage};
use crate::node::bricks::{OpenFailure, Stores};
use crate::node::stores::FileStores;

#[derive(Default)]
struct NoStores(Mutex<BTreeSet<String>>);

impl Stores for NoStores {
    fn check(&self, _: &BrickTask) -> Result<(), String> {
        Ok(())
    }

    fn format(&self, brick: &BrickTask) -> Result<(), String> {
        self.0.lock().insert(brick.brick.path.clone());
        Ok(())
    }

    fn unformat(&self, brick: &BrickInfo) {
        self.0.lock().remove(&brick.path);
    }

    fn mark_deleted(&self, _brick: &BrickInfo) -> Result<(), OpenFailure> {
        Ok(())
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

struct Running {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<Ended, DaemonError>>,
    addr: SocketAddr,
}

fn no_stores(_: &DataDir) -> Backend {
    Backend {
        stores: Arc::new(NoStores::default()),
        rules: Arc::new(Namespace::new()),
    }
}

fn file_stores(data: &DataDir) -> Backend {
    Backend {
        stores: FileStores::new(data.cluster, data.node),
        rules: Arc::new(Namespace::new()),
    }
}

fn start(dir: &std::path::Path, backend: fn(&DataDir) -> Backend) -> Running {
    let options = Options {
        data_dir: dir.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        api: SocketAddr::from(([127, 0, 0, 1], 0)),
        threads: 1,
        log_file: None,
        secret_file: dir.join("secret"),
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
    answer.message_of_any_length().unwrap()
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

/// A client of one set, without any of the comforts of the real one.
struct Plain<'a> {
    transport: &'a QuicTransport,
    addr: SocketAddr,
    brick: BrickId,
    session: SessionId,
    number: u64,
}

impl Plain<'_> {
    async fn call(&mut self, fop: Fop, body: &'static [u8], repeat: bool) -> (Answer, Bytes) {
        let numbered = !fop.is_read() && !matches!(fop, Fop::SessionBegin);
        if numbered && !repeat {
            self.number += 1;
        }
        let mut call = Call {
            brick: self.brick,
            epoch: Epoch(1),
            session: self.session,
            number: if numbered { self.number } else { 0 },
            answered_below: 0,
            repeat,
            after: 0,
            cred: Cred::default(),
            durable: true,
            fop,
        };
        let begun = mono_now();
        loop {
            let request = Request::Fop(call.clone());
            let frame = Frame::new(&request, Bytes::from_static(body)).unwrap();
            let answered = self.transport.call(NODE, &[self.addr], frame).await;
            if let Ok(frame) = answered {
                let answer: Answer = frame.message().unwrap();
                match answer.result {
                    Err(Fault::NotServing) => {}
                    // A set that opens again may choose another one.
                    Err(Fault::NotPrimary(_)) => {
                        self.brick = primary(self.transport, self.addr).await;
                        call.brick = self.brick;
                    }
                    _ => return (answer, frame.body),
                }
            }
            assert!(
                mono_now().since(begun) < Duration::from_secs(5),
                "no answer"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

const NODE: NodeId = NodeId(0);

/// The volume's session and the primary of its one set.
async fn join(transport: &QuicTransport, addr: SocketAddr) -> (SessionId, BrickId) {
    let volume = || "v".to_owned();
    let session = match ask(
        transport,
        addr,
        AdminRequest::OpenSession { volume: volume() },
    )
    .await
    {
        AdminReply::Session(session) => session,
        other => panic!("{other:?}"),
    };
    (session, primary(transport, addr).await)
}

async fn primary(transport: &QuicTransport, addr: SocketAddr) -> BrickId {
    let mut newer_than = 0;
    loop {
        let layout = AdminRequest::Layout {
            volume: "v".to_owned(),
            newer_than,
        };
        let AdminReply::Layout { views, version, .. } = ask(transport, addr, layout).await else {
            panic!("no layout")
        };
        if let Some(Some(view)) = views.first()
            && view.effective
        {
            return view.primary;
        }
        newer_than = version;
    }
}

#[test]
fn a_file_outlives_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let daemon = start(&data, file_stores);
    let transport = client(&data, &runtime);
    let name = Bytes::from_static(b"hello");
    let id = InodeId((u64::from(slot(InodeId::ROOT, &name)) << 48) | 77);
    let gfid = Gfid { id, generation: 5 };
    let create = Fop::Commit {
        parts: vec![
            Part::InodeNew {
                gfid,
                kind: FileKind::File,
                perm: 0o644,
                umask: 0o22,
                uid: 0,
                gid: 0,
                rdev: 0,
                target: Bytes::new(),
                parent: InodeId::ROOT,
                name: name.clone(),
                hint: None,
            },
            Part::DirentAdd {
                parent: InodeId::ROOT,
                name: name.clone(),
                gfid,
                kind: FileKind::File,
                replaces: None,
            },
        ],
        time: wall_now(),
    };
    let write = Fop::Change(Change {
        id,
        inode: true,
        cut: Cut::default(),
        time: wall_now(),
        ops: vec![InodeOp::Write {
            shard: 0,
            offset: 0,
            len: 5,
        }],
    });
    let read = Fop::Read {
        id,
        shard: 0,
        offset: 0,
        len: 100,
        cut: Cut::default(),
    };
    let lookup = Fop::Lookup {
        parent: InodeId::ROOT,
        name,
    };
    let (session, number) = runtime.block_on(async {
        let addr = daemon.addr;
        assert_eq!(
            ask(&transport, addr, created("v", dir.path())).await,
            AdminReply::Done
        );
        let start_volume = AdminRequest::Start {
            volume: "v".to_owned(),
            force: false,
        };
        assert_eq!(ask(&transport, addr, start_volume).await, AdminReply::Done);
        let (session, brick) = join(&transport, addr).await;
        let mut plain = Plain {
            transport: &transport,
            addr,
            brick,
            session,
            number: 0,
        };
        let (answer, _) = plain.call(Fop::SessionBegin, b"", false).await;
        assert_eq!(answer.result, Ok(Reply::Done));
        let (first, _) = plain.call(create.clone(), b"", false).await;
        assert!(
            matches!(&first.result, Ok(Reply::Parts(attrs)) if attrs.len() == 2),
            "{first:?}"
        );
        // Exactly once: the same number gets the same answer.
        let (again, _) = plain.call(create.clone(), b"", true).await;
        assert_eq!(again.result, first.result);
        let (answer, _) = plain.call(write, b"world", false).await;
        assert!(
            matches!(answer.result, Ok(Reply::Changed { .. })),
            "{answer:?}"
        );
        let (answer, body) = plain.call(read.clone(), b"", false).await;
        assert!(answer.result.is_ok(), "{answer:?}");
        assert_eq!(&body[..], b"world");
        (session, plain.number)
    });
    daemon.stop();
    let daemon = start(&data, file_stores);
    runtime.block_on(async {
        let addr = daemon.addr;
        let mut plain = Plain {
            transport: &transport,
            addr,
            brick: primary(&transport, addr).await,
            session,
            number,
        };
        let (answer, _) = plain.call(lookup, b"", false).await;
        assert!(
            matches!(&answer.result, Ok(Reply::Found { gfid: found, .. }) if *found == gfid),
            "{answer:?}"
        );
        let (_, body) = plain.call(read, b"", false).await;
        assert_eq!(&body[..], b"world");
    });
    daemon.stop();
}
