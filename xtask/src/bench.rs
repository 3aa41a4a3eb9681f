//! `cargo xtask bench`.

use crate::Failure;
use std::process::ExitCode;

pub(crate) fn run(_arguments: &[String]) -> Result<ExitCode, Failure> {
    Err("the bench program comes with the SDK".into())
}
