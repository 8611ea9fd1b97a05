//! Telling the kernel: which abilities are used, and what to drop from its caches.

use std::sync::mpsc;
use std::time::Duration;

use fuser::{INodeNo, InitFlags, KernelConfig, Notifier};
use futures_util::future::BoxFuture;
use mortar_protocol::ids::InodeId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::vfs::Kernel;

/// Largest read or write request, in bytes.
const MAX_IO: u32 = 1 << 20;
/// Most requests that the kernel makes in the background at once.
const MAX_BACKGROUND: u16 = 128;

/// What is asked of the kernel; what an older one does not know is done without.
const WANTED: [(InitFlags, &str); 14] = [
    (InitFlags::FUSE_ASYNC_DIO, "parallel direct I/O"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "parallel lookups"),
    (InitFlags::FUSE_ATOMIC_O_TRUNC, "O_TRUNC with open"),
    (
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        "clearing of setuid bits",
    ),
    (InitFlags::FUSE_POSIX_ACL, "POSIX ACLs"),
    (InitFlags::FUSE_DONT_MASK, "umask left to the servers"),
    (InitFlags::FUSE_POSIX_LOCKS, "fcntl locks"),
    (InitFlags::FUSE_FLOCK_LOCKS, "flock"),
    (InitFlags::FUSE_DO_READDIRPLUS, "readdirplus"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "readdirplus on demand"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "cached symbolic links"),
    (InitFlags::FUSE_AUTO_INVAL_DATA, "pages dropped on change"),
    (InitFlags::FUSE_EXPORT_SUPPORT, "export by NFS and Samba"),
    (
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        "mmap of O_DIRECT files",
    ),
];

/// Settles what the kernel and this client do. Gives whether a file opened with O_DIRECT may still be mapped.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    for (flag, what) in WANTED {
        if config.add_capabilities(flag).is_err() {
            tracing::info!("this kernel lacks: {what}");
        }
    }
    // Both have a nearest accepted value as their error; the kernel then has the last word.
    let _ = config.set_max_write(MAX_IO);
    let _ = config.set_max_background(MAX_BACKGROUND);
    if let Err(most) = config.set_max_readahead(MAX_IO) {
        let _ = config.set_max_readahead(most);
    }
    let _ = config.set_time_granularity(Duration::from_nanos(1));
    config
        .capabilities()
        .contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
}

/// Drops what the kernel keeps, on a thread that waits for no request: the kernel may make it wait for pages that a
/// request still fills.
#[derive(Debug)]
pub struct Caches {
    sender: Mutex<mpsc::Sender<(InodeId, oneshot::Sender<()>)>>,
}

impl Caches {
    /// Starts the thread. It ends with the value.
    ///
    /// # Errors
    ///
    /// The system's, if there is no thread to be had.
    pub fn start(notifier: Notifier) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<(InodeId, oneshot::Sender<()>)>();
        std::thread::Builder::new()
            .name("fuse-notify".to_owned())
            .spawn(move || {
                for (id, done) in receiver {
                    if let Err(error) = notifier.inval_inode(INodeNo(id.0), 0, 0) {
                        tracing::debug!(inode = %id, %error, "the kernel did not drop its pages");
                    }
                    // Nobody may be waiting.
                    let _ = done.send(());
                }
            })?;
        Ok(Self {
            sender: Mutex::new(sender),
        })
    }
}

impl Kernel for Caches {
    fn invalidate(&self, id: InodeId) -> BoxFuture<'static, ()> {
        let (done, wait) = oneshot::channel();
        let sent = self.sender.lock().send((id, done));
        Box::pin(async move {
            if sent.is_ok() {
                // An error means that the mount ends.
                let _ = wait.await;
            }
        })
    }
}
