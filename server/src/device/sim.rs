//! A simulated disk for crash tests: deterministic, with a volatile cache that a power cut loses in part.
//!
//! Every write and flush is a numbered step. A test runs a workload once to count the steps, then again for each step
//! with [`SimDisk::cut_at`], and looks at what [`SimDisk::reboot`] brings back; or it runs it once with
//! [`SimDisk::record`] and gets the disk of every step as a [`Cut`]. Writes are torn at sectors of 512 bytes; sectors
//! that were not flushed survive in any combination. A failed flush makes the cache forget that its contents are not on
//! the medium, as kernels do: later flushes succeed without writing them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::aligned::AlignedBuf;
use parking_lot::Mutex;

use super::{Device, Done, check_range};

/// What a power cut keeps or loses as a whole, in bytes.
pub const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What a crash leaves of the writes that were not flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    /// The process died, the machine did not: everything, still unflushed.
    Process,
    /// Power was lost: nothing.
    Nothing,
    /// Power was lost: of each sector any version since the last flush, chosen by the disk's seed.
    Random,
}

/// What goes wrong with one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It returns this errno; a failed write may have written some of its sectors.
    Error(i32),
    /// A write is acknowledged and never happens; a flush is acknowledged and does nothing.
    Lost,
    /// A write goes to this offset instead.
    Misdirected(u64),
}

/// A disk in memory. Started operations complete at once, or when the test says so ([`SimDisk::queue`]).
pub struct SimDisk {
    len: u64,
    state: Mutex<State>,
}

/// What reads see; a missing page is zero. Pages are shared with the disks taken from this one.
type Image = BTreeMap<u64, Arc<[u8; PAGE]>>;

struct State {
    cache: Cache,
    steps: u64,
    cut: Option<u64>,
    is_cut: bool,
    faults: BTreeMap<u64, Fault>,
    queued: bool,
    jobs: VecDeque<Job>,
    /// The moments of all steps since they are recorded.
    recorded: Option<Vec<Cut>>,
    host: Option<Host>,
}

/// The file system under a sparse disk.
struct Host {
    /// Pages that have space there.
    backed: BTreeSet<u64>,
    /// Pages it can still give.
    left: u64,
}

impl Host {
    /// Takes space for the pages of a range.
    fn back(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let pages = || offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64);
        let more = pages().filter(|page| !self.backed.contains(page)).count() as u64;
        if more > self.left {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.left -= more;
        self.backed.extend(pages());
        Ok(())
    }
}

/// The contents, as read and as on the medium.
#[derive(Clone, Default)]
struct Cache {
    image: Image,
    /// Sectors whose latest contents may be lost: what is on the medium first, then every version since.
    dirty: BTreeMap<u64, Vec<Version>>,
    /// Number of the latest write.
    writes: u64,
    seed: u64,
}

/// The moment of a step: the machine may end before it has happened, or while it happens.
#[derive(Clone)]
pub struct Cut {
    step: u64,
    write: Option<(u64, usize)>,
    len: u64,
    cache: Cache,
}

impl Cut {
    /// Number of the step that is interrupted.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Offset and length of the write that is interrupted; `None` for a flush.
    pub fn write(&self) -> Option<(u64, usize)> {
        self.write
    }

    /// Whether anything was not flushed: else every crash leaves the same.
    pub fn is_dirty(&self) -> bool {
        !self.cache.dirty.is_empty()
    }

    /// The disk as it is found after a crash at this moment. Other seeds leave other parts of what was not flushed.
    pub fn reboot(&self, survival: Survival, seed: u64) -> Arc<SimDisk> {
        let mut cache = self.cache.clone();
        cache.seed = mix(cache.seed ^ mix(seed));
        SimDisk::from_cache(self.len, cache.crashed(survival), false)
    }
}

#[derive(Clone)]
struct Version {
    write: u64,
    forgotten: bool,
    data: [u8; SECTOR],
}

enum Job {
    Write(u64, Bytes, Done<()>),
    Read(u64, usize, Done<Bytes>),
    /// Covers the writes up to this number.
    Flush(u64, Done<()>),
    Work(Box<dyn FnOnce() + Send>),
}

impl SimDisk {
    /// A disk of `len` zeros.
    pub fn new(len: u64, seed: u64) -> Arc<Self> {
        let cache = Cache {
            seed,
            ..Cache::default()
        };
        Self::from_cache(len, cache, false)
    }

    /// A disk of `len` bytes that holds these pages of 4 KiB by number, all flushed; the others are zeros.
    pub fn with_pages(len: u64, pages: impl IntoIterator<Item = (u64, [u8; PAGE])>) -> Arc<Self> {
        let pages = pages
            .into_iter()
            .filter(|(page, _)| *page < len / PAGE as u64);
        let cache = Cache {
            image: pages.map(|(page, data)| (page, Arc::new(data))).collect(),
            ..Cache::default()
        };
        Self::from_cache(len, cache, false)
    }

    fn from_cache(len: u64, cache: Cache, queued: bool) -> Arc<Self> {
        Arc::new(Self {
            len,
            state: Mutex::new(State {
                cache,
                steps: 0,
                cut: None,
                is_cut: false,
                faults: BTreeMap::new(),
                queued,
                jobs: VecDeque::new(),
                recorded: None,
                host: None,
            }),
        })
    }

    /// The pages of 4 KiB that are not zero, by number, as reads see them.
    pub fn pages(&self) -> Vec<(u64, [u8; PAGE])> {
        let state = self.state.lock();
        let pages = state.cache.image.iter();
        pages
            .filter(|(_, data)| data.iter().any(|byte| *byte != 0))
            .map(|(page, data)| (*page, **data))
            .collect()
    }

    /// Keeps the moment of every step from now on.
    pub fn record(&self) {
        self.state.lock().recorded = Some(Vec::new());
    }

    /// Ends recording and gives the moments of all steps in order; the last one is now, behind all of them.
    pub fn recorded(&self) -> Vec<Cut> {
        let mut state = self.state.lock();
        let mut cuts = state.recorded.take().unwrap_or_default();
        cuts.push(Cut {
            step: state.steps + 1,
            write: None,
            len: self.len,
            cache: state.cache.clone(),
        });
        cuts
    }

    /// Makes the disk sparse, on a file system that can give it so many bytes beside what it takes already. May be
    /// called again: somebody else has filled or emptied that file system.
    pub fn set_host_left(&self, bytes: u64) {
        let mut state = self.state.lock();
        let left = bytes / PAGE as u64;
        match &mut state.host {
            Some(host) => host.left = left,
            None => {
                let backed = state.cache.image.keys().copied().collect();
                state.host = Some(Host { backed, left });
            }
        }
    }

    /// Writes and flushes so far.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Ends the machine during step number `step` (the first is 1): that step and all later ones fail.
    pub fn cut_at(&self, step: u64) {
        self.state.lock().cut = Some(step);
    }

    /// Whether the machine has ended.
    pub fn is_cut(&self) -> bool {
        self.state.lock().is_cut
    }

    /// Lets step number `step` go wrong.
    pub fn fail_at(&self, step: u64, fault: Fault) {
        self.state.lock().faults.insert(step, fault);
    }

    /// Whether started operations wait for [`SimDisk::run`] (`true`) or complete within the call (`false`).
    pub fn queue(&self, queued: bool) {
        self.state.lock().queued = queued;
    }

    /// Started operations that wait.
    pub fn waiting(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// Completes the waiting operation at place `index`, if there is one.
    pub fn run(&self, index: usize) -> bool {
        let job = self.state.lock().jobs.remove(index);
        let Some(job) = job else { return false };
        self.complete(job);
        true
    }

    /// Completes waiting operations, also those started meanwhile, in order.
    pub fn run_all(&self) {
        while self.run(0) {}
    }

    /// Inverts the bits of `mask` in the byte at `offset`, on the medium and in the cache.
    pub fn rot(&self, offset: u64, mask: u8) {
        let mut state = self.state.lock();
        let at = (offset % SECTOR as u64) as usize;
        let mut byte = [0];
        let cache = &mut state.cache;
        cache.read(offset, &mut byte);
        cache.store(offset, &[byte[0] ^ mask]);
        if let Some(versions) = cache.dirty.get_mut(&(offset / SECTOR as u64)) {
            versions
                .iter_mut()
                .for_each(|version| version.data[at] ^= mask);
        }
    }

    /// Ends the machine or process now, if it has not ended, and starts it again: the disk as it is found then. This
    /// disk fails from now on; operations that wait are never completed.
    pub fn reboot(&self, survival: Survival) -> Arc<Self> {
        let mut state = self.state.lock();
        state.is_cut = true;
        state.jobs.clear();
        let mut cache = state.cache.clone();
        cache.seed = mix(cache.seed ^ state.steps);
        state.cache.dirty.clear();
        Self::from_cache(self.len, cache.crashed(survival), state.queued)
    }

    fn start(&self, job: Job) {
        let mut state = self.state.lock();
        if state.queued && !state.is_cut {
            state.jobs.push_back(job);
            return;
        }
        drop(state);
        self.complete(job);
    }

    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.state.lock();
        let data = parts.concat();
        let write = Some((offset, data.len()));
        state.keep_moment(self.len, write, |cache| cache.write_some(offset, &data));
        if let Some(host) = &mut state.host {
            host.back(offset, data.len() as u64)?;
        }
        state.write(offset, &data)
    }

    fn flush_upto(&self, upto: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.keep_moment(self.len, None, |_| ());
        state.flush(upto)
    }

    fn complete(&self, job: Job) {
        match job {
            Job::Write(offset, data, done) => {
                let result = self.write(offset, &[&data]);
                done(result);
            }
            Job::Read(offset, len, done) => {
                let mut buf = AlignedBuf::zeroed(len);
                let result = self.read_at(offset, &mut buf);
                done(result.map(|()| buf.freeze()));
            }
            Job::Flush(upto, done) => {
                let result = self.flush_upto(upto);
                done(result);
            }
            Job::Work(job) => job(),
        }
    }
}

impl Device for SimDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let state = self.state.lock();
        if state.is_cut {
            return Err(ended());
        }
        state.cache.read(offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.len, offset, data.len() as u64)?;
        self.write(offset, &[data])
    }

    fn write_vectored_at(&self, offset: u64, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        let total = parts.iter().map(|part| part.len() as u64).sum();
        check_range(self.len, offset, total)?;
        self.write(offset, &parts)
    }

    fn flush(&self) -> io::Result<()> {
        let upto = self.state.lock().cache.writes;
        self.flush_upto(upto)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.len, offset, len)?;
        match &mut self.state.lock().host {
            Some(host) => host.back(offset, len),
            None => Ok(()),
        }
    }

    fn host_left(&self) -> Option<u64> {
        let state = self.state.lock();
        state.host.as_ref().map(|host| host.left * PAGE as u64)
    }

    fn discard(&self, offset: u64, len: u64) {
        let mut state = self.state.lock();
        if state.host.is_none() || check_range(self.len, offset, len).is_err() {
            return;
        }
        for page in offset.div_ceil(PAGE as u64)..(offset + len) / PAGE as u64 {
            state.cache.write(page * PAGE as u64, &[0; PAGE]);
            if let Some(host) = &mut state.host
                && host.backed.remove(&page)
            {
                host.left += 1;
            }
        }
    }

    fn start_write(&self, offset: u64, data: Bytes, done: Done<()>) {
        match check_range(self.len, offset, data.len() as u64) {
            Ok(()) => self.start(Job::Write(offset, data, done)),
            Err(error) => done(Err(error)),
        }
    }

    fn start_read(&self, offset: u64, len: usize, done: Done<Bytes>) {
        match check_range(self.len, offset, len as u64) {
            Ok(()) => self.start(Job::Read(offset, len, done)),
            Err(error) => done(Err(error)),
        }
    }

    fn start_flush(&self, done: Done<()>) {
        let upto = self.state.lock().cache.writes;
        self.start(Job::Flush(upto, done));
    }

    fn start_work(&self, job: Box<dyn FnOnce() + Send>) {
        self.start(Job::Work(job));
    }
}

impl State {
    /// Counts a step; says what goes wrong with it.
    fn step(&mut self) -> io::Result<Option<Fault>> {
        if self.is_cut {
            return Err(ended());
        }
        self.steps += 1;
        self.is_cut = self.cut == Some(self.steps);
        Ok(self.faults.remove(&self.steps))
    }

    /// Keeps the moment of the step that comes, if they are recorded.
    fn keep_moment(
        &mut self,
        len: u64,
        write: Option<(u64, usize)>,
        interrupted: impl FnOnce(&mut Cache),
    ) {
        if self.is_cut {
            return;
        }
        if let Some(recorded) = &mut self.recorded {
            let mut cache = self.cache.clone();
            cache.seed = mix(cache.seed ^ self.steps);
            interrupted(&mut cache);
            recorded.push(Cut {
                step: self.steps + 1,
                write,
                len,
                cache,
            });
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let fault = self.step()?;
        match fault {
            _ if self.is_cut => {
                self.cache.write_some(offset, data);
                Err(ended())
            }
            Some(Fault::Error(number)) => {
                self.cache.write_some(offset, data);
                Err(io::Error::from_raw_os_error(number))
            }
            Some(Fault::Lost) => Ok(()),
            Some(Fault::Misdirected(other)) => {
                self.cache.write(other, data);
                Ok(())
            }
            None => {
                self.cache.write(offset, data);
                Ok(())
            }
        }
    }

    fn flush(&mut self, upto: u64) -> io::Result<()> {
        let fault = self.step()?;
        if self.is_cut {
            return Err(ended());
        }
        match fault {
            Some(Fault::Error(number)) => {
                for version in self
                    .cache
                    .dirty
                    .values_mut()
                    .flat_map(|versions| &mut versions[1..])
                {
                    version.forgotten |= version.write <= upto;
                }
                return Err(io::Error::from_raw_os_error(number));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.cache.dirty.retain(|_, versions| {
            let flushed = versions[1..]
                .iter()
                .rposition(|version| !version.forgotten && version.write <= upto);
            if let Some(place) = flushed {
                versions.drain(..=place);
                versions[0].write = 0;
            }
            versions.len() > 1
        });
        Ok(())
    }
}

impl Cache {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let position = offset + at as u64;
            let within = (position % PAGE as u64) as usize;
            let count = (PAGE - within).min(buf.len() - at);
            match self.image.get(&(position / PAGE as u64)) {
                Some(page) => buf[at..at + count].copy_from_slice(&page[within..within + count]),
                None => buf[at..at + count].fill(0),
            }
            at += count;
        }
    }

    fn store(&mut self, offset: u64, data: &[u8]) {
        store(&mut self.image, offset, data);
    }

    /// How much of an interrupted write happened: up to a sector's end, or all of it.
    fn some_of(&mut self, offset: u64, data: &[u8]) -> usize {
        let sectors = data.len() / SECTOR + 2;
        let sectors = (next(&mut self.seed) as usize % sectors) * SECTOR;
        let part = sectors.saturating_sub((offset % SECTOR as u64) as usize);
        part.min(data.len())
    }

    /// Writes as much as an interrupted write does.
    fn write_some(&mut self, offset: u64, data: &[u8]) {
        let part = self.some_of(offset, data);
        self.write(offset, &data[..part]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.writes += 1;
        let first = offset / SECTOR as u64;
        let last = (offset + data.len() as u64 - 1) / SECTOR as u64;
        let mut sector_data = [0; SECTOR];
        for sector in first..=last {
            if !self.dirty.contains_key(&sector) {
                self.read(sector * SECTOR as u64, &mut sector_data);
                let medium = Version {
                    write: 0,
                    forgotten: false,
                    data: sector_data,
                };
                self.dirty.insert(sector, vec![medium]);
            }
        }
        self.store(offset, data);
        for sector in first..=last {
            self.read(sector * SECTOR as u64, &mut sector_data);
            let version = Version {
                write: self.writes,
                forgotten: false,
                data: sector_data,
            };
            self.dirty.entry(sector).or_default().push(version);
        }
    }

    /// What a crash leaves.
    fn crashed(mut self, survival: Survival) -> Self {
        if survival == Survival::Process {
            return self;
        }
        let style = if survival == Survival::Nothing {
            0
        } else {
            next(&mut self.seed) % 4
        };
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let choice = choose(&versions, style, &mut self.seed);
            store(
                &mut self.image,
                sector * SECTOR as u64,
                &versions[choice].data,
            );
        }
        self
    }
}

/// The version of a sector that survives: 0 = what the medium has.
fn choose(versions: &[Version], style: u64, seed: &mut u64) -> usize {
    match style {
        0 => 0,
        1 => versions.len() - 1,
        2 => next(seed) as usize % versions.len(),
        // Whole writes survive or are lost, as far as their sectors are their own.
        _ => versions
            .iter()
            .rposition(|version| version.write == 0 || mix(version.write ^ *seed) & 1 == 0)
            .unwrap_or(0),
    }
}

fn store(image: &mut Image, offset: u64, data: &[u8]) {
    let mut at = 0;
    while at < data.len() {
        let position = offset + at as u64;
        let within = (position % PAGE as u64) as usize;
        let count = (PAGE - within).min(data.len() - at);
        let piece = &data[at..at + count];
        let number = position / PAGE as u64;
        // Zeros where nothing is need no page.
        if image.contains_key(&number) || piece.iter().any(|byte| *byte != 0) {
            let page = image.entry(number).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + count].copy_from_slice(piece);
        }
        at += count;
    }
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the simulated machine has ended",
    )
}

/// The next number of a seeded sequence (splitmix64).
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*seed)
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
