//! One file per gRPC service: decode, call, encode.

mod filesystem;
mod mount;
mod network;
mod process;
mod session;
mod session_store;
mod shell;
mod sidecar;
mod tool;
mod vm;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;

use agentos_proto::v1;
use futures_core::Stream;
use tonic::Status;
use tonic::transport::Server;
use tonic::transport::server::Router;
use v1::filesystem_service_server::FilesystemServiceServer;
use v1::mount_service_server::MountServiceServer;
use v1::network_service_server::NetworkServiceServer;
use v1::process_service_server::ProcessServiceServer;
use v1::session_service_server::SessionServiceServer;
use v1::session_store_service_server::SessionStoreServiceServer;
use v1::shell_service_server::ShellServiceServer;
use v1::sidecar_service_server::SidecarServiceServer;
use v1::tool_service_server::ToolServiceServer;
use v1::vm_service_server::VmServiceServer;

use crate::host::Host;

/// The largest message we take: stdin of an exec and prompts with images travel in one. Files and stdin of spawned
/// processes come in chunks.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// The largest piece of a body in one message: one HTTP/2 frame, so that other streams of the connection get their
/// turn.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// Windows as wide as the largest thing that should not wait for an acknowledgement.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
const FRAME_BYTES: u32 = 1 << 20;

/// One connection carries every stream of a program: readers, waits, leases of a thousand VMs.
const CONCURRENT_STREAMS: u32 = 1 << 20;

/// Resets are how calls are cancelled; the peer is our own user, so a flood of them is no attack.
const PENDING_RESETS: usize = 1 << 16;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! services {
    ($server:expr, $host:expr; $($wrapper:ident($service:path)),+ $(,)?) => {
        $server$(.add_service(
            $wrapper::new($service(Arc::clone($host)))
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        ))+
    };
}

/// All services, over HTTP/2 as one machine speaks it with itself.
pub(crate) fn router(host: &Arc<Host>) -> Router {
    // No keep-alive pings: over a unix socket the kernel tells when a peer is gone, and a client that is merely
    // stopped (a debugger, Ctrl-Z) shall not lose its VMs.
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(PENDING_RESETS));
    services!(server, host;
        SidecarServiceServer(sidecar::SidecarServices),
        VmServiceServer(vm::Vms),
        ProcessServiceServer(process::Processes),
        FilesystemServiceServer(filesystem::Files),
        MountServiceServer(mount::Mounts),
        ShellServiceServer(shell::Shells),
        NetworkServiceServer(network::Network),
        SessionServiceServer(session::AgentSessions),
        SessionStoreServiceServer(session_store::StoredSessions),
        ToolServiceServer(tool::Tools),
    )
}
