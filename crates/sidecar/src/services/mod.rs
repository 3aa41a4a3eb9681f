//! One file per gRPC service: decode, call, encode.

mod filesystem;
mod mount;
mod network;
mod process;
mod session;
mod shell;
mod sidecar;
mod vm;

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
use v1::shell_service_server::ShellServiceServer;
use v1::sidecar_service_server::SidecarServiceServer;
use v1::vm_service_server::VmServiceServer;

use crate::host::Host;

/// The largest message we take: stdin of an exec and prompts with images travel in one. Files and stdin of spawned
/// processes come in chunks.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// The largest piece of a body in one message: one HTTP/2 frame, so that other streams of the connection get their
/// turn.
const MAX_CHUNK_BYTES: usize = 1 << 20;

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

pub(crate) fn add_to(mut server: Server, host: &Arc<Host>) -> Router {
    services!(server, host;
        SidecarServiceServer(sidecar::SidecarServices),
        VmServiceServer(vm::Vms),
        ProcessServiceServer(process::Processes),
        FilesystemServiceServer(filesystem::Files),
        MountServiceServer(mount::Mounts),
        ShellServiceServer(shell::Shells),
        NetworkServiceServer(network::Network),
        SessionServiceServer(session::AgentSessions),
    )
}
