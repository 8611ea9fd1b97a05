//! Sending what is held: batches of one inode one after the other, many inodes at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mortar_protocol::attr::{Attr, Cred};
use mortar_protocol::ids::InodeId;
use mortar_protocol::watch::{Wait, last_cause, waits_for};

use super::backend::{Backend, FileOp, Res};
use super::node::Node;
use super::{Core, Handle, MAX_AGE};

/// How often the timer looks for changes held long enough.
const TICK: std::time::Duration = std::time::Duration::from_millis(200);

impl<B: Backend> Core<B> {
    /// Begins to send everything held of an inode.
    pub(super) fn start_flush(self: &Arc<Self>, node: &Arc<Node>) {
        {
            let mut state = node.state.lock();
            state.cut(true, false);
            state.cut_read();
        }
        self.pump(node);
    }

    /// Sends everything held of an inode and waits until all its changes are answered. What went wrong waits at the
    /// handles.
    pub(super) async fn settle(self: &Arc<Self>, node: &Arc<Node>) {
        let (number, _) = node.state.lock().cut(true, false);
        self.pump(node);
        self.wait_for(node, number).await;
    }

    /// The same, if the inode is known here.
    pub(super) async fn settle_id(self: &Arc<Self>, id: InodeId) {
        if let Some(node) = self.node(id) {
            self.settle(&node).await;
        }
    }

    /// Sends everything held of an inode and waits until it, and all before it, is flushed.
    pub(super) async fn flush_durably(self: &Arc<Self>, node: &Arc<Node>) -> Res<()> {
        let (number, covered) = node.state.lock().cut(true, true);
        self.pump(node);
        self.wait_for(node, number).await;
        if covered {
            return Ok(());
        }
        self.backend.fsync(node.id).await
    }

    async fn wait_for(&self, node: &Node, number: u64) {
        loop {
            let mut answered = std::pin::pin!(node.answered.notified());
            answered.as_mut().enable();
            if node.state.lock().answered(number) {
                return;
            }
            waits_for(Wait::Held);
            answered.await;
        }
    }

    /// Makes sure that a task is sending the inode's batches, if there are any.
    pub(super) fn pump(self: &Arc<Self>, node: &Arc<Node>) {
        {
            let mut state = node.state.lock();
            // Under the lock: a batch whose turn comes meanwhile would be sent a second time, under other names.
            for (number, batch) in state.to_send_ahead() {
                if let Some(sent) = self.backend.send_ahead(node.id, &batch.operations().0) {
                    state.sent_ahead(number, sent);
                }
            }
            if state.pumping || state.sent.is_empty() {
                return;
            }
            state.pumping = true;
        }
        let (core, node) = (self.clone(), node.clone());
        self.env
            .spawn(Box::pin(async move { core.run_pump(node).await }));
    }

    async fn run_pump(self: Arc<Self>, node: Arc<Node>) {
        loop {
            let (batch, cred, durable) = {
                let mut state = node.state.lock();
                let Some(next) = state.sent.front_mut() else {
                    state.pumping = false;
                    break;
                };
                next.started = true;
                (next.batch.clone(), next.cred.clone(), next.durable)
            };
            let (ops, time) = batch.operations();
            let only_read = batch.only_accessed();
            drop(batch);
            let result = self.backend.change(cred, node.id, ops, time, durable).await;
            self.recent.has_changed();
            let now = self.now();
            let (bytes, drop_pages) = {
                let mut state = node.state.lock();
                match result {
                    Ok(changed) => state.batch_ends(changed, now),
                    Err(errno) if only_read => {
                        tracing::debug!(inode = %node.id, ?errno, "atime stays");
                        state.read_failed();
                        (0, false)
                    }
                    Err(errno) => {
                        let cause = last_cause().unwrap_or_default();
                        tracing::warn!(inode = %node.id, ?errno, cause, "held changes were refused and are lost");
                        (state.batch_failed(errno), true)
                    }
                }
            };
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            if result.is_err() && !only_read {
                self.recent.forget(node.id);
            }
            if drop_pages {
                self.invalidate(node.id);
            }
            node.answered.notify_waiters();
            self.room.notify_waiters();
        }
        self.forget_if_idle(&node);
    }

    /// Makes a change at once, after everything held of the inode has been answered. Gives the attributes to show.
    pub(super) async fn change_now(
        self: &Arc<Self>,
        cred: Cred,
        id: InodeId,
        ops: Vec<FileOp>,
        sync: bool,
    ) -> Res<Attr> {
        let time = self.env.wall();
        let Some(node) = self.node(id) else {
            let changed = self.backend.change(cred, id, ops, time, sync).await?;
            self.recent.changed(&changed, self.now());
            return self.settled_attr(changed.attr).await;
        };
        self.settle(&node).await;
        node.state.lock().direct_begins();
        let result = self.backend.change(cred, id, ops, time, sync).await;
        self.direct_answered(&node, result)
    }

    /// A change that was announced with `direct_begins` is answered.
    pub(super) fn direct_answered(
        self: &Arc<Self>,
        node: &Arc<Node>,
        result: Res<super::Changed>,
    ) -> Res<Attr> {
        let (shown, drop_pages) = {
            let mut state = node.state.lock();
            let drop_pages = state.direct_ends(result, self.now());
            (state.shown(), drop_pages)
        };
        if drop_pages {
            self.invalidate(node.id);
        }
        match &result {
            Ok(changed) => self.recent.changed(changed, self.now()),
            Err(_) => self.recent.forget(node.id),
        }
        self.forget_if_idle(node);
        let changed = result?;
        Ok(shown.map_or(changed.attr, |(attr, _)| attr))
    }

    /// Bytes were added to what is held of an inode: starts the timer, and sends what fills a part of the window.
    pub(super) fn held_more(self: &Arc<Self>, node: &Arc<Node>, bytes: usize, first: bool) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let full = {
            let mut state = node.state.lock();
            let full = state.held.bytes() >= self.tuning.window() / 4;
            if full {
                state.cut(false, false);
            }
            full || !state.sent.is_empty()
        };
        if full {
            self.pump(node);
        }
        if first {
            self.send_later(node);
        }
    }

    /// Has the timer send what an inode holds.
    fn send_later(self: &Arc<Self>, node: &Arc<Node>) {
        let mut dirty = self.dirty.lock();
        dirty.nodes.push(Arc::downgrade(node));
        if !dirty.ticking {
            dirty.ticking = true;
            let core = self.clone();
            self.env.spawn(Box::pin(async move { core.tick().await }));
        }
    }

    /// A file was read: its atime moves, if reads move it.
    pub(super) fn was_read(self: &Arc<Self>, handle: &Handle) {
        if !self.tuning.atime() || handle.no_atime {
            return;
        }
        let (time, now) = (self.env.wall(), self.now());
        let tell = handle.node.state.lock().read(&handle.cred, time, now);
        if tell {
            self.send_later(&handle.node);
        }
    }

    /// Sends what was held for long enough, until nothing is held.
    async fn tick(self: Arc<Self>) {
        loop {
            self.env.sleep(TICK).await;
            let now = self.now();
            let mut due = Vec::new();
            let last = {
                let mut dirty = self.dirty.lock();
                dirty.nodes.retain(|node| {
                    let Some(node) = node.upgrade() else {
                        return false;
                    };
                    let since = node.state.lock().waits_since();
                    match since {
                        Some(since) if now.since(since) + TICK >= MAX_AGE => {
                            due.push(node);
                            false
                        }
                        since => since.is_some(),
                    }
                });
                dirty.ticking = !dirty.nodes.is_empty();
                !dirty.ticking
            };
            for node in &due {
                self.start_flush(node);
            }
            if last {
                return;
            }
        }
    }

    /// Waits until more may be held of `node`: `bytes` more, within its window and the client's bound.
    pub(super) async fn wait_for_room(self: &Arc<Self>, node: &Arc<Node>, bytes: usize) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if self.has_room(node, bytes) {
                return;
            }
            self.start_flush(node);
            if self.held.load(Ordering::Relaxed) + bytes > super::MAX_HELD {
                let all: Vec<Arc<Node>> = self.nodes.lock().values().cloned().collect();
                all.iter().for_each(|node| self.start_flush(node));
            }
            waits_for(Wait::HeldRoom);
            room.await;
        }
    }

    /// Whether `bytes` more may be held of `node`.
    pub(super) fn has_room(&self, node: &Node, bytes: usize) -> bool {
        let own = node.state.lock().bytes();
        let all = self.held.load(Ordering::Relaxed);
        (own == 0 || own + bytes <= self.tuning.window())
            && (all == 0 || all + bytes <= super::MAX_HELD)
    }
}
