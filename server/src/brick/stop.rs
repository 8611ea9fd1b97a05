//! The orderly stop of a brick: flush, then a last checkpoint, so that nothing depends on the log alone.

use std::time::Duration;

use mortar_protocol::report::BrickEvent;

use super::recover::{lineage, records};
use super::state::{Brick, Life};

/// So long is waited until every member has flushed what this one holds, and all know it; and for what is to be appended
/// and lacks its stage.
const REST: Duration = Duration::from_secs(2);

impl Brick {
    /// Goes on with an orderly stop.
    pub(super) fn finish_stop(&mut self) {
        let Life::Stopping(since) = self.life else {
            return;
        };
        self.turn_away();
        self.log.want_flush(self.log.head().seq);
        let patient = self.now.since(since) < REST;
        if self.storage.poisoned().is_some() {
            self.life = Life::Stopped;
        } else if (patient && !self.arriving.is_empty())
            || self.storage.flushed() != self.storage.head()
        {
            // The flush is started by the next round.
            self.log.finish(self.storage.as_ref(), &mut self.acts);
        } else if !patient || self.log.is_at_rest() {
            let view = self.log.view().cloned().filter(|_| self.log.is_member());
            let member = lineage(self.storage.member_runs(), self.run, self.boot, true);
            if let Some(view) = view
                && let Err(reason) = self.storage.save_member(&view, &member)
            {
                self.poison(&reason);
                return;
            }
            // From here on nothing is appended: the log is whole, whatever becomes of the checkpoint.
            self.life = Life::Settling;
            self.go_on_settling();
        }
    }

    /// Goes on with the last checkpoint. If it cannot be made, the log has everything, and the stop is in order.
    pub(super) fn go_on_settling(&mut self) {
        if self.life != Life::Settling {
            return;
        }
        let mut extra = records(&self.log, &mut self.sessions);
        let settled = self.storage.settle(self.now, &mut extra);
        drop(extra);
        match settled {
            Ok(false) => return,
            Ok(true) => {}
            Err(reason) => {
                tracing::error!(brick = %self.id, reason, "no last checkpoint: the next start reads the log");
            }
        }
        self.life = Life::Stopped;
        self.report(BrickEvent::Stopped);
    }
}
