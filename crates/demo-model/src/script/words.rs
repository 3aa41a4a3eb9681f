//! The words of a masked prompt, with their places.

use std::ops::Range;

use super::quote::{BLANK, Masked};

#[derive(Debug, Clone)]
pub(super) struct Word<'a> {
    /// Between white space.
    pub(super) outer: Range<usize>,
    /// Without the punctuation around it.
    pub(super) inner: Range<usize>,
    /// Lower case, without the punctuation around it; blanks where it is quoted.
    pub(super) text: &'a str,
    /// The punctuation after it.
    pub(super) tail: &'a str,
}

impl Word<'_> {
    pub(super) fn is_quoted(&self) -> bool {
        self.text.starts_with(BLANK)
    }
}

pub(super) fn words<'a>(masked: &'a Masked<'a>, range: Range<usize>) -> Vec<Word<'a>> {
    let mut words = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let rest = &masked.mask[at..range.end];
        let Some(skip) = rest.find(|c: char| !c.is_whitespace()) else { break };
        let start = at + skip;
        let end = masked.mask[start..range.end].find(char::is_whitespace).map_or(range.end, |i| start + i);
        words.push(word(masked, start..end));
        at = end;
    }
    words
}

fn word<'a>(masked: &'a Masked<'a>, outer: Range<usize>) -> Word<'a> {
    let whole = &masked.mask[outer.clone()];
    let head = whole.len() - whole.trim_start_matches(['(', '[']).len();
    let bare = whole[head..].trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']']);
    // Punctuation alone (`.` as a directory, `-` as a list mark) stays a word.
    let (head, bare) = if bare.is_empty() { (0, whole) } else { (head, bare) };
    let inner = outer.start + head..outer.start + head + bare.len();
    Word { tail: &masked.mask[inner.end..outer.end], text: bare, inner, outer }
}
