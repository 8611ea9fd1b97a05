//! Leads the sets: takes the bricks' reports in, has views decided, makes them durable and tells the bricks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BrickId, Epoch, NodeId, SessionId, SetId, SetIndex, VolumeId};
use mortar_protocol::options;
use mortar_protocol::report::{BrickEvent, FromBrick, SetShape, ToBrick};
use mortar_protocol::view::{View, VolumeState};

use super::machine::{Command, State, Volume};
use super::store::{Control, ControlError};
use super::views::{Configured, Scene, Seen};

/// Rounds of decisions on one set before others get a turn: each follows from the one before.
const ROUNDS: usize = 8;
/// How often sets are looked at for which nothing is due.
const SETTLED_EVERY: Duration = Duration::from_secs(5);

/// Takes orders to bricks, wherever they are.
pub trait Orders: Send + Sync {
    /// Sends an order to a brick of a node; it may be lost, the brick reports again then.
    fn order(&self, to: (NodeId, BrickId), order: ToBrick);
}

/// Leads all sets of started volumes.
pub struct Leader {
    control: Arc<Control>,
    orders: Arc<dyn Orders>,
    seen: BTreeMap<SetId, Seen>,
    /// Sets for which something is due, or may be by the passing of time alone.
    restless: BTreeSet<SetId>,
    looked: Option<Mono>,
    /// Version of each volume that its bricks were told.
    told: BTreeMap<VolumeId, u64>,
}

impl Leader {
    /// A leader that has heard of nothing yet. All members of views are asked to report.
    pub fn new(control: Arc<Control>, orders: Arc<dyn Orders>) -> Self {
        let mut leader = Self {
            control,
            orders,
            seen: BTreeMap::new(),
            restless: BTreeSet::new(),
            looked: None,
            told: BTreeMap::new(),
        };
        let state = leader.control.state();
        for volume in state.volumes.values() {
            for index in 0..volume.sets.len() {
                let set = volume.info.set_id(SetIndex(index as u32));
                leader.seen.insert(set, Seen::default());
            }
        }
        leader.forget_stopped();
        leader
    }

    /// Takes in reports that arrived together.
    ///
    /// # Errors
    /// If a decision cannot be made durable.
    pub async fn reports(
        &mut self,
        reports: Vec<FromBrick>,
        now: Mono,
    ) -> Result<(), ControlError> {
        let state = self.control.state();
        let mut touched = BTreeSet::new();
        let mut silent: BTreeMap<VolumeId, Vec<SessionId>> = BTreeMap::new();
        for report in reports {
            let Some((volume, views)) = state.set(report.set) else {
                continue;
            };
            let node = volume.node_of(report.set.index, report.brick);
            if volume.info.state != VolumeState::Started {
                // All its bricks end: what was heard of their runs must not count when it is started again.
                self.seen.remove(&report.set);
                continue;
            }
            let Some(node) = node else {
                continue;
            };
            let brick = (node, report.brick);
            match &report.event {
                BrickEvent::Started { .. } => {
                    self.greet(&state, volume, brick, report.set.index);
                }
                BrickEvent::SilentSessions { sessions } => {
                    let list = silent.entry(report.set.volume).or_default();
                    list.extend(sessions.iter().copied());
                }
                BrickEvent::Poisoned { reason } => {
                    tracing::error!(brick = %report.brick, "the brick serves no more: {reason}");
                }
                _ => {}
            }
            // A brick that speaks of an older view has not heard of the newest, nor has one that says again that its
            // view could take effect when it has.
            let waits = matches!(report.event, BrickEvent::Adopted { .. });
            if let (Some(epoch), Some(current)) = (epoch_of(&report.event), &views.current)
                && (epoch < current.epoch || (waits && epoch == current.epoch && current.effective))
            {
                self.orders.order(brick, ToBrick::View(current.clone()));
            }
            self.seen.entry(report.set).or_default().report(&report);
            self.restless.insert(report.set);
            touched.insert(report.set);
        }
        for (volume, sessions) in silent {
            self.end_sessions(volume, sessions).await?;
        }
        self.decide(touched, now).await
    }

    /// To be called every few hundred milliseconds: openings wait for members that do not answer.
    ///
    /// # Errors
    /// If a decision cannot be made durable.
    pub async fn tick(&mut self, now: Mono) -> Result<(), ControlError> {
        if self
            .looked
            .is_none_or(|then| now.since(then) >= SETTLED_EVERY)
        {
            self.looked = Some(now);
            self.forget_stopped();
            self.restless = self.seen.keys().copied().collect();
        }
        let sets = self.restless.clone();
        self.decide(sets.clone(), now).await?;
        self.remind(&sets);
        self.rest();
        Ok(())
    }

    /// Leaves sets alone until something is reported that have a view in effect whose members have all been heard and
    /// that do not wait to be opened.
    fn rest(&mut self) {
        let state = self.control.state();
        self.restless.retain(|set| {
            let (Some((_, views)), Some(seen)) = (state.set(*set), self.seen.get(set)) else {
                return false;
            };
            let settled = views.current.as_ref().is_some_and(|view| {
                let mut members = view.members.iter();
                view.effective && members.all(|member| seen.has_heard(member.brick))
            });
            !settled || seen.waits()
        });
    }

    /// Orders may be lost: members that have not been heard of are asked, and a view that does not take effect is sent
    /// again.
    fn remind(&self, sets: &BTreeSet<SetId>) {
        let state = self.control.state();
        for set in sets {
            let views = state.set(*set).map(|(_, views)| views);
            let (Some(view), Some(seen)) = (
                views.and_then(|views| views.current.as_ref()),
                self.seen.get(set),
            ) else {
                continue;
            };
            for member in &view.members {
                let brick = (member.node, member.brick);
                if !seen.has_heard(member.brick) {
                    self.orders.order(brick, ToBrick::Report);
                }
                if !view.effective {
                    self.orders.order(brick, ToBrick::View(view.clone()));
                }
            }
        }
    }

    fn forget_stopped(&mut self) {
        let state = self.control.state();
        self.seen.retain(|set, _| {
            let volume = state.volumes.get(&set.volume);
            volume.is_some_and(|volume| volume.info.state == VolumeState::Started)
        });
    }

    /// To be called after the control plane's state has changed: bricks learn of changed options.
    pub fn changed(&mut self) {
        self.forget_stopped();
        let state = self.control.state();
        self.told.retain(|id, _| state.volumes.contains_key(id));
        for (id, volume) in &state.volumes {
            let version = volume.info.version;
            if self.told.insert(*id, version) == Some(version)
                || volume.info.state != VolumeState::Started
            {
                continue;
            }
            for (index, set) in volume.info.sets.iter().enumerate() {
                let shape = shape(volume, SetIndex(index as u32));
                for brick in set {
                    self.orders
                        .order((brick.node, brick.id), ToBrick::Shape(shape.clone()));
                }
            }
        }
    }

    /// What a brick must know before it can be a member.
    fn greet(&self, state: &State, volume: &Volume, brick: (NodeId, BrickId), index: SetIndex) {
        self.orders
            .order(brick, ToBrick::Shape(shape(volume, index)));
        self.orders.order(brick, sessions(state, volume));
        if let Some(view) = &volume.sets[index.0 as usize].current {
            self.orders.order(brick, ToBrick::View(view.clone()));
        }
    }

    async fn end_sessions(
        &self,
        volume: VolumeId,
        mut ended: Vec<SessionId>,
    ) -> Result<(), ControlError> {
        if let Some(known) = self.control.state().volumes.get(&volume) {
            ended.retain(|session| known.sessions.contains_key(session));
        }
        ended.sort_unstable();
        ended.dedup();
        if !ended.is_empty() {
            tracing::info!(?ended, "ends sessions that gave no sign of life");
            let command = Command::EndSessions {
                volume,
                sessions: ended,
            };
            self.control.propose(command).await?;
        }
        // Also when they had ended already: a set that asks has not heard.
        let state = self.control.state();
        if let Some(volume) = state.volumes.get(&volume) {
            for brick in volume.info.sets.iter().flatten() {
                self.orders
                    .order((brick.node, brick.id), sessions(&state, volume));
            }
        }
        Ok(())
    }

    async fn decide(&mut self, mut sets: BTreeSet<SetId>, now: Mono) -> Result<(), ControlError> {
        for _ in 0..ROUNDS {
            let state = self.control.state();
            let mut views = Vec::new();
            sets.retain(|set| match self.decision(&state, *set, now) {
                Some(view) => {
                    views.push(view);
                    true
                }
                None => false,
            });
            if views.is_empty() {
                return Ok(());
            }
            // All that arose together travel in one command.
            self.control.propose(Command::Views(views.clone())).await?;
            // One that was decided on an older state does not count.
            let state = self.control.state();
            for view in views {
                let current = state.set(view.set).map(|(_, views)| &views.current);
                if current.is_some_and(|current| current.as_ref() == Some(&view)) {
                    self.publish(&state, &view);
                }
            }
        }
        Ok(())
    }

    fn decision(&mut self, state: &State, set: SetId, now: Mono) -> Option<View> {
        let (volume, views) = state.set(set)?;
        if volume.info.state != VolumeState::Started {
            return None;
        }
        let bricks: Vec<Configured> = volume.info.sets[set.index.0 as usize]
            .iter()
            .map(|brick| Configured {
                brick: brick.id,
                node: brick.node,
                keeps_data: true,
            })
            .collect();
        let scene = Scene {
            set,
            bricks: &bricks,
            views,
            open_wait: Duration::from_secs(volume.seconds("cluster.open-wait")),
        };
        scene.decide(self.seen.get_mut(&set)?, now)
    }

    fn publish(&self, state: &State, view: &View) {
        tracing::info!(
            set = %view.set, epoch = %view.epoch, members = view.members.len(), absent = view.absent.len(),
            opening = %view.opening, effective = view.effective, "view"
        );
        for brick in view.absent.iter().filter(|_| view.effective) {
            let seen = self.seen.get(&view.set);
            let why = seen.map_or("it does not run", |seen| seen.why_absent(*brick));
            tracing::warn!(set = %view.set, %brick, "not in its set: {why}");
        }
        let Some((volume, _)) = state.set(view.set) else {
            return;
        };
        for brick in &volume.info.sets[view.set.index.0 as usize] {
            self.orders
                .order((brick.node, brick.id), ToBrick::View(view.clone()));
        }
    }
}

fn epoch_of(event: &BrickEvent) -> Option<Epoch> {
    match event {
        BrickEvent::Adopted { epoch }
        | BrickEvent::Joining { epoch, .. }
        | BrickEvent::Propose { epoch, .. }
        | BrickEvent::CannotFollow { epoch, .. } => Some(*epoch),
        _ => None,
    }
}

fn shape(volume: &Volume, index: SetIndex) -> SetShape {
    SetShape {
        index,
        kind: volume.info.kind,
        layout: volume.info.layout.clone(),
        shard_size: volume.info.shard_size,
        durable: volume.option("storage.durability") == "sync",
        session_timeout_ms: millis(volume, "network.session-timeout"),
        open_wait_ms: millis(volume, "cluster.open-wait"),
        read_only: options::switch(volume.option("features.read-only")) == Some(true),
        reserve_percent: volume
            .option("storage.reserve")
            .trim_end_matches('%')
            .parse()
            .unwrap_or_default(),
    }
}

fn millis(volume: &Volume, option: &str) -> u32 {
    let millis = volume.seconds(option).saturating_mul(1000);
    u32::try_from(millis).unwrap_or(u32::MAX)
}

/// Those that are set aside may have been given, without a majority that heard of it.
fn sessions(state: &State, volume: &Volume) -> ToBrick {
    let known = volume.sessions.keys();
    let live = known.chain(state.set_aside.values().flatten());
    ToBrick::Sessions {
        below: state.next_session,
        live: live.copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::entry::Space;
    use mortar_protocol::ids::{BootId, RunId};
    use mortar_protocol::peer::History;
    use mortar_protocol::view::{BrickInfo, SetKind};
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Told(Mutex<Vec<(BrickId, ToBrick)>>);

    impl Orders for Told {
        fn order(&self, (_, brick): (NodeId, BrickId), order: ToBrick) {
            self.0.lock().push((brick, order));
        }
    }

    impl Told {
        fn views(&self, brick: u128) -> Vec<View> {
            let told = self.0.lock();
            let own = told.iter().filter(|(id, _)| *id == BrickId(brick));
            own.filter_map(|(_, order)| match order {
                ToBrick::View(view) => Some(view.clone()),
                _ => None,
            })
            .collect()
        }
    }

    const NODE: NodeId = NodeId(1);

    /// A leader of a started volume, and what it tells its bricks.
    async fn led() -> (Arc<Control>, Arc<Told>, Leader) {
        let control = started().await;
        let told = Arc::new(Told::default());
        let leader = Leader::new(Arc::clone(&control), Arc::clone(&told) as _);
        (control, told, leader)
    }

    /// All bricks start, and the view takes effect; gives the report that said so.
    async fn make_whole(leader: &mut Leader, told: &Told) -> FromBrick {
        let starts = (1..=3).map(|id| report(id, start_event())).collect();
        leader.reports(starts, Mono(1)).await.unwrap();
        let view = told.views(1).pop().unwrap();
        let adopted = report(view.primary.0, BrickEvent::Adopted { epoch: view.epoch });
        let reports = vec![adopted.clone()];
        leader.reports(reports, Mono(2)).await.unwrap();
        adopted
    }

    async fn started() -> Arc<Control> {
        let control = Arc::new(Control::in_memory());
        let bricks = (1..=3)
            .map(|id| BrickInfo {
                id: BrickId(id),
                node: NODE,
                host: "h".to_owned(),
                path: format!("/{id}"),
            })
            .collect();
        for command in [
            Command::Node {
                node: NODE,
                host: "h".to_owned(),
                addrs: Vec::new(),
            },
            Command::BeginCreate {
                volume: VolumeId(1),
                name: "v".to_owned(),
                kind: SetKind::Replicate { copies: 3 },
                bricks,
                now_secs: 0,
            },
            Command::FinishCreate {
                volume: VolumeId(1),
            },
            Command::Start {
                volume: "v".to_owned(),
                force: false,
            },
        ] {
            control.propose(command).await.unwrap();
        }
        control
    }

    fn report(brick: u128, event: BrickEvent) -> FromBrick {
        FromBrick {
            set: SetId {
                volume: VolumeId(1),
                index: SetIndex(0),
            },
            brick: BrickId(brick),
            run: RunId(10 + brick),
            event,
        }
    }

    fn start_event() -> BrickEvent {
        BrickEvent::Started {
            node: NODE,
            boot: BootId(1),
            history: History::default(),
            member: None,
            view: None,
            damaged: false,
            space: Space::default(),
        }
    }

    #[tokio::test]
    async fn a_set_opens_and_takes_effect() {
        let (control, told, mut leader) = led().await;
        let starts = (1..=3).map(|id| report(id, start_event())).collect();
        leader.reports(starts, Mono(1)).await.unwrap();
        let view = told.views(1).pop().unwrap();
        assert_eq!((view.members.len(), view.effective), (3, false));
        // Shape and sessions come before the first view.
        let first: Vec<bool> = {
            let told = told.0.lock();
            told.iter()
                .filter(|(id, _)| *id == BrickId(2))
                .map(|(_, order)| matches!(order, ToBrick::View(_)))
                .collect()
        };
        assert_eq!(first, [false, false, true]);
        let adopted = report(view.primary.0, BrickEvent::Adopted { epoch: view.epoch });
        leader.reports(vec![adopted], Mono(2)).await.unwrap();
        assert!(told.views(3).pop().unwrap().effective);
        let state = control.state();
        let (_, views) = state.set(view.set).unwrap();
        assert!(views.effective.is_some());
    }

    #[tokio::test]
    async fn a_primary_that_did_not_hear_that_its_view_took_effect_is_told_again() {
        let (_, told, mut leader) = led().await;
        let adopted = make_whole(&mut leader, &told).await;
        let primary = adopted.brick.0;
        told.0.lock().clear();
        leader.reports(vec![adopted], Mono(3)).await.unwrap();
        let again = told.views(primary);
        assert!(again.last().is_some_and(|view| view.effective), "{again:?}");
    }

    #[tokio::test]
    async fn what_members_may_have_missed_is_sent_again() {
        let (control, told, mut leader) = led().await;
        let starts = (1..=3).map(|id| report(id, start_event())).collect();
        leader.reports(starts, Mono(1)).await.unwrap();
        told.0.lock().clear();
        leader.tick(Mono(2)).await.unwrap();
        assert_eq!((1..=3).map(|id| told.views(id).len()).sum::<usize>(), 3);
        // A leader that has just begun to lead asks the members it does not know.
        let mut other = Leader::new(control, Arc::clone(&told) as _);
        other
            .reports(vec![report(1, start_event())], Mono(3))
            .await
            .unwrap();
        told.0.lock().clear();
        other.tick(Mono(4)).await.unwrap();
        let asked: Vec<BrickId> = told
            .0
            .lock()
            .iter()
            .filter(|(_, order)| *order == ToBrick::Report)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(asked, [BrickId(2), BrickId(3)]);
    }

    #[tokio::test]
    async fn a_settled_set_is_left_alone_until_something_is_reported() {
        let (_, told, mut leader) = led().await;
        leader.tick(Mono(0)).await.unwrap();
        make_whole(&mut leader, &told).await;
        leader.tick(Mono(3)).await.unwrap();
        assert!(leader.restless.is_empty());
        let reports = vec![report(2, BrickEvent::Stopped)];
        leader.reports(reports, Mono(4)).await.unwrap();
        assert_eq!(leader.restless.len(), 1);
        // A view without it is on its way: that is sent again until it takes effect.
        leader.tick(Mono(5)).await.unwrap();
        assert_eq!(leader.restless.len(), 1);
    }

    #[tokio::test]
    async fn silent_sessions_end_everywhere_and_strangers_are_ignored() {
        let (control, told, mut leader) = led().await;
        let aside = Command::SetAside {
            node: NODE,
            count: 3,
        };
        control.propose(aside).await.unwrap();
        for session in [1, 2] {
            let open = Command::OpenSession {
                node: NODE,
                session: SessionId(session),
                volume: VolumeId(1),
                uid: 0,
            };
            control.propose(open).await.unwrap();
        }
        let silent = BrickEvent::SilentSessions {
            sessions: vec![SessionId(1), SessionId(9)],
        };
        let reports = vec![report(7, silent.clone()), report(1, silent)];
        leader.reports(reports, Mono(1)).await.unwrap();
        let expected = ToBrick::Sessions {
            below: SessionId(4),
            live: vec![SessionId(2), SessionId(3)],
        };
        let orders = told.0.lock();
        assert_eq!(orders.len(), 3);
        assert!(orders.iter().all(|(_, order)| *order == expected));
    }

    #[tokio::test]
    async fn changed_options_reach_the_bricks_once() {
        let (control, told, mut leader) = led().await;
        leader.changed();
        told.0.lock().clear();
        let set = Command::Set {
            volume: "v".to_owned(),
            options: vec![("storage.durability".to_owned(), "sync".to_owned())],
        };
        control.propose(set).await.unwrap();
        leader.changed();
        leader.changed();
        let orders = told.0.lock();
        assert_eq!(orders.len(), 3);
        assert!(
            orders
                .iter()
                .all(|(_, order)| matches!(order, ToBrick::Shape(shape) if shape.durable))
        );
    }

    #[tokio::test]
    async fn runs_of_before_a_stop_do_not_count_after_a_start() {
        for told_of_the_stop in [false, true] {
            let (control, told, mut leader) = led().await;
            make_whole(&mut leader, &told).await;
            let (volume, force) = ("v".to_owned(), false);
            let stop = Command::Stop {
                volume: volume.clone(),
            };
            control.propose(stop).await.unwrap();
            match told_of_the_stop {
                true => leader.changed(),
                false => {
                    let stops = (1..=3).map(|id| report(id, BrickEvent::Stopped)).collect();
                    leader.reports(stops, Mono(3)).await.unwrap();
                }
            }
            let start = Command::Start { volume, force };
            control.propose(start).await.unwrap();
            // The third does not come back.
            for id in 1..=2 {
                let started = FromBrick {
                    run: RunId(20 + id),
                    ..report(id, start_event())
                };
                leader.reports(vec![started], Mono(4)).await.unwrap();
            }
            leader.tick(Mono(5)).await.unwrap();
            leader.tick(Mono(11_000_000_000)).await.unwrap();
            let view = told.views(1).pop().unwrap();
            let runs: Vec<RunId> = view.members.iter().map(|member| member.run).collect();
            assert_eq!(runs, [RunId(21), RunId(22)]);
        }
    }
}
