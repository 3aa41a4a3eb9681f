//! Secrets that never enter a VM: what leaves with them, and that nobody in there has them.
//!
//! The hosts around the machine bear the names of real ones and have certificates of an authority that the sidecar is
//! told to believe. The agent is the real one; behind the look-alikes of its providers is the offline model. What a
//! look-alike was sent is the witness.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod clients;
mod gateway;
mod interception;
#[path = "../network/lab/mod.rs"]
#[allow(dead_code, reason = "the tests of the network use the rest")]
mod lab;
mod provider;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
mod theft;
