//! HTTP exchanges with servers in a VM.

use std::sync::Arc;

use agentos_proto::v1::{self, fetch_request, fetch_response, network_service_server::NetworkService};
use futures_util::StreamExt;
use futures_util::stream;
use tonic::{Request, Response, Status, Streaming};

use super::{MAX_CHUNK_BYTES, Streamed};
use crate::convert::network::{Head, response_head};
use crate::errors::{Failure, of_vm};
use crate::fetch::{self, RequestBody};
use crate::host::Host;

#[derive(Debug)]
pub(super) struct Network(pub(super) Arc<Host>);

#[tonic::async_trait]
impl NetworkService for Network {
    type FetchStream = Streamed<v1::FetchResponse>;

    async fn fetch(
        &self,
        request: Request<Streaming<v1::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let mut parts = request.into_inner();
        let Some(v1::FetchRequest { part: Some(fetch_request::Part::Head(head)) }) = parts.message().await?
        else {
            return Err(Failure::invalid("head", "A request begins with its head").into());
        };
        let Head { vm_id, port, request } = head.try_into()?;
        let hosted = self.0.vm(&vm_id)?;
        let stream = hosted.vm.connect(port).await.map_err(of_vm(&format!("port {port}")))?;
        let body = RequestBody::new(parts, request.method()).await?;
        let mut response = fetch::exchange(stream, request.map(|()| body)).await.map_err(Failure::from)?;

        let head = response_head(&mut response);
        let head = v1::FetchResponse { part: Some(fetch_response::Part::Head(head)) };
        let body = stream::try_unfold(response.into_body(), |mut body| async move {
            let piece = body.next(MAX_CHUNK_BYTES).await.map_err(Failure::from)?;
            let message = |data| v1::FetchResponse { part: Some(fetch_response::Part::Body(data)) };
            Ok(piece.map(|data| (message(data), body)))
        });
        Ok(Response::new(Box::pin(stream::once(async { Ok(head) }).chain(body))))
    }
}
