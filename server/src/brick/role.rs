//! What a brick is in its set, and whom it serves: primary or not, sessions that the control plane knows or has ended.

use mortar_protocol::error::Fault;
use mortar_protocol::ids::SessionId;

use super::state::{Brick, Life};

impl Brick {
    /// Notices that it began or ceased to lead.
    pub(super) fn look_at_role(&mut self) {
        let role = (self.log.is_primary(), self.log.leads(), self.log.epoch().0);
        if role == self.role {
            return;
        }
        let led = self.role.1;
        self.role = role;
        if self.log.is_member() {
            self.reported = None;
        }
        self.openings = self.read_openings();
        if !role.0 {
            self.turn_away();
        }
        if role.1 && !led {
            self.leads_since = self.now;
            self.sessions.hear_all(self.now);
            self.end_sessions();
        }
    }

    /// Ends the sessions that the control plane has ended.
    pub(super) fn end_sessions(&mut self) {
        let Some((below, live)) = self.book.clone() else {
            return;
        };
        if !self.log.leads() {
            return;
        }
        let ended: Vec<SessionId> = self
            .sessions
            .live()
            .map(|(id, _)| id)
            .filter(|id| *id < below && !live.contains(id))
            .collect();
        for session in ended {
            self.end_session(session);
        }
    }

    /// Whether a session may leave bulk data here.
    pub(super) fn may_stage(&self, session: SessionId, uid: u32) -> Result<(), Fault> {
        if self.life != Life::Serving || self.storage.poisoned().is_some() {
            return Err(Fault::NotServing);
        }
        match self.sessions.get(session) {
            None => Err(Fault::UnknownSession),
            Some(session) if session.uid != uid => Err(Fault::NotAuthorised),
            Some(_) => Ok(()),
        }
    }

    /// Whether the control plane holds a session to be alive, as far as this brick was told.
    pub(super) fn is_booked(&self, session: SessionId) -> bool {
        let book = self.book.as_ref();
        book.is_none_or(|(below, live)| session >= *below || live.contains(&session))
    }

    /// What a client is told that asked the wrong brick, or at the wrong time.
    pub(super) fn elsewhere(&self) -> Fault {
        match self.log.view() {
            Some(view) if !self.log.is_primary() => Fault::NotPrimary(Some(Box::new(view.clone()))),
            Some(_) => Fault::NotServing,
            None => Fault::NotPrimary(None),
        }
    }
}
