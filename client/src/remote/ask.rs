//! Whom a set's requests are sent to, and how the answer is fetched: from the primary, or for reads from whichever
//! member answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use mortar_protocol::env::Mono;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Answer, Call, Fop};
use mortar_protocol::frame::{Frame, FrameError};
use mortar_protocol::ids::{BrickId, Epoch, NodeId};
use mortar_protocol::transport::Lost;
use mortar_protocol::view::Member;
use mortar_protocol::watch::{Wait, waits_for};
use serde::Serialize;

use super::hedge::any_member_answers;
use super::set::{Inner, Set};
use super::within;

/// Where a request goes.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) brick: BrickId,
    node: NodeId,
    pub(super) addrs: Arc<[SocketAddr]>,
    epoch: Epoch,
}

/// A request's way: to whom, since when, and, if any member could answer it, when another one is asked too.
pub(super) struct Way {
    pub(super) to: Target,
    primary: BrickId,
    since: Mono,
    patience: Option<Duration>,
}

/// Encodes as a `Request::Fop` without owning the call.
#[derive(Serialize)]
enum RequestRef<'a> {
    Fop(&'a Call),
}

/// What came of asking; `None`: nothing in time.
type Outcome = Option<Result<Frame, Lost>>;

impl Set {
    /// Takes up whom requests go to, as the view says.
    pub(super) fn retarget(&self, inner: &mut Inner) {
        inner.target = inner.view.as_ref().and_then(|view| {
            let primary = view.primary_member()?;
            self.target(primary, view.epoch)
        });
    }

    fn target(&self, member: &Member, epoch: Epoch) -> Option<Target> {
        Some(Target {
            brick: member.brick,
            node: member.node,
            addrs: self.hub.addrs(member.node)?,
            epoch,
        })
    }

    /// Where the request goes now, filled into it.
    pub(super) fn aim(&self, call: &mut Call, not: &[BrickId]) -> Option<Way> {
        let since = self.hub.env.now();
        let mut inner = self.inner.lock();
        let mut to = inner.target.clone()?;
        let (primary, mut patience) = (to.brick, None);
        if not.contains(&primary) {
            let other = |member: &&Member| member.keeps_data && !not.contains(&member.brick);
            let member = inner.view.as_ref()?.members.iter().find(other)?;
            to = self.target(member, to.epoch)?;
        } else if any_member_answers(&call.fop) {
            patience = Some(inner.reads.patience());
            let instead = inner.reads.instead_of(primary, since);
            let member = instead.and_then(|brick| inner.view.as_ref()?.member(brick));
            let member = member.filter(|member| member.keeps_data);
            if let Some(other) = member.and_then(|member| self.target(member, to.epoch)) {
                to = other;
            }
        }
        call.answered_below = inner.numbers.answered_below();
        call.brick = to.brick;
        call.epoch = to.epoch;
        Some(Way {
            to,
            primary,
            since,
            patience,
        })
    }

    /// Another member that is to be asked what `way` does not answer.
    fn aim_too(&self, way: &Way) -> Option<Target> {
        let mut inner = self.inner.lock();
        let Inner { view, reads, .. } = &mut *inner;
        let view = view.as_ref().filter(|view| view.epoch == way.to.epoch)?;
        let keeps = view.members.iter().filter(|member| member.keeps_data);
        let second = reads.second(way.to.brick, keeps.map(|member| member.brick))?;
        self.target(view.member(second)?, view.epoch)
    }

    /// Sends a request on its way and waits for `time`.
    pub(super) async fn ask(
        &self,
        call: &mut Call,
        body: &Bytes,
        way: &mut Way,
        time: Duration,
    ) -> Result<Outcome, Fault> {
        let frame = encode(call, body)?;
        let mut sent = self.hub.transport.call(way.to.node, &way.to.addrs, frame);
        waits_for(match call.fop {
            Fop::LockWait(_) => Wait::Lock,
            _ => Wait::Answer(self.index().0),
        });
        let env = &self.hub.env;
        let Some(patience) = way.patience.filter(|patience| *patience < time) else {
            return Ok(within(env, time, sent).await);
        };
        let mut outcome = within(env, patience, &mut sent).await;
        if outcome.is_none() {
            let left = time - patience;
            outcome = match self.aim_too(way) {
                Some(other) => {
                    call.brick = other.brick;
                    let frame = encode(call, body)?;
                    let second = self.hub.transport.call(other.node, &other.addrs, frame);
                    let since = env.now();
                    tracing::debug!(
                        set = self.index().0,
                        slow = %way.to.brick,
                        other = %other.brick,
                        fop = call.fop.name(),
                        "another member is asked too"
                    );
                    match within(env, left, first_good(sent, second)).await {
                        Some((outcome, true)) => {
                            self.overtaken(way, other, since);
                            Some(outcome)
                        }
                        first => first.map(|(outcome, _)| outcome),
                    }
                }
                None => within(env, left, sent).await,
            };
        }
        if way.to.brick != way.primary && !outcome.as_ref().is_some_and(is_good) {
            self.inner.lock().reads.refused(way.to.brick);
        }
        Ok(outcome)
    }

    /// The member that was asked second answered first.
    fn overtaken(&self, way: &mut Way, by: Target, since: Mono) {
        let now = self.hub.env.now();
        let mut inner = self.inner.lock();
        inner
            .reads
            .overtaken(way.to.brick, by.brick, way.primary, now);
        way.to = by;
        way.since = since;
    }

    /// A request was answered.
    pub(super) fn answered(inner: &mut Inner, way: &Way, now: Mono) {
        if way.patience.is_some() {
            inner.reads.answered(way.to.brick, now.since(way.since));
        }
    }
}

/// The outcome of the first of two requests that says something, and whether it is the second's. If neither does, the
/// first's.
async fn first_good<F>(one: F, two: F) -> (Result<Frame, Lost>, bool)
where
    F: Future<Output = Result<Frame, Lost>> + Unpin,
{
    match select(one, two).await {
        Either::Left((outcome, _)) if is_good(&outcome) => (outcome, false),
        Either::Left((outcome, two)) => match two.await {
            late if is_good(&late) => (late, true),
            _ => (outcome, false),
        },
        Either::Right((outcome, _)) if is_good(&outcome) => (outcome, true),
        Either::Right((_, one)) => (one.await, false),
    }
}

/// Whether this is the set's answer, and not one member's word that it has none.
fn is_good(outcome: &Result<Frame, Lost>) -> bool {
    let Ok(frame) = outcome else { return false };
    let answer = frame.message::<Answer>();
    answer.is_ok_and(|answer| {
        !matches!(
            answer.result,
            Err(Fault::NotPrimary(_)
                | Fault::NotServing
                | Fault::UnknownBrick
                | Fault::UnknownSession
                | Fault::StaleView(_)
                | Fault::Corrupt)
        )
    })
}

fn encode(call: &Call, body: &Bytes) -> Result<Frame, Fault> {
    Frame::new(&RequestRef::Fop(call), body.clone()).map_err(|error| match error {
        FrameError::HeadTooLong(_) | FrameError::BodyTooLong(_) => Fault::Refused(Errno::E2BIG),
        _ => Fault::Protocol,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::attr::Cred;
    use mortar_protocol::fop::Request;
    use mortar_protocol::ids::{InodeId, SessionId};

    #[test]
    fn a_borrowed_request_encodes_as_an_owned_one() {
        let call = Call {
            brick: BrickId(5),
            epoch: Epoch(3),
            session: SessionId(9),
            number: 7,
            answered_below: 6,
            repeat: true,
            after: 2,
            cred: Cred::default(),
            durable: true,
            fop: Fop::GetAttr { id: InodeId::ROOT },
        };
        let owned = Frame::new(&Request::Fop(call.clone()), Bytes::new()).unwrap();
        assert_eq!(encode(&call, &Bytes::new()).unwrap(), owned);
    }
}
