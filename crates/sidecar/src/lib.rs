//! The daemon that hosts VMs.
//!
//! In reading order: [`options`] is what it is started with, [`socket`] where it listens, [`leftovers`] what a dead
//! one left; [`launch`] is the main thread, which starts launchers and nothing else; [`daemon`] runs on the other
//! threads from the first client to the last, [`client`] is one connection. [`registry`] knows who holds which VM,
//! [`host`] does what the registry allows. [`services`] has one file per gRPC service: decode with [`convert`], call,
//! encode, failures through [`errors`]. Into a VM lead [`fetch`] (HTTP), [`tunnel`] (bytes) and [`forwards`] (addresses
//! of the host); [`ports`] watches what listens there. [`sessions`] puts agents into VMs, with [`demo_model`] where no provider is
//! set up; [`tools`] are what programs in a VM can have the client do. [`guest_listener`] is how these two are reached from
//! inside. [`doctor`] explains hosts that can't.
//!
//! ```text
//! main thread ── execs ──► launcher ──► VMs           (PDEATHSIG is the spawning thread's, hence the main thread)
//! daemon thread: accept ─► services ─► host ─► agentos_vm, agentos_agents
//! ```
//! Nothing here makes a namespace, resolves a path of a guest or parses its bytes; libraries read what it says as HTTP and MCP.

mod client;
mod convert;
mod daemon;
mod demo_model;
mod doctor;
mod errors;
mod fetch;
mod forwards;
mod guest_listener;
mod host;
mod launch;
mod leftovers;
mod options;
mod ports;
mod registry;
mod secrets;
mod services;
mod sessions;
mod socket;
mod tools;
mod tunnel;

use std::io;
use std::path::PathBuf;

pub use options::{DEFAULT_LINGER, DEFAULT_POOL, Options};
pub use tools::{
    ADDRESS as HOST_TOOLS_ADDRESS, COMMAND as HOST_TOOLS_COMMAND,
    MAX_REQUEST_BYTES as HOST_TOOLS_MAX_REQUEST_BYTES, PATH as HOST_TOOLS_PATH,
};

/// This build; clients compare it with their own.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a sidecar could not be started, or not end well.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    #[error("not a name for a pool or sidecar: {name:?} (letters, digits, '-', '_' and '.', at most 64)")]
    Name { name: String },
    #[error("directory {path} can't be used", path = path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    RuntimeDirectory(#[from] agentos_proto::rendezvous::DirectoryError),
    #[error("socket path has {len} bytes, 107 are possible: {path}", path = path.display())]
    SocketPathTooLong { path: PathBuf, len: usize },
    #[error("another sidecar serves {path}", path = path.display())]
    AlreadyRunning { path: PathBuf },
    #[error("can't listen on {path}", path = path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't announce that the sidecar is ready")]
    Announce(#[source] io::Error),
    #[error("can't start the daemon's threads")]
    Threads(#[source] io::Error),
    #[error("the server failed")]
    Serve(#[source] tonic::transport::Error),
    #[error("the daemon's thread panicked")]
    Panicked,
}

/// Serves until the last client and the last kept VM are gone, or SIGTERM or SIGINT comes. To be called on the
/// process's main thread before any other exists.
pub fn run(options: Options) -> Result<(), SidecarError> {
    daemon::run(options::Config::resolve(options)?)
}
