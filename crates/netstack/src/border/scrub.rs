//! Keeps what an upstream echoes of a secret from the VM.
//!
//! Every occurrence of a secret is starred out but for its first characters, in the spellings in which servers echo
//! what they were sent: as it is, in JSON, percent-encoded, in base64 at any offset (of `user:password`, say). Stars
//! are as many as what they stand for, so that lengths and ranges that an answer announces stay true.
//!
//! An answer comes in pieces of any size. A piece that ends in the middle of a word is held back from the word's first
//! characters on until the word goes on or ends, or nothing more has come for a while. Which bytes those are never depends
//! on the secrets: a guest that has its own guesses echoed would see, by what is late, how far each is right. Pieces that
//! end where a word does, as events and messages in JSON do, are not late. Which bytes come out doesn't depend on how
//! they were cut, unless there was a pause in a word.
//!
//! This is a net under an honest server's careless echo. A server that wants to give a secret away can always spell it
//! in another way: it knows it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use memchr::memmem;
use zeroize::Zeroizing;

/// Characters of a long secret that are shown, and never held back.
const MAX_SHOWN_BYTES: usize = 3;
/// Of a short one, at most this part.
const SHOWN_PART: usize = 8;

/// Of one character, in JSON: `\u003c`.
const MAX_ESCAPE_BYTES: usize = 6;

const MASK: u8 = b'*';

/// Of a word that goes on, so much is held back, or if a secret can be longer, the next power of two.
const MIN_HELD_BYTES: usize = 1024;

/// For how long the end of a piece is held back. Longer than an honest server takes from one part of a header that it
/// echoes to the next.
pub(super) const HELD_FOR: Duration = Duration::from_millis(50);

/// The spellings of some secrets.
#[derive(Default)]
pub(super) struct Patterns {
    spellings: Vec<Zeroizing<Vec<u8>>>,
    /// No spelling is longer.
    longest: usize,
    /// At least so much is shown of each.
    shown: usize,
    /// There is more in them than what keys are made of.
    has_signs: bool,
}

impl Patterns {
    pub(super) fn of<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut patterns: Vec<Zeroizing<Vec<u8>>> = secrets.into_iter().flat_map(spellings).collect();
        patterns.sort_by(|one, other| one.as_slice().cmp(other));
        patterns.dedup();
        let longest = patterns.iter().map(|pattern| pattern.len()).max().unwrap_or_default();
        let least = patterns.iter().map(|pattern| shown(pattern)).min().unwrap_or_default();
        let has_signs = patterns.iter().any(|pattern| !pattern.iter().copied().all(is_of_key));
        Self { spellings: patterns, longest, shown: least, has_signs }
    }

    /// The whole text with its secrets starred out; `None` if it holds none.
    pub(super) fn mask(&self, text: &[u8]) -> Option<Vec<u8>> {
        let found = self.find(text);
        if found.is_empty() {
            return None;
        }
        let mut masked = text.to_vec();
        for occurrence in found {
            masked[occurrence.hidden].fill(MASK);
        }
        Some(masked)
    }

    fn find(&self, text: &[u8]) -> Vec<Occurrence> {
        let mut found = Vec::new();
        for pattern in &self.spellings {
            let finder = memmem::Finder::new(pattern.as_slice());
            let mut from = 0;
            // Occurrences that overlap are all looked at: only then does nothing depend on where a text was cut.
            while let Some(offset) = text.get(from..).and_then(|rest| finder.find(rest)) {
                let start = from + offset;
                found.push(Occurrence { start, hidden: start + shown(pattern)..start + pattern.len() });
                from = start + 1;
            }
        }
        found
    }

    /// From where on the text may be the beginning of a secret, and from where on it is held back, which must not depend
    /// on what the secrets are.
    fn live(&self, text: &[u8]) -> (usize, usize) {
        if self.spellings.is_empty() {
            return (text.len(), text.len());
        }
        let is_of_word = if self.has_signs { |byte: u8| byte.is_ascii_graphic() } else { is_of_key };
        let word = text.iter().rev().take_while(|byte| is_of_word(**byte)).count();
        let most = self.longest.next_power_of_two().max(MIN_HELD_BYTES);
        let hold = text.len() - word.saturating_sub(self.shown).min(most);
        (text.len() - word.min(most), hold)
    }
}

/// What keys and tokens are made of, and their usual spellings.
fn is_of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~+/=%:\\".contains(&byte)
}

/// A secret in a text.
struct Occurrence {
    start: usize,
    hidden: Range<usize>,
}

fn shown(pattern: &[u8]) -> usize {
    (pattern.len() / SHOWN_PART).min(MAX_SHOWN_BYTES)
}

fn spellings(secret: &str) -> Vec<Zeroizing<Vec<u8>>> {
    let mut spellings: Vec<Zeroizing<Vec<u8>>> = vec![Zeroizing::new(secret.as_bytes().to_vec())];
    spellings.push(escaped(secret, |byte| match byte {
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        _ => None,
    }));
    // Some writers of JSON escape slashes, others what would be dangerous in HTML.
    spellings.push(escaped(secret, |byte| match byte {
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        b'/' => Some("\\/"),
        _ => None,
    }));
    spellings.push(escaped(secret, |byte| match byte {
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        b'<' => Some("\\u003c"),
        b'>' => Some("\\u003e"),
        b'&' => Some("\\u0026"),
        _ => None,
    }));
    spellings.push(percent_encoded(secret, b"0123456789ABCDEF"));
    spellings.push(percent_encoded(secret, b"0123456789abcdef"));
    for offset in 0..3 {
        // What shares a group of four characters with its neighbours is spelled by them too.
        let inner = &secret.as_bytes()[offset..];
        let inner = &inner[..inner.len() / 3 * 3];
        spellings.push(Zeroizing::new(STANDARD_NO_PAD.encode(inner).into_bytes()));
        spellings.push(Zeroizing::new(URL_SAFE_NO_PAD.encode(inner).into_bytes()));
    }
    spellings
}

/// The text as in a string of JSON, by a writer that escapes so. Values are visible ASCII.
fn escaped(text: &str, escape: impl Fn(u8) -> Option<&'static str>) -> Zeroizing<Vec<u8>> {
    // With room for all, so that no copy is left behind by growing.
    let mut escaped = Zeroizing::new(Vec::with_capacity(MAX_ESCAPE_BYTES * text.len()));
    for byte in text.bytes() {
        match escape(byte) {
            Some(text) => escaped.extend_from_slice(text.as_bytes()),
            None => escaped.push(byte),
        }
    }
    escaped
}

fn percent_encoded(text: &str, digits: &[u8; 16]) -> Zeroizing<Vec<u8>> {
    let mut encoded = Zeroizing::new(Vec::with_capacity(3 * text.len()));
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(byte);
        } else {
            encoded.extend([b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]);
        }
    }
    encoded
}

/// Stars secrets out of a stream of pieces.
pub(super) struct Scrubber {
    patterns: Arc<Patterns>,
    /// The end of what has come, as far as it may belong to a secret that goes on.
    window: Vec<u8>,
    /// Of the window, what has been given out already.
    given: usize,
    /// In the window, what belongs to a secret that began before it.
    hidden: Vec<Range<usize>>,
    has_found: bool,
}

impl Scrubber {
    pub(super) fn new(patterns: Arc<Patterns>) -> Self {
        Self { patterns, window: Vec::new(), given: 0, hidden: Vec::new(), has_found: false }
    }

    /// What may go on after this piece has come; often the piece itself, uncopied.
    pub(super) fn push(&mut self, piece: Bytes) -> Bytes {
        let text = if self.window.is_empty() { piece } else { [&self.window, &piece[..]].concat().into() };
        let (start, hold) = self.patterns.live(&text);
        // What has been let go is not held back any more.
        let hold = hold.max(self.given);
        self.give(&text, start.min(hold), hold)
    }

    /// What was held back, when nothing more has come for [`HELD_FOR`]. It may still belong to a secret.
    pub(super) fn let_go(&mut self) -> Bytes {
        let text = Bytes::copy_from_slice(&self.window);
        self.give(&text, 0, text.len())
    }

    /// The end has come: what was held back was no secret.
    pub(super) fn finish(&mut self) -> Bytes {
        let text = Bytes::from(std::mem::take(&mut self.window));
        self.give(&text, text.len(), text.len())
    }

    pub(super) fn has_found(&self) -> bool {
        self.has_found
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.window.len() - self.given
    }

    /// Gives `text` out from where that ended to `hold`, and keeps it from `start` on.
    fn give(&mut self, text: &Bytes, start: usize, hold: usize) -> Bytes {
        let found = self.patterns.find(text);
        self.has_found |= !found.is_empty();
        let mut given = text.slice(self.given.min(hold)..hold);
        let hidden = found.iter().map(|occurrence| &occurrence.hidden).chain(&self.hidden);
        let hidden: Vec<Range<usize>> = hidden
            .map(|range| range.start.max(self.given)..range.end.min(hold))
            .filter(|range| !range.is_empty())
            .collect();
        if !hidden.is_empty() {
            let mut masked = BytesMut::from(given.as_ref());
            for range in hidden {
                masked[range.start - self.given..range.end - self.given].fill(MASK);
            }
            given = masked.freeze();
        }
        // A secret that lies in the window is found again, one that began before it isn't.
        let begun = found.into_iter().filter(|occurrence| occurrence.start < start);
        self.hidden = std::mem::take(&mut self.hidden)
            .into_iter()
            .chain(begun.map(|occurrence| occurrence.hidden))
            .filter(|range| range.end > start)
            .map(|range| range.start.saturating_sub(start)..range.end - start)
            .collect();
        self.given = hold - start;
        self.window.clear();
        self.window.extend_from_slice(&text[start..]);
        given
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "sk-live/0123456789\"abcdef";

    fn patterns(secrets: &[&str]) -> Arc<Patterns> {
        Arc::new(Patterns::of(secrets.iter().copied()))
    }

    fn scrub(patterns: &Arc<Patterns>, pieces: &[&[u8]]) -> Vec<u8> {
        let mut scrubber = Scrubber::new(Arc::clone(patterns));
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(scrubber.push(Bytes::copy_from_slice(piece)));
        }
        out.extend(scrubber.finish());
        out
    }

    #[test]
    fn an_echoed_secret_is_starred_out_however_it_is_cut() {
        let text = format!("your key {SECRET} is wrong");
        let expected = "your key sk-********************** is wrong";
        let patterns = patterns(&[SECRET]);
        for cut in 0..text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            assert_eq!(scrub(&patterns, &[left, right]), expected.as_bytes(), "{cut}");
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(scrub(&patterns, &bytes), expected.as_bytes());
    }

    #[test]
    fn the_spelling_in_json_is_that_of_a_writer_of_json() {
        let visible: String = (b' '..=b'~').map(char::from).collect();
        let json = serde_json::to_string(&visible).unwrap();
        let known: Vec<_> = spellings(&visible);
        assert!(known.iter().any(|spelling| spelling.as_slice() == &json.as_bytes()[1..json.len() - 1]));
    }

    #[test]
    fn the_spellings_of_servers_are_known() {
        let patterns = patterns(&[SECRET]);
        let json = serde_json::to_string(SECRET).unwrap();
        let percent = String::from_utf8(percent_encoded(SECRET, b"0123456789ABCDEF").to_vec()).unwrap();
        for text in [json.clone(), json.replace('/', "\\/"), percent] {
            let masked = String::from_utf8(scrub(&patterns, &[text.as_bytes()])).unwrap();
            assert_eq!(masked.len(), text.len());
            assert!(!masked.contains("0123456789"), "{masked}");
        }
        for user in ["", "x:", "me:", "git:"] {
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}{SECRET}"));
            let masked = scrub(&patterns, &[basic.as_bytes()]);
            let stars = masked.iter().filter(|byte| **byte == MASK).count();
            assert!(stars > 20, "{user}: {}", String::from_utf8_lossy(&masked));
        }
    }

    const KEY: &str = "sk-ant-0123456789abcdef0123456789";

    #[test]
    fn the_end_of_a_piece_is_late_where_it_is_the_middle_of_a_word() {
        let mut scrubber = Scrubber::new(patterns(&[KEY]));
        assert_eq!(
            scrubber.push(Bytes::from("data: {\"delta\": \"sk-ant-\"}\n\n")),
            "data: {\"delta\": \"sk-ant-\"}\n\n"
        );
        assert_eq!(scrubber.push(Bytes::from("data: tick")), "data: tic");
        assert_eq!(scrubber.push(Bytes::from("et or sk-ant-01")), "ket or sk-");
        assert_eq!(scrubber.held_bytes(), 6);
        assert_eq!(scrubber.let_go(), "ant-01");
        assert_eq!((scrubber.held_bytes(), scrubber.let_go()), (0, Bytes::new()));
        // It is starred out as far as it has not gone.
        assert_eq!(scrubber.push(Bytes::from(&KEY[9..])), "");
        assert_eq!(scrubber.push(Bytes::from(" is wrong\n")), "************************ is wrong\n");
        assert!(scrubber.has_found());
    }

    #[test]
    fn pieces_without_a_secret_are_not_copied() {
        let piece = Bytes::from(vec![b'x'; 1 << 16]);
        let given = Scrubber::new(patterns(&[SECRET])).push(piece.clone());
        assert_eq!(given.as_ptr(), piece.as_ptr());
        assert_eq!(given.len(), piece.len() - MIN_HELD_BYTES);
    }

    proptest! {
        /// A guest chooses what is echoed, and sees when what of it comes.
        #[test]
        fn what_is_late_says_nothing_of_a_secret(
            pieces in prop::collection::vec("[a-c ]{0,12}", 1..8),
            secrets in ("[abc]{24}", "[abc]{24}"),
        ) {
            prop_assume!([&secrets.0, &secrets.1].iter().all(|secret| !pieces.concat().contains(secret.as_str())));
            let [mut one, mut other] =
                [&secrets.0, &secrets.1].map(|secret| Scrubber::new(patterns(&[secret.as_str()])));
            for piece in pieces {
                let piece = Bytes::from(piece);
                prop_assert_eq!(one.push(piece.clone()), other.push(piece));
                prop_assert_eq!(one.held_bytes(), other.held_bytes());
            }
            prop_assert_eq!(one.finish(), other.finish());
        }

        /// Few different letters, so that secrets overlap themselves, each other and the cuts.
        #[test]
        fn any_cutting_gives_the_same_bytes(
            secrets in prop::collection::vec("[ab]{8,20}", 1..3),
            text in "[ab]{0,120}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let names: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let patterns = patterns(&names);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let whole = patterns.mask(text.as_bytes()).unwrap_or_else(|| text.clone().into_bytes());
            prop_assert_eq!(scrub(&patterns, &pieces), whole.clone());
            for secret in names {
                prop_assert!(memmem::find(&whole, secret.as_bytes()).is_none());
            }
        }
    }
}
