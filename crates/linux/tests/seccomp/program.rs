//! The program does what the text says: a plain reading of the parsed policy against the interpreted program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::sample::select;

use crate::generator::assemble::{Instruction, JUMP};
use crate::generator::policy::{Action, Condition, Decision, Test};
use crate::generator::source::Problem;
use crate::generator::tables::Arch;
use crate::generator::{Checked, Sources, check};
use crate::interpreter::{Answer, Call, run};
use crate::{SOURCES, native};

/// Around the borders of other ABIs.
const FAR_NUMBERS: [u32; 7] =
    [0x3fff_ffff, 0x4000_0000, 0x4000_0027, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];

const ARCHES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

fn compiled(arch: Arch) -> (Checked, Vec<Instruction>) {
    let checked = check(&SOURCES).unwrap();
    let program = checked.compile(arch).unwrap();
    (checked, program)
}

/// The policy, read the plain way.
struct Reading<'a> {
    arch: Arch,
    by_number: BTreeMap<u32, &'a Decision>,
    unlisted: Action,
}

impl<'a> Reading<'a> {
    fn new(checked: &'a Checked, arch: Arch) -> Self {
        let rows = checked.calls.rows.iter();
        let by_number =
            rows.filter_map(|row| Some((row.number(arch)?, &checked.policy.decisions[&row.name]))).collect();
        Self { arch, by_number, unlisted: checked.policy.unlisted }
    }

    fn answer(&self, call: &Call) -> Answer {
        let x32 = self.arch == Arch::X86_64 && call.number & 0x4000_0000 != 0 && call.number != u32::MAX;
        // The policy leaves no gap between x32 and the top, although the kernel knows no calls from 2^31 on.
        let beyond = self.arch == Arch::X86_64 && call.number >= 1 << 31 && call.number != u32::MAX;
        if call.arch != self.arch.audit() || x32 || beyond {
            return Answer::Kill;
        }
        match self.by_number.get(&call.number).map_or(self.unlisted, |decision| decide(decision, call)) {
            Action::Allow => Answer::Allow,
            Action::Errno(errno) => Answer::Errno(errno),
        }
    }
}

fn decide(decision: &Decision, call: &Call) -> Action {
    let applies = |conditions: &[Condition]| conditions.iter().all(|condition| holds(condition, call));
    let clause = decision.clauses.iter().find(|clause| applies(&clause.conditions));
    clause.map_or(decision.otherwise, |clause| clause.action)
}

fn holds(condition: &Condition, call: &Call) -> bool {
    let argument = call.arguments[usize::from(condition.argument)] as u32;
    match &condition.test {
        Test::OneOf(values) => values.contains(&argument),
        Test::MaskedOneOf(mask, values) => values.contains(&(argument & mask)),
        Test::AnyOf(mask) => argument & mask != 0,
        Test::Within(mask) => argument | mask == *mask,
    }
}

/// Every number that some condition compares with, alone and next to its neighbours: where a wrong jump would show.
fn interesting_words(checked: &Checked) -> Vec<u32> {
    let mut words = BTreeSet::from([0, 1, u32::MAX]);
    let clauses = checked.policy.decisions.values().flat_map(|decision| &decision.clauses);
    for condition in clauses.flat_map(|clause| &clause.conditions) {
        match &condition.test {
            Test::OneOf(values) => words.extend(values),
            Test::MaskedOneOf(mask, values) => {
                words.extend(values);
                words.insert(!mask);
            }
            Test::AnyOf(mask) | Test::Within(mask) => {
                words.extend([*mask, !mask]);
                words.extend((0..32).map(|bit| 1 << bit).filter(|bit| mask & bit != 0));
            }
        }
    }
    let neighbours: Vec<u32> =
        words.iter().flat_map(|word| [word.wrapping_sub(1), word.wrapping_add(1)]).collect();
    words.extend(neighbours);
    words.into_iter().collect()
}

/// Words that mean something to a rule, joined with others, and pure chance; the upper half must not matter.
fn argument(words: Vec<u32>) -> impl Strategy<Value = u64> {
    let low = prop_oneof![
        4 => select(words.clone()),
        2 => (select(words.clone()), select(words)).prop_map(|(one, other)| one | other),
        1 => any::<u32>(),
    ];
    (low, prop_oneof![2 => Just(0), 1 => any::<u32>()])
        .prop_map(|(low, high)| u64::from(high) << 32 | u64::from(low))
}

#[test]
fn every_number_is_answered_as_the_text_says_whatever_the_arguments() {
    for arch in ARCHES {
        let (checked, program) = compiled(arch);
        let reading = Reading::new(&checked, arch);
        let arguments = prop::array::uniform6(argument(interesting_words(&checked)));
        proptest!(ProptestConfig::with_cases(256), |(arguments in arguments)| {
            for number in (0..600).chain(FAR_NUMBERS) {
                let call = Call { arch: arch.audit(), number, arguments };
                prop_assert_eq!(run(&program, &call).answer, reading.answer(&call), "{:?}", call);
            }
        });
    }
}

#[test]
fn rules_of_two_and_three_arguments_are_met_often_enough_to_be_tested() {
    // The socket rule has the longest clauses: all pairs of what it names, in all places, not left to chance.
    for arch in ARCHES {
        let (checked, program) = compiled(arch);
        let reading = Reading::new(&checked, arch);
        for name in ["socket", "socketpair", "openat", "mknodat"] {
            let number = checked.calls.find(name).and_then(|row| row.number(arch)).unwrap();
            let small =
                (0..32).chain([0o100, 0o2000, 0o4000, 0o6644, 0o20000, 0o60000, 0o2000003, 0o2004002, 262]);
            let values: Vec<u64> = small.collect();
            for first in &values {
                for second in &values {
                    for third in &values {
                        let arguments = [*first, *second, *third, *third, 0, 0];
                        let call = Call { arch: arch.audit(), number, arguments };
                        assert_eq!(run(&program, &call).answer, reading.answer(&call), "{name} {call:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_that_mean_calls_of_other_abis_kill() {
    let (checked, program) = compiled(Arch::X86_64);
    let at = |arch, number| run(&program, &Call { arch, number, arguments: [0; 6] }).answer;
    let audit = Arch::X86_64.audit();
    assert_eq!(at(audit, 0x4000_0000), Answer::Kill, "x32's read");
    assert_eq!(at(audit, 0x3fff_ffff), Answer::Errno(38));
    assert_eq!(at(audit, u32::MAX), Answer::Errno(38), "a call that a tracer skips");
    assert_eq!(at(audit, u32::MAX - 1), Answer::Kill);
    assert_eq!(at(0x4000_0003, 20), Answer::Kill, "i386's getpid");
    assert_eq!(at(Arch::Aarch64.audit(), 0), Answer::Kill);

    let (_, other) = compiled(Arch::Aarch64);
    for number in [0x4000_0000, u32::MAX, 1 << 31] {
        let call = Call { arch: Arch::Aarch64.audit(), number, arguments: [0; 6] };
        assert_eq!(run(&other, &call).answer, Answer::Errno(38), "{number:#x}");
        assert_eq!(Reading::new(&checked, Arch::Aarch64).answer(&call), Answer::Errno(38));
    }
    let thirty_two_bit_arm = Call { arch: 0x4000_0028, number: 0, arguments: [0; 6] };
    assert_eq!(run(&other, &thirty_two_bit_arm).answer, Answer::Kill);
}

#[test]
fn a_call_is_found_in_a_few_steps_and_the_program_is_small() {
    for arch in ARCHES {
        let (_, program) = compiled(arch);
        // A program's length is paid at every install: the kernel checks, copies and translates it.
        assert!(program.len() < 250, "{arch:?}: {} instructions", program.len());
        let no_arguments = |number| Call { arch: arch.audit(), number, arguments: [0; 6] };
        let slowest = (0..600).map(|number| run(&program, &no_arguments(number)).steps).max().unwrap();
        assert!(slowest < 40, "{arch:?}: {slowest} steps");
    }
}

/// As many calls as asked for, each with a rule like no other: nothing can be shared.
fn made_up(count: u32) -> Checked {
    let mut calls = "# Numbers.\n".to_owned();
    let mut policy = "# Rules.\n".to_owned();
    for number in 0..count {
        writeln!(calls, "call{number} {number} -").unwrap();
        writeln!(policy, "rule call{number}\n    EPERM when arg0 == {number}\n    allow otherwise").unwrap();
    }
    check(&Sources { calls: &calls, constants: "# Errors.\nEPERM = 1\nENOSYS = 38\n", policy: &policy })
        .unwrap()
}

#[test]
fn programs_longer_than_a_jump_reaches_are_right_too() {
    let checked = made_up(800);
    let reading = Reading::new(&checked, Arch::X86_64);
    let program = checked.compile(Arch::X86_64).unwrap();
    assert!(program.iter().any(|instruction| instruction.code == JUMP && instruction.k > 255));
    for number in (0..810).chain(FAR_NUMBERS) {
        for first in [number, number.wrapping_add(1)] {
            let arguments = [first.into(), 0, 0, 0, 0, 0];
            let call = Call { arch: Arch::X86_64.audit(), number, arguments };
            assert_eq!(run(&program, &call).answer, reading.answer(&call), "{call:?}");
        }
    }
}

#[test]
fn programs_longer_than_the_kernel_takes_are_refused() {
    let error = made_up(2000).compile(Arch::X86_64).unwrap_err();
    assert!(matches!(error.problem, Problem::TooLong(length) if length > 4096), "{error}");
}

#[test]
fn the_crate_carries_the_program_of_this_text() {
    let (_, program) = compiled(native());
    let carried: Vec<Instruction> = agentos_linux::seccomp::guest_program()
        .iter()
        .map(|&libc::sock_filter { code, jt, jf, k }| Instruction { code, jt, jf, k })
        .collect();
    assert_eq!(carried, program);
}
