//! `cargo xtask test`: build once, run everything, count honestly.
//!
//! ```text
//! build ──► test executables as the caller ──► as an unprivileged user ──► further suites, once ──► totals
//!            (root or not)                       (only when the caller is root)
//! ```
//!
//! The tests of the TypeScript SDK ([`typescript`]) are run beside the executables, by Node.
//!
//! A sidecar behaves differently as root and as a plain user, and both are supported, so every test executable
//! runs as both where that is possible. Each run gets a home, runtime directory and temporary directory of its
//! own and only an allow-list of the caller's environment: the tests never see or touch the caller's state.
//!
//! A test that can't run on this machine says so (see [`skips`]); it is counted as skipped, never as passed, and
//! `tests/allowed-skips.toml` must permit it for this kind of machine. A run fails when a test fails, when a skip
//! isn't permitted, when processes are left behind, and when nothing ran at all.

mod artifacts;
mod execute;
mod libtest;
mod machine;
mod sandbox;
mod skips;
mod typescript;

use crate::{Failure, workspace};
pub(crate) use artifacts::Built;
use execute::Tally;
pub(crate) use sandbox::{Runner, Sandbox};
use std::process::ExitCode;

/// A suite besides the test executables. It runs once, as the caller.
struct Suite {
    name: &'static str,
    run: fn(&Sandbox, &Built, &skips::Allowed) -> Result<Tally, Failure>,
}

const FURTHER_SUITES: &[Suite] = &[
    Suite { name: "examples", run: execute::examples },
    Suite { name: "doc tests", run: execute::doc_tests },
];

/// The choices of one call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    packages: Vec<String>,
    only_as: Option<Runner>,
    filter: Option<String>,
}

impl Selection {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut selection = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "-p" | "--package" => {
                    let package = arguments.next().ok_or("--package needs a name")?;
                    selection.packages.push(package.clone());
                }
                "--as" => {
                    let name = arguments.next().ok_or("--as needs `root` or `unprivileged`")?;
                    selection.only_as = Some(Runner::from_name(name)?);
                }
                option if option.starts_with('-') => return Err(format!("unknown option `{option}`").into()),
                filter if selection.filter.is_none() => selection.filter = Some(filter.to_owned()),
                extra => return Err(format!("one filter at most, `{extra}` is the second").into()),
            }
        }
        Ok(selection)
    }

    /// The TypeScript SDK is selected by the crate of its addon.
    fn has_typescript(&self) -> bool {
        self.packages.is_empty() || self.packages.iter().any(|package| package == typescript::PACKAGE)
    }

    /// A call without choices runs the whole suite; only that may speak for the project.
    fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Failure> {
    let selection = Selection::parse(arguments)?;
    let root = workspace::root()?;
    let allowed = skips::Allowed::read(&root.join("tests/allowed-skips.toml"))?;
    let built = artifacts::build(&root, &selection.packages)?;
    let typescript =
        selection.has_typescript().then(|| typescript::TypeScript::build(&root, &built)).transpose()?;

    let mut runs: Vec<(String, Tally)> = Vec::new();
    for runner in runners(&selection) {
        println!("\n== tests as {runner}");
        let sandbox = Sandbox::prepare(&root, &built, runner)?;
        let mut tally = execute::executables(&sandbox, &built, &selection, &allowed)?;
        if let Some(typescript) = &typescript {
            tally.add(&typescript.run(&sandbox, selection.filter.as_deref(), &allowed)?);
        }
        sandbox.remove();
        runs.push((format!("as {runner}"), tally));
    }
    let further = FURTHER_SUITES.iter().filter(|_| selection.is_everything());
    for suite in further {
        println!("\n== {}", suite.name);
        let sandbox = Sandbox::prepare(&root, &built, Runner::caller())?;
        let tally = (suite.run)(&sandbox, &built, &allowed)?;
        sandbox.remove();
        runs.push((suite.name.to_owned(), tally));
    }
    Ok(conclude(&runs, selection.is_everything()))
}

fn runners(selection: &Selection) -> Vec<Runner> {
    let runners = if rustix::process::geteuid().is_root() {
        vec![Runner::Root, Runner::Unprivileged]
    } else {
        println!("Not root: the tests run once, as this user. As root they run as both.");
        vec![Runner::Unprivileged]
    };
    runners.into_iter().filter(|runner| selection.only_as.is_none_or(|only| only == *runner)).collect()
}

/// Prints what happened, the totals alone on the last line, and chooses the exit code.
fn conclude(runs: &[(String, Tally)], everything: bool) -> ExitCode {
    let mut total = Tally::default();
    for (_, tally) in runs {
        total.add(tally);
    }
    println!();
    for skip in &total.skipped {
        let permitted = if skip.permitted { "" } else { " [NOT PERMITTED by tests/allowed-skips.toml]" };
        println!("skipped {} ({}): {}{permitted}", skip.test, skip.runner, skip.reason);
    }
    for failure in &total.failed {
        println!("FAILED  {failure}");
    }
    if !everything {
        println!("A selection of the tests only.");
    }
    for (name, tally) in runs {
        println!("{name}: {}", tally.line());
    }
    let forbidden = total.skipped.iter().filter(|skip| !skip.permitted).count();
    if forbidden > 0 {
        println!("{forbidden} skipped without permission");
    }
    if total.passed == 0 {
        println!("no test passed: that proves nothing");
    }
    println!("{}", total.line());
    if total.failed.is_empty() && forbidden == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_call_without_arguments_selects_everything() {
        assert!(Selection::parse(&[]).unwrap().is_everything());
    }

    #[test]
    fn packages_user_and_filter_are_selected() {
        let selection = Selection::parse(&words("-p agentos-vm --as root boots")).unwrap();
        assert_eq!(selection.packages, ["agentos-vm"]);
        assert_eq!(selection.only_as, Some(Runner::Root));
        assert_eq!(selection.filter.as_deref(), Some("boots"));
        assert!(!selection.is_everything());
    }

    #[test]
    fn an_unknown_option_is_refused() {
        Selection::parse(&words("--pakage x")).unwrap_err();
        Selection::parse(&words("--as nobody")).unwrap_err();
        Selection::parse(&words("one two")).unwrap_err();
    }

    #[test]
    fn failures_forbidden_skips_and_silence_fail_the_run() {
        let skip = |permitted| execute::Skipped {
            test: "t".to_owned(),
            runner: "root".to_owned(),
            reason: "r".to_owned(),
            permitted,
        };
        let code = |tally: Tally| format!("{:?}", conclude(&[("run".to_owned(), tally)], true));
        let success = format!("{:?}", ExitCode::SUCCESS);
        assert_eq!(code(Tally { passed: 1, ..Tally::default() }), success);
        assert_eq!(code(Tally { passed: 1, failed: vec![], skipped: vec![skip(true)] }), success);
        assert_ne!(code(Tally { passed: 1, failed: vec![], skipped: vec![skip(false)] }), success);
        assert_ne!(code(Tally { passed: 1, failed: vec!["t".to_owned()], skipped: vec![] }), success);
        assert_ne!(code(Tally::default()), success);
    }
}
