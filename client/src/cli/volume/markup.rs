//! Volumes and their bricks as gluster's `--xml` has them.

use mortar_protocol::admin::BrickStatus;
use mortar_protocol::view::{SetKind, VolumeInfo, VolumeState};

use super::Status;
use super::text::{place, state_name, type_name};
use super::xml::{self, Xml};

/// `volume list`.
pub(super) fn list(names: &[&str]) -> String {
    xml::done(|xml| {
        xml.within("volList", |xml| {
            xml.element("count", names.len());
            for name in names {
                xml.element("volume", name);
            }
        });
    })
}

/// What came of a command that changes a volume as a whole.
pub(super) fn changed(verb: &str, volume: &str, id: Option<&str>) -> String {
    let element = match verb {
        "create" => "volCreate",
        "start" => "volStart",
        "stop" => "volStop",
        _ => "volDelete",
    };
    xml::done(|xml| {
        xml.within(element, |xml| {
            xml.within("volume", |xml| {
                xml.element("name", volume);
                if let Some(id) = id {
                    xml.element("id", id);
                }
            });
        });
    })
}

/// `volume info`.
pub(super) fn info(volumes: &[VolumeInfo]) -> String {
    xml::done(|xml| {
        xml.within("volInfo", |xml| {
            xml.within("volumes", |xml| {
                for volume in volumes {
                    xml.within("volume", |xml| volume_xml(xml, volume));
                }
                xml.element("count", volumes.len());
            });
        });
    })
}

fn volume_xml(xml: &mut Xml, volume: &VolumeInfo) {
    let total: usize = volume.sets.iter().map(Vec::len).sum();
    let (replicas, disperse, redundancy) = match volume.kind {
        SetKind::Plain => (1, 0, 0),
        SetKind::Replicate { copies } => (copies, 0, 0),
        SetKind::Disperse { data, redundancy } => (1, data + redundancy, redundancy),
    };
    let kind = match (volume.kind, volume.sets.len()) {
        (SetKind::Plain, _) => 0,
        (SetKind::Replicate { .. }, 1) => 2,
        (SetKind::Replicate { .. }, _) => 5,
        (SetKind::Disperse { .. }, 1) => 4,
        (SetKind::Disperse { .. }, _) => 7,
    };
    let state = match volume.state {
        VolumeState::Created => 0,
        VolumeState::Started => 1,
        VolumeState::Stopped => 2,
    };
    xml.element("name", &volume.name);
    xml.element("id", volume.id);
    xml.element("status", state);
    xml.element("statusStr", state_name(volume.state));
    xml.element("snapshotCount", 0);
    xml.element("brickCount", total);
    xml.element("distCount", volume.sets.len());
    xml.element("replicaCount", replicas);
    xml.element("arbiterCount", 0);
    xml.element("disperseCount", disperse);
    xml.element("redundancyCount", redundancy);
    xml.element("type", kind);
    xml.element("typeStr", type_name(volume));
    xml.element("transport", 0);
    xml.within("bricks", |xml| {
        for brick in volume.sets.iter().flatten() {
            let name = place(&brick.host, &brick.path);
            let node = brick.node.to_string();
            xml.mixed("brick", ("uuid", &node), &name, |xml| {
                xml.element("name", &name);
                xml.element("hostUuid", &node);
                xml.element("isArbiter", 0);
            });
        }
    });
    xml.element("optCount", volume.options.len());
    xml.within("options", |xml| {
        for (name, value) in &volume.options {
            xml.within("option", |xml| {
                xml.element("name", name);
                xml.element("value", value);
            });
        }
    });
}

/// `volume status [detail]`.
pub(super) fn status(found: &[Status], detail: bool) -> String {
    xml::done(|xml| {
        xml.within("volStatus", |xml| {
            xml.within("volumes", |xml| {
                for status in found {
                    xml.within("volume", |xml| {
                        xml.element("volName", &status.volume.name);
                        xml.element("nodeCount", status.bricks.len());
                        for brick in &status.bricks {
                            let bricks = status.volume.sets.iter().flatten();
                            let node = bricks
                                .filter(|info| info.id == brick.brick)
                                .map(|info| info.node.to_string())
                                .next()
                                .unwrap_or_default();
                            xml.within("node", |xml| node_xml(xml, brick, &node, detail));
                        }
                        if !detail {
                            xml.within("tasks", |_| {});
                        }
                    });
                }
            });
        });
    })
}

fn node_xml(xml: &mut Xml, brick: &BrickStatus, node: &str, detail: bool) {
    let port = if brick.online && brick.port != 0 {
        brick.port.to_string()
    } else {
        "N/A".to_owned()
    };
    xml.element("hostname", &brick.spec.host);
    xml.element("path", &brick.spec.path);
    xml.element("peerid", node);
    xml.element("status", u8::from(brick.online));
    xml.element("port", &port);
    xml.within("ports", |xml| {
        xml.element("tcp", &port);
        xml.element("rdma", "N/A");
    });
    if brick.online {
        xml.element("pid", brick.pid);
    } else {
        xml.element("pid", -1);
    }
    if detail {
        if let Some(space) = &brick.space {
            xml.element("sizeTotal", space.total);
            xml.element("sizeFree", space.free);
        }
        xml.element("device", &brick.spec.path);
        xml.element("blockSize", 4096);
        xml.element("mntOptions", "N/A");
        xml.element("fsName", "mortar");
    }
}
