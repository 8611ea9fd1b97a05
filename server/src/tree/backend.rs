//! redb's storage on chunks of the brick's own device.
//!
//! The tree's address space is virtual: `set_len` allocates nothing, a chunk of 64 KiB is mapped at its first write.
//! The chunk map lies outside the tree in two slots that are written in turn, before each flush that redb asks for.
//! redb never overwrites a page that its last durable commit refers to (its header page excepted, which carries its own
//! checksums), so any map written since is valid for that commit. The map carries a crc32 per 4 KiB page, checked on
//! every read, and for each chunk the generation of the first map that tells its newest page.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mortar_protocol::limits::BLOCK;
use parking_lot::Mutex;

use crate::alloc::{Allocator, CHUNK_BLOCKS, Run};
use crate::device::Device;

/// Bytes of a chunk.
pub const CHUNK: u64 = CHUNK_BLOCKS as u64 * BLOCK;
const PAGES: usize = CHUNK_BLOCKS as usize;
const MAGIC: &[u8; 8] = b"MORTARCM";
const HEADER: usize = 40;
const ENTRY: usize = 8 + 8 + PAGES * 4;
const UNMAPPED: u64 = u64::MAX;

/// Where on the device things lie, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// First slot of the chunk map; the second follows it.
    pub map: u64,
    /// Bytes of one slot.
    pub slot: u64,
    /// First byte of the extent area.
    pub extents: u64,
}

#[derive(Clone, Copy)]
struct Chunk {
    start: u64,
    /// Which pages have been written; the others read as zeros.
    written: u16,
    /// Generation of the first map that tells its newest page (48 bits).
    changed: u64,
    crcs: [u32; PAGES],
}

struct Map {
    len: u64,
    chunks: Vec<Option<Chunk>>,
    generation: u64,
    dirty: bool,
    /// redb's header page, while it waits for what it refers to.
    header: Option<Box<[u8; BLOCK as usize]>>,
}

/// How far the tree reaches.
#[derive(Default, Debug)]
pub(super) struct Extent {
    /// Bytes of its address space.
    pub(super) len: AtomicU64,
    /// Bytes written since the last flush.
    pub(super) written: AtomicU64,
}

/// The backend.
pub(super) struct ChunkBackend {
    device: Arc<dyn Device>,
    place: Place,
    alloc: Arc<Mutex<Allocator>>,
    map: Mutex<Map>,
    failed: Arc<AtomicBool>,
    extent: Arc<Extent>,
    ordered: Arc<AtomicBool>,
}

impl fmt::Debug for ChunkBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkBackend")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl ChunkBackend {
    /// A backend with an empty map; both slots are written on the first sync.
    pub(super) fn create(
        device: Arc<dyn Device>,
        place: Place,
        alloc: Arc<Mutex<Allocator>>,
    ) -> Self {
        let map = Map {
            len: 0,
            chunks: Vec::new(),
            generation: 0,
            dirty: true,
            header: None,
        };
        Self {
            device,
            place,
            alloc,
            map: Mutex::new(map),
            failed: Arc::default(),
            extent: Arc::default(),
            ordered: Arc::default(),
        }
    }

    /// Reads the newer valid slot and marks its chunks busy.
    pub(super) fn open(
        device: Arc<dyn Device>,
        place: Place,
        alloc: Arc<Mutex<Allocator>>,
    ) -> io::Result<Self> {
        let newest = (0..2)
            .filter_map(|slot| read_slot(&*device, place, slot))
            .max_by_key(|map| map.generation)
            .ok_or_else(|| damaged("neither copy of the chunk map is readable".into()))?;
        {
            let mut alloc = alloc.lock();
            for chunk in newest.chunks.iter().flatten() {
                let run = Run {
                    start: chunk.start,
                    len: CHUNK_BLOCKS,
                };
                if !alloc.contains(run) {
                    return Err(damaged(format!(
                        "the chunk map names block {}",
                        chunk.start
                    )));
                }
                alloc.hold_chunk(chunk.start);
            }
        }
        let backend = Self {
            device,
            place,
            alloc,
            extent: Arc::new(Extent {
                len: AtomicU64::new(newest.len),
                written: AtomicU64::new(0),
            }),
            map: Mutex::new(newest),
            failed: Arc::default(),
            ordered: Arc::default(),
        };
        backend.rewrite()?;
        Ok(backend)
    }

    /// Writes the newest map and what it is the first to tell again: the flush behind it may have failed in an earlier
    /// run, and the kernel may have forgotten that its copy is not on the medium. (The flush behind an older map
    /// succeeded, else there would be no newer one.)
    fn rewrite(&self) -> io::Result<()> {
        let map = self.map.lock();
        let again = |at: u64, len: u64| {
            let mut bytes = vec![0; len as usize];
            self.device.read_at(at, &mut bytes)?;
            self.device.write_at(at, &bytes)
        };
        for chunk in map.chunks.iter().flatten() {
            if chunk.changed >= map.generation {
                again(self.device_offset(chunk, 0), CHUNK)?;
            }
        }
        let slot = self.place.map + map.generation % 2 * self.place.slot;
        again(slot, (HEADER + map.chunks.len() * ENTRY) as u64)
    }

    /// Set once any access has failed.
    pub(super) fn failed(&self) -> Arc<AtomicBool> {
        self.failed.clone()
    }

    /// How far it reaches, from now on.
    pub(super) fn extent(&self) -> Arc<Extent> {
        self.extent.clone()
    }

    /// While this is set, everything written becomes durable before redb's header does. Needed where redb commits in one
    /// phase: after a crash it would look which commit arrived whole, among pages that the map does not describe.
    pub(super) fn ordered(&self) -> Arc<AtomicBool> {
        self.ordered.clone()
    }

    fn write_map(&self, map: &mut Map) -> io::Result<()> {
        map.generation += 1;
        let mut bytes = Vec::with_capacity(HEADER + map.chunks.len() * ENTRY);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&map.generation.to_le_bytes());
        bytes.extend_from_slice(&map.len.to_le_bytes());
        bytes.extend_from_slice(&(map.chunks.len() as u64).to_le_bytes());
        for chunk in &map.chunks {
            let chunk = chunk.unwrap_or(Chunk {
                start: UNMAPPED,
                written: 0,
                changed: 0,
                crcs: [0; PAGES],
            });
            bytes.extend_from_slice(&chunk.start.to_le_bytes());
            let pages = u64::from(chunk.written) | chunk.changed << 16;
            bytes.extend_from_slice(&pages.to_le_bytes());
            for crc in chunk.crcs {
                bytes.extend_from_slice(&crc.to_le_bytes());
            }
        }
        if bytes.len() as u64 > self.place.slot {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the chunk map is full",
            ));
        }
        let crc = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        self.device.write_at(
            self.place.map + map.generation % 2 * self.place.slot,
            &bytes,
        )?;
        map.dirty = false;
        Ok(())
    }

    fn device_offset(&self, chunk: &Chunk, within: u64) -> u64 {
        self.place.extents + chunk.start * BLOCK + within
    }

    /// One page of 4 KiB, verified.
    fn read_page(&self, map: &Map, page: u64, out: &mut [u8; BLOCK as usize]) -> io::Result<()> {
        if let (0, Some(header)) = (page, &map.header) {
            out.copy_from_slice(&header[..]);
            return Ok(());
        }
        let (at, within) = (
            (page / PAGES as u64) as usize,
            (page % PAGES as u64) as usize,
        );
        let Some(chunk) = map
            .chunks
            .get(at)
            .copied()
            .flatten()
            .filter(|chunk| chunk.written >> within & 1 == 1)
        else {
            out.fill(0);
            return Ok(());
        };
        let start = self.device_offset(&chunk, 0);
        self.device
            .read_near(start + within as u64 * BLOCK, out, start..start + CHUNK)?;
        if page != 0 && crc32fast::hash(out) != chunk.crcs[within] {
            return Err(damaged(format!(
                "page {page} of the metadata tree fails its checksum"
            )));
        }
        Ok(())
    }

    fn write_page(&self, map: &mut Map, page: u64, data: &[u8]) -> io::Result<()> {
        if page == 0 {
            map.header = None;
            if self.ordered.load(Ordering::SeqCst)
                && let Ok(data) = data.try_into()
            {
                map.header = Some(Box::new(data));
                return Ok(());
            }
        }
        self.write_page_now(map, page, data)
    }

    fn write_page_now(&self, map: &mut Map, page: u64, data: &[u8]) -> io::Result<()> {
        let (at, within) = (
            (page / PAGES as u64) as usize,
            (page % PAGES as u64) as usize,
        );
        if map.chunks.len() <= at {
            map.chunks.resize(at + 1, None);
        }
        let mut chunk = match map.chunks[at] {
            Some(chunk) => chunk,
            None => {
                let start = self.alloc.lock().allocate_chunk().ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::StorageFull,
                        "no chunk left for the metadata tree",
                    )
                })?;
                Chunk {
                    start,
                    written: 0,
                    changed: 0,
                    crcs: [0; PAGES],
                }
            }
        };
        chunk.written |= 1 << within;
        chunk.changed = map.generation + 1;
        chunk.crcs[within] = crc32fast::hash(data);
        map.chunks[at] = Some(chunk);
        map.dirty = true;
        self.extent.written.fetch_add(BLOCK, Ordering::Relaxed);
        self.device
            .write_at(self.device_offset(&chunk, within as u64 * BLOCK), data)
    }

    /// Writes the map and flushes.
    fn sync_written(&self) -> io::Result<()> {
        let mut map = self.map.lock();
        if map.dirty {
            self.guarded(self.write_map(&mut map))?;
        }
        drop(map);
        self.guarded(self.device.flush())
    }

    fn guarded<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && !self.failed.swap(true, Ordering::SeqCst)
        {
            tracing::error!(%error, "the metadata tree failed");
        }
        result
    }
}

impl Place {
    /// Bytes of address space that a map has room for.
    pub fn capacity(&self) -> u64 {
        self.slot.saturating_sub(HEADER as u64) / ENTRY as u64 * CHUNK
    }
}

/// First blocks of the chunks in the newer valid copy of the chunk map; none if there is no valid copy.
pub fn mapped_chunks(device: &dyn Device, place: Place) -> Vec<u64> {
    let newest = (0..2)
        .filter_map(|slot| read_slot(device, place, slot))
        .max_by_key(|map| map.generation);
    let chunks = newest.map(|map| map.chunks).unwrap_or_default();
    chunks.iter().flatten().map(|chunk| chunk.start).collect()
}

fn read_slot(device: &dyn Device, place: Place, slot: u64) -> Option<Map> {
    let base = place.map + slot * place.slot;
    let mut header = [0u8; HEADER];
    device.read_at(base, &mut header).ok()?;
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let (generation, len, count) = (word(16), word(24), word(32));
    let bytes_len = count
        .checked_mul(ENTRY as u64)?
        .checked_add(HEADER as u64)?;
    if &header[..8] != MAGIC || header[8..12] != 1u32.to_le_bytes() || bytes_len > place.slot {
        return None;
    }
    let mut bytes = vec![0; bytes_len as usize];
    device.read_at(base, &mut bytes).ok()?;
    if bytes[12..16] != crc32fast::hash(&bytes[16..]).to_le_bytes() {
        return None;
    }
    let chunks = bytes[HEADER..]
        .chunks_exact(ENTRY)
        .map(|entry| {
            let word =
                |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
            let mut crcs = [0; PAGES];
            for (crc, bytes) in crcs.iter_mut().zip(entry[16..].chunks_exact(4)) {
                *crc = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
            }
            (word(0) != UNMAPPED).then_some(Chunk {
                start: word(0),
                written: word(8) as u16,
                changed: word(8) >> 16,
                crcs,
            })
        })
        .collect();
    Some(Map {
        len,
        chunks,
        generation,
        dirty: false,
        header: None,
    })
}

impl redb::StorageBackend for ChunkBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.map.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let map = self.map.lock();
        if offset
            .checked_add(out.len() as u64)
            .is_none_or(|end| end > map.len)
        {
            return self.guarded(Err(damaged(format!(
                "the tree reads beyond its end, at {offset}"
            ))));
        }
        let mut page_data = [0u8; BLOCK as usize];
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let part = (BLOCK as usize - within).min(out.len() - done);
            self.guarded(self.read_page(&map, at / BLOCK, &mut page_data))?;
            out[done..done + part].copy_from_slice(&page_data[within..within + part]);
            done += part;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut map = self.map.lock();
        if len < map.len {
            let keep = len.div_ceil(CHUNK) as usize;
            let keep = keep.min(map.chunks.len());
            let dropped = map.chunks.split_off(keep);
            let mut alloc = self.alloc.lock();
            dropped
                .into_iter()
                .flatten()
                .for_each(|chunk| alloc.free_chunk(chunk.start));
            let pages = len.div_ceil(BLOCK) % PAGES as u64;
            if pages != 0
                && let Some(Some(last)) = map.chunks.get_mut((len / CHUNK) as usize)
            {
                last.written &= (1 << pages) - 1;
            }
        }
        map.len = len;
        self.extent.len.store(len, Ordering::Relaxed);
        map.dirty = true;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_written()?;
        let mut map = self.map.lock();
        if let Some(header) = map.header.take() {
            self.guarded(self.write_page_now(&mut map, 0, &header[..]))?;
            drop(map);
            self.sync_written()?;
        }
        self.extent.written.store(0, Ordering::Relaxed);
        // A flush that failed elsewhere meanwhile may have been the one that knew of our pages.
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the device has failed"));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut map = self.map.lock();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let part = (BLOCK as usize - within).min(data.len() - done);
            let piece = &data[done..done + part];
            let result = if part == BLOCK as usize {
                self.write_page(&mut map, at / BLOCK, piece)
            } else {
                let mut page_data = [0u8; BLOCK as usize];
                self.read_page(&map, at / BLOCK, &mut page_data)
                    .and_then(|()| {
                        page_data[within..within + part].copy_from_slice(piece);
                        self.write_page(&mut map, at / BLOCK, &page_data)
                    })
            };
            self.guarded(result)?;
            done += part;
        }
        Ok(())
    }
}
