//! VMs.

use std::sync::Arc;

use agentos_proto::v1::{self, vm_service_server::VmService};
use tonic::{Request, Response, Status};

use crate::convert::vm::vm_info;
use crate::host::{CreateVm, Host};

#[derive(Debug)]
pub(super) struct Vms(pub(super) Arc<Host>);

#[tonic::async_trait]
impl VmService for Vms {
    async fn create_vm(
        &self,
        request: Request<v1::CreateVmRequest>,
    ) -> Result<Response<v1::CreateVmResponse>, Status> {
        let id = self.0.create(CreateVm::try_from(request.into_inner())?).await?;
        Ok(Response::new(v1::CreateVmResponse { vm_id: id.as_str().to_owned() }))
    }

    async fn attach_vm(
        &self,
        request: Request<v1::AttachVmRequest>,
    ) -> Result<Response<v1::AttachVmResponse>, Status> {
        let id = self.0.find_name(&request.into_inner().name)?;
        Ok(Response::new(v1::AttachVmResponse { vm_id: id.as_str().to_owned() }))
    }

    async fn dispose_vm(
        &self,
        request: Request<v1::DisposeVmRequest>,
    ) -> Result<Response<v1::DisposeVmResponse>, Status> {
        self.0.dispose(&request.into_inner().vm_id).await?;
        Ok(Response::new(v1::DisposeVmResponse {}))
    }

    async fn list_vms(
        &self,
        _: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        let vms = self.0.list().into_iter().map(vm_info).collect();
        Ok(Response::new(v1::ListVmsResponse { vms }))
    }
}
