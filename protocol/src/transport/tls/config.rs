//! TLS configurations: who must show what to whom.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use super::{Credentials, JOIN_ALPN, TlsError, alpn, unusable};

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

    /// TLS for a server: TLS 1.3 only, the client must show a certificate of the same authority. With `strangers`,
    /// clients without any get through the handshake too, for the sake of [`JOIN_ALPN`]: the server then has to turn
    /// away those that came for anything else.
    ///
    /// # Errors
    /// If the certificate or key cannot be used.
    pub fn server_tls(&self, strangers: bool) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider));
        if strangers {
            verifier = verifier.allow_unauthenticated();
        }
        let (chain, key) = self.own();
        let signer = rustls::crypto::ring::sign::any_supported_type(&key).map_err(unusable)?;
        let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, signer));
        certified.keys_match().map_err(unusable)?;
        let mut spoken = alpn();
        if strangers {
            spoken.push(JOIN_ALPN.to_vec());
        }
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier.build().map_err(unusable)?)
            .with_cert_resolver(Arc::new(Resolver {
                certified,
                spoken: spoken.clone(),
            }));
        config.alpn_protocols = spoken;
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

/// TLS for who asks a node of which nothing is known: no own certificate, any certificate of the server. It keeps
/// listeners out and nobody else: both sides have to prove themselves by a secret, bound to this very connection.
///
/// # Errors
/// If TLS cannot be set up.
pub fn stranger_tls() -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = AnyServer(Arc::clone(&provider));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Accepts any certificate whose key the server has.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Gives the one certificate there is; says so when the client speaks no wire version of ours, for TLS itself then
/// ends the handshake without naming the versions.
#[derive(Debug)]
struct Resolver {
    certified: Arc<rustls::sign::CertifiedKey>,
    spoken: Vec<Vec<u8>>,
}

impl rustls::server::ResolvesServerCert for Resolver {
    fn resolve(
        &self,
        hello: rustls::server::ClientHello<'_>,
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        let ours = &self.spoken;
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
        Some(Arc::clone(&self.certified))
    }
}
