//! The servers a person named. Where none of them and no known node answers, their names are resolved again: machines
//! get other addresses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mortar_protocol::env::{Env, Mono};
use parking_lot::{Mutex, RwLock};

/// Resolves the names of the servers; gives nothing if it cannot.
pub type Resolve = Arc<dyn Fn() -> BoxFuture<'static, Vec<SocketAddr>> + Send + Sync>;

/// Time between two questions for the same names.
const BETWEEN: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Servers {
    addrs: RwLock<Vec<SocketAddr>>,
    resolve: OnceLock<Resolve>,
    asked: Mutex<Option<Mono>>,
    asking: AtomicBool,
}

impl Servers {
    pub(super) fn new(addrs: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self {
            addrs: RwLock::new(addrs),
            resolve: OnceLock::new(),
            asked: Mutex::default(),
            asking: AtomicBool::new(false),
        })
    }

    /// Says how their names are resolved; the first stays.
    pub(super) fn set_resolve(&self, resolve: Resolve) {
        let _ = self.resolve.set(resolve);
    }

    /// Their addresses.
    pub(super) fn addrs(&self) -> Vec<SocketAddr> {
        self.addrs.read().clone()
    }

    /// Nobody answered: asks for their addresses again, without waiting for the answer.
    pub(super) fn look_up(self: &Arc<Self>, env: &Arc<dyn Env>) {
        let Some(resolve) = self.resolve.get() else {
            return;
        };
        let now = env.now();
        let mut asked = self.asked.lock();
        if asked.is_some_and(|at| now.since(at) < BETWEEN)
            || self.asking.swap(true, Ordering::Relaxed)
        {
            return;
        }
        *asked = Some(now);
        let (servers, found) = (Arc::clone(self), resolve());
        env.spawn(Box::pin(async move {
            servers.found(found.await);
            servers.asking.store(false, Ordering::Relaxed);
        }));
    }

    fn found(&self, addrs: Vec<SocketAddr>) {
        let mut known = self.addrs.write();
        if !addrs.is_empty() && *known != addrs {
            tracing::info!(before = ?*known, now = ?addrs, "the servers' names lead elsewhere");
            *known = addrs;
        }
    }
}
