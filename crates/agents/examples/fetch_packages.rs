//! A tool of the test run: fetches npm packages as the store of agents does, pinned and checked, without npm.
//!
//! ```text
//! fetch_packages STORE node                 Node for this machine
//! fetch_packages STORE PACKAGE-LOCK.JSON    all that a lock file pins for this machine
//! ```
//!
//! Progress goes to stderr. On stdout there is one line per package: its name, a tab, its directory.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use agentos_agents::Store;
use agentos_agents::registry::{Package, node_runtime};
use agentos_agents::store::Progress;
use serde_json::Value;
use tokio::sync::mpsc;

/// Reports that nobody has read yet.
const REPORTS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, what] = arguments.as_slice() else {
        return Err("needs a store and a lock file or `node`".into());
    };
    let packages = match what.as_str() {
        "node" => vec![node_runtime(std::env::consts::ARCH).ok_or("npm has no Node for this processor")?],
        lock => pinned(&serde_json::from_str(&fs::read_to_string(lock)?)?)?,
    };
    let (progress, reports) = mpsc::channel(REPORTS);
    let show = std::thread::spawn(move || show(reports));
    let places = Store::new(PathBuf::from(store)).fetch(&packages, &progress);
    drop(progress);
    show.join().map_err(|_| "showing the progress failed")?;
    for (package, place) in packages.iter().zip(places?) {
        println!("{}\t{}", package.name, place.display());
    }
    Ok(())
}

/// One line when a package begins; the packages here are small.
fn show(mut reports: mpsc::Receiver<Progress>) {
    let mut announced = Vec::new();
    while let Some(step) = reports.blocking_recv() {
        if !announced.contains(&step.package) {
            eprintln!("fetching {} into {}", step.package, step.place.display());
            announced.push(step.package);
        }
    }
}

fn pinned(lock: &Value) -> Result<Vec<Package>, Box<dyn Error>> {
    let mut packages = Vec::new();
    for (place, entry) in lock["packages"].as_object().ok_or("no lock file of npm 7 or later")? {
        // The package itself.
        if place.is_empty() || !is_for_this_machine(entry) {
            continue;
        }
        let name = place.strip_prefix("node_modules/").filter(|name| !name.contains("node_modules/"));
        let text =
            |key: &str| entry[key].as_str().map(str::to_owned).ok_or_else(|| format!("{place}: no `{key}`"));
        let name = name.ok_or_else(|| format!("{place} is not at the top"))?;
        packages.push(Package {
            key: name.to_owned(),
            name: name.to_owned(),
            version: text("version")?,
            integrity: text("integrity")?,
            // npm's lock files have no sizes.
            tarball_bytes: 0,
            entry: "package.json".to_owned(),
            only: Vec::new(),
            inside: Vec::new(),
        });
    }
    Ok(packages)
}

fn is_for_this_machine(entry: &Value) -> bool {
    let cpu = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x64" };
    let admits = |key: &str, ours: &str| {
        entry[key].as_array().is_none_or(|list| list.iter().any(|one| one.as_str() == Some(ours)))
    };
    admits("os", std::env::consts::OS) && admits("cpu", cpu)
}
