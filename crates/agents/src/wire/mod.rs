//! Agents' protocols, without any I/O: bytes in, meanings out.
//!
//! [`lines`] cuts a byte stream into bounded lines; [`acp`] writes the shapes of the Agent Client Protocol that every
//! session speaks outwards; [`pi_rpc`] translates pi's own JSON lines to those shapes. Whatever an agent sends ends as
//! a value here: a broken line is counted, an unknown record is kept or left out, nothing panics.

pub mod acp;
pub mod lines;
pub mod pi_rpc;
