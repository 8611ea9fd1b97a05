//! Writers that keep a manifest of what fsync has promised, and the check after a kill.
//!
//! Each writer owns a directory of the mount. A round is: write a new file (tagged blocks), fsync it, fsync the
//! directory, then note (name, length, hash) in the manifest, which lies outside the mount. What the manifest lists must be
//! there, whole, after any kill of the daemon.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// What has been promised of one file.
#[derive(Clone, Debug)]
pub struct Promise {
    /// Path of the file.
    pub path: PathBuf,
    /// Its contents' hash and length; `None`: it was removed.
    pub contents: Option<(blake3::Hash, u64)>,
}

/// Running writers.
pub struct Writers {
    stop: Arc<AtomicBool>,
    promises: Arc<Mutex<Vec<Promise>>>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Writers {
    /// Starts `count` writers in `dir`, seeded.
    pub fn start(dir: &Path, count: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let promises = Arc::new(Mutex::new(Vec::new()));
        let rounds = Arc::new(AtomicU64::new(0));
        let threads = (0..count)
            .map(|writer| {
                let dir = dir.join(format!("w{writer}"));
                let (stop, promises, rounds) = (stop.clone(), promises.clone(), rounds.clone());
                std::thread::spawn(move || {
                    std::fs::create_dir_all(&dir).map_err(|err| format!("mkdir: {err}"))?;
                    let mut random = seed
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .wrapping_add(writer)
                        | 1;
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        write_round(&dir, round, &mut random, &promises)
                            .map_err(|err| format!("writer {writer}, round {round}: {err}"))?;
                        round += 1;
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        Self {
            stop,
            promises,
            rounds,
            threads,
        }
    }

    /// Rounds completed by all writers.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Ends the writers; gives what was promised, or the first error a writer saw.
    ///
    /// # Errors
    /// The text of the first error.
    pub fn finish(self) -> Result<Vec<Promise>, String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread
                .join()
                .map_err(|_| "a writer panicked".to_owned())??;
        }
        Ok(Arc::into_inner(self.promises)
            .map(Mutex::into_inner)
            .unwrap_or_default())
    }

    /// Waits for the writers to fail by themselves (their mount was killed); gives the promises and the errors.
    pub fn collect(self) -> (Vec<Promise>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let errors = self
            .threads
            .into_iter()
            .filter_map(|thread| match thread.join() {
                Ok(Ok(())) => None,
                Ok(Err(err)) => Some(err),
                Err(_) => Some("a writer panicked".to_owned()),
            })
            .collect();
        (
            Arc::into_inner(self.promises)
                .map(Mutex::into_inner)
                .unwrap_or_default(),
            errors,
        )
    }
}

fn next(random: &mut u64) -> u64 {
    // xorshift64*: only variety is needed here
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    random.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn write_round(
    dir: &Path,
    round: u64,
    random: &mut u64,
    promises: &Mutex<Vec<Promise>>,
) -> std::io::Result<()> {
    let path = dir.join(format!("f{round}"));
    let len = match next(random) % 8 {
        0 => 300_000 + next(random) % 300_000,
        1 | 2 => 20_000 + next(random) % 80_000,
        _ => 1 + next(random) % 9_000,
    };
    let mut data = vec![0u8; len as usize];
    for (at, byte) in data.iter_mut().enumerate() {
        *byte = (at as u64 ^ (at as u64 >> 8) ^ round ^ *random) as u8;
    }
    let mut file = File::create_new(&path)?;
    file.write_all(&data)?;
    file.sync_all()?;
    if next(random).is_multiple_of(3) {
        let at = next(random) % len;
        let patch = vec![0xa5; (len - at).min(5_000) as usize];
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&patch)?;
        data[at as usize..at as usize + patch.len()].copy_from_slice(&patch);
        file.sync_data()?;
    }
    drop(file);
    let mut kept = path.clone();
    if next(random).is_multiple_of(4) {
        kept = dir.join(format!("r{round}"));
        std::fs::rename(&path, &kept)?;
    }
    File::open(dir)?.sync_all()?;
    let mut list = promises.lock();
    list.push(Promise {
        path: kept.clone(),
        contents: Some((blake3::hash(&data), len)),
    });
    drop(list);
    if next(random).is_multiple_of(6) {
        // While the removal is under way the file is promised neither way.
        promises.lock().retain(|promise| promise.path != kept);
        std::fs::remove_file(&kept)?;
        File::open(dir)?.sync_all()?;
        promises.lock().push(Promise {
            path: kept,
            contents: None,
        });
    }
    Ok(())
}

/// Checks every promise; gives one line per broken one.
pub fn broken(promises: &[Promise]) -> Vec<String> {
    let mut broken = Vec::new();
    for promise in promises {
        let found = OpenOptions::new()
            .read(true)
            .open(&promise.path)
            .and_then(|mut file| {
                let mut data = Vec::new();
                file.read_to_end(&mut data)?;
                Ok(data)
            });
        match (&promise.contents, found) {
            (None, Err(err)) if err.kind() == std::io::ErrorKind::NotFound => {}
            (None, Ok(_)) => broken.push(format!(
                "{}: removed and synced, is back",
                promise.path.display()
            )),
            (Some((hash, len)), Ok(data)) => {
                if data.len() as u64 != *len || blake3::hash(&data) != *hash {
                    broken.push(format!(
                        "{}: {} bytes promised, {} found or contents differ",
                        promise.path.display(),
                        len,
                        data.len()
                    ));
                }
            }
            (_, Err(err)) => broken.push(format!("{}: {err}", promise.path.display())),
        }
    }
    broken
}
