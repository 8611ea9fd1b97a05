//! The control plane's state and the commands that change it. Deterministic: the same commands in the same order give
//! the same state and the same outcomes on every node, whatever the node, the time or the build.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mortar_protocol::admin::PeerState;
use mortar_protocol::ids::{BrickId, NodeId, SessionId, SetId, SetIndex, VolumeId};
use mortar_protocol::limits::SHARD_SIZE;
use mortar_protocol::options::{self, Effect};
use mortar_protocol::placement::Layout;
use mortar_protocol::view::{BrickInfo, SetKind, View, VolumeInfo, VolumeState};
use serde::{Deserialize, Serialize};

mod sound;

/// Longest name of a volume, in bytes.
pub const MAX_VOLUME_NAME: usize = 255;
/// Most bricks of a volume: what is said of all of them has to fit into messages.
pub const MAX_BRICKS: usize = 1_024;
/// Longest value of an option, in bytes.
pub const MAX_VALUE: usize = 4_096;
/// Most options `user.*` of a volume.
const MAX_NOTES: usize = 64;
/// Most sessions of a volume at a time.
pub const MAX_SESSIONS: usize = 65_536;
/// Most numbers of sessions that are set aside for a node.
pub const MAX_SET_ASIDE: u32 = 1_024;

/// A set's views as the control plane has decided them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct SetViews {
    /// The newest view.
    pub current: Option<View>,
    /// The newest view that took effect: further views are formed from its members (P3).
    pub effective: Option<View>,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Volume {
    /// As clients see it.
    pub info: VolumeInfo,
    /// Views of its sets, in order.
    pub sets: Vec<SetViews>,
    /// Live sessions and the uid each is bound to (0: none).
    pub sessions: BTreeMap<SessionId, u32>,
    /// It has been started at least once: its shard size is fixed.
    pub was_started: bool,
    /// How often it was started: each time, bricks that are not open are tried again.
    pub starts: u64,
    /// Number of the last command that changed the volume or a view.
    pub changed: u64,
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeRecord {
    /// The name or address it was probed by; for the first node its own host name.
    pub host: String,
    /// Other names it was probed by.
    pub other_names: Vec<String>,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// Where it stands on its way into or out of the cluster.
    pub state: PeerState,
    /// Number of the command that brought it: nodes have the order in which they came.
    pub came: u64,
    /// When that was, in seconds since 1970 by the clock of the node that led.
    pub since_secs: i64,
}

/// A volume that is being created: its bricks are being formatted. Whoever leads after a crash takes it back.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Creating {
    /// The volume.
    pub info: VolumeInfo,
    /// When that began, in seconds since 1970 by the clock of the node that led.
    pub since_secs: i64,
}

/// What is to be done with a brick that no volume has any more.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Chore {
    /// Its volume was never finished: what was made for it is removed.
    Unformat,
    /// Its volume was deleted: it is marked so and keeps its contents.
    MarkDeleted,
}

/// A brick that no volume has any more and that its node has yet to deal with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LeftOver {
    /// The brick.
    pub brick: BrickInfo,
    /// Name of the volume it was made for.
    pub volume: String,
    /// What is to be done.
    pub chore: Chore,
    /// Since when, in seconds since 1970 by the clock of the node that led.
    pub since_secs: i64,
}

/// Everything the control plane knows durably.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct State {
    /// Commands applied.
    pub applied: u64,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Arc<Volume>>,
    /// Volumes being created.
    pub creating: BTreeMap<VolumeId, Creating>,
    /// Bricks of volumes that were deleted or never finished.
    pub left_over: BTreeMap<BrickId, LeftOver>,
    /// Numbers below this one were given to sessions, or set aside for them. Sessions of all volumes share them.
    pub next_session: SessionId,
    /// Numbers that a node may give to new sessions of any volume before the control plane knows of the session.
    pub set_aside: BTreeMap<NodeId, BTreeSet<SessionId>>,
}

/// A change of the state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Command {
    /// A node says where it listens. The first node of a cluster comes by this; others are invited before.
    Node {
        /// The node.
        node: NodeId,
        /// Its host name.
        host: String,
        /// Its addresses.
        addrs: Vec<SocketAddr>,
    },
    /// A node is taken in: it is told to join.
    Invite {
        /// The node.
        node: NodeId,
        /// The name or address it was probed by.
        host: String,
        /// Its addresses.
        addrs: Vec<SocketAddr>,
        /// The time.
        now_secs: i64,
    },
    /// A node that belongs to the cluster was probed by another name.
    AlsoNamed {
        /// The node.
        node: NodeId,
        /// The name.
        host: String,
    },
    /// A node is taken out, unless it has bricks.
    Detach {
        /// The node.
        node: NodeId,
    },
    /// A node that was being taken out, or was never heard of, is gone.
    Forget {
        /// The node.
        node: NodeId,
    },
    /// A node has dealt with bricks that no volume has any more.
    Cleared {
        /// The bricks.
        bricks: Vec<BrickId>,
    },
    /// Reserves a name and bricks for a new volume.
    BeginCreate {
        /// Identity, drawn by the proposer.
        volume: VolumeId,
        /// Name.
        name: String,
        /// Kind of its sets.
        kind: SetKind,
        /// Bricks in order, with identities drawn by the proposer.
        bricks: Vec<BrickInfo>,
        /// The time.
        now_secs: i64,
    },
    /// The bricks are formatted: publishes the volume.
    FinishCreate {
        /// The volume.
        volume: VolumeId,
    },
    /// Gives the reservation back; the bricks are left to their nodes.
    AbortCreate {
        /// The volume.
        volume: VolumeId,
    },
    /// Starts a volume.
    Start {
        /// Name.
        volume: String,
        /// Also if it is started.
        force: bool,
    },
    /// Stops a volume; its sessions end.
    Stop {
        /// Name.
        volume: String,
    },
    /// Forgets a stopped volume; the bricks are left to their nodes.
    Delete {
        /// Name.
        volume: String,
        /// The time.
        now_secs: i64,
    },
    /// Sets options, all or none.
    Set {
        /// Name.
        volume: String,
        /// Options and values.
        options: Vec<(String, String)>,
    },
    /// Takes one option or all back to the defaults.
    Reset {
        /// Name.
        volume: String,
        /// The option; none: all.
        option: Option<String>,
    },
    /// Sets numbers of sessions aside for a node, until it has as many as this.
    SetAside {
        /// The node.
        node: NodeId,
        /// How many; at most [`MAX_SET_ASIDE`] count.
        count: u32,
    },
    /// A node has given a number that was set aside for it to a session of a started volume.
    OpenSession {
        /// The node.
        node: NodeId,
        /// The number.
        session: SessionId,
        /// The volume.
        volume: VolumeId,
        /// uid it is bound to (0: none).
        uid: u32,
    },
    /// Ends sessions.
    EndSessions {
        /// The volume.
        volume: VolumeId,
        /// The sessions.
        sessions: Vec<SessionId>,
    },
    /// New views, and views that have taken effect. Each is ignored unless it is newer than what is known.
    Views(Vec<View>),
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done, with lines for the person.
    Notes(Vec<String>),
    /// Not done; what a person is told.
    Refused(String),
}

impl State {
    /// Applies a command.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        self.applied += 1;
        let done = match command {
            Command::Node { node, host, addrs } => self.announce(*node, host, addrs),
            Command::Invite {
                node,
                host,
                addrs,
                now_secs,
            } => self.invite(*node, host, addrs, *now_secs),
            Command::AlsoNamed { node, host } => self.also_named(*node, host),
            Command::Detach { node } => self.detach(*node),
            Command::Forget { node } => self.forget(*node),
            Command::Cleared { bricks } => {
                self.left_over.retain(|id, _| !bricks.contains(id));
                Ok(Outcome::Done)
            }
            Command::BeginCreate {
                volume,
                name,
                kind,
                bricks,
                now_secs,
            } => self.begin_create(*volume, name, *kind, (bricks, *now_secs)),
            Command::FinishCreate { volume } => self.finish_create(*volume),
            Command::AbortCreate { volume } => {
                if let Some(Creating { info, since_secs }) = self.creating.remove(volume) {
                    self.leave_over(&info, Chore::Unformat, since_secs);
                }
                Ok(Outcome::Done)
            }
            Command::Start { volume, force } => self.start(volume, *force),
            Command::Stop { volume } => self.stop(volume),
            Command::Delete { volume, now_secs } => self.delete(volume, *now_secs),
            Command::Set { volume, options } => self.set_options(volume, options),
            Command::Reset { volume, option } => self.reset(volume, option.as_deref()),
            Command::SetAside { node, count } => self.set_aside(*node, *count),
            Command::OpenSession {
                node,
                session,
                volume,
                uid,
            } => self.open_session(*node, *session, *volume, *uid),
            Command::EndSessions { volume, sessions } => {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    let volume = Arc::make_mut(volume);
                    volume.sessions.retain(|id, _| !sessions.contains(id));
                }
                Ok(Outcome::Done)
            }
            Command::Views(views) => {
                views.iter().for_each(|view| self.view(view));
                Ok(Outcome::Done)
            }
        };
        done.unwrap_or_else(Outcome::Refused)
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes
            .values()
            .find(|volume| volume.info.name == name)
    }

    /// What people call a node: the host it is known by, else its id.
    pub fn host_of(&self, node: NodeId) -> String {
        let record = self.nodes.get(&node);
        record.map_or_else(|| node.to_string(), |record| record.host.clone())
    }

    /// The nodes in the order in which they came.
    pub fn nodes_in_order(&self) -> Vec<(NodeId, &NodeRecord)> {
        let mut nodes: Vec<_> = self.nodes.iter().map(|(id, node)| (*id, node)).collect();
        nodes.sort_by_key(|(_, node)| node.came);
        nodes
    }

    /// The set and its volume.
    pub fn set(&self, set: SetId) -> Option<(&Volume, &SetViews)> {
        let volume = self.volumes.get(&set.volume)?;
        Some((volume, volume.sets.get(set.index.0 as usize)?))
    }

    /// The set a brick belongs to.
    pub fn set_of(&self, brick: BrickId) -> Option<SetId> {
        self.volumes.values().find_map(|volume| {
            let index = volume
                .info
                .sets
                .iter()
                .position(|set| set.iter().any(|info| info.id == brick))?;
            Some(volume.info.set_id(SetIndex(index as u32)))
        })
    }

    fn named(&mut self, name: &str) -> Result<&mut Volume, String> {
        self.volumes
            .values_mut()
            .find(|volume| volume.info.name == name)
            .map(Arc::make_mut)
            .ok_or_else(|| format!("Volume {name} does not exist"))
    }

    /// As [`Self::named`], for a change that clients must hear of.
    fn changed(&mut self, name: &str) -> Result<&mut Volume, String> {
        let applied = self.applied;
        let volume = self.named(name)?;
        volume.changed = applied;
        volume.info.version = applied;
        Ok(volume)
    }

    fn begin_create(
        &mut self,
        id: VolumeId,
        name: &str,
        kind: SetKind,
        (bricks, now_secs): (&[BrickInfo], i64),
    ) -> Result<Outcome, String> {
        check_name(name)?;
        if self.taken().any(|info| info.name == name) {
            return Err(format!("Volume {name} already exists"));
        }
        check_count(bricks.len())?;
        let width = check_kind(kind)?;
        if bricks.is_empty() || !bricks.len().is_multiple_of(width) {
            return Err(match kind {
                SetKind::Replicate { .. } => {
                    "number of bricks is not a multiple of replica count".to_owned()
                }
                _ => "number of bricks is not a multiple of disperse count".to_owned(),
            });
        }
        for (at, brick) in bricks.iter().enumerate() {
            let same = |other: &BrickInfo| other.node == brick.node && other.path == brick.path;
            if bricks[..at].iter().any(same) {
                return Err(format!(
                    "Found duplicate exports {}:{}",
                    brick.host, brick.path
                ));
            }
            if self
                .taken()
                .any(|info| info.sets.iter().flatten().any(same))
            {
                return Err(format!("{} is already part of a volume", brick.path));
            }
            let record = self.nodes.get(&brick.node);
            if record.is_none_or(|node| node.state != PeerState::Joined) {
                return Err(format!(
                    "Host {} is not in 'Peer in Cluster' state",
                    brick.host
                ));
            }
        }
        self.check_ids(id, bricks)?;
        let sets: Vec<Vec<BrickInfo>> = bricks.chunks(width).map(<[BrickInfo]>::to_vec).collect();
        let info = VolumeInfo {
            id,
            name: name.to_owned(),
            kind,
            state: VolumeState::Created,
            layout: Layout::even(sets.len() as u32),
            sets,
            options: BTreeMap::new(),
            shard_size: SHARD_SIZE,
            version: self.applied,
        };
        let creating = Creating {
            info,
            since_secs: now_secs,
        };
        self.creating.insert(id, creating);
        Ok(Outcome::Done)
    }

    /// Identities are drawn and never met twice, unless whoever proposes does not draw them.
    fn check_ids(&self, id: VolumeId, bricks: &[BrickInfo]) -> Result<(), String> {
        let mut seen: BTreeSet<BrickId> = self.left_over.keys().copied().collect();
        seen.extend(
            self.taken()
                .flat_map(|info| info.sets.iter().flatten())
                .map(|brick| brick.id),
        );
        let taken = self.taken().any(|info| info.id == id);
        if taken || !bricks.iter().all(|brick| seen.insert(brick.id)) {
            return Err("the identity of the volume or of a brick is in use already".to_owned());
        }
        Ok(())
    }

    fn finish_create(&mut self, id: VolumeId) -> Result<Outcome, String> {
        let Creating { info, .. } = self
            .creating
            .remove(&id)
            .ok_or("the creation of this volume was given up")?;
        let volume = Volume {
            sets: vec![SetViews::default(); info.sets.len()],
            info,
            sessions: BTreeMap::new(),
            was_started: false,
            starts: 0,
            changed: self.applied,
        };
        self.volumes.insert(id, Arc::new(volume));
        Ok(Outcome::Done)
    }

    fn start(&mut self, name: &str, force: bool) -> Result<Outcome, String> {
        let volume = self.named(name)?;
        if volume.info.state == VolumeState::Started && !force {
            return Err(format!("Volume {name} already started"));
        }
        let volume = self.changed(name)?;
        volume.info.state = VolumeState::Started;
        volume.was_started = true;
        volume.starts += 1;
        Ok(Outcome::Done)
    }

    fn stop(&mut self, name: &str) -> Result<Outcome, String> {
        if self.named(name)?.info.state != VolumeState::Started {
            return Err(format!("Volume {name} is not in the started state"));
        }
        let volume = self.changed(name)?;
        volume.info.state = VolumeState::Stopped;
        let clients = std::mem::take(&mut volume.sessions).len();
        Ok(match clients {
            0 => Outcome::Done,
            1 => Outcome::Notes(vec![format!(
                "1 client has {name} mounted: its calls end with ENOTCONN until {name} is started again"
            )]),
            _ => Outcome::Notes(vec![format!(
                "{clients} clients have {name} mounted: their calls end with ENOTCONN until {name} is started again"
            )]),
        })
    }

    fn delete(&mut self, name: &str, now_secs: i64) -> Result<Outcome, String> {
        let volume = self.named(name)?;
        if volume.info.state == VolumeState::Started {
            return Err(format!(
                "Volume {name} has been started.Volume needs to be stopped before deletion."
            ));
        }
        let id = volume.info.id;
        if let Some(volume) = self.volumes.remove(&id) {
            self.leave_over(&volume.info, Chore::MarkDeleted, now_secs);
        }
        Ok(Outcome::Done)
    }

    /// Leaves the bricks of a volume that is gone to their nodes.
    fn leave_over(&mut self, info: &VolumeInfo, chore: Chore, since_secs: i64) {
        for brick in info.sets.iter().flatten() {
            let left_over = LeftOver {
                brick: brick.clone(),
                volume: info.name.clone(),
                chore,
                since_secs,
            };
            self.left_over.insert(brick.id, left_over);
        }
    }

    fn announce(
        &mut self,
        node: NodeId,
        host: &str,
        addrs: &[SocketAddr],
    ) -> Result<Outcome, String> {
        let came = self.applied;
        if self.nodes.is_empty() {
            let record = NodeRecord {
                host: host.to_owned(),
                other_names: Vec::new(),
                addrs: addrs.to_vec(),
                state: PeerState::Joined,
                came,
                since_secs: 0,
            };
            self.nodes.insert(node, record);
            return Ok(Outcome::Done);
        }
        let record = self
            .nodes
            .get_mut(&node)
            .ok_or("this node does not belong to the cluster any more")?;
        record.addrs = addrs.to_vec();
        if record.state == PeerState::Joining {
            record.state = PeerState::Joined;
        }
        // Clients learn addresses with the layout.
        for volume in self.volumes.values_mut() {
            Arc::make_mut(volume).changed = came;
        }
        Ok(Outcome::Done)
    }

    fn invite(
        &mut self,
        node: NodeId,
        host: &str,
        addrs: &[SocketAddr],
        now_secs: i64,
    ) -> Result<Outcome, String> {
        let known = self.nodes.get(&node);
        if known.is_some_and(|known| known.state != PeerState::Joining) {
            return Err(format!("{host} belongs to the cluster already"));
        }
        let came = known.map_or(self.applied, |known| known.came);
        let record = NodeRecord {
            host: host.to_owned(),
            other_names: Vec::new(),
            addrs: addrs.to_vec(),
            state: PeerState::Joining,
            came,
            since_secs: now_secs,
        };
        self.nodes.insert(node, record);
        Ok(Outcome::Done)
    }

    fn also_named(&mut self, node: NodeId, host: &str) -> Result<Outcome, String> {
        let record = self.nodes.get_mut(&node).ok_or("no such node")?;
        if record.host != host && record.other_names.iter().all(|name| name != host) {
            record.other_names.push(host.to_owned());
        }
        Ok(Outcome::Done)
    }

    fn detach(&mut self, node: NodeId) -> Result<Outcome, String> {
        let host = self.nodes.get(&node).map(|record| record.host.clone());
        let host = host.ok_or("no such node")?;
        let has_bricks = self
            .taken()
            .any(|info| info.sets.iter().flatten().any(|brick| brick.node == node));
        if has_bricks {
            return Err(format!(
                "Peer {host} hosts one or more bricks. If the peer is in not recoverable state then use either \
                 replace-brick or remove-brick command with force to remove all bricks from the peer and attempt the \
                 peer detach again."
            ));
        }
        if let Some(record) = self.nodes.get_mut(&node) {
            record.state = PeerState::Leaving;
        }
        Ok(Outcome::Done)
    }

    fn forget(&mut self, node: NodeId) -> Result<Outcome, String> {
        let known = self.nodes.get(&node);
        if known.is_some_and(|known| known.state == PeerState::Joined) {
            return Err("the node belongs to the cluster".to_owned());
        }
        self.nodes.remove(&node);
        self.set_aside.remove(&node);
        self.left_over.retain(|_, left| left.brick.node != node);
        Ok(Outcome::Done)
    }

    fn set_options(&mut self, name: &str, given: &[(String, String)]) -> Result<Outcome, String> {
        let was_started = self.named(name)?.was_started;
        let mut notes = Vec::new();
        let mut accepted = Vec::new();
        for (option, value) in given {
            if options::is_note(option) {
                check_text(option, value)?;
                accepted.push((option.as_str(), value));
                continue;
            }
            let info = options::find(option).ok_or_else(|| match options::nearest(option) {
                Some(known) => {
                    format!("option : {option} does not exist\nDid you mean {known}?")
                }
                None => format!("option : {option} does not exist"),
            })?;
            info.check(value)?;
            check_text(info.name, value)?;
            match info.effect {
                // What it is in any case may be said.
                Effect::Refused(why)
                    if options::switch(value) != Some(false) && value != info.default =>
                {
                    return Err(format!("option {}: {why}", info.name));
                }
                Effect::None => notes.push(format!(
                    "option {} is accepted for compatibility and changes nothing",
                    info.name
                )),
                Effect::Refused(_) | Effect::Live => {}
            }
            if info.name == SHARD_OPTION {
                check_shard_size(was_started, options::size(value))?;
            }
            accepted.push((info.name, value));
        }
        let kept = self.named(name)?.info.options.keys().map(String::as_str);
        let all = kept.chain(accepted.iter().map(|(name, _)| *name));
        let own: BTreeSet<&str> = all.filter(|name| options::is_note(name)).collect();
        if own.len() > MAX_NOTES {
            return Err(format!("a volume has at most {MAX_NOTES} options user.*"));
        }
        let volume = self.changed(name)?;
        for (option, value) in accepted {
            volume.info.options.insert(option.to_owned(), value.clone());
        }
        volume.fix_shard_size();
        Ok(if notes.is_empty() {
            Outcome::Done
        } else {
            Outcome::Notes(notes)
        })
    }

    fn reset(&mut self, name: &str, option: Option<&str>) -> Result<Outcome, String> {
        let known = match option {
            Some(option) if options::is_note(option) => Some(option),
            Some(option) => {
                let info = options::find(option)
                    .ok_or_else(|| format!("Option {option} does not exist"))?;
                Some(info.name)
            }
            None => None,
        };
        let was_started = self.named(name)?.was_started;
        if was_started && known == Some(SHARD_OPTION) {
            check_shard_size(true, None)?;
        }
        let volume = self.changed(name)?;
        volume.info.options.retain(|name, _| match known {
            Some(known) => name != known,
            None => was_started && name == SHARD_OPTION,
        });
        volume.fix_shard_size();
        Ok(Outcome::Done)
    }

    fn set_aside(&mut self, node: NodeId, count: u32) -> Result<Outcome, String> {
        if !self.nodes.contains_key(&node) {
            return Err("this node does not belong to the cluster".to_owned());
        }
        let own = self.set_aside.entry(node).or_default();
        // 0 is no session.
        let mut next = self.next_session.max(SessionId(1));
        while own.len() < count.min(MAX_SET_ASIDE) as usize {
            own.insert(next);
            next = next.next();
        }
        self.next_session = next;
        Ok(Outcome::Done)
    }

    fn open_session(
        &mut self,
        node: NodeId,
        session: SessionId,
        volume: VolumeId,
        uid: u32,
    ) -> Result<Outcome, String> {
        let own = self.set_aside.get_mut(&node);
        if !own.is_some_and(|own| own.remove(&session)) {
            let known = self.volumes.get(&volume);
            return match known.is_some_and(|volume| volume.sessions.contains_key(&session)) {
                true => Ok(Outcome::Done),
                false => Err(format!("session {session} was not set aside")),
            };
        }
        // The number is used up in any case.
        let ends = |why: String| Ok(Outcome::Notes(vec![why]));
        let volume = self.volumes.get_mut(&volume);
        let Some(volume) = volume.filter(|volume| volume.info.state == VolumeState::Started) else {
            return ends("the session's volume is not started".to_owned());
        };
        if volume.sessions.len() >= MAX_SESSIONS {
            return ends(format!("the volume has {MAX_SESSIONS} sessions already"));
        }
        Arc::make_mut(volume).sessions.insert(session, uid);
        Ok(Outcome::Done)
    }

    fn view(&mut self, view: &View) {
        let applied = self.applied;
        let Some(volume) = self.volumes.get_mut(&view.set.volume) else {
            return;
        };
        let volume = Arc::make_mut(volume);
        let index = view.set.index.0 as usize;
        let (Some(bricks), Some(set)) = (volume.info.sets.get(index), volume.sets.get_mut(index))
        else {
            return;
        };
        let configured = |brick: BrickId| bricks.iter().any(|info| info.id == brick);
        let sound = view.primary_member().is_some()
            && view.epoch.0 < sound::HIGHEST
            && view.opening.0 < sound::HIGHEST
            && view.members.iter().all(|member| configured(member.brick));
        let newer = match &set.current {
            None => true,
            Some(current) if view.epoch == current.epoch => {
                let mut same = current.clone();
                same.effective = true;
                !current.effective && *view == same
            }
            Some(current) => view.epoch > current.epoch,
        };
        if !sound || !newer {
            return;
        }
        if view.effective {
            set.effective = Some(view.clone());
        }
        set.current = Some(view.clone());
        volume.changed = applied;
    }

    fn taken(&self) -> impl Iterator<Item = &VolumeInfo> {
        self.volumes
            .values()
            .map(|volume| &volume.info)
            .chain(self.creating.values().map(|creating| &creating.info))
    }
}

const SHARD_OPTION: &str = "features.shard-block-size";

impl Volume {
    /// The node of a brick of a set.
    pub fn node_of(&self, index: SetIndex, brick: BrickId) -> Option<NodeId> {
        let set = self.info.sets.get(index.0 as usize)?;
        let found = set.iter().find(|info| info.id == brick)?;
        Some(found.node)
    }

    fn fix_shard_size(&mut self) {
        let chosen = self.info.options.get(SHARD_OPTION);
        self.info.shard_size = chosen
            .and_then(|value| options::size(value))
            .unwrap_or(SHARD_SIZE);
    }

    /// The value of an option: as set, else its default.
    pub fn option(&self, name: &str) -> &str {
        match self.info.options.get(name) {
            Some(value) => value,
            None => options::find(name).map_or("", |option| option.default),
        }
    }

    /// The value of an option in seconds.
    pub fn seconds(&self, name: &str) -> u64 {
        let number = |text: &str| text.trim_end_matches(['s', 'S']).parse().ok();
        number(self.option(name)).unwrap_or_default()
    }
}

/// Whether an option's value can be kept and shown.
fn check_text(name: &str, value: &str) -> Result<(), String> {
    if value.len() > MAX_VALUE || value.contains(char::is_control) {
        return Err(format!(
            "option {name}: the value is longer than {MAX_VALUE} bytes, or not all of it can be printed"
        ));
    }
    Ok(())
}

fn check_shard_size(was_started: bool, size: Option<u64>) -> Result<(), String> {
    if was_started {
        return Err(format!(
            "option {SHARD_OPTION} is fixed once the volume has been started"
        ));
    }
    match size {
        Some(size) if !size.is_power_of_two() => Err(format!(
            "option {SHARD_OPTION}: {size} is not a power of two"
        )),
        _ => Ok(()),
    }
}

/// Whether a volume may have so many bricks.
///
/// # Errors
/// What a person is told.
pub(super) fn check_count(bricks: usize) -> Result<(), String> {
    if bricks > MAX_BRICKS {
        return Err(format!("a volume has at most {MAX_BRICKS} bricks"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name == "all" || !name.chars().all(fits) {
        return Err(format!(
            "'{name}' is not a name for a volume (letters, digits, - and _)"
        ));
    }
    if name.len() > MAX_VOLUME_NAME {
        return Err(format!(
            "the name is longer than {MAX_VOLUME_NAME} characters"
        ));
    }
    Ok(())
}

/// Bricks per set, if volumes of this kind can be made.
fn check_kind(kind: SetKind) -> Result<usize, String> {
    match kind {
        SetKind::Plain => Ok(1),
        SetKind::Replicate { copies } if (2..=16).contains(&copies) => Ok(usize::from(copies)),
        SetKind::Replicate { .. } => {
            Err("replica count should be greater than 1 and at most 16".to_owned())
        }
        SetKind::Disperse { .. } => Err("disperse volumes are not built yet".to_owned()),
    }
}

#[cfg(test)]
mod tests;
