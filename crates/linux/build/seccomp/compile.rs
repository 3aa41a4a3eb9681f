//! From a policy to a graph of decisions, which `assemble` writes down as classic BPF.
//!
//! What counts is the cost of an install, which every exec in a VM pays, in two parts. The kernel translates each
//! instruction (some 0.15 µs), so the program must be short: equal answers are shared. And it emulates the program for
//! every number it knows, to find those that are always allowed and need no filter later (`seccomp_cache_prepare`,
//! Linux 5.11), so that the way to an answer must be short too: that is where linear filters lose. The emulation
//! understands loads of the number and the architecture, `AND`, jumps by constants and returns; nothing else may come
//! before a plain `allow`.
//!
//! ```text
//!     ld arch ─ jeq ─► else KILL_PROCESS
//!     ld number
//!     jge 64 ─┬─► jge 80 ─┬─► jeq 83 ─┬─► ld arg1, jset …    a call with a rule
//!             │           │           └─► ALLOW               and its neighbours on both sides
//!             │           └─► EPERM                           a range with one answer
//!             └─► jge 20 …
//! ```

use std::collections::BTreeMap;

use super::assemble::{AND, Graph, Id, Instruction, JUMP_ANY_BIT, JUMP_AT_LEAST, JUMP_EQUAL, LOAD};
use super::policy::{Action, Clause, Condition, Decision, Policy, Test};
use super::source::{POLICY, SourceError};
use super::tables::{Arch, Calls};

// Answers (linux/seccomp.h).
pub(crate) const ALLOW: u32 = 0x7fff_0000;
pub(crate) const ERRNO: u32 = 0x0005_0000;
pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;

// Offsets into `struct seccomp_data`.
pub(crate) const NUMBER_OFFSET: u32 = 0;
pub(crate) const ARCH_OFFSET: u32 = 4;
pub(crate) const ARGUMENTS_OFFSET: u32 = 16;

/// How many single numbers one leaf of the search compares one after the other: more saves instructions, fewer save
/// steps.
const MAX_EXCEPTIONS: usize = 3;

/// The numbers from `first` to the next range's `first` have one answer.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u32,
    answer: Id,
}

/// A range with one answer but for a few single numbers.
#[derive(Debug)]
struct Leaf {
    first: u32,
    answer: Id,
    exceptions: Vec<Range>,
}

pub(crate) fn compile(policy: &Policy, calls: &Calls, arch: Arch) -> Result<Vec<Instruction>, SourceError> {
    let mut graph = Graph::default();
    let ranges = ranges(&mut graph, policy, calls, arch);
    let search = search(&mut graph, &leaves(&ranges), policy.unlisted);
    let search = graph.step(LOAD, NUMBER_OFFSET, search);
    let kill = graph.returns(KILL_PROCESS);
    let native = graph.branch(JUMP_EQUAL, arch.audit(), search, kill);
    let start = graph.step(LOAD, ARCH_OFFSET, native);
    graph.assemble(start).map_err(|problem| SourceError::new(POLICY, 0, problem))
}

/// All 2^32 numbers and their answers; neighbours differ.
fn ranges(graph: &mut Graph, policy: &Policy, calls: &Calls, arch: Arch) -> Vec<Range> {
    let unlisted = give(graph, policy.unlisted);
    // Each start holds until the next one: a call's successor is unlisted unless it is a call itself.
    let mut starts = BTreeMap::from([(0, unlisted)]);
    for call in &calls.rows {
        let (Some(number), Some(decision)) = (call.number(arch), policy.decisions.get(&call.name)) else {
            continue;
        };
        starts.insert(number, decide(graph, decision));
        starts.entry(number.saturating_add(1)).or_insert(unlisted);
    }
    if let Some(first) = arch.first_foreign_number() {
        starts.insert(first, graph.returns(KILL_PROCESS));
        starts.insert(u32::MAX, unlisted);
    }
    let mut ranges: Vec<Range> = Vec::new();
    for (first, answer) in starts {
        if ranges.last().is_none_or(|last| last.answer != answer) {
            ranges.push(Range { first, answer });
        }
    }
    ranges
}

/// Joins ranges across the single numbers between them: one comparison for equality tells such a number from both its
/// neighbours, where the search would need two.
fn leaves(ranges: &[Range]) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    let mut rest = ranges;
    while let Some((background, mut after)) = rest.split_first() {
        let mut leaf = Leaf { first: background.first, answer: background.answer, exceptions: Vec::new() };
        // One exception at a time, or several neighbours at once.
        while let Some(length) =
            exceptions_before(background.answer, after, MAX_EXCEPTIONS - leaf.exceptions.len())
        {
            leaf.exceptions.extend_from_slice(&after[..length]);
            after = &after[length + 1..];
        }
        leaves.push(leaf);
        rest = after;
    }
    leaves
}

/// How many single numbers come before `ranges` returns to the answer, if that are not too many.
fn exceptions_before(answer: Id, ranges: &[Range], at_most: usize) -> Option<usize> {
    let length = ranges.iter().position(|range| range.answer == answer)?;
    let single = |pair: &[Range]| pair[1].first - pair[0].first == 1;
    (length <= at_most && ranges[..=length].windows(2).all(single)).then_some(length)
}

/// Finds the number, which the accumulator holds.
fn search(graph: &mut Graph, leaves: &[Leaf], nowhere: Action) -> Id {
    let (lower, upper) = leaves.split_at(leaves.len() / 2);
    match (lower, upper) {
        ([], [leaf]) => {
            let exceptions = leaf.exceptions.iter().rev();
            exceptions.fold(leaf.answer, |otherwise, exception| {
                graph.branch(JUMP_EQUAL, exception.first, exception.answer, otherwise)
            })
        }
        (lower, [pivot, ..]) => {
            let below = search(graph, lower, nowhere);
            let above = search(graph, upper, nowhere);
            graph.branch(JUMP_AT_LEAST, pivot.first, above, below)
        }
        (_, []) => give(graph, nowhere),
    }
}

/// The clauses of a rule; built from the last, because each leads to the next when it doesn't apply.
fn decide(graph: &mut Graph, decision: &Decision) -> Id {
    let otherwise = give(graph, decision.otherwise);
    decision.clauses.iter().rev().fold(otherwise, |next, Clause { conditions, action }| {
        let applies = give(graph, *action);
        conditions.iter().rev().fold(applies, |applies, condition| test(graph, condition, applies, next))
    })
}

fn test(graph: &mut Graph, condition: &Condition, holds: Id, fails: Id) -> Id {
    let one_of = |graph: &mut Graph, values: &[u32]| {
        values.iter().rev().fold(fails, |next, value| graph.branch(JUMP_EQUAL, *value, holds, next))
    };
    let compared = match &condition.test {
        Test::OneOf(values) => one_of(graph, values),
        Test::MaskedOneOf(mask, values) => {
            let compared = one_of(graph, values);
            graph.step(AND, *mask, compared)
        }
        Test::AnyOf(mask) => graph.branch(JUMP_ANY_BIT, *mask, holds, fails),
        Test::Within(mask) => graph.branch(JUMP_ANY_BIT, !*mask, fails, holds),
    };
    // Both architectures are little endian: the low half of the 64-bit argument comes first.
    graph.step(LOAD, ARGUMENTS_OFFSET + 8 * u32::from(condition.argument), compared)
}

fn give(graph: &mut Graph, action: Action) -> Id {
    graph.returns(match action {
        Action::Allow => ALLOW,
        Action::Errno(errno) => ERRNO | u32::from(errno),
    })
}
