//! Project chores as programs, so that a rule or a procedure is run, not remembered.
//!
//! - [`test`]: every test of the project, as the caller and, when that is root, again as an unprivileged user
//! - [`tidy`]: the rules no compiler checks: who may import whom, where unsafe code may live, how long a file is
//! - [`fuzz`]: the fuzz targets, each for some seconds
//! - [`bench`]: the figures this project promises, measured
//!
//! Called as `cargo xtask NAME`, an alias in `.cargo/config.toml`. It depends on little, so that it builds in
//! seconds in a fresh clone; whatever needs the SDK is a program of its own (`xtask/bench`) that this one starts.

// Talking to the terminal is the whole purpose of this program.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod fuzz;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

/// What a chore fails with. Nobody matches on it: it is shown to a person, once.
type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "\
Usage: cargo xtask <CHORE> [OPTIONS]

  test   Run every test of the project and print the totals
           -p, --package NAME   only this package (repeatable)
           --as USER            only as `root` or only `unprivileged`
           FILTER               only tests whose name contains FILTER
  tidy   Check the rules of the project that no compiler checks
  fuzz   Run the fuzz targets; takes a nightly toolchain and a C++ compiler
           TARGET...            only these
           --seconds N          how long each (60)
  bench  Measure the project's figures against a release build
           --quick              few samples, nothing that needs minutes
           --json FILE          write every sample
           --check              exit with 1 when a figure is over its limit
           --only TEXT          only rows whose name contains TEXT
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let chore = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let outcome = match chore.as_deref() {
        Some("test") => test::run(&rest),
        Some("tidy") => tidy::run(&rest),
        Some("fuzz") => fuzz::run(&rest),
        Some("bench") => bench::run(&rest),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(other) => Err(format!("unknown chore `{other}`\n\n{USAGE}").into()),
        None => Err(USAGE.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::from(2)
        }
    }
}
