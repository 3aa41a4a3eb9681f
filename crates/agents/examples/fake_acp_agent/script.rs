//! Directives in a text.

/// `[[name rest]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) rest: String,
}

/// The directives of a text, in order. One that is never closed is text.
pub(crate) fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut left = text;
    while let Some((_, after)) = left.split_once("[[") {
        let Some(end) = end_of(after) else { break };
        let inside = after[..end].trim();
        let (name, rest) = inside.split_once(char::is_whitespace).unwrap_or((inside, ""));
        steps.push(Step { name: name.to_owned(), rest: rest.trim_start().to_owned() });
        left = &after[end + 2..];
    }
    steps
}

/// Where the last two brackets of the first run of closing ones are: an argument may end in one.
fn end_of(text: &str) -> Option<usize> {
    let first = text.find("]]")?;
    let run = text[first..].bytes().take_while(|byte| *byte == b']').count();
    Some(first + run - 2)
}

impl Step {
    /// Words that are no `key=value`.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.rest.split_whitespace().filter(|word| named(word).is_none())
    }

    /// The value of `key=value`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.rest.split_whitespace().filter_map(named).find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The first word of the arguments, and what follows it.
    pub(crate) fn split(&self) -> (&str, &str) {
        let (word, rest) = self.rest.split_once(char::is_whitespace).unwrap_or((&self.rest, ""));
        (word, rest.trim_start())
    }

    /// The word at this place as a size: `12`, `64K`, `100M`, `1G`.
    pub(crate) fn size(&self, at: usize) -> Option<Result<u64, String>> {
        self.words().nth(at).map(size)
    }

    /// A size that has to be there.
    pub(crate) fn needed_size(&self, at: usize) -> Result<u64, String> {
        self.size(at).unwrap_or_else(|| Err(format!("[[{}]] lacks a number", self.name)))
    }
}

fn named(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
    is_name.then_some((name, value))
}

pub(crate) fn size(word: &str) -> Result<u64, String> {
    let (digits, factor) = match word.as_bytes().last() {
        Some(b'K') => (&word[..word.len() - 1], 1 << 10),
        Some(b'M') => (&word[..word.len() - 1], 1 << 20),
        Some(b'G') => (&word[..word.len() - 1], 1 << 30),
        _ => (word, 1),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{word} is no number"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{word} is too much"))
}
