//! Management requests against a host that only pretends to have bricks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::admin::BrickSpec;
use mortar_protocol::env_real::{RealEnv, mono_now};
use mortar_protocol::ids::{BrickId, Epoch, Opening, RunId, SessionId, SetIndex};
use mortar_protocol::node::{BrickHealth, BrickTask, RaftKind};
use mortar_protocol::report::ToBrick;
use mortar_protocol::view::{BrickInfo, Member, SetKind, View};
use mortar_protocol::watch::Sum;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::control::caretaker::Caretaker;
use crate::control::consensus::{Direct, Wire};
use crate::control::machine::{Chore, Command, Outcome};
use crate::control::nodes::{BrickHost, Found, Gate};
use crate::control::operations::Operations;
use crate::control::serve::{Formatting, Served};
use crate::control::sessions::Sessions;
use crate::control::store::{Forward, Parts};

#[derive(Default)]
struct Pretend {
    control: Mutex<Option<Arc<Control>>>,
    formatted: Mutex<BTreeSet<String>>,
    open: Mutex<BTreeSet<BrickId>>,
    failed: Mutex<BTreeSet<BrickId>>,
    broken: Mutex<BTreeSet<String>>,
    deleted: Mutex<BTreeSet<String>>,
}

impl BrickHost for Pretend {
    fn check(&self, _: BrickTask) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn format(&self, brick: BrickTask) -> BoxFuture<'static, Result<(), String>> {
        let path = brick.brick.path;
        let result = if self.broken.lock().contains(&path) {
            Err(format!("{path} already holds data"))
        } else {
            self.formatted.lock().insert(path);
            Ok(())
        };
        Box::pin(async { result })
    }

    fn clear(&self, brick: BrickInfo, chore: Chore) -> BoxFuture<'static, ()> {
        match chore {
            Chore::Unformat => drop(self.formatted.lock().remove(&brick.path)),
            Chore::MarkDeleted => drop(self.deleted.lock().insert(brick.path)),
        }
        Box::pin(async {})
    }

    fn is_open(&self) -> Vec<BrickId> {
        self.open.lock().iter().copied().collect()
    }

    fn stats(&self, _: &[BrickId]) -> Vec<Sum> {
        Vec::new()
    }

    fn order(&self, _: BrickId, _: ToBrick) {}

    fn open(&self, volume: VolumeInfo) -> BoxFuture<'static, ()> {
        let control = self.control.lock().clone().unwrap();
        let bricks: Vec<&BrickInfo> = volume.sets.iter().flatten().collect();
        self.failed.lock().clear();
        if let Some(brick) = bricks.iter().find(|b| self.broken.lock().contains(&b.path)) {
            self.failed.lock().insert(brick.id);
            return Box::pin(async {});
        }
        self.open.lock().extend(bricks.iter().map(|brick| brick.id));
        let views = volume
            .sets
            .iter()
            .enumerate()
            .map(|(index, set)| View {
                set: volume.set_id(SetIndex(index as u32)),
                epoch: Epoch(1),
                primary: set[0].id,
                members: set
                    .iter()
                    .map(|brick| Member {
                        brick: brick.id,
                        node: brick.node,
                        run: RunId(1),
                        keeps_data: true,
                    })
                    .collect(),
                absent: Vec::new(),
                opening: Opening(0),
                effective: true,
            })
            .collect();
        Box::pin(async move {
            control.propose(Command::Views(views)).await.unwrap();
        })
    }

    fn close(&self, bricks: Vec<BrickId>) -> BoxFuture<'static, ()> {
        self.open.lock().retain(|brick| !bricks.contains(brick));
        Box::pin(async {})
    }

    fn health(&self, brick: BrickId) -> BrickHealth {
        let online = self.open.lock().contains(&brick);
        BrickHealth {
            online,
            run: online.then_some(RunId(1)),
            reason: match self.failed.lock().contains(&brick) {
                true => "it cannot be opened".to_owned(),
                false => String::new(),
            },
            ..BrickHealth::default()
        }
    }
}

const NODE: NodeId = NodeId(1);

/// The ways of a node that has no others.
#[derive(Default)]
struct Alone(Mutex<Option<Arc<Served>>>);

impl Nodes for Alone {
    fn ask(
        &self,
        node: NodeId,
        request: NodeRequest,
        _: Duration,
    ) -> BoxFuture<'static, Result<NodeReply, Lost>> {
        assert_eq!(node, NODE);
        let served = self.0.lock().clone().unwrap();
        Box::pin(async move { Ok(served.serve(NODE, request, Bytes::new()).await.0) })
    }

    fn resolve(&self, host: &str) -> BoxFuture<'static, Vec<IpAddr>> {
        let addr = host.parse().ok();
        Box::pin(async move { addr.into_iter().collect() })
    }

    fn is_own(&self, addr: IpAddr) -> bool {
        addr.is_loopback()
    }
}

impl Wire for Alone {
    fn raft(
        &self,
        _: NodeId,
        _: RaftKind,
        _: Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Lost>> {
        Box::pin(async { Err(Lost::NotSent) })
    }
}

impl Forward for Alone {
    fn propose(
        &self,
        _: NodeId,
        _: &Command,
    ) -> BoxFuture<'static, Result<Result<Outcome, Option<NodeId>>, Lost>> {
        Box::pin(async { Err(Lost::NotSent) })
    }

    fn is_there(&self, _: NodeId) -> BoxFuture<'static, bool> {
        Box::pin(async { false })
    }
}

impl Gate for Alone {
    fn probe(&self, addr: SocketAddr) -> BoxFuture<'static, Result<Found, String>> {
        Box::pin(async move { Err(format!("nobody is at {addr}")) })
    }

    fn adopt(
        &self,
        _: SocketAddr,
        _: NodeId,
        _: Vec<(NodeId, Vec<SocketAddr>)>,
    ) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

struct World {
    dir: tempfile::TempDir,
    host: Arc<Pretend>,
    admin: Arc<Admin>,
    caretaker: tokio::task::JoinHandle<()>,
    opening: tokio::task::JoinHandle<()>,
}

fn peer(uid: u32) -> Peer {
    Peer {
        identity: Identity::Client { uid },
        addr: SocketAddr::from(([127, 0, 0, 1], 9)),
        connection: 1,
    }
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(Pretend::default());
        Self::over(dir, host).await
    }

    async fn over(dir: tempfile::TempDir, host: Arc<Pretend>) -> Self {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new(tokio::runtime::Handle::current()));
        let alone = Arc::new(Alone::default());
        let parts = Parts {
            own: NODE,
            env: Arc::clone(&env),
            disk: Arc::new(Direct),
            wire: Arc::clone(&alone) as _,
            forward: Arc::clone(&alone) as _,
            joins: false,
        };
        let control = Arc::new(Control::open(dir.path(), parts).await.unwrap());
        *host.control.lock() = Some(Arc::clone(&control));
        let addrs = vec![SocketAddr::from(([127, 0, 0, 1], 24007))];
        let node = NodeInfo {
            id: NODE,
            addrs: addrs.clone(),
            pid: 7,
            version: "1".to_owned(),
        };
        let operations = Arc::new(Operations::new(
            Arc::clone(&control),
            Arc::clone(&alone) as _,
            Arc::clone(&alone) as _,
            Arc::clone(&env),
            NODE,
        ));
        let served = Served {
            control: Arc::clone(&control),
            host: Arc::clone(&host) as _,
            formatting: Formatting::default(),
            operations: Arc::clone(&operations),
            reports: mpsc::unbounded_channel().0,
            env: Arc::clone(&env),
            cluster: ClusterId(1),
            version: ("1".to_owned(), 7),
            started: mono_now(),
            left: watch::channel(false).0,
        };
        *alone.0.lock() = Some(Arc::new(served));
        let caretaker = Caretaker::new(
            Arc::clone(&control),
            (Arc::clone(&host) as _, Formatting::default()),
            Arc::clone(&env),
            NODE,
            ("h".to_owned(), addrs),
        );
        let caretaker = tokio::spawn(caretaker.run());
        let sessions = Sessions::new(Arc::clone(&control), Arc::clone(&env), NODE);
        let opening = tokio::spawn(Arc::clone(&sessions).run());
        operations.recover().await.unwrap();
        while control.state().nodes.is_empty() || !control.state().left_over.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let admin = Admin::new(control, alone, sessions, env, (ClusterId(1), node), 1000);
        Self {
            dir,
            host,
            admin: Arc::new(admin),
            caretaker,
            opening,
        }
    }

    async fn ask(&self, request: AdminRequest) -> AdminReply {
        self.admin.handle(&peer(0), request).await
    }

    async fn refusal(&self, request: AdminRequest) -> String {
        match self.ask(request).await {
            AdminReply::Refused { message } => message,
            other => panic!("{other:?}"),
        }
    }
}

fn create(name: &str, paths: &[&str], force: bool) -> AdminRequest {
    AdminRequest::Create(CreateVolume {
        name: name.to_owned(),
        kind: SetKind::Replicate { copies: 3 },
        bricks: paths
            .iter()
            .map(|path| BrickSpec {
                host: "127.0.0.1".to_owned(),
                path: (*path).to_owned(),
            })
            .collect(),
        brick_size: None,
        force,
    })
}

fn start(name: &str) -> AdminRequest {
    AdminRequest::Start {
        volume: name.to_owned(),
        force: false,
    }
}

#[tokio::test]
async fn a_volume_is_created_started_and_shown() {
    let world = World::new().await;
    let paths = ["/proc/a", "/proc/b", "/proc/c"];
    let crowded = world.refusal(create("v", &paths, false)).await;
    assert!(
        crowded.starts_with("Multiple bricks of a replicate volume"),
        "{crowded}"
    );
    assert_eq!(world.ask(create("v", &paths, true)).await, AdminReply::Done);
    assert_eq!(world.host.formatted.lock().len(), 3);
    assert_eq!(
        world
            .refusal(AdminRequest::Status {
                volume: "v".to_owned()
            })
            .await,
        "Volume v is not started"
    );
    assert_eq!(world.ask(start("v")).await, AdminReply::Done);
    let session = AdminRequest::OpenSession {
        volume: "v".to_owned(),
    };
    assert_eq!(world.ask(session).await, AdminReply::Session(SessionId(1)));
    let AdminReply::Status {
        bricks, clients, ..
    } = world
        .ask(AdminRequest::Status {
            volume: "v".to_owned(),
        })
        .await
    else {
        panic!("no status")
    };
    assert_eq!(clients, 1);
    assert!(
        bricks
            .iter()
            .all(|brick| brick.in_sync && brick.port == 24007 && brick.pid == 7)
    );
    let stop = AdminRequest::Stop {
        volume: "v".to_owned(),
        force: false,
    };
    let AdminReply::Notes(notes) = world.ask(stop).await else {
        panic!("nobody is told of the client")
    };
    assert!(notes[0].starts_with("1 client has v mounted"), "{notes:?}");
    assert!(world.host.open.lock().is_empty());
}

#[tokio::test]
async fn messages_are_those_of_glusterfs() {
    let world = World::new().await;
    let other = AdminRequest::Create(CreateVolume {
        name: "v".to_owned(),
        kind: SetKind::Plain,
        bricks: vec![BrickSpec {
            host: "203.0.113.9".to_owned(),
            path: "/b/z".to_owned(),
        }],
        brick_size: None,
        force: true,
    });
    assert_eq!(
        world.refusal(other).await,
        "Host 203.0.113.9 is not in 'Peer in Cluster' state"
    );
    assert!(
        world
            .refusal(create("v", &["q", "/a", "/b"], true))
            .await
            .contains("starts with /")
    );
    assert!(
        world
            .refusal(create("v", &["/a/../b", "/a", "/b"], true))
            .await
            .contains("..")
    );
    assert_eq!(
        world.refusal(start("nope")).await,
        "Volume nope does not exist"
    );
    let info = AdminRequest::Info {
        volume: Some("nope".to_owned()),
    };
    assert_eq!(world.refusal(info).await, "Volume nope does not exist");
}

#[tokio::test]
async fn a_failed_creation_leaves_nothing() {
    let world = World::new().await;
    world.host.broken.lock().insert("/proc/c".to_owned());
    let paths = ["/proc/a", "/proc//b", "/proc/c"];
    assert_eq!(
        world.refusal(create("v", &paths, true)).await,
        "/proc/c already holds data"
    );
    assert!(world.host.formatted.lock().is_empty());
    world.host.broken.lock().clear();
    assert_eq!(world.ask(create("v", &paths, true)).await, AdminReply::Done);
    assert!(
        world
            .refusal(create("w", &["/proc/x", "/proc/b", "/proc/y"], true))
            .await
            .contains("/proc/b is already part of a volume")
    );
}

#[tokio::test]
async fn an_interrupted_creation_is_removed_at_start() {
    let world = World::new().await;
    let begin = Command::BeginCreate {
        volume: VolumeId(5),
        name: "v".to_owned(),
        kind: SetKind::Plain,
        bricks: vec![BrickInfo {
            id: BrickId(1),
            node: NodeId(1),
            host: "h".to_owned(),
            path: "/proc/a".to_owned(),
        }],
        now_secs: 0,
    };
    world.admin.control.propose(begin).await.unwrap();
    world.host.formatted.lock().insert("/proc/a".to_owned());
    let World {
        dir,
        host,
        admin,
        caretaker,
        opening,
    } = world;
    *host.control.lock() = None;
    for task in [caretaker, opening] {
        task.abort();
        assert!(task.await.is_err());
    }
    admin.control.consensus().unwrap().stop().await;
    drop(admin);
    // Whoever holds the file lets go of it when its tasks have ended.
    let copy = tempfile::tempdir().unwrap();
    let file = crate::control::store::FILE;
    std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
    let world = World::over(copy, host).await;
    assert!(world.admin.control.state().creating.is_empty());
    assert!(world.host.formatted.lock().is_empty());
}

#[tokio::test]
async fn a_start_that_cannot_serve_is_taken_back() {
    let world = World::new().await;
    let paths = ["/proc/a", "/proc/b", "/proc/c"];
    world.ask(create("v", &paths, true)).await;
    let wait = AdminRequest::Set {
        volume: "v".to_owned(),
        options: vec![("cluster.open-wait".to_owned(), "1".to_owned())],
    };
    assert_eq!(world.ask(wait).await, AdminReply::Done);
    world.host.broken.lock().insert("/proc/b".to_owned());
    assert_eq!(world.refusal(start("v")).await, "it cannot be opened");
    world.host.broken.lock().clear();
    assert_eq!(world.ask(start("v")).await, AdminReply::Done);
}

#[tokio::test]
async fn layouts_wait_for_something_newer() {
    let world = World::new().await;
    let paths = ["/proc/a", "/proc/b", "/proc/c"];
    world.ask(create("v", &paths, true)).await;
    let layout = |newer_than| AdminRequest::Layout {
        volume: "v".to_owned(),
        newer_than,
    };
    let AdminReply::Layout { version, nodes, .. } = world.ask(layout(0)).await else {
        panic!("no layout")
    };
    assert_eq!(
        nodes,
        [(NodeId(1), vec![SocketAddr::from(([127, 0, 0, 1], 24007))])]
    );
    let admin = Arc::clone(&world.admin);
    let waiting = tokio::spawn(async move { admin.handle(&peer(1), layout(version)).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    world.ask(start("v")).await;
    let AdminReply::Layout { version: newer, .. } = waiting.await.unwrap() else {
        panic!("no layout")
    };
    assert!(newer > version);
}

#[tokio::test]
async fn strangers_only_look() {
    let world = World::new().await;
    let reply = world.admin.handle(&peer(77), start("v")).await;
    assert!(matches!(reply, AdminReply::Refused { message } if message.contains("only root")));
    let reply = world
        .admin
        .handle(&peer(77), AdminRequest::Info { volume: None })
        .await;
    assert_eq!(reply, AdminReply::Volumes(Vec::new()));
    let reply = world.admin.handle(&peer(1000), start("v")).await;
    assert!(matches!(reply, AdminReply::Refused { message } if message.contains("does not exist")));
}

#[test]
fn paths_are_made_normal() {
    assert_eq!(locate::normal("/a//b/./c/"), Some("/a/b/c".to_owned()));
    assert_eq!(locate::normal("/"), None);
    assert_eq!(locate::normal("a"), None);
    assert_eq!(locate::normal("/a/.."), None);
}

#[tokio::test]
async fn the_bricks_of_a_deleted_volume_are_marked() {
    let world = World::new().await;
    let paths = ["/proc/a", "/proc/b", "/proc/c"];
    world.ask(create("v", &paths, true)).await;
    world.ask(start("v")).await;
    let volume = || "v".to_owned();
    let delete = || AdminRequest::Delete { volume: volume() };
    world.refusal(delete()).await;
    assert!(world.host.deleted.lock().is_empty(), "it is in use");
    let (volume, force) = (volume(), false);
    world.ask(AdminRequest::Stop { volume, force }).await;
    assert_eq!(world.ask(delete()).await, AdminReply::Done);
    assert!(world.host.deleted.lock().iter().eq(paths));
}
