//! `mortar cluster status` and `mortar operation list` as JSON. `docs/operations.md` lists the fields.

use mortar_protocol::admin::{ClusterStatus, NodeStatus, OperationInfo, PartialSet};
use serde_json::{Value, json};

use super::problems::{self, answers};
use super::text::role;
use crate::cli::peer::peer_json;

/// `mortar cluster status`.
pub(super) fn cluster(status: &ClusterStatus, now: i64) -> Value {
    json!({
        "cluster": status.cluster.to_string(),
        "has_majority": status.has_majority,
        "problems": problems::all(status, now),
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "volumes": { "total": status.volumes.0, "started": status.volumes.1 },
        "sets": {
            "total": status.sets,
            "partial": status.partial_sets.iter().map(partial).collect::<Vec<_>>(),
        },
        "operations": list(&status.operations, now),
    })
}

fn node(node: &NodeStatus) -> Value {
    let mut value = peer_json(&node.peer);
    value["role"] = role(node.role).into();
    value["answers"] = answers(node).into();
    value["told"] = node.told.as_ref().map_or(Value::Null, |told| {
        json!({
            "version": told.version,
            "pid": told.pid,
            "clock_ms": told.clock_ms,
            "uptime_secs": told.uptime_secs,
            "applied": told.applied,
            "bricks": told.bricks,
            "space": { "total": told.space.0, "free": told.space.1 },
        })
    });
    value
}

fn partial(set: &PartialSet) -> Value {
    let missing = set
        .missing
        .iter()
        .map(|(brick, why)| json!({ "host": brick.host, "path": brick.path, "reason": why }));
    json!({
        "volume": set.volume,
        "index": set.index,
        "serves": set.serves,
        "missing": missing.collect::<Vec<_>>(),
    })
}

/// `mortar operation list`.
pub(super) fn operations(operations: &[OperationInfo], now: i64) -> Value {
    json!({ "operations": list(operations, now) })
}

fn list(operations: &[OperationInfo], now: i64) -> Value {
    let one = |operation: &OperationInfo| {
        json!({
            "id": format!("{:032x}", operation.id),
            "what": operation.what,
            "target": operation.target,
            "since_secs": operation.since_secs,
            "age_secs": now.saturating_sub(operation.since_secs).max(0),
            "waits_for": operation.waits_for,
        })
    };
    operations.iter().map(one).collect()
}
