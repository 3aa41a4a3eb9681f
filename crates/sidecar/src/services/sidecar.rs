//! The daemon itself.

use std::sync::Arc;

use agentos_proto::v1::{self, sidecar_service_server::SidecarService};
use futures_util::StreamExt;
use futures_util::stream;
use tonic::{Request, Response, Status};

use super::Streamed;
use crate::VERSION;
use crate::host::Host;

#[derive(Debug)]
pub(super) struct SidecarServices(pub(super) Arc<Host>);

#[tonic::async_trait]
impl SidecarService for SidecarServices {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloResponse>, Status> {
        let client = request.into_inner().client_version;
        if client != VERSION {
            tracing::info!(client, sidecar = VERSION, "a client of another version says hello");
        }
        let config = self.0.config();
        Ok(Response::new(v1::HelloResponse {
            sidecar_version: VERSION.to_owned(),
            sidecar_id: config.id.clone(),
            pool: config.pool.clone(),
        }))
    }

    type OpenLeaseStream = Streamed<v1::LeaseEvent>;

    async fn open_lease(
        &self,
        _: Request<v1::OpenLeaseRequest>,
    ) -> Result<Response<Self::OpenLeaseStream>, Status> {
        let lease = self.0.open_lease();
        let opened = v1::LeaseEvent { lease_id: lease.id().as_str().to_owned() };
        // The second half never yields: it holds the lease until the stream is dropped with its connection.
        let held = stream::once(async move {
            let _lease = lease;
            std::future::pending().await
        });
        Ok(Response::new(Box::pin(stream::once(async { Ok(opened) }).chain(held))))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let (state, vms) = self.0.describe(&request.into_inner().lease_id)?;
        let config = self.0.config();
        Ok(Response::new(v1::DescribeResponse {
            sidecar_id: config.id.clone(),
            pool: config.pool.clone(),
            state: v1::SidecarState::from(state).into(),
            active_vm_count: u32::try_from(vms).unwrap_or(u32::MAX),
        }))
    }

    async fn dispose_lease(
        &self,
        request: Request<v1::DisposeLeaseRequest>,
    ) -> Result<Response<v1::DisposeLeaseResponse>, Status> {
        self.0.dispose_lease(&request.into_inner().lease_id).await?;
        Ok(Response::new(v1::DisposeLeaseResponse {}))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorResponse>, Status> {
        let lines = self.0.examine().await?;
        Ok(Response::new(v1::DoctorResponse { facilities: lines.into_iter().map(Into::into).collect() }))
    }
}
