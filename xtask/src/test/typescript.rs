//! The tests of the TypeScript SDK: its package is built once, and Node's own test runner runs its tests as each user.
//!
//! ```text
//! package-lock.json ──fetch──► compiler and types ──┐
//! sdk/typescript ──copy──► target/typescript/package ──compile──► dist, with the addon ──► node --test
//! ```
//!
//! Node is that on PATH where it is new enough, else the one that agents get. What npm would fetch is fetched by the
//! agents' store, to the same pinned digests: a machine without Node and npm needs nothing installed.

use super::artifacts::Built;
use super::execute::{self, Judged, Tally};
use super::libtest::Report;
use super::sandbox::{self, Sandbox};
use super::skips::Allowed;
use crate::Failure;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The crate of the addon, by which these tests are selected.
pub(crate) const PACKAGE: &str = "agentos-typescript";
const SOURCE: &str = "sdk/typescript";
const LABEL: &str = "typescript";
/// As package.json says, too.
const OLDEST_NODE: u32 = 20;
/// What Node 20 says of the tests that a filter leaves out. They count for nothing, as those of Rust do.
const LEFT_OUT: &str = "test name does not match pattern";
/// The compiler is a program for each kind of machine, in a package of its own.
const COMPILER: &str = "@typescript/typescript-";

/// What the tests are run with.
#[derive(Debug)]
pub(crate) struct TypeScript {
    node: PathBuf,
    package: PathBuf,
}

impl TypeScript {
    pub(crate) fn build(root: &Path, built: &Built) -> Result<Self, Failure> {
        let addon = built.addon.as_ref().ok_or("the build made no addon for Node")?;
        let fetch = built.fetch.as_ref().ok_or("the build made no tool to fetch packages with")?;
        let place = root.join("target/typescript");
        let package = place.join("package");
        if package.exists() {
            fs::remove_dir_all(&package)?;
        }
        fs::create_dir_all(&place)?;
        sandbox::copy_tree(&root.join(SOURCE), &package, &sandbox::Owner::Caller)?;
        // What somebody built there may be older than the source, and hold tests that are gone from it.
        let dist = package.join("dist");
        if dist.exists() {
            fs::remove_dir_all(&dist)?;
        }
        let lock = package.join("package-lock.json");
        let packages = fetched(fetch, &place.join("store"), lock.as_os_str())?;
        for (name, directory) in &packages {
            let link = package.join("node_modules").join(name);
            fs::create_dir_all(link.parent().unwrap_or(&link))?;
            symlink(directory, link)?;
        }
        let compiler = packages.iter().find(|(name, _)| name.starts_with(COMPILER));
        let (_, compiler) =
            compiler.ok_or("package-lock.json has no TypeScript compiler for this machine")?;
        for project in [".", "test"] {
            compile(&compiler.join("lib/tsc"), &package, project)?;
        }
        fs::copy(addon, dist.join("agentos.node"))?;
        Ok(Self { node: node(fetch, &root.join("target/test-agents"))?, package })
    }

    pub(crate) fn run(
        &self,
        sandbox: &Sandbox,
        filter: Option<&str>,
        allowed: &Allowed,
    ) -> Result<Tally, Failure> {
        let package = sandbox.reachable_tree(&self.package, LABEL)?;
        let node = sandbox.reachable_program(&self.node)?;
        let mut command = sandbox.program(&node, &package);
        command.args(["--test", "--test-reporter=tap"]);
        command.args(filter.map(|filter| format!("--test-name-pattern={filter}")));
        command.args(tests(&package)?);
        let finished = execute::watch(LABEL, &mut command)?;
        let outcome = parse(&finished.output);
        let tally = execute::judge(&Judged {
            label: LABEL,
            runner: sandbox.runner,
            report: &outcome.report,
            died: finished.died_unless(&[0, 1]),
            recorded: &outcome.skipped,
            allowed,
        });
        execute::show(LABEL, &tally, &finished);
        let mut total = Tally::default();
        total.add(&tally);
        total.failed.extend(execute::leftovers(sandbox.directory()));
        Ok(total)
    }
}

/// The name and the directory of every package.
fn fetched(fetch: &Path, store: &Path, what: &std::ffi::OsStr) -> Result<Vec<(String, PathBuf)>, Failure> {
    let output = Command::new(fetch).arg(store).arg(what).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("fetching what the TypeScript SDK is built with: {}", output.status).into());
    }
    let lines = String::from_utf8(output.stdout)?;
    let packages = lines.lines().filter_map(|line| line.split_once('\t'));
    Ok(packages.map(|(name, directory)| (name.to_owned(), PathBuf::from(directory))).collect())
}

fn compile(compiler: &Path, package: &Path, project: &str) -> Result<(), Failure> {
    // Types are found beside the link, not beside what it leads to.
    let mut command = Command::new(compiler);
    command.args(["--project", project, "--preserveSymlinks"]).current_dir(package).stdin(Stdio::null());
    let status = command.status().map_err(|error| format!("{}: {error}", compiler.display()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{SOURCE}: the compiler found errors ({status})").into())
    }
}

/// Node on PATH, where it is new enough; else the one that agents get.
fn node(fetch: &Path, store: &Path) -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|directory| directory.join("node"));
    if let Some(node) = candidates.filter(|node| node.is_file()).find(|node| is_new_enough(node)) {
        return Ok(node);
    }
    println!("no Node {OLDEST_NODE} or later on PATH: one is fetched");
    let packages = fetched(fetch, store, std::ffi::OsStr::new("node"))?;
    let (_, directory) = packages.into_iter().next().ok_or("fetching Node gave none")?;
    Ok(directory.join("bin/node"))
}

fn is_new_enough(node: &Path) -> bool {
    let output = Command::new(node).arg("--version").output();
    output.is_ok_and(|output| major(&String::from_utf8_lossy(&output.stdout)) >= Some(OLDEST_NODE))
}

/// The first number of `v20.20.2`.
fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

fn tests(package: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut tests = Vec::new();
    for entry in fs::read_dir(package.join("dist/test"))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".test.mjs") {
            tests.push(path);
        }
    }
    tests.sort();
    Ok(tests)
}

/// What Node's test runner printed.
#[derive(Debug, Default)]
struct Outcome {
    /// Skipped tests are among the passed ones, as those of Rust that return early are.
    report: Report,
    skipped: Vec<(String, String)>,
}

/// Reads the Test Anything Protocol. The counts at its end are the authority; the lines above give names.
fn parse(output: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in output.lines() {
        let counted =
            |what: &str| line.strip_prefix(what).and_then(|number| number.trim().parse::<usize>().ok());
        if let Some(count) = counted("# pass ") {
            outcome.report.summaries += 1;
            outcome.report.passed += count;
        } else if let Some(count) = ["# fail ", "# cancelled ", "# todo "].into_iter().find_map(counted) {
            outcome.report.failed += count;
        } else if let Some((_, name)) = line.strip_prefix("not ok ").and_then(|rest| rest.split_once(" - ")) {
            outcome.report.failed_names.push(name.to_owned());
        } else if let Some((_, rest)) = line.strip_prefix("ok ").and_then(|rest| rest.split_once(" - "))
            && let Some((name, reason)) = rest.split_once(" # SKIP")
            && reason.trim() != LEFT_OUT
        {
            outcome.skipped.push((name.to_owned(), reason.trim().to_owned()));
        }
    }
    outcome.report.passed += outcome.skipped.len();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_failed_and_skipped_tests_are_told_apart() {
        let outcome = parse(
            "TAP version 13\n# Subtest: a\nok 1 - a\n  ---\n  duration_ms: 1\n  ...\nnot ok 2 - b\n\
             ok 3 - c # SKIP no network\nok 4 - d # SKIP test name does not match pattern\n1..4\n# tests 4\n\
             # suites 0\n# pass 1\n# fail 1\n# cancelled 0\n# skipped 2\n# todo 0\n# duration_ms 10\n",
        );
        assert_eq!((outcome.report.passed, outcome.report.failed, outcome.report.summaries), (2, 1, 1));
        assert_eq!(outcome.report.failed_names, ["b"]);
        assert_eq!(outcome.skipped, [("c".to_owned(), "no network".to_owned())]);
    }

    #[test]
    fn a_runner_that_died_has_no_summary_and_unfinished_tests_are_no_passes() {
        assert_eq!(parse("TAP version 13\nok 1 - a\n").report.summaries, 0);
        let cut = parse("# pass 0\n# fail 0\n# cancelled 2\n# skipped 0\n# todo 1\n");
        assert_eq!((cut.report.passed, cut.report.failed), (0, 3));
    }

    #[test]
    fn the_version_of_node_is_read() {
        assert_eq!(major("v20.20.2\n"), Some(20));
        assert_eq!(major("v8.1.0\n"), Some(8));
        assert_eq!(major("node: not found"), None);
    }
}
