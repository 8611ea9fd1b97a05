//! The disk under one node's `control.redb`: an image that outlives the node's process, and the seam that runs writes
//! one at a time, late.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mortar_server::control::consensus::ControlDisk;
use parking_lot::Mutex;
use redb::StorageBackend;

use crate::sim::exec::{Exec, MICRO, MILLI, SECOND};
use crate::sim::rng::Rng;

/// Unit in which a write survives or not.
const SECTOR: usize = 512;

#[derive(Default)]
struct Contents {
    /// What a process sees.
    now: Vec<u8>,
    /// What survives a loss of power for sure.
    synced: Vec<u8>,
    /// Writes since then.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Counts up whenever the process that had the image open has ended.
    owner: u64,
    /// Operations after which the image answers no more: the process ends in the middle of a commit.
    ends_after: Option<u32>,
    /// A planted bug: nothing is synced.
    never_syncs: bool,
}

/// See the module.
#[derive(Default)]
pub struct Image(Mutex<Contents>);

impl Image {
    /// Syncs nothing from now on.
    pub fn never_sync(&self) {
        self.0.lock().never_syncs = true;
    }

    /// Opens it for a process.
    pub fn open(self: &Arc<Self>) -> Handle {
        Handle {
            image: Arc::clone(self),
            owner: self.0.lock().owner,
        }
    }

    /// Lets the image answer only so many more operations to the process that has it open.
    pub fn end_after(&self, operations: u32) {
        self.0.lock().ends_after = Some(operations);
    }

    /// The process that had it open is gone; what it wrote stays.
    pub fn let_go(&self) {
        let mut contents = self.0.lock();
        contents.owner += 1;
        contents.ends_after = None;
    }

    /// The machine lost power: each sector that was written and not synced is there or not.
    pub fn lose_power(&self, rng: &mut Rng) {
        self.let_go();
        let mut contents = self.0.lock();
        let mut kept = std::mem::take(&mut contents.synced);
        for (offset, bytes) in std::mem::take(&mut contents.unsynced) {
            let luck = rng.below(3);
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                let survives = match luck {
                    0 => true,
                    1 => false,
                    _ => rng.permille(500),
                };
                let at = offset + index * SECTOR;
                if survives && at < kept.len() {
                    let end = kept.len().min(at + sector.len());
                    kept[at..end].copy_from_slice(&sector[..end - at]);
                }
            }
        }
        contents.now.clone_from(&kept);
        contents.synced = kept;
    }
}

/// The image, opened by one process.
pub struct Handle {
    image: Arc<Image>,
    owner: u64,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    fn with<T>(&self, counts: bool, job: impl FnOnce(&mut Contents) -> T) -> io::Result<T> {
        let mut contents = self.image.0.lock();
        if contents.owner != self.owner || contents.ends_after == Some(0) {
            return Err(io::Error::other("the process has ended"));
        }
        if counts && let Some(left) = &mut contents.ends_after {
            *left -= 1;
        }
        Ok(job(&mut contents))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |contents| contents.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(false, |contents| {
            let from = offset as usize;
            let found = contents.now.get(from..from + out.len());
            found.map(|found| out.copy_from_slice(found))
        })?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(true, |contents| {
            contents.now.resize(len as usize, 0);
            // A file that has become longer stays so; what is cut off is gone with the next sync.
            if contents.synced.len() < len as usize {
                contents.synced.resize(len as usize, 0);
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(true, |contents| {
            if contents.never_syncs {
                return;
            }
            for (offset, bytes) in std::mem::take(&mut contents.unsynced) {
                let end = offset + bytes.len();
                if contents.synced.len() < end {
                    contents.synced.resize(end, 0);
                }
                contents.synced[offset..end].copy_from_slice(&bytes);
            }
            let len = contents.now.len();
            contents.synced.truncate(len);
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(true, |contents| {
            let from = offset as usize;
            let end = from + data.len();
            if contents.now.len() < end {
                contents.now.resize(end, 0);
            }
            contents.now[from..end].copy_from_slice(data);
            contents.unsynced.push((from, data.to_vec()));
        })
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Queue {
    jobs: VecDeque<Job>,
    busy: bool,
    rng: Rng,
}

/// Runs writes in order, each after a while.
pub struct SlowDisk {
    exec: Arc<Exec>,
    queue: Mutex<Queue>,
    /// In thousandths: how often a write takes long.
    slow: Arc<AtomicU64>,
    alive: AtomicBool,
    me: String,
}

impl SlowDisk {
    /// For a process.
    pub fn new(exec: &Arc<Exec>, rng: Rng, slow: Arc<AtomicU64>, me: String) -> Arc<Self> {
        Arc::new(Self {
            exec: Arc::clone(exec),
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                busy: false,
                rng,
            }),
            slow,
            alive: AtomicBool::new(true),
            me,
        })
    }

    /// The process ends; gives the write that was next.
    pub fn end(&self) -> Option<Job> {
        self.alive.store(false, Ordering::Relaxed);
        let mut jobs = std::mem::take(&mut self.queue.lock().jobs);
        jobs.pop_front()
    }
}

/// [`SlowDisk`] as the control plane sees it.
pub struct Disk(pub Arc<SlowDisk>);

impl ControlDisk for Disk {
    fn run(&self, job: Job) {
        self.0.queue.lock().jobs.push_back(job);
        next(&self.0);
    }
}

fn next(disk: &Arc<SlowDisk>) {
    let span = {
        let mut queue = disk.queue.lock();
        if queue.busy || queue.jobs.is_empty() {
            return;
        }
        queue.busy = true;
        if queue.rng.permille(disk.slow.load(Ordering::Relaxed)) {
            queue.rng.range(50 * MILLI, 3 * SECOND)
        } else {
            queue.rng.range(50 * MICRO, 4 * MILLI)
        }
    };
    let disk = Arc::clone(disk);
    let exec = Arc::clone(&disk.exec);
    exec.after(span, move || {
        if !disk.alive.load(Ordering::Relaxed) {
            return;
        }
        let job = disk.queue.lock().jobs.pop_front();
        if let Some(job) = job {
            disk.exec.note(&format!("{} wrote", disk.me));
            job();
        }
        disk.queue.lock().busy = false;
        next(&disk);
    });
}
