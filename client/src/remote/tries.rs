//! How long a request waits: between two tries, for servers that do not answer, while the volume is not in service.

use std::time::Duration;

use futures_util::future::{Either, select};
use mortar_protocol::env::Mono;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::watch::{Wait, fails_because, waits_for};

use super::hub::Service;
use super::set::Set;

/// What a call gets while no server answers, once others have waited in vain.
const AWAY: Duration = Duration::from_secs(2);
/// A call to a set that answers other calls is given up after so many frame timeouts.
const PATIENCE: u32 = 4;
/// While the volume is not in service, a call waits for so many looks at its record, the second of which began after
/// the call did ...
const LOOKS: u32 = 2;
/// ... each for so long at most.
const LOOK: Duration = Duration::from_millis(500);
/// Pauses between tries, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(3), Duration::from_millis(200));

/// Waiting between tries: how long so far, and until when.
pub(super) struct Tries {
    pub(super) started: Mono,
    pause: Duration,
    /// Looks at the volume's record waited for while it is not in service.
    looks: u32,
}

impl Tries {
    pub(super) fn new(started: Mono) -> Self {
        Self {
            started,
            pause: PAUSE.0,
            looks: 0,
        }
    }
}

impl Set {
    /// Time left for a request; `alive`: answers to others count as a sign of life.
    pub(super) fn left(&self, tries: &Tries, alive: bool) -> Duration {
        let inner = self.inner.lock();
        let limit = if inner.away {
            AWAY
        } else {
            self.hub.frame_timeout()
        };
        let from = if alive {
            tries.started.max(inner.heard)
        } else {
            tries.started
        };
        let until = from.after(limit).min(tries.started.after(limit * PATIENCE));
        until.since(self.hub.env.now())
    }

    /// Waits for another view, or a little while. `lost`: no answer came (else the set said that it does not serve).
    ///
    /// # Errors
    /// ENOTCONN if the request has waited long enough, or the volume is not in service.
    pub(super) async fn pause(&self, tries: &mut Tries, lost: bool) -> Result<(), Fault> {
        let service = self.hub.service();
        if service != Service::Started {
            return self.out_of_service(tries, service).await;
        }
        let left = self.left(tries, lost);
        if left.is_zero() {
            self.inner.lock().away = true;
            fails_because(|| {
                let waited = self.hub.env.now().since(tries.started);
                let what = if lost { "no answer" } else { "does not serve" };
                format!("set {}: {what} for {waited:.1?}", self.index().0)
            });
            return Err(Fault::Refused(Errno::ENOTCONN));
        }
        waits_for(Wait::Serving(self.index().0));
        let changed = std::pin::pin!(self.changed.notified());
        self.hub.poke();
        let pause = tries.pause.min(left);
        tries.pause = (tries.pause * 2).min(PAUSE.1);
        let woken = select(changed, self.hub.env.sleep(pause)).await;
        if let Either::Left((_, rest)) = woken {
            drop(rest);
        }
        Ok(())
    }

    /// The volume is stopped or gone, unless a look at its record says that it has been started meanwhile.
    async fn out_of_service(&self, tries: &mut Tries, service: Service) -> Result<(), Fault> {
        if service == Service::Replaced || tries.looks >= LOOKS {
            fails_because(|| service.why().to_owned());
            return Err(Fault::Refused(Errno::ENOTCONN));
        }
        tries.looks += 1;
        waits_for(Wait::Serving(self.index().0));
        let looked = std::pin::pin!(self.hub.looked.notified());
        self.hub.poke();
        select(looked, self.hub.env.sleep(LOOK)).await;
        Ok(())
    }
}
