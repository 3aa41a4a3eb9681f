//! From a policy to classic BPF, as the kernel's seccomp takes it.
//!
//! Each program begins with the check of the ABI; then it finds the number's range by binary search, for two reasons:
//! a call costs some eight comparisons instead of hundreds, and, which counts for more, so does each of the emulations
//! by which the kernel works out at install time which numbers are always allowed (`seccomp_cache_prepare`, Linux
//! 5.11). That pass is what a linear filter pays for in every exec. It understands loads of the number and the
//! architecture, `AND`, jumps by constants and returns: nothing else may come before a plain `allow`.
//!
//! ```text
//!     ld arch ─ jeq ─► else KILL_PROCESS
//!     ld number
//!     jge 64 ─┬─► jge 80 ─┬─► ret ALLOW          a range with one answer
//!             │           └─► ld arg1, jset …    a call with a rule
//!             └─► jge 20 …
//! ```

use std::collections::BTreeMap;

use super::policy::{Action, Clause, Condition, Decision, Policy, Test};
use super::source::{POLICY, Problem, SourceError};
use super::tables::{Arch, Calls};

/// `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

// The few operations in use (linux/bpf_common.h): class, size or operation, source.
/// BPF_LD | BPF_W | BPF_ABS: a 32-bit word of `seccomp_data` into the accumulator.
pub(crate) const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K
pub(crate) const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA
pub(crate) const JUMP: u16 = 0x05;
/// BPF_JMP | BPF_JEQ | BPF_K
pub(crate) const JUMP_EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGE | BPF_K, unsigned
pub(crate) const JUMP_AT_LEAST: u16 = 0x35;
/// BPF_JMP | BPF_JSET | BPF_K
pub(crate) const JUMP_ANY_BIT: u16 = 0x45;
/// BPF_RET | BPF_K
pub(crate) const RETURN: u16 = 0x06;

// Answers (linux/seccomp.h).
pub(crate) const ALLOW: u32 = 0x7fff_0000;
pub(crate) const ERRNO: u32 = 0x0005_0000;
pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;

// Offsets into `struct seccomp_data`.
pub(crate) const NUMBER_OFFSET: u32 = 0;
pub(crate) const ARCH_OFFSET: u32 = 4;
pub(crate) const ARGUMENTS_OFFSET: u32 = 16;

/// BPF_MAXINSNS, linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// What the numbers from a certain one on get.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer<'a> {
    Kill,
    Fixed(Action),
    Rule(&'a Decision),
}

/// Ranges cover all 2^32 numbers: each begins here and ends before the next.
struct Range<'a> {
    first: u32,
    answer: Answer<'a>,
}

pub(crate) fn compile(policy: &Policy, calls: &Calls, arch: Arch) -> Result<Vec<Instruction>, SourceError> {
    let mut program = vec![
        statement(LOAD, ARCH_OFFSET),
        branch(JUMP_EQUAL, arch.audit(), 1, 0),
        statement(RETURN, KILL_PROCESS),
        statement(LOAD, NUMBER_OFFSET),
    ];
    let search =
        search(&ranges(policy, calls, arch)).map_err(|problem| SourceError::new(POLICY, 0, problem))?;
    program.extend(search);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SourceError::new(POLICY, 0, Problem::TooLong(program.len())));
    }
    Ok(program)
}

fn ranges<'a>(policy: &'a Policy, calls: &Calls, arch: Arch) -> Vec<Range<'a>> {
    let unlisted = Answer::Fixed(policy.unlisted);
    // Each entry holds until the next one: a call's successor is unlisted unless it is a call itself.
    let mut starts = BTreeMap::from([(0, unlisted)]);
    for call in &calls.rows {
        let (Some(number), Some(decision)) = (call.number(arch), policy.decisions.get(&call.name)) else {
            continue;
        };
        let answer = if decision.clauses.is_empty() {
            Answer::Fixed(decision.otherwise)
        } else {
            Answer::Rule(decision)
        };
        starts.insert(number, answer);
        starts.entry(number.saturating_add(1)).or_insert(unlisted);
    }
    if let Some(first) = arch.first_foreign_number() {
        starts.insert(first, Answer::Kill);
        starts.insert(u32::MAX, unlisted);
    }
    let mut ranges: Vec<Range<'a>> = Vec::new();
    for (first, answer) in starts {
        if ranges.last().is_none_or(|last| last.answer != answer) {
            ranges.push(Range { first, answer });
        }
    }
    ranges
}

/// The accumulator holds the number, which lies in one of the ranges.
fn search(ranges: &[Range<'_>]) -> Result<Vec<Instruction>, Problem> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (Some(_), Some(pivot)) = (lower.first(), upper.first()) else {
        return ranges.first().map_or(Ok(Vec::new()), |range| leaf(range.answer));
    };
    let lower = search(lower)?;
    let mut code = match u8::try_from(lower.len()) {
        Ok(distance) => vec![branch(JUMP_AT_LEAST, pivot.first, distance, 0)],
        // A conditional jump reaches 255 instructions; an unconditional one takes it from there.
        Err(_) => {
            let distance = u32::try_from(lower.len()).map_err(|_| Problem::TooLong(lower.len()))?;
            vec![branch(JUMP_AT_LEAST, pivot.first, 0, 1), statement(JUMP, distance)]
        }
    };
    code.extend(lower);
    code.extend(search(upper)?);
    Ok(code)
}

fn leaf(answer: Answer<'_>) -> Result<Vec<Instruction>, Problem> {
    match answer {
        Answer::Kill => Ok(vec![statement(RETURN, KILL_PROCESS)]),
        Answer::Fixed(action) => Ok(vec![give(action)]),
        Answer::Rule(decision) => {
            let mut code = Vec::new();
            for clause in &decision.clauses {
                code.extend(compile_clause(clause)?);
            }
            code.push(give(decision.otherwise));
            Ok(code)
        }
    }
}

/// Falls out at its end when the clause doesn't apply. Built from the back, because what a failed condition skips is
/// what comes after it.
fn compile_clause(clause: &Clause) -> Result<Vec<Instruction>, Problem> {
    let mut code = vec![give(clause.action)];
    for condition in clause.conditions.iter().rev() {
        let skipped = u8::try_from(code.len()).map_err(|_| Problem::TooLong(code.len()))?;
        let mut longer = compile_condition(condition, skipped)?;
        longer.extend(code);
        code = longer;
    }
    Ok(code)
}

/// Falls out at its end when the condition holds, else skips `skipped` instructions more.
fn compile_condition(condition: &Condition, skipped: u8) -> Result<Vec<Instruction>, Problem> {
    // Both architectures are little endian: the low half of the 64-bit argument comes first.
    let mut code = vec![statement(LOAD, ARGUMENTS_OFFSET + 8 * u32::from(condition.argument))];
    match &condition.test {
        Test::OneOf(values) => code.extend(one_of(values, skipped)?),
        Test::MaskedOneOf(mask, values) => {
            code.push(statement(AND, *mask));
            code.extend(one_of(values, skipped)?);
        }
        Test::AnyOf(mask) => code.push(branch(JUMP_ANY_BIT, *mask, 0, skipped)),
        Test::Within(mask) => code.push(branch(JUMP_ANY_BIT, !*mask, skipped, 0)),
    }
    Ok(code)
}

fn one_of(values: &[u32], skipped: u8) -> Result<Vec<Instruction>, Problem> {
    let mut code = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let left = values.len() - 1 - index;
        let to_the_end = u8::try_from(left).map_err(|_| Problem::TooLong(values.len()))?;
        let otherwise = if left == 0 { skipped } else { 0 };
        code.push(branch(JUMP_EQUAL, *value, to_the_end, otherwise));
    }
    Ok(code)
}

fn give(action: Action) -> Instruction {
    match action {
        Action::Allow => statement(RETURN, ALLOW),
        Action::Errno(errno) => statement(RETURN, ERRNO | u32::from(errno)),
    }
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}
