//! Whom the border believes to be an upstream.

use std::fmt;
use std::sync::Arc;

use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// HTTP/2 is not spoken, in either direction.
pub(super) const ALPN: &[u8] = b"http/1.1";

/// The authorities whose certificates are accepted. Cheap to clone: made once, for all VMs.
#[derive(Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    client: Arc<ClientConfig>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    #[error("the system has no certificates of authorities")]
    Empty,
    #[error("a certificate can't be read")]
    Pem(#[from] pem::Error),
    #[error("a certificate is none of an authority")]
    Certificate(#[source] rustls::Error),
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
}

impl Trust {
    /// The system's authorities; `SSL_CERT_FILE` and `SSL_CERT_DIR` are looked at.
    ///
    /// # Errors
    ///
    /// If there is not one.
    pub fn system() -> Result<Self, TrustError> {
        let found = load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "certificates of the system");
        }
        let mut roots = RootCertStore::empty();
        // Old bundles hold certificates that are no longer well-formed; the others are good.
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "certificates of the system");
        if added == 0 { Err(TrustError::Empty) } else { Self::of(roots) }
    }

    /// No authority at all, to begin with.
    ///
    /// # Errors
    ///
    /// If TLS can't be set up.
    pub fn nobody() -> Result<Self, TrustError> {
        Self::of(RootCertStore::empty())
    }

    /// The same and the authorities in these PEM bytes, for a company's own servers.
    ///
    /// # Errors
    ///
    /// If one of them is none, or there is none.
    pub fn with_extra(&self, certificates: &[u8]) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::clone(&self.roots);
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(certificates) {
            roots.add(certificate?).map_err(TrustError::Certificate)?;
        }
        if roots.len() == before { Err(TrustError::Empty) } else { Self::of(roots) }
    }

    fn of(roots: RootCertStore) -> Result<Self, TrustError> {
        let roots = Arc::new(roots);
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Tls)?
            .with_root_certificates(Arc::clone(&roots))
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { roots, client: Arc::new(client) })
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("authorities", &self.roots.len()).finish()
    }
}

/// Named wherever TLS is set up: what the process's default is, another crate may have decided.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused() {
        let trust = Trust::nobody().unwrap();
        assert!(matches!(trust.with_extra(b"nothing here"), Err(TrustError::Empty)));
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(trust.with_extra(broken), Err(TrustError::Certificate(_))));
    }
}
