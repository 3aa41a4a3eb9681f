//! Sessions with the scripted agent, which misbehaves in one way per story, and with recordings of real ones. Whatever
//! an agent does, it ends in a typed error in bounded time, and the session beside it goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../fake_acp/mod.rs"]
mod fake_acp;
mod permissions;
mod place;
mod replay;
mod restore;
mod silence;
mod start;
mod turns;
mod volume;
mod workspace;
