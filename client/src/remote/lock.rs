//! Lock calls to a set, with the book of what is held.

use bytes::Bytes;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Fop, LockOutcome, LockRequest, Reply};

use super::book::Asked;
use super::set::{Answered, How, Set};

impl Set {
    /// Makes a lock call. An answer that grants a lock counts only if the set cannot have dropped it since with a
    /// claim; else the call is made again.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn lock(&self, request: LockRequest, how: How) -> Result<Answered, Fault> {
        loop {
            let asked = self.book(|book, session| book.asks(session, &request));
            let mut call = self.request(Fop::Lock(request.clone()), how.clone());
            let answered = self.run(&mut call, &Bytes::new()).await?;
            if self.counts(&answered, asked, &request) {
                return Ok(answered);
            }
        }
    }

    /// Waits, at most about a second, for a queued lock. An answer that does not count says that it is not queued.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn lock_wait(&self, request: LockRequest, how: How) -> Result<Answered, Fault> {
        let asked = self.book(|book, session| book.asks(session, &request));
        let mut call = self.request(Fop::LockWait(request.clone()), how);
        let mut answered = self.run(&mut call, &Bytes::new()).await?;
        if !self.counts(&answered, asked, &request) {
            answered.reply = Reply::Locked {
                outcome: LockOutcome::Busy,
                attr: None,
            };
        }
        Ok(answered)
    }

    fn counts(&self, answered: &Answered, asked: Asked, request: &LockRequest) -> bool {
        let granted = matches!(
            answered.reply,
            Reply::Locked {
                outcome: LockOutcome::Granted,
                ..
            }
        );
        !granted || self.book(|book, session| book.granted(session, asked, request))
    }
}
