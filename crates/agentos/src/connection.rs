//! One HTTP/2 connection to one sidecar.
//!
//! ```text
//! dial ──► Connection ──► (socket gone, or closed by us) ──► every later call fails
//! ```
//!
//! The generated clients run directly on h2, the protocol without a client around it. hyper's client would add a task
//! for every call and send its head in a packet of its own before its body, and tonic's channel a second queue and a
//! reconnecting task; a new connection means new leases and so new VMs, so reconnecting below the handles would only
//! hide that they are gone.

mod driver;
mod thread;
mod transport;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agentos_proto::v1::filesystem_service_client::FilesystemServiceClient;
use agentos_proto::v1::mount_service_client::MountServiceClient;
use agentos_proto::v1::network_service_client::NetworkServiceClient;
use agentos_proto::v1::process_service_client::ProcessServiceClient;
use agentos_proto::v1::session_service_client::SessionServiceClient;
use agentos_proto::v1::session_store_service_client::SessionStoreServiceClient;
use agentos_proto::v1::shell_service_client::ShellServiceClient;
use agentos_proto::v1::sidecar_service_client::SidecarServiceClient;
use agentos_proto::v1::tool_service_client::ToolServiceClient;
use agentos_proto::v1::vm_service_client::VmServiceClient;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::watch;

use self::driver::Driver;
use self::transport::Transport;

/// What one stream may have in flight towards us: a whole 4 MiB file, with room to spare, without waiting.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Readers that are slow hold their stream's window; all together they must not stop the other calls.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
const _: () = assert!(CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES >= 128);
/// Fewer, larger frames: a 1 MiB chunk of a file is one.
const FRAME_BYTES: u32 = 1 << 20;
/// What is buffered of one request before it waits for the socket.
const SEND_BUFFER_BYTES: usize = 2 << 20;

#[derive(Debug, Error)]
pub(crate) enum DialError {
    #[error("cannot start the thread that sidecars are heard on")]
    Thread(#[source] std::io::Error),
    #[error("cannot connect to the sidecar's socket {path}")]
    Connect { path: String, source: std::io::Error },
    #[error("the process behind the socket {path} does not speak HTTP/2")]
    Handshake { path: String, source: h2::Error },
}

impl DialError {
    /// Nobody serves this socket: it is absent, or its sidecar has ended.
    pub(crate) fn nobody_home(&self) -> bool {
        use std::io::ErrorKind;
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
    }
}

/// A connection to a sidecar; clones share it, and it closes when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Transport,
    origin: http::Uri,
    closed_by_us: AtomicBool,
    gone: watch::Receiver<bool>,
}

/// Ends a connection with the task that holds this: its own, or one on the runtime that dialled it. What handles do when
/// they are dropped is done on that runtime, and without it nobody would give their VMs back.
struct Bond {
    driver: Driver,
    announce: Arc<watch::Sender<bool>>,
}

impl Drop for Bond {
    fn drop(&mut self) {
        self.driver.stop();
        self.announce.send_replace(true);
    }
}

impl Connection {
    pub(crate) async fn dial(socket: &Path) -> Result<Self, DialError> {
        let path = socket.display().to_string();
        let connect_error = |source| DialError::Connect { path: path.clone(), source };
        let thread = thread::handle().map_err(DialError::Thread)?;
        let dialled = thread.spawn(Self::dial_here(socket.to_owned()));
        // The thread ends with the process, so that only a panic is an error here.
        let (connection, announce) =
            dialled.await.map_err(|error| connect_error(std::io::Error::other(error)))??;
        let bond = Bond { driver: connection.shared.transport.driver.clone(), announce };
        let mut gone = connection.gone();
        tokio::spawn(async move {
            let _bond = bond;
            // Its sender is held by the bond.
            let _ = gone.wait_for(|gone| *gone).await;
        });
        Ok(connection)
    }

    async fn dial_here(socket: PathBuf) -> Result<(Self, Arc<watch::Sender<bool>>), DialError> {
        let path = || socket.display().to_string();
        let stream = UnixStream::connect(&socket)
            .await
            .map_err(|source| DialError::Connect { path: path(), source })?;
        let (send, machine) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|source| DialError::Handshake { path: path(), source })?;
        let (announce, gone) = watch::channel(false);
        let announce = Arc::new(announce);
        let driver = Driver::new(machine);
        let bond = Bond { driver: driver.clone(), announce: Arc::clone(&announce) };
        // Ends by itself when the last handle is gone and no call is in flight.
        tokio::spawn(async move { bond.driver.run().await });
        let shared = Shared {
            transport: Transport { send, driver },
            origin: http::Uri::from_static("http://agentos"),
            closed_by_us: AtomicBool::new(false),
            gone,
        };
        Ok((Self { shared: Arc::new(shared) }, announce))
    }

    /// Ends every call in flight. Later calls fail as closed, not as the sidecar's death.
    pub(crate) fn close(&self) {
        self.shared.closed_by_us.store(true, Ordering::Release);
        self.shared.transport.driver.stop();
    }

    pub(crate) fn was_closed(&self) -> bool {
        self.shared.closed_by_us.load(Ordering::Acquire)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.was_closed() || self.shared.transport.driver.has_ended()
    }

    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.shared.gone.clone()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("gone", &self.is_gone()).finish_non_exhaustive()
    }
}

/// One method per service. Message size is bounded by what the calls allow, not by tonic's 4 MiB default.
macro_rules! clients {
    ($($name:ident: $client:ident),* $(,)?) => {
        impl Connection {
            $(pub(crate) fn $name(&self) -> $client<Transport> {
                $client::with_origin(self.shared.transport.clone(), self.shared.origin.clone())
                    .max_decoding_message_size(usize::MAX)
            })*
        }
    };
}

clients! {
    sidecar: SidecarServiceClient,
    vm: VmServiceClient,
    mount: MountServiceClient,
    filesystem: FilesystemServiceClient,
    process: ProcessServiceClient,
    shell: ShellServiceClient,
    network: NetworkServiceClient,
    session: SessionServiceClient,
    session_store: SessionStoreServiceClient,
    tool: ToolServiceClient,
}
