//! Who may import whom: the table of ARCHITECTURE.md as data, checked against `cargo metadata`.
//!
//! A layer that can't name another can't come to depend on it. A crate that is not in the table is a problem too: it
//! has to be given its place first.

use super::Problem;
use serde_json::Value;

struct Row {
    package: &'static str,
    /// Packages of this workspace that it may use.
    may_use: &'static [&'static str],
    /// Those that its tests may use besides.
    tests_may_use: &'static [&'static str],
    /// Packages from outside that would break what the crate promises.
    never: &'static [&'static str],
}

/// The wire: only the two ends of gRPC may know it.
const GRPC: &[&str] = &["tonic", "prost", "tonic-prost"];
/// The launcher and PID 1 fork without exec and are counted in pages: no runtime, no wire.
const RUNTIME: &[&str] = &["tokio", "tonic", "prost", "tonic-prost", "hyper"];

const TABLE: &[Row] = &[
    Row { package: "agentos-proto", may_use: &[], tests_may_use: &[], never: &["tokio"] },
    // The client knows the wire and nothing of how a VM is made.
    Row { package: "agentos", may_use: &["agentos-proto"], tests_may_use: &[], never: &["libc"] },
    Row { package: "agentos-linux", may_use: &[], tests_may_use: &[], never: RUNTIME },
    // Sans-IO: bytes in, frames out.
    Row { package: "agentos-guest-protocol", may_use: &[], tests_may_use: &[], never: RUNTIME },
    Row {
        package: "agentos-init",
        may_use: &["agentos-linux", "agentos-guest-protocol"],
        tests_may_use: &[],
        never: RUNTIME,
    },
    // One VM's packets; it is given a device and knows nothing of VMs.
    Row { package: "agentos-netstack", may_use: &["agentos-linux"], tests_may_use: &[], never: GRPC },
    Row {
        package: "agentos-vm",
        may_use: &["agentos-linux", "agentos-guest-protocol", "agentos-netstack"],
        tests_may_use: &[],
        never: GRPC,
    },
    // Agents are given a byte stream; that there are namespaces or gRPC is not their business.
    Row { package: "agentos-agents", may_use: &[], tests_may_use: &[], never: GRPC },
    Row { package: "agentos-demo-model", may_use: &[], tests_may_use: &[], never: GRPC },
    Row {
        package: "agentos-sidecar",
        may_use: &["agentos-proto", "agentos-vm", "agentos-agents"],
        tests_may_use: &[],
        never: &["libc"],
    },
    Row {
        package: "agentos-cli",
        may_use: &["agentos", "agentos-sidecar", "agentos-init", "agentos-demo-model"],
        tests_may_use: &[],
        never: GRPC,
    },
    // The TypeScript SDK is the Rust SDK in other shapes: what it can't do by that, it can't do.
    Row { package: "agentos-typescript", may_use: &["agentos"], tests_may_use: &[], never: GRPC },
    Row { package: "xtask", may_use: &[], tests_may_use: &[], never: RUNTIME },
    // Measures what a user of the SDK gets, so it sees what a user sees; how an agent is started, of the one beside it
    // that has no VM.
    Row {
        package: "agentos-bench",
        may_use: &["agentos", "agentos-agents"],
        tests_may_use: &[],
        never: GRPC,
    },
];

pub(super) fn check(metadata: &Value) -> Vec<Problem> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let members: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(row) = TABLE.iter().find(|row| row.package == name) else {
            problems.push(Problem::new(name, "is not in the import table (xtask/src/tidy/imports.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            let allowed = row.may_use.contains(&used) || (for_tests && row.tests_may_use.contains(&used));
            if members.contains(&used) && !allowed {
                let who = if for_tests { "tests of" } else { "" };
                problems.push(Problem::new(name, format!("{who} {name} may not use {used}").trim_start()));
            }
            if row.never.contains(&used) && !for_tests {
                problems.push(Problem::new(name, format!("must not know {used}")));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(name: &str, dependency: &str, kind: Option<&str>) -> Value {
        json!({"packages": [
            {"name": name, "dependencies": [{"name": dependency, "kind": kind}]},
            {"name": "agentos-vm", "dependencies": []},
        ]})
    }

    #[test]
    fn a_listed_import_is_fine() {
        assert!(check(&workspace("agentos-sidecar", "agentos-vm", None)).is_empty());
    }

    #[test]
    fn an_unlisted_import_is_a_problem_in_code_and_in_tests() {
        assert_eq!(check(&workspace("agentos", "agentos-vm", None)).len(), 1);
        assert_eq!(check(&workspace("agentos", "agentos-vm", Some("dev"))).len(), 1);
        assert_eq!(check(&workspace("agentos", "agentos-vm", Some("build"))).len(), 1);
    }

    #[test]
    fn a_crate_without_a_row_is_a_problem() {
        assert_eq!(check(&workspace("agentos-utils", "serde", None)).len(), 1);
    }

    #[test]
    fn init_with_a_runtime_is_a_problem_but_its_tests_may_have_one() {
        assert_eq!(check(&workspace("agentos-init", "tokio", None)).len(), 1);
        assert!(check(&workspace("agentos-init", "tokio", Some("dev"))).is_empty());
    }
}
