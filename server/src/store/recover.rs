//! Formatting and opening a brick.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mortar_protocol::entry::{Effect, Entry};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BootId, BrickId, ClusterId, NodeId, Pos, Seq, SetId};
use mortar_protocol::limits::BLOCK;
use mortar_protocol::view::SetKind;
use parking_lot::Mutex;

use super::compaction::Compaction;
use super::host::Host;
use super::log::{Log, identity};
use super::pending::Pending;
use super::room::Room;
use super::stages::Stage;
use super::unreadable::Unreadable;
use super::{KEPT, META, Meta, StagedBlock, Store, StoreError, extents, read};
use crate::alloc::{Allocator, Run};
use crate::device::Device;
use crate::superblock::{Geometry, MIN_SIZE, Stored, Superblock, SuperblockError};
use crate::tree::{Place, Tree, TreeError};
use crate::wal::{Replayed, Wal};

/// Bytes of the log for which a new brick has space on the host.
const RING_AHEAD: u64 = 8 << 20;

/// What a new brick is.
#[derive(Clone, Debug)]
pub struct FormatParams {
    /// The cluster.
    pub cluster: ClusterId,
    /// The cluster's generation.
    pub generation: u64,
    /// The node that formats it.
    pub node: NodeId,
    /// The brick.
    pub brick: BrickId,
    /// Its set.
    pub set: SetId,
    /// Name of the volume.
    pub volume_name: String,
    /// How the set keeps data.
    pub kind: SetKind,
    /// Size of a shard, in bytes.
    pub shard_size: u64,
    /// Format also what holds something.
    pub force: bool,
}

/// Why a brick could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Too small.
    #[error("a brick needs at least {} MiB, this has {} MiB", MIN_SIZE >> 20, .0 >> 20)]
    TooSmall(u64),
    /// It holds something.
    #[error("it holds data already; use force to overwrite it")]
    HoldsData,
    /// The device failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The metadata could not be made.
    #[error("{0}")]
    Tree(#[from] TreeError),
    /// The superblock could not be written.
    #[error("{0}")]
    Superblock(#[from] SuperblockError),
}

/// Why a brick could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its superblock says no.
    #[error("{0}")]
    Superblock(#[from] SuperblockError),
    /// The device failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its metadata is damaged.
    #[error("{0}")]
    Metadata(#[from] StoreError),
}

impl From<TreeError> for OpenError {
    fn from(err: TreeError) -> Self {
        Self::Metadata(err.into())
    }
}

/// Key of an allocator segment.
pub(super) fn segment_key(segment: u32) -> [u8; 5] {
    let mut key = [b'A'; 5];
    key[1..].copy_from_slice(&segment.to_be_bytes());
    key
}

impl Store {
    /// Makes a brick of all of `device`.
    ///
    /// # Errors
    /// If it is too small, holds something (without `force`) or fails.
    pub fn format(device: &Arc<dyn Device>, params: &FormatParams) -> Result<(), FormatError> {
        if device.len() < MIN_SIZE {
            return Err(FormatError::TooSmall(device.len()));
        }
        if !params.force && holds_anything(&**device)? {
            return Err(FormatError::HoldsData);
        }
        Self::format_as(device, params, Geometry::for_size(device.len()))
    }

    /// [`Store::format`] with a geometry of the caller's.
    pub(super) fn format_as(
        device: &Arc<dyn Device>,
        params: &FormatParams,
        geometry: Geometry,
    ) -> Result<(), FormatError> {
        // Old superblocks go first, so that a format that is interrupted leaves no brick.
        device.write_at(0, &[0; 128 << 10])?;
        device.flush()?;
        // What must not fail later: superblocks, the first part of the log, the map of the tree's chunks.
        device.allocate(0, geometry.wal.offset + geometry.wal.len.min(RING_AHEAD))?;
        device.allocate(geometry.chunk_map.offset, geometry.chunk_map.len)?;
        let alloc = Arc::new(Mutex::new(Allocator::new(blocks(&geometry))));
        let tree = Tree::create(device.clone(), place(&geometry), alloc)?;
        let start = Wal::format(device.clone(), geometry.wal, identity(params.brick))
            .map_err(|err| TreeError::Failed(err.to_string()))?;
        let meta = postcard::to_stdvec(&Meta {
            applied: Pos::default(),
            wal: start,
        })
        .map_err(|err| TreeError::Failed(err.to_string()))?;
        tree.checkpoint(|batch| batch.put(META, &meta))?;
        drop(tree);
        let block = Superblock {
            cluster: params.cluster,
            generation: params.generation,
            node: params.node,
            volume: params.set.volume,
            volume_name: params.volume_name.clone(),
            set: params.set.index,
            kind: params.kind,
            shard_size: params.shard_size,
            brick: params.brick,
            geometry,
            view: None,
            boot: BootId::default(),
            runs: Vec::new(),
            clean: false,
            deleted: false,
            damaged: false,
        };
        Stored::format(&**device, block)?;
        Ok(())
    }

    /// Opens a brick: replays its log, applies what was announced, holds the rest as pending.
    ///
    /// # Errors
    /// If it is no brick, is damaged or fails.
    pub fn open(device: Arc<dyn Device>) -> Result<Self, OpenError> {
        let superblock = Stored::load(&*device, true)?;
        let geometry = superblock.block.geometry;
        let mut alloc = Allocator::new(blocks(&geometry));
        if device.host_left().is_some() {
            alloc.track_host();
            // A brick of an earlier release may lack it; a full host is met later.
            let _ = device.allocate(geometry.chunk_map.offset, geometry.chunk_map.len);
        }
        let alloc = Arc::new(Mutex::new(alloc));
        let tree = Tree::open(device.clone(), place(&geometry), alloc.clone())?;
        load_allocator(&tree, &alloc)?;
        let meta = tree
            .snapshot()?
            .get(META)?
            .and_then(|bytes| postcard::from_bytes::<Meta>(&bytes).ok())
            .ok_or_else(|| StoreError::Damaged("the store's own record is missing".into()))?;
        let mut shares = false;
        let counts = (extents::reference_key(0), extents::reference_key(u64::MAX));
        tree.snapshot()?.range(&counts.0, &counts.1, &mut |_, _| {
            shares = true;
            ControlFlow::Break(())
        })?;
        let (mut wal, mut entries, log_damaged) = Log::open(
            device.clone(),
            geometry.wal,
            superblock.block.brick,
            meta.wal,
        )
        .map_err(|err| StoreError::Damaged(err.to_string()))?;
        if let Some(kept) = tree.snapshot()?.get(KEPT)?
            && let Ok(kept) = postcard::from_bytes(&kept)
        {
            wal.reach_back(kept);
        }
        let sound = sound_entries(&*device, geometry.extents.offset, wal.flushed(), &entries)?;
        if let Some(first) = entries.get(sound) {
            let before = wal
                .position_at(Seq(first.entry.pos.seq.0 - 1))
                .unwrap_or(meta.applied);
            wal.cut(before)
                .map_err(|err| StoreError::Damaged(err.to_string()))?;
            entries.truncate(sound);
        }
        rewrite_stages(&*device, geometry.extents.offset, wal.flushed(), &entries)?;
        wal.rewrite()
            .map_err(|err| StoreError::Damaged(err.to_string()))?;
        device.flush()?;
        let flushed = wal.head();
        wal.note_flushed(flushed);
        let damaged = superblock.block.damaged;
        let announced = wal.announced().max(meta.applied.seq).min(flushed.seq);
        let unreadable = Arc::new(Unreadable::new(superblock.block.brick));
        let mut store = Self {
            device,
            superblock,
            unreadable,
            alloc,
            tree: Arc::new(tree),
            announced,
            wal,
            pending: Pending::default(),
            held: VecDeque::new(),
            stages: BTreeMap::new(),
            applied: meta.applied,
            applied_wal: meta.wal,
            flushed,
            short: BTreeMap::new(),
            reserved: 0,
            now: Mono(0),
            checkpoint: None,
            checkpoint_wanted: false,
            warming: None,
            shares,
            checkpointed: meta.wal,
            keep_log: true,
            insists: false,
            last_checkpoint: None,
            since_checkpoint: 0,
            settled: None,
            last_apply: Mono::default(),
            damaged_log: log_damaged || damaged,
            poisoned: None,
            host: Host::default(),
            room: Room::default(),
            compaction: Compaction::default(),
        };
        store.take_in(entries)?;
        store.keep_what_the_log_names();
        store.keep_stock();
        if log_damaged && !damaged {
            // What tells it may be written over later.
            store.write_superblock(|block| block.damaged = true)?;
        }
        Ok(store)
    }

    fn take_in(&mut self, entries: Vec<Replayed>) -> Result<(), StoreError> {
        for replayed in entries {
            for (id, places) in &replayed.stages {
                let runs: Vec<Run> = places
                    .iter()
                    .map(|(start, len)| Run {
                        start: *start,
                        len: *len,
                    })
                    .collect();
                let blocks = staged_blocks(&replayed.entry, *id, &runs);
                let mut alloc = self.alloc.lock();
                for run in &runs {
                    if !alloc.contains(*run) {
                        return Err(StoreError::Damaged(
                            "the log names blocks beyond the brick".into(),
                        ));
                    }
                    alloc.hold(*run);
                }
                let written = Arc::new(AtomicBool::new(true));
                let stage = Stage {
                    runs,
                    blocks: blocks.into(),
                    written,
                    attached: true,
                    since: Mono(0),
                };
                self.stages.insert(*id, stage);
            }
            self.hold(Arc::new(replayed.entry), replayed.stages);
        }
        Ok(())
    }
}

impl Store {
    /// Keeps the blocks back that entries name which the log holds beyond the checkpoint.
    fn keep_what_the_log_names(&mut self) {
        let named = self.wal.stages_upto(self.applied_wal);
        let runs = named.into_iter().flat_map(|(_, runs)| runs);
        let blocks = runs.flat_map(|(start, len)| start..start.saturating_add(u64::from(len)));
        let mut alloc = self.alloc.lock();
        alloc.keep_back(blocks, self.applied.seq.0);
    }
}

fn blocks(geometry: &Geometry) -> u64 {
    geometry.extents.len / BLOCK
}

pub(super) fn place(geometry: &Geometry) -> Place {
    Place {
        map: geometry.chunk_map.offset,
        slot: geometry.chunk_map.len / 2,
        extents: geometry.extents.offset,
    }
}

/// Whether the first MiB of a device holds anything.
fn holds_anything(device: &dyn Device) -> io::Result<bool> {
    let mut bytes = vec![0; (1 << 20).min(device.len()) as usize];
    device.read_at(0, &mut bytes)?;
    Ok(bytes.iter().any(|byte| *byte != 0))
}

fn staged_blocks(
    entry: &Entry,
    stage: mortar_protocol::ids::StageId,
    runs: &[Run],
) -> Vec<StagedBlock> {
    let crcs = entry.effects.iter().find_map(|effect| match effect {
        Effect::Attach {
            stage: id, crcs, ..
        } if *id == stage => Some(crcs),
        _ => None,
    });
    let places = runs
        .iter()
        .flat_map(|run| run.start..run.start.saturating_add(u64::from(run.len)));
    crcs.into_iter()
        .flatten()
        .zip(places)
        .map(|(crc, at)| StagedBlock { at, crc: *crc })
        .collect()
}

fn load_allocator(tree: &Tree, alloc: &Mutex<Allocator>) -> Result<(), StoreError> {
    let mut damaged = None;
    let mut alloc = alloc.lock();
    tree.snapshot()?
        .range(&segment_key(0), b"B", &mut |key, value| {
            let segment = key
                .get(1..5)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_be_bytes);
            let loaded = segment.map(|segment| alloc.load(segment, value));
            if let Some(Err(err)) = loaded {
                damaged = Some(err);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
    damaged.map_or(Ok(()), |err| Err(StoreError::Damaged(err.to_string())))
}

/// Writes the staged blocks of all entries beyond the flushed mark again: after a failed flush the kernel may have
/// forgotten that its copy is not on the medium.
fn rewrite_stages(
    device: &dyn Device,
    extents: u64,
    flushed: Pos,
    entries: &[Replayed],
) -> io::Result<()> {
    let beyond = entries.iter().filter(|found| found.entry.pos > flushed);
    let places = beyond.flat_map(|found| found.stages.iter().flat_map(|(_, places)| places));
    for (start, len) in places {
        let at = extents + start * BLOCK;
        let mut data = vec![0; *len as usize * BLOCK as usize];
        device.read_at(at, &mut data)?;
        device.write_at(at, &data)?;
    }
    Ok(())
}

/// How many of the replayed entries can be kept: beyond the flushed mark an entry ends the log whose staged blocks are
/// not what it says.
fn sound_entries(
    device: &dyn Device,
    extents: u64,
    flushed: Pos,
    entries: &[Replayed],
) -> io::Result<usize> {
    for (at, replayed) in entries.iter().enumerate() {
        if replayed.entry.pos <= flushed {
            continue;
        }
        for (id, places) in &replayed.stages {
            let runs: Vec<Run> = places
                .iter()
                .map(|(start, len)| Run {
                    start: *start,
                    len: *len,
                })
                .collect();
            let blocks = staged_blocks(&replayed.entry, *id, &runs);
            let all: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
            let within = blocks.iter().all(|block| {
                block
                    .at
                    .checked_mul(4096)
                    .and_then(|at| at.checked_add(extents + 4096))
                    .is_some_and(|end| end <= device.len())
            });
            if !within
                || blocks.len() as u64 != all
                || !read::staged_are_sound(device, extents, &blocks)?
            {
                return Ok(at);
            }
        }
    }
    Ok(entries.len())
}
