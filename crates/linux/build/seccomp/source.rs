//! Lines of the policy texts, and the error that names one of them.

use std::fmt;

pub(crate) const CALLS: &str = "syscalls.table";
pub(crate) const CONSTANTS: &str = "constants.table";
pub(crate) const POLICY: &str = "guest.policy";

/// What is wrong with a text, and where.
pub(crate) struct SourceError {
    pub(crate) file: &'static str,
    /// Counted from 1; 0 stands for the file as a whole.
    pub(crate) line: usize,
    pub(crate) problem: Problem,
}

/// Words in quotes are those of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Neither a trailing comment nor one that opens the group.
    NoReason,
    /// The line has not the shape that its file asks for.
    Shape(&'static str),
    NotANumber(String),
    UnknownAction(String),
    UnknownCall(String),
    UnknownConstant(String),
    UnusedConstant(String),
    /// The name or number was given before, on the line told.
    Repeated(String, usize),
    /// A call of the table without a decision.
    Undecided(String),
    /// The condition can't hold, or can't fail, whatever the argument is.
    Pointless(String),
    NoOtherwise,
    AfterOtherwise,
    NotAnErrno(u32),
    /// The program breaks a limit of classic BPF.
    TooLong(usize),
}

impl SourceError {
    pub(crate) fn new(file: &'static str, line: usize, problem: Problem) -> Self {
        Self { file, line, problem }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resources/seccomp/{}:{}: {}", self.file, self.line, self.problem)
    }
}

// A test that unwraps shows Debug; the one-line form is the useful one there too.
impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SourceError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReason => {
                write!(f, "no reason given: end the line with `# why`, or open its group with one")
            }
            Self::Shape(wanted) => write!(f, "expected {wanted}"),
            Self::NotANumber(word) => write!(f, "`{word}` is not a number of 32 bits"),
            Self::UnknownAction(word) => {
                write!(f, "`{word}` is no action: `allow`, `rule` or an error's name")
            }
            Self::UnknownCall(name) => write!(f, "`{name}` is not in {CALLS}"),
            Self::UnknownConstant(name) => {
                write!(f, "`{name}` is not in {CONSTANTS}, or not above this line")
            }
            Self::UnusedConstant(name) => write!(f, "`{name}` is not used"),
            Self::Repeated(word, line) => write!(f, "`{word}` was given before, on line {line}"),
            Self::Undecided(name) => write!(f, "`{name}` is not decided in {POLICY}"),
            Self::Pointless(text) => write!(f, "`{text}` is always true or never"),
            Self::NoOtherwise => write!(f, "the rule doesn't end with `ACTION otherwise`"),
            Self::AfterOtherwise => write!(f, "nothing can follow `otherwise`"),
            Self::NotAnErrno(value) => write!(f, "{value} is not an error number (1 to 4095)"),
            Self::TooLong(length) => write!(f, "classic BPF has no room for {length} instructions here"),
        }
    }
}

/// A line that says something: comments cut off, a reason present.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) number: usize,
    /// The line begins with spaces: it belongs to the one above.
    pub(crate) indented: bool,
    pub(crate) text: &'a str,
}

/// Splits a text into its lines. A group runs to the next empty line; a comment that opens it is the reason for all
/// its lines.
pub(crate) fn lines<'a>(file: &'static str, text: &'a str) -> Result<Vec<Line<'a>>, SourceError> {
    let mut lines = Vec::new();
    let mut in_group = false;
    let mut group_has_reason = false;
    for (index, raw) in text.lines().enumerate() {
        let number = index + 1;
        if raw.trim().is_empty() {
            in_group = false;
            continue;
        }
        let (said, comment) = match raw.split_once('#') {
            Some((said, comment)) => (said, comment.trim()),
            None => (raw, ""),
        };
        if !in_group {
            in_group = true;
            group_has_reason = said.trim().is_empty() && !comment.is_empty();
        }
        if said.trim().is_empty() {
            continue;
        }
        if comment.is_empty() && !group_has_reason {
            return Err(SourceError::new(file, number, Problem::NoReason));
        }
        lines.push(Line { number, indented: raw.starts_with([' ', '\t']), text: said.trim() });
    }
    Ok(lines)
}

/// A number as C writes it, and `0o` for octal.
pub(crate) fn number(word: &str) -> Option<u32> {
    if let Some(digits) = word.strip_prefix("0x") {
        u32::from_str_radix(digits, 16).ok()
    } else if let Some(digits) = word.strip_prefix("0o") {
        u32::from_str_radix(digits, 8).ok()
    } else {
        // A plain leading zero would be octal to C and decimal to Rust: neither reading is safe.
        let ambiguous = word.len() > 1 && word.starts_with('0');
        if ambiguous { None } else { word.parse().ok() }
    }
}
