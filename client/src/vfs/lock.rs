//! Locks: taken at the inode's set, waited for in turns so that a caller with a signal can leave.

use std::time::Duration;

use mortar_protocol::attr::{Attr, Cred};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{LockHeld, LockKind, LockOutcome, LockRequest};

use super::Vfs;
use super::backend::{Backend, Res};
use super::node::Node;

/// How often a waiting call looks whether its caller still waits.
const LOOK: Duration = Duration::from_millis(500);

/// Whoever waits for a lock.
pub trait Waiter: Send {
    /// Whether it has a signal to attend to, or is gone.
    fn wants_to_leave(&self) -> bool;
}

impl<B: Backend> Vfs<B> {
    /// The lock that would conflict.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn test_lock(&self, cred: Cred, request: LockRequest) -> Res<Option<LockHeld>> {
        self.0.backend.lock_test(cred, request).await
    }

    /// Takes or releases a lock; waits if the request says so.
    ///
    /// # Errors
    ///
    /// EAGAIN if another holds it and the request does not wait; EIO if the file's locks are lost; EINTR if the waiter left; those of the volume.
    pub async fn lock(
        &self,
        cred: Cred,
        mut request: LockRequest,
        waiter: &impl Waiter,
    ) -> Res<()> {
        let core = &self.0;
        // flock(LOCK_UN) comes as a call that waits; to a set, that would withdraw a queued request instead.
        request.wait &= request.kind != LockKind::Unlock;
        core.settle_id(request.id).await;
        loop {
            if let Some(node) = core.node(request.id)
                && request.kind != LockKind::Unlock
                && node.state.lock().lost_locks(core.backend.session())
            {
                return Err(Errno::EIO);
            }
            let (outcome, attr) = core.backend.lock(cred.clone(), request.clone()).await?;
            match outcome {
                LockOutcome::Busy => return Err(Errno::EAGAIN),
                LockOutcome::Granted => {
                    self.granted(&request, attr).await;
                    return Ok(());
                }
                LockOutcome::Queued => {}
            }
            if let Some(done) = self.wait_lock(&cred, &request, waiter).await {
                return done;
            }
        }
    }

    /// Waits for a queued request. `None`: it is not queued any more, for the set opened without it or the session
    /// has ended.
    async fn wait_lock(
        &self,
        cred: &Cred,
        request: &LockRequest,
        waiter: &impl Waiter,
    ) -> Option<Res<()>> {
        let core = &self.0;
        let wait = || Box::pin(core.backend.lock_wait(cred.clone(), request.clone()));
        let mut waiting = wait();
        loop {
            let look = core.env.sleep(LOOK);
            match futures_util::future::select(waiting, look).await {
                futures_util::future::Either::Left((Ok((outcome, attr)), _)) => {
                    match outcome {
                        LockOutcome::Granted => {
                            self.granted(request, attr).await;
                            return Some(Ok(()));
                        }
                        LockOutcome::Busy if waiter.wants_to_leave() => {
                            return Some(Err(Errno::EINTR));
                        }
                        LockOutcome::Busy => return None,
                        LockOutcome::Queued => {}
                    }
                    waiting = wait();
                }
                futures_util::future::Either::Left((Err(errno), _)) => return Some(Err(errno)),
                futures_util::future::Either::Right(((), rest)) => waiting = rest,
            }
            if waiter.wants_to_leave() {
                drop(waiting);
                return Some(self.leave_queue(cred, request).await);
            }
        }
    }

    /// Withdraws a queued request, unless it was granted meanwhile.
    async fn leave_queue(&self, cred: &Cred, request: &LockRequest) -> Res<()> {
        let withdraw = LockRequest {
            kind: LockKind::Unlock,
            wait: true,
            ..request.clone()
        };
        let (outcome, _) = self.0.backend.lock(cred.clone(), withdraw).await?;
        if outcome == LockOutcome::Granted {
            // It holds something there. All that was asked for?
            let waited = self.0.backend.lock_wait(cred.clone(), request.clone());
            if let (LockOutcome::Granted, attr) = waited.await? {
                self.granted(request, attr).await;
                return Ok(());
            }
        }
        Err(Errno::EINTR)
    }

    /// Before the caller learns of its lock, pages that another client has outdated go.
    async fn granted(&self, request: &LockRequest, attr: Option<Attr>) {
        let core = &self.0;
        let Some(node) = core.node(request.id) else {
            return;
        };
        let outdated = {
            let mut state = node.state.lock();
            if request.kind == LockKind::Unlock {
                // Other ranges of the owner may still be locked: it is kept until its file is closed.
                false
            } else {
                if state.lock_owners.is_empty() {
                    state.lock_session = core.backend.session();
                }
                state.lock_owners.insert(request.owner);
                match attr {
                    Some(attr) => {
                        state.arrived(attr, core.now());
                        let outdated = state.pages() != Some(attr.change) && !state.unanswered();
                        if outdated {
                            state.forget_pages();
                        }
                        outdated
                    }
                    None => false,
                }
            }
        };
        if outdated && let Some(kernel) = core.kernel.get() {
            kernel.invalidate(request.id).await;
        }
    }

    /// Releases all locks of an owner, as close does.
    pub(super) async fn unlock_all(&self, cred: Cred, node: &Node, owner: u64) {
        {
            let mut state = node.state.lock();
            state.lock_losers.remove(&owner);
            if !state.lock_owners.remove(&owner) {
                return;
            }
        }
        let request = LockRequest {
            id: node.id,
            owner,
            start: 0,
            end: u64::MAX,
            kind: LockKind::Unlock,
            pid: 0,
            wait: false,
        };
        if let Err(errno) = self.0.backend.lock(cred, request).await {
            tracing::warn!(inode = %node.id, ?errno, "locks of a closed file could not be released");
        }
    }
}
