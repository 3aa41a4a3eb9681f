//! Clauses that ask for a file: where is its name, where its content?
//!
//! The content is looked for in this order: after a word that announces it (`containing`, `with the text`...), after a
//! colon behind the name, between the verb and the name (`write X to NAME`), behind the name. What is quoted or fenced
//! is taken exactly; unquoted words are taken as they stand, unless they describe something the script can't invent.

use std::ops::Range;

use super::Step;
use super::program::Language;
use super::prompt::Clause;
use super::quote::Masked;
use super::words::{Word, words};

const PLACE: &[&str] = &["to", "into", "in", "as", "at", "inside", "under"];
const NAMING: &[&str] = &["file", "filename", "named", "called", "path", "script"];
const ARTICLES: &[&str] = &["a", "an", "the", "new", "empty", "text", "my", "this"];
/// Nouns for a text: `the text "x"`, `the line x`.
const NOUNS: &[&str] = &[
    "text", "content", "contents", "body", "line", "lines", "string", "data", "word", "words", "code",
    "sentence", "message", "phrase",
];
const QUALIFIERS: &[&str] =
    &["exact", "following", "single", "literal", "only", "exactly", "just", "these", "this"];
/// Unquoted content that begins so describes a content instead of giving it.
const DESCRIPTIVE: &[&str] = &[
    "a",
    "an",
    "some",
    "my",
    "me",
    "your",
    "that",
    "the",
    "something",
    "code",
    "tests",
    "unit",
    "documentation",
    "it",
];

#[derive(Debug)]
struct Target {
    /// Words of the clause that name the file, prepositions and articles before the name included.
    words: Range<usize>,
    path: String,
}

#[derive(Debug)]
struct Announced {
    /// The word that announces the content.
    word: usize,
    /// Where the content begins.
    from: usize,
    /// A bare `with`, which announces descriptions too.
    vague: bool,
}

pub(super) fn read(clause: &Clause<'_>) -> Option<Step> {
    let masked = clause.masked;
    let all = words(masked, clause.object.clone());
    let end = clause.object.end;
    let language = language(&all);
    let announced = announced(masked, &all, end);
    let before = announced.as_ref().map_or(all.len(), |a| a.word);
    let target = target(masked, &all, 0..before)
        .or_else(|| announced.is_some().then(|| target(masked, &all, before + 1..all.len())).flatten());

    let content = match (&announced, &target) {
        (Some(a), target) => {
            let stop = target
                .as_ref()
                .filter(|t| t.words.start > a.word)
                .map_or(end, |t| all[t.words.start].outer.start);
            // `containing a hello world` describes a program; `containing a fish` is taken at its word.
            let vague = a.vague || says_hello_world(&all);
            literal(masked, a.from..stop, vague).or_else(|| hello(&all, target.as_ref(), language))
        }
        (None, Some(target)) => beside(masked, &all, target, end, language),
        (None, None) => hello(&all, None, language),
    }?;
    let path = match target {
        Some(target) => target.path,
        None => language.filter(|_| says_hello_world(&all))?.default_file(),
    };
    Some(Step::Write { path, content })
}

/// `write X to NAME`, `write to NAME: X`, `create an empty file NAME`.
fn beside(
    masked: &Masked<'_>,
    all: &[Word<'_>],
    target: &Target,
    end: usize,
    language: Option<&'static Language>,
) -> Option<String> {
    let last = &all[target.words.end - 1];
    let behind = last.outer.end..end;
    let fenced = masked.quotes.iter().find(|q| q.outer.start >= behind.start && q.text.contains('\n'));
    if last.tail.contains(':') || (fenced.is_some() && target.words.start <= 1) {
        return literal(masked, behind, false);
    }
    let front: Vec<&Word<'_>> = all[..target.words.start].iter().collect();
    let only_articles =
        front.iter().all(|w| ARTICLES.contains(&w.text) || NAMING.contains(&w.text) || w.text == "me");
    if !only_articles {
        let range = front[0].outer.start..front[front.len() - 1].outer.end;
        let starts_quoted = masked.quote_in(&range).is_some();
        if !starts_quoted && let Some(text) = hello(all, Some(target), language) {
            return Some(text);
        }
        let from = skip_noun(all, 0, target.words.start);
        let range = all[from].outer.start..range.end;
        return literal(masked, range, true);
    }
    if masked.mask[behind.clone()].trim_matches(['.', ' ', '\n', '!']).is_empty() {
        // Nothing but a name: an empty file is what was asked for.
        return Some(String::new());
    }
    let from = skip_noun(all, target.words.end, all.len());
    all.get(from)
        .and_then(|w| literal(masked, w.outer.start..end, true))
        .or_else(|| hello(all, Some(target), language))
}

/// Where the content is announced, and by what.
fn announced(masked: &Masked<'_>, all: &[Word<'_>], end: usize) -> Option<Announced> {
    let mut vague = None;
    for (i, word) in all.iter().enumerate() {
        let next = all.get(i + 1);
        let clear = match word.text {
            "containing" | "contains" | "saying" | "says" | "reading" | "reads" | "holding" => true,
            "content" | "contents" | "text" => {
                word.tail.contains(':') || next.is_some_and(|n| matches!(n.text, "is" | "are" | "should"))
            }
            "with" => {
                let noun = all[i + 1..].iter().take(4).find(|w| !is_qualifier(w.text));
                noun.is_some_and(|w| NOUNS.contains(&w.text) || w.is_quoted())
            }
            _ => false,
        };
        if clear {
            let from = skip_noun(all, if word.tail.contains(':') { all.len() } else { i + 1 }, all.len());
            let from = all.get(from).map_or(word.outer.end, |w| w.outer.start).min(end);
            return Some(Announced { word: i, from, vague: false });
        }
        if word.text == "with" && vague.is_none() && i + 1 < all.len() {
            vague = Some(Announced { word: i, from: word.outer.end, vague: true });
        }
    }
    // `write "x" to the file with the other notes` quotes its content before the `with`.
    vague.filter(|v| masked.quote_in(&(all[0].outer.start..all[v.word].outer.start)).is_none())
}

fn is_qualifier(word: &str) -> bool {
    QUALIFIERS.contains(&word) || ARTICLES.contains(&word) && !NOUNS.contains(&word)
}

/// Skips `the exact text`, `only the line:`, `is` and the like; an article is skipped only where a noun follows it.
fn skip_noun(all: &[Word<'_>], from: usize, to: usize) -> usize {
    let mut at = from;
    while at < to && QUALIFIERS.contains(&all[at].text) && at + 1 < to {
        at += 1;
    }
    let mut noun = at;
    while noun < to && is_qualifier(all[noun].text) {
        noun += 1;
    }
    if noun + 1 < to && NOUNS.contains(&all[noun].text) {
        at = noun + 1;
    }
    while at + 1 < to && matches!(all[at].text, "is" | "are" | "should" | "be" | "of") && at > from {
        at += 1;
    }
    at
}

/// The text in this range: the quoted piece it begins with, else the words themselves.
fn literal(masked: &Masked<'_>, range: Range<usize>, may_describe: bool) -> Option<String> {
    let skipped = masked.mask[range.clone()].find(|c: char| !c.is_whitespace() && c != ':')?;
    let start = range.start + skipped;
    if let Some(quote) = masked.quote_from(start) {
        return Some(quote.text.clone());
    }
    if let Some(fence) = masked.quote_in(&(start..range.end)).filter(|q| q.text.ends_with('\n')) {
        return Some(fence.text.clone());
    }
    let text = masked.text[start..range.end].trim();
    let first = masked.mask[start..range.end].split_whitespace().next()?;
    (!(may_describe && DESCRIPTIVE.contains(&first))).then(|| text.to_owned())
}

/// A program that greets the world, where the clause asks for one rather than for these two words.
fn hello(all: &[Word<'_>], target: Option<&Target>, language: Option<&'static Language>) -> Option<String> {
    if !says_hello_world(all) {
        return None;
    }
    let of_file = target.and_then(|t| Language::of(&t.path));
    if let Some(language) = language.or(of_file) {
        return Some(language.hello_world().to_owned());
    }
    let article = all.first().is_some_and(|w| matches!(w.text, "a" | "an" | "the"));
    article.then(|| "Hello, world!\n".to_owned())
}

fn says_hello_world(all: &[Word<'_>]) -> bool {
    all.windows(2).any(|pair| pair[0].text == "hello" && pair[1].text.starts_with("world"))
        || all.iter().any(|w| matches!(w.text, "hello-world" | "helloworld" | "hello_world"))
}

/// The language a clause names: `in Go`, `a Python hello world`. Lone letters need the `in`.
fn language(all: &[Word<'_>]) -> Option<&'static Language> {
    let named = |w: &Word<'_>| Language::named(w.text);
    let after_in = all.windows(2).find_map(|pair| (pair[0].text == "in").then(|| named(&pair[1])).flatten());
    after_in.or_else(|| all.iter().find_map(|w| (w.text.len() > 1).then(|| named(w)).flatten())).or_else(
        || {
            all.windows(2)
                .find_map(|pair| matches!(pair[0].text, "a" | "an").then(|| named(&pair[1])).flatten())
        },
    )
}

/// The file a stretch of words names. Names that look like paths win over plain words, later ones over earlier ones.
fn target(masked: &Masked<'_>, all: &[Word<'_>], range: Range<usize>) -> Option<Target> {
    let named = |i: usize| named_at(masked, all, i, range.end);
    let introduced: Vec<Target> = range.clone().rev().filter_map(named).collect();
    let likely = introduced.iter().position(|t| looks_like_path(&t.path) || all[t.words.end - 1].is_quoted());
    if let Some(i) = likely {
        return introduced.into_iter().nth(i);
    }
    let bare = range.clone().rev().find(|i| {
        let word = &all[*i];
        !word.is_quoted() && looks_like_path(&masked.text[word.inner.clone()])
    });
    if let Some(i) = bare {
        return target_at(masked, all, i, i);
    }
    if let Some(target) = introduced.into_iter().next() {
        return Some(target);
    }
    // `create notes`: one word, and nothing else it could be.
    let mut rest = range.filter(|i| !ARTICLES.contains(&all[*i].text) && !NAMING.contains(&all[*i].text));
    let only = rest.next()?;
    (rest.next().is_none() && !PLACE.contains(&all[only].text) && Language::named(all[only].text).is_none())
        .then(|| target_at(masked, all, only, only))
        .flatten()
}

/// The file named behind the preposition or noun at `i`.
fn named_at(masked: &Masked<'_>, all: &[Word<'_>], i: usize, end: usize) -> Option<Target> {
    let word = all[i].text;
    if !PLACE.contains(&word) && !NAMING.contains(&word) {
        return None;
    }
    let mut name = i + 1;
    while name < end && (ARTICLES.contains(&all[name].text) || NAMING.contains(&all[name].text)) {
        name += 1;
    }
    if name >= end || (word == "in" && Language::named(all[name].text).is_some()) {
        return None;
    }
    let candidate = target_at(masked, all, i, name)?;
    let settled = looks_like_path(&candidate.path)
        || all[name].is_quoted()
        || name + 1 == end
        || all[name].tail.contains([':', ',', '.'])
        || PLACE.contains(&all[name + 1].text);
    (settled && !PLACE.contains(&all[name].text)).then_some(candidate)
}

/// The target whose name is the word `name`, with the prepositions and articles before `introduced`.
fn target_at(masked: &Masked<'_>, all: &[Word<'_>], introduced: usize, name: usize) -> Option<Target> {
    let word = &all[name];
    let path = match masked.quote_from(word.inner.start) {
        Some(quote) => quote.text.clone(),
        None => masked.text[word.inner.clone()].to_owned(),
    };
    let is_intro = |w: &Word<'_>| {
        PLACE.contains(&w.text)
            || NAMING.contains(&w.text)
            || matches!(w.text, "a" | "an" | "the" | "new" | "empty")
    };
    let mut start = introduced;
    while start > 0 && is_intro(&all[start - 1]) {
        start -= 1;
    }
    let valid = !path.is_empty() && !path.contains(['\n', '\0']);
    valid.then_some(Target { words: start..name + 1, path })
}

pub(super) fn looks_like_path(text: &str) -> bool {
    const KNOWN: &[&str] = &["Makefile", "Dockerfile", "LICENSE", "README", "Justfile"];
    let name = text.rsplit('/').next().unwrap_or(text);
    let extension = name.rsplit_once('.').is_some_and(|(_, extension)| {
        (1..=12).contains(&extension.len()) && extension.chars().all(|c| c.is_alphanumeric() || c == '_')
    });
    !text.contains(char::is_whitespace) && !text.ends_with('/') && (extension || text.contains('/'))
        || KNOWN.contains(&text)
}
