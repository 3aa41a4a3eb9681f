//! Live mounts.

use std::sync::Arc;

use agentos_proto::v1::{self, mount_service_server::MountService};
use agentos_vm::mount::Unmounted;
use tonic::{Request, Response, Status};

use crate::convert::mount::mount_options;
use crate::errors::{Failure, of_vm};
use crate::host::Host;

/// Where the sidecar itself mounts for agents.
const OURS: [&str; 2] = ["/opt/agentos", "/etc/agentos"];

#[derive(Debug)]
pub(super) struct Mounts(pub(super) Arc<Host>);

#[tonic::async_trait]
impl MountService for Mounts {
    async fn mount_fs(
        &self,
        request: Request<v1::MountFsRequest>,
    ) -> Result<Response<v1::MountFsResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let mount = request.mount.ok_or_else(|| Failure::invalid("mount", "Nothing to mount is named"))?;
        hosted.vm.mount_fs(mount_options(mount)?).await.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::MountFsResponse {}))
    }

    async fn unmount_fs(
        &self,
        request: Request<v1::UnmountFsRequest>,
    ) -> Result<Response<v1::UnmountFsResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        if OURS.iter().any(|ours| request.path.starts_with(ours)) {
            let message =
                format!("Agents and their instructions need what is mounted there: {}", request.path);
            return Err(Failure::invalid("path", message).into());
        }
        let unmounted = hosted.vm.unmount_fs(request.path.as_bytes()).await.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::UnmountFsResponse { busy: unmounted == Unmounted::Busy }))
    }
}
