//! Management requests against a host that only pretends to have bricks.

use super::*;
use mortar_protocol::ids::{Epoch, NodeId, Opening, RunId, SessionId};
use mortar_protocol::view::{Member, View};
use parking_lot::Mutex;
use std::collections::BTreeSet;

#[derive(Default)]
struct Pretend {
    control: Mutex<Option<Arc<Control>>>,
    formatted: Mutex<BTreeSet<String>>,
    open: Mutex<BTreeSet<BrickId>>,
    broken: Mutex<BTreeSet<String>>,
    deleted: Mutex<BTreeSet<String>>,
}

impl BrickHost for Pretend {
    fn format(&self, brick: FormatBrick) -> BoxFuture<'static, Result<(), String>> {
        let path = brick.brick.path;
        let result = if self.broken.lock().contains(&path) {
            Err(format!("{path} already holds data"))
        } else {
            self.formatted.lock().insert(path);
            Ok(())
        };
        Box::pin(async { result })
    }

    fn unformat(&self, brick: BrickInfo) -> BoxFuture<'static, ()> {
        self.formatted.lock().remove(&brick.path);
        Box::pin(async {})
    }

    fn open(&self, volume: VolumeInfo) -> BoxFuture<'static, Result<(), String>> {
        let control = self.control.lock().clone().unwrap();
        let bricks: Vec<&BrickInfo> = volume.sets.iter().flatten().collect();
        if let Some(brick) = bricks.iter().find(|b| self.broken.lock().contains(&b.path)) {
            let error = format!("{} cannot be opened", brick.path);
            return Box::pin(async { Err(error) });
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
            Ok(())
        })
    }

    fn mark_deleted(&self, volume: VolumeInfo) -> BoxFuture<'static, ()> {
        let paths = volume.sets.iter().flatten().map(|brick| brick.path.clone());
        self.deleted.lock().extend(paths);
        Box::pin(async {})
    }

    fn close(&self, volume: VolumeInfo) -> BoxFuture<'static, ()> {
        for brick in volume.sets.iter().flatten() {
            self.open.lock().remove(&brick.id);
        }
        Box::pin(async {})
    }

    fn health(&self, brick: BrickId) -> BrickHealth {
        BrickHealth {
            online: self.open.lock().contains(&brick),
            run: Some(RunId(1)),
            ..BrickHealth::default()
        }
    }
}

struct World {
    dir: tempfile::TempDir,
    host: Arc<Pretend>,
    admin: Arc<Admin>,
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
        let admin = Self::admin(&dir, &host).await;
        Self { dir, host, admin }
    }

    async fn admin(dir: &tempfile::TempDir, host: &Arc<Pretend>) -> Arc<Admin> {
        let control = Arc::new(Control::open(dir.path()).unwrap());
        *host.control.lock() = Some(Arc::clone(&control));
        let node = NodeInfo {
            id: NodeId(1),
            addrs: vec![SocketAddr::from(([127, 0, 0, 1], 24007))],
            pid: 7,
            version: "1".to_owned(),
        };
        let admin = Admin::new(control, Arc::clone(host) as _, node, 1000);
        admin.recover().await.unwrap();
        Arc::new(admin)
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
    let root = world
        .refusal(create("v", &["/q1", "/q2", "/q3"], false))
        .await;
    assert!(
        root.starts_with("The brick 127.0.0.1:/q1 is being created in the root partition."),
        "{root}"
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
    };
    world.admin.control.propose(begin).await.unwrap();
    world.host.formatted.lock().insert("/proc/a".to_owned());
    let World { dir, host, admin } = world;
    *host.control.lock() = None;
    drop(admin);
    let admin = World::admin(&dir, &host).await;
    assert!(admin.control.state().creating.is_empty());
    assert!(host.formatted.lock().is_empty());
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
    assert_eq!(world.refusal(start("v")).await, "/proc/b cannot be opened");
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
    assert_eq!(normal("/a//b/./c/"), Some("/a/b/c".to_owned()));
    assert_eq!(normal("/"), None);
    assert_eq!(normal("a"), None);
    assert_eq!(normal("/a/.."), None);
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
