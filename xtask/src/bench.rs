//! `cargo xtask bench`: builds the product and the bench in release mode and runs the bench in a private place.
//!
//! The measuring is in `xtask/bench`, a program of its own because it needs the SDK.

use crate::test::{Built, Runner, Sandbox};
use crate::{Failure, workspace};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Failure> {
    let root = workspace::root()?;
    let status = workspace::cargo(&root)
        .args(["build", "--release", "--package", "agentos-cli", "--package", "agentos-bench", "--bins"])
        // The agent whose events are timed.
        .args(["--package", "agentos-agents", "--example", "fake_acp_agent"])
        .stdin(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("the build failed: {status}").into());
    }
    let metadata = workspace::metadata(&root)?;
    let target = metadata["target_directory"].as_str().ok_or("cargo names no target directory")?;
    let release = Path::new(target).join("release");
    let built = Built { agentos: Some(release.join("agentos")), ..Built::default() };
    let sandbox = Sandbox::prepare(&root, &built, Runner::caller())?;
    let mut bench = Command::new(release.join("agentos-bench"));
    sandbox.set_environment(&mut bench);
    // Its working directory stays the caller's, so that `--json FILE` means what the caller means.
    let status = bench.args(arguments).stdin(Stdio::null()).status();
    sandbox.remove();
    let status = status?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(ExitCode::from(code)),
        None => Err(format!("the bench ended with {status}").into()),
    }
}
