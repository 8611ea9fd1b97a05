//! The answering side: what a node says to strangers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::message::{Adoption, Facts, JoinReply, JoinRequest, Prover, Refusal, clean_text};
use super::secret::{Secret, SecretFile};
use super::verdict::{Verdict, may_probe};
use crate::env::{Env, Mono};
use crate::frame::Frame;
use crate::transport::tls::Authority;
use crate::transport::{ReplyTo, Strangers};
use crate::watch::gather::{Gather, and_more};

/// Wrong proofs within [`GUESS_SPAN`] after which none is looked at for the rest of it.
pub(super) const GUESSES: u32 = 5;
/// See [`GUESSES`].
pub(super) const GUESS_SPAN: Duration = Duration::from_secs(60);

/// A node that can be taken into a cluster.
pub trait Candidate: Send + Sync + 'static {
    /// What it says of itself now.
    fn facts(&self) -> Facts;
    /// Becomes a node of a cluster; fit for it by [`Candidate::facts`] a moment ago, and never asked again before it is
    /// done. On an error, which is one line for a person, it must be as it was before.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'static, Result<(), String>>;
}

/// Counts wrong proofs, from anywhere.
#[derive(Default, Debug)]
pub(super) struct Guesses {
    since: Mono,
    wrong: u32,
}

impl Guesses {
    /// Whether proofs are looked at.
    pub(super) fn open(&mut self, now: Mono) -> bool {
        if self.wrong > 0 && now.since(self.since) >= GUESS_SPAN {
            self.wrong = 0;
        }
        self.wrong < GUESSES
    }

    /// A proof was wrong; whether it was the last that is looked at for now.
    pub(super) fn wrong(&mut self, now: Mono) -> bool {
        if self.wrong == 0 {
            self.since = now;
        }
        self.wrong += 1;
        self.wrong >= GUESSES
    }
}

/// What comes of a request.
#[derive(Debug)]
pub(super) enum Judged {
    /// This answer.
    Reply(JoinReply),
    /// The answer comes from the candidate.
    Adopt(Box<Adoption>),
}

/// Decides on a request that has been proven. Pure.
pub(super) fn judge(
    request: JoinRequest,
    prover: &Prover<'_>,
    own: Facts,
    from: SocketAddr,
) -> Judged {
    let (who, adoption) = match request {
        JoinRequest::Hello { who, .. } => return Judged::Reply(prover.greeting(&who, own)),
        JoinRequest::Adopt { who, adoption, .. } => (who, adoption),
    };
    let refused = |refusal| Judged::Reply(JoinReply::Refused(refusal));
    if who.cluster != adoption.cluster || adoption.nodes.is_empty() {
        return refused(Refusal::Garbled);
    }
    if Authority::from_parts(adoption.cluster, &adoption.authority).is_err() {
        return refused(Refusal::Garbled);
    }
    match may_probe(&who, &own, from) {
        Ok(Verdict::Fit) => Judged::Adopt(adoption),
        // Told twice, because the first answer was lost.
        Ok(Verdict::Already) => Judged::Reply(JoinReply::Adopted),
        Ok(Verdict::Itself) | Err(_) => refused(Refusal::Unfit(Box::new(own))),
    }
}

/// Answers strangers for a node.
pub struct Answerer {
    candidate: Arc<dyn Candidate>,
    file: SecretFile,
    env: Arc<dyn Env>,
    guesses: Mutex<Guesses>,
    adopting: Arc<AtomicBool>,
    lines: Mutex<Gather<&'static str>>,
}

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answerer({})", self.file.path().display())
    }
}

impl Answerer {
    /// An answerer for `candidate`, with the secret in `file`.
    pub fn new(candidate: Arc<dyn Candidate>, file: SecretFile, env: Arc<dyn Env>) -> Self {
        Self {
            candidate,
            file,
            env,
            guesses: Mutex::default(),
            adopting: Arc::default(),
            lines: Mutex::default(),
        }
    }

    fn warn(&self, from: SocketAddr, line: &'static str, detail: &dyn std::fmt::Display) {
        if let Some(more) = self.lines.lock().offer(&line, self.env.now()) {
            let more = and_more(more);
            tracing::warn!(%from, "{line}{detail}{more}");
        }
    }

    fn secret(&self, from: SocketAddr) -> Result<Secret, Refusal> {
        // A file of one line: it is read where the request came in.
        self.file.load().map_err(|error| {
            self.warn(from, "a probe could not be answered: ", &error);
            Refusal::NoSecret
        })
    }

    /// Decides on what came in.
    fn look(&self, from: SocketAddr, binding: [u8; 32], frame: &Frame) -> Result<Judged, Refusal> {
        let now = self.env.now();
        if !self.guesses.lock().open(now) {
            self.warn(
                from,
                "a probe was not looked at: too many wrong secrets",
                &"",
            );
            return Err(Refusal::TooMany);
        }
        let request: JoinRequest = frame.message().map_err(|_| Refusal::Garbled)?;
        if !frame.body.is_empty() {
            return Err(Refusal::Garbled);
        }
        let secret = self.secret(from)?;
        let prover = Prover {
            secret: &secret,
            binding,
        };
        if !prover.accepts(&request) {
            let last = self.guesses.lock().wrong(now);
            self.warn(
                from,
                "a probe came with another secret than ours, ",
                &self.file.path().display(),
            );
            if last {
                let shut = "no probe is looked at for the rest of a minute: too many wrong secrets";
                self.warn(from, shut, &"");
            }
            return Err(Refusal::Proof);
        }
        Ok(judge(request, &prover, self.candidate.facts(), from))
    }

    fn adopt(&self, from: SocketAddr, adoption: Adoption, reply: ReplyTo) {
        if self.adopting.swap(true, Ordering::AcqRel) {
            return answer(reply, &JoinReply::Refused(Refusal::Busy));
        }
        tracing::info!(%from, cluster = %adoption.cluster, "this node is taken into a cluster");
        let joining = Joining(Arc::clone(&self.adopting));
        let work = self.candidate.adopt(adoption);
        self.env.spawn(Box::pin(async move {
            let done = work.await;
            drop(joining);
            match done {
                Ok(()) => answer(reply, &JoinReply::Adopted),
                Err(why) => {
                    tracing::warn!(%from, "this node could not join a cluster: {why}");
                    answer(
                        reply,
                        &JoinReply::Refused(Refusal::Failed(clean_text(&why))),
                    );
                }
            }
        }));
    }
}

/// An adoption in progress; over when it is dropped, however it ends.
struct Joining(Arc<AtomicBool>);

impl Drop for Joining {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn answer(reply: ReplyTo, message: &JoinReply) {
    // Too long only if the node has a thousand addresses; the asker then gets no answer.
    if let Ok(frame) = Frame::new(message, Bytes::new()) {
        reply(frame);
    }
}

impl Strangers for Answerer {
    fn serve(&self, from: SocketAddr, binding: [u8; 32], frame: Frame, reply: ReplyTo) {
        match self.look(from, binding, &frame) {
            Ok(Judged::Adopt(adoption)) => self.adopt(from, *adoption, reply),
            Ok(Judged::Reply(message)) => answer(reply, &message),
            Err(refusal) => answer(reply, &JoinReply::Refused(refusal)),
        }
    }
}
