//! The control plane's file on a disk that may be full: a write waits until there is space again. An error would end the
//! consensus on this node, and with it the daemon, though its bricks lie elsewhere and have all the space they need.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redb::StorageBackend;

use crate::device::is_full;

/// Pause before a write is tried again.
const AGAIN: Duration = Duration::from_millis(300);

/// Whether a write waits for space.
#[derive(Clone, Default, Debug)]
pub(in crate::control) struct Shortage(Arc<Flags>);

#[derive(Default, Debug)]
struct Flags {
    is_there: AtomicBool,
    /// Not while the file is opened: an error is told at once then.
    waits: AtomicBool,
}

impl Shortage {
    /// It does now.
    pub(in crate::control) fn is_there(&self) -> bool {
        self.0.is_there.load(Ordering::Relaxed)
    }

    /// From now on writes wait.
    pub(super) fn is_waited_for(&self) {
        self.0.waits.store(true, Ordering::Relaxed);
    }
}

/// See the module. Writes come from a thread that may block.
#[derive(Debug)]
pub(super) struct Patient<B> {
    file: B,
    path: PathBuf,
    shortage: Shortage,
}

impl<B: StorageBackend> Patient<B> {
    /// Over `file`, which lies at `path`. It waits from [`Shortage::is_waited_for`] on.
    pub(super) fn new(file: B, path: PathBuf) -> (Self, Shortage) {
        let shortage = Shortage::default();
        let patient = Self {
            file,
            path,
            shortage: shortage.clone(),
        };
        (patient, shortage)
    }

    #[allow(clippy::disallowed_methods)] // the thread is there to block for the real disk
    fn insist(&self, work: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let flags = &self.shortage.0;
        loop {
            let done = work();
            match &done {
                Err(error) if is_full(error) && flags.waits.load(Ordering::Relaxed) => {
                    if !flags.is_there.swap(true, Ordering::Relaxed) {
                        tracing::error!(
                            path = %self.path.display(), %error,
                            "the control plane waits for space on its disk: commands and mounts through this node fail \
                             until there is some, I/O goes on"
                        );
                    }
                    std::thread::sleep(AGAIN);
                }
                _ => {
                    if flags.is_there.swap(false, Ordering::Relaxed) {
                        tracing::info!(path = %self.path.display(), "the control plane has space again");
                    }
                    return done;
                }
            }
        }
    }
}

impl<B: StorageBackend> StorageBackend for Patient<B> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.insist(|| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        // Some file systems find space only now, and have not lost what could not be written then.
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.insist(|| self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use redb::backends::InMemoryBackend;

    use super::*;

    /// Has no space for so many writes, then has.
    #[derive(Debug)]
    struct Full(InMemoryBackend, AtomicUsize);

    impl StorageBackend for Full {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let left = self.1.load(Ordering::Relaxed);
            if left > 0 {
                self.1.store(left - 1, Ordering::Relaxed);
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.0.write(offset, data)
        }
    }

    #[test]
    fn a_write_waits_for_space_except_while_the_file_is_opened() {
        let full = Full(InMemoryBackend::new(), AtomicUsize::new(1));
        let (file, shortage) = Patient::new(full, "control.redb".into());
        file.set_len(10).unwrap();
        let refused = file.write(0, b"first").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        shortage.is_waited_for();
        file.file.1.store(2, Ordering::Relaxed);
        let file = Arc::new(file);
        let writer = {
            let file = Arc::clone(&file);
            std::thread::spawn(move || file.write(0, b"second"))
        };
        while !shortage.is_there() {
            std::thread::yield_now();
        }
        writer.join().unwrap().unwrap();
        assert!(!shortage.is_there());
        let mut found = [0; 6];
        file.read(0, &mut found).unwrap();
        assert_eq!(&found, b"second");
    }
}
