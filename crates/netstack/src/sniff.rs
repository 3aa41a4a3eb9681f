//! The name that a connection says it is for.
//!
//! A policy by name looks at what a client sends first: the server name in a TLS ClientHello (RFC 6066; with Encrypted
//! Client Hello the outer one, which is all that can be seen) or the Host of an HTTP/1 request. Both are read strictly:
//! whatever another reader might understand differently has no name here. The guest chooses the bytes and where they
//! are cut, so the answer must not depend on the cuts: it is `Incomplete` up to one byte, and from there on the same.

#[cfg(any(test, fuzzing))]
pub mod fuzz;

use crate::name::HostName;

/// A client that hasn't said its name by then never will.
pub const MAX_SNIFF_BYTES: usize = 16 * 1024;

/// Browsers send about twenty.
const MAX_HEADERS: usize = 100;
/// The longest registered method is UPDATEREDIRECTREF, but servers take longer ones.
const MAX_METHOD_BYTES: usize = 64;

/// RFC 9113, section 3.4, as far as it is a line.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

const RECORD_HEADER_BYTES: usize = 5;
const CONTENT_HANDSHAKE: u8 = 22;
/// The kinds of records that there are: change of ciphers, alert, handshake, data, heartbeat.
const FIRST_CONTENT: u8 = 20;
const LAST_CONTENT: u8 = 24;
const MAX_RECORD_BYTES: usize = 1 << 14;
const HANDSHAKE_HEADER_BYTES: usize = 4;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;

/// How a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Tls,
    /// HTTP/1.0 or 1.1 in the clear.
    Http,
    /// HTTP/2 in the clear, whose names are not read.
    Http2,
    /// None of these.
    Unknown,
}

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniffed {
    /// More bytes are needed.
    Incomplete,
    Name(HostName, Wire),
    /// No name, no readable name, or more than one.
    Nameless(Wire),
}

/// Reads the name out of all bytes that the client has sent so far.
pub fn sniff(first_bytes: &[u8]) -> Sniffed {
    let bytes = &first_bytes[..first_bytes.len().min(MAX_SNIFF_BYTES)];
    let (wire, found) = match bytes {
        [] | [FIRST_CONTENT..=LAST_CONTENT] => return Sniffed::Incomplete,
        // Some servers pass over an alert or the like before the hello: then this says that there is no name.
        [FIRST_CONTENT..=LAST_CONTENT, 3, ..] => (Wire::Tls, server_name(bytes)),
        _ => match http_host(bytes) {
            Err(Unreadable::NotHttp) => return Sniffed::Nameless(Wire::Unknown),
            _ if bytes.starts_with(HTTP2_PREFACE) => return Sniffed::Nameless(Wire::Http2),
            found => (Wire::Http, found),
        },
    };
    match found {
        Ok(name) => Sniffed::Name(name, wire),
        Err(Unreadable::CutShort) if bytes.len() < MAX_SNIFF_BYTES => Sniffed::Incomplete,
        Err(_) => Sniffed::Nameless(wire),
    }
}

/// Why there is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// There may be one in the bytes to come.
    CutShort,
    NoName,
    NotHttp,
}

/// The name in a ClientHello. A client may cut it into records as it likes.
fn server_name(bytes: &[u8]) -> Result<HostName, Unreadable> {
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        if let Some(body) = whole_hello(&hello)? {
            return name_in_hello(body).ok_or(Unreadable::NoName);
        }
        // Each field is judged as soon as it is there: a record that can't be one isn't waited for.
        if rest.first().is_some_and(|content| *content != CONTENT_HANDSHAKE)
            || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(Unreadable::NoName);
        }
        let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            return Err(Unreadable::CutShort);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD_BYTES {
            return Err(Unreadable::NoName);
        }
        let (fragment, after) = after.split_at(length.min(after.len()));
        hello.extend_from_slice(fragment);
        if fragment.len() < length && whole_hello(&hello)?.is_none() {
            return Err(Unreadable::CutShort);
        }
        rest = after;
    }
}

/// The body of a ClientHello that is there in full; none while bytes are missing.
fn whole_hello(hello: &[u8]) -> Result<Option<&[u8]>, Unreadable> {
    if hello.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(Unreadable::NoName);
    }
    let Some((header, body)) = hello.split_first_chunk::<HANDSHAKE_HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    if length > MAX_SNIFF_BYTES {
        return Err(Unreadable::NoName);
    }
    Ok(body.get(..length))
}

/// RFC 8446, section 4.1.2: version, random, session, cipher suites, compression methods, extensions, and nothing
/// after them.
fn name_in_hello(body: &[u8]) -> Option<HostName> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?;
    let session = hello.vector_8()?;
    let ciphers = hello.vector_16()?;
    let compressions = hello.vector_8()?;
    let mut extensions = Reader(hello.vector_16()?);
    let sound = session.len() <= 32 && !ciphers.is_empty() && !compressions.is_empty() && hello.0.is_empty();
    if !sound {
        return None;
    }
    let mut names = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number_16()?;
        let content = extensions.vector_16()?;
        // Of two, nobody knows which one the server takes.
        if kind == EXTENSION_SERVER_NAME && names.replace(content).is_some() {
            return None;
        }
    }
    let mut list = Reader(names?);
    let mut entries = Reader(list.vector_16()?);
    let kind = entries.take(1)?;
    let name = entries.vector_16()?;
    let sole = list.0.is_empty() && entries.0.is_empty() && kind == [NAME_TYPE_HOST];
    let name = sole.then_some(name)?;
    HostName::parse(std::str::from_utf8(name).ok()?).ok()
}

/// Bytes of a TLS message from the front; every read says whether they were there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number_16(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    fn vector_8(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        self.take(usize::from(*length))
    }

    fn vector_16(&mut self) -> Option<&'a [u8]> {
        let length = self.number_16()?;
        self.take(usize::from(length))
    }
}

/// The host of a request whose head is there in full: a second Host may stand in its last line.
fn http_host(bytes: &[u8]) -> Result<HostName, Unreadable> {
    if !is_http(bytes)? {
        return Err(Unreadable::NotHttp);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Unreadable::CutShort),
        Err(_) => return Err(Unreadable::NoName),
    }
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Unreadable::NoName) };
    let host = std::str::from_utf8(host.value).ok().and_then(host_of_authority);
    let host = host.ok_or(Unreadable::NoName)?;
    let target = request.path.unwrap_or_default();
    let agrees = target.starts_with('/') || target == "*" || host_of_url(target).as_ref() == Some(&host);
    agrees.then_some(host).ok_or(Unreadable::NoName)
}

/// Whether the first line is a request's to some server. Servers pass over white space before it, take methods and
/// versions that nobody has heard of, and some still know HTTP/0.9, whose requests are a GET and a path. Few take methods
/// that don't begin with a capital, and many other protocols begin with such a word, which may be all that comes.
fn is_http(bytes: &[u8]) -> Result<bool, Unreadable> {
    let start = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let request = bytes.get(start..).unwrap_or_default();
    let method = request.iter().take_while(|byte| is_of_token(**byte)).count();
    match request.get(method) {
        _ if method > MAX_METHOD_BYTES => return Ok(false),
        _ if request.first().is_some_and(|first| !first.is_ascii_uppercase()) => return Ok(false),
        None => return Err(Unreadable::CutShort),
        Some(b' ' | b'\t') if method > 0 => {}
        Some(_) => return Ok(false),
    }
    let end = request.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::CutShort)?;
    let line = request.get(..end).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    let has_version = |word: &[u8]| word.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"HTTP/"));
    Ok(match words.as_slice() {
        [method, path, ..] if method.eq_ignore_ascii_case(b"GET") && path.starts_with(b"/") => true,
        [_, .., last] => has_version(last),
        _ => false,
    })
}

/// RFC 9110, section 5.6.2.
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `HOST` or `HOST:PORT`. With user information it is no name, for `@` is in none.
fn host_of_authority(authority: &str) -> Option<HostName> {
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let port_is_digits = port.bytes().all(|byte| byte.is_ascii_digit());
    port_is_digits.then(|| HostName::parse(host).ok()).flatten()
}

/// The host of a request's target in the form that proxies are sent: `http://HOST/PATH`.
fn host_of_url(target: &str) -> Option<HostName> {
    let (scheme, rest) = target.split_once("://")?;
    let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let authority = rest.split(['/', '?', '#']).next()?;
    known.then(|| host_of_authority(authority)).flatten()
}

#[cfg(test)]
mod tests;
