//! Reads: answered by any in-sync member from what is committed; and `Sync`.

use std::time::Duration;

use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Answer, Fop, LockOutcome, Reply};
use mortar_protocol::ids::{Mark, Opening, Seq};

use super::api::Completion;
use super::rules::ReadAnswer;
use super::state::{Brick, Queued, Waiting};

/// A waiting lock call is answered after so long either way.
const LOCK_WAIT: Duration = Duration::from_secs(1);

impl Brick {
    /// A read, or one of the calls that only look.
    pub(super) fn on_read(&mut self, queued: Queued) {
        let only_primary = matches!(
            queued.call.fop,
            Fop::Sync { .. }
                | Fop::LockTest(_)
                | Fop::LockWait(_)
                | Fop::TxnState { .. }
                | Fop::Renew { .. }
        );
        if !self.log.serves() || (only_primary && !self.log.leads()) {
            let fault = if self.log.is_primary() || (self.log.is_member() && !only_primary) {
                Fault::NotServing
            } else {
                self.elsewhere()
            };
            self.refuse_now(queued, fault);
            return;
        }
        let now = self.now;
        let Some(session) = self.sessions.get_mut(queued.call.session) else {
            self.refuse_now(queued, Fault::UnknownSession);
            return;
        };
        session.heard = now;
        if session.uid != queued.uid {
            self.refuse_now(queued, Fault::NotAuthorised);
        } else if let Fop::Sync { upto } = queued.call.fop {
            self.sync(queued, upto);
        } else if self.log.leads() {
            self.release_orphans(&queued.call, queued.uid);
            self.read_at(queued, self.log.committed());
        } else {
            let held = self.log.head().seq;
            if self.log.committed() >= held {
                self.read_at(queued, self.log.committed());
            } else {
                self.log.await_commit(held);
                self.reads.entry(held).or_default().push(queued);
            }
        }
    }

    /// Answers a read from the state as of `at`.
    fn read_at(&mut self, queued: Queued, at: Seq) {
        let read = self.asked_at(at, &queued.call, queued.uid, |state, asked, rules| {
            rules.answer(state, asked, &queued.call.fop)
        });
        let (mark, flushed) = (self.mark(at), self.log.flushed_by_all());
        match read {
            Ok(ReadAnswer::Reply(
                Reply::Locked {
                    outcome: LockOutcome::Queued,
                    ..
                },
                _,
            )) if matches!(queued.call.fop, Fop::LockWait(_))
                && self.now.since(queued.since) < LOCK_WAIT =>
            {
                self.lock_waits.push(queued);
            }
            Ok(ReadAnswer::Reply(reply, body)) => {
                (queued.reply)(
                    Answer {
                        mark,
                        flushed,
                        result: Ok(reply),
                    },
                    body,
                );
            }
            Ok(ReadAnswer::Data {
                object,
                offset,
                len,
                reply,
            }) => {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                let answer = Answer {
                    mark,
                    flushed,
                    result: Ok(reply),
                };
                let idle = self.reading.is_empty() && !self.more;
                self.reading.insert(ticket, (queued.reply, answer));
                let (completions, id) = (self.completions.clone(), self.id);
                let done = move |result| {
                    completions.push(id, Completion::Read { ticket, result });
                };
                self.storage
                    .start_read((object, offset, len), at, idle, Box::new(done));
            }
            Err(fault) => Self::answer_with(queued, mark, flushed, Err(fault)),
        }
    }

    /// Answers the reads whose place has become committed, and lock calls whose lock may have been granted.
    pub(super) fn answer_reads(&mut self) {
        let committed = self.log.committed();
        if self
            .reads
            .first_key_value()
            .is_some_and(|(seq, _)| *seq <= committed)
        {
            let later = self.reads.split_off(&committed.next());
            for queued in std::mem::replace(&mut self.reads, later)
                .into_values()
                .flatten()
            {
                if self.log.serves() {
                    self.read_at(queued, committed);
                } else {
                    self.refuse_now(queued, Fault::NotServing);
                }
            }
        }
        if committed > self.locks_seen {
            self.locks_seen = committed;
            self.look_at_locks();
        }
    }

    fn look_at_locks(&mut self) {
        let at = self.log.committed();
        for queued in std::mem::take(&mut self.lock_waits) {
            self.read_at(queued, at);
        }
    }

    pub(super) fn tick_locks(&mut self) {
        if self
            .lock_waits
            .iter()
            .any(|queued| self.now.since(queued.since) >= LOCK_WAIT)
        {
            self.look_at_locks();
        }
    }

    /// Waits until everything up to the mark is flushed on every member.
    fn sync(&mut self, queued: Queued, upto: Mark) {
        if let Some(opening) = self.lost(upto) {
            self.refuse_now(queued, Fault::Lost(opening));
            return;
        }
        let answer = Answer {
            mark: self.mark(upto.seq),
            flushed: Seq(0),
            result: Ok(Reply::Done),
        };
        let waiting = Waiting {
            answer,
            durable: true,
            reply: queued.reply,
        };
        self.log.want_flush(upto.seq);
        self.committing.entry(upto.seq).or_default().push(waiting);
    }

    /// The opening at which something at or below the mark was lost, if it was.
    pub(super) fn lost(&self, mark: Mark) -> Option<Opening> {
        let below =
            |(number, adopted): &&(Opening, Seq)| *number > mark.opening && *adopted < mark.seq;
        if let Some((number, _)) = self.openings.iter().find(below) {
            return Some(*number);
        }
        // A place this set never reached under this opening.
        (mark.seq > self.log.head().seq).then(|| self.opening())
    }
}
