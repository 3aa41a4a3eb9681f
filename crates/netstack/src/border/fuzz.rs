//! What must hold for the heads of requests and answers that pass the border, whatever is in them. Fuzz targets bring
//! bytes that a fuzzer makes up, the tests at the end theirs.

#![allow(clippy::expect_used, reason = "it is called by tests, which fail by panicking")]

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Uri};

use super::head;
use super::scrub::Patterns;
use crate::name::HostName;
use crate::sniff::{Sniffed, Wire, sniff};

/// What a client or server would send at most, see [`sniff`].
const MAX_HEADERS: usize = 100;
/// What an answer must not tell.
const SECRET: &str = "0123456789abcdef";
/// What is never passed on as it came.
const HOPS: [&str; 7] = [
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "expect",
    "http2-settings",
    "proxy-authorization",
    "sec-websocket-extensions",
];

/// # Panics
///
/// If a request is for two hosts, or leaves with what concerns its connection alone.
pub fn request_head(bytes: &[u8]) {
    let Some(request) = request(bytes) else { return };
    is_for_one_host(bytes, &request);
    let upgrade = head::websocket(request.headers());
    let websocket = upgrade.is_some();
    let mut outgoing = request.headers().clone();
    let host = HeaderValue::from_static("upstream.example");
    head::outgoing(&mut outgoing, host.clone(), upgrade.as_ref());
    for name in HOPS {
        assert!(!outgoing.contains_key(name), "{name} is passed on: {outgoing:?}");
    }
    let values = |name: &str| outgoing.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    let all = |name: &str| values(name).collect::<Vec<_>>().join(" and ");
    assert_eq!((all("host"), all("accept-encoding")), ("upstream.example".to_owned(), "identity".to_owned()));
    let change = [all("connection"), all("upgrade"), all("te")];
    let expected: &[[&str; 3]] =
        if websocket { &[["upgrade", "websocket", ""]] } else { &[["", "", ""], ["te", "", "trailers"]] };
    assert!(expected.iter().any(|expected| change == *expected), "{change:?}");
    let mut again = outgoing.clone();
    head::outgoing(&mut again, host, upgrade.as_ref());
    assert_eq!(again, outgoing, "what is passed on is passed on as it is");

    head::strip_claims(&mut outgoing);
    let claims = |name: &&HeaderName| {
        let name = name.as_str();
        matches!(name, "authorization" | "x-api-key" | "api-key" | "x-goog-api-key" | "forwarded")
            || name.starts_with("x-forwarded-")
    };
    assert_eq!(outgoing.keys().find(claims), None, "a claim of the guest's is passed on");
}

/// # Panics
///
/// If an answer that is passed on tells a secret, or of another way to the server.
pub fn answer_head(bytes: &[u8]) {
    let Some(mut headers) = answer(bytes) else { return };
    let patterns = Patterns::of([SECRET]);
    let before = headers.clone();
    let Ok(has_found) = head::incoming(&mut headers, &patterns, None) else { return };
    for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "alt-svc"] {
        assert!(!headers.contains_key(name), "{name} is passed on: {headers:?}");
    }
    for (name, value) in &headers {
        assert!(patterns.mask(value.as_bytes()).is_none(), "{name} tells the secret: {value:?}");
    }
    if !has_found {
        let is_as_it_was = |name: &HeaderName| headers.get_all(name).iter().eq(before.get_all(name).iter());
        assert!(headers.keys().all(is_as_it_was), "{before:?} became {headers:?}");
    }
}

/// The three readers of a host's name must not be played off against each other.
fn is_for_one_host(bytes: &[u8], request: &Request<()>) {
    let (uri, headers) = (request.uri(), request.headers());
    let plain = head::plain_host(uri, headers);
    let sniffed = match sniff(bytes) {
        Sniffed::Name(name, Wire::Http) => Some(name),
        _ => None,
    };
    if let (Some(sniffed), Ok(plain)) = (&sniffed, &plain) {
        assert_eq!(plain.as_ref(), Some(sniffed), "the border reads another host than the stack");
    }
    let fixed = ["a.example", "b.example"].map(|name| HostName::parse(name).expect("a name"));
    let known = sniffed.iter().chain(plain.iter().flatten()).chain(&fixed);
    let mut hosts: Vec<&HostName> =
        known.filter(|name| head::check_host(uri, headers, name, 443).is_ok()).collect();
    hosts.sort();
    hosts.dedup();
    assert!(hosts.len() <= 1, "one request for {hosts:?}");
    if let (Some(host), Some(sniffed)) = (hosts.first(), &sniffed) {
        assert_eq!(*host, sniffed, "an intercepted request is for another host than a plain one");
    }
}

fn request(bytes: &[u8]) -> Option<Request<()>> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut lines);
    parsed.parse(bytes).ok()?.is_complete().then_some(())?;
    let mut request = Request::new(());
    *request.uri_mut() = Uri::try_from(parsed.path?).ok()?;
    *request.headers_mut() = headers(parsed.headers)?;
    Some(request)
}

fn answer(bytes: &[u8]) -> Option<HeaderMap> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut lines);
    parsed.parse(bytes).ok()?.is_complete().then_some(())?;
    headers(parsed.headers)
}

fn headers(lines: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(line.value).ok()?);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Words that mean something to somebody, in any order.
    fn any_line() -> impl Strategy<Value = String> {
        const NAMES: &[&str] = &[
            "Host",
            "Connection",
            "Upgrade",
            "TE",
            "Transfer-Encoding",
            "Expect",
            "Forwarded",
            "Keep-Alive",
            "X-Forwarded-Host",
            "Authorization",
            "X-Api-Key",
            "Alt-Svc",
            "Content-Encoding",
            "X-Other",
            "Accept-Encoding",
            "HTTP2-Settings",
            "Proxy-Authorization",
            "Sec-WebSocket-Extensions",
        ];
        const WORDS: &[&str] = &[
            "a.example",
            "b.example",
            "A.EXAMPLE.",
            "a.example:443",
            "a.example:",
            "x@a.example",
            "[::1]",
            "10.0.0.1",
            "upgrade",
            "websocket",
            "te",
            "trailers",
            "host",
            "x-other",
            "chunked",
            "gzip",
            "identity",
            SECRET,
            "MDEyMzQ1Njc4OWFiY2RlZg",
            "keep-alive",
            "é",
            "",
        ];
        let value = prop::collection::vec(prop::sample::select(WORDS), 1..4);
        (prop::sample::select(NAMES), value, prop::sample::select([",", ", ", " ", ""].as_slice()))
            .prop_map(|(name, words, between)| format!("{name}: {}\r\n", words.join(between)))
    }

    fn any_head() -> impl Strategy<Value = Vec<u8>> {
        let first = prop::sample::select(
            [
                "GET / HTTP/1.1",
                "POST http://a.example/x HTTP/1.1",
                "GET https://a.example/ HTTP/1.1",
                "GET http://b.example:80 HTTP/1.0",
                "CONNECT a.example:443 HTTP/1.1",
                "OPTIONS * HTTP/1.1",
                "HTTP/1.1 200 OK",
                "HTTP/1.1 101 Switching Protocols",
            ]
            .as_slice(),
        );
        let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
        (first, prop::collection::vec(any_line(), 0..8), change).prop_map(|(first, lines, change)| {
            let mut bytes = format!("{first}\r\n{}\r\n", lines.concat()).into_bytes();
            if let Some((index, byte)) = change {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_head_that_passes_is_for_one_host_and_for_one_connection(bytes in any_head()) {
            request_head(&bytes);
            answer_head(&bytes);
        }
    }
}
