//! The launcher: a small, single-threaded process that clones VMs for one sidecar.
//!
//! ```text
//! enter ── own namespaces, own read-only executable ── exec ──► run
//! run   ── prepare (template, device nodes, cgroups) ── Started ──► loop:
//!            Boot     clone, write maps, stage mounts, "go"        (never waits for the clone)
//!            opener   trees of host directories ──► stage, "go"    (never waits for a file system)
//!            clone    hangs up   ──► clear stage
//!            clone    exits      ──► reap, remove cgroups, Exited
//! ```
//! Nothing it mounts shows on the host: its mount namespace only receives from the host, and goes when it dies. It
//! exits when the sidecar's socket hangs up, and every VM with it: each has a death signal bound to this process.

mod cgroups;
mod clones;
mod idmap;
mod openers;
mod prepare;
mod stage;
mod template;

use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use agentos_guest_protocol::launcher::{LauncherEvent, LauncherRequest};
use agentos_linux::clone::SingleThreaded;
use rustix::event::epoll;

use crate::wire::{self, WireError};
use clones::Clones;
use openers::Client;

pub(crate) use prepare::{PLAIN, VM_DISK, enter, tun};
pub(crate) use stage::Staged;

/// What an epoll event is about, packed into its data word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Control,
    /// The clone has something to say on its boot socket.
    Boot(u64),
    /// The clone has exited.
    Exit(u64),
    /// An opener of host directories has something to say.
    Opener(Client),
    /// An opener has exited.
    OpenerExit(i32),
    /// It is time to look at what has waited.
    Timer,
}

impl Source {
    fn pack(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::Timer => 1,
            Self::Boot(vm) => vm << 3 | 2,
            Self::Exit(vm) => vm << 3 | 3,
            Self::Opener(Client::Vm(vm)) => vm << 3 | 4,
            Self::Opener(Client::Mount(token)) => u64::from(token) << 3 | 5,
            Self::OpenerExit(pid) => (pid as u64) << 3 | 6,
        }
    }

    fn unpack(word: u64) -> Self {
        match word & 7 {
            2 => Self::Boot(word >> 3),
            3 => Self::Exit(word >> 3),
            4 => Self::Opener(Client::Vm(word >> 3)),
            5 => Self::Opener(Client::Mount((word >> 3) as u32)),
            6 => Self::OpenerExit((word >> 3) as i32),
            _ if word == 0 => Self::Control,
            _ => Self::Timer,
        }
    }
}

/// The second stage: prepares and serves until the sidecar hangs up.
pub(crate) fn run() -> ExitCode {
    let control = rustix::stdio::stdin();
    // Bound to the sidecar's main thread, which lives as long as the sidecar.
    if agentos_linux::signal::die_with_parent().is_err() {
        return ExitCode::FAILURE;
    }
    // Every process of every VM inherits from here.
    agentos_linux::signal::stop_ignoring();
    match serve(control) {
        Ok(()) | Err(ServeError::Wire(WireError::HungUp)) => ExitCode::SUCCESS,
        Err(ServeError::Prepare(failure)) => {
            report(control, LauncherEvent::StartFailed(failure));
            ExitCode::FAILURE
        }
        // The sidecar sees the hang-up and has its own log; there is nobody else to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the launcher can't prepare itself")]
    Prepare(agentos_guest_protocol::launcher::BootFailure),
    #[error("the sidecar's socket failed")]
    Wire(#[from] WireError),
    #[error("epoll failed")]
    Poll(#[from] agentos_linux::Errno),
}

fn serve(control: BorrowedFd<'static>) -> Result<(), ServeError> {
    let alone = SingleThreaded::check()?;
    let prepared = prepare::prepare(&alone).map_err(ServeError::Prepare)?;
    wire::send(control, &LauncherEvent::Started(prepared.findings.clone()), &[])?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, control, epoll::EventData::new_u64(Source::Control.pack()), epoll::EventFlags::IN)?;
    let mut clones = Clones::new(control, poll, prepared, alone)?;
    let mut buffer = Vec::new();
    loop {
        for source in clones.wait()? {
            match source {
                Source::Control => {
                    if let Some((request, descriptors)) = wire::receive(control, &mut buffer)? {
                        handle(&mut clones, request, descriptors)?;
                    }
                }
                Source::Boot(vm) => clones.boot_message(vm)?,
                Source::Exit(vm) => clones.exited(vm)?,
                Source::Opener(client) => clones.opener_message(client)?,
                Source::OpenerExit(pid) => clones.opener_exited(pid)?,
                Source::Timer => clones.timers()?,
            }
        }
    }
}

fn handle(
    clones: &mut Clones,
    request: LauncherRequest,
    descriptors: Vec<std::os::fd::OwnedFd>,
) -> Result<(), WireError> {
    match request {
        LauncherRequest::Boot { vm, plan } => clones.boot(vm, *plan, descriptors),
        LauncherRequest::OpenHostDir { vm, token, host_dir } => clones.open_host_dir(vm, token, &host_dir),
        LauncherRequest::Kill { vm } => {
            clones.kill(vm);
            Ok(())
        }
    }
}

/// Tells the sidecar something where its absence changes nothing.
fn report(control: BorrowedFd<'_>, event: LauncherEvent) {
    // A sidecar that is gone needs no report; its hang-up ends the launcher.
    drop(wire::send(control, &event, &[]));
}
