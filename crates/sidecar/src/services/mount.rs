//! Live mounts.

use std::sync::Arc;

use agentos_proto::v1::{self, mount_service_server::MountService};
use agentos_vm::mount::{Mounter, Unmounted};
use tonic::{Request, Response, Status};

use crate::convert::mount::mount_options;
use crate::errors::{Failure, of_vm};
use crate::host::Host;

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
        hosted.vm.mount_fs(mount_options(mount)?, Mounter::User).await.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::MountFsResponse {}))
    }

    async fn unmount_fs(
        &self,
        request: Request<v1::UnmountFsRequest>,
    ) -> Result<Response<v1::UnmountFsResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let unmounted = hosted.vm.unmount_fs(request.path.as_bytes(), Mounter::User).await;
        let unmounted = unmounted.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::UnmountFsResponse { busy: unmounted == Unmounted::Busy }))
    }
}
