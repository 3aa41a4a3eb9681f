//! Where the project lies on this machine, and the cargo that builds it.

use crate::Failure;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the source tree. Cargo names the directory of this package when it runs us; a test executable
/// that was moved away is told by the same variable.
pub(crate) fn root() -> Result<PathBuf, Failure> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = package.parent().ok_or("the xtask package has no parent directory")?;
    Ok(root.to_path_buf())
}

/// The cargo that started us, so that a toolchain chosen with `cargo +NAME` stays chosen.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// What cargo knows of the workspace, without resolving dependencies.
pub(crate) fn metadata(root: &Path) -> Result<serde_json::Value, Failure> {
    let output = cargo(root)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
