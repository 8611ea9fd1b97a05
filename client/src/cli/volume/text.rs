//! Volumes and their bricks as gluster prints them.

use std::fmt::Write as _;

use mortar_protocol::admin::BrickStatus;
use mortar_protocol::view::{SetKind, VolumeInfo, VolumeState};

use super::Status;

const RULE: &str =
    "------------------------------------------------------------------------------\n";
/// Columns for the name of a brick.
const NAME: usize = 43;

/// gluster's word for the kind of a volume.
pub(super) fn type_name(volume: &VolumeInfo) -> &'static str {
    match (volume.kind, volume.sets.len()) {
        (SetKind::Plain, _) => "Distribute",
        (SetKind::Replicate { .. }, 1) => "Replicate",
        (SetKind::Replicate { .. }, _) => "Distributed-Replicate",
        (SetKind::Disperse { .. }, 1) => "Disperse",
        (SetKind::Disperse { .. }, _) => "Distributed-Disperse",
    }
}

/// gluster's word for the state of a volume.
pub(super) fn state_name(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Created => "Created",
        VolumeState::Started => "Started",
        VolumeState::Stopped => "Stopped",
    }
}

/// `HOST:/path`; an IPv6 host in brackets, as it is typed.
pub(crate) fn place(host: &str, path: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{path}")
    } else {
        format!("{host}:{path}")
    }
}

/// A volume in `volume info`.
pub(super) fn info(volume: &VolumeInfo) -> String {
    let total: usize = volume.sets.iter().map(Vec::len).sum();
    let count = match volume.kind {
        SetKind::Plain => total.to_string(),
        SetKind::Replicate { copies } => format!("{} x {copies} = {total}", volume.sets.len()),
        SetKind::Disperse { data, redundancy } => {
            format!("{} x ({data} + {redundancy}) = {total}", volume.sets.len())
        }
    };
    let mut text = format!(
        " \nVolume Name: {}\nType: {}\nVolume ID: {}\nStatus: {}\nSnapshot Count: 0\nNumber of Bricks: {count}\n\
         Transport-type: quic\nBricks:\n",
        volume.name,
        type_name(volume),
        volume.id,
        state_name(volume.state),
    );
    for (at, brick) in volume.sets.iter().flatten().enumerate() {
        let _ = writeln!(text, "Brick{}: {}", at + 1, place(&brick.host, &brick.path));
    }
    if !volume.options.is_empty() {
        text.push_str("Options Reconfigured:\n");
        for (name, value) in &volume.options {
            let _ = writeln!(text, "{name}: {value}");
        }
    }
    text
}

fn brick_name(brick: &BrickStatus) -> String {
    format!("Brick {}", place(&brick.spec.host, &brick.spec.path))
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "Y" } else { "N" }
}

fn port_and_pid(brick: &BrickStatus) -> (String, String) {
    if brick.online {
        (brick.port.to_string(), brick.pid.to_string())
    } else {
        ("N/A".to_owned(), "N/A".to_owned())
    }
}

/// A volume in `volume status`.
pub(super) fn status(status: &Status) -> String {
    let mut text = format!(
        "Status of volume: {}\n{:<NAME$} TCP Port  RDMA Port  Online  Pid\n{RULE}",
        status.volume.name, "Gluster process",
    );
    for brick in &status.bricks {
        let (port, pid) = port_and_pid(brick);
        let rdma = if brick.online { "0" } else { "N/A" };
        // gluster breaks a long name into lines; the columns follow the last one.
        let name: Vec<char> = brick_name(brick).chars().collect();
        let mut lines = name
            .chunks(NAME)
            .map(|line| line.iter().collect::<String>());
        let last = lines.next_back().unwrap_or_default();
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
        let online = yes_no(brick.online);
        let _ = writeln!(
            text,
            "{last:<NAME$} {port:<10}{rdma:<11}{online:<8}{pid:<5}"
        );
    }
    let _ = writeln!(
        text,
        " \nTask Status of Volume {}\n{RULE}There are no active volume tasks\n ",
        status.volume.name
    );
    text
}

/// Why bricks are offline or not in sync: a line for each.
pub(super) fn reasons(status: &Status) -> String {
    let mut text = String::new();
    for brick in status
        .bricks
        .iter()
        .filter(|brick| !brick.reason.is_empty())
    {
        let _ = writeln!(text, "{}: {}", brick_name(brick), brick.reason);
    }
    text
}

/// What `mortar volume status` says beyond gluster's.
pub(super) fn more(status: &Status) -> String {
    let mut text = reasons(status);
    if status.clients > 0 {
        let _ = writeln!(text, "Clients with a session: {}", status.clients);
    }
    text
}

/// Bytes with a unit, as gluster prints them.
pub(crate) fn size_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["Bytes", "KB", "MB", "GB"] {
        if value < 1024.0 {
            return format!("{value:.1}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}TB")
}

/// A volume in `volume status detail`.
pub(super) fn detail(status: &Status) -> String {
    let mut text = format!("Status of volume: {}\n", status.volume.name);
    for brick in &status.bricks {
        text.push_str(RULE);
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "{key:<21}: {value:<20}");
        };
        let (port, pid) = port_and_pid(brick);
        line("Brick", &brick_name(brick));
        line("TCP Port", &port);
        line("RDMA Port", if brick.online { "0" } else { "N/A" });
        line("Online", yes_no(brick.online));
        line("Pid", &pid);
        line("File System", "mortar");
        line("Device", &brick.spec.path);
        line("Mount Options", "N/A");
        line("Inode Size", "N/A");
        if let Some(space) = &brick.space {
            line("Disk Space Free", &size_text(space.free));
            line("Total Disk Space", &size_text(space.total));
            line("Inode Count", &space.inodes.to_string());
            // Inodes are bounded by the space only.
            line("Free Inodes", "N/A");
        }
        line("In sync", yes_no(brick.in_sync));
        if !brick.reason.is_empty() {
            line("Reason", &brick.reason);
        }
    }
    text.push_str(" \n");
    text
}
