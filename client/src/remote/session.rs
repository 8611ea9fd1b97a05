//! A set and the client's session: beginning it there, what to do when it has ended, ending it.

use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::env::Mono;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Call, Fop};
use mortar_protocol::watch::fails_because;

use super::set::{How, Set};
use super::tries::Tries;
use super::within;

/// Time to tell a set that the session ends.
const END: Duration = Duration::from_secs(2);

impl Set {
    /// Begins the session here; opens another one if it has ended.
    pub(super) async fn begin(&self, tries: &mut Tries) -> Result<(), Fault> {
        let _turn = self.turn.lock().await;
        loop {
            let session = self.hub.session();
            {
                let mut inner = self.inner.lock();
                inner.follow(session);
                if inner.begun {
                    return Ok(());
                }
            }
            let mut call = self.request(Fop::SessionBegin, How::default());
            call.session = session;
            call.durable = true;
            match self.drive(&mut call, &Bytes::new(), tries.started).await {
                Ok(_) => {
                    let mut inner = self.inner.lock();
                    if inner.session == session {
                        inner.begun = true;
                        drop(inner);
                        self.room.notify_waiters();
                    }
                }
                Err(Fault::UnknownSession) => {
                    let left = self.left(tries, false);
                    self.hub.replace_session(session, left).await?;
                    self.pause(tries, false).await?;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The set does not know the session (any more): may the request be made again?
    pub(super) async fn session_refused(&self, call: &Call, started: Mono) -> Result<(), Fault> {
        {
            let mut inner = self.inner.lock();
            if inner.session == call.session {
                inner.begun = false;
            }
        }
        if call.number > 0 && call.repeat {
            fails_because(|| {
                format!(
                    "its session ended; whether set {} has done it is not known",
                    self.index().0
                )
            });
            return Err(Fault::Refused(Errno::EIO));
        }
        self.begin(&mut Tries::new(started)).await
    }

    /// Whether the session is known to the set, as far as the client knows.
    pub(super) fn is_begun(&self) -> bool {
        let inner = self.inner.lock();
        inner.begun && inner.session == self.hub.session()
    }

    /// Ends the session here; gives up after a while (the set then notices by its silence).
    pub(super) async fn end(&self) {
        if !self.is_begun() {
            return;
        }
        let mut call = self.request(Fop::SessionEnd, How::default());
        call.session = self.hub.session();
        let started = self.hub.env.now();
        let body = Bytes::new();
        let ending = self.drive(&mut call, &body, started);
        if let Some(Ok(_)) = within(&self.hub.env, END, ending).await {
            self.inner.lock().begun = false;
        }
    }
}
