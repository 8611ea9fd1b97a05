//! Serves one mount: connects, mounts, waits for the end.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use mortar_protocol::env::Env;
use mortar_protocol::env_real::RealEnv;
use mortar_protocol::ids::InodeId;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::background::Progress;
use super::connect::{connect, follow_options, options_of, own_root};
use super::watch::{self, MountWatch};
use super::{Request, place};
use crate::fuse::{Adapter, Caches};
use crate::vfs::Vfs;
use crate::volume::Volume;

/// How long a mount may take to reach its server, and to be able to serve once the volume's sets have opened.
const START_TIME: Duration = Duration::from_millis(4_500);
/// Most event loop threads.
const MAX_THREADS: usize = 8;

/// The thread that drives the connections.
struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Runtime {
    fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("mortar-client".to_owned())
            .spawn(move || {
                // An error means that the sender is gone: stop as well.
                let _ = runtime.block_on(stopped);
            })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Runs a future there and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let (done, wait) = mpsc::channel();
        self.handle.spawn(async move {
            // The receiver waits below.
            let _ = done.send(future.await);
        });
        wait.recv().map_err(|_| "the client has stopped".to_owned())
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that it has stopped already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// On a machine with one processor looking for work only keeps others from doing it.
fn busy_poll(wanted: Duration) -> Duration {
    match std::thread::available_parallelism() {
        Ok(processors) if processors.get() > 1 => wanted,
        _ => Duration::ZERO,
    }
}

/// Serves the mount until it is unmounted or the process is told to end. `tell` learns what it waits for, and at last
/// that it answers.
///
/// # Errors
///
/// Why it cannot be mounted, as one line.
pub(super) fn serve(request: &Request, tell: fn(Progress<'_>)) -> Result<(), String> {
    let runtime = Runtime::start().map_err(|error| format!("no runtime: {error}"))?;
    for option in &request.options.ignored {
        tracing::warn!("mount option '{option}' has no effect here");
    }
    let busy_poll = busy_poll(request.options.busy_poll);
    let env: Arc<dyn Env> = Arc::new(RealEnv::polling(runtime.handle.clone(), busy_poll));
    let vfs = start(&runtime, request, env, tell)?;
    runtime
        .handle
        .spawn(follow_options(vfs.clone(), request.options.no_atime()));
    let mut adapter = Adapter::new(vfs.clone());
    adapter.set_direct_io(request.options.direct_io);
    let watch = MountWatch {
        vfs: vfs.clone(),
        watched: adapter.watched(),
        dir: request.dir.clone(),
        log: request.log.clone(),
        dump: watch::dump_path(request),
    };
    let name = &request.source.volume;
    vfs.backend().set_watch(watch.watched.watch().clone());
    watch.watched.set_mounted(name, &request.dir);
    runtime.handle.spawn(watch.clone().follow_signals());
    let mut session = Session::new(adapter, &request.dir, &config(request))
        .map_err(|error| cannot_mount(request, &error))?;
    let caches = Caches::start(session.notifier()).map_err(|error| error.to_string())?;
    vfs.set_kernel(Arc::new(caches));
    end_on_signal(&runtime, request, vfs.clone(), session.unmount_callable());
    let loops = std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || session.run())
        .map_err(|error| error.to_string())?;
    std::fs::metadata(&request.dir)
        .map_err(|error| format!("the mount does not answer: {error}"))
        .inspect_err(|_| drop(place::detach(&request.dir)))?;
    place::raise_read_ahead(&request.dir);
    tracing::info!(
        "mounted {} on {}",
        request.source.text,
        request.dir.display()
    );
    runtime.handle.spawn(watch.follow_requests());
    tell(Progress::Ready);
    match loops.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("the kernel's requests cannot be read: {error}"),
        Err(_) => tracing::error!("an event loop panicked"),
    }
    runtime.wait(async move {
        vfs.flush_all().await;
        vfs.backend().close().await;
    })?;
    tracing::info!("unmounted {}", request.dir.display());
    Ok(())
}

/// Connects to the volume and makes sure that its root answers.
fn start(
    runtime: &Runtime,
    request: &Request,
    env: Arc<dyn Env>,
    tell: fn(Progress<'_>),
) -> Result<Vfs<Volume>, String> {
    let given = request.options.clone();
    let late = format!(
        "{} did not answer within {START_TIME:?}; is mortard running there, and the volume started?",
        given.servers(&request.source).join(", "),
    );
    let servers = given.servers(&request.source);
    let name = request.source.volume.clone();
    let handle = runtime.handle.clone();
    runtime.wait(async move {
        let reached = connect(handle, servers, name, env.clone());
        let reached = tokio::time::timeout(START_TIME, reached).await;
        let volume = reached.map_err(|_| late.clone())??;
        let waiting = |what: &str| {
            tracing::info!("{what}");
            tell(Progress::Waiting(what));
        };
        let opened = volume.opened(waiting).await;
        opened.map_err(|error| error.to_string())?;
        let mut options = options_of(&volume.info());
        options.atime &= !given.no_atime();
        options.attr_ttl = given.attr_ttl.unwrap_or(options.attr_ttl);
        options.entry_ttl = given.entry_ttl.unwrap_or(options.entry_ttl);
        options.negative_ttl = given.negative_ttl.unwrap_or(options.negative_ttl);
        let vfs = Vfs::new(volume, env, options);
        let first = async {
            let root = vfs.getattr(InodeId::ROOT).await;
            root.map_err(|errno| format!("the volume's root cannot be read: {errno:?}"))?;
            own_root(&vfs).await;
            Ok::<_, String>(())
        };
        let first = tokio::time::timeout(START_TIME, first).await;
        first.map_err(|_| late)??;
        Ok(vfs)
    })?
}

fn config(request: &Request) -> Config {
    let root = rustix::process::geteuid().is_root();
    let options = &request.options;
    let mut kernel = vec![
        MountOption::FSName(request.source.text.clone()),
        // fuser drops its own Subtype where it mounts without fusermount3.
        MountOption::CUSTOM("subtype=mortar".to_owned()),
        MountOption::DefaultPermissions,
    ];
    kernel.extend(options.kernel.iter().cloned());
    if root {
        for (wanted, other) in [
            (MountOption::Dev, MountOption::NoDev),
            (MountOption::Suid, MountOption::NoSuid),
        ] {
            if !kernel.contains(&other) && !kernel.contains(&wanted) {
                kernel.push(wanted);
            }
        }
    }
    if options.read_only {
        kernel.push(MountOption::RO);
    }
    let mut config = Config::default();
    config.mount_options = kernel;
    config.acl = match options.allow_other {
        Some(true) => SessionACL::All,
        None if root => SessionACL::All,
        _ => SessionACL::Owner,
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.clamp(2, MAX_THREADS));
    config.clone_fd = true;
    config
}

fn cannot_mount(request: &Request, error: &std::io::Error) -> String {
    let dir = request.dir.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "cannot mount on {dir}: {error}; /dev/fuse or fusermount3 is missing (modprobe fuse; apt install fuse3; \
             in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
        ),
        std::io::ErrorKind::PermissionDenied => {
            format!("cannot mount on {dir}: {error}; no access to /dev/fuse or to the directory")
        }
        _ => format!("cannot mount on {dir}: {}", error.to_string().trim()),
    }
}

/// On SIGTERM or SIGINT: sends what the kernel and this client hold, then unmounts, which ends the event loops. Where
/// the mount is in use it is taken out of the tree, and the process ends all the same.
fn end_on_signal(
    runtime: &Runtime,
    request: &Request,
    vfs: Vfs<Volume>,
    mut unmounter: SessionUnmounter,
) {
    let dir = request.dir.clone();
    runtime.handle.spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut term), Ok(mut int)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            return tracing::error!("signals cannot be waited for");
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("told to end");
        // Not on this thread: both calls wait for requests that this thread answers.
        let unmounting = tokio::task::spawn_blocking(move || {
            let synced = File::open(&dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
            if let Err(error) = synced {
                tracing::warn!("mapped pages may be lost: {error}");
            }
            let Err(error) = unmounter.unmount() else {
                return true;
            };
            tracing::info!("{} is in use ({error}): detaching it", dir.display());
            if let Err(error) = place::detach(&dir) {
                tracing::error!("{} stays mounted: {error}", dir.display());
            }
            false
        });
        if !unmounting.await.unwrap_or(false) {
            vfs.flush_all().await;
            vfs.backend().close().await;
            std::process::exit(0);
        }
    });
}
