//! What the sidecar, the launcher and init say to one another, without saying how it travels.
//!
//! In reading order: [`frame`] turns a message into the bytes of one packet and back, [`launcher`] is the talk
//! between the sidecar and the launcher, [`init`] the talk between the sidecar and one VM's PID 1, with one file
//! per noun: [`process`], [`filesystem`], [`mount`], [`network`]. [`path`] is the rule that both ends have for paths.
//!
//! The transport is a `SOCK_SEQPACKET` unix socket: one frame is one packet, descriptors ride beside it. This crate
//! does no I/O and knows no socket, so that every byte that comes from a guest can be fuzzed in memory.

pub mod filesystem;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod init;
pub mod launcher;
pub mod mount;
pub mod network;
pub mod path;
pub mod process;

pub use frame::{DecodeError, EncodeError, Encoded, Frame, decode, decode_spilled, encode};

/// A Linux string: a path, an argument, an environment entry. Never holds a NUL where the kernel would stop at one;
/// whoever parses it checks.
pub type Bytes = serde_bytes::ByteBuf;
