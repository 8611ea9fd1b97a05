//! What is wrong with a cluster, a line for each problem, worst first.

use std::collections::BTreeMap;

use mortar_protocol::admin::{
    ClusterStatus, NodeStatus, OperationInfo, PartialSet, PeerState, Role,
};

use super::text::{age, clock};
use crate::cli::volume::place;

/// A clock that differs by more is told, in milliseconds.
const CLOCK: u64 = 1_000;
/// A node with less of its space free is told, in percent.
const LOW_SPACE: u64 = 10;
/// An operation that has lasted longer is told, in seconds.
const SLOW: i64 = 60;
/// A node that has this many fewer commands applied than another is told.
const BEHIND: u64 = 1_000;

/// Whether a node has a vote.
fn votes(node: &NodeStatus) -> bool {
    matches!(node.role, Role::Leader | Role::Voter)
}

/// Whether a node answers.
pub(super) fn answers(node: &NodeStatus) -> bool {
    node.peer.is_self || (node.peer.connected && node.told.is_some())
}

fn hosts<'a>(nodes: impl Iterator<Item = &'a NodeStatus>) -> String {
    let hosts: Vec<&str> = nodes.map(|node| node.peer.host.as_str()).collect();
    hosts.join(", ")
}

/// All of them.
pub(super) fn all(status: &ClusterStatus, now: i64) -> Vec<String> {
    let mut lines = Vec::new();
    majority(status, &mut lines);
    lines.extend(
        status
            .partial_sets
            .iter()
            .filter(|set| !set.serves)
            .map(set_line),
    );
    for node in &status.nodes {
        absence(node, &mut lines);
    }
    lines.extend(
        status
            .partial_sets
            .iter()
            .filter(|set| set.serves)
            .map(set_line),
    );
    for node in &status.nodes {
        condition(status, node, &mut lines);
    }
    versions(status, &mut lines);
    lines.extend(slow(&status.operations, now));
    lines
}

fn majority(status: &ClusterStatus, lines: &mut Vec<String>) {
    let voters: Vec<&NodeStatus> = status.nodes.iter().filter(|node| votes(node)).collect();
    let silent: Vec<&NodeStatus> = voters
        .iter()
        .copied()
        .filter(|node| !answers(node))
        .collect();
    if !status.has_majority {
        let start = if silent.is_empty() {
            "The voters do not reach each other".to_owned()
        } else {
            format!("Bring back {}", hosts(silent.iter().copied()))
        };
        lines.push(format!(
            "NO MAJORITY: {} of {} voters answer. Nothing can be created, changed or removed; files are served where \
             all members of a set are alive. {start}.",
            voters.len() - silent.len(),
            voters.len(),
        ));
    } else if !status.nodes.iter().any(|node| node.role == Role::Leader) {
        lines.push(
            "No node leads yet; changes wait until one is elected, a few seconds.".to_owned(),
        );
    } else if !silent.is_empty() && (voters.len() - silent.len() - 1) * 2 <= voters.len() {
        lines.push(format!(
            "No voter may be lost now: {} of {} answer. One less, and nothing can be changed.",
            voters.len() - silent.len(),
            voters.len(),
        ));
    }
}

fn absence(node: &NodeStatus, lines: &mut Vec<String>) {
    let host = &node.peer.host;
    if !answers(node) {
        let addrs: Vec<String> = node.peer.addrs.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "Node {host} does not answer (UDP {}): is mortard running there, and the network up?",
            addrs.join(", ")
        ));
    }
    match node.peer.state {
        PeerState::Joined => {}
        PeerState::Joining => lines.push(format!(
            "Node {host} was told to join and has not confirmed yet."
        )),
        PeerState::Leaving => lines.push(format!("Node {host} is being taken out.")),
    }
}

fn set_line(set: &PartialSet) -> String {
    let serves = if set.serves {
        "serves without"
    } else {
        "DOES NOT SERVE; missing:"
    };
    let missing: Vec<String> = set
        .missing
        .iter()
        .map(|(brick, why)| {
            let place = place(&brick.host, &brick.path);
            if why.is_empty() {
                place
            } else {
                format!("{place} ({why})")
            }
        })
        .collect();
    format!(
        "Volume {}, set {}, {serves} {}",
        set.volume,
        set.index,
        missing.join(", ")
    )
}

/// What a node that answers says of itself.
fn condition(status: &ClusterStatus, node: &NodeStatus, lines: &mut Vec<String>) {
    let (host, Some(told)) = (&node.peer.host, &node.told) else {
        return;
    };
    if !answers(node) {
        return;
    }
    if told.clock_ms.unsigned_abs() > CLOCK {
        let asked = status.nodes.iter().find(|node| node.peer.is_self);
        lines.push(format!(
            "The clock of node {host} is {} against that of {}: times of files will be wrong (is NTP running?).",
            clock(told.clock_ms),
            asked.map_or("the node asked", |node| node.peer.host.as_str()),
        ));
    }
    let (total, free) = told.space;
    if total > 0 && u128::from(free) * 100 < u128::from(total) * u128::from(LOW_SPACE) {
        let percent = u128::from(free) * 100 / u128::from(total);
        lines.push(format!("Node {host} has {percent} % of its space left."));
    }
    let newest = status.nodes.iter().filter_map(|node| node.told.as_ref());
    let newest = newest.map(|told| told.applied).max().unwrap_or_default();
    let behind = newest.saturating_sub(told.applied);
    if behind >= BEHIND {
        lines.push(format!(
            "Node {host} is {behind} commands behind: it may show an old state."
        ));
    }
}

fn versions(status: &ClusterStatus, lines: &mut Vec<String>) {
    let mut found: BTreeMap<&str, Vec<&NodeStatus>> = BTreeMap::new();
    for node in &status.nodes {
        if let Some(told) = &node.told {
            found.entry(&told.version).or_default().push(node);
        }
    }
    if found.len() > 1 {
        let found: Vec<String> = found
            .into_iter()
            .map(|(version, nodes)| format!("{version} on {}", hosts(nodes.into_iter())))
            .collect();
        lines.push(format!("Versions differ: {}.", found.join("; ")));
    }
}

fn slow(operations: &[OperationInfo], now: i64) -> impl Iterator<Item = String> + '_ {
    let lasts = move |operation: &OperationInfo| now.saturating_sub(operation.since_secs);
    let slow = operations
        .iter()
        .filter(move |operation| lasts(operation) > SLOW);
    slow.map(move |operation| {
        let waits = if operation.waits_for.is_empty() {
            "not finished".to_owned()
        } else {
            format!("waits for {}", operation.waits_for)
        };
        format!(
            "{} {}: {waits}, for {} already.",
            operation.what,
            operation.target,
            age(lasts(operation))
        )
    })
}
