//! Bulk data, ahead of the entry that attaches it: once to every node that has members of the set.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Request, Stage, StageAnswer};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::StageId;
use mortar_protocol::watch::{Wait, fails_because, waits_for};
use std::time::Duration;

use super::set::Set;
use super::tries::Tries;
use super::within;

/// Time for one piece to one node.
const TRY: Duration = Duration::from_secs(10);

/// One piece of bulk data: whole blocks.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its name.
    pub stage: StageId,
    /// The bytes.
    pub data: Bytes,
}

impl Set {
    /// A name for a piece.
    pub fn stage_id(&self) -> StageId {
        self.hub.stage_id()
    }

    /// Sends pieces to all members; done when each has reached at least one (the others pull it).
    ///
    /// # Errors
    /// [`Fault::NoStage`] if the session has ended meanwhile: name the pieces anew. Else what the bricks say, or
    /// ENOTCONN.
    pub async fn stage(&self, pieces: &[Piece]) -> Result<(), Fault> {
        let mut tries = Tries::new(self.hub.env.now());
        if !self.is_begun() {
            self.begin(&mut tries).await?;
        }
        loop {
            match self.stage_once(pieces).await {
                Ok(()) => return Ok(()),
                Err(None) => self.pause(&mut tries, true).await?,
                Err(Some(Fault::UnknownSession)) => {
                    self.pause(&mut tries, false).await?;
                    self.begin(&mut tries).await?;
                    let session = self.hub.session();
                    if pieces.iter().any(|piece| piece.stage.session != session) {
                        return Err(Fault::NoStage);
                    }
                }
                Err(Some(
                    Fault::NotServing
                    | Fault::UnknownBrick
                    | Fault::NotPrimary(_)
                    | Fault::StaleView(_),
                )) => self.pause(&mut tries, false).await?,
                // The bricks wait for space that is being given back.
                Err(Some(Fault::Refused(Errno::EAGAIN))) => self.pause(&mut tries, true).await?,
                Err(Some(fault)) => {
                    fails_because(|| {
                        format!("set {} did not take its data: {fault:?}", self.index().0)
                    });
                    return Err(fault);
                }
            }
        }
    }

    /// `Err(None)`: no node answered for some piece.
    async fn stage_once(&self, pieces: &[Piece]) -> Result<(), Option<Fault>> {
        let targets = self.stage_targets();
        if targets.is_empty() {
            return Err(None);
        }
        let mut sent = FuturesUnordered::new();
        for (at, piece) in pieces.iter().enumerate() {
            for target in &targets {
                let stage = Stage {
                    stage: piece.stage,
                    bricks: target.bricks.clone(),
                };
                let frame = Frame::new(&Request::Stage(stage), piece.data.clone())
                    .map_err(|_| Some(Fault::Protocol))?;
                let call = self.hub.transport.call(target.node, &target.addrs, frame);
                sent.push(async move { (at, within(&self.hub.env, TRY, call).await) });
            }
        }
        waits_for(Wait::Answer(self.index().0));
        let mut kept = vec![false; pieces.len()];
        let mut why = None;
        while let Some((at, outcome)) = sent.next().await {
            let Some(Ok(frame)) = outcome else {
                continue;
            };
            let answer: StageAnswer = frame.message().map_err(|_| Some(Fault::Protocol))?;
            self.is_alive();
            for result in answer.results {
                match result {
                    Ok(()) => kept[at] = true,
                    Err(fault) => why = Some(fault),
                }
            }
        }
        if kept.iter().all(|kept| *kept) {
            Ok(())
        } else {
            Err(why)
        }
    }
}
