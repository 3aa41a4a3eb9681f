//! Natural prompts: from `Write "x" to a.txt and then run it` to steps.
//!
//! A prompt is cut into clauses where a known verb stands at the start of one (the first word, after a full stop, after
//! "and", "then", "please"...). Every clause is read by the rules of its verb (`write_clause`, `run_clause`). A clause
//! that asks for a file or a command in a way the rules can't read makes the whole prompt not understood: doing half
//! of what was asked would be pretending.

use std::ops::Range;

use super::program;
use super::quote::Masked;
use super::words::{Word, words};
use super::{Step, run_clause, write_clause};

/// What a verb asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Write,
    Run,
    Read,
    List,
    /// Asks for words about the result, which the final answer always gives.
    Tell,
}

/// One verb and what follows it, up to the next verb.
#[derive(Debug)]
pub(super) struct Clause<'a> {
    pub(super) verb: Verb,
    pub(super) masked: &'a Masked<'a>,
    /// What follows the verb, without the connecting words at its end.
    pub(super) object: Range<usize>,
    /// The object is a command to be taken as it stands.
    pub(super) verbatim: bool,
}

const CONNECTING: &[&str] = &[
    "and",
    "then",
    "please",
    "also",
    "now",
    "finally",
    "next",
    "first",
    "second",
    "afterwards",
    "lastly",
    "you",
    "just",
    "let's",
    "lets",
    "to",
    "after",
    "that",
    "it",
    "-",
    "*",
    "kindly",
    "i'd",
];

/// Steps of a prompt; `None` where the rules don't understand it.
pub(super) fn steps(prompt: &str) -> Option<Vec<Step>> {
    bare_steps(prompt).or_else(|| {
        // Some command lines (`opencode run`) hand the whole prompt over in quotation marks.
        let quoted = prompt.trim().strip_prefix('"')?.strip_suffix('"')?;
        bare_steps(&quoted.replace("\\\"", "\""))
    })
}

/// Whether the prompt is a question about the beginning of its conversation: `What was my first request?`
pub(super) fn asks_for_the_first(prompt: &str) -> bool {
    let prompt = prompt.to_ascii_lowercase();
    let words: Vec<&str> = prompt.split(|c: char| !c.is_alphanumeric()).collect();
    let has = |known: &[&str]| words.iter().any(|word| known.contains(word));
    has(&["what", "which", "repeat", "remember"])
        && has(&["first", "earliest"])
        && has(&[
            "request", "message", "prompt", "question", "task", "ask", "asked", "say", "said", "tell", "told",
        ])
}

fn bare_steps(prompt: &str) -> Option<Vec<Step>> {
    let masked = Masked::new(prompt);
    let mut steps: Vec<Step> = Vec::new();
    for clause in clauses(&masked) {
        let step = match clause.verb {
            Verb::Write => Some(write_clause::read(&clause)?),
            Verb::Run => Some(run_clause::read(&clause, last_written(&steps))?),
            Verb::Read => run_clause::read_file(&clause),
            Verb::List => run_clause::list(&clause),
            Verb::Tell => None,
        };
        steps.extend(step);
    }
    (!steps.is_empty()).then_some(steps)
}

fn last_written(steps: &[Step]) -> Option<&str> {
    steps.iter().rev().find_map(|step| match step {
        Step::Write { path, .. } => Some(path.as_str()),
        _ => None,
    })
}

fn clauses<'a>(masked: &'a Masked<'a>) -> Vec<Clause<'a>> {
    let all = words(masked, 0..masked.text.len());
    let mut clauses = Vec::new();
    let mut next = 0;
    while let Some(start) = (next..all.len()).find(|i| starts_clause(masked, &all, *i)) {
        let Some(verb) = verb(&all[start]) else { break };
        let colon = all[start].tail.contains(':');
        let from = all[start].outer.end;
        let verbatim = (verb == Verb::Run).then(|| run_clause::verbatim(masked, from, colon)).flatten();
        let end = match &verbatim {
            Some(command) => command.end,
            None => (start + 1..all.len())
                .find(|i| starts_clause(masked, &all, *i))
                .map_or(masked.text.len(), |i| all[i].outer.start),
        };
        next = (start + 1..all.len()).find(|i| all[*i].outer.start >= end).unwrap_or(all.len());
        let (object, verbatim) = match verbatim {
            Some(command) => (command, true),
            None => (trim_connecting(&all, from..end, end == masked.text.len()), false),
        };
        clauses.push(Clause { verb, masked, object, verbatim });
    }
    clauses
}

/// Cuts ` and then`, `, please` and the like off the end of a clause that another one follows.
fn trim_connecting(all: &[Word<'_>], object: Range<usize>, last: bool) -> Range<usize> {
    if last {
        return object;
    }
    let inside: Vec<&Word<'_>> =
        all.iter().filter(|w| w.outer.start >= object.start && w.outer.end <= object.end).collect();
    let kept = inside.iter().rposition(|w| !CONNECTING.contains(&w.text) && !is_marker(w.text));
    match kept {
        Some(i) => object.start..inside[i].outer.end,
        None => object.start..object.start,
    }
}

/// The number of a list: `1.` or `2)`, whose dot the word has lost.
fn is_marker(word: &str) -> bool {
    !word.is_empty() && word.len() <= 2 && word.bytes().all(|b| b.is_ascii_digit())
}

fn starts_clause(masked: &Masked<'_>, all: &[Word<'_>], i: usize) -> bool {
    if verb(&all[i]).is_none() {
        return false;
    }
    let Some(previous) = i.checked_sub(1).map(|p| &all[p]) else { return true };
    let between = &masked.mask[previous.inner.end..all[i].inner.start];
    let broken = between.contains('\n') || between.contains(['.', '!', '?', ',']);
    broken || CONNECTING.contains(&previous.text) || is_marker(previous.text)
}

fn verb(word: &Word<'_>) -> Option<Verb> {
    Some(match word.text {
        "write" | "create" | "make" | "save" | "put" | "add" | "generate" | "produce" | "store"
        | "implement" => Verb::Write,
        "run" | "execute" | "exec" | "invoke" => Verb::Run,
        "read" | "open" | "display" | "cat" => Verb::Read,
        "list" => Verb::List,
        "show" | "tell" | "report" | "print" | "explain" | "describe" | "give" | "say" | "quote"
        | "answer" | "reply" | "check" | "verify" | "ensure" | "confirm" | "summarize" | "stop" => Verb::Tell,
        _ => return None,
    })
}

/// The command that runs what was just written, for `run it`.
pub(super) fn run_it(path: &str) -> Step {
    Step::Run { command: program::run_command(path) }
}
