//! Sidecar ↔ init, on the VM's control socket.
//!
//! ```text
//! sidecar ◄─ Ready ─────────────────────── init      once, when the VM stands
//! sidecar ◄─ Uplink [+ TUN device] ─────── init      once, before any answer, where the VM has a way out
//! sidecar ── Request{id} [+ descriptors] ─► init
//! sidecar ◄─ Response{id} [+ descriptors] ─ init     exactly one per request, in any order
//! sidecar ◄─ Event ─────────────────────── init      at any time after Ready
//! ```
//! Init ends when the socket hangs up, and every process of the VM with it.

use serde::{Deserialize, Serialize};

use crate::filesystem::{FileFailure, FileRequest, FileResponse};
use crate::launcher::BootFailure;
use crate::mount::MountRequest;
use crate::network::{ListenerEntry, NetworkRequest, SocketOwner};
use crate::process::{ProcessEntry, SignalScope, SpawnFailure, SpawnRequest, Status};

/// Chosen by the sidecar, unique among the requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u32);

/// From the sidecar to init.
#[derive(Debug, Serialize, Deserialize)]
pub struct InitRequest {
    pub id: RequestId,
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Spawn(SpawnRequest),
    /// Answered by [`Response::Done`], also when the process is gone already.
    Signal {
        pid: i32,
        signal: i32,
        scope: SignalScope,
    },
    /// Kills a supervised process with every descendant, daemons included; answered when none is left.
    KillSupervised {
        pid: i32,
    },
    ListProcesses,
    File(FileRequest),
    Mount(MountRequest),
    Network(NetworkRequest),
    /// SIGHUP to the leaders of terminals, SIGTERM to the rest, SIGKILL to what is left after `grace_ms`. Answered
    /// when no process is left; init then exits with 0.
    Shutdown {
        grace_ms: u64,
    },
}

/// From init to the sidecar.
#[derive(Debug, Serialize, Deserialize)]
pub enum InitMessage {
    Ready,
    /// Once, soon after Ready, where the plan has an uplink. Descriptor, where it worked: the TUN device.
    Uplink(Result<(), BootFailure>),
    /// Instead of Ready; init exits after it.
    BootFailed(BootFailure),
    Response {
        id: RequestId,
        response: Result<Response, Failure>,
    },
    Event(Event),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    Done,
    /// The process is forked; [`Event::ExecDone`] follows. Descriptors by [`crate::process::Stdio`]: for pipes the
    /// write end of stdin where it is piped, then the read ends of stdout and stderr; for a terminal its master.
    Spawned {
        pid: i32,
    },
    Processes(Vec<ProcessEntry>),
    File(FileResponse),
    /// The mount was in use: it is detached and goes with its last user.
    UnmountedBusy,
    /// Descriptor: the connected or listening socket.
    Socket,
    Listeners(Vec<ListenerEntry>),
    /// None where the socket is gone, or no process holds it.
    Owner(Option<SocketOwner>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The process could not be forked.
    Spawn(SpawnFailure),
    File(FileFailure),
    /// The call and the kernel's answer.
    System(BootFailure),
    /// Init gave up waiting for a file system that does not answer.
    TimedOut {
        call: String,
    },
    /// So many calls hang in file systems that don't answer that no more are started.
    TooManyStuck,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// Always before the process's [`Event::Exited`].
    ExecDone { pid: i32, result: Result<(), SpawnFailure> },
    /// The process is reaped. Sent for processes of [`Request::Spawn`] alone, not for what they start.
    Exited { pid: i32, status: Status },
}
