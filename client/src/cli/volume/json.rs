//! Volumes and their bricks as JSON. `docs/operations.md` lists the fields.

use mortar_protocol::view::{SetKind, VolumeInfo, VolumeState};
use serde_json::{Value, json};

use super::Status;

/// What came of a command that changes a volume.
pub(super) fn changed(volume: &str, id: Option<&str>, notes: &[String]) -> Value {
    json!({ "volume": volume, "id": id, "done": true, "notes": notes })
}

/// `volume info`.
pub(super) fn info(volumes: &[VolumeInfo]) -> Value {
    json!({ "volumes": volumes.iter().map(volume).collect::<Vec<_>>() })
}

fn volume(volume: &VolumeInfo) -> Value {
    let (kind, copies, data, redundancy) = match volume.kind {
        SetKind::Plain => ("plain", 1, None, None),
        SetKind::Replicate { copies } => ("replicate", copies, None, None),
        SetKind::Disperse { data, redundancy } => ("disperse", 1, Some(data), Some(redundancy)),
    };
    let brick = |brick: &mortar_protocol::view::BrickInfo| {
        json!({
            "id": brick.id.to_string(),
            "node": brick.node.to_string(),
            "host": brick.host,
            "path": brick.path,
        })
    };
    let set = |set: &Vec<_>| json!({ "bricks": set.iter().map(brick).collect::<Vec<_>>() });
    json!({
        "name": volume.name,
        "id": volume.id.to_string(),
        "state": match volume.state {
            VolumeState::Created => "created",
            VolumeState::Started => "started",
            VolumeState::Stopped => "stopped",
        },
        "kind": kind,
        "copies": copies,
        "data": data,
        "redundancy": redundancy,
        "shard_size": volume.shard_size,
        "sets": volume.sets.iter().map(set).collect::<Vec<_>>(),
        "options": volume.options,
    })
}

/// `volume status`.
pub(super) fn status(found: &[Status]) -> Value {
    let volume = |status: &Status| {
        let bricks = status.bricks.iter().map(|brick| {
            let space = brick.space.map(
                |space| json!({ "total": space.total, "free": space.free, "inodes": space.inodes }),
            );
            json!({
                "id": brick.brick.to_string(),
                "host": brick.spec.host,
                "path": brick.spec.path,
                "online": brick.online,
                "in_sync": brick.in_sync,
                "port": brick.online.then_some(brick.port),
                "pid": brick.online.then_some(brick.pid),
                "reason": brick.reason,
                "space": space,
            })
        });
        json!({
            "name": status.volume.name,
            "id": status.volume.id.to_string(),
            "clients": status.clients,
            "bricks": bricks.collect::<Vec<_>>(),
        })
    };
    json!({ "volumes": found.iter().map(volume).collect::<Vec<_>>() })
}
