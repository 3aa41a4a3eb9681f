//! Classic BPF as the kernel runs it for seccomp, for the instructions the generator uses. Anything else, and anything
//! that the kernel's verifier would refuse, panics.

use crate::generator::assemble::{
    AND, Instruction, JUMP, JUMP_ANY_BIT, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, RETURN,
};
use crate::generator::compile::{ALLOW, ARCH_OFFSET, ARGUMENTS_OFFSET, ERRNO, KILL_PROCESS, NUMBER_OFFSET};

/// `struct seccomp_data`, without the instruction pointer, at which no rule looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) arch: u32,
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 6],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Allow,
    Errno(u16),
    Kill,
}

pub(crate) struct Run {
    pub(crate) answer: Answer,
    pub(crate) steps: usize,
}

pub(crate) fn run(program: &[Instruction], call: &Call) -> Run {
    let mut accumulator = 0_u32;
    let mut at = 0;
    for steps in 1..=program.len() {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |condition: bool| at += usize::from(if condition { jt } else { jf });
        match code {
            LOAD => accumulator = word(call, k),
            AND => accumulator &= k,
            JUMP => at += usize::try_from(k).unwrap(),
            JUMP_EQUAL => jump(accumulator == k),
            JUMP_AT_LEAST => jump(accumulator >= k),
            JUMP_ANY_BIT => jump(accumulator & k != 0),
            RETURN => return Run { answer: answer(k), steps },
            other => panic!("instruction {} has the unknown code {other:#x}", at - 1),
        }
    }
    panic!("the program runs in a circle");
}

fn word(call: &Call, offset: u32) -> u32 {
    match offset {
        NUMBER_OFFSET => call.number,
        ARCH_OFFSET => call.arch,
        _ => {
            let from_arguments = usize::try_from(offset - ARGUMENTS_OFFSET).unwrap();
            assert_eq!(from_arguments % 8, 0, "only low halves are looked at");
            u32::try_from(call.arguments[from_arguments / 8] & 0xffff_ffff).unwrap()
        }
    }
}

fn answer(value: u32) -> Answer {
    match (value & 0xffff_0000, value & 0xffff) {
        (KILL_PROCESS, 0) => Answer::Kill,
        (ALLOW, 0) => Answer::Allow,
        (ERRNO, errno) => Answer::Errno(u16::try_from(errno).unwrap()),
        _ => panic!("{value:#x} is no answer"),
    }
}
