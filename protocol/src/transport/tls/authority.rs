//! The cluster's authority, and what it issues.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::files::{
    exchange_dirs, make_private_dir, pem_text, read_certificate, read_text, remove_dir,
    write_private,
};
use super::life::{self, AUTHORITY_NAME, LiveCredentials, renewal_due};
use super::{ANY_NODE, Credentials, TlsError, node_name};
use crate::attr::Time;
use crate::ids::{ClusterId, NodeId};

/// How long a node's certificate counts. The node renews it when a third is left.
pub const NODE_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// How long a client's certificate counts. A mount gets one when it starts and shows it at each new connection for as
/// long as it runs, and nothing renews it meanwhile: it has to outlive any mount.
pub const CLIENT_LIFE: Duration = Duration::from_secs(3_653 * 86_400);

/// An authority as it travels to a node that is taken into its cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityParts {
    /// Certificate (DER).
    pub certificate: Vec<u8>,
    /// Private key (PKCS#8 DER).
    pub key: Vec<u8>,
}

impl std::fmt::Debug for AuthorityParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthorityParts(..)")
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
            .push(DnType::CommonName, format!("{AUTHORITY_NAME}{cluster}"));
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
            store_authority(dir, &made.certificate, &made.key)?;
            return Ok(made);
        }
        let certificate = read_certificate(&cert_path)?;
        let key = KeyPair::from_pem(&read_text(&key_path)?).map_err(|error| TlsError::Content {
            path: key_path,
            what: error.to_string(),
        })?;
        Ok(Self {
            cluster: life::cluster_of(&certificate).unwrap_or(cluster),
            certificate,
            key,
        })
    }

    /// The authority that another node has sent.
    ///
    /// # Errors
    /// If it is not the authority of `cluster`, or certificate and key do not belong together.
    pub fn from_parts(cluster: ClusterId, parts: &AuthorityParts) -> Result<Self, TlsError> {
        let key = KeyPair::try_from(&parts.key[..])?;
        if life::cluster_of(&parts.certificate) != Some(cluster) {
            return Err(TlsError::Use(format!(
                "it is not the authority of cluster {cluster}"
            )));
        }
        if life::public_key_of(&parts.certificate) != Some(key.subject_public_key_info()) {
            return Err(TlsError::Use(
                "the authority's certificate and key do not belong together".to_owned(),
            ));
        }
        Ok(Self {
            cluster,
            certificate: parts.certificate.clone(),
            key,
        })
    }

    /// What another node needs to be this authority too.
    pub fn to_parts(&self) -> AuthorityParts {
        AuthorityParts {
            certificate: self.certificate.clone(),
            key: self.key.serialize_der(),
        }
    }

    /// The cluster that the authority's certificate names.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// A certificate for a node, with a key pair of its own; it counts from a day before `now` until [`NODE_LIFE`] after.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue_node(&self, node: NodeId, now: Time) -> Result<Credentials, TlsError> {
        self.issue_node_with(node, KeyPair::generate()?, now)
    }

    /// A new certificate for a node's key pair: what is derived from the private key stays as it was, whichever
    /// authority issued the old certificate.
    ///
    /// # Errors
    /// If the key cannot be read or the certificate cannot be made.
    pub fn renew_node(
        &self,
        old: &Credentials,
        node: NodeId,
        now: Time,
    ) -> Result<Credentials, TlsError> {
        self.issue_node_with(node, KeyPair::try_from(&old.key[..])?, now)
    }

    fn issue_node_with(
        &self,
        node: NodeId,
        key: KeyPair,
        now: Time,
    ) -> Result<Credentials, TlsError> {
        self.issue(
            &key,
            (now, NODE_LIFE),
            vec![ANY_NODE.to_owned(), node_name(node)],
            format!("Mortar node {node}"),
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        )
    }

    /// A certificate for a client that acts as `uid` (0: may act as anybody); it counts from a day before `now` until
    /// [`CLIENT_LIFE`] after.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue_client(&self, uid: u32, now: Time) -> Result<Credentials, TlsError> {
        self.issue(
            &KeyPair::generate()?,
            (now, CLIENT_LIFE),
            vec![format!("uid-{uid}.client.mortar")],
            format!("Mortar client uid {uid}"),
            vec![ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    fn issue(
        &self,
        key: &KeyPair,
        (now, life): (Time, Duration),
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
        life::limit(&mut params, now, life);
        let issuer = Issuer::new(Self::params(self.cluster)?, &self.key);
        let certificate = params.signed_by(key, &issuer)?;
        Ok(Credentials {
            authority: self.certificate.clone(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        })
    }

    /// Reads this node's certificate from `dir`; issues one and stores it there if there is none, or if the one there
    /// is is due for renewal.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn node_credentials(
        &self,
        dir: &Path,
        node: NodeId,
        now: Time,
    ) -> Result<Credentials, TlsError> {
        make_private_dir(dir)?;
        let key_path = dir.join("node.key");
        if !key_path.exists() {
            let made = self.issue_node(node, now)?;
            store_node(dir, &made)?;
            return Ok(made);
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(read_text(&key_path)?.as_bytes()).map_err(
            |error| TlsError::Content {
                path: key_path,
                what: error.to_string(),
            },
        )?;
        let found = Credentials {
            authority: self.certificate.clone(),
            certificate: read_certificate(&dir.join("node.pem"))?,
            key: key.secret_pkcs8_der().to_vec(),
        };
        if !renewal_due(&found.certificate, now) {
            return Ok(found);
        }
        let fresh = self.renew_node(&found, node, now)?;
        store_node(dir, &fresh)?;
        Ok(fresh)
    }

    /// Renews the credentials a node uses, and those stored in `dir`, if that is due; whether it was. To be called now
    /// and then: each call reads a certificate in memory and, as a rule, does nothing.
    ///
    /// # Errors
    /// If the new certificate cannot be made, used or stored. It may be in use all the same, and lost at a restart,
    /// which then makes another.
    pub fn renew_if_due(
        &self,
        dir: &Path,
        live: &LiveCredentials,
        node: NodeId,
        now: Time,
    ) -> Result<bool, TlsError> {
        let current = live.current();
        if !renewal_due(&current.certificate, now) {
            return Ok(false);
        }
        let fresh = self.renew_node(&current, node, now)?;
        live.replace(fresh.clone())?;
        store_node(dir, &fresh)?;
        Ok(true)
    }

    /// Puts this authority and a node's credentials in the place of `dir`, all in one step: a crash leaves the old
    /// directory or the new one whole.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn install(&self, dir: &Path, node: &Credentials) -> Result<(), TlsError> {
        let fresh = dir.with_extension("new");
        remove_dir(&fresh)?;
        make_private_dir(&fresh)?;
        store_authority(&fresh, &self.certificate, &self.key)?;
        store_node(&fresh, node)?;
        exchange_dirs(&fresh, dir)?;
        remove_dir(&fresh)
    }
}

fn store_authority(dir: &Path, certificate: &[u8], key: &KeyPair) -> Result<(), TlsError> {
    write_private(&dir.join("ca.pem"), &pem_text("CERTIFICATE", certificate))?;
    write_private(&dir.join("ca.key"), &key.serialize_pem())
}

/// Stores a node's certificate and key in `dir`.
///
/// # Errors
/// If a file cannot be written.
pub fn store_node(dir: &Path, node: &Credentials) -> Result<(), TlsError> {
    // The key last: without it both are made anew.
    write_private(
        &dir.join("node.pem"),
        &pem_text("CERTIFICATE", &node.certificate),
    )?;
    write_private(&dir.join("node.key"), &pem_text("PRIVATE KEY", &node.key))
}
