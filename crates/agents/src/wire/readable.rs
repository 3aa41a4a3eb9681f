//! Whether everybody can read what an agent wrote: records are kept as text, and taken apart again by hosts in many
//! languages, which refuse more than a parser that only looks for the ends of things.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The record as everybody can read it; `None` where nobody can: it is no JSON, or nested without measure.
///
/// JavaScript cuts texts between the halves of a character, and JSON has a way to write such a half, which is no text in
/// most languages. It becomes U+FFFD.
pub(super) fn readable(text: &str) -> Option<Cow<'_, str>> {
    if is_readable(text) {
        return Some(Cow::Borrowed(text));
    }
    let mended = without_halves(text);
    is_readable(&mended).then_some(Cow::Owned(mended))
}

fn is_readable(text: &str) -> bool {
    serde_json::from_str::<Readable>(text).is_ok()
}

/// Takes a value apart wholly, and keeps nothing of it.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// The same text with U+FFFD for every escape that is half of a character.
fn without_halves(text: &str) -> String {
    let mut mended = String::with_capacity(text.len());
    let mut left = text;
    while let Some(at) = left.find('\\') {
        let (before, escape) = left.split_at(at);
        mended.push_str(before);
        let (kept, length) = match (half(escape), escape.get(6..).and_then(half)) {
            (Some(Half::First), Some(Half::Second)) => (&escape[..12], 12),
            (Some(_), _) => ("\u{fffd}", 6),
            // Any other escape is a backslash and one character, of which the second may be a backslash.
            (None, _) => {
                let length = escape.chars().take(2).map(char::len_utf8).sum();
                (&escape[..length], length)
            }
        };
        mended.push_str(kept);
        left = &escape[length..];
    }
    mended.push_str(left);
    mended
}

enum Half {
    First,
    Second,
}

/// The half of a character that an escape at the beginning of this text is.
fn half(text: &str) -> Option<Half> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(Half::First),
        0xdc00..=0xdfff => Some(Half::Second),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_of_characters_are_mended_and_nothing_else_is() {
        for (text, mended) in [
            (r#"{"a":"\ud83d"}"#, "{\"a\":\"\u{fffd}\"}"),
            (r#""\ude00x\ud83d\ud83d\ude00""#, "\"\u{fffd}x\u{fffd}\\ud83d\\ude00\""),
            (r#"["\\ud83d","\ud83d"]"#, "[\"\\\\ud83d\",\"\u{fffd}\"]"),
        ] {
            assert_eq!(readable(text).as_deref(), Some(mended), "{text}");
        }
        for text in [r#""\ud83d\ude00""#, r#"{"a":[1,2.5,true,null,"é"]}"#] {
            assert!(matches!(readable(text), Some(Cow::Borrowed(same)) if same == text), "{text}");
        }
    }

    #[test]
    fn what_nobody_can_read_is_nothing() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for text in [deep.as_str(), "1e999", "{", "", "\"\\u12\"", "\"\\ud83"] {
            assert_eq!(readable(text), None, "{}", &text[..text.len().min(20)]);
        }
    }

    proptest! {
        #[test]
        fn what_is_readable_is_json_to_everybody(text in r#"[\[{"a:,]?(\\u[dD][89a-f][0-9a-f]{2}|\\[u"\\n]|[0-9e"\[\]{},: ]|é){0,24}"?[\]}]?"#) {
            if let Some(readable) = readable(&text) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&readable).is_ok());
            }
        }
    }
}
