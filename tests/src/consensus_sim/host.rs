//! Pretended bricks: what is formatted outlives the process, formatting takes time and may fail, and open bricks report
//! to the leader and adopt views as real ones do, without data and without joining again after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mortar_protocol::entry::Space;
use mortar_protocol::env::Env;
use mortar_protocol::ids::{BootId, BrickId, NodeId, RunId, SetId, SetIndex};
use mortar_protocol::node::{BrickHealth, BrickTask};
use mortar_protocol::peer::History;
use mortar_protocol::report::{BrickEvent, FromBrick, MemberRuns, ToBrick};
use mortar_protocol::view::{BrickInfo, View, VolumeInfo};
use mortar_protocol::watch::Sum;
use mortar_server::control::machine::Chore;
use mortar_server::control::nodes::BrickHost;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::sim::exec::Exec;

/// A brick as it lies on the node's disk.
#[derive(Clone, Debug)]
pub struct Formatted {
    /// Its identity.
    pub id: BrickId,
    /// It was marked as that of a deleted volume.
    pub deleted: bool,
    member: Option<MemberRuns>,
    view: Option<View>,
}

/// What lies on a node's disks, by path.
pub type Shelf = Arc<Mutex<BTreeMap<String, Formatted>>>;

struct Open {
    path: String,
    set: SetId,
    run: RunId,
    greeted: bool,
}

/// The bricks of one process.
pub struct Host {
    exec: Arc<Exec>,
    env: Arc<dyn Env>,
    node: NodeId,
    boot: BootId,
    me: String,
    shelf: Shelf,
    open: Mutex<BTreeMap<BrickId, Open>>,
    reports: mpsc::UnboundedSender<FromBrick>,
    habits: Habits,
}

/// How bricks behave.
#[derive(Clone, Copy, Default, Debug)]
pub struct Habits {
    /// In thousandths: how often formatting fails.
    pub failing: u64,
    /// A planted bug: what is to be cleared stays.
    pub clears_nothing: bool,
}

/// The bricks as the control plane sees them.
#[derive(Clone)]
pub struct Bricks(pub Arc<Host>);

impl Host {
    /// For a process on the node, under the machine's boot.
    pub fn new(
        exec: &Arc<Exec>,
        env: &Arc<dyn Env>,
        (node, boot, me): (NodeId, BootId, String),
        shelf: &Shelf,
        reports: mpsc::UnboundedSender<FromBrick>,
        habits: Habits,
    ) -> Arc<Self> {
        Arc::new(Self {
            exec: Arc::clone(exec),
            env: Arc::clone(env),
            node,
            boot,
            me,
            shelf: Arc::clone(shelf),
            open: Mutex::default(),
            reports,
            habits,
        })
    }

    fn pause(&self, most_ms: u64) -> BoxFuture<'static, ()> {
        // Now and then much longer.
        let draw = self.env.random();
        let most = if draw.is_multiple_of(20) {
            most_ms * 20
        } else {
            most_ms
        };
        self.env
            .sleep(Duration::from_micros(200 + draw / 64 % (most * 1_000)))
    }

    async fn format(self: Arc<Self>, task: BrickTask) -> Result<(), String> {
        self.pause(150).await;
        let (id, path) = (task.brick.id, task.brick.path);
        if self.env.random() % 1_000 < self.habits.failing {
            return Err(format!("{path}: no space left on device"));
        }
        let mut shelf = self.shelf.lock();
        if shelf.get(&path).is_some_and(|there| there.id != id) {
            return Err(format!("{path} already holds a brick"));
        }
        self.exec
            .note(&format!("{} formatted {path} {id}", self.me));
        let brick = Formatted {
            id,
            deleted: false,
            member: None,
            view: None,
        };
        shelf.insert(path, brick);
        Ok(())
    }

    fn clear(&self, brick: &BrickInfo, chore: Chore) {
        if self.habits.clears_nothing {
            return;
        }
        let mut shelf = self.shelf.lock();
        let ours = shelf
            .get_mut(&brick.path)
            .filter(|there| there.id == brick.id);
        let found = ours.is_some();
        match (ours, chore) {
            (Some(_), Chore::Unformat) => drop(shelf.remove(&brick.path)),
            (Some(there), Chore::MarkDeleted) => there.deleted = true,
            (None, _) => {}
        }
        let line = format!("{} {chore:?} {} found {found}", self.me, brick.path);
        self.exec.note(&line);
    }

    fn report(&self, brick: BrickId, event: BrickEvent) {
        let open = self.open.lock();
        let Some(own) = open.get(&brick) else {
            return;
        };
        // Nobody listens once the process has ended.
        let _ = self.reports.send(FromBrick {
            set: own.set,
            brick,
            run: own.run,
            event,
        });
    }

    fn started(&self, brick: BrickId) {
        let path = self.open.lock().get(&brick).map(|own| own.path.clone());
        let there = path.and_then(|path| self.shelf.lock().get(&path).cloned());
        if let Some(there) = there {
            let event = BrickEvent::Started {
                node: self.node,
                boot: self.boot,
                history: History::default(),
                member: there.member,
                view: there.view,
                damaged: false,
                space: Space::default(),
            };
            self.report(brick, event);
        }
    }

    fn open_brick(self: &Arc<Self>, volume: &VolumeInfo, set: SetIndex, brick: &BrickInfo) {
        let there = self.shelf.lock().get(&brick.path).cloned();
        let fits = there.is_some_and(|there| there.id == brick.id && !there.deleted);
        {
            let mut open = self.open.lock();
            if !fits || open.contains_key(&brick.id) {
                return;
            }
            let run = u128::from(self.env.random()) << 64 | u128::from(self.env.random());
            let own = Open {
                path: brick.path.clone(),
                set: volume.set_id(set),
                run: RunId(run.max(1)),
                greeted: false,
            };
            open.insert(brick.id, own);
        }
        let (host, id) = (Arc::clone(self), brick.id);
        self.env.spawn(Box::pin(async move {
            loop {
                host.started(id);
                host.env.sleep(Duration::from_millis(700)).await;
                let waits = host.open.lock().get(&id).is_some_and(|own| !own.greeted);
                if !waits {
                    return;
                }
            }
        }));
    }

    fn view(&self, brick: BrickId, view: View) {
        let primary = {
            let mut open = self.open.lock();
            let Some(own) = open.get_mut(&brick) else {
                return;
            };
            own.greeted = true;
            let mine = |member: &&mortar_protocol::view::Member| member.brick == brick;
            let Some(member) = view.members.iter().find(mine) else {
                return;
            };
            if member.run != own.run {
                return;
            }
            if let Some(there) = self.shelf.lock().get_mut(&own.path) {
                let known = there.member.take();
                let same_boot = known.filter(|known| known.boot == self.boot);
                let mut runs = same_boot.map_or_else(Vec::new, |known| known.runs);
                if !runs.contains(&own.run) {
                    runs.push(own.run);
                }
                there.member = Some(MemberRuns {
                    runs: runs.split_off(runs.len().saturating_sub(8)),
                    boot: self.boot,
                    clean: false,
                });
                there.view = Some(view.clone());
            }
            view.primary == brick && !view.effective
        };
        if primary {
            self.report(brick, BrickEvent::Adopted { epoch: view.epoch });
        }
    }
}

/// Runs it to its end even if whoever asked has gone, as a thread does.
fn to_the_end<T, F>(env: &Arc<dyn Env>, job: F) -> BoxFuture<'static, Option<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    env.spawn(Box::pin(async move {
        // Who asked may have gone.
        let _ = tell.send(job.await);
    }));
    Box::pin(async move { told.await.ok() })
}

impl BrickHost for Bricks {
    fn check(&self, _: BrickTask) -> BoxFuture<'static, Result<(), String>> {
        let pause = self.0.pause(2);
        Box::pin(async move {
            pause.await;
            Ok(())
        })
    }

    fn format(&self, brick: BrickTask) -> BoxFuture<'static, Result<(), String>> {
        let done = to_the_end(&self.0.env, Arc::clone(&self.0).format(brick));
        Box::pin(async move { done.await.unwrap_or_else(|| Err("ended".to_owned())) })
    }

    fn clear(&self, brick: BrickInfo, chore: Chore) -> BoxFuture<'static, ()> {
        let host = Arc::clone(&self.0);
        let job = async move {
            host.pause(20).await;
            host.clear(&brick, chore);
        };
        let done = to_the_end(&self.0.env, job);
        Box::pin(async move { done.await.unwrap_or_default() })
    }

    fn open(&self, volume: VolumeInfo) -> BoxFuture<'static, ()> {
        let host = Arc::clone(&self.0);
        Box::pin(async move {
            host.pause(20).await;
            for (index, set) in volume.sets.iter().enumerate() {
                for brick in set.iter().filter(|brick| brick.node == host.node) {
                    host.open_brick(&volume, SetIndex(index as u32), brick);
                }
            }
        })
    }

    fn close(&self, bricks: Vec<BrickId>) -> BoxFuture<'static, ()> {
        let host = Arc::clone(&self.0);
        Box::pin(async move {
            host.pause(20).await;
            for brick in bricks {
                host.report(brick, BrickEvent::Stopped);
                host.open.lock().remove(&brick);
            }
        })
    }

    fn is_open(&self) -> Vec<BrickId> {
        self.0.open.lock().keys().copied().collect()
    }

    fn health(&self, brick: BrickId) -> BrickHealth {
        match self.0.open.lock().get(&brick) {
            Some(own) => BrickHealth {
                online: true,
                run: Some(own.run),
                ..BrickHealth::default()
            },
            None => BrickHealth::default(),
        }
    }

    fn stats(&self, _: &[BrickId]) -> Vec<Sum> {
        Vec::new()
    }

    fn order(&self, brick: BrickId, order: ToBrick) {
        match order {
            ToBrick::View(view) => self.0.view(brick, view),
            ToBrick::Report => self.0.started(brick),
            ToBrick::Stop => drop(self.0.open.lock().remove(&brick)),
            ToBrick::Shape(_) | ToBrick::Sessions { .. } => {}
        }
    }
}
