//! What clients do: random calls of the real client library on a few names and files, written down with the answers.

use std::sync::Arc;

use bytes::Bytes;
use mortar_client::volume::{FileOp, NewInode, RenameMode, Res, Volume};
use mortar_protocol::attr::{Cred, FileKind};
use mortar_protocol::env::Env;
use mortar_protocol::error::Errno;
use mortar_protocol::fop::XattrMode;
use mortar_protocol::ids::InodeId;

use super::exec::{MILLI, SimEnv};
use super::history::{Act, NAMES, Name, Told, XATTRS};
use super::hold::Held;
use super::net::ClientEnd;
use super::oracle::data::file_of;
use super::rng::Rng;
use super::tags;
use super::world::{SHARD, VOLUME, World};

/// Files that all clients write to.
const FILES: u64 = 3;
/// Clients from this number on prepare and look, they do not load.
pub const FIRST_HELPER: u32 = 1_000;
/// Blocks of a long append: more than an entry holds inline, so that it goes ahead of its entry.
const LONG_APPEND: std::ops::Range<u64> = 2_049..2_600;
/// Blocks read in the end: all that long appends may have made.
const READ_AT_END: u64 = 40_000;
/// Blocks that files are written up to.
const EXTENT: u64 = 64;
/// The blocks of the wide file begin so many before the end of its first shard.
const BEFORE_END: u64 = 32;

/// A client's hands.
#[derive(Clone)]
pub(super) struct Hands {
    pub(super) world: Arc<World>,
    pub(super) client: u32,
    pub(super) env: Arc<dyn Env>,
    pub(super) volume: Volume,
    pub(super) held: Arc<Held>,
}

fn xattr(name: usize) -> Bytes {
    Bytes::from(format!("user.x{name}"))
}

impl World {
    /// Starts a client that works off its part of the load.
    pub fn start_client(self: &Arc<Self>, client: u32) {
        self.working.lock().insert(client);
        let world = Arc::clone(self);
        self.with_hands(client, move |hands, mut rng| async move {
            let mut workers = Vec::new();
            for owner in 0..u64::from(world.plan.workers) {
                let (hands, rng) = (hands.clone(), rng.fork());
                workers.push(async move { hands.work(owner, rng).await });
            }
            futures_util::future::join_all(workers).await;
            hands.volume.close().await;
            world.working.lock().remove(&client);
            world.exec.note(&format!("c{client} is done"));
        });
    }

    /// A client dies: nothing of it goes on.
    pub fn kill_client(&self, client: u32) {
        self.exec.note(&format!("kill c{client}"));
        self.exec.kill(client);
        self.working.lock().remove(&client);
    }

    /// Makes what all clients share.
    pub fn prepare(self: &Arc<Self>) {
        let client = FIRST_HELPER;
        self.working.lock().insert(client);
        let world = Arc::clone(self);
        self.with_hands(client, move |hands, _| async move {
            if let Err(errno) = hands.make_places().await {
                world.fail(format!("the first files cannot be made: {errno:?}"));
            }
            hands.volume.close().await;
            world.working.lock().remove(&client);
        });
    }

    /// Reads everything, when all has become calm.
    pub fn look_at_all(self: &Arc<Self>) {
        let client = FIRST_HELPER + 1;
        self.working.lock().insert(client);
        let world = Arc::clone(self);
        self.with_hands(client, move |hands, _| async move {
            hands.read_all().await;
            // Sessions of dead clients end, and what they left is brought to its end.
            let more = std::time::Duration::from_secs(world.plan.session_timeout + 8);
            hands.env.sleep(more).await;
            // A late message of a dead client keeps its session for another while; ours is the last.
            for _ in 0..8 {
                if world.sessions() <= 1 {
                    break;
                }
                hands.env.sleep(std::time::Duration::from_secs(3)).await;
            }
            hands.volume.close().await;
            world.working.lock().remove(&client);
        });
    }

    /// Connects a client and lets it do something.
    fn with_hands<F>(
        self: &Arc<Self>,
        client: u32,
        act: impl FnOnce(Hands, Rng) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let mut load = self.plan.load.clone();
        let mut rng = Rng::new(load.draw() ^ u64::from(client));
        let env: Arc<dyn Env> = SimEnv::new(Arc::clone(&self.exec), client, rng.fork());
        let transport = ClientEnd::new(Arc::clone(self), client);
        let world = Arc::clone(self);
        let own = Arc::clone(&env);
        env.spawn(Box::pin(async move {
            let servers = world.servers();
            let volume = loop {
                let (env, transport) = (Arc::clone(&own), Arc::clone(&transport));
                match Volume::connect(env, transport, &servers, VOLUME).await {
                    Ok(volume) => break volume,
                    Err(error) => world.exec.note(&format!("c{client} {error}")),
                }
            };
            world
                .exec
                .note(&format!("c{client} has session {}", volume.session()));
            let held = Held::of(&volume);
            let hands = Hands {
                world,
                client,
                env: own,
                volume,
                held,
            };
            act(hands, rng).await;
        }));
    }
}

impl Hands {
    /// Writes a call down, makes it, and writes the answer down.
    pub(super) async fn call(&self, act: Act) -> Told {
        let number = {
            let history = &self.world.history;
            let start = self.world.exec.stamp();
            history.begin(self.client, start, act)
        };
        self.world
            .exec
            .note(&format!("c{} call {number} {act:?}", self.client));
        let told = self.act(number, act).await.unwrap_or_else(Told::Failed);
        self.world
            .exec
            .note(&format!("c{} {number} -> {told:?}", self.client));
        let end = self.world.exec.stamp();
        self.world.history.end(number, end, told.clone());
        told
    }

    fn name(&self, at: Name) -> (InodeId, Bytes) {
        let places = self.world.places.lock();
        let name = Bytes::from(format!("n{}", at % NAMES));
        (places.0[at / NAMES], name)
    }

    async fn act(&self, number: usize, act: Act) -> Res<Told> {
        let (volume, cred) = (&self.volume, Cred::default());
        match act {
            Act::Create { at, dir } => {
                let (parent, name) = self.name(at);
                let new = if dir {
                    NewInode::dir(0o755)
                } else {
                    NewInode::file(0o644)
                };
                let attr = volume.create(cred, parent, name, new).await?;
                Ok(Told::Made(attr.gfid.id.0))
            }
            Act::Remove { at, dir } => {
                let (parent, name) = self.name(at);
                volume.remove(cred, parent, name, dir).await?;
                Ok(Told::Done)
            }
            Act::Rename { from, to, mode } => {
                let (from, to) = (self.name(from), self.name(to));
                volume.rename(cred, from, to, mode).await?;
                Ok(Told::Done)
            }
            Act::Link { id, at } => {
                let (parent, name) = self.name(at);
                volume.link(cred, InodeId(id), parent, name).await?;
                Ok(Told::Done)
            }
            Act::Lookup { at } => {
                let (parent, name) = self.name(at);
                let attr = volume.lookup(cred, parent, name).await?.attr;
                Ok(Told::Found(attr.gfid.id.0, attr.kind == FileKind::Dir))
            }
            Act::List { dir } => self.list(dir).await,
            Act::Lock { .. } | Act::Unlock { .. } | Act::Open { .. } | Act::Close { .. } => {
                self.act_on_holds(act).await
            }
            _ => self.act_on_data(number, act).await,
        }
    }

    async fn list(&self, dir: usize) -> Res<Told> {
        let parent = self.world.places.lock().0[dir];
        let (mut list, mut entries, mut after) = (Vec::new(), Vec::new(), 0);
        loop {
            let listing = self.volume.readdir(parent, after, 64 << 10, false).await?;
            after = listing.entries.last().map_or(after, |entry| entry.offset);
            entries.extend(listing.entries);
            if listing.end {
                break;
            }
        }
        for entry in entries {
            let own = (0..NAMES).find(|at| entry.name[..] == *format!("n{at}").as_bytes());
            if let Some(own) = own {
                list.push((dir * NAMES + own, entry.gfid.id.0));
            }
        }
        list.sort_unstable();
        Ok(Told::Listed(list))
    }

    /// Where a file's blocks begin, in bytes.
    fn base(&self, id: u64) -> u64 {
        match *self.world.wide.lock() == Some(id) {
            true => SHARD - BEFORE_END * tags::BLOCK as u64,
            false => 0,
        }
    }

    async fn act_on_data(&self, number: usize, act: Act) -> Res<Told> {
        let volume = &self.volume;
        const BLOCK: u64 = tags::BLOCK as u64;
        let base = file_of(&act).map_or(0, |id| self.base(id));
        match act {
            Act::Write { id, offset, count } => {
                let offset = base + offset * BLOCK;
                let data = tags::make(self.client, number, offset, count).into();
                self.change(id, FileOp::Write { offset, data }).await?;
                Ok(Told::Done)
            }
            Act::Append { id, count } => {
                let data = tags::make(self.client, number, tags::ANYWHERE, count).into();
                let at = self.change(id, FileOp::Append { data }).await?;
                let at = at.ok_or(Errno::EINVAL)?;
                Ok(Told::At((at - base) / BLOCK))
            }
            Act::Truncate { id, size } => {
                let size = base + size * BLOCK;
                self.change(id, FileOp::Truncate { size }).await?;
                Ok(Told::Done)
            }
            Act::Read { id, offset, count } => {
                let (offset, len) = (base + offset * BLOCK, (count * BLOCK) as u32);
                let bytes = volume.read(InodeId(id), offset, len).await?;
                match tags::parse(offset, &bytes) {
                    Ok(values) => Ok(Told::Got(values)),
                    Err(why) => {
                        self.world.fail(format!("call {number}: {why}"));
                        Err(Errno::EINVAL)
                    }
                }
            }
            Act::Size { id } => {
                let attr = volume.getattr(InodeId(id)).await?;
                Ok(Told::Size((attr.size - base) / BLOCK))
            }
            Act::SetXattr { id, name } => {
                let (name, value) = (xattr(name), number.to_string().into());
                let mode = XattrMode::Set;
                self.change(id, FileOp::SetXattr { name, value, mode })
                    .await?;
                Ok(Told::Done)
            }
            Act::GetXattr { id, name } => {
                let value = match volume.getxattr(InodeId(id), xattr(name)).await {
                    Err(Errno::ENODATA) => return Ok(Told::Value(None)),
                    value => value?,
                };
                let value = str::from_utf8(&value)
                    .ok()
                    .and_then(|text| text.parse().ok());
                Ok(Told::Value(Some(value.ok_or(Errno::EINVAL)?)))
            }
            Act::Sync { id } => {
                volume.fsync(InodeId(id)).await?;
                Ok(Told::Done)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    async fn change(&self, id: u64, op: FileOp) -> Res<Option<u64>> {
        let time = self.env.wall();
        let cred = Cred::default();
        let changed = self
            .volume
            .change(cred, InodeId(id), vec![op], time, false)
            .await?;
        Ok(changed.appended_at)
    }

    async fn make_places(&self) -> Res<()> {
        let (root, cred) = (InodeId::ROOT, Cred::default());
        let dir = self
            .volume
            .create(cred.clone(), root, "dir".into(), NewInode::dir(0o755))
            .await?;
        let mut files = Vec::new();
        for number in 0..FILES {
            let name = Bytes::from(format!("file{number}"));
            let file = self
                .volume
                .create(cred.clone(), root, name, NewInode::file(0o644))
                .await?;
            files.push(file.gfid.id.0);
        }
        if self.volume.is_distributed() {
            let wide = files[0];
            *self.world.wide.lock() = Some(wide);
            let size = self.base(wide);
            self.change(wide, FileOp::Truncate { size }).await?;
        }
        *self.world.places.lock() = (vec![root, dir.gfid.id], files);
        Ok(())
    }

    pub(super) async fn pause(&self, rng: &mut Rng) {
        let pause = rng.below(self.world.plan.pause);
        if !rng.permille(300) {
            self.env.sleep(std::time::Duration::from_nanos(pause)).await;
        }
    }

    async fn work(&self, owner: u64, mut rng: Rng) {
        for _ in 0..self.world.plan.calls {
            self.pause(&mut rng).await;
            if rng.permille(self.world.plan.holds) {
                self.hold(owner, &mut rng).await;
                continue;
            }
            let act = if rng.permille(self.world.plan.names) {
                self.draw_name(&mut rng)
            } else {
                self.draw_data(&mut rng)
            };
            let told = self.call(act).await;
            let id = match told {
                Told::Made(id) if matches!(act, Act::Create { dir: false, .. }) => id,
                Told::Found(id, false) => id,
                Told::Failed(Errno::ENOTCONN) => {
                    // The servers are away; a user would not ask again at once.
                    self.env.sleep(std::time::Duration::from_millis(500)).await;
                    continue;
                }
                _ => continue,
            };
            let mut known = self.world.known.lock();
            known.push(id);
            if known.len() > 6 {
                known.remove(0);
            }
        }
    }

    fn draw_name(&self, rng: &mut Rng) -> Act {
        let name = |rng: &mut Rng| rng.below(2 * NAMES as u64) as Name;
        let (at, to) = (name(rng), name(rng));
        match rng.below(16) {
            0..=3 => Act::Create {
                at,
                dir: rng.permille(200),
            },
            4..=6 => Act::Remove {
                at,
                dir: rng.permille(200),
            },
            7 | 8 => Act::Rename {
                from: at,
                to,
                mode: RenameMode::Replace,
            },
            9 => Act::Rename {
                from: at,
                to,
                mode: RenameMode::NoReplace,
            },
            10 => Act::Rename {
                from: at,
                to,
                mode: RenameMode::Exchange,
            },
            11 => match self.known(rng) {
                Some(id) => Act::Link { id, at },
                None => Act::Lookup { at },
            },
            12..=14 => Act::Lookup { at },
            // A listing over several sets is no moment of all of them.
            _ if self.volume.is_distributed() => Act::Lookup { at },
            _ => Act::List { dir: at / NAMES },
        }
    }

    pub(super) fn known(&self, rng: &mut Rng) -> Option<u64> {
        let known = self.world.known.lock();
        known.get(rng.below(known.len() as u64) as usize).copied()
    }

    pub(super) fn draw_data(&self, rng: &mut Rng) -> Act {
        let shared = {
            let places = self.world.places.lock();
            places.1[rng.below(FILES) as usize]
        };
        let own = if rng.permille(250) {
            self.known(rng)
        } else {
            None
        };
        let id = own.unwrap_or(shared);
        let offset = rng.below(EXTENT);
        let largest = if rng.permille(200) {
            self.world.plan.largest
        } else {
            8
        };
        let count = rng.range(1, largest + 1);
        let kinds = if self.world.plan.blackout { 24 } else { 18 };
        let wide = *self.world.wide.lock() == Some(id);
        match rng.below(kinds) {
            // A write over the end of a shard is two; an append knows no end.
            0..=6 if wide => {
                let room = match offset < BEFORE_END {
                    true => BEFORE_END - offset,
                    false => EXTENT,
                };
                let count = count.min(room);
                Act::Write { id, offset, count }
            }
            0..=4 => Act::Write { id, offset, count },
            5 | 6 => Act::Append {
                id,
                count: match rng.permille(self.world.plan.long_appends) {
                    true => rng.range(LONG_APPEND.start, LONG_APPEND.end),
                    false => count,
                },
            },
            7 => Act::Truncate {
                id,
                size: rng.below(EXTENT),
            },
            8..=12 => Act::Read {
                id,
                offset: match rng.permille(self.world.plan.long_appends) {
                    true => rng.below(LONG_APPEND.end),
                    false => offset,
                },
                count: rng.range(1, 100),
            },
            13 => Act::Size { id },
            14 => Act::SetXattr {
                id,
                name: rng.below(XATTRS as u64) as usize,
            },
            15 => Act::GetXattr {
                id,
                name: rng.below(XATTRS as u64) as usize,
            },
            _ => Act::Sync { id },
        }
    }

    /// Everything once more; each call until it is answered.
    async fn read_all(&self) {
        let mut acts: Vec<Act> = (0..2 * NAMES).map(|at| Act::Lookup { at }).collect();
        acts.extend((0..2).map(|dir| Act::List { dir }));
        let files = self.world.places.lock().1.clone();
        for id in files {
            acts.push(Act::Size { id });
            let count = 2_000;
            let offsets = (0..READ_AT_END).step_by(count as usize);
            acts.extend(offsets.map(|offset| Act::Read { id, offset, count }));
            acts.extend((0..XATTRS).map(|name| Act::GetXattr { id, name }));
        }
        for act in acts {
            while self.call(act).await.is_unknown() {
                self.env
                    .sleep(std::time::Duration::from_nanos(50 * MILLI))
                    .await;
            }
        }
    }
}
