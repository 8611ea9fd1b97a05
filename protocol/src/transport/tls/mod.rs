//! Certificates: the cluster's own authority, what it issues, and the TLS configurations that pin it.
//!
//! An authority is made when a cluster's first daemon starts. It issues certificates with DNS names below `mortar`
//! that say whom they belong to:
//!
//! - node: `node.mortar`, `<node id>.node.mortar`, `<cluster id>.cluster.mortar`;
//! - client: `uid-<uid>.client.mortar`, `<cluster id>.cluster.mortar`.
//!
//! A certificate counts from a day before it was made, a node's for [`NODE_LIFE`], a client's for [`CLIENT_LIFE`], the
//! authority's own without an end. A node renews its certificate for the same key pair.
//!
//! Files live in a directory of mode 0700; keys have mode 0600.

mod authority;
mod config;
mod files;
mod life;

pub use authority::{Authority, AuthorityParts, CLIENT_LIFE, NODE_LIFE, store_node};
pub use config::stranger_tls;
pub use files::{make_private_dir, write_private};
pub use life::{LiveCredentials, ends_at, renewal_due};

use std::path::PathBuf;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::ids::NodeId;
use crate::limits::WIRE_VERSIONS;

/// A name every node's certificate has: whom to ask for while a node's id is not known yet.
pub const ANY_NODE: &str = "node.mortar";

/// Why certificates could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {what}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// TLS refuses the certificate or key.
    #[error("cannot use the certificate: {0}")]
    Use(String),
}

/// A certificate, its key and the authority it is checked against.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Certificate of the authority (DER).
    pub authority: Vec<u8>,
    /// Own certificate (DER).
    pub certificate: Vec<u8>,
    /// Own private key (PKCS#8 DER).
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

fn node_name(node: NodeId) -> String {
    format!("{node}.node.mortar")
}

/// Name under which a node is asked for; id 0 stands for any node of the cluster.
pub fn server_name(node: NodeId) -> String {
    if node.0 == 0 {
        ANY_NODE.to_owned()
    } else {
        node_name(node)
    }
}

/// Whom a certificate belongs to. The certificate must have been verified.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let identities = parsed.valid_dns_names().filter_map(|name| {
        if let Some(node) = name.strip_suffix(".node.mortar") {
            Some(Identity::Node(node.parse().ok()?))
        } else {
            let uid = name.strip_suffix(".client.mortar")?.strip_prefix("uid-")?;
            Some(Identity::Client {
                uid: uid.parse().ok()?,
            })
        }
    });
    let mut identities = identities.fuse();
    let first = identities.next()?;
    identities.next().is_none().then_some(first)
}

/// ALPN names of the wire versions of this build, newest first.
pub fn alpn() -> Vec<Vec<u8>> {
    WIRE_VERSIONS
        .rev()
        .map(|version| format!("mortar/{version}").into_bytes())
        .collect()
}

/// ALPN name of the exchange by which a node is taken into a cluster.
pub const JOIN_ALPN: &[u8] = b"mortar-join/1";

impl Credentials {
    /// Whom the own certificate belongs to.
    pub fn identity(&self) -> Option<Identity> {
        identity(&CertificateDer::from(self.certificate.clone()))
    }

    /// A secret derived from the private key, different for each purpose; the same after every restart.
    pub fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.key)
    }
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Use(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Time;
    use crate::ids::ClusterId;
    use std::os::unix::fs::MetadataExt;

    const DAY: i64 = 86_400;

    fn day(number: i64) -> Time {
        Time {
            secs: number * DAY,
            nanos: 5,
        }
    }

    #[test]
    fn certificates_say_whom_they_belong_to() {
        let authority = Authority::generate(ClusterId(5)).unwrap();
        let node = authority.issue_node(NodeId(7), day(20_000)).unwrap();
        assert_eq!(node.identity(), Some(Identity::Node(NodeId(7))));
        let client = authority.issue_client(1000, day(20_000)).unwrap();
        assert_eq!(client.identity(), Some(Identity::Client { uid: 1000 }));
        node.server_tls(false).unwrap();
        node.server_tls(true).unwrap();
        client.client_tls().unwrap();
    }

    #[test]
    fn files_are_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let now = day(20_000);
        let first = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        let node = first.node_credentials(&tls, NodeId(7), now).unwrap();
        let again = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        assert_eq!(again.to_parts(), first.to_parts());
        let found = again.node_credentials(&tls, NodeId(7), now).unwrap();
        assert_eq!(found, node);
        assert_eq!(node.derived_secret("a"), found.derived_secret("a"));
        assert_ne!(node.derived_secret("a"), node.derived_secret("b"));
        assert_eq!(std::fs::metadata(&tls).unwrap().mode() & 0o777, 0o700);
        for name in ["ca.key", "node.key"] {
            let mode = std::fs::metadata(tls.join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn certificates_end_and_are_renewed_for_the_same_key() {
        let authority = Authority::generate(ClusterId(5)).unwrap();
        let node = authority.issue_node(NodeId(7), day(20_000)).unwrap();
        assert_eq!(ends_at(&node.certificate), Some(20_090 * DAY));
        // It counts from day 19,999 on: a third of 91 days is left on day 20,059.67.
        for (at, due) in [
            (0, true),
            (19_998, true),
            (19_999, false),
            (20_059, false),
            (20_060, true),
            (20_090, true),
            (30_000, true),
        ] {
            assert_eq!(renewal_due(&node.certificate, day(at)), due, "day {at}");
        }
        let fresh = authority.renew_node(&node, NodeId(7), day(20_060)).unwrap();
        assert_eq!(ends_at(&fresh.certificate), Some(20_150 * DAY));
        assert_eq!((&fresh.key, &fresh.authority), (&node.key, &node.authority));
        assert_eq!(fresh.derived_secret("a"), node.derived_secret("a"));
        assert_eq!(fresh.identity(), node.identity());
        fresh.server_tls(true).unwrap();
        let client = authority.issue_client(0, day(20_000)).unwrap();
        assert_eq!(ends_at(&client.certificate), Some(23_653 * DAY));
        // The authority's own, and clocks that are far off.
        let authority = authority.to_parts().certificate;
        assert!(!renewal_due(&authority, day(200_000)));
        assert!(renewal_due(b"no certificate", day(1)));
        let authority = Authority::generate(ClusterId(5)).unwrap();
        for secs in [i64::MIN, -1, 0, i64::MAX] {
            let made = authority.issue_node(NodeId(7), Time { secs, nanos: 0 });
            assert!(ends_at(&made.unwrap().certificate).is_some());
        }
    }

    #[test]
    fn a_stored_certificate_is_renewed_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let authority = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        let read = |at| {
            authority
                .node_credentials(&tls, NodeId(7), day(at))
                .unwrap()
        };
        let first = read(20_000);
        assert_eq!(read(20_050), first);
        let second = read(20_070);
        assert_ne!(second.certificate, first.certificate);
        assert_eq!(second.key, first.key);
        assert_eq!(read(20_071), second);
        // The same while the node runs.
        let live = LiveCredentials::new(second.clone());
        let renew = |at| {
            authority
                .renew_if_due(&tls, &live, NodeId(7), day(at))
                .unwrap()
        };
        assert!(!renew(20_100));
        assert_eq!(*live.current(), second);
        assert!(renew(20_140) && !renew(20_141));
        assert_eq!(*live.current(), read(20_141));
        assert_ne!(read(20_141), second);
    }

    #[test]
    fn an_authority_travels_and_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let own = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        let node = own.node_credentials(&tls, NodeId(7), day(20_000)).unwrap();
        let other = Authority::generate(ClusterId(6)).unwrap();
        let parts = other.to_parts();
        assert!(Authority::from_parts(ClusterId(5), &parts).is_err());
        let mixed = AuthorityParts {
            key: own.to_parts().key,
            ..parts.clone()
        };
        assert!(Authority::from_parts(ClusterId(6), &mixed).is_err());
        let nonsense = AuthorityParts {
            certificate: vec![1; 100],
            key: vec![2; 100],
        };
        assert!(Authority::from_parts(ClusterId(6), &nonsense).is_err());
        let copy = Authority::from_parts(ClusterId(6), &parts).unwrap();
        let fresh = copy.renew_node(&node, NodeId(7), day(20_000)).unwrap();
        assert_eq!(fresh.key, node.key);
        copy.install(&tls, &fresh).unwrap();
        // Found by what the certificate says, whatever is asked for.
        let found = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        assert_eq!(found.cluster(), ClusterId(6));
        assert_eq!(found.to_parts(), parts);
        let read = found.node_credentials(&tls, NodeId(7), day(20_000));
        assert_eq!(read.unwrap(), fresh);
        assert_eq!(std::fs::metadata(&tls).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // Also where nothing was.
        let empty = dir.path().join("empty");
        copy.install(&empty, &fresh).unwrap();
        assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 4);
    }
}
