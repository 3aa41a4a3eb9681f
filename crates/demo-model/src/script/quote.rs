//! Where a prompt quotes: code fences, back ticks, straight and curly quotes.
//!
//! Keywords are looked for in a mask of the same length in which everything quoted is blanked out, so that
//! `Write "go to the shop and then run" to list.txt` has one verb and one target. Byte offsets of the mask are byte
//! offsets of the prompt.

use std::ops::Range;

/// Stands for every byte of a quoted piece in the mask; no prompt word holds it.
pub(super) const BLANK: char = '\u{1}';

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Quote {
    /// With the quotation marks.
    pub(super) outer: Range<usize>,
    pub(super) text: String,
    pub(super) mark: Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Fence,
    Ticks,
    Marks,
}

#[derive(Debug)]
pub(super) struct Masked<'a> {
    pub(super) text: &'a str,
    /// ASCII lower case, quotes blanked, as long as `text`.
    pub(super) mask: String,
    pub(super) quotes: Vec<Quote>,
}

impl<'a> Masked<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut mask = String::with_capacity(text.len());
        let mut quotes = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            if let Some(quote) = quote_at(text, at) {
                mask.extend(std::iter::repeat_n(BLANK, quote.outer.len()));
                at = quote.outer.end;
                quotes.push(quote);
            } else {
                // The blank itself must not be forged by the prompt.
                mask.push(if c == BLANK { ' ' } else { c.to_ascii_lowercase() });
                at += c.len_utf8();
            }
        }
        Self { text, mask, quotes }
    }

    /// The quote that begins exactly here.
    pub(super) fn quote_from(&self, at: usize) -> Option<&Quote> {
        self.quotes.iter().find(|q| q.outer.start == at)
    }

    /// The first quote that lies in this range.
    pub(super) fn quote_in(&self, range: &Range<usize>) -> Option<&Quote> {
        self.quotes.iter().find(|q| q.outer.start >= range.start && q.outer.end <= range.end)
    }
}

fn quote_at(text: &str, at: usize) -> Option<Quote> {
    let rest = &text[at..];
    let first = rest.chars().next()?;
    let before = text[..at].chars().next_back();
    match first {
        '`' => fence_at(text, at).or_else(|| ticks_at(text, at)),
        '"' | '\'' if opens(before) => marks_at(text, at, first, first),
        '“' => marks_at(text, at, '“', '”'),
        '‘' => marks_at(text, at, '‘', '’'),
        '«' => marks_at(text, at, '«', '»'),
        _ => None,
    }
}

/// A quotation mark inside a word (`don't`, `5"`) opens nothing.
fn opens(before: Option<char>) -> bool {
    before.is_none_or(|c| c.is_whitespace() || "([{:,=<>-".contains(c))
}

fn closes(after: Option<char>) -> bool {
    after.is_none_or(|c| c.is_whitespace() || ".,;:!?)]}>".contains(c))
}

/// A fence begins a line and ends at a line of at least as many ticks; an unclosed one runs to the end.
fn fence_at(text: &str, at: usize) -> Option<Quote> {
    let ticks = text[at..].bytes().take_while(|b| *b == b'`').count();
    let line_start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    if ticks < 3 || !text[line_start..at].trim().is_empty() {
        return None;
    }
    let info_end = at + text[at..].find('\n')?;
    if text[at + ticks..info_end].contains('`') {
        return None;
    }
    let body_start = info_end + 1;
    let mut line = body_start;
    while line < text.len() {
        let line_end = text[line..].find('\n').map_or(text.len(), |i| line + i);
        let trimmed = text[line..line_end].trim();
        if trimmed.len() >= ticks && trimmed.bytes().all(|b| b == b'`') {
            let text = text[body_start..line].to_owned();
            return Some(Quote { outer: at..line_end, text, mark: Mark::Fence });
        }
        line = line_end + 1;
    }
    let text_end = text.len();
    Some(Quote { outer: at..text_end, text: text[body_start..].to_owned(), mark: Mark::Fence })
}

/// Markdown's code span: closed by as many ticks as opened it.
fn ticks_at(text: &str, at: usize) -> Option<Quote> {
    let ticks = text[at..].bytes().take_while(|b| *b == b'`').count();
    let start = at + ticks;
    let mut cursor = start;
    while let Some(offset) = text[cursor..].find('`') {
        let run_start = cursor + offset;
        let run = text[run_start..].bytes().take_while(|b| *b == b'`').count();
        if run == ticks {
            let mut inner = &text[start..run_start];
            if ticks > 1
                && let Some(trimmed) = inner.strip_prefix(' ').and_then(|t| t.strip_suffix(' '))
            {
                inner = trimmed;
            }
            return (!inner.is_empty()).then(|| Quote {
                outer: at..run_start + run,
                text: inner.to_owned(),
                mark: Mark::Ticks,
            });
        }
        cursor = run_start + run;
    }
    None
}

/// Quotation marks, with quotes of the same kind inside (`"say "hi" now"`) and escaped ones (`\"`).
fn marks_at(text: &str, at: usize, open: char, close: char) -> Option<Quote> {
    let start = at + open.len_utf8();
    let mut depth = 0usize;
    let mut previous = open;
    let mut lone_close = None;
    for (offset, c) in text[start..].char_indices() {
        let here = start + offset;
        let after = text[here + c.len_utf8()..].chars().next();
        if c == close && previous == '\\' {
            if closes(after) {
                lone_close = lone_close.or(Some(here));
            }
        } else if c == close && closes(after) {
            if depth == 0 {
                return Some(quote(text, at..here + close.len_utf8(), start..here, close));
            }
            depth -= 1;
        } else if c == open && opens(Some(previous)) && here > start {
            depth += 1;
        }
        previous = c;
    }
    // A text that ends in a back slash (`"C:\"`) has only this one mark to close it.
    lone_close.map(|here| quote(text, at..here + close.len_utf8(), start..here, close))
}

fn quote(text: &str, outer: Range<usize>, inner: Range<usize>, close: char) -> Quote {
    let escaped = format!("\\{close}");
    Quote { outer, text: text[inner].replace(&escaped, &close.to_string()), mark: Mark::Marks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, quotes: &[&str]) {
        let masked = Masked::new(text);
        assert_eq!(masked.mask.len(), text.len());
        assert_eq!(masked.quotes.iter().map(|q| q.text.as_str()).collect::<Vec<_>>(), quotes, "{text}");
    }

    #[test]
    fn finds_every_kind_of_quote_and_no_apostrophe() {
        check(r#"Write "a b" to 'c d' and `e f`"#, &["a b", "c d", "e f"]);
        check("don't, it's 5\" wide", &[]);
        check("“curly” and «angled» and ‘single’", &["curly", "angled", "single"]);
        check("`` a `tick` ``", &["a `tick`"]);
    }

    #[test]
    fn quotes_inside_quotes_stay_inside() {
        check(r#"Write "say "hi" now" to f"#, &[r#"say "hi" now"#]);
        check(r#"Write "say \"hi\" now" to f"#, &[r#"say "hi" now"#]);
        check(r#"Run "echo 'x y' > f""#, &["echo 'x y' > f"]);
        check(r#"Write "C:\" to f"#, &[r"C:\"]);
    }

    #[test]
    fn a_fence_keeps_its_lines() {
        check("x:\n```python\nprint(1)\n\nprint(2)\n```\nrun it", &["print(1)\n\nprint(2)\n"]);
        check("x:\n````\n```\ninner\n```\n````\n", &["```\ninner\n```\n"]);
        check("x:\n```\nopen", &["open"]);
    }
}
