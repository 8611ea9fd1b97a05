//! From when until when a certificate counts, and credentials that are replaced while they are in use.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rcgen::{CertificateParams, date_time_ymd};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{Credentials, TlsError};
use crate::attr::Time;
use crate::ids::ClusterId;

/// A certificate counts from this long before it is made: clocks of nodes may differ.
const EARLIER: Duration = Duration::from_secs(86_400);
/// The last moment at which a certificate is made, in the year 9000: the format ends with the year 9999.
const LAST: u64 = 221_845_305_600;
/// What begins the common name of an authority's certificate; the cluster's id follows.
pub(super) const AUTHORITY_NAME: &str = "Mortar cluster ";

/// Lets a certificate made `now` count for `life`.
pub(super) fn limit(params: &mut CertificateParams, now: Time, life: Duration) {
    let now = Duration::from_secs(u64::try_from(now.secs).unwrap_or(0).min(LAST));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(EARLIER);
    params.not_after = epoch + (now + life);
}

/// Reads a certificate (DER).
fn parsed(certificate: &[u8]) -> Option<X509Certificate<'_>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed)
}

/// The cluster whose authority has this certificate.
pub(super) fn cluster_of(certificate: &[u8]) -> Option<ClusterId> {
    let parsed = parsed(certificate)?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str()
        .ok()?
        .strip_prefix(AUTHORITY_NAME)?
        .parse()
        .ok()
}

/// The public key of a certificate, with its kind.
pub(super) fn public_key_of(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(parsed(certificate)?.public_key().raw.to_vec())
}

/// Until when a certificate (DER) counts, in seconds since 1970.
pub fn ends_at(certificate: &[u8]) -> Option<i64> {
    Some(parsed(certificate)?.validity().not_after.timestamp())
}

/// Whether a certificate (DER) is to be renewed: a third of its life or less is left, it has not begun yet (the clock
/// was wrong when it was made), or it cannot be read.
pub fn renewal_due(certificate: &[u8], now: Time) -> bool {
    let Some(parsed) = parsed(certificate) else {
        return true;
    };
    let validity = parsed.validity();
    let (from, until) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let third = until.saturating_sub(from) / 3;
    now.secs < from || now.secs >= until.saturating_sub(third)
}

/// Credentials that can be replaced while they are in use. Who makes or accepts a connection shows, and checks
/// against, what is here at that moment; connections that stand go on. Clones share their contents.
#[derive(Clone, Debug)]
pub struct LiveCredentials(Arc<RwLock<Arc<Credentials>>>);

impl LiveCredentials {
    /// Credentials to begin with.
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(credentials))))
    }

    /// Those in use now.
    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.read())
    }

    /// Replaces them for new connections.
    ///
    /// # Errors
    /// If TLS could not use the new ones; the old ones then stay.
    pub fn replace(&self, credentials: Credentials) -> Result<(), TlsError> {
        credentials.server_tls(true)?;
        credentials.client_tls()?;
        *self.0.write() = Arc::new(credentials);
        Ok(())
    }
}

impl From<Credentials> for LiveCredentials {
    fn from(credentials: Credentials) -> Self {
        Self::new(credentials)
    }
}
