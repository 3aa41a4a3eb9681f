//! The Linux facilities that VMs are made of, behind safe functions. The only crate of the workspace with `unsafe`.
//!
//! In reading order: [`seqpacket`] moves packets and descriptors between processes, [`clone`] makes the first process
//! of a VM, [`mount`] builds its file tree, [`network`] brings its loopback up, [`credentials`] and [`seccomp`] take away
//! what a guest must not have, and [`spawn`] starts a program with all of that in place. [`label`] finds what a program
//! has started; [`signal`] and [`terminal`] serve PID 1's event loop.
//!
//! Nothing here knows the project's nouns: a function does one thing to the calling process, or to a descriptor.

pub mod clone;
pub mod credentials;
pub mod label;
pub mod memory;
pub mod mount;
pub mod network;
pub mod seccomp;
pub mod seqpacket;
pub mod signal;
pub mod spawn;
pub mod terminal;

pub use rustix::io::Errno;
