//! The guest's seccomp program: the text of the policy, the program made from it, and what the kernel makes of that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml lets test functions panic; here the functions they share do so as well"
)]

#[path = "../../build/seccomp/mod.rs"]
mod generator;

mod child;
mod interpreter;
mod kernel;
mod numbers;
mod policy_text;
mod program;

/// The texts of the repository, as the build reads them.
const SOURCES: generator::Sources<'static> = generator::Sources {
    calls: include_str!("../../../../resources/seccomp/syscalls.table"),
    constants: include_str!("../../../../resources/seccomp/constants.table"),
    policy: include_str!("../../../../resources/seccomp/guest.policy"),
};

/// The architecture the tests run on, which is the one the crate's program was made for.
fn native() -> generator::tables::Arch {
    generator::tables::Arch::from_cargo(std::env::consts::ARCH).unwrap()
}

/// Calls by the table's name, for this architecture.
fn number(name: &str) -> Option<u32> {
    let calls = generator::tables::Calls::parse(SOURCES.calls).unwrap();
    calls.find(name).unwrap_or_else(|| panic!("{name} is not in the table")).number(native())
}
