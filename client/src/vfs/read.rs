//! Reads of open files: from what is held or was read ahead, else from the servers.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::FutureExt;
use mortar_protocol::error::Errno;
use mortar_protocol::ids::InodeId;

use super::ahead::{Plan, assemble, ready};
use super::backend::{Backend, Res};
use super::held::Local;
use super::node::Node;
use super::{Core, Handle, Vfs};

impl<B: Backend> Vfs<B> {
    /// Data from what is known here.
    pub fn try_read(&self, handle: u64, offset: u64, len: u32) -> Option<Res<Bytes>> {
        let core = &self.0;
        let handle = core.handle(handle).ok()?;
        if let Err(errno) = core.usable(&handle.node) {
            return Some(Err(errno));
        }
        let read = core
            .local_read(&handle, offset, len)
            .or_else(|| core.ahead_read(&handle, offset, len));
        if let Some(Ok(_)) = read {
            core.was_read(&handle);
        }
        read
    }

    /// Reads; shorter at the end of the file.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn read(&self, handle: u64, offset: u64, len: u32) -> Res<Bytes> {
        let core = &self.0;
        let handle = core.handle(handle)?;
        let data = self.read_range(&handle, offset, len).await?;
        core.was_read(&handle);
        Ok(data)
    }

    async fn read_range(&self, handle: &Arc<Handle>, offset: u64, len: u32) -> Res<Bytes> {
        let core = &self.0;
        let node = handle.node.clone();
        core.usable(&node)?;
        if let Some(result) = core.local_read(handle, offset, len) {
            return result;
        }
        let (overlaps, len) = {
            let state = node.state.lock();
            let local = state.read_local(offset, len, core.now(), core.fresh());
            let overlaps = state.unanswered() && local != Local::Nothing;
            match state.shown() {
                // A held truncation hides what the servers still have.
                Some((attr, _)) if state.unanswered() && !overlaps => {
                    let left = attr.size.saturating_sub(offset);
                    (false, u64::from(len).min(left) as u32)
                }
                _ => (overlaps, len),
            }
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        if overlaps {
            core.settle(&node).await;
        }
        core.plan_ahead(handle, offset, len);
        if let Some(data) = core.wait_ahead(handle, offset, len).await {
            return data;
        }
        core.backend.read(node.id, offset, len).await
    }

    /// Reads what the servers have now, past everything known here (O_DIRECT).
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn read_direct(&self, handle: u64, offset: u64, len: u32) -> Res<Bytes> {
        let handle = self.0.handle(handle)?;
        self.0.usable(&handle.node)?;
        self.0.settle(&handle.node).await;
        let data = self.0.backend.read(handle.node.id, offset, len).await?;
        self.0.was_read(&handle);
        Ok(data)
    }
}

impl<B: Backend> Core<B> {
    /// Data from held changes and a small file's contents.
    fn local_read(&self, handle: &Handle, offset: u64, len: u32) -> Option<Res<Bytes>> {
        let (now, fresh) = (self.now(), self.fresh());
        let state = handle.node.state.lock();
        if let Some(data) = state.read_contents(offset, len, now, fresh) {
            return Some(Ok(data));
        }
        if !state.unanswered() {
            return None;
        }
        match state.read_local(offset, len, now, fresh) {
            Local::Full(data) => Some(Ok(data.into())),
            _ => None,
        }
    }

    /// Whether nothing held stands between a range and the servers' data; with the data's version and the size.
    fn plain_range(&self, node: &Node, offset: u64, len: u32) -> Option<(u64, u64)> {
        let state = node.state.lock();
        let (attr, _) = state.shown()?;
        let plain = !state.unanswered()
            || state.read_local(offset, len, self.now(), self.fresh()) == Local::Nothing;
        plain.then_some((state.version(), attr.size))
    }

    /// Data that was read ahead and has arrived. Also plans more.
    fn ahead_read(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        offset: u64,
        len: u32,
    ) -> Option<Res<Bytes>> {
        let (version, size) = self.plain_range(&handle.node, offset, len)?;
        let end = (offset + u64::from(len)).min(size);
        let parts = handle.ahead.lock().covering(offset, end, version)?;
        let parts = ready(&parts)?.ok()?;
        let data = assemble(&parts, offset, end, self.now(), self.fresh())?;
        self.plan_ahead(handle, offset, len);
        Some(Ok(data))
    }

    /// Waits for what was asked ahead, if it covers the range.
    async fn wait_ahead(&self, handle: &Handle, offset: u64, len: u32) -> Option<Res<Bytes>> {
        let (version, size) = self.plain_range(&handle.node, offset, len)?;
        let end = (offset + u64::from(len)).min(size);
        let waiting = handle.ahead.lock().covering(offset, end, version)?;
        let mut parts = Vec::with_capacity(waiting.len());
        for (start, reading) in waiting {
            let (data, at) = reading.await.ok()?;
            parts.push((start, data, at));
        }
        if handle.node.state.lock().version() != version {
            return None;
        }
        assemble(&parts, offset, end, self.now(), self.fresh()).map(Ok)
    }

    /// Notes a read and asks for what will be wanted next.
    fn plan_ahead(self: &Arc<Self>, handle: &Handle, offset: u64, len: u32) {
        if !self.options.read_ahead {
            return;
        }
        let Some((version, size)) = self.plain_range(&handle.node, offset, len) else {
            return;
        };
        let mut ahead = handle.ahead.lock();
        for plan in ahead.plan(offset, u64::from(len), size, version) {
            let reading = self.clone().read_plan(handle.node.id, plan);
            let Some(reading) = ahead.add(plan, version, &self.budget, Box::pin(reading)) else {
                break;
            };
            self.env.spawn(Box::pin(reading.map(drop)));
        }
    }

    async fn read_plan(
        self: Arc<Self>,
        id: InodeId,
        plan: Plan,
    ) -> Result<(Bytes, mortar_protocol::env::Mono), Errno> {
        let data = self.backend.read(id, plan.offset, plan.len as u32).await?;
        Ok((data, self.now()))
    }
}
