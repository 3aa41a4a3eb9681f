//! Where a guest's request to the gateway goes: its target, read once.
//!
//! The part behind the provider's prefix is put behind the upstream's base path as it was written. It must not lead
//! out of there in any server's reading: dot segments are refused, however often they are encoded and whichever
//! slashes are around them.

use http::Uri;
use http::uri::{InvalidUri, PathAndQuery};

/// Nobody encodes so often by mistake.
const MAX_ENCODINGS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    #[error("the target is a path, without scheme and host")]
    Form,
    #[error("the path holds characters that no path does")]
    Character,
    #[error("the path holds '%' that encodes nothing, or is encoded too often")]
    Encoding,
    #[error("the path holds '.' or '..' as a segment")]
    DotSegment,
}

/// `/prefix/rest?query`, as far as it can be read without knowing which prefixes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) prefix: &'a str,
    /// What is behind the slash after the prefix; empty where there is none.
    rest: &'a str,
    query: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn of(uri: &'a Uri) -> Result<Self, TargetError> {
        if uri.scheme().is_some() || uri.authority().is_some() {
            return Err(TargetError::Form);
        }
        let path = uri.path().strip_prefix('/').ok_or(TargetError::Form)?;
        check_path(path)?;
        let (prefix, rest) = path.split_once('/').unwrap_or((path, ""));
        // A base URL with a slash at its end and a path with one at its beginning are often joined as they are.
        Ok(Self { prefix, rest: rest.trim_start_matches('/'), query: uri.query() })
    }

    /// The target on the upstream, below this base path, which has no slash at its end.
    pub(super) fn below(&self, base_path: &str) -> Result<PathAndQuery, InvalidUri> {
        let (question, query) = self.query.map_or(("", ""), |query| ("?", query));
        let rest = self.rest;
        let slash = if rest.is_empty() && !base_path.is_empty() { "" } else { "/" };
        PathAndQuery::try_from(format!("{base_path}{slash}{rest}{question}{query}"))
    }
}

/// Whether a path stays below where it begins.
pub(super) fn check_path(path: &str) -> Result<(), TargetError> {
    let mut path = path.as_bytes().to_vec();
    if path.iter().any(|byte| !byte.is_ascii_graphic()) {
        return Err(TargetError::Character);
    }
    for round in 0..=MAX_ENCODINGS {
        if has_dot_segment(&path) {
            return Err(TargetError::DotSegment);
        }
        if path.iter().any(u8::is_ascii_control) {
            return Err(TargetError::Character);
        }
        let Some(decoded) = decoded(&path) else {
            // What comes out of a first decoding may hold a percent sign that stands for itself.
            return if round == 0 { Err(TargetError::Encoding) } else { Ok(()) };
        };
        if decoded.len() == path.len() {
            return Ok(());
        }
        path = decoded;
    }
    Err(TargetError::Encoding)
}

/// Backslashes count as slashes, and a parameter (`..;a`) as nothing: some servers read them so.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    })
}

/// `None` where a percent sign has no two digits behind it.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = digit(bytes.next()?)? << 4 | digit(bytes.next()?)?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(target: &str, expected: Result<(&str, &str), TargetError>) {
        let uri: Uri = target.parse().unwrap();
        let read = Target::of(&uri);
        let read = read.map(|target| (target.prefix, target.below("/base").unwrap().to_string()));
        assert_eq!(read, expected.map(|(prefix, path)| (prefix, path.to_owned())), "{target}");
    }

    #[test]
    fn the_part_behind_the_prefix_goes_below_the_base_path_as_it_is_written() {
        check("/anthropic/v1/messages?beta=true", Ok(("anthropic", "/base/v1/messages?beta=true")));
        check("/anthropic", Ok(("anthropic", "/base")));
        check("/anthropic/", Ok(("anthropic", "/base")));
        check("/anthropic//v1/models", Ok(("anthropic", "/base/v1/models")));
        check("/npm/@scope%2fname", Ok(("npm", "/base/@scope%2fname")));
        check("/a/100%25", Ok(("a", "/base/100%25")));
        check("/a/...", Ok(("a", "/base/...")));
        check("/", Ok(("", "/base")));
    }

    #[test]
    fn what_would_lead_out_of_the_base_path_is_refused() {
        for path in [
            "/a/../x",
            "/a/..",
            "/a/.",
            "/a/%2e%2e/x",
            "/a/.%2E/x",
            "/a/%252e%252e/x",
            "/a/x/..%2f..%2fy",
            "/a/..%5cx",
            "/a/..;v=1/x",
            "/a/%2e%2e%3b/x",
        ] {
            check(path, Err(TargetError::DotSegment));
        }
        check("/a/%0d%0aHost:%20evil", Err(TargetError::Character));
        check("/a/%zz", Err(TargetError::Encoding));
        check(&format!("/a/%{}41", "25".repeat(20)), Err(TargetError::Encoding));
    }

    #[test]
    fn a_target_that_names_a_host_is_refused() {
        for target in ["http://evil.example/a/x", "evil.example:443", "*"] {
            check(target, Err(TargetError::Form));
        }
        // These are paths, whose first segment is no provider's.
        check("//evil.example/a", Ok(("", "/base/evil.example/a")));
        check("/a@evil.example/x", Ok(("a@evil.example", "/base/x")));
    }

    /// As a server reads a path that decodes and resolves everything it can.
    fn resolved(path: &str) -> Vec<Vec<u8>> {
        let mut path = path.as_bytes().to_vec();
        while let Some(shorter) = decoded(&path).filter(|decoded| *decoded != path) {
            path = shorter;
        }
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
            match segment {
                b"." | b"" => {}
                b".." => drop(segments.pop()),
                name => segments.push(name.to_vec()),
            }
        }
        segments
    }

    proptest! {
        #[test]
        fn no_target_leaves_the_base_path(path in "(/|\\.|%2e|%2F|%5c|%25|2e|;|a|\\?|//){0,24}") {
            let Ok(uri) = format!("/a/{path}").parse::<Uri>() else { return Ok(()) };
            let Ok(target) = Target::of(&uri) else { return Ok(()) };
            let joined = target.below("/base/v1").unwrap();
            prop_assert!(joined.path().starts_with("/base/v1"));
            let segments = resolved(joined.path());
            prop_assert_eq!(&segments[..2], [b"base".to_vec(), b"v1".to_vec()]);
        }

        #[test]
        fn any_target_is_read_or_refused(path in "\\PC{0,64}") {
            if let Ok(uri) = path.parse::<Uri>() {
                let _read = Target::of(&uri).map(|target| target.below(""));
            }
        }
    }
}
