//! `mortar cluster status` and `mortar operation list` for people.

use std::fmt::Write as _;

use mortar_protocol::admin::{ClusterStatus, NodeStatus, OperationInfo, PeerState, Role};

use super::problems::{self, answers};
use crate::cli::volume::size_text;

/// A duration in seconds with its two largest units.
pub(super) fn age(secs: i64) -> String {
    let secs = secs.max(0);
    let (days, hours, minutes) = (secs / 86_400, secs / 3_600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", secs % 60),
        (0, ..) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// How far a clock is off.
pub(super) fn clock(millis: i64) -> String {
    let off = millis.unsigned_abs();
    let (sign, off) = (if millis < 0 { '-' } else { '+' }, off as f64);
    match millis.unsigned_abs() {
        0 => "0".to_owned(),
        1..1_000 => format!("{sign}{off:.0}ms"),
        1_000..100_000 => format!("{sign}{:.1}s", off / 1e3),
        _ => format!("{sign}{}", age((off / 1e3) as i64)),
    }
}

/// A node's part in the consensus.
pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Outside => "outside",
    }
}

fn state(node: &NodeStatus) -> &'static str {
    match (node.peer.state, answers(node)) {
        (_, false) => "NO ANSWER",
        (PeerState::Joining, _) => "joining",
        (PeerState::Leaving, _) => "leaving",
        (PeerState::Joined, _) if node.peer.is_self => "asked",
        (PeerState::Joined, _) => "connected",
    }
}

/// Lines of cells, in columns as wide as they have to be.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    rows.iter().fold(String::new(), |text, row| {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, " {cell:<width$}");
        }
        text + line.trim_end() + "\n"
    })
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn nodes(nodes: &[NodeStatus]) -> String {
    let mut rows = vec![row([
        "NODE", "ROLE", "STATE", "VERSION", "CLOCK", "UP", "BRICKS", "FREE", "OF",
    ])];
    for node in nodes {
        let mut cells = row([&node.peer.host, role(node.role), state(node)]);
        match &node.told {
            Some(told) => cells.extend([
                told.version.clone(),
                clock(told.clock_ms),
                age(i64::try_from(told.uptime_secs).unwrap_or(i64::MAX)),
                told.bricks.to_string(),
                size_text(told.space.1),
                size_text(told.space.0),
            ]),
            None => cells.extend(row(["-"; 6])),
        }
        rows.push(cells);
    }
    columns(&rows)
}

fn totals(status: &ClusterStatus) -> String {
    let voters = status
        .nodes
        .iter()
        .filter(|node| matches!(node.role, Role::Leader | Role::Voter));
    let voting = voters.clone().count();
    let answering = voters.filter(|node| answers(node)).count();
    let majority = if status.has_majority {
        "a majority"
    } else {
        "NO majority"
    };
    let whole = (status.sets as usize).saturating_sub(status.partial_sets.len());
    let told = status.nodes.iter().filter_map(|node| node.told.as_ref());
    let (total, free) = told.fold((0_u64, 0_u64), |sum, told| {
        (
            sum.0.saturating_add(told.space.0),
            sum.1.saturating_add(told.space.1),
        )
    });
    format!(
        "Nodes: {}; voters: {answering} of {voting} answer, {majority}\nVolumes: {} of {} started; sets: {whole} of {} \
         whole; space of open bricks: {} free of {}\n",
        status.nodes.len(),
        status.volumes.1,
        status.volumes.0,
        status.sets,
        size_text(free),
        size_text(total),
    )
}

/// Operations in progress, oldest first.
pub(super) fn operations(operations: &[OperationInfo], now: i64) -> String {
    let mut rows = vec![row(["OPERATION", "TARGET", "FOR", "WAITS FOR"])];
    for operation in operations {
        rows.push(row([
            &operation.what,
            &operation.target,
            &age(now.saturating_sub(operation.since_secs)),
            &operation.waits_for,
        ]));
    }
    columns(&rows)
}

/// The cluster on one screen.
pub(super) fn cluster(status: &ClusterStatus, now: i64) -> String {
    let mut text = match &problems::all(status, now)[..] {
        [] => "All is well.\n".to_owned(),
        [one] => format!("1 problem:\n  ! {one}\n"),
        all => all
            .iter()
            .fold(format!("{} problems:\n", all.len()), |text, one| {
                text + "  ! " + one + "\n"
            }),
    };
    let _ = write!(
        text,
        "\nCluster {}\n{}\n{}\n",
        status.cluster,
        totals(status),
        nodes(&status.nodes)
    );
    if status.operations.is_empty() {
        text.push_str("No operations in progress\n");
    } else {
        text.push_str(&operations(&status.operations, now));
    }
    text
}
