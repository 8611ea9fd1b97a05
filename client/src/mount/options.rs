//! What is mounted where, and how: the source, the directory and the `-o` options.
//!
//! The options are those of mount.glusterfs, of mount(8) and of fstab. An unknown one is refused by name.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::MountOption;

/// Port of a daemon unless `server-port` or the source says otherwise.
pub(super) const DEFAULT_PORT: u16 = 24_007;

/// `busy-poll` unless given: somewhat more than a small read takes.
const BUSY_POLL: Duration = Duration::from_micros(300);
/// Most of it, in microseconds.
const MAX_BUSY_POLL: u64 = 10_000;

/// A parsed mount source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Source {
    /// As typed; /proc/mounts shows it.
    pub(super) text: String,
    /// Hosts to ask, in order.
    pub(super) hosts: Vec<String>,
    /// Volume name.
    pub(super) volume: String,
}

/// Parsed options.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct MountOptions {
    /// More hosts to ask (`backup-volfile-servers`).
    pub(super) backups: Vec<String>,
    /// Their port.
    pub(super) port: u16,
    /// Refuse changes.
    pub(super) read_only: bool,
    /// Let other users in; `None`: where this user may.
    pub(super) allow_other: Option<bool>,
    /// Options of the kernel's.
    pub(super) kernel: Vec<MountOption>,
    /// `attribute-timeout`, if given.
    pub(super) attr_ttl: Option<Duration>,
    /// `entry-timeout`, if given.
    pub(super) entry_ttl: Option<Duration>,
    /// `negative-timeout`, if given.
    pub(super) negative_ttl: Option<Duration>,
    /// `log-file`, if given.
    pub(super) log_file: Option<PathBuf>,
    /// `direct-io-mode`: every file is read and written past the kernel's pages.
    pub(super) direct_io: bool,
    /// `busy-poll`: how long the thread of the connections looks for more work before it sleeps.
    pub(super) busy_poll: Duration,
    /// Log level, as tracing names it.
    pub(super) log_level: &'static str,
    /// Options accepted without effect, for the log.
    pub(super) ignored: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            backups: Vec::new(),
            port: DEFAULT_PORT,
            read_only: false,
            allow_other: None,
            kernel: Vec::new(),
            attr_ttl: None,
            entry_ttl: None,
            negative_ttl: None,
            log_file: None,
            direct_io: false,
            busy_poll: BUSY_POLL,
            log_level: "info",
            ignored: Vec::new(),
        }
    }
}

/// Options of GlusterFS that have nothing to switch here: what they tune does not exist, or is always on.
const WITHOUT_EFFECT: &[&str] = &[
    "attr-times-granularity",
    "auto-invalidation",
    "background-qlen",
    "capability",
    "congestion-threshold",
    "dump-fuse",
    "event-history",
    "fetch-attempts",
    "fopen-keep-cache",
    "fuse-mountopts",
    "gid-timeout",
    "global-threading",
    "inode-table-size",
    "invalidate-limit",
    "io-engine",
    "localtime-logging",
    "lru-limit",
    "mem-accounting",
    "no-root-squash",
    "oom-score-adj",
    "process-name",
    "reader-thread-count",
    "resolve-gids",
    "selinux",
    "thin-client",
    "use-readdirp",
    "volfile-check",
    "volfile-max-fetch-attempts",
    "volume-id",
    "volume-name",
    "xlator-option",
];

/// Options of GlusterFS that would have to do something, and do not.
const UNSUPPORTED: &[&str] = &[
    "aux-gfid-mount",
    "auto_unmount",
    "enable-ino32",
    "kernel-writeback-cache",
    "root-squash",
    "subdir-mount",
    "worm",
];

/// Words for fstab and mount(8) that say nothing to a file system.
const FSTAB: &[&str] = &[
    "_netdev", "auto", "defaults", "group", "noauto", "nofail", "nouser", "owner", "rw", "user",
    "users",
];

/// Words of mount(8) that FUSE does not know; mount.glusterfs warns of them and goes on.
const UNHANDLED: &[&str] = &[
    "async",
    "dirsync",
    "iversion",
    "loud",
    "mand",
    "nomand",
    "silent",
    "strictatime",
    "sync",
];

/// Parses `HOST:/NAME` (also `HOST:NAME`, `H1,H2:/NAME`, `HOST:PORT:/NAME`, `[V6]:/NAME`).
///
/// # Errors
///
/// One line for the person who typed it.
pub(super) fn parse_source(text: &str) -> Result<Source, String> {
    let wrong = || {
        format!("'{text}' does not name a volume: expected HOST:/NAME, for example localhost:/data")
    };
    let (hosts, volume) = match text.rfind(":/") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => text.rsplit_once(':').ok_or_else(wrong)?,
    };
    let hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
    if volume.is_empty() || hosts.iter().any(|host| host.is_empty()) {
        return Err(wrong());
    }
    if volume.contains('/') {
        return Err(format!(
            "'{text}' names a directory of a volume; only whole volumes can be mounted: use HOST:/{}",
            volume.split('/').next().unwrap_or_default()
        ));
    }
    Ok(Source {
        text: text.to_owned(),
        hosts,
        volume: volume.to_owned(),
    })
}

/// Parses the arguments of all `-o`.
///
/// # Errors
///
/// One line that names the option.
pub(super) fn parse_options(given: &[String]) -> Result<MountOptions, String> {
    let mut options = MountOptions::default();
    for word in given.iter().flat_map(|list| list.split(',')) {
        if !word.is_empty() {
            parse_option(&mut options, word)?;
        }
    }
    Ok(options)
}

fn parse_option(options: &mut MountOptions, word: &str) -> Result<(), String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let needed = || {
        value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| format!("option {name} needs a value: {name}=..."))
    };
    match name {
        "ro" => options.read_only = true,
        "rw" => options.read_only = false,
        "allow_other" => options.allow_other = Some(true),
        "nodev" => options.kernel.push(MountOption::NoDev),
        "dev" => options.kernel.push(MountOption::Dev),
        "nosuid" => options.kernel.push(MountOption::NoSuid),
        "suid" => options.kernel.push(MountOption::Suid),
        "noexec" => options.kernel.push(MountOption::NoExec),
        "exec" => options.kernel.push(MountOption::Exec),
        "noatime" => options.kernel.push(MountOption::NoAtime),
        // ACLs are always on.
        "acl" => {}
        // Reads of directories never change atime, and those of files as relatime says, if the volume wants it.
        "nodiratime" | "relatime" | "atime" | "diratime" | "norelatime" => {}
        "attribute-timeout" => options.attr_ttl = Some(seconds(name, needed()?)?),
        "entry-timeout" => options.entry_ttl = Some(seconds(name, needed()?)?),
        "negative-timeout" => options.negative_ttl = Some(seconds(name, needed()?)?),
        "backup-volfile-servers" | "backupvolfile-server" => {
            options.backups.extend(servers(needed()?)?);
        }
        "server-port" => {
            let text = needed()?;
            options.port = text
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| format!("option {name}: '{text}' is not a port number"))?;
        }
        "direct-io-mode" => {
            options.direct_io = match needed()? {
                "enable" | "on" | "yes" | "true" => true,
                "disable" | "off" | "no" | "false" | "auto" => false,
                text => {
                    return Err(format!(
                        "option {name}: '{text}' is none of enable, disable, auto"
                    ));
                }
            };
        }
        "busy-poll" => {
            let text = needed()?;
            let micros = text.parse().ok().filter(|micros| *micros <= MAX_BUSY_POLL);
            options.busy_poll = micros.map(Duration::from_micros).ok_or_else(|| {
                format!(
                    "option {name}: '{text}' is no number of microseconds up to {MAX_BUSY_POLL}"
                )
            })?;
        }
        "transport" => {
            let text = needed()?;
            if !["tcp", "socket"].contains(&text) {
                return Err(format!(
                    "option {name}: '{text}' is not available; leave it out"
                ));
            }
        }
        "log-file" => options.log_file = Some(PathBuf::from(needed()?)),
        "log-level" => options.log_level = level(needed()?)?,
        _ if WITHOUT_EFFECT.contains(&name) || UNHANDLED.contains(&name) => {
            options.ignored.push(word.to_owned());
        }
        _ if FSTAB.contains(&name) || name.starts_with("x-") || name == "comment" => {}
        _ if name.starts_with("halo-") || name.starts_with("context") => {
            options.ignored.push(word.to_owned());
        }
        _ if UNSUPPORTED.contains(&name) => {
            return Err(format!("option {name} is not supported"));
        }
        _ => return Err(format!("invalid option: {word}")),
    }
    Ok(())
}

fn seconds(name: &str, text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("option {name}: '{text}' is not a number of seconds (0 to 86400)"))
}

/// Splits `a:b:[v6]`.
fn servers(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = if rest.starts_with('[') {
            rest.find(']')
                .map(|at| at + 1)
                .ok_or_else(|| format!("invalid backup servers: '{text}'"))?
        } else {
            rest.find(':').unwrap_or(rest.len())
        };
        let (server, more) = rest.split_at(end);
        if server.is_empty() || !(more.is_empty() || more.starts_with(':')) {
            return Err(format!("invalid backup servers: '{text}'"));
        }
        found.push(server.to_owned());
        rest = more.strip_prefix(':').unwrap_or(more);
    }
    Ok(found)
}

fn level(text: &str) -> Result<&'static str, String> {
    mortar_protocol::options::log_level(&text.to_ascii_uppercase()).ok_or_else(|| {
        format!("option log-level: '{text}' is none of CRITICAL, ERROR, WARNING, INFO, DEBUG, TRACE, NONE")
    })
}

impl MountOptions {
    /// Whether reads leave atime alone whatever the volume's options say.
    pub(super) fn no_atime(&self) -> bool {
        self.read_only || self.kernel.contains(&MountOption::NoAtime)
    }

    /// `HOST:PORT` of every server to ask, in order.
    pub(super) fn servers(&self, source: &Source) -> Vec<String> {
        let all = source.hosts.iter().chain(&self.backups);
        all.map(|host| with_port(host, self.port)).collect()
    }
}

/// Adds the port to a host that has none.
fn with_port(host: &str, port: u16) -> String {
    let colons = host.matches(':').count();
    match host.strip_prefix('[') {
        Some(_) if host.contains("]:") => host.to_owned(),
        Some(_) => format!("{host}:{port}"),
        None if colons == 1 => host.to_owned(),
        None if colons > 1 => format!("[{host}]:{port}"),
        None => format!("{host}:{port}"),
    }
}

/// Most bytes of a directory that its log's name has.
const LOG_NAME: usize = 200;

/// Where a mount in the background logs unless told: as root under /var/log/mortar, else in the user's state
/// directory.
pub(super) fn default_log(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().as_bytes().to_vec();
    let slashes = name.iter().take_while(|byte| **byte == b'/').count();
    // Of a long path the end, so that the log's own name is not too long.
    name.drain(..slashes.max(name.len().saturating_sub(LOG_NAME)));
    name.iter_mut()
        .filter(|byte| **byte == b'/')
        .for_each(|byte| *byte = b'-');
    if name.is_empty() {
        name = b"root".to_vec();
    }
    name.extend(b".log");
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/log/mortar")
    } else {
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
        std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(home)
            .unwrap_or_else(std::env::temp_dir)
            .join("mortar")
    };
    base.join(OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions, String> {
        parse_options(&[text.to_owned()])
    }

    #[test]
    fn sources_name_hosts_and_a_volume() {
        let source = parse_source("a,b:/vol").unwrap();
        assert_eq!(
            (source.hosts, source.volume),
            (vec!["a".into(), "b".into()], "vol".into())
        );
        assert_eq!(parse_source("h:vol").unwrap().volume, "vol");
        assert_eq!(parse_source("[::1]:/v").unwrap().hosts, ["[::1]"]);
        assert_eq!(parse_source("h:2400:/v").unwrap().hosts, ["h:2400"]);
        for wrong in ["", "vol", "h:", "h:/", ":/v", "h:/v/dir", "a,,b:/v"] {
            assert!(parse_source(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_are_understood() {
        let options = parse("ro,attribute-timeout=2.5,entry-timeout=0,negative-timeout=3").unwrap();
        assert!(options.read_only);
        assert_eq!(options.attr_ttl, Some(Duration::from_millis(2_500)));
        assert_eq!(options.entry_ttl, Some(Duration::ZERO));
        assert_eq!(options.negative_ttl, Some(Duration::from_secs(3)));
        let options = parse("log-file=/x/y.log,log-level=WARNING,server-port=99,acl").unwrap();
        assert_eq!(options.log_file, Some(PathBuf::from("/x/y.log")));
        assert_eq!((options.log_level, options.port), ("warn", 99));
        assert!(options.ignored.is_empty() && !options.direct_io);
        assert!(parse("direct-io-mode=enable").unwrap().direct_io);
        assert_eq!(parse("busy-poll=0").unwrap().busy_poll, Duration::ZERO);
        assert!(parse("defaults,_netdev,x-systemd.automount,nofail,,noatime").is_ok());
        assert!(parse("noatime").unwrap().no_atime() && parse("ro").unwrap().no_atime());
        assert!(!parse("relatime,noexec").unwrap().no_atime());
        let options = parse("backup-volfile-servers=b:[fe80::1]:c").unwrap();
        let source = parse_source("a:5:/v").unwrap();
        assert_eq!(
            options.servers(&source),
            ["a:5", "b:24007", "[fe80::1]:24007", "c:24007"]
        );
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        for (text, name) in [
            ("no-such-thing", "no-such-thing"),
            ("rw,bogus=1", "bogus=1"),
            ("attribute-timeout=x", "attribute-timeout"),
            ("attribute-timeout", "attribute-timeout"),
            ("entry-timeout=-1", "entry-timeout"),
            ("entry-timeout=inf", "entry-timeout"),
            ("log-level=LOUD", "log-level"),
            ("server-port=0", "server-port"),
            ("subdir-mount=/x", "subdir-mount"),
            ("backup-volfile-servers=a::b", "backup servers"),
            ("transport=rdma", "transport"),
            ("direct-io-mode=perhaps", "direct-io-mode"),
            ("direct-io-mode", "direct-io-mode"),
            ("busy-poll=10001", "busy-poll"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
