//! States that come from a file or from another node: taken only if all that the rest relies on is so.

use mortar_protocol::ids::SetIndex;

use super::{State, Volume};

/// No number is counted up to this; one above it is damage.
pub(super) const HIGHEST: u64 = 1 << 62;

impl State {
    /// Reads a snapshot.
    ///
    /// # Errors
    /// Why it is none that can be worked with.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let damaged = |why: String| format!("the snapshot is damaged: {why}");
        match postcard::take_from_bytes::<Self>(bytes) {
            Ok((state, [])) => state.check().map_err(damaged).map(|()| state),
            Ok(_) => Err(damaged("bytes are left behind it".to_owned())),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// Whether all that the rest relies on is so.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), String> {
        if self.applied > HIGHEST || self.next_session.0 > HIGHEST {
            return Err("more commands or sessions than there can be".to_owned());
        }
        let aside = self.set_aside.values().flatten();
        let known = self
            .volumes
            .values()
            .flat_map(|volume| volume.sessions.keys());
        if aside
            .chain(known)
            .any(|session| *session >= self.next_session)
        {
            return Err("a session has a number that was never given".to_owned());
        }
        for (id, volume) in &self.volumes {
            if volume.info.id != *id || !volume.is_sound() {
                return Err(format!("volume {id} contradicts itself"));
            }
        }
        let differs = self
            .creating
            .iter()
            .any(|(id, creating)| creating.info.id != *id)
            || self.left_over.iter().any(|(id, left)| left.brick.id != *id);
        match differs {
            true => Err("an operation in progress contradicts itself".to_owned()),
            false => Ok(()),
        }
    }
}

impl Volume {
    fn is_sound(&self) -> bool {
        let sets = self.info.sets.len();
        let laid_out = |set: &SetIndex| (set.0 as usize) < sets;
        let views = self
            .sets
            .iter()
            .flat_map(|set| [&set.current, &set.effective]);
        let counted = views
            .flatten()
            .all(|view| view.epoch.0 <= HIGHEST && view.opening.0 <= HIGHEST);
        sets == self.sets.len()
            && !self.info.layout.ranges().is_empty()
            && self.info.layout.sets().iter().all(laid_out)
            && counted
            && self.starts <= HIGHEST
    }
}
