//! Where nodes are that do not answer at the addresses they told last: the names by which people know them are resolved
//! again. So nodes find each other after all of them got other addresses at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::NodeId;

use crate::control::hosts;
use crate::control::machine::State;

/// Time between two questions for the same node.
const BETWEEN: Duration = Duration::from_secs(2);
/// Most names of a node that are asked for, and most addresses that count.
const MOST: usize = 8;

/// What the names of nodes that do not answer lead to.
#[derive(Default, Debug)]
pub struct Names(BTreeMap<NodeId, Found>);

#[derive(Default, Debug)]
struct Found {
    asking: bool,
    asked: Option<Mono>,
    addrs: Vec<SocketAddr>,
}

impl Names {
    /// A node has not answered: whether its names are to be resolved now. [`Names::found`] must follow if so.
    pub fn is_due(&mut self, node: NodeId, now: Mono) -> bool {
        let found = self.0.entry(node).or_default();
        let due = !found.asking && found.asked.is_none_or(|at| now.since(at) >= BETWEEN);
        if due {
            found.asking = true;
            found.asked = Some(now);
        }
        due
    }

    /// What a node's names lead to; says whether that is news. Nothing: they could not be resolved, which says nothing.
    pub fn found(&mut self, node: NodeId, mut addrs: Vec<SocketAddr>) -> bool {
        let found = self.0.entry(node).or_default();
        found.asking = false;
        addrs.truncate(MOST);
        let news = !addrs.is_empty() && found.addrs != addrs;
        if news {
            found.addrs = addrs;
        }
        news
    }

    /// Addresses that a node's names led to when it did not answer.
    pub fn addrs(&self, node: NodeId) -> &[SocketAddr] {
        self.0.get(&node).map_or(&[], |found| &found.addrs)
    }
}

/// The names of a node, and its port: as it was probed, as its machine is called, and as in the names of its bricks.
/// Addresses among them lead nowhere else.
pub fn names_of(state: &State, node: NodeId) -> (Vec<String>, u16) {
    let mut names = BTreeSet::new();
    let mut port = hosts::PORT;
    if let Some(record) = state.nodes.get(&node) {
        port = record.addrs.first().map_or(port, SocketAddr::port);
        names.insert(record.host.as_str());
        names.extend(record.other_names.iter().map(String::as_str));
    }
    for volume in state.volumes.values() {
        let bricks = volume.info.sets.iter().flatten();
        let own = bricks.filter(|brick| brick.node == node);
        names.extend(own.map(|brick| brick.host.as_str()));
    }
    let is_name = |name: &&str| {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        !bare.is_empty() && bare.parse::<IpAddr>().is_err()
    };
    let names = names.into_iter().filter(is_name).take(MOST);
    (names.map(str::to_owned).collect(), port)
}

/// The addresses of a host; empty if it has none. Blocks for the resolver.
pub fn resolve(host: &str) -> Vec<IpAddr> {
    let found = (host, 0u16).to_socket_addrs();
    found
        .map(|addrs| addrs.map(|addr| addr.ip()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn at(millis: u64) -> Mono {
        Mono(millis * 1_000_000)
    }

    #[test]
    fn names_are_asked_for_now_and_then_and_one_question_at_a_time() {
        let mut names = Names::default();
        assert!(names.is_due(NODE, at(0)));
        assert!(names.is_due(NodeId(8), at(0)));
        assert!(!names.is_due(NODE, at(60_000)), "the first is not answered");
        let one: Vec<SocketAddr> = vec!["10.0.0.1:1".parse().unwrap()];
        assert!(names.found(NODE, one.clone()));
        assert_eq!(names.addrs(NODE), one);
        assert!(names.is_due(NODE, at(60_000)));
        assert!(!names.found(NODE, one.clone()));
        assert!(!names.is_due(NODE, at(61_999)));
        assert!(names.is_due(NODE, at(62_000)));
        assert!(!names.found(NODE, Vec::new()), "no answer is no news");
        assert_eq!(names.addrs(NODE), one);
        assert!(names.addrs(NodeId(8)).is_empty());
    }
}
