//! A disk with a volatile cache, for a virtual machine: an NBD server that keeps what was not flushed in memory, and at a
//! power cut writes any sectors of it. (A QEMU that dies leaves what its guest wrote with the host's kernel: nothing that
//! the guest's drive had acknowledged would be lost.)

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

const SECTOR: usize = 512;
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const GO: u32 = 7;
const ACK: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
/// Has flags, flush, FUA.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const ANSWER_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FUA: u16 = 1;

struct State {
    file: File,
    /// Sectors written since the last flush, by number: all their versions.
    cache: BTreeMap<u64, Vec<[u8; SECTOR]>>,
    /// How often power was cut: what a client sent before is nothing any more.
    cuts: u32,
}

/// The disk.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    len: u64,
}

impl Disk {
    /// A disk whose medium is a file.
    pub fn new(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let cache = BTreeMap::new();
        let state = Arc::new(Mutex::new(State {
            file,
            cache,
            cuts: 0,
        }));
        Ok(Self { state, len })
    }

    /// Serves one client at a socket, on a thread.
    pub fn serve(&self, socket: &Path) -> io::Result<()> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let (disk, cuts) = (self.clone(), self.state.lock().cuts);
        std::thread::spawn(move || {
            // It ends with the virtual machine, often in the middle of something.
            let _ = listener
                .accept()
                .and_then(|(stream, _)| disk.talk(stream, cuts));
        });
        Ok(())
    }

    /// Power is lost: of each sector that was not flushed any version survives, or none. Gives how many there were.
    pub fn cut(&self, random: &mut ChaCha8Rng) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.cuts += 1;
        let cache = std::mem::take(&mut state.cache);
        for (sector, versions) in &cache {
            let chosen = random.next_u32() as usize % (versions.len() + 1);
            if let Some(data) = versions.get(chosen) {
                state.file.write_all_at(data, sector * SECTOR as u64)?;
            }
        }
        Ok(cache.len())
    }

    fn talk(&self, mut stream: UnixStream, cuts: u32) -> io::Result<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        let no_zeroes = u32::from_be_bytes(take(&mut stream)?) & 2 != 0;
        if !self.negotiate(&mut stream, no_zeroes)? {
            return Ok(());
        }
        loop {
            let head: [u8; 28] = take(&mut stream)?;
            let word =
                |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap_or_default());
            let short = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let (flags, kind, offset) = (short(4), short(6), word(16));
            let len = u32::from_be_bytes([head[24], head[25], head[26], head[27]]) as usize;
            if head[..4] != REQUEST_MAGIC.to_be_bytes() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut answer = ANSWER_MAGIC.to_be_bytes().to_vec();
            answer.extend_from_slice(&[0; 4]);
            answer.extend_from_slice(&head[8..16]);
            match kind {
                READ => {
                    let mut data = vec![0; len];
                    self.read(offset, &mut data)?;
                    answer.extend_from_slice(&data);
                }
                WRITE => {
                    let mut data = vec![0; len];
                    stream.read_exact(&mut data)?;
                    self.write(offset, &data, flags & FUA != 0, cuts)?;
                }
                FLUSH => self.flush(cuts)?,
                DISCONNECT => return Ok(()),
                _ => answer[4..8].copy_from_slice(&22u32.to_be_bytes()),
            }
            stream.write_all(&answer)?;
        }
    }

    /// Until the client begins (true) or leaves.
    fn negotiate(&self, stream: &mut UnixStream, no_zeroes: bool) -> io::Result<bool> {
        loop {
            if take::<8>(stream)? != *OPTION_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let option = u32::from_be_bytes(take(stream)?);
            let mut data = vec![0; u32::from_be_bytes(take(stream)?) as usize];
            stream.read_exact(&mut data)?;
            let reply = |kind: u32, data: &[u8]| {
                let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
                bytes.extend_from_slice(&option.to_be_bytes());
                bytes.extend_from_slice(&kind.to_be_bytes());
                bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
                bytes.extend_from_slice(data);
                bytes
            };
            let mut export = self.len.to_be_bytes().to_vec();
            export.extend_from_slice(&FLAGS.to_be_bytes());
            match option {
                EXPORT_NAME => {
                    export.resize(if no_zeroes { 10 } else { 134 }, 0);
                    stream.write_all(&export)?;
                    return Ok(true);
                }
                GO => {
                    let info = [&[0, 0][..], &export].concat();
                    stream.write_all(&reply(INFO, &info))?;
                    stream.write_all(&reply(ACK, &[]))?;
                    return Ok(true);
                }
                ABORT => {
                    stream.write_all(&reply(ACK, &[]))?;
                    return Ok(false);
                }
                _ => stream.write_all(&reply(UNSUPPORTED, &[]))?,
            }
        }
    }

    /// The state, unless power was cut since.
    fn powered(&self, cuts: u32) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.cuts != cuts {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(state)
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        state.file.read_exact_at(data, offset)?;
        let first = offset / SECTOR as u64;
        let end = (offset + data.len() as u64).div_ceil(SECTOR as u64);
        for (sector, versions) in state.cache.range(first..end) {
            let at = (sector - first) as usize * SECTOR;
            if let (Some(to), Some(newest)) = (data.get_mut(at..at + SECTOR), versions.last()) {
                to.copy_from_slice(newest);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], through: bool, cuts: u32) -> io::Result<()> {
        let mut state = self.powered(cuts)?;
        if !(offset as usize | data.len()).is_multiple_of(SECTOR) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (at, sector) in data.chunks_exact(SECTOR).enumerate() {
            let number = offset / SECTOR as u64 + at as u64;
            let sector: [u8; SECTOR] = sector.try_into().unwrap_or([0; SECTOR]);
            match through {
                true => {
                    state.cache.remove(&number);
                    state.file.write_all_at(&sector, number * SECTOR as u64)?;
                }
                false => state.cache.entry(number).or_default().push(sector),
            }
        }
        Ok(())
    }

    fn flush(&self, cuts: u32) -> io::Result<()> {
        let mut state = self.powered(cuts)?;
        for (sector, versions) in std::mem::take(&mut state.cache) {
            if let Some(newest) = versions.last() {
                state.file.write_all_at(newest, sector * SECTOR as u64)?;
            }
        }
        Ok(())
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn what_was_flushed_survives_and_of_the_rest_any_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let disk = Disk::new(&path).unwrap();
        let read = |at: u64, len: usize| {
            let mut data = vec![0; len];
            disk.read(at, &mut data).unwrap();
            data
        };
        disk.write(0, &[1; 65_536], false, 0).unwrap();
        disk.flush(0).unwrap();
        disk.write(0, &[2; 32_768], false, 0).unwrap();
        disk.write(0, &[3; 4_096], true, 0).unwrap();
        assert!(read(0, 4_096) == [3; 4_096] && read(4_096, 4_096) == [2; 4_096]);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(disk.cut(&mut random).unwrap(), 56);
        assert!(read(0, 4_096) == [3; 4_096] && read(32_768, 32_768) == [1; 32_768]);
        let rest = read(4_096, 28_672);
        let new = rest.chunks(SECTOR).filter(|sector| **sector == [2; SECTOR]);
        let old = rest.chunks(SECTOR).filter(|sector| **sector == [1; SECTOR]);
        let (new, old) = (new.count(), old.count());
        assert!(
            new > 0 && old > 0 && new + old == 56,
            "{new} new, {old} old"
        );
        assert!(
            disk.write(0, &[4; SECTOR], false, 0).is_err(),
            "from before the cut"
        );
        assert!(disk.flush(0).is_err());
    }
}
