//! Generates the messages and services from `proto/agentos/v1`, with protox in place of protoc.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../proto");
    let directory = root.join("agentos/v1");
    println!("cargo:rerun-if-changed={}", directory.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        files.push(entry?.path());
    }
    files.sort();
    let descriptors = protox::compile(&files, [root])?;
    tonic_prost_build::configure()
        // Payloads are shared, not copied, between the socket's buffers and the caller.
        .bytes(".")
        // Shown by hand, without its value.
        .skip_debug(["agentos.v1.Secret"])
        .compile_fds(descriptors)?;
    Ok(())
}
