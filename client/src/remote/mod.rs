//! One volume's servers as a client sees them: the control plane ([`Cluster`]) and its sets ([`Set`]).
//!
//! A [`Set`] takes a file operation to whoever can do it and does not come back before it has an answer: lost and
//! late answers are asked for again under the same number, views are looked up, the session is begun where a set does
//! not know it. What comes back is either the answer or a [`Fault`](mortar_protocol::error::Fault) that the layer
//! above must act on. While no server answers, calls wait up to `network.frame-timeout`, then end with ENOTCONN.

mod ask;
mod book;
mod cluster;
mod hedge;
mod hub;
mod lock;
mod marks;
mod numbers;
mod renew;
#[cfg(test)]
pub(crate) mod scripted;
mod servers;
mod session;
mod set;
#[cfg(test)]
mod slow_reads;
mod stage;
#[cfg(test)]
mod tests;
mod tries;

pub use cluster::{Cluster, ConnectError, OpenCheck};
pub use marks::{Marks, Told};
pub use renew::{LockLoss, Renewal};
pub use servers::Resolve;
pub use set::{Answered, How, Set, SetState};
pub use stage::Piece;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use mortar_protocol::env::Env;

/// What comes first: the future's output, or `None` after `span`.
pub(crate) async fn within<F: Future>(
    env: &Arc<dyn Env>,
    span: Duration,
    future: F,
) -> Option<F::Output> {
    let future = std::pin::pin!(future);
    match select(future, env.sleep(span)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}
