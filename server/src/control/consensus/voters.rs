//! Who votes. Pure: from the nodes of the cluster, who votes now and who answers.
//!
//! The first nodes vote, up to five of them, always an odd number: a second voter beside one would only add a node
//! whose loss blocks management. A voter that is lost is replaced by a node that answers.

use std::collections::BTreeSet;
use std::time::Duration;

use mortar_protocol::ids::NodeId;

/// Most voters.
pub const MOST: usize = 5;
/// A voter that has not answered for this long is replaced, if another node can take its place.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// A node that belongs to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// How long it has not answered.
    pub silent: Duration,
}

/// Voters of a cluster of so many nodes.
pub fn seats(nodes: usize) -> usize {
    match nodes.min(MOST) {
        0 => 0,
        nodes => nodes - (nodes + 1) % 2,
    }
}

/// Who should vote, if not those that do. `nodes` are in the order in which they came; `own` is the leader.
pub fn change(
    voters: &BTreeSet<NodeId>,
    nodes: &[Candidate],
    own: NodeId,
) -> Option<BTreeSet<NodeId>> {
    let belongs = |node: &NodeId| nodes.iter().any(|candidate| candidate.node == *node);
    let answers = |candidate: &&Candidate| candidate.silent < LOST_AFTER;
    let seats = seats(nodes.len());
    let mut wanted: BTreeSet<NodeId> = voters
        .iter()
        .filter(|node| belongs(node))
        .copied()
        .collect();
    let waiting = nodes
        .iter()
        .filter(answers)
        .filter(|candidate| !voters.contains(&candidate.node));
    for candidate in waiting {
        if wanted.len() >= seats {
            let lost = nodes
                .iter()
                .find(|other| wanted.contains(&other.node) && other.node != own && !answers(other));
            let Some(lost) = lost else { break };
            wanted.remove(&lost.node);
        }
        wanted.insert(candidate.node);
    }
    // The newest give their seats back first, never the leader.
    for candidate in nodes.iter().rev() {
        if wanted.len() > seats && candidate.node != own {
            wanted.remove(&candidate.node);
        }
    }
    // An even number only while there is nobody to fill the last seat.
    (!wanted.is_empty() && wanted != *voters).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(silent: &[u64]) -> Vec<Candidate> {
        let of = |(at, secs): (usize, &u64)| Candidate {
            node: NodeId(at as u128 + 1),
            silent: Duration::from_secs(*secs),
        };
        silent.iter().enumerate().map(of).collect()
    }

    fn set(ids: &[u128]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn an_odd_number_up_to_five_votes() {
        let counts: Vec<usize> = (0..=8).map(seats).collect();
        assert_eq!(counts, [0, 1, 1, 3, 3, 5, 5, 5, 5]);
    }

    #[test]
    fn the_first_nodes_vote() {
        let own = NodeId(1);
        assert_eq!(change(&set(&[1]), &nodes(&[0, 0]), own), None);
        assert_eq!(
            change(&set(&[1]), &nodes(&[0, 0, 0]), own),
            Some(set(&[1, 2, 3]))
        );
        assert_eq!(change(&set(&[1, 2, 3]), &nodes(&[0; 4]), own), None);
        assert_eq!(
            change(&set(&[1, 2, 3]), &nodes(&[0; 7]), own),
            Some(set(&[1, 2, 3, 4, 5]))
        );
    }

    #[test]
    fn a_lost_voter_is_replaced_by_one_that_answers() {
        let own = NodeId(1);
        let voters = set(&[1, 2, 3]);
        assert_eq!(change(&voters, &nodes(&[0, 60, 0]), own), None);
        assert_eq!(
            change(&voters, &nodes(&[0, 60, 0, 0]), own),
            Some(set(&[1, 3, 4]))
        );
        assert_eq!(change(&voters, &nodes(&[0, 60, 0, 60]), own), None);
        // Short silences change nothing.
        assert_eq!(change(&voters, &nodes(&[0, 5, 0, 0]), own), None);
    }

    #[test]
    fn nodes_that_leave_give_their_seats_back() {
        let own = NodeId(2);
        assert_eq!(
            change(&set(&[1, 2, 3]), &nodes(&[0, 0]), own),
            Some(set(&[2]))
        );
        let two_left: Vec<Candidate> = nodes(&[0, 0, 0, 0]).split_off(1);
        assert_eq!(
            change(&set(&[1, 2, 3]), &two_left, own),
            Some(set(&[2, 3, 4]))
        );
    }
}
