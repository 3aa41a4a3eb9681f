//! One build for everything: the `agentos` binary, every test executable, every example.
//!
//! `cargo build --bins --tests --examples` resolves features once, so nothing is compiled twice as it would be by a build of
//! the binary followed by a build of the tests.

use super::typescript;
use crate::{Failure, workspace};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The tests of the project's own chores look at the source tree and at cargo, not at VMs: who runs them makes no
/// difference, and an unprivileged user often can't reach the toolchain of root. They run once, as the caller.
const RUN_ONCE: &[&str] = &["xtask"];

/// The package whose binary is the product.
const PRODUCT: &str = "agentos-cli";

/// Examples that are tools of the tests, no documentation: their package, their name, and the variable by which tests
/// find them. They are what the abuse tests put into VMs, what makes the networks of the network tests, and an agent
/// that misbehaves on demand.
const TOOLS: &[(&str, &str, &str)] = &[
    ("agentos-linux", "attempt", "AGENTOS_TEST_PROBE"),
    ("agentos-linux", "lab", "AGENTOS_TEST_LAB"),
    ("agentos-agents", "fake_acp_agent", "AGENTOS_TEST_FAKE_AGENT"),
];

/// A program that tests use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) variable: &'static str,
    pub(crate) path: PathBuf,
}

/// The tool that fetches what the TypeScript SDK is built with.
const FETCHER: (&str, &str) = ("agentos-agents", "fetch_packages");

#[derive(Debug, Default)]
pub(crate) struct Built {
    /// The `agentos` binary; none when only chores are tested.
    pub(crate) agentos: Option<PathBuf>,
    /// None when only chores are tested.
    pub(crate) tools: Vec<Tool>,
    /// The addon of the TypeScript SDK, and what fetches the rest of what that is built with; none unless its tests run.
    pub(crate) addon: Option<PathBuf>,
    pub(crate) fetch: Option<PathBuf>,
    pub(crate) executables: Vec<Executable>,
    pub(crate) examples: Vec<Executable>,
}

/// One test executable or example.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) package: String,
    /// Name of an integration test or example; none for the unit tests of a library or binary.
    pub(crate) target: Option<String>,
    pub(crate) path: PathBuf,
    /// The package's directory, relative to the root of the source tree.
    pub(crate) directory: PathBuf,
    pub(crate) runs_once: bool,
}

impl Executable {
    /// The prefix of its tests' full names, as `tests/allowed-skips.toml` knows them.
    pub(crate) fn label(&self) -> String {
        match &self.target {
            Some(name) => format!("{}::{name}", self.package),
            None => self.package.clone(),
        }
    }
}

pub(crate) fn build(root: &Path, packages: &[String]) -> Result<Built, Failure> {
    let mut command = workspace::cargo(root);
    command.args(["build", "--bins", "--tests", "--examples", "--message-format=json-render-diagnostics"]);
    if packages.is_empty() {
        // The libraries too, though all but the addon are built for the tests anyway.
        command.args(["--workspace", "--lib"]);
    } else {
        let mut needed = vec![];
        if needs_product(packages) {
            needed.push(PRODUCT);
            needed.extend(TOOLS.iter().map(|(package, ..)| *package));
        }
        if packages.iter().any(|package| package == typescript::PACKAGE) {
            command.arg("--lib");
            needed.push(FETCHER.0);
        }
        for package in packages.iter().map(String::as_str).chain(needed) {
            command.args(["--package", package]);
        }
    }
    // Cargo shows its progress on stderr; stdout carries the messages.
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut messages = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            messages.push(serde_json::from_str(&line?)?);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the build failed: {status}").into());
    }
    collect(root, packages, &messages)
}

fn collect(root: &Path, packages: &[String], messages: &[Value]) -> Result<Built, Failure> {
    let (mut agentos, mut tools) = (None, Vec::new());
    let (mut addon, mut fetch) = (None, None);
    let (mut executables, mut examples) = (Vec::new(), Vec::new());
    for message in messages {
        if message["target"]["kind"][0] == "cdylib" {
            addon = message["filenames"][0].as_str().map(PathBuf::from);
        }
        let (Some(path), Some(manifest)) =
            (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let is_test = message["profile"]["test"] == Value::Bool(true);
        if !is_test && kind == "bin" && name == "agentos" {
            agentos = Some(PathBuf::from(path));
        }
        let directory = Path::new(manifest).parent().and_then(|path| path.strip_prefix(root).ok());
        let directory = directory.ok_or_else(|| format!("{manifest} is outside of {}", root.display()))?;
        let package = package_name(message["package_id"].as_str().unwrap_or_default()).to_owned();
        let tool = TOOLS.iter().find(|(of, called, _)| (*of, *called) == (&package, name));
        if let Some((_, _, variable)) = tool.filter(|_| kind == "example") {
            tools.push(Tool { variable, path: PathBuf::from(path) });
            continue;
        }
        if kind == "example" && (package.as_str(), name) == FETCHER {
            fetch = Some(PathBuf::from(path));
            continue;
        }
        if !packages.is_empty() && !packages.contains(&package) {
            continue;
        }
        let executable = Executable {
            target: ["test", "example"].contains(&kind).then(|| name.to_owned()),
            runs_once: RUN_ONCE.contains(&package.as_str()),
            path: path.into(),
            directory: directory.to_path_buf(),
            package,
        };
        match (is_test, kind) {
            (true, _) => executables.push(executable),
            (false, "example") => examples.push(executable),
            (false, _) => {}
        }
    }
    executables.sort_by_key(Executable::label);
    examples.sort_by_key(Executable::label);
    if agentos.is_none() && needs_product(packages) {
        return Err("the build made no `agentos` binary".into());
    }
    Ok(Built { agentos, tools, addon, fetch, executables, examples })
}

/// Only a selection of nothing but chores does without the product.
fn needs_product(packages: &[String]) -> bool {
    packages.is_empty() || packages.iter().any(|package| !RUN_ONCE.contains(&package.as_str()))
}

/// `path+file:///x/crates/vm#agentos-vm@0.1.0` or `path+file:///x/crates/agentos#0.1.0`, where the name is left out
/// because the directory already says it.
fn package_name(id: &str) -> &str {
    let (place, fragment) = id.rsplit_once('#').unwrap_or(("", id));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(fragment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn package_names_are_read_from_both_forms_of_an_id() {
        assert_eq!(package_name("path+file:///x/crates/vm#agentos-vm@0.1.0"), "agentos-vm");
        assert_eq!(package_name("path+file:///x/crates/agentos#0.1.0"), "agentos");
    }

    fn artifact(id: &str, kind: &str, name: &str, test: bool) -> Value {
        json!({
            "reason": "compiler-artifact", "package_id": id, "manifest_path": "/x/crates/vm/Cargo.toml",
            "target": {"name": name, "kind": [kind]}, "profile": {"test": test},
            "executable": format!("/x/target/{name}-{test}"),
        })
    }

    #[test]
    fn the_binary_and_the_tests_are_found_among_the_messages() {
        let messages = [
            artifact("p#agentos-vm@0.1.0", "test", "boot", true),
            artifact("p#agentos-vm@0.1.0", "lib", "agentos_vm", true),
            artifact("p#agentos-cli@0.1.0", "bin", "agentos", false),
            artifact("p#agentos#0.1.0", "example", "quickstart", false),
            artifact("p#agentos-linux@0.1.0", "example", "attempt", false),
            artifact("p#agentos-agents@0.1.0", "example", "fake_acp_agent", false),
            artifact("p#agentos-agents@0.1.0", "example", "fetch_packages", false),
            json!({"target": {"kind": ["cdylib"]}, "filenames": ["/x/target/libaddon.so"]}),
            json!({"reason": "build-finished", "success": true}),
        ];
        let built = collect(Path::new("/x"), &[], &messages).unwrap();
        assert_eq!(built.agentos.unwrap(), Path::new("/x/target/agentos-false"));
        let labels: Vec<String> = built.executables.iter().map(Executable::label).collect();
        assert_eq!(labels, ["agentos-vm", "agentos-vm::boot"]);
        assert_eq!(built.examples.len(), 1);
        let tools: Vec<_> = built.tools.iter().map(|tool| (tool.variable, tool.path.as_path())).collect();
        let expected = [
            ("AGENTOS_TEST_PROBE", Path::new("/x/target/attempt-false")),
            ("AGENTOS_TEST_FAKE_AGENT", Path::new("/x/target/fake_acp_agent-false")),
        ];
        assert_eq!(tools, expected);
        assert_eq!(built.fetch.unwrap(), Path::new("/x/target/fetch_packages-false"));
        assert_eq!(built.addon.unwrap(), Path::new("/x/target/libaddon.so"));
        assert_eq!(built.executables[0].directory, Path::new("crates/vm"));
    }

    #[test]
    fn a_build_without_the_product_is_an_error() {
        collect(Path::new("/x"), &[], &[]).unwrap_err();
    }
}
