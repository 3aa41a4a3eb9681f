//! The certificate authority of one VM.
//!
//! It speaks for the declared hosts and no other: its certificate says so (name constraints, RFC 5280, 4.2.1.10), its
//! leaves are all made with it, and then its key is dropped. What is installed in the VM can't be used against the VM
//! for any other name, not even by us.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use super::trust::{ALPN, provider};
use crate::name::HostName;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The VM's clock may be a little off ours; and a VM doesn't live for a year.
const VALID_BEFORE: Duration = DAY;
const VALID_AFTER: Duration = DAY.saturating_mul(365);

/// The upper bound of a common name: RFC 5280, appendix A.
const MAX_COMMON_NAME_BYTES: usize = 64;

pub(super) struct Authority {
    pem: String,
    server: Arc<ServerConfig>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    #[error("a certificate can't be made")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS can't be set up with a new certificate")]
    Tls(#[from] rustls::Error),
}

impl Authority {
    pub(super) fn new(names: &BTreeSet<HostName>) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = authority_params(names);
        let pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let leaves = names.iter().map(|name| Ok((name.clone(), leaf(name, &issuer)?)));
        let leaves = Leaves(leaves.collect::<Result<_, AuthorityError>>()?);
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(leaves));
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { pem, server: Arc::new(server) })
    }

    /// The authority's certificate, to be installed in the VM.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// For the side of a connection that the guest sees. It answers to the declared names alone.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

fn authority_params(names: &BTreeSet<HostName>) -> CertificateParams {
    let mut params = dated("agentOS VM authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let permitted = names.iter().map(|name| GeneralSubtree::DnsName(name.as_str().to_owned()));
    // Permitted names say nothing of addresses, which are another kind of name.
    let addresses = [CidrSubnet::V4([0; 4], [0; 4]), CidrSubnet::V6([0; 16], [0; 16])];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted.collect(),
        excluded_subtrees: addresses.into_iter().map(GeneralSubtree::IpAddress).collect(),
    });
    params
}

fn leaf(name: &HostName, issuer: &Issuer<'_, KeyPair>) -> Result<Arc<CertifiedKey>, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let is_short = name.as_str().len() <= MAX_COMMON_NAME_BYTES;
    let mut params = dated(if is_short { name.as_str() } else { "agentOS VM" });
    params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Python asks for it since 3.13 (VERIFY_X509_STRICT).
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Arc::new(CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider())?))
}

fn dated(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    params.not_before = (now - VALID_BEFORE).into();
    params.not_after = (now + VALID_AFTER).into();
    params
}

/// Made once, all of them: there are as many as the user has declared.
#[derive(Debug)]
struct Leaves(BTreeMap<HostName, Arc<CertifiedKey>>);

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = HostName::parse(hello.server_name()?).ok()?;
        self.0.get(&name).cloned()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}
