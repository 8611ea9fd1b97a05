//! Tells once that another node has stopped answering, and once that it answers again.

use std::collections::BTreeMap;
use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::NodeId;

/// A node that has not answered for so long is away.
const PATIENCE: Duration = Duration::from_secs(3);

/// Nodes whose last message was not answered.
#[derive(Default, Debug)]
pub struct Away(BTreeMap<NodeId, Since>);

#[derive(Clone, Copy, Debug)]
struct Since {
    first: Mono,
    last: Mono,
    told: bool,
}

impl Away {
    /// A message was not answered; whether it is to be told that the node is away.
    pub fn unanswered(&mut self, node: NodeId, now: Mono) -> bool {
        let new = Since {
            first: now,
            last: now,
            told: false,
        };
        let since = self.0.entry(node).or_insert(new);
        if now.since(since.last) > PATIENCE {
            // Nothing was asked meanwhile: one lost message in an hour, and another one now, say little.
            since.first = now;
        }
        since.last = now;
        let tell = !since.told && now.since(since.first) >= PATIENCE;
        since.told |= tell;
        tell
    }

    /// A message was answered; for how long the node was away, if that was told.
    pub fn answered(&mut self, node: NodeId, now: Mono) -> Option<Duration> {
        let since = self.0.remove(&node)?;
        since.told.then(|| now.since(since.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn at(millis: u64) -> Mono {
        Mono(millis * 1_000_000)
    }

    #[test]
    fn it_is_told_once() {
        let mut away = Away::default();
        let told: Vec<u64> = (0..100)
            .map(|n| n * 300)
            .filter(|millis| away.unanswered(NODE, at(*millis)))
            .collect();
        assert_eq!(told, [3_000]);
        let back = away.answered(NODE, at(40_000));
        assert_eq!(back, Some(Duration::from_secs(40)));
        assert_eq!(away.answered(NODE, at(40_001)), None);
    }

    #[test]
    fn a_message_that_was_lost_is_not_told() {
        let mut away = Away::default();
        for hour in 1..20 {
            assert!(!away.unanswered(NODE, at(hour * 3_600_000)));
        }
        assert_eq!(away.answered(NODE, at(100_000_000)), None);
        assert!(!away.unanswered(NODE, at(100_000_100)));
        assert!(away.0.len() == 1 && !away.unanswered(NodeId(8), at(200_000_000)));
    }
}
