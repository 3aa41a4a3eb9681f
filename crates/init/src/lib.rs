//! The launcher and PID 1: the only code of ours that runs with a VM's namespaces around it.
//!
//! ```text
//! sidecar ─ exec ─► launcher (stage 1: a mount namespace and a read-only executable of its own)
//!                      └ exec ─► launcher (stage 2) ─ clone3 per VM ─► boot ─► init's event loop
//! ```
//! In reading order: [`launcher`] prepares the host's side once and clones VMs, [`boot`] turns a clone into a VM,
//! [`event_loop`] is PID 1 from then on, with one file per noun of the guest protocol: [`process`], [`filesystem`],
//! [`mounts`], [`network`]. [`errands`] keeps what may hang off the loop. [`wire`] is how all of them talk.
//!
//! There is no tokio and no gRPC here, and a clone never execs: its memory is a copy of the launcher's few pages.

mod boot;
mod control;
mod errands;
mod event_loop;
pub(crate) mod filesystem;
mod launcher;
mod mounts;
mod network;
mod process;
mod wire;

use std::process::ExitCode;

/// The name under which the sidecar execs the launcher.
pub const LAUNCHER_NAME: &str = "agentos-init";

/// The name the launcher gives itself once its executable can't be written to through /proc any more.
const PREPARED_NAME: &std::ffi::CStr = c"agentos-launcher";

/// Runs the launcher if the process was started as one, by its name. The control socket is its stdin.
///
/// Call it first of all in `main`: it must find no thread and little memory.
pub fn run_if_launcher(argument0: Option<&std::ffi::OsStr>) -> Option<ExitCode> {
    let name = argument0?.to_str()?;
    if name == LAUNCHER_NAME {
        Some(launcher::enter())
    } else if name.as_bytes() == PREPARED_NAME.to_bytes() {
        Some(launcher::run())
    } else {
        None
    }
}
