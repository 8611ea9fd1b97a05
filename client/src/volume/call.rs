//! Requests to one set with what stands in their way removed, and changes of names over one or several sets.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use mortar_protocol::attr::{Attr, Cred, Time};
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Fop, Reply, TxnStatus};
use mortar_protocol::ids::{SetIndex, TxnId};
use tokio::sync::Notify;

use super::Volume;
use super::txn::{Resolve, Shares, Step, Txn, resolve};
use super::types::Res;
use crate::remote::{Answered, How, Set};

/// How often an intent in the way is looked at before the request ends with EBUSY.
const LOOKS: usize = 200;

/// Something to be looked at between the first preparation and the rest.
pub(super) type Check<'a> = Pin<Box<dyn Future<Output = Res<()>> + Send + 'a>>;

/// Transactions that are decided and not finished everywhere.
#[derive(Default)]
pub(super) struct Finishing {
    running: AtomicUsize,
    ended: Notify,
}

/// One of them, until it is dropped.
struct Running(Arc<Finishing>);

impl Running {
    fn of(all: &Arc<Finishing>) -> Self {
        all.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(all))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_waiters();
    }
}

impl Finishing {
    /// Until there is none.
    pub(super) async fn all(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.running.load(Ordering::Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// An answer that does not belong to its request.
pub(super) fn unexpected(reply: &Reply) -> Errno {
    tracing::warn!(?reply, "a server's answer is not one to the question");
    Errno::EIO
}

impl Volume {
    /// Asks a set; intents in the way are waited for or resolved.
    pub(super) async fn ask(
        &self,
        set: &Set,
        fop: Fop,
        how: How,
        body: Bytes,
    ) -> Result<Answered, Fault> {
        let mut call = set.request(fop, how);
        for _ in 0..LOOKS {
            match set.run(&mut call, &body).await {
                Err(Fault::Intent {
                    txn,
                    decider,
                    age_ms,
                }) => self.clear(set, txn, decider, age_ms).await?,
                outcome => return outcome,
            }
        }
        Err(Fault::Refused(Errno::EBUSY))
    }

    /// Asks for something that is only read.
    pub(super) async fn look(&self, set: &Set, fop: Fop) -> Res<Answered> {
        self.ask(set, fop, How::default(), Bytes::new())
            .await
            .map_err(|fault| fault.errno())
    }

    /// Finishes or aborts a transaction whose intent is in the way on `set`, or waits a little.
    pub(super) async fn clear(
        &self,
        set: &Set,
        txn: TxnId,
        decider: SetIndex,
        age_ms: u32,
    ) -> Result<(), Fault> {
        let deciding = self.set(decider);
        let mut status = self.txn_status(&deciding, Fop::TxnState { txn }).await?;
        loop {
            match resolve(&status, age_ms) {
                Resolve::Finish => return self.txn_step(set, Fop::Finish { txn }).await,
                Resolve::Drop => return self.txn_step(set, Fop::Abort { txn }).await,
                Resolve::Wait(span) => {
                    self.env().sleep(span).await;
                    return Ok(());
                }
                Resolve::AskAbort => {
                    status = self.txn_status(&deciding, Fop::Abort { txn }).await?;
                    if status == TxnStatus::Unknown {
                        return Err(Fault::Protocol);
                    }
                }
            }
        }
    }

    async fn txn_status(&self, set: &Set, fop: Fop) -> Result<TxnStatus, Fault> {
        let durable = !fop.is_read();
        let mut call = set.request(
            fop,
            How {
                durable,
                ..How::default()
            },
        );
        match set.run(&mut call, &Bytes::new()).await?.reply {
            Reply::Txn(status) => Ok(status),
            other => Err(unexpected(&other).into()),
        }
    }

    pub(super) async fn txn_step(&self, set: &Set, fop: Fop) -> Result<(), Fault> {
        let durable = !matches!(fop, Fop::Forget { .. });
        let mut call = set.request(
            fop,
            How {
                durable,
                ..How::default()
            },
        );
        set.run(&mut call, &Bytes::new()).await.map(drop)
    }

    /// Changes names: one entry if one set is concerned, else a transaction. Gives the attributes of inodes on the set
    /// that decided. `first` names the set to prepare before `check` is made.
    pub(super) async fn commit(
        &self,
        shares: Shares,
        cred: &Cred,
        time: Time,
        first: Option<(SetIndex, Check<'_>)>,
    ) -> Result<Vec<Attr>, Fault> {
        let how = How {
            cred: cred.clone(),
            durable: false,
        };
        if shares.len() == 1
            && let Some((index, parts)) = shares.iter().next()
        {
            if let Some((_, check)) = first {
                check.await?;
            }
            let parts = parts.clone();
            let fop = Fop::Commit { parts, time };
            return self.parts(&self.set(*index), fop, how).await;
        }
        let (lead, mut check) = match first {
            Some((set, check)) => (Some(set), Some(check)),
            None => (None, None),
        };
        let how = How {
            durable: true,
            ..how
        };
        let mut txn = Txn::new(self.0.cluster.txn_id(), shares, lead);
        let mut attrs = Vec::new();
        loop {
            match txn.next() {
                Step::Prepare(index) => {
                    let fop = Fop::Prepare {
                        txn: txn.id,
                        decider: txn.decider,
                        parts: txn.share(index),
                        time,
                    };
                    let set = self.set(index);
                    let prepared = self.ask(&set, fop, how.clone(), Bytes::new()).await;
                    txn.on_prepared(prepared.map(drop));
                    if lead == Some(index)
                        && matches!(txn.next(), Step::Prepare(_) | Step::Decide)
                        && let Some(check) = check.take()
                        && let Err(errno) = check.await
                    {
                        txn.give_up(errno.into());
                    }
                }
                Step::Decide => {
                    let fop = Fop::Decide {
                        txn: txn.id,
                        sets: txn.others().to_vec(),
                        parts: txn.share(txn.decider),
                        time,
                    };
                    let decided = self.parts(&self.set(txn.decider), fop, how.clone()).await;
                    txn.on_decided(decided.map(|told| attrs = told));
                }
                Step::Abort(sets, fault) => {
                    let aborts = sets.into_iter().map(|index| async move {
                        self.txn_step(&self.set(index), Fop::Abort { txn: txn.id })
                            .await
                    });
                    // What cannot be told now is resolved by whoever meets it.
                    join_all(aborts).await;
                    return Err(fault);
                }
                Step::Finish(sets) => {
                    self.finish_later(&txn, sets);
                    return Ok(attrs);
                }
                Step::Unknown(fault) => return Err(fault),
            }
        }
    }

    async fn parts(&self, set: &Set, fop: Fop, how: How) -> Result<Vec<Attr>, Fault> {
        let sent = self.env().now();
        match self.ask(set, fop, how, Bytes::new()).await?.reply {
            Reply::Parts(attrs) => {
                let size = self.shard_size();
                if !self.is_distributed() {
                    attrs.iter().for_each(|attr| self.0.dirs.saw(attr, sent));
                }
                attrs
                    .iter()
                    .for_each(|attr| self.0.files.changed(attr, size));
                Ok(attrs)
            }
            other => Err(unexpected(&other).into()),
        }
    }

    /// The outcome is certain; the other sets learn it in the background, or by whoever meets the intent.
    fn finish_later(&self, txn: &Txn, sets: Vec<SetIndex>) {
        let (volume, id, decider) = (self.clone(), txn.id, txn.decider);
        let running = Running::of(&self.0.finishing);
        self.env().spawn(Box::pin(async move {
            let _running = running;
            let finishes = sets.into_iter().map(|index| {
                let volume = volume.clone();
                async move {
                    volume
                        .txn_step(&volume.set(index), Fop::Finish { txn: id })
                        .await
                }
            });
            let done = join_all(finishes).await;
            if done.iter().all(Result::is_ok) {
                let set = volume.set(decider);
                if let Err(fault) = volume.txn_step(&set, Fop::Forget { txn: id }).await {
                    tracing::debug!(?fault, "the record of a transaction stays for a while");
                }
            }
        }));
    }
}
