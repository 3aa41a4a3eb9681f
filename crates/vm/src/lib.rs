//! The host side of one VM, and the host's end of the launcher.
//!
//! In reading order: a wish becomes a [`spec`]; the [`launcher`] boots it with ids from [`ids`]; a [`vm`] is the
//! handle to what came to life, [`storage`] what may outlive it. On it work [`process`] and [`exec`],
//! [`filesystem`], [`shell`], [`mount`] and [`network`], one file per noun; [`forward`] carries ports between the two
//! sides. [`path`] and [`errno`] are the words they share.
//!
//! Behind the handle, `create` makes a VM and `driver`, the one task that owns its control socket, serves it: it takes a
//! `command` from a queue or an `asks` from a drop, and decides by `state`. Bytes of processes flow past it, through
//! `pump` into a `window` and out of `stdin`. Where TLS is intercepted, `trust` lets the VM's programs believe it.
//!
//! The guest is hostile: whatever comes over the control socket is parsed once and bounded, paths of the guest are
//! never resolved here, and a peer that breaks the protocol loses its VM and nothing else.

pub mod errno;
pub mod exec;
pub mod filesystem;
pub mod forward;
pub mod ids;
pub mod launcher;
pub mod mount;
pub mod network;
pub mod path;
pub mod process;
pub mod shell;
pub mod spec;
pub mod storage;
pub mod vm;

mod asks;
mod channel;
mod command;
mod create;
mod driver;
mod output;
mod pipe;
mod pump;
mod state;
mod stdin;
mod sync;
mod trust;
mod window;

#[cfg(test)]
mod tests;

pub use agentos_guest_protocol::launcher::{BootFailure, HostFindings, IdMode};
/// The words of a VM's egress policy; what carries it out stays behind the VM.
pub use agentos_netstack::{address, name, policy};
pub use exec::{Exec, ExecEvent, ExecExit, ExecSpec};
pub use launcher::{Launcher, LauncherDeath, LauncherError};
pub use path::{GuestPath, PathError};
pub use process::{Exit, Process, ProcessSpec, SpawnError, Stdin, StdinError};
pub use shell::{Shell, ShellSpec};
pub use spec::{Host, SpecError, VmOptions, VmSpec};
pub use storage::{StorageError, StorageOptions, StorageProblem};
pub use vm::{CreateError, GoneReason, Unavailable, Vm, VmState};
