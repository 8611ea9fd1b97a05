//! Certificates: the cluster's own authority, what it issues, and the TLS configurations that pin it.
//!
//! An authority is made when a cluster's first daemon starts. It issues certificates with DNS names below `mortar`
//! that say whom they belong to:
//!
//! - node: `node.mortar`, `<node id>.node.mortar`, `<cluster id>.cluster.mortar`;
//! - client: `uid-<uid>.client.mortar`, `<cluster id>.cluster.mortar`.
//!
//! Files live in a directory of mode 0700; keys have mode 0600.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::ids::{ClusterId, NodeId};
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

/// The cluster's certificate authority.
pub struct Authority {
    cluster: ClusterId,
    certificate: Vec<u8>,
    key: KeyPair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.cluster)
    }
}

impl Authority {
    /// Makes a new authority for `cluster`.
    ///
    /// # Errors
    /// If the key cannot be made.
    pub fn generate(cluster: ClusterId) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let certificate = Self::params(cluster)?.self_signed(&key)?.der().to_vec();
        Ok(Self {
            cluster,
            certificate,
            key,
        })
    }

    fn params(cluster: ClusterId) -> Result<CertificateParams, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Mortar cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    /// Reads the authority from `dir`, or makes one and stores it there.
    ///
    /// # Errors
    /// If a file cannot be read or written, or does not belong to `cluster`.
    pub fn load_or_create(dir: &Path, cluster: ClusterId) -> Result<Self, TlsError> {
        make_private_dir(dir)?;
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !key_path.exists() {
            let made = Self::generate(cluster)?;
            write_private(&cert_path, &pem_text("CERTIFICATE", &made.certificate))?;
            write_private(&key_path, &made.key.serialize_pem())?;
            return Ok(made);
        }
        let certificate = read_certificate(&cert_path)?;
        let key = KeyPair::from_pem(&read_text(&key_path)?).map_err(|error| TlsError::Content {
            path: key_path,
            what: error.to_string(),
        })?;
        Ok(Self {
            cluster,
            certificate,
            key,
        })
    }

    /// A certificate for a node.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue_node(&self, node: NodeId) -> Result<Credentials, TlsError> {
        self.issue(
            vec![ANY_NODE.to_owned(), node_name(node)],
            format!("Mortar node {node}"),
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        )
    }

    /// A certificate for a client that acts as `uid` (0: may act as anybody).
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue_client(&self, uid: u32) -> Result<Credentials, TlsError> {
        self.issue(
            vec![format!("uid-{uid}.client.mortar")],
            format!("Mortar client uid {uid}"),
            vec![ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    fn issue(
        &self,
        mut names: Vec<String>,
        common_name: String,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Credentials, TlsError> {
        names.push(format!("{}.cluster.mortar", self.cluster));
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(Self::params(self.cluster)?, &self.key);
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Credentials {
            authority: self.certificate.clone(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        })
    }

    /// Reads this node's certificate from `dir`, or issues one and stores it there.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn node_credentials(&self, dir: &Path, node: NodeId) -> Result<Credentials, TlsError> {
        make_private_dir(dir)?;
        let (cert_path, key_path) = (dir.join("node.pem"), dir.join("node.key"));
        if !key_path.exists() {
            let made = self.issue_node(node)?;
            write_private(&cert_path, &pem_text("CERTIFICATE", &made.certificate))?;
            write_private(&key_path, &pem_text("PRIVATE KEY", &made.key))?;
            return Ok(made);
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(read_text(&key_path)?.as_bytes()).map_err(
            |error| TlsError::Content {
                path: key_path,
                what: error.to_string(),
            },
        )?;
        Ok(Credentials {
            authority: self.certificate.clone(),
            certificate: read_certificate(&cert_path)?,
            key: key.secret_pkcs8_der().to_vec(),
        })
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

impl Credentials {
    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(self.authority.clone()))
            .map_err(unusable)?;
        Ok(Arc::new(roots))
    }

    fn own(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            vec![CertificateDer::from(self.certificate.clone())],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone())),
        )
    }

    /// Whom the own certificate belongs to.
    pub fn identity(&self) -> Option<Identity> {
        identity(&CertificateDer::from(self.certificate.clone()))
    }

    /// A secret derived from the private key, different for each purpose; the same after every restart.
    pub fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.key)
    }

    /// TLS for a server: TLS 1.3 only, the client must show a certificate of the same authority.
    ///
    /// # Errors
    /// If the certificate or key cannot be used.
    pub fn server_tls(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
                .build()
                .map_err(unusable)?;
        let (chain, key) = self.own();
        let signer = rustls::crypto::ring::sign::any_supported_type(&key).map_err(unusable)?;
        let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, signer));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Resolver(certified)));
        config.alpn_protocols = alpn();
        // A resumed session would skip the check of the certificate; handshakes are rare.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// TLS for a client: TLS 1.3 only, shows its own certificate, accepts only servers of the same authority.
    ///
    /// # Errors
    /// If the certificate or key cannot be used.
    pub fn client_tls(&self) -> Result<ClientConfig, TlsError> {
        let (chain, key) = self.own();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = alpn();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

/// Gives the one certificate there is; says so when the client speaks no wire version of ours, for TLS itself then
/// ends the handshake without naming the versions.
#[derive(Debug)]
struct Resolver(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Resolver {
    fn resolve(
        &self,
        hello: rustls::server::ClientHello<'_>,
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        let ours = alpn();
        let theirs: Vec<&[u8]> = hello.alpn().map(Iterator::collect).unwrap_or_default();
        if !theirs.iter().any(|name| ours.iter().any(|own| own == name)) {
            let text = |names: &[&[u8]]| -> String {
                let names: Vec<String> = names
                    .iter()
                    .take(8)
                    .map(|name| name.escape_ascii().to_string())
                    .collect();
                names.join(", ")
            };
            let own: Vec<&[u8]> = ours.iter().map(Vec::as_slice).collect();
            tracing::warn!(
                offered = text(&theirs),
                spoken = text(&own),
                "a client offers no wire version that this build speaks"
            );
        }
        Some(Arc::clone(&self.0))
    }
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Use(error.to_string())
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TlsError + '_ {
    move |source| TlsError::File {
        path: path.to_owned(),
        source,
    }
}

fn read_text(path: &Path) -> Result<String, TlsError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(64 << 10).read_to_string(&mut text))
        .map_err(file_error(path))?;
    Ok(text)
}

fn read_certificate(path: &Path) -> Result<Vec<u8>, TlsError> {
    CertificateDer::from_pem_slice(read_text(path)?.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|error| TlsError::Content {
            path: path.to_owned(),
            what: error.to_string(),
        })
}

/// Makes a directory that only its owner can enter, with its parents.
///
/// # Errors
/// If it cannot be made.
pub fn make_private_dir(dir: &Path) -> Result<(), TlsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file_error(dir))
}

/// Writes a file of mode 0600 in one step and durably: a crash leaves the old file or the new one.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(file_error(path))
}

fn pem_text(label: &str, der: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let word = group.iter().enumerate().fold(0u32, |word, (at, byte)| {
                word | u32::from(*byte) << (16 - 8 * at)
            });
            for at in 0..4 {
                if at <= group.len() {
                    text.push(TABLE[(word >> (18 - 6 * at)) as usize & 63] as char);
                } else {
                    text.push('=');
                }
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn certificates_say_whom_they_belong_to() {
        let authority = Authority::generate(ClusterId(5)).unwrap();
        let node = authority.issue_node(NodeId(7)).unwrap();
        assert_eq!(node.identity(), Some(Identity::Node(NodeId(7))));
        let client = authority.issue_client(1000).unwrap();
        assert_eq!(client.identity(), Some(Identity::Client { uid: 1000 }));
        node.server_tls().unwrap();
        client.client_tls().unwrap();
    }

    #[test]
    fn files_are_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let first = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        let node = first.node_credentials(&tls, NodeId(7)).unwrap();
        let again = Authority::load_or_create(&tls, ClusterId(5)).unwrap();
        assert_eq!(again.certificate, first.certificate);
        assert_eq!(again.node_credentials(&tls, NodeId(7)).unwrap(), node);
        assert_eq!(
            node.derived_secret("a"),
            again
                .node_credentials(&tls, NodeId(7))
                .unwrap()
                .derived_secret("a")
        );
        assert_ne!(node.derived_secret("a"), node.derived_secret("b"));
        assert_eq!(std::fs::metadata(&tls).unwrap().mode() & 0o777, 0o700);
        for name in ["ca.key", "node.key"] {
            let mode = std::fs::metadata(tls.join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
