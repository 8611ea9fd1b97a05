//! A core thread: one tokio runtime that drives a [`Core`] of bricks and, on the first one, the UDP port.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mortar_protocol::env_real::{mono_now, wall_now};
use mortar_protocol::peer::PeerFrame;
use mortar_protocol::report::FromBrick;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::brick::{Completions, Core, Message, Outbox, PendingBudget, Rules};

/// The core is run at least this often.
const TICK: Duration = Duration::from_millis(100);

/// Takes what the bricks of a core send out. Called on the core's thread; must not block.
pub trait Post: Send + Sync + 'static {
    /// A message to a brick of another core or node.
    fn send_peer(&self, frame: PeerFrame);
    /// A report to the control plane.
    fn report(&self, report: FromBrick);
}

/// What waits for a core.
#[derive(Default)]
struct Inbox {
    messages: Mutex<Vec<Message>>,
    wake: Notify,
}

/// A running core.
pub struct CoreThread {
    inbox: Arc<Inbox>,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for CoreThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CoreThread")
    }
}

impl CoreThread {
    /// Starts a core without bricks.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        number: usize,
        rules: Arc<dyn Rules>,
        budget: Arc<PendingBudget>,
        post: Arc<dyn Post>,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let inbox = Arc::new(Inbox::default());
        let (stop, stopped) = oneshot::channel();
        let own = Arc::clone(&inbox);
        let thread = std::thread::Builder::new()
            .name(format!("mortar-core-{number}"))
            .spawn(move || runtime.block_on(drive(own, rules, budget, post, stopped)))?;
        Ok(Self {
            inbox,
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The core's runtime.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Gives the core a message; from any thread.
    pub fn push(&self, message: Message) {
        self.inbox.messages.lock().push(message);
        self.inbox.wake.notify_one();
    }

    /// Ends the thread after what it was given; its bricks are let go.
    pub fn join(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a core thread ended by a panic");
        }
    }
}

/// Hands the core's output on.
struct Out<'a>(&'a dyn Post);

impl Outbox for Out<'_> {
    fn send_peer(&mut self, frame: PeerFrame) {
        self.0.send_peer(frame);
    }

    fn report(&mut self, report: FromBrick) {
        self.0.report(report);
    }
}

async fn drive(
    inbox: Arc<Inbox>,
    rules: Arc<dyn Rules>,
    budget: Arc<PendingBudget>,
    post: Arc<dyn Post>,
    mut stopped: oneshot::Receiver<()>,
) {
    let waker = Arc::clone(&inbox);
    let completions = Completions::new(Box::new(move || waker.wake.notify_one()));
    let mut core = Core::new(rules, Arc::clone(&completions), budget);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        let ends = tokio::select! {
            biased;
            () = inbox.wake.notified() => false,
            _ = tick.tick() => false,
            _ = &mut stopped => true,
        };
        std::mem::swap(&mut batch, &mut *inbox.messages.lock());
        for message in batch.drain(..) {
            core.push(message);
        }
        if core.run(mono_now(), wall_now(), &mut Out(&*post)) {
            inbox.wake.notify_one();
        }
        if ends {
            return;
        }
    }
}
