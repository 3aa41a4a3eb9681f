//! The native half of the TypeScript SDK: the Rust SDK in shapes that Node-API can carry, and nothing else. It has no
//! protocol code, and no behaviour that a caller could notice beside that of the `agentos` crate.
//!
//! ```text
//! JavaScript thread                      thread `agentos-node`
//!   synchronous call ──block_on──────────► future of the Rust SDK
//!   call with a promise ──spawn──────────► future ──► promise settled, back on the JavaScript thread
//!   handler ◄──threadsafe function──────── output and events, paced by what the handler has taken
//! ```
//!
//! - [`runtime`]: the thread that the Rust SDK's futures run on
//! - [`promise`]: a future as a JavaScript promise; [`failure`]: an error as a JavaScript error
//! - [`listener`]: a JavaScript function that is told things without anybody waiting for it
//! - [`options`]: what comes in; [`vm`], [`process`], [`session`], [`events`], [`permission`], [`agent`]: the calls by noun
//!
//! What comes in has been looked at by the TypeScript half, which is the only caller.

#![allow(
    unsafe_code,
    reason = "napi's macros write the functions that Node calls; none is written by hand here, which tidy checks"
)]
#![allow(unreachable_pub, reason = "napi's macros take public items only; all are reached by their exports")]
#![cfg_attr(test, allow(dead_code, reason = "napi's macros export nothing where tests are compiled"))]
#![allow(
    missing_debug_implementations,
    reason = "nobody prints them, and some hold values that may be secrets"
)]

mod agent;
mod events;
mod failure;
mod listener;
mod options;
mod permission;
mod process;
mod promise;
mod runtime;
mod session;
mod vm;
