//! What the daemon logs. The level of what concerns bricks follows `diagnostics.brick-log-level` of the started volumes.

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};

use mortar_protocol::ids::NodeId;
use mortar_protocol::options;
use mortar_protocol::view::VolumeState;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::control::machine::State;
use crate::control::store::Control;

/// How messages are written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum, Debug)]
pub enum LogFormat {
    /// Lines for people. Under systemd's journal without a time, which the journal adds.
    Text,
    /// One JSON object per line.
    Json,
}

/// Name of the option.
const OPTION: &str = "diagnostics.brick-log-level";

/// Modules that speak of bricks.
const OF_BRICKS: [&str; 12] = [
    "alloc",
    "brick",
    "device",
    "namespace",
    "node::bricks",
    "node::core_thread",
    "node::stores",
    "setlog",
    "store",
    "superblock",
    "tree",
    "wal",
];

/// The log of this process.
struct Log {
    /// As the command line has it.
    level: LevelFilter,
    filter: reload::Handle<EnvFilter, Registry>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Logs to standard error from now on. Libraries only from warnings on; that of the consensus, which complains about
/// each message to a node that is away, only where somebody looks for more: that a node is away is said once, by
/// `peers`, and that the consensus has failed, by whoever depends on it.
pub fn start(level: LevelFilter, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter(level, level));
    let lines = fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Json => lines.json().boxed(),
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            lines.without_time().boxed()
        }
        LogFormat::Text => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    let log = Log {
        level,
        filter: handle,
    };
    // Only the first call gets here: a second subscriber is refused above.
    let _ = LOG.set(log);
}

fn filter(level: LevelFilter, of_bricks: LevelFilter) -> EnvFilter {
    let consensus = if level >= LevelFilter::DEBUG {
        "warn"
    } else {
        "off"
    };
    let libraries = ["quinn", "quinn_proto", "quinn_udp", "rustls"];
    let mut directives: Vec<String> = libraries.map(|name| format!("{name}=warn")).into();
    directives.push(format!("openraft={consensus}"));
    let modules = OF_BRICKS.map(|name| format!("mortar_server::{name}={of_bricks}"));
    directives.extend(modules);
    let mut filter = EnvFilter::default().add_directive(level.into());
    for directive in directives {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    filter
}

/// The level of what concerns bricks: the most verbose one of the started volumes that have bricks on this node; those
/// without the option count as the command line has it.
fn level_of_bricks(state: &State, own: NodeId, level: LevelFilter) -> LevelFilter {
    let served = state.volumes.values().filter(|volume| {
        let mut bricks = volume.info.sets.iter().flatten();
        volume.info.state == VolumeState::Started && bricks.any(|brick| brick.node == own)
    });
    let wanted = served.map(|volume| {
        let set = volume.info.options.get(OPTION);
        let set = set.and_then(|value| options::log_level(value)?.parse().ok());
        set.unwrap_or(level)
    });
    wanted.max().unwrap_or(level)
}

/// Follows the options of the volumes.
pub async fn follow(control: Arc<Control>, own: NodeId) {
    let Some(log) = LOG.get() else { return };
    let mut now = log.level;
    let mut watch = control.watch();
    loop {
        watch.mark_unchanged();
        let wanted = level_of_bricks(&control.state(), own, log.level);
        if wanted != now {
            now = wanted;
            if let Err(error) = log.filter.reload(filter(log.level, wanted)) {
                tracing::error!(%error, "the level of the log cannot be changed");
            }
            tracing::info!(%wanted, "the level of what is logged of bricks");
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::ids::{BrickId, VolumeId};
    use mortar_protocol::view::{BrickInfo, SetKind};

    use crate::control::machine::Command;

    const INFO: LevelFilter = LevelFilter::INFO;

    /// Two nodes; each volume is given as its node and its level.
    fn state(volumes: &[(u128, Option<&str>)]) -> State {
        let mut state = State::default();
        let node = |id| (NodeId(id), format!("h{id}"));
        for (id, host) in [node(1), node(2)] {
            state.apply(&Command::Invite {
                node: id,
                host: host.clone(),
                addrs: Vec::new(),
                now_secs: 0,
            });
            state.apply(&Command::Node {
                node: id,
                host,
                addrs: Vec::new(),
            });
        }
        for (at, (node, level)) in volumes.iter().enumerate() {
            let (volume, name) = (VolumeId(at as u128 + 1), format!("v{at}"));
            let brick = BrickInfo {
                id: BrickId(at as u128 + 1),
                node: NodeId(*node),
                host: format!("h{node}"),
                path: format!("/b{at}"),
            };
            state.apply(&Command::BeginCreate {
                volume,
                name: name.clone(),
                kind: SetKind::Plain,
                bricks: vec![brick],
                now_secs: 0,
            });
            state.apply(&Command::FinishCreate { volume });
            let start = Command::Start {
                volume: name.clone(),
                force: false,
            };
            state.apply(&start);
            if let Some(level) = level {
                state.apply(&Command::Set {
                    volume: name,
                    options: vec![(OPTION.to_owned(), (*level).to_owned())],
                });
            }
        }
        assert_eq!(state.volumes.len(), volumes.len());
        state
    }

    #[test]
    fn the_most_verbose_started_volume_of_this_node_counts() {
        let level = |volumes: &[_]| level_of_bricks(&state(volumes), NodeId(1), INFO);
        assert_eq!(level(&[]), INFO);
        assert_eq!(level(&[(1, Some("ERROR"))]), LevelFilter::ERROR);
        assert_eq!(level(&[(1, Some("NONE"))]), LevelFilter::OFF);
        assert_eq!(level(&[(1, Some("ERROR")), (1, None)]), INFO);
        let both = [(1, Some("ERROR")), (1, Some("DEBUG"))];
        assert_eq!(level(&both), LevelFilter::DEBUG);
        assert_eq!(level(&[(1, None), (2, Some("TRACE"))]), INFO);
    }

    #[test]
    fn a_stopped_volume_does_not_count() {
        let mut state = state(&[(1, Some("TRACE"))]);
        assert_eq!(level_of_bricks(&state, NodeId(1), INFO), LevelFilter::TRACE);
        state.apply(&Command::Stop {
            volume: "v0".to_owned(),
        });
        assert_eq!(level_of_bricks(&state, NodeId(1), INFO), INFO);
    }

    #[test]
    fn every_directive_is_understood() {
        let text = filter(LevelFilter::INFO, LevelFilter::TRACE).to_string();
        for part in [
            "openraft=off",
            "quinn=warn",
            "mortar_server::wal=trace",
            "info",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let text = filter(LevelFilter::DEBUG, LevelFilter::OFF).to_string();
        assert!(text.contains("openraft=warn"), "{text}");
        assert_eq!(text.matches("mortar_server::").count(), OF_BRICKS.len());
    }
}
