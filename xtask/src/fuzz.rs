//! `cargo xtask fuzz`: runs the fuzz targets of `fuzz/`, each for some seconds.
//!
//! The targets are laid out for cargo-fuzz. This chore does without it: it builds them with the flags by which libFuzzer sees what was reached, in a directory
//! of their own, and leaves what it learns below `target/fuzz`, so that the next run goes on from there.

use crate::{Failure, workspace};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const DEFAULT_SECONDS: u64 = 60;

/// The coverage that libFuzzer is guided by, a sanitizer, and the condition under which the checks are compiled.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address";

/// Longer inputs find little that shorter ones don't, and take their time.
const LONGEST_INPUT_BYTES: u32 = 4_096;
/// An input that takes so long is a finding.
const SLOWEST_SECONDS: u32 = 10;

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Failure> {
    let root = workspace::root()?;
    let known = targets(&std::fs::read_to_string(root.join("fuzz/Cargo.toml"))?)?;
    let wish = Wish::read(arguments, &known)?;
    let nightly = Nightly::find()?;
    needs_a_cxx_compiler()?;
    let directory = root.join("target/fuzz");
    let built = nightly.build(&root, &directory, &wish.targets)?;
    let mut failed = Vec::new();
    for target in &wish.targets {
        println!("{target}: {} s", wish.seconds);
        if !fuzz(&root, &directory, &built.join(target), target, wish.seconds)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("found something: {}; the inputs are in {}", failed.join(", "), directory.display());
    Ok(ExitCode::FAILURE)
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    targets: Vec<String>,
    seconds: u64,
}

impl Wish {
    fn read(arguments: &[String], known: &[String]) -> Result<Self, Failure> {
        let (mut targets, mut seconds) = (Vec::new(), DEFAULT_SECONDS);
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--seconds" {
                let number = rest.next().ok_or("--seconds needs a number")?;
                seconds = number.parse().map_err(|_| format!("--seconds needs a number, not `{number}`"))?;
            } else if known.contains(argument) {
                targets.push(argument.clone());
            } else {
                return Err(format!("no fuzz target `{argument}`; there are {}", known.join(", ")).into());
            }
        }
        if targets.is_empty() {
            targets = known.to_vec();
        }
        Ok(Self { targets, seconds })
    }
}

/// The names in a manifest of fuzz targets.
fn targets(manifest: &str) -> Result<Vec<String>, Failure> {
    let manifest: toml::Table = manifest.parse()?;
    let programs = manifest.get("bin").and_then(toml::Value::as_array).ok_or("there are no fuzz targets")?;
    let names = programs.iter().filter_map(|program| program.get("name")?.as_str());
    Ok(names.map(str::to_owned).collect())
}

/// A toolchain that has the flags above.
struct Nightly {
    /// Before the arguments for cargo.
    command: Vec<String>,
    /// The machine it builds for. It must be named to cargo: what runs during the build is not to be instrumented.
    host: String,
}

impl Nightly {
    /// The one that runs us, or else the one that rustup has.
    fn find() -> Result<Self, Failure> {
        let own = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let rustups = ["rustup", "run", "nightly", "cargo"].map(str::to_owned).to_vec();
        let found = [vec![own], rustups].into_iter().find_map(|command| {
            let said = spell(&command).args(["--version", "--verbose"]).output().ok()?;
            let said = String::from_utf8(said.stdout).ok()?;
            let host = said.lines().find_map(|line| line.strip_prefix("host: "))?.to_owned();
            said.contains("nightly").then_some(Self { command, host })
        });
        let missing =
            "fuzzing takes a nightly toolchain, for its sanitizers: `rustup toolchain install nightly`";
        found.ok_or_else(|| missing.into())
    }

    /// Builds the targets; the directory that they are in then.
    fn build(&self, root: &Path, directory: &Path, targets: &[String]) -> Result<PathBuf, Failure> {
        let mut cargo = spell(&self.command);
        cargo.current_dir(root.join("fuzz")).args(["build", "--release", "--locked", "--target", &self.host]);
        cargo.arg("--target-dir").arg(directory);
        for target in targets {
            cargo.args(["--bin", target]);
        }
        // Of the toolchain that runs us, and not of the one that is started.
        for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS"] {
            cargo.env_remove(name);
        }
        let status = cargo.env("RUSTFLAGS", FLAGS).stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("the build failed: {status}").into());
        }
        Ok(directory.join(&self.host).join("release"))
    }
}

fn spell(command: &[String]) -> Command {
    let (program, arguments) = command.split_first().map_or(("cargo", &[][..]), |(a, b)| (a.as_str(), b));
    let mut spelled = Command::new(program);
    spelled.args(arguments);
    spelled
}

/// LibFuzzer is C++, and built with the targets.
fn needs_a_cxx_compiler() -> Result<(), Failure> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    match Command::new(&compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("fuzzing takes a C++ compiler, for libFuzzer: `{compiler}` does not run").into()),
    }
}

/// Runs one target. False: it found something, and has said what.
fn fuzz(root: &Path, directory: &Path, program: &Path, target: &str, seconds: u64) -> Result<bool, Failure> {
    let (corpus, artifacts) = (directory.join("corpus").join(target), directory.join("artifacts"));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&artifacts)?;
    let mut fuzzer = Command::new(program);
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LONGEST_INPUT_BYTES}"));
    fuzzer.arg(format!("-timeout={SLOWEST_SECONDS}")).arg("-print_final_stats=1");
    fuzzer.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
    // New inputs go to the first directory.
    fuzzer.arg(&corpus).arg(root.join("fuzz/seeds").join(target));
    Ok(fuzzer.stdin(Stdio::null()).status()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        ["packets", "policy_file"].map(str::to_owned).to_vec()
    }

    fn read(arguments: &[&str]) -> Result<Wish, Failure> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Wish::read(&arguments, &known())
    }

    #[test]
    fn without_a_name_every_target_is_run() {
        assert_eq!(read(&[]).unwrap(), Wish { targets: known(), seconds: DEFAULT_SECONDS });
        let one = Wish { targets: vec!["packets".to_owned()], seconds: 5 };
        assert_eq!(read(&["packets", "--seconds", "5"]).unwrap(), one);
    }

    #[test]
    fn what_is_no_target_is_refused_with_those_there_are() {
        let message = |arguments: &[&str]| read(arguments).unwrap_err().to_string();
        assert_eq!(message(&["packet"]), "no fuzz target `packet`; there are packets, policy_file");
        assert_eq!(message(&["--seconds", "x"]), "--seconds needs a number, not `x`");
    }

    #[test]
    fn every_target_has_its_file_and_seeds() {
        let directory = workspace::root().unwrap().join("fuzz");
        let names = targets(&std::fs::read_to_string(directory.join("Cargo.toml")).unwrap()).unwrap();
        for name in &names {
            assert!(directory.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
            let seeds = std::fs::read_dir(directory.join("seeds").join(name)).unwrap();
            assert!(seeds.count() > 0, "{name} has no seeds");
        }
        let files = std::fs::read_dir(directory.join("fuzz_targets")).unwrap();
        assert_eq!(files.count(), names.len(), "a target that is not in the manifest is never run");
    }
}
