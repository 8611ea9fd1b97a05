//! `brick info`: what a brick says about itself.

use serde_json::{Value, json};

use super::brick::Brick;

/// The facts, for `--json`.
pub(super) fn facts(brick: &Brick) -> Value {
    let (block, store) = (brick.store.superblock(), &brick.store);
    let space = store.space();
    let view = block.view.as_ref().map(|view| {
        let members: Vec<Value> = view
            .members
            .iter()
            .map(|member| {
                json!({
                    "brick": member.brick.to_string(),
                    "node": member.node.to_string(),
                    "run": member.run.to_string(),
                    "keeps_data": member.keeps_data,
                })
            })
            .collect();
        json!({
            "epoch": view.epoch.0,
            "opening": view.opening.0,
            "effective": view.effective,
            "primary": view.primary.to_string(),
            "members": members,
            "absent": view.absent.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    json!({
        "device": brick.path.display().to_string(),
        "format": crate::superblock::FORMAT,
        "size": block.geometry.size,
        "cluster": block.cluster.to_string(),
        "generation": block.generation,
        "volume": block.volume_name,
        "volume_id": block.volume.to_string(),
        "set": block.set.0,
        "kind": block.kind,
        "shard_size": block.shard_size,
        "brick": block.brick.to_string(),
        "node": block.node.to_string(),
        "runs": block.runs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "boot": block.boot.to_string(),
        "clean": block.clean,
        "deleted": block.deleted,
        "damaged": block.damaged || store.log_damaged(),
        "view": view,
        "log": {
            "applied": store.applied().to_string(),
            "announced": store.announced().0,
            "head": store.head().to_string(),
            "bytes": block.geometry.wal.len,
            "free": space.ring_free,
        },
        "space": { "total": space.total, "free": space.free },
    })
}

/// The facts as lines for a person.
pub(super) fn lines(brick: &Brick) -> Vec<String> {
    let (block, store) = (brick.store.superblock(), &brick.store);
    let space = store.space();
    let last_run = block.runs.last().copied().unwrap_or_default();
    let yes = |flag: bool| if flag { "yes" } else { "no" };
    let mut lines = vec![
        format!(
            "Device        {} ({})",
            brick.path.display(),
            size(block.geometry.size)
        ),
        format!("Format        {}", crate::superblock::FORMAT),
        format!("Volume        {} ({})", block.volume_name, block.volume),
        format!("Set           {} ({:?})", block.set.0, block.kind),
        format!("Brick         {}", block.brick),
        format!("Formatted by  node {}", block.node),
        format!(
            "Cluster       {}, generation {}",
            block.cluster, block.generation
        ),
        format!("Deleted       {}", yes(block.deleted)),
        format!(
            "Damaged       {}",
            yes(block.damaged || store.log_damaged())
        ),
        format!(
            "Last run      {}, stopped cleanly: {}",
            last_run,
            yes(block.clean)
        ),
        format!(
            "Log           applied to {}, announced to {}, written to {}",
            store.applied(),
            store.announced(),
            store.head()
        ),
        format!(
            "Space         {} of {} free",
            size(space.free),
            size(space.total)
        ),
    ];
    match &block.view {
        None => lines.push("Last view     none".to_owned()),
        Some(view) => {
            let state = if view.effective {
                "in effect"
            } else {
                "not in effect"
            };
            lines.push(format!(
                "Last view     epoch {}, opening {}, {state}",
                view.epoch, view.opening
            ));
            for member in &view.members {
                let role = match (member.brick == view.primary, member.keeps_data) {
                    (true, _) => "primary",
                    (false, true) => "member",
                    (false, false) => "arbiter",
                };
                lines.push(format!(
                    "  {role:<8}    {} on node {}",
                    member.brick, member.node
                ));
            }
            for absent in &view.absent {
                lines.push(format!("  absent      {absent}"));
            }
        }
    }
    lines
}

/// A size in bytes with a binary unit.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit < 6 {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}iB", b" KMGTPE"[unit] as char),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_have_units() {
        assert_eq!(super::size(1023), "1023 B");
        assert_eq!(super::size(1536), "1.5 KiB");
        assert_eq!(super::size(256 << 20), "256.0 MiB");
    }
}
