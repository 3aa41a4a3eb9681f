//! Manifests and the lock file.

use super::{File, Problem};
use crate::Failure;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The one crate with lints of its own: unsafe code lives there, everything else is as strict.
const OWN_LINTS: &str = "crates/linux/Cargo.toml";

/// Packages of which several versions are built, each with the reason why that can't be helped.
const DUPLICATES: &[(&str, &str)] = &[
    ("base64", "tonic stays on 0.22 while ureq, which the agent store downloads with, took 0.23"),
    ("bitflags", "smoltcp stays on 1.3, a macro without code of its own"),
    ("embedded-io", "optional in postcard, not built"),
    ("foldhash", "as hashbrown"),
    ("getrandom", "ring, the cryptography of TLS, stays on 0.2, and ahash, below boon, on 0.3"),
    ("hashbrown", "petgraph, in the generator of the wire code only"),
    ("itertools", "prost's derive macro and its generator differ, both at build time only"),
    ("r-efi", "as getrandom, and not built on Linux"),
    ("synstructure", "derive macros, at build time only"),
    ("syn", "derive macros, at build time only"),
    ("unicode-width", "miette, in the compiler of the wire contract only"),
    ("windows-sys", "not built on Linux"),
];

/// The lock file of the fuzz targets, which are a workspace of their own.
const FUZZ_LOCK: &str = "fuzz/Cargo.lock";

pub(super) fn check(files: &[File]) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    let lock = |path: &str| files.iter().find(|file| file.path == path).map(|file| file.text.parse());
    if let (Some(own), Some(fuzz)) = (lock("Cargo.lock"), lock(FUZZ_LOCK)) {
        problems.extend(strays(&own?, &fuzz?));
    }
    for file in files {
        let is_manifest = file.path.ends_with("/Cargo.toml");
        if is_manifest {
            let manifest: Table = file.text.parse().map_err(|error| format!("{}: {error}", file.path))?;
            problems.extend(lints(&file.path, &manifest));
        } else if file.path == "Cargo.lock" {
            problems.extend(duplicates(&file.text.parse()?, DUPLICATES));
        }
    }
    Ok(problems)
}

fn lints(path: &str, manifest: &Table) -> Option<Problem> {
    if !manifest.contains_key("package") {
        return None;
    }
    let lints = manifest.get("lints").and_then(Value::as_table);
    let inherits = lints.and_then(|lints| lints.get("workspace")).and_then(Value::as_bool) == Some(true);
    let has_own = lints.is_some_and(|lints| lints.contains_key("rust") && lints.contains_key("clippy"));
    if inherits || (path == OWN_LINTS && has_own) {
        return None;
    }
    Some(Problem::new(path, "needs `[lints] workspace = true`"))
}

/// What is fuzzed must be what is shipped: of a package that both lock files have, the fuzz targets use a version that
/// the product uses.
fn strays(own: &Table, fuzz: &Table) -> Vec<Problem> {
    let own = versions(own);
    let strays = versions(fuzz).into_iter().filter_map(|(name, versions)| {
        let ours = own.get(name)?;
        let stray = versions.into_iter().find(|version| !ours.contains(version))?;
        let what = format!("{name} is {stray} here and {} in Cargo.lock", ours.join(", "));
        Some(Problem::new(FUZZ_LOCK, what))
    });
    strays.collect()
}

/// The versions in a lock file by package.
fn versions(lock: &Table) -> BTreeMap<&str, Vec<&str>> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock.get("package").and_then(Value::as_array).into_iter().flatten() {
        let field = |key: &str| package.get(key).and_then(Value::as_str).unwrap_or_default();
        versions.entry(field("name")).or_default().push(field("version"));
    }
    versions
}

/// Two versions of a package cost build time and size, and their types don't fit each other.
fn duplicates(lock: &Table, permitted: &[(&str, &str)]) -> Vec<Problem> {
    let versions = versions(lock);
    let mut problems = Vec::new();
    for (name, versions) in &versions {
        if versions.len() > 1 && !permitted.iter().any(|(known, _)| known == name) {
            problems.push(Problem::new("Cargo.lock", format!("{name} in versions {}", versions.join(", "))));
        }
    }
    for (name, _) in permitted {
        if versions.get(name).is_none_or(|versions| versions.len() < 2) {
            problems.push(Problem::new(
                "Cargo.lock",
                format!("{name} is no longer a duplicate, take it off the list"),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn a_crate_without_the_workspace_lints_is_a_problem() {
        let bare = table("[package]\nname = \"x\"\n");
        assert!(lints("crates/x/Cargo.toml", &bare).is_some());
        let inheriting = table("[package]\nname = \"x\"\n[lints]\nworkspace = true\n");
        assert!(lints("crates/x/Cargo.toml", &inheriting).is_none());
    }

    #[test]
    fn only_linux_may_have_lints_of_its_own() {
        let own =
            table("[package]\nname = \"x\"\n[lints.rust]\na = \"deny\"\n[lints.clippy]\nb = \"deny\"\n");
        assert!(lints(OWN_LINTS, &own).is_none());
        assert!(lints("crates/x/Cargo.toml", &own).is_some());
    }

    #[test]
    fn fuzz_targets_with_another_version_than_the_product_are_a_problem() {
        let lock = |version: &str| {
            table(&format!(
                "[[package]]\nname = \"a\"\nversion = \"{version}\"\n\
                 [[package]]\nname = \"b{version}\"\nversion = \"1\"\n"
            ))
        };
        assert!(strays(&lock("1"), &lock("1")).is_empty());
        let problems = strays(&lock("1"), &lock("2"));
        assert_eq!(problems, [Problem::new(FUZZ_LOCK, "a is 2 here and 1 in Cargo.lock")]);
    }

    #[test]
    fn a_second_version_is_a_problem_unless_it_is_listed() {
        let lock = table(
            "[[package]]\nname = \"a\"\nversion = \"1\"\n[[package]]\nname = \"a\"\nversion = \"2\"\n\
             [[package]]\nname = \"b\"\nversion = \"1\"\n",
        );
        assert_eq!(duplicates(&lock, &[]).len(), 1);
        assert!(duplicates(&lock, &[("a", "because")]).is_empty());
        assert_eq!(duplicates(&lock, &[("a", "because"), ("b", "stale")]).len(), 1);
    }
}
