//! The words of `volume create`, parsed as gluster does.

use mortar_protocol::admin::{BrickSpec, CreateVolume};
use mortar_protocol::options;
use mortar_protocol::view::SetKind;

use super::CREATE;
use crate::cli::said::Failed;

/// What is asked before a volume of two copies is made.
pub(super) const REPLICA_2: &str = "Replica 2 volumes are prone to split-brain. Use Arbiter or Replica 3 to avoid \
    this. See: http://docs.gluster.org/en/latest/Administrator-Guide/Split-brain-and-ways-to-deal-with-it/.\n\
    Do you still want to continue?\n";

/// Names that mean something else.
const RESERVED: &[&str] = &[
    "volume",
    "type",
    "subvolumes",
    "option",
    "end-volume",
    "all",
    "volume_not_in_ring",
    "help",
    "description",
    "force",
    "snap-max-hard-limit",
    "snap-max-soft-limit",
    "auto-delete",
    "activate-on-create",
];

/// Splits `HOST:/path` (an IPv6 host stands in brackets).
fn brick_spec(word: &str) -> Option<BrickSpec> {
    let at = if word.starts_with('[') {
        word.find("]:")? + 1
    } else {
        word.find(':')?
    };
    let (host, path) = (&word[..at], &word[at + 1..]);
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None => host,
    };
    if host.is_empty() || !path.starts_with('/') || path.len() < 2 {
        return None;
    }
    Some(BrickSpec {
        host: host.to_owned(),
        path: path.trim_end_matches('/').to_owned(),
    })
}

/// Whether a new volume may have this name.
fn check_name(name: &str) -> Result<(), Failed> {
    let wrong = |message: String| Err(Failed::Wrong(message));
    if name.is_empty() || name.starts_with('-') || name.contains('/') {
        return Err(Failed::Usage(CREATE));
    }
    if RESERVED.contains(&name) {
        return wrong(format!("\"{name}\" cannot be the name of a volume."));
    }
    if name.len() > 255 {
        return wrong("Volume name exceeds 256 characters.".to_owned());
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match name.chars().find(|c| !fits(*c)) {
        None => Ok(()),
        Some(c) => wrong(format!(
            "Volume name should not contain \"{c}\" character.\nVolume names can only contain alphanumeric, '-' and \
             '_' characters."
        )),
    }
}

fn copies(word: Option<&str>) -> Result<SetKind, Failed> {
    let wrong = |message: &str| Err(Failed::Wrong(message.to_owned()));
    match word.map(str::parse::<u16>) {
        Some(Ok(copies @ 2..=16)) => Ok(SetKind::Replicate { copies }),
        Some(Ok(17..)) => wrong("replica count should be at most 16"),
        Some(Ok(_)) => wrong("replica count should be greater than 1"),
        _ => Err(Failed::Usage(CREATE)),
    }
}

fn brick_size(word: Option<&str>) -> Result<Option<u64>, Failed> {
    let size = word.and_then(options::size);
    let wrong = || Failed::Wrong("--brick-size needs a size, such as 10G".to_owned());
    size.map(Some).ok_or_else(wrong)
}

/// Parses what follows `volume create`.
///
/// # Errors
/// What a person is told.
pub(super) fn create(words: &[String]) -> Result<CreateVolume, Failed> {
    let mut words = words.iter().map(String::as_str).peekable();
    let name = words.next().ok_or(Failed::Usage(CREATE))?.to_owned();
    check_name(&name)?;
    let mut request = CreateVolume {
        name,
        kind: SetKind::Plain,
        bricks: Vec::new(),
        brick_size: None,
        force: false,
    };
    while let Some(word) = words.next() {
        match word {
            "replica" if request.bricks.is_empty() => request.kind = copies(words.next())?,
            "stripe" | "disperse" | "disperse-data" | "redundancy" | "arbiter" | "thin-arbiter" => {
                let why = format!(
                    "{word} volumes are not built yet; there are plain, distributed and replicated ones"
                );
                let prefix = format!("volume create: {}: failed: ", request.name);
                return Err(Failed::refused(prefix, why));
            }
            "transport" => match words.next() {
                Some("tcp" | "udp" | "quic") => {}
                other => {
                    return Err(Failed::Wrong(format!(
                        "wrong transport type {}; Mortar speaks QUIC only",
                        other.unwrap_or("")
                    )));
                }
            },
            "--brick-size" => request.brick_size = brick_size(words.next())?,
            "force" if words.peek().is_none() => request.force = true,
            word if word.starts_with("--brick-size=") => {
                request.brick_size = brick_size(word.split_once('=').map(|(_, size)| size))?;
            }
            word => match brick_spec(word) {
                Some(brick) => request.bricks.push(brick),
                None => {
                    return Err(Failed::Wrong(format!(
                        "Wrong brick type: {word}, use <HOSTNAME>:<export-dir-abs-path>"
                    )));
                }
            },
        }
    }
    if request.bricks.is_empty() {
        Err(Failed::Usage(CREATE))
    } else {
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CreateVolume, Failed> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        create(&words)
    }

    #[test]
    fn create_is_parsed() {
        let request =
            parse("v replica 3 h:/a [fe80::1%eth0]:/b h:/c/ --brick-size 2G force").unwrap();
        assert_eq!(request.kind, SetKind::Replicate { copies: 3 });
        assert_eq!(
            request.bricks[1],
            BrickSpec {
                host: "fe80::1%eth0".into(),
                path: "/b".into()
            }
        );
        assert_eq!(request.bricks[2].path, "/c");
        assert_eq!(request.brick_size, Some(2 << 30));
        assert!(request.force);
        let plain = parse("v transport tcp h:/a --brick-size=1M").unwrap();
        assert_eq!((plain.kind, plain.force), (SetKind::Plain, false));
        assert_eq!(plain.brick_size, Some(1 << 20));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "bad/name h:/a",
            "-v h:/a",
            "v",
            "v replica",
            "v replica x h:/a",
        ] {
            assert_eq!(parse(text), Err(Failed::Usage(CREATE)), "{text}");
        }
        let long = "n".repeat(256);
        for (text, why) in [
            (
                format!("{long} h:/a"),
                "Volume name exceeds 256 characters.",
            ),
            (
                "all h:/a".to_owned(),
                "\"all\" cannot be the name of a volume.",
            ),
            (
                "auto-delete h:/a".to_owned(),
                "\"auto-delete\" cannot be the name of a volume.",
            ),
            (
                "a.b h:/a".to_owned(),
                "Volume name should not contain \".\" character.\nVolume names can only contain alphanumeric, '-' and \
                 '_' characters.",
            ),
            (
                "v h:relative".to_owned(),
                "Wrong brick type: h:relative, use <HOSTNAME>:<export-dir-abs-path>",
            ),
            (
                "v [::1:/a".to_owned(),
                "Wrong brick type: [::1:/a, use <HOSTNAME>:<export-dir-abs-path>",
            ),
            (
                "v h:/a force h:/b".to_owned(),
                "Wrong brick type: force, use <HOSTNAME>:<export-dir-abs-path>",
            ),
            (
                "v replica 1 h:/a".to_owned(),
                "replica count should be greater than 1",
            ),
            (
                "v replica 17 h:/a".to_owned(),
                "replica count should be at most 16",
            ),
            (
                "v transport rdma h:/a".to_owned(),
                "wrong transport type rdma; Mortar speaks QUIC only",
            ),
            (
                "v --brick-size much h:/a".to_owned(),
                "--brick-size needs a size, such as 10G",
            ),
        ] {
            assert_eq!(parse(&text), Err(Failed::Wrong(why.to_owned())), "{text}");
        }
        assert!(parse(&format!("{} h:/a", "n".repeat(255))).is_ok());
        let Err(Failed::Refused { message, .. }) = parse("v disperse 3 h:/a") else {
            panic!("disperse volumes are not built yet");
        };
        assert!(message.contains("not built yet"));
    }
}
