//! `guest.policy`, read: a decision for every call of the table. The file's own head describes the language.

use std::collections::BTreeMap;

use super::source::{CALLS, Line, POLICY, Problem, SourceError, lines};
use super::tables::{Calls, Constants};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    /// The call returns this error, 1 to 4095, and does nothing.
    Errno(u16),
}

/// What an argument's low 32 bits are compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// `arg == A,B`
    OneOf(Vec<u32>),
    /// `arg & M == A,B`
    MaskedOneOf(u32, Vec<u32>),
    /// `arg & M`
    AnyOf(u32),
    /// `arg within M`
    Within(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub(crate) argument: u8,
    pub(crate) test: Test,
}

/// Applies when all its conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) action: Action,
}

/// The first clause that applies decides, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) clauses: Vec<Clause>,
    pub(crate) otherwise: Action,
}

/// A decision for each call of the table.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) decisions: BTreeMap<String, Decision>,
    /// For numbers that the table doesn't have.
    pub(crate) unlisted: Action,
}

/// A `rule` whose clauses are being read.
struct OpenRule<'a> {
    line: usize,
    calls: Vec<&'a str>,
    clauses: Vec<Clause>,
    otherwise: Option<Action>,
}

struct Reader<'a> {
    calls: &'a Calls,
    constants: &'a mut Constants,
    decisions: BTreeMap<String, Decision>,
    /// Where each call was decided.
    decided_on: BTreeMap<&'a str, usize>,
    rule: Option<OpenRule<'a>>,
}

impl Policy {
    pub(crate) fn parse<'a>(
        text: &'a str,
        calls: &'a Calls,
        constants: &'a mut Constants,
    ) -> Result<Self, SourceError> {
        let unlisted = action("ENOSYS", constants).map_err(|problem| SourceError::new(POLICY, 0, problem))?;
        let mut reader =
            Reader { calls, constants, decisions: BTreeMap::new(), decided_on: BTreeMap::new(), rule: None };
        for line in lines(POLICY, text)? {
            if line.indented {
                reader.clause(line)?;
            } else {
                reader.close_rule()?;
                reader.entry(line)?;
            }
        }
        reader.close_rule()?;
        match calls.rows.iter().find(|call| !reader.decisions.contains_key(&call.name)) {
            Some(call) => Err(SourceError::new(CALLS, call.line, Problem::Undecided(call.name.clone()))),
            None => Ok(Self { decisions: reader.decisions, unlisted }),
        }
    }
}

impl<'a> Reader<'a> {
    /// `ACTION CALL...` or `rule CALL...`
    fn entry(&mut self, line: Line<'a>) -> Result<(), SourceError> {
        let fail = |problem| SourceError::new(POLICY, line.number, problem);
        let mut words = line.text.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let calls: Vec<&str> = words.collect();
        if calls.is_empty() {
            return Err(fail(Problem::Shape("an action and the calls it goes for")));
        }
        for name in &calls {
            if self.calls.find(name).is_none() {
                return Err(fail(Problem::UnknownCall((*name).to_owned())));
            }
            if let Some(before) = self.decided_on.insert(name, line.number) {
                return Err(fail(Problem::Repeated((*name).to_owned(), before)));
            }
        }
        if verb == "rule" {
            self.rule = Some(OpenRule { line: line.number, calls, clauses: Vec::new(), otherwise: None });
            return Ok(());
        }
        let otherwise = action(verb, self.constants).map_err(fail)?;
        for name in calls {
            self.decisions.insert(name.to_owned(), Decision { clauses: Vec::new(), otherwise });
        }
        Ok(())
    }

    /// `ACTION when CONDITION [and CONDITION]...` or `ACTION otherwise`
    fn clause(&mut self, line: Line<'_>) -> Result<(), SourceError> {
        let fail = |problem| SourceError::new(POLICY, line.number, problem);
        let Some(rule) = &mut self.rule else {
            return Err(fail(Problem::Shape("a `rule` above an indented line")));
        };
        if rule.otherwise.is_some() {
            return Err(fail(Problem::AfterOtherwise));
        }
        let words: Vec<&str> = line.text.split_whitespace().collect();
        match &words[..] {
            [verb, "otherwise"] => rule.otherwise = Some(action(verb, self.constants).map_err(fail)?),
            [verb, "when", conditions @ ..] => {
                let action = action(verb, self.constants).map_err(fail)?;
                let mut parsed = Vec::new();
                for words in conditions.split(|word| *word == "and") {
                    parsed.push(condition(words, self.constants).map_err(fail)?);
                }
                rule.clauses.push(Clause { conditions: parsed, action });
            }
            _ => return Err(fail(Problem::Shape("`ACTION when CONDITION` or `ACTION otherwise`"))),
        }
        Ok(())
    }

    fn close_rule(&mut self) -> Result<(), SourceError> {
        let Some(rule) = self.rule.take() else { return Ok(()) };
        let fail = |problem| SourceError::new(POLICY, rule.line, problem);
        let Some(otherwise) = rule.otherwise else {
            return Err(fail(Problem::NoOtherwise));
        };
        if rule.clauses.is_empty() {
            return Err(fail(Problem::Shape("a clause with `when`: without one this is no rule")));
        }
        for name in rule.calls {
            self.decisions.insert(name.to_owned(), Decision { clauses: rule.clauses.clone(), otherwise });
        }
        Ok(())
    }
}

fn action(word: &str, constants: &mut Constants) -> Result<Action, Problem> {
    if word == "allow" {
        return Ok(Action::Allow);
    }
    if !word.starts_with('E') {
        return Err(Problem::UnknownAction(word.to_owned()));
    }
    match constants.value(word)? {
        // The kernel caps the data of SECCOMP_RET_ERRNO at MAX_ERRNO; 0 would be a success that did nothing.
        value @ 1..=4095 => u16::try_from(value).map(Action::Errno).map_err(|_| Problem::NotAnErrno(value)),
        value => Err(Problem::NotAnErrno(value)),
    }
}

fn condition(words: &[&str], constants: &mut Constants) -> Result<Condition, Problem> {
    let shape = Problem::Shape("`argN == A,B`, `argN & M`, `argN & M == A,B` or `argN within M`");
    let Some((argument, rest)) = words.split_first() else { return Err(shape) };
    let argument = match argument.strip_prefix("arg").map(str::as_bytes) {
        Some([digit @ b'0'..=b'5']) => digit - b'0',
        _ => return Err(shape),
    };
    let test = match rest {
        ["==", list] => Test::OneOf(values(list, constants)?),
        ["&", mask, "==", list] => Test::MaskedOneOf(constants.value(mask)?, values(list, constants)?),
        ["&", mask] => Test::AnyOf(constants.value(mask)?),
        ["within", mask] => Test::Within(constants.value(mask)?),
        _ => return Err(shape),
    };
    let pointless = match &test {
        Test::OneOf(_) => false,
        Test::MaskedOneOf(mask, values) => *mask == 0 || values.iter().any(|value| value & !mask != 0),
        Test::AnyOf(mask) => *mask == 0,
        Test::Within(mask) => *mask == u32::MAX,
    };
    if pointless { Err(Problem::Pointless(words.join(" "))) } else { Ok(Condition { argument, test }) }
}

fn values(list: &str, constants: &mut Constants) -> Result<Vec<u32>, Problem> {
    list.split(',').map(|word| constants.value(word)).collect()
}
