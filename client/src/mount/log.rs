//! What a mount logs: `log-level` at first, then `diagnostics.client-log-level` of the volume where that is set.

use std::sync::OnceLock;

use mortar_protocol::options;
use mortar_protocol::view::VolumeInfo;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Name of the option.
const OPTION: &str = "diagnostics.client-log-level";

/// The log of this process.
struct Log {
    /// As the mount's options have it.
    level: &'static str,
    filter: reload::Handle<EnvFilter, Registry>,
}

static LOG: OnceLock<Log> = OnceLock::new();

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(format!(
        "warn,mortar_client={level},mortar_protocol={level}"
    ))
    .unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Messages go to standard error, which is the log file in the background. A panic ends the process: the kernel then
/// answers ENOTCONN, instead of letting callers wait for a thread that is gone.
pub(super) fn start(level: &'static str) {
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // Another subscriber may be there already; then it is the one that counts.
    let begun = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
    if begun.is_ok() {
        let log = Log {
            level,
            filter: handle,
        };
        // Nobody else begins one.
        let _ = LOG.set(log);
    }
    mortar_protocol::ending::end_on_panic(|| false);
}

/// The level a volume asks of its mounts, if it does.
pub(super) fn level_of(info: &VolumeInfo) -> Option<&'static str> {
    options::log_level(info.options.get(OPTION)?)
}

/// Logs from now on what the volume asks for; if it asks for nothing, what the mount's options do.
pub(super) fn set(wanted: Option<&'static str>) {
    let Some(log) = LOG.get() else { return };
    let level = wanted.unwrap_or(log.level);
    if let Err(error) = log.filter.reload(filter(level)) {
        tracing::error!("the level of the log cannot be changed: {error}");
    }
}
