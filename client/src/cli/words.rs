//! The words of `volume create`, parsed as gluster does.

use mortar_protocol::admin::{BrickSpec, CreateVolume};
use mortar_protocol::options;
use mortar_protocol::view::SetKind;

/// Usage of `volume create`, printed for words that make no sense.
pub(crate) const CREATE_USAGE: &str = "\nUsage:\nvolume create <NEW-VOLNAME> [replica <COUNT>] \
[--brick-size <SIZE>] <HOST:/PATH> ... [force]";

/// Splits `HOST:/path` (an IPv6 host stands in brackets).
pub(crate) fn brick_spec(word: &str) -> Option<BrickSpec> {
    let at = if word.starts_with('[') {
        word.find("]:")? + 1
    } else {
        word.find(':')?
    };
    let (host, path) = (&word[..at], &word[at + 1..]);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || !path.starts_with('/') || path.len() < 2 {
        return None;
    }
    Some(BrickSpec {
        host: host.to_owned(),
        path: path.trim_end_matches('/').to_owned(),
    })
}

/// Parses what follows `volume create`.
///
/// # Errors
/// What a person is told.
pub(crate) fn create(words: &[String]) -> Result<CreateVolume, String> {
    let usage = || CREATE_USAGE.to_owned();
    let mut words = words.iter().map(String::as_str).peekable();
    let name = words.next().ok_or_else(usage)?.to_owned();
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 255 || !name.chars().all(valid) || name.starts_with('-') {
        return Err(usage());
    }
    let mut request = CreateVolume {
        name,
        kind: SetKind::Plain,
        bricks: Vec::new(),
        brick_size: None,
        force: false,
    };
    while let Some(word) = words.next() {
        match word {
            "replica" if request.bricks.is_empty() => {
                let copies = words
                    .next()
                    .and_then(|word| word.parse().ok())
                    .filter(|n| (2..=16).contains(n));
                let copies = copies.ok_or("replica count should be greater than 1")?;
                request.kind = SetKind::Replicate { copies };
            }
            "disperse" | "disperse-data" | "redundancy" | "arbiter" | "thin-arbiter" => {
                return Err(format!(
                    "volume create: {}: failed: {word} volumes are not built yet; there are plain, distributed and \
                     replicated ones",
                    request.name
                ));
            }
            "transport" => match words.next() {
                Some("tcp" | "udp" | "quic") => {}
                other => {
                    return Err(format!(
                        "wrong transport type {}; Mortar speaks QUIC only",
                        other.unwrap_or("")
                    ));
                }
            },
            "--brick-size" => {
                let size = words.next().and_then(options::size);
                request.brick_size = Some(size.ok_or("--brick-size needs a size, such as 10G")?);
            }
            "force" if words.peek().is_none() => request.force = true,
            word if word.starts_with("--brick-size=") => {
                let size = options::size(&word["--brick-size=".len()..]);
                request.brick_size = Some(size.ok_or("--brick-size needs a size, such as 10G")?);
            }
            word => match brick_spec(word) {
                Some(brick) => request.bricks.push(brick),
                None => {
                    return Err(format!(
                        "Wrong brick type: {word}, use <HOSTNAME>:<export-dir-abs-path>"
                    ));
                }
            },
        }
    }
    if request.bricks.is_empty() {
        Err(usage())
    } else {
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn create_is_parsed() {
        let request = create(&words(
            "v replica 3 h:/a [::1]:/b h:/c/ --brick-size 2G force",
        ))
        .unwrap();
        assert_eq!(request.kind, SetKind::Replicate { copies: 3 });
        assert_eq!(
            request.bricks[1],
            BrickSpec {
                host: "::1".into(),
                path: "/b".into()
            }
        );
        assert_eq!(request.bricks[2].path, "/c");
        assert_eq!(request.brick_size, Some(2 << 30));
        assert!(request.force);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(create(&words("bad/name h:/a")).unwrap_err(), CREATE_USAGE);
        assert_eq!(create(&[]).unwrap_err(), CREATE_USAGE);
        assert!(
            create(&words("v h:relative"))
                .unwrap_err()
                .starts_with("Wrong brick type")
        );
        assert!(
            create(&words("v disperse 3 h:/a"))
                .unwrap_err()
                .contains("not built yet")
        );
        assert!(create(&words("v replica 1 h:/a")).is_err());
    }
}
