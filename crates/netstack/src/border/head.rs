//! What the border changes in the heads that it passes on.

use std::net::Ipv4Addr;

use http::Uri;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::refusal::Refusal;
use super::scrub::Patterns;
use crate::name::HostName;

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");
const WEBSOCKET: &str = "websocket";

/// Headers of clients that hold keys. What a guest has in them is no secret of the host's, and would be taken for the
/// caller's identity beside it.
const CREDENTIALS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Prepares a request's head for an upstream that may be sent a secret.
pub(super) fn outgoing(headers: &mut HeaderMap, host: HeaderValue, upgrade: Option<&HeaderValue>) {
    forwarded(headers, upgrade);
    // Proxies' credentials are for us, and we want none.
    headers.remove(header::PROXY_AUTHORIZATION);
    // In an encoded answer nobody would see a secret that is echoed.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    // Nor in two halves of one.
    for name in [header::RANGE, header::IF_RANGE] {
        headers.remove(name);
    }
    headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    headers.insert(header::HOST, host);
}

/// Prepares a request's head for any upstream. What it asks for beyond one request and one answer is this upgrade or
/// nothing.
pub(super) fn forwarded(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    let wants_trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hops(headers);
    // The continuation was given by us.
    for name in [header::EXPECT, HTTP2_SETTINGS] {
        headers.remove(name);
    }
    if let Some(protocols) = upgrade {
        set_upgrade(headers, protocols.clone());
    } else if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Removes what only the gateway may say of a request: who asks, and what stood in it before.
pub(super) fn strip_claims(headers: &mut HeaderMap) {
    for name in CREDENTIALS {
        headers.remove(name);
    }
    let is_forwarding =
        |name: &&HeaderName| **name == header::FORWARDED || name.as_str().starts_with("x-forwarded-");
    let forwarding: Vec<HeaderName> = headers.keys().filter(is_forwarding).cloned().collect();
    for name in forwarding {
        headers.remove(name);
    }
}

/// Prepares an answer's head for the guest. True if it echoed a secret.
pub(super) fn incoming(
    headers: &mut HeaderMap,
    patterns: &Patterns,
    switched: Option<HeaderValue>,
) -> Result<bool, Refusal> {
    // A WebSocket's frames can be compressed too, which wasn't asked for either.
    let is_compressed = switched.is_some() && headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
    if is_compressed || !is_plain(headers, &header::CONTENT_ENCODING) {
        return Err(Refusal::Encoded);
    }
    returned(headers, switched)?;
    // Another way to the same host, which nobody would intercept.
    headers.remove(ALT_SVC);
    Ok(scrub(headers, patterns))
}

/// Prepares an answer's head for the guest, where there is no secret. `switched` is what both sides go on with.
pub(super) fn returned(headers: &mut HeaderMap, switched: Option<HeaderValue>) -> Result<(), Refusal> {
    // The body comes to us, and goes on, in another one.
    if !is_plain(headers, &header::TRANSFER_ENCODING) {
        return Err(Refusal::Encoded);
    }
    // Beside a transfer encoding a length is a lie: RFC 9112, section 6.3.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip_hops(headers);
    if let Some(protocol) = switched {
        set_upgrade(headers, protocol);
    }
    Ok(())
}

fn is_plain(headers: &HeaderMap, encodings: &HeaderName) -> bool {
    let is_plain =
        |token: &str| token.eq_ignore_ascii_case("chunked") || token.eq_ignore_ascii_case("identity");
    tokens(headers, encodings).all(is_plain)
}

/// Stars secrets out of all values. True if there was one.
pub(super) fn scrub(headers: &mut HeaderMap, patterns: &Patterns) -> bool {
    let mut has_found = false;
    for value in headers.values_mut() {
        if let Some(masked) = patterns.mask(value.as_bytes()) {
            has_found = true;
            *value = HeaderValue::from_bytes(&masked).unwrap_or(HeaderValue::from_static(""));
        }
    }
    has_found
}

/// The upgrade to a WebSocket, if the request asks for one. Where secrets are, no other protocol can be scrubbed.
pub(super) fn websocket(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = upgrades(headers);
    let asked = protocols.any(|protocol| protocol.eq_ignore_ascii_case(WEBSOCKET));
    asked.then(|| HeaderValue::from_static(WEBSOCKET))
}

/// The protocols that a plain request asks to go on with, but for those in which there would be further requests or
/// names that nobody judges.
pub(super) fn plain_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocols: Vec<&str> = upgrades(headers).filter(|protocol| !hides_requests(protocol)).collect();
    if protocols.is_empty() { None } else { HeaderValue::from_str(&protocols.join(", ")).ok() }
}

/// What the upstream switches to, if it is one of the protocols that were asked for.
pub(super) fn switched(headers: &HeaderMap, asked: &HeaderValue) -> Option<HeaderValue> {
    let asked = asked.to_str().ok()?;
    let is_asked = |protocol: &str| words(asked).any(|word| word.eq_ignore_ascii_case(protocol));
    let mut protocols = upgrades(headers);
    let (protocol, None) = (protocols.next()?, protocols.next()) else { return None };
    is_asked(protocol).then(|| HeaderValue::from_str(protocol).ok()).flatten()
}

/// What the head asks to go on with, or says that it does.
fn upgrades(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    tokens(headers, &header::UPGRADE).filter(move |_| asks)
}

fn hides_requests(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or_default();
    ["h2", "h2c", "h3", "http", "tls"].iter().any(|hiding| name.eq_ignore_ascii_case(hiding))
}

/// Whether the request is for the host that its connection is for, and says so once.
pub(super) fn check_host(uri: &Uri, headers: &HeaderMap, name: &HostName, port: u16) -> Result<(), Refusal> {
    let is_the_host = |text: &str| is_authority(text, name, port);
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Refusal::OtherHost) };
    let host = host.to_str().map_err(|_| Refusal::OtherHost)?;
    let target = uri.authority().map(|authority| authority.as_str());
    let is_https = uri.scheme_str().is_none_or(|scheme| scheme == "https");
    if is_https && is_the_host(host) && target.is_none_or(is_the_host) {
        Ok(())
    } else {
        Err(Refusal::OtherHost)
    }
}

/// The host that a plain request is for, by its target or its one header; `None` where that is an address, or where an
/// old client says nothing.
pub(super) fn plain_host(uri: &Uri, headers: &HeaderMap) -> Result<Option<HostName>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| Refusal::Request)?),
        (Some(_), Some(_)) => return Err(Refusal::Request),
    };
    let is_http = uri.scheme_str().is_none_or(|scheme| scheme == "http");
    let target = uri.authority().map(|authority| authority.as_str());
    // A server may go by either.
    let agree = target.is_none_or(|target| host.is_some_and(|host| host.eq_ignore_ascii_case(target)));
    if !is_http || !agree {
        return Err(Refusal::OtherHost);
    }
    let Some(host) = host else { return Ok(None) };
    let (host, port) = host.rsplit_once(':').filter(|_| !host.ends_with(']')).unwrap_or((host, ""));
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::Request);
    }
    let is_address = host.parse::<Ipv4Addr>().is_ok() || host.starts_with('[');
    match HostName::parse(host) {
        Ok(name) => Ok(Some(name)),
        Err(_) if is_address || host.is_empty() => Ok(None),
        // A name that only the server can read is none that could be allowed.
        Err(_) => Err(Refusal::Request),
    }
}

/// What a host header says for this host.
pub(super) fn host_value(name: &HostName, port: u16, default_port: u16) -> Result<HeaderValue, Refusal> {
    let text = if port == default_port { name.to_string() } else { format!("{name}:{port}") };
    HeaderValue::from_str(&text).map_err(|_| Refusal::Request)
}

/// Whether `text` is `name` or `name:port`; without a port it means the one of https. A name with userinfo is none.
fn is_authority(text: &str, name: &HostName, port: u16) -> bool {
    let (host, claimed) = text.rsplit_once(':').map_or((text, Some(443)), |(host, digits)| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        (host, is_number.then(|| digits.parse().ok()).flatten())
    });
    claimed == Some(port) && HostName::parse(host).as_ref() == Ok(name)
}

fn set_upgrade(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocols);
}

/// Removes what concerns one connection and not the exchange: RFC 9110, section 7.6.1. Announced trailers stay, and so
/// does what says where a request goes and where it ends: whoever names that there wants it to be read in another way.
fn strip_hops(headers: &mut HeaderMap) {
    let concerns_all = |name: &HeaderName| [header::HOST, header::CONTENT_LENGTH].contains(name);
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::try_from(name).ok())
        .filter(|name| !concerns_all(name))
        .collect();
    let always = [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    for name in named.into_iter().chain(always) {
        headers.remove(name);
    }
}

/// The elements of a header that is a list of words.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    // What isn't ASCII is no word that matters here, but it isn't nothing.
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    values.flat_map(words)
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_concerns_one_connection_is_not_passed_on() {
        let mut head = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("connection", "te"),
            ("x-mine", "1"),
            ("te", "trailers, deflate"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip"),
            ("proxy-authorization", "Basic eDp5"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        outgoing(&mut head, HeaderValue::from_static("api.example"), None);
        let expected = headers(&[
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
            ("host", "api.example"),
            ("te", "trailers"),
            ("connection", "te"),
        ]);
        assert_eq!(head, expected);
    }

    #[test]
    fn the_guests_own_credentials_and_claims_are_dropped() {
        let mut head = headers(&[
            ("authorization", "Bearer mine"),
            ("x-api-key", "mine"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "host=evil.example"),
            ("anthropic-version", "2023-06-01"),
        ]);
        strip_claims(&mut head);
        assert_eq!(head, headers(&[("anthropic-version", "2023-06-01")]));
    }

    #[test]
    fn an_answer_in_an_encoding_is_refused_and_an_echo_starred_out() {
        let patterns = Patterns::of(["0123456789abcdef"]);
        let mut zipped = headers(&[("content-encoding", "gzip")]);
        assert!(matches!(incoming(&mut zipped, &patterns, None), Err(Refusal::Encoded)));
        let mut deflated = headers(&[("sec-websocket-extensions", "permessage-deflate")]);
        let websocket = Some(HeaderValue::from_static(WEBSOCKET));
        assert!(matches!(incoming(&mut deflated, &patterns, websocket), Err(Refusal::Encoded)));
        let mut echo = headers(&[("x-key", "is 0123456789abcdef"), ("alt-svc", "h3=\":443\"")]);
        assert!(incoming(&mut echo, &patterns, None).unwrap());
        assert_eq!(echo, headers(&[("x-key", "is 01**************")]));
    }

    #[test]
    fn where_a_request_goes_and_how_long_it_is_is_no_matter_of_a_connection() {
        let mut head = headers(&[
            ("connection", "Host, content-length, x-mine"),
            ("host", "api.example"),
            ("content-length", "3"),
            ("x-mine", "1"),
        ]);
        forwarded(&mut head, None);
        assert_eq!(head, headers(&[("host", "api.example"), ("content-length", "3")]));
        let mut two_lengths = headers(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        returned(&mut two_lengths, None).unwrap();
        assert!(two_lengths.is_empty(), "{two_lengths:?}");
    }

    #[test]
    fn only_what_was_asked_for_is_switched_to() {
        let asks = |protocols: &'static str| headers(&[("connection", "Upgrade"), ("upgrade", protocols)]);
        let asked = plain_upgrade(&asks("h2c, tcp, TLS/1.0, HTTP/2.0, foo/2")).unwrap();
        assert_eq!(asked, "tcp, foo/2");
        assert_eq!(plain_upgrade(&asks("h2c")), None);
        assert_eq!(plain_upgrade(&headers(&[("upgrade", "tcp")])), None);
        assert_eq!(websocket(&asks("tcp, WebSocket")).unwrap(), "websocket");
        assert_eq!(websocket(&asks("tcp")), None);
        assert_eq!(switched(&asks("TCP"), &asked).unwrap(), "TCP");
        for other in ["websocket", "tcp, foo/2", "foo", ""] {
            assert_eq!(switched(&asks(other), &asked), None, "{other}");
        }
    }

    #[test]
    fn a_request_says_once_and_plainly_which_host_it_is_for() {
        let name = HostName::parse("api.example").unwrap();
        let check = |target: &str, hosts: &[&str], port: u16| {
            let mut request = Request::builder().uri(target);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            let request = request.body(()).unwrap();
            check_host(request.uri(), request.headers(), &name, port).is_ok()
        };
        assert!(check("/a", &["api.example"], 443));
        assert!(check("/a", &["API.example.:443"], 443));
        assert!(check("https://api.example/a", &["api.example"], 443));
        assert!(check("/a", &["api.example:8443"], 8443));
        assert!(!check("/a", &[], 443));
        assert!(!check("/a", &["evil.example"], 443));
        assert!(!check("/a", &["api.example", "api.example"], 443));
        assert!(!check("/a", &["api.example:8443"], 443));
        assert!(!check("/a", &["api.example"], 8443));
        assert!(!check("/a", &["x@api.example"], 443));
        assert!(!check("/a", &["api.example:+443"], 443));
        assert!(!check("https://evil.example/a", &["api.example"], 443));
        assert!(!check("https://x@api.example/a", &["api.example"], 443));
        assert!(!check("http://api.example/a", &["api.example"], 443));
    }
}
