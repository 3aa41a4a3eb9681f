//! The border between a guest and its upstreams, with real TLS on both sides.
//!
//! The guest is one end of a pipe, as the packet stack gives it; the upstream a listener on the loopback interface.
//! Most tests play the upstream themselves, byte by byte: what it saw is the witness of what left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod bodies;
mod gateway;
mod heads;
mod interception;
mod plain;
mod support;
mod websocket;
