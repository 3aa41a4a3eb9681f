//! Clauses that ask for a command: `run`, `read`, `list`.

use std::ops::Range;

use super::Step;
use super::program::shell_quote;
use super::prompt::{Clause, run_it};
use super::quote::{Mark, Masked};
use super::words::{Word, words};

/// Words between the verb and the command itself.
const FILLERS: &[&str] = &[
    "the",
    "this",
    "following",
    "shell",
    "bash",
    "terminal",
    "command",
    "commands",
    "cmd",
    "a",
    "exact",
    "line",
];

/// Words after a quoted command that belong to the sentence, not to the command.
const AFTER: &[&str] = &[
    "and", "in", "to", "for", "with", "please", "then", "using", "from", "so", "inside", "once", "there",
    "here",
];

/// An unquoted object that begins with one of these is a description, not a command.
const DESCRIPTIVE: &[&str] =
    &["the", "a", "an", "all", "my", "some", "every", "your", "our", "these", "those"];

pub(super) fn read(clause: &Clause<'_>, written: Option<&str>) -> Option<Step> {
    let masked = clause.masked;
    if clause.verbatim {
        return command(&masked.text[clause.object.clone()]);
    }
    let words = words(masked, clause.object.clone());
    if let Some(path) = written
        && names_what_was_written(&words)
    {
        return Some(run_it(path));
    }
    let fillers = words.iter().take_while(|w| FILLERS.contains(&w.text)).count();
    let first = words.get(fillers)?;
    let announced = words[..fillers].iter().any(|w| w.text.starts_with("command") || w.text == "cmd");
    // `run bash "a b"` starts a program with a quoted argument; `run the "a b"` quotes a command.
    let only_articles =
        !words[..fillers].iter().any(|w| matches!(w.text, "shell" | "bash" | "terminal" | "line"));
    if first.is_quoted() && (announced || only_articles) {
        let quote = masked.quote_from(first.inner.start)?;
        let rest = &clause.masked.mask[quote.outer.end..clause.object.end];
        if quote.mark != Mark::Marks || ends_there(rest) {
            return command(&quote.text);
        }
    }
    if !announced && DESCRIPTIVE.contains(&words[0].text) {
        return None;
    }
    let start = if announced { first.outer.start } else { words[0].outer.start };
    command(strip_full_stop(masked.text[start..clause.object.end].trim()))
}

/// The rest of the line (or the line or fence after it) where the prompt says `run: ` or `run the command: `: such a
/// command is taken as it stands, whatever verbs it holds. A quoted one is left to the ordinary rules.
pub(super) fn verbatim(masked: &Masked<'_>, from: usize, colon: bool) -> Option<Range<usize>> {
    let mut start = from;
    if !colon {
        let all = words(masked, from..masked.text.len());
        let last = all.iter().take_while(|w| FILLERS.contains(&w.text)).find(|w| w.tail.contains(':'))?;
        start = last.outer.end;
    }
    let skipped = masked.mask[start..].find(|c: char| !c.is_whitespace())?;
    start += skipped;
    if masked.quote_from(start).is_some() {
        return None;
    }
    let end = masked.text[start..].find('\n').map_or(masked.text.len(), |i| start + i);
    Some(start..end)
}

/// `read FILE`, `show the contents of FILE`.
pub(super) fn read_file(clause: &Clause<'_>) -> Option<Step> {
    let words = words(clause.masked, clause.object.clone());
    let path = words.iter().find_map(|w| {
        let text = match clause.masked.quote_from(w.inner.start) {
            Some(quote) => quote.text.clone(),
            None => clause.masked.text[w.inner.clone()].to_owned(),
        };
        super::write_clause::looks_like_path(&text).then_some(text)
    })?;
    Some(Step::Run { command: format!("cat -- {}", shell_quote(&path)) })
}

/// `list the files [in DIR]`.
pub(super) fn list(clause: &Clause<'_>) -> Option<Step> {
    let words = words(clause.masked, clause.object.clone());
    words.iter().find(|w| w.text.starts_with("file") || w.text.starts_with("director"))?;
    let place = words.iter().skip_while(|w| !matches!(w.text, "in" | "of" | "under")).skip(1).find_map(|w| {
        match clause.masked.quote_from(w.inner.start) {
            Some(quote) => Some(quote.text.clone()),
            None => w.text.contains('/').then(|| clause.masked.text[w.inner.clone()].to_owned()),
        }
    });
    let command = match place {
        Some(place) => format!("ls -la -- {}", shell_quote(&place)),
        None => "ls -la".to_owned(),
    };
    Some(Step::Run { command })
}

fn names_what_was_written(words: &[Word<'_>]) -> bool {
    let all: Vec<&str> = words.iter().map(|w| w.text).take(2).collect();
    matches!(
        all.as_slice(),
        ["it", ..]
            | ["this" | "that"]
            | ["the" | "this" | "that", "file" | "script" | "program" | "code" | "result"]
    )
}

fn ends_there(rest: &str) -> bool {
    let rest = rest.trim_start();
    let first = rest.split_whitespace().next().unwrap_or_default();
    rest.is_empty()
        || rest.starts_with(['.', ',', ';', ':', '!', '?', ')'])
        || AFTER.contains(&first.trim_end_matches([',', '.']))
}

/// The full stop of the sentence is not part of `ls -la.`, the dot of `ls .` is.
fn strip_full_stop(command: &str) -> &str {
    match command.strip_suffix(['.', '!', '?']) {
        Some(bare) if bare.ends_with(|c: char| c.is_alphanumeric() || "\"')`".contains(c)) => bare,
        _ => command,
    }
}

fn command(text: &str) -> Option<Step> {
    let text = text.trim();
    (!text.is_empty()).then(|| Step::Run { command: text.to_owned() })
}
