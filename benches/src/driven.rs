//! A thread that drives a runtime, as the client and each core of the daemon have one.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The thread; ends when dropped.
pub struct Driven {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driven {
    /// Starts a thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(name: &str) -> Result<Self, String> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| err.to_string())?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // The other end is dropped to stop.
                let _ = runtime.block_on(stopped);
            })
            .map_err(|err| err.to_string())?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Its runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs a future on the thread and waits for what it gives.
    ///
    /// # Errors
    /// If it panics.
    pub fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let running = self.handle.spawn(future);
        self.handle.block_on(running).map_err(|err| err.to_string())
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a thread ended by a panic");
        }
    }
}
