//! Host tools: functions of a client that the programs in a VM can call.
//!
//! ```text
//! agent ─ MCP over HTTP ─┐
//! agent ─ MCP over stdio ┼─► ADDRESS in the VM ─► server ─► desk ─► ServeTools ─► the client's handler
//! `agentos-tools call` ──┘                         │        allowed? does the input fit? is there room?
//!                                                 offer     what there is, checked when the VM is made
//! ```
//! All ways in are the same MCP server, which listens on the VM's loopback device, so that whoever calls has passed the
//! same checks. It cannot tell programs of the VM apart: a tool is for all of them, and what must not be called is denied
//! by the VM's own [permissions](offer::ToolOffer), whatever an agent's permissions are.

mod desk;
mod offer;
mod request;
mod schema;
mod server;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentos_agents::plan::HostTools;
use agentos_proto::v1::ErrorKind;
use agentos_vm::Vm;
use agentos_vm::mount::Mounter;
use agentos_vm::spec::{MountKind, MountOptions};
use tokio::task::JoinHandle;

pub(crate) use desk::{Outcome, ServeError, Serving, ToolDesk, ToolEvent};
pub(crate) use offer::ToolOffer;

use crate::errors::{self, Failure};

/// Fixed, so that programs in the VM find it without being told.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 41_415);

/// Where MCP is spoken there.
pub const PATH: &str = "/mcp";

/// Of one request. Arguments of a tool are written by models.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The directory of the command in the VM, on PATH where there are tools.
pub(crate) const COMMAND_DIR: &str = "/opt/agentos/bin";

/// The command, which is this very binary.
pub const COMMAND: &str = "agentos-tools";

/// How agents reach the tools.
pub(crate) fn server() -> HostTools {
    HostTools {
        name: COMMAND.to_owned(),
        url: format!("http://{ADDRESS}{PATH}"),
        command: vec![format!("{COMMAND_DIR}/{COMMAND}"), "mcp".to_owned()],
    }
}

/// The tools of a VM, reachable in it. Dropped, they are not any more.
#[derive(Debug)]
pub(crate) struct VmTools {
    desk: Arc<ToolDesk>,
    // Holds the VM, as every handle does.
    server: JoinHandle<()>,
}

impl VmTools {
    pub(crate) fn desk(&self) -> &Arc<ToolDesk> {
        &self.desk
    }
}

impl Drop for VmTools {
    fn drop(&mut self) {
        self.server.abort();
        self.desk.close();
    }
}

/// The file of this program, unless an upgrade or a build has put another one in its place: that may speak otherwise.
/// Agents reach the tools over HTTP all the same.
fn own_binary() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?;
    let file = |path: &Path| fs::metadata(path).map(|of| (of.dev(), of.ino()));
    match (file(Path::new("/proc/self/exe")), file(&path)) {
        (Ok(running), Ok(named)) if running == named => Some(path),
        _ => {
            tracing::warn!(
                path = %path.display(),
                "this program was replaced since it was started: VMs have no {COMMAND} until it is started anew"
            );
            None
        }
    }
}

/// Makes a VM's tools reachable in it.
pub(crate) async fn open(vm: &Vm, offer: ToolOffer) -> Result<VmTools, Failure> {
    if let Some(binary) = own_binary() {
        let mount = MountOptions {
            path: format!("{COMMAND_DIR}/{COMMAND}").into_bytes(),
            kind: MountKind::HostFile { source: binary.into_os_string().into_encoded_bytes() },
        };
        vm.mount_fs(mount, Mounter::Sidecar).await?;
    }
    let listener = vm.listen(ADDRESS).await.map_err(|error| {
        let message =
            format!("host tools can't be reached at {ADDRESS} in the VM: {}", errors::chain(&error));
        Failure::new(ErrorKind::Internal, COMMAND, message)
    })?;
    let desk = Arc::new(ToolDesk::new(offer));
    let (served, vm) = (Arc::clone(&desk), vm.clone());
    let server = tokio::spawn(async move {
        // The listener holds the VM's network namespace; it must not outlive the VM.
        tokio::select! {
            () = server::serve(listener, &served) => {}
            _ = vm.gone() => {}
        }
        served.close();
    });
    Ok(VmTools { desk, server })
}
