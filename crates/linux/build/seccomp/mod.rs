//! The generator of the guest's seccomp program: text in, BPF out. It runs at build time (`build.rs`) and again in
//! the tests, which compare the program with the text it came from.
//!
//! ```text
//! syscalls.table ──► tables::Calls ─────┐
//! constants.table ─► tables::Constants ─┼─► policy::Policy ──► compile::compile ──► [Instruction]
//! guest.policy ─────────────────────────┘
//! ```
//!
//! The parsers are strict: whatever they don't understand, whatever is said twice and whatever is left undecided fails
//! the build with file and line. A policy that is read leniently is a hole nobody sees.

pub(crate) mod assemble;
pub(crate) mod compile;
pub(crate) mod policy;
pub(crate) mod source;
pub(crate) mod tables;

use assemble::Instruction;
use policy::Policy;
use source::SourceError;
use tables::{Arch, Calls, Constants};

/// The three texts, as read from `resources/seccomp`.
pub(crate) struct Sources<'a> {
    pub(crate) calls: &'a str,
    pub(crate) constants: &'a str,
    pub(crate) policy: &'a str,
}

/// Everything the texts say, checked.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) calls: Calls,
    pub(crate) policy: Policy,
}

/// Reads the texts; the result can be compiled for any architecture.
pub(crate) fn check(sources: &Sources<'_>) -> Result<Checked, SourceError> {
    let calls = Calls::parse(sources.calls)?;
    let mut constants = Constants::parse(sources.constants)?;
    let policy = Policy::parse(sources.policy, &calls, &mut constants)?;
    constants.refuse_unused()?;
    Ok(Checked { calls, policy })
}

impl Checked {
    /// The program for one architecture.
    pub(crate) fn compile(&self, arch: Arch) -> Result<Vec<Instruction>, SourceError> {
        compile::compile(&self.policy, &self.calls, arch)
    }
}
