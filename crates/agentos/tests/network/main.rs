//! What leaves a VM, and what doesn't.
//!
//! The upstream hosts are network namespaces around the machine that the sidecar runs on, the clients in the VM are real,
//! and the witness is a packet capture. Every refusal has its control: the same attempt outside of a VM, or under a policy
//! that permits it, succeeds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod claims;
mod clients;
mod connections;
mod host;
#[allow(dead_code, reason = "the tests of secrets use the rest")]
mod lab;
mod laboratory;
mod names;
mod neighbours;
mod public;
#[path = "../support/mod.rs"]
mod support;
mod websockets;
