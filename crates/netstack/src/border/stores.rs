//! The VM's stores of trusted authorities, with its own in them.
//!
//! Programs find authorities in two forms: PEM certificates one after the other, and Java's key stores. The second is
//! made from the first, because a Java program reads one store and no other beside it.

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Of the format that Java calls JKS: `sun.security.provider.JavaKeyStore`.
const JAVA_MAGIC: u32 = 0xfeed_feed;
const JAVA_VERSION: u32 = 2;
const JAVA_TRUSTED_CERTIFICATE: u32 = 2;
const JAVA_DIGEST_BYTES: usize = 20;

/// The authorities of `known` and one more, as PEM.
pub fn pem_bundle(known: &[u8], authority: &str) -> Vec<u8> {
    let mut bundle = known.to_vec();
    if !bundle.is_empty() && !bundle.ends_with(b"\n") {
        bundle.push(b'\n');
    }
    bundle.extend_from_slice(authority.as_bytes());
    bundle
}

/// The authorities of a PEM bundle as a key store of Java. What can't be read is left out, as Java itself would.
pub fn java_store(bundle: &[u8]) -> Vec<u8> {
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect();
    let mut store = Vec::with_capacity(bundle.len());
    for number in [JAVA_MAGIC, JAVA_VERSION, count(certificates.len())] {
        store.extend_from_slice(&number.to_be_bytes());
    }
    for (index, certificate) in certificates.iter().enumerate() {
        store.extend_from_slice(&JAVA_TRUSTED_CERTIFICATE.to_be_bytes());
        push_text(&mut store, &format!("authority-{index}"));
        // When it was added, in milliseconds since the epoch; nobody asks.
        store.extend_from_slice(&0_u64.to_be_bytes());
        push_text(&mut store, "X.509");
        store.extend_from_slice(&count(certificate.len()).to_be_bytes());
        store.extend_from_slice(certificate);
    }
    // The digest is looked at by those who give a password, which trust managers don't by themselves.
    store.extend_from_slice(&[0; JAVA_DIGEST_BYTES]);
    store
}

/// Bundles are bounded by their reader.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// As `DataOutputStream.writeUTF` does; all of ours are short and ASCII.
fn push_text(store: &mut Vec<u8>, text: &str) {
    store.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    store.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::authority::Authority;
    use super::*;
    use crate::name::HostName;

    fn authority(name: &str) -> String {
        Authority::new(&BTreeSet::from([HostName::parse(name).unwrap()])).unwrap().pem().to_owned()
    }

    #[test]
    fn a_bundle_has_what_it_had_and_one_more() {
        let (known, own) = (authority("known.example"), authority("own.example"));
        let bundle = pem_bundle(known.trim_end().as_bytes(), &own);
        let found: Vec<_> = CertificateDer::pem_slice_iter(&bundle).map(Result::unwrap).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(pem_bundle(b"", &own), own.as_bytes());
    }

    #[test]
    fn a_java_store_holds_every_certificate_whole() {
        let (one, other) = (authority("one.example"), authority("other.example"));
        let bundle = pem_bundle(one.as_bytes(), &format!("{other}-----BEGIN CERTIFICATE-----\nno\n"));
        let store = java_store(&bundle);
        assert_eq!(&store[..12], b"\xfe\xed\xfe\xed\0\0\0\x02\0\0\0\x02");
        let mut rest = &store[12..];
        for certificate in CertificateDer::pem_slice_iter(&bundle).take(2).map(Result::unwrap) {
            let head = 4 + 2 + "authority-0".len() + 8 + 2 + "X.509".len();
            let length = u32::from_be_bytes(rest[head..head + 4].try_into().unwrap()) as usize;
            assert_eq!(&rest[head + 4..head + 4 + length], &*certificate);
            rest = &rest[head + 4 + length..];
        }
        assert_eq!(rest.len(), JAVA_DIGEST_BYTES);
    }
}
