//! Leads while the consensus says so: decides on views of all sets, takes nodes in and out, and takes back what leaders
//! before have left. And brings this node's reports to whichever node leads.

use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::env::Env;
use mortar_protocol::ids::NodeId;
use mortar_protocol::node::{NodeReply, NodeRequest};
use mortar_protocol::report::FromBrick;
use mortar_protocol::transport::Lost;
use tokio::sync::mpsc;

use crate::control::consensus::Standing;
use crate::control::leader::{Leader, Orders};
use crate::control::nodes::Nodes;
use crate::control::operations::Operations;
use crate::control::store::{Control, ControlError};

/// How often sets that wait for members are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Pause before the consensus is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// Most reports in one message.
const BATCH: usize = 64;
/// Reports kept while no node leads; bricks say the important ones again.
const KEPT: usize = 16_384;
/// How long the leader has to take reports.
const REPORT_TIME: Duration = Duration::from_secs(2);

/// Tells how long a node has not been heard of.
pub type Silent = Arc<dyn Fn(NodeId) -> Duration + Send + Sync>;

/// What leading needs.
pub struct Leading {
    /// The control plane.
    pub control: Arc<Control>,
    /// Takes orders to bricks.
    pub orders: Arc<dyn Orders>,
    /// Tells how long a node has not been heard of.
    pub silent: Silent,
    /// Time.
    pub env: Arc<dyn Env>,
    /// Operations.
    pub operations: Arc<Operations>,
    /// Reports for the leader.
    pub reports: mpsc::UnboundedReceiver<FromBrick>,
}

impl Leading {
    /// Leads whenever it is this node's turn, until the consensus fails here.
    ///
    /// # Errors
    /// If the control plane cannot be written any more.
    pub async fn run(mut self) -> Result<(), ControlError> {
        loop {
            let standing = self.standing();
            if let Some(why) = standing.failed {
                return Err(ControlError::Failed(why));
            }
            if standing.leads {
                self.lead(standing.term).await?;
                continue;
            }
            // What was meant for a leader before is said again to the one that is.
            while self.reports.try_recv().is_ok() {}
            if let Some(part) = self.control.consensus() {
                part.standing_after(&standing).await;
            }
        }
    }

    fn standing(&self) -> Standing {
        let consensus = self.control.consensus();
        consensus.map_or_else(Standing::default, |part| part.standing())
    }

    async fn lead(&mut self, term: u64) -> Result<(), ControlError> {
        let Some(part) = self.control.consensus() else {
            return Ok(());
        };
        if part.leads_for_sure().await.is_err() {
            self.env.sleep(PAUSE).await;
            return Ok(());
        }
        tracing::info!(term, "this node leads");
        let operations = Arc::clone(&self.operations);
        if let Err(why) = operations.recover().await {
            tracing::warn!(why, "what was left unfinished could not be taken back yet");
        }
        let tending = tend(operations, Arc::clone(&self.silent), Arc::clone(&self.env));
        let led = tokio::select! {
            biased;
            led = self.decide(term) => led,
            () = tending => Ok(()),
        };
        tracing::info!(term, "this node leads no more");
        led
    }

    /// Decides on views until another node leads.
    async fn decide(&mut self, term: u64) -> Result<(), ControlError> {
        let mut leader = Leader::new(Arc::clone(&self.control), Arc::clone(&self.orders));
        let mut changes = self.control.watch();
        let mut next = self.env.now();
        loop {
            let standing = self.standing();
            if !standing.leads || standing.term != term || standing.failed.is_some() {
                return Ok(());
            }
            let due = next.since(self.env.now());
            let done = tokio::select! {
                biased;
                () = self.env.sleep(due) => {
                    let now = self.env.now();
                    next = now.after(TICK);
                    leader.tick(now).await
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    leader.changed();
                    Ok(())
                }
                report = self.reports.recv() => {
                    let Some(first) = report else { return Ok(()) };
                    let mut reports = vec![first];
                    while let Ok(next) = self.reports.try_recv() {
                        reports.push(next);
                    }
                    leader.reports(reports, self.env.now()).await
                }
            };
            match done {
                Ok(()) => {}
                Err(error @ ControlError::Failed(_)) => return Err(error),
                // Another node leads by now, or none; the next turn finds out.
                Err(error) => tracing::warn!(%error, "a decision was not made"),
            }
        }
    }
}

/// Takes nodes in and out.
async fn tend(operations: Arc<Operations>, silent: Silent, env: Arc<dyn Env>) {
    loop {
        env.sleep(TICK).await;
        if let Err(why) = operations.tend(|node| silent(node)).await {
            tracing::debug!(why, "a step of the membership has to be repeated");
        }
    }
}

/// Brings the reports of this node's bricks to the node that leads.
pub async fn report(
    control: Arc<Control>,
    nodes: Arc<dyn Nodes>,
    env: Arc<dyn Env>,
    mut reports: mpsc::UnboundedReceiver<FromBrick>,
) {
    let mut waiting: Vec<FromBrick> = Vec::new();
    let mut leader: Option<NodeId> = None;
    loop {
        if waiting.is_empty() {
            match reports.recv().await {
                Some(report) => waiting.push(report),
                None => return,
            }
        }
        while let Ok(report) = reports.try_recv() {
            waiting.push(report);
        }
        if waiting.len() > KEPT {
            waiting.drain(..waiting.len() - KEPT);
        }
        leader = leader.or_else(|| control.consensus()?.standing().leader);
        let Some(to) = leader else {
            env.sleep(PAUSE).await;
            continue;
        };
        let batch = waiting[..waiting.len().min(BATCH)].to_vec();
        let count = batch.len();
        match nodes
            .ask(to, NodeRequest::Reports(batch), REPORT_TIME)
            .await
        {
            Ok(NodeReply::Taken) => drop(waiting.drain(..count)),
            Ok(NodeReply::NotLeader(other)) if other != Some(to) => {
                leader = other;
                env.sleep(PAUSE / 10).await;
            }
            Ok(_) | Err(Lost::NotSent | Lost::Unknown | Lost::Rejected) => {
                leader = None;
                env.sleep(PAUSE).await;
            }
        }
    }
}
