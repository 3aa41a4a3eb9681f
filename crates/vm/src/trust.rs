//! How programs in a VM come to trust the VM's own certificate authority, where TLS is intercepted.
//!
//! There is no one place that all of them look at. The authority is added to the bundles that the base has, for programs
//! with a built-in path; files of our own have it too, and variables that each runtime knows lead there. A variable that
//! the user has set stays as it is.

use agentos_netstack::border::{java_store, pem_bundle};
use bytes::Bytes;
use rustix::io::Errno;

use crate::create::CreateError;
use crate::filesystem::FileError;
use crate::vm::Vm;

/// The authority alone.
const AUTHORITY: &str = "/opt/agentos/trust/authority.pem";
/// Those that the base trusts, and it.
const BUNDLE: &str = "/opt/agentos/trust/bundle.pem";
/// The same for Java.
const JAVA_STORE: &str = "/opt/agentos/trust/java.jks";

/// What runtimes are told.
pub(crate) const VARIABLES: [(&str, &str); 8] = [
    // OpenSSL, and with it Python, Ruby, Perl, PHP; Go.
    ("SSL_CERT_FILE", BUNDLE),
    // Beside what is compiled into Node.
    ("NODE_EXTRA_CA_CERTS", AUTHORITY),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("CURL_CA_BUNDLE", BUNDLE),
    ("GIT_SSL_CAINFO", BUNDLE),
    ("PIP_CERT", BUNDLE),
    ("AWS_CA_BUNDLE", BUNDLE),
    (
        "JAVA_TOOL_OPTIONS",
        "-Djavax.net.ssl.trustStore=/opt/agentos/trust/java.jks -Djavax.net.ssl.trustStoreType=jks",
    ),
];

/// Where distributions keep their bundle: Debian and Alpine, RHEL and Fedora, Alpine and BSD, SUSE.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Forty times what Mozilla's authorities take.
const MAX_BUNDLE_BYTES: usize = 8 << 20;

/// Installs the authority. To be done before anybody has the VM: programs read these files once.
pub(crate) async fn install(vm: &Vm, authority: &str) -> Result<(), CreateError> {
    let former = match vm.spec().storage() {
        Some(_) => read(vm, AUTHORITY).await.map_err(|source| failed(AUTHORITY, source))?,
        None => None,
    };
    let mut known = None;
    for path in BUNDLES {
        // Into a directory that somebody shows the VM nothing is written that he has not asked for.
        if vm.spec().is_mounted(path) {
            continue;
        }
        let Some(bundle) = read(vm, path).await.map_err(|source| failed(path, source))? else { continue };
        let bundle = without(bundle, former.as_deref().unwrap_or_default());
        // Some of these paths are links to others.
        if !contains(&bundle, authority) {
            write(vm, path, pem_bundle(&bundle, authority)).await?;
        }
        known.get_or_insert(bundle);
    }
    let bundle = pem_bundle(&known.unwrap_or_default(), authority);
    write(vm, AUTHORITY, authority.as_bytes().to_vec()).await?;
    write(vm, JAVA_STORE, java_store(&bundle)).await?;
    write(vm, BUNDLE, bundle).await
}

/// Without the authority of the VM that has used the storage before, which nobody has the key of any more: one more with
/// every VM would make the bundles longer without end.
fn without(mut bundle: Vec<u8>, former: &[u8]) -> Vec<u8> {
    let found = match former {
        [] => None,
        former => bundle.windows(former.len()).position(|part| part == former),
    };
    if let Some(start) = found {
        bundle.drain(start..start + former.len());
    }
    bundle
}

fn contains(bundle: &[u8], authority: &str) -> bool {
    let authority = authority.as_bytes();
    bundle.windows(authority.len()).any(|part| part == authority)
}

/// The file, if it is there and can be a bundle.
async fn read(vm: &Vm, path: &str) -> Result<Option<Vec<u8>>, FileError> {
    let absent = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR].map(Errno::raw_os_error);
    let mut content = match vm.read_file(path.as_bytes()).await {
        Ok(content) => content,
        Err(error) if error.errno().is_some_and(|errno| absent.contains(&errno)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut whole = Vec::new();
    while let Some(part) = content.next().await? {
        whole.extend_from_slice(&part);
        if whole.len() > MAX_BUNDLE_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(whole))
}

async fn write(vm: &Vm, path: &'static str, content: Vec<u8>) -> Result<(), CreateError> {
    vm.write_file(path.as_bytes(), Bytes::from(content)).await.map_err(|source| failed(path, source))
}

fn failed(path: &'static str, source: FileError) -> CreateError {
    CreateError::TrustStore { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_of_a_former_vm_is_taken_out_of_a_bundle() {
        let bundle = pem_bundle(b"first\nsecond\n", "former\n");
        assert_eq!(without(bundle.clone(), b"former\n"), b"first\nsecond\n");
        for other in [&b""[..], b"absent", b"longer than the whole bundle is by itself"] {
            assert_eq!(without(bundle.clone(), other), bundle);
        }
    }
}
