//! Clients that take hold of a file for a while: by a lock, or by opening it, so that it stays when its names go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mortar_client::volume::{Res, Volume};
use mortar_protocol::attr::Cred;
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{LockKind, LockOutcome, LockRequest};
use mortar_protocol::ids::InodeId;
use parking_lot::Mutex;

use super::history::{Act, Told};
use super::load::Hands;
use super::rng::Rng;

/// Bytes of half of a file, as far as locks are concerned.
const HALF: u64 = 100;
/// A waiting lock call looks so often, about a second each, then it withdraws.
const LOOKS: usize = 15;

/// What a client holds.
#[derive(Default)]
pub(super) struct Held {
    /// Open files, and how often.
    open: Mutex<BTreeMap<u64, u64>>,
    /// Locks that servers have lost: files and owners.
    lost: Mutex<BTreeSet<(u64, u64)>>,
}

impl Held {
    /// What a client holds that has just connected.
    pub(super) fn of(volume: &Volume) -> Arc<Self> {
        let held = Arc::new(Self::default());
        let open = Arc::downgrade(&held);
        volume.set_open_check(Arc::new(move |id| {
            let held = open.upgrade();
            held.is_some_and(|held| held.open.lock().contains_key(&id.0))
        }));
        let lost = Arc::downgrade(&held);
        volume.set_lock_loss(Arc::new(move |id, owner| {
            if let Some(held) = lost.upgrade() {
                held.lost.lock().insert((id.0, owner));
            }
        }));
        held
    }

    fn close(&self, id: u64) {
        let mut open = self.open.lock();
        let count = open.entry(id).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            open.remove(&id);
        }
    }
}

impl Hands {
    /// Takes hold of a file, does something, and lets go.
    pub(super) async fn hold(&self, owner: u64, rng: &mut Rng) {
        let Some(id) = super::oracle::data::file_of(&self.draw_data(rng)) else {
            return;
        };
        let (take, give) = if rng.permille(600) {
            let lock = Act::Lock {
                id,
                owner,
                part: rng.below(3),
                shared: rng.permille(300),
                wait: rng.permille(500),
            };
            (lock, Act::Unlock { id, owner })
        } else {
            (Act::Open { id, owner }, Act::Close { id, owner })
        };
        if !matches!(self.call(take).await, Told::Session(_)) {
            return;
        }
        for _ in 0..rng.below(4) {
            self.pause(rng).await;
            let mut act = self.draw_data(rng);
            if rng.permille(700) {
                act = match act {
                    Act::Write { .. } | Act::Append { .. } => Act::Append { id, count: 1 },
                    _ => Act::Size { id },
                };
            }
            self.call(act).await;
        }
        self.pause(rng).await;
        self.call(give).await;
    }

    /// The calls that take hold and let go.
    pub(super) async fn act_on_holds(&self, act: Act) -> Res<Told> {
        match act {
            Act::Lock { .. } => self.lock(&act).await,
            Act::Unlock { id, owner } => {
                let unlock = request(id, owner, (0, u64::MAX), LockKind::Unlock, false);
                self.volume.lock(Cred::default(), unlock).await?;
                match self.held.lost.lock().remove(&(id, owner)) {
                    true => Err(Errno::EIO),
                    false => Ok(self.session()),
                }
            }
            Act::Open { id, .. } => {
                *self.held.open.lock().entry(id).or_default() += 1;
                let opened = self.volume.open(Cred::default(), InodeId(id), None, false);
                match opened.await {
                    Ok(_) => Ok(self.session()),
                    Err(errno) => {
                        self.held.close(id);
                        Err(errno)
                    }
                }
            }
            Act::Close { id, .. } => {
                self.held.close(id);
                Ok(self.session())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn session(&self) -> Told {
        Told::Session(self.volume.session().0)
    }

    async fn lock(&self, act: &Act) -> Res<Told> {
        let Act::Lock {
            id,
            owner,
            part,
            shared,
            wait,
        } = *act
        else {
            return Err(Errno::EINVAL);
        };
        let range = [(0, HALF - 1), (HALF, 2 * HALF - 1), (0, 2 * HALF - 1)][part as usize % 3];
        let kind = match shared {
            true => LockKind::Read,
            false => LockKind::Write,
        };
        let wanted = request(id, owner, range, kind, wait);
        let cred = Cred::default;
        self.held.lost.lock().remove(&(id, owner));
        let mut outcome = self.volume.lock(cred(), wanted.clone()).await?.0;
        for _ in 0..LOOKS {
            outcome = match outcome {
                LockOutcome::Granted => return Ok(self.session()),
                LockOutcome::Busy if !wait => return Err(Errno::EAGAIN),
                // Not queued any more.
                LockOutcome::Busy => self.volume.lock(cred(), wanted.clone()).await?.0,
                LockOutcome::Queued => self.volume.lock_wait(cred(), wanted.clone()).await?.0,
            };
        }
        // Whether it was granted meanwhile does not matter: it lets go.
        let withdraw = request(id, owner, range, LockKind::Unlock, true);
        self.volume.lock(cred(), withdraw).await?;
        let unlock = request(id, owner, range, LockKind::Unlock, false);
        self.volume.lock(cred(), unlock).await?;
        Err(Errno::EINTR)
    }
}

fn request(
    id: u64,
    owner: u64,
    (start, end): (u64, u64),
    kind: LockKind,
    wait: bool,
) -> LockRequest {
    LockRequest {
        id: InodeId(id),
        owner,
        start,
        end,
        kind,
        pid: owner as u32 + 1,
        wait,
    }
}
