//! The Rust SDK of agentOS: isolated Linux VMs that start in milliseconds, with coding agents at work in them.
//!
//! ```no_run
//! use agentos::{AgentOs, AgentOsOptions, Mount, Stdin};
//! use std::time::Duration;
//!
//! # async fn quickstart() -> Result<(), Box<dyn std::error::Error>> {
//! let options = AgentOsOptions::default()
//!     .mount("/work", Mount::host_dir("./src").read_write())
//!     .env("RUST_LOG", "debug");
//! let vm = AgentOs::create(options).await?; // on the default pool's sidecar, started where it does not run
//!
//! let out = vm.exec("echo hi").timeout(Duration::from_secs(5)).await?;
//! assert_eq!(out.stdout, b"hi\n");
//!
//! vm.write_file("/home/user/a.txt", "text").await?;
//! let bytes = vm.read_file("/home/user/a.txt").await?;
//!
//! let server = vm.spawn("node", ["server.js"]).stdin(Stdin::Piped).await?;
//! let response = vm.fetch(3000, http::Request::get("/health").body(agentos::Body::empty())?).await?;
//!
//! let session = vm.create_session("pi").await?;
//! let reply = session.prompt("Write a hello world in TypeScript to hello.ts").await?;
//! println!("{} ({})", reply.text, reply.model);
//! session.close().await?;
//! vm.dispose().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! VMs are hosted by a daemon, the sidecar (`agentos sidecar`), which this crate finds and starts as needed and talks
//! to over a unix socket. All calls need a running tokio runtime;
//! handles live on the one that made them. `exec`, `spawn`, `open_shell`, `create_session`,
//! `prompt` and a few more return builders to be awaited; nothing happens before that.
//!
//! # Ownership
//!
//! Every handle keeps its VM alive, and dropping the last one disposes the VM in the background; drop never blocks.
//! Dropping a process, shell or session handle ends nothing else. Dropping the future of `exec` kills its process
//! group, of `create` and `create_session` undoes what they began, of `write_file` leaves the old file or the new one,
//! of a prompt cancels the turn. `next()` of every stream is cancellation safe.
//!
//! # Errors
//!
//! There is one [`Error`]. Branch on [`Error::kind`]; messages are for people.

#![warn(missing_docs)]

mod agent;
mod agent_config;
mod builder;
mod bytes_in;
mod connection;
mod convert;
mod discovery;
mod egress;
mod error;
mod feed;
mod filesystem;
mod forward;
mod launch;
mod mount;
mod network;
mod options;
mod output;
mod policy;
mod ports;
mod process;
mod process_list;
mod prompt;
mod secret;
mod session;
mod session_events;
mod session_options;
mod session_state;
mod session_store;
mod shell;
mod sidecar;
mod terminal;
mod tool;
mod tool_calls;
mod vm;
mod vm_connection;

/// For fuzz targets, and only where these are built.
#[cfg(fuzzing)]
pub mod fuzz {
    /// See the module that it is in.
    pub fn policy_file(text: &str) {
        crate::policy::fuzz::policy_file(text);
    }
}

pub use agent::{AgentProvider, AgentRegistryEntry, InstallAgent};
pub use agent_config::{AgentConfig, AgentInstructions, PreparedInstructions};
pub use bytes_in::{Content, GuestPath};
pub use egress::{
    DestinationStats, NetworkEvent, NetworkEventKind, NetworkEvents, NetworkLimit, NetworkRefusal,
    NetworkStats,
};
pub use error::{Error, ErrorKind, JsonRpcError, Result};
pub use filesystem::{
    BatchReadResult, BatchWriteEntry, BatchWriteResult, Delete, DirEntry, FileType, Mkdir, ReaddirRecursive,
    VirtualStat,
};
pub use forward::{ForwardPort, HostAddr, PortForward};
pub use mount::{Mount, Unmounted};
pub use network::Body;
pub use options::{
    AgentOsCreateSidecarOptions, AgentOsOptions, AgentOsSharedSidecarOptions, AgentOsSidecarConfig, Base,
    Limits, ModelChoice, Storage,
};
pub use output::OutputStream;
pub use policy::{EgressPolicy, EgressProtocol, EgressRule};
pub use ports::{ListeningPort, PortEvent, PortEvents, PortOwner, PortProtocol};
pub use process::{Exec, ExecResult, Exit, Process, Spawn, Stdin};
pub use process_list::{ProcessDriver, ProcessInfo, ProcessStatus, ProcessTreeNode, SpawnedProcessInfo};
pub use prompt::{Prompt, PromptResult, Prompting};
pub use secret::Secret;
pub use session::{JsonRpcResponse, ModelKind, Session, SessionInfo};
pub use session_events::{
    PermissionReply, PermissionRequest, PermissionRequests, SessionEvent, SessionEvents,
};
pub use session_options::{
    AgentInstall, CreateSession, InstallProgress, McpServer, PermissionPolicy, PermissionRule,
};
pub use session_state::{
    AgentCapabilities, AgentInfo, AllowedValue, PromptCapabilities, SessionConfigOption, SessionMode,
    SessionModeState,
};
pub use session_store::{
    ListStoredSessions, ReadHistory, SessionEnd, SessionHistory, StoredSession, StoredSessionPage,
};
pub use shell::{OpenShell, Shell};
pub use sidecar::{AgentOsSidecar, AgentOsSidecarDescription, SidecarPlacement, SidecarState};
pub use terminal::ConnectTerminal;
pub use tool::{HostTool, ToolKit, ToolPermissions};
pub use vm::{AgentOs, Facility, FacilityState, VmInfo, VmState};
pub use vm_connection::VmConnection;
