//! Lines of a brick about what cannot be done and is tried again: repeats are gathered to one in ten seconds.

use mortar_protocol::env::Mono;
use mortar_protocol::error::Fault;
use mortar_protocol::ids::{BrickId, SessionId};
use mortar_protocol::watch::{Gather, and_more};

/// What cannot be done. Which session it is about does not tell lines apart: that many end at once is one event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Complaint {
    /// What a session had open cannot be released.
    Orphans,
    /// A session cannot be ended.
    SessionEnd,
}

impl Complaint {
    fn text(self) -> &'static str {
        match self {
            Self::Orphans => "orphans cannot be released",
            Self::SessionEnd => "session cannot be ended",
        }
    }
}

/// What a brick has complained of.
#[derive(Default, Debug)]
pub(super) struct Complaints {
    told: Gather<Complaint>,
}

impl Complaints {
    /// Something cannot be done.
    pub(super) fn met(
        &mut self,
        complaint: Complaint,
        (brick, session): (BrickId, SessionId),
        fault: &Fault,
        now: Mono,
    ) {
        if let Some(line) = self.line(complaint, (brick, session), fault, now) {
            tracing::warn!("{line}");
        }
    }

    fn line(
        &mut self,
        complaint: Complaint,
        (brick, session): (BrickId, SessionId),
        fault: &Fault,
        now: Mono,
    ) -> Option<String> {
        let more = and_more(self.told.offer(&complaint, now)?);
        let text = complaint.text();
        Some(format!(
            "{text}: brick={brick} session={session}: {fault:?}{more}"
        ))
    }

    /// Tells what was only counted, once its time has come.
    pub(super) fn tick(&mut self, brick: BrickId, now: Mono) {
        for line in self.due(brick, now) {
            tracing::warn!("{line}");
        }
    }

    fn due(&mut self, brick: BrickId, now: Mono) -> Vec<String> {
        let due = self.told.due(now).into_iter();
        due.map(|(complaint, more)| {
            format!("{more} more times: {}: brick={brick}", complaint.text())
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::error::Errno;

    #[test]
    fn one_line_in_ten_seconds_for_each_kind() {
        let at = |secs: u64| Mono(secs * 1_000_000_000);
        let brick = BrickId(7);
        let mut complaints = Complaints::default();
        let mut line = |complaint, session: u64, secs: u64| {
            let fault = Fault::Refused(Errno::ENOSPC);
            complaints.line(complaint, (brick, SessionId(session)), &fault, at(secs))
        };
        let first = line(Complaint::Orphans, 3, 1).expect("a line");
        for part in ["orphans", &brick.to_string(), "session=", "ENOSPC"] {
            assert!(first.contains(part), "{part} in {first}");
        }
        assert_eq!(line(Complaint::Orphans, 3, 2), None);
        assert_eq!(line(Complaint::Orphans, 4, 3), None);
        assert!(line(Complaint::SessionEnd, 4, 3).is_some());
        assert_eq!(line(Complaint::SessionEnd, 5, 4), None);
        assert!(line(Complaint::Orphans, 3, 12).is_some_and(|line| line.contains("2 more")));
        assert_eq!(complaints.due(brick, at(12)), Vec::<String>::new());
        let due = complaints.due(brick, at(13));
        assert!(
            due.len() == 1 && due[0].contains("1 more times: session cannot"),
            "{due:?}"
        );
    }
}
