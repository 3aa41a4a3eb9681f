//! Attempts to get out of a VM, to keep what is not the guest's, and to take from others.
//!
//! Each is made inside by the guest's plain user and by the guest's root, and judged on both sides: what the guest
//! got, and what a witness on the host saw. Each has its control, the same attempt outside of a VM, so that a test
//! which can't fail is seen. Where the user who runs the tests may not do it outside either, the control says what
//! that user gets instead: then the run as root is the one that proves something.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod attempts;
mod budgets;
mod host_files;
mod kernel;
mod leftovers;
mod processes;
mod sockets;
mod storage;
#[path = "../support/mod.rs"]
mod support;
mod walls;
mod writable_mounts;
