//! Fetching one tarball: resumed where an earlier attempt stopped, and believed only when its digest is the pinned one.
//!
//! ```text
//! part on disk ──► Range request ──► append ──► whole? ──► SHA-512 equal? ──► the file, at its start
//!      ▲                │ stalled, cut off, 5xx     │ no                │ no, was resumed: once more from nothing
//!      └────────────────┴───────────────────────────┘                   │ no: refused, the part removed
//! ```
//!
//! An attempt that brought bytes is followed by another one; only attempts in a row that brought nothing count. A slow
//! network is therefore never too slow, and a dead one is told apart in bounded time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use ring::digest;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE};
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use super::Reporter;
use super::npmrc::{PUBLIC_REGISTRY, RegistrySettings};
use crate::registry::Package;

/// Attempts in a row that may bring nothing.
const FRUITLESS_ATTEMPTS: u32 = 3;
/// The first pause between fruitless attempts; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// No byte for this long ends an attempt.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// No tarball of an agent is near this size; a registry that sends more is refused.
const MAX_TARBALL_BYTES: u64 = 1 << 30;
/// A version's metadata is a few kilobytes.
const MAX_METADATA_BYTES: u64 = 4 << 20;
const MAX_REDIRECTS: u32 = 5;
/// How often progress is told.
const REPORT_EVERY_BYTES: u64 = 512 << 10;

/// Why a tarball could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No connection, or it broke, repeatedly.
    #[error("the registry can't be reached: {url}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The registry answered with an error.
    #[error("the registry answered {status}: {url}")]
    Status {
        /// The address.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// The connection ended before the tarball did, repeatedly.
    #[error("the download of {url} ends early, after {received_bytes} bytes")]
    Truncated {
        /// The address.
        url: String,
        /// What came.
        received_bytes: u64,
    },
    /// The registry sent something else than what was pinned.
    #[error("{url} is not the package that was pinned: expected {expected}, got {actual}")]
    Integrity {
        /// The address.
        url: String,
        /// The pinned integrity.
        expected: String,
        /// The tarball's.
        actual: String,
    },
    /// More bytes than any package has.
    #[error("{url} is larger than {MAX_TARBALL_BYTES} bytes")]
    TooLarge {
        /// The address.
        url: String,
    },
    /// The registry's description of the version names no tarball.
    #[error("the registry's answer names no tarball: {url}")]
    NoTarball {
        /// The address.
        url: String,
    },
    /// The partial file can't be used.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The install was given up.
    #[error("cancelled")]
    Cancelled,
}

impl DownloadError {
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self, Self::Write { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether the next attempt may fare better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }
}

/// One tarball to be fetched.
pub(super) struct Job<'a> {
    pub(super) package: &'a Package,
    /// The partial file; the caller holds its lock.
    pub(super) path: &'a Path,
    pub(super) reporter: &'a Reporter,
    pub(super) cancelled: &'a AtomicBool,
}

/// An HTTP client with the user's registry, proxy and certificates.
pub(super) struct Client {
    agent: ureq::Agent,
    settings: Arc<RegistrySettings>,
}

/// The file so far and its digest so far.
struct Part {
    file: File,
    digest: digest::Context,
    length: u64,
}

impl Client {
    pub(super) fn new(settings: &Arc<RegistrySettings>) -> Self {
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(trusted_certificates(settings))))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(settings.proxy())
            .http_status_as_error(false)
            // Followed by hand: the token of one host is never for another.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("agentos/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.new_agent(), settings: Arc::clone(settings) }
    }

    /// The verified tarball, positioned at its start.
    pub(super) fn fetch(&self, job: &Job<'_>) -> Result<File, DownloadError> {
        let mut url = self.usual_tarball_url(job.package);
        let mut part = Part::open(job.path)?;
        let mut resumed = part.length > 0;
        let mut fruitless = 0;
        loop {
            let before = part.length;
            match self.attempt(&url, job, &mut part) {
                Ok(()) => {}
                // Some registries keep tarballs elsewhere and say where.
                Err(DownloadError::Status { status: 404, .. })
                    if url == self.usual_tarball_url(job.package) =>
                {
                    url = self.stated_tarball_url(job.package)?;
                    continue;
                }
                Err(error) if error.is_passing() => {
                    fruitless = if part.length > before { 0 } else { fruitless + 1 };
                    if fruitless >= FRUITLESS_ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!(%url, %error, "trying again");
                    pause(fruitless, job.cancelled)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let actual = part.integrity();
            if actual == job.package.integrity {
                part.file.seek(SeekFrom::Start(0)).map_err(write_error(job.path))?;
                return Ok(part.file);
            }
            part.clear(job.path)?;
            // The part of an earlier attempt may have been of something else; what came in one piece is what it is.
            if !std::mem::take(&mut resumed) {
                let _ = std::fs::remove_file(job.path);
                return Err(DownloadError::Integrity {
                    url,
                    expected: job.package.integrity.clone(),
                    actual,
                });
            }
        }
    }

    /// Appends what is missing; `Ok` when the registry has no more.
    fn attempt(&self, url: &str, job: &Job<'_>, part: &mut Part) -> Result<(), DownloadError> {
        let range = (part.length > 0).then(|| format!("bytes={}-", part.length));
        let response = self.get(url, range.as_deref())?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, part.length) => {}
            // The whole of it, from a server that knows no ranges; or no such range: then the part is too long.
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => part.clear(job.path)?,
            StatusCode::RANGE_NOT_SATISFIABLE if part.length > 0 => {
                // Possibly because all of it is here already; the digest tells.
                return Ok(());
            }
            status => return Err(DownloadError::Status { url: url.to_owned(), status: status.as_u16() }),
        }
        let expected = response.body().content_length().map(|rest| rest + part.length);
        let total = expected.unwrap_or(job.package.tarball_bytes);
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 128 << 10];
        let mut reported = part.length;
        loop {
            if job.cancelled.load(Ordering::Relaxed) {
                return Err(DownloadError::Cancelled);
            }
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreachable(url, ureq::Error::from(error))),
            };
            part.append(&buffer[..count]).map_err(write_error(job.path))?;
            if part.length > MAX_TARBALL_BYTES {
                return Err(DownloadError::TooLarge { url: url.to_owned() });
            }
            if part.length - reported >= REPORT_EVERY_BYTES {
                reported = part.length;
                job.reporter.report(reported, total);
            }
        }
        if expected.is_some_and(|expected| part.length < expected) {
            return Err(DownloadError::Truncated { url: url.to_owned(), received_bytes: part.length });
        }
        job.reporter.report(part.length, total);
        Ok(())
    }

    /// One GET through at most [`MAX_REDIRECTS`] redirects, with credentials where the user has some for that address.
    fn get(&self, url: &str, range: Option<&str>) -> Result<Response<ureq::Body>, DownloadError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(value) = self.settings.authorization(&url) {
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.call().map_err(|error| unreachable(&url, error))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(target) = target.and_then(|target| resolve(&url, target)) else {
                return Err(DownloadError::Status { url, status });
            };
            url = target;
        }
        Err(DownloadError::Status { url, status: StatusCode::LOOP_DETECTED.as_u16() })
    }

    /// Where npm's own registry and most others keep a tarball; asking there saves the round trip for the metadata.
    fn usual_tarball_url(&self, package: &Package) -> String {
        let base = package.name.rsplit_once('/').map_or(package.name.as_str(), |(_, base)| base);
        let registry = self.settings.registry_of(&package.name);
        format!("{registry}{}/-/{base}-{}.tgz", package.name, package.version)
    }

    /// Where the registry says that it keeps the tarball.
    fn stated_tarball_url(&self, package: &Package) -> Result<String, DownloadError> {
        let registry = self.settings.registry_of(&package.name);
        let url = format!("{registry}{}/{}", package.name.replace('/', "%2f"), package.version);
        let response = self.get(&url, None)?;
        if response.status() != StatusCode::OK {
            return Err(DownloadError::Status { url, status: response.status().as_u16() });
        }
        let body = response.into_body().into_with_config().limit(MAX_METADATA_BYTES).read_to_vec();
        let body = body.map_err(|error| unreachable(&url, error))?;
        let stated = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let stated = stated.as_ref().and_then(|meta| meta["dist"]["tarball"].as_str());
        let Some(stated) = stated else { return Err(DownloadError::NoTarball { url }) };
        // A mirror often passes the public registry's metadata on unchanged; npm, too, asks the mirror then.
        Ok(match stated.strip_prefix(PUBLIC_REGISTRY) {
            Some(rest) => format!("{registry}{rest}"),
            None => stated.to_owned(),
        })
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self, DownloadError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(write_error(path))?;
        let mut digest = digest::Context::new(&digest::SHA512);
        let mut length = 0;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match file.read(&mut buffer).map_err(write_error(path))? {
                0 => return Ok(Self { file, digest, length }),
                count => {
                    digest.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self, path: &Path) -> Result<(), DownloadError> {
        self.file.set_len(0).map_err(write_error(path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(write_error(path))?;
        self.digest = digest::Context::new(&digest::SHA512);
        self.length = 0;
        Ok(())
    }

    fn integrity(&self) -> String {
        let digest = self.digest.clone().finish();
        format!("sha512-{}", base64::engine::general_purpose::STANDARD.encode(digest.as_ref()))
    }
}

impl RegistrySettings {
    /// npm's proxy setting, else what the environment names; NO_PROXY holds for both.
    fn proxy(&self) -> Option<ureq::Proxy> {
        let Some(proxy) = &self.proxy else {
            return self.environment_proxy.then(ureq::Proxy::try_from_env).flatten();
        };
        let uri: ureq::http::Uri = proxy.parse().ok()?;
        let protocol = match uri.scheme_str() {
            Some("https") => ureq::ProxyProtocol::Https,
            _ => ureq::ProxyProtocol::Http,
        };
        let mut builder = ureq::Proxy::builder(protocol).host(uri.host()?);
        if let Some(port) = uri.port_u16() {
            builder = builder.port(port);
        }
        let login = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
        if let Some((login, _)) = login {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            builder = builder.username(user).password(password);
        }
        self.no_proxy.iter().fold(builder, |builder, name| builder.no_proxy(name)).build().ok()
    }
}

/// The system's certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` count) and the files the user's npm trusts.
fn trusted_certificates(settings: &RegistrySettings) -> Vec<Certificate<'static>> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate of the system can't be read");
    }
    let mut certificates: Vec<Certificate<'static>> =
        system.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    for path in &settings.certificate_files {
        match std::fs::read(path) {
            Ok(pem) => certificates.extend(ureq::tls::parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })),
            Err(error) => tracing::warn!(path = %path.display(), %error, "npm's cafile can't be read"),
        }
    }
    certificates
}

/// Whether a partial answer begins where our part ends.
fn starts_at(response: &Response<ureq::Body>, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")).and_then(|range| range.split_once('-'));
    start.and_then(|(start, _)| start.trim().parse::<u64>().ok()) == Some(offset)
}

/// The address a redirect leads to. Only http and https, and never from https down to http.
fn resolve(from: &str, target: &str) -> Option<String> {
    let secure = from.starts_with("https://");
    if target.starts_with("https://") || (!secure && target.starts_with("http://")) {
        return Some(target.to_owned());
    }
    let scheme_end = from.find("://")? + 3;
    let host_end = from[scheme_end..].find('/').map_or(from.len(), |at| scheme_end + at);
    target.starts_with('/').then(|| match target.strip_prefix("//") {
        Some(rest) => format!("{}{rest}", &from[..scheme_end]),
        None => format!("{}{target}", &from[..host_end]),
    })
}

fn pause(fruitless: u32, cancelled: &AtomicBool) -> Result<(), DownloadError> {
    if cancelled.load(Ordering::Relaxed) {
        return Err(DownloadError::Cancelled);
    }
    std::thread::sleep(FIRST_PAUSE * 2_u32.saturating_pow(fruitless.saturating_sub(1)));
    Ok(())
}

fn unreachable(url: &str, error: ureq::Error) -> DownloadError {
    DownloadError::Unreachable { url: url.to_owned(), source: Box::new(error) }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    let path = path.to_owned();
    move |source| DownloadError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_lead_from_https_to_http() {
        for (from, target, to) in [
            ("https://a.example/x", "https://b.example/y", Some("https://b.example/y")),
            ("https://a.example/x", "http://b.example/y", None),
            ("http://a.example/x", "http://b.example/y", Some("http://b.example/y")),
            ("https://a.example/x/z", "/y", Some("https://a.example/y")),
            ("https://a.example", "/y", Some("https://a.example/y")),
            ("https://a.example/x", "//b.example/y", Some("https://b.example/y")),
            ("https://a.example/x", "file:///etc/passwd", None),
            ("https://a.example/x", "y", None),
        ] {
            assert_eq!(resolve(from, target).as_deref(), to, "{from} -> {target}");
        }
    }
}
