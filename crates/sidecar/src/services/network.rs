//! Ways to servers in a VM, and which there are.

use std::sync::Arc;

use agentos_proto::v1::{
    self, connect_port_request, connect_port_response, fetch_request, fetch_response,
    network_service_server::NetworkService,
};
use agentos_vm::forward::PortForward;
use agentos_vm::{Unavailable, Vm};
use futures_util::stream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::net::TcpStream;
use tonic::{Request, Response, Status, Streaming};

use super::{MAX_CHUNK_BYTES, Streamed};
use crate::convert::egress;
use crate::convert::network::{self as convert, Head, response_head};
use crate::convert::vm::port;
use crate::errors::{Failure, of_vm};
use crate::fetch::{self, RequestBody};
use crate::host::Host;
use crate::{ports, tunnel};

#[derive(Debug)]
pub(super) struct Network(pub(super) Arc<Host>);

async fn connect(vm: &Vm, port: u16) -> Result<TcpStream, Status> {
    vm.connect(port).await.map_err(of_vm(&format!("port {port}")))
}

/// The first part of a connection that stands, and then what it carries.
fn opened<S>(head: Option<v1::FetchResponseHead>, carried: S) -> Streamed<v1::ConnectPortResponse>
where
    S: futures_core::Stream<Item = Result<v1::ConnectPortResponse, Status>> + Send + 'static,
{
    let opened = connect_port_response::Part::Opened(v1::ConnectOpened { head });
    let opened = v1::ConnectPortResponse { part: Some(opened) };
    Box::pin(stream::once(async { Ok(opened) }).chain(carried))
}

/// The events of a VM's network as a stream. A reader that falls behind is told how many it has missed.
fn watch_network(vm: Vm, past_only: bool) -> Streamed<v1::NetworkEvent> {
    let log = vm.network_events();
    let events = stream::try_unfold(0, move |next| {
        let (vm, log) = (vm.clone(), Arc::clone(&log));
        async move {
            if !past_only {
                // What is there already is told before the VM's end is.
                tokio::select! {
                    biased;
                    () = log.reached(next) => {}
                    reason = vm.gone() => return Err(Status::from(Failure::from(reason))),
                }
            } else if next > 0 {
                return Ok(None);
            }
            let found = log.since(next);
            let Some(last) = found.events.last().map(|event| event.sequence) else { return Ok(None) };
            let first = found.events.first().filter(|_| found.missed > 0);
            let missed = first.map(|first| egress::missed(found.missed, first));
            let messages: Vec<Result<v1::NetworkEvent, Status>> = missed
                .into_iter()
                .chain(found.events.iter().map(|event| egress::event(event)))
                .map(Ok)
                .collect();
            Ok(Some((stream::iter(messages), last + 1)))
        }
    });
    Box::pin(events.try_flatten())
}

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
        let stream = connect(&hosted.vm, port).await?;
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

    type ConnectPortStream = Streamed<v1::ConnectPortResponse>;

    async fn connect_port(
        &self,
        request: Request<Streaming<v1::ConnectPortRequest>>,
    ) -> Result<Response<Self::ConnectPortStream>, Status> {
        let mut parts = request.into_inner();
        match parts.message().await?.and_then(|first| first.part) {
            Some(connect_port_request::Part::Target(target)) => {
                let hosted = self.0.vm(&target.vm_id)?;
                let stream = connect(&hosted.vm, port(target.port)?).await?;
                Ok(Response::new(opened(None, tunnel::carry(&hosted.vm, stream, parts))))
            }
            Some(connect_port_request::Part::Upgrade(head)) => {
                let Head { vm_id, port, request } = Head::of_upgrade(head)?;
                let hosted = self.0.vm(&vm_id)?;
                let stream = connect(&hosted.vm, port).await?;
                let (mut response, stream) = fetch::upgrade(stream, request).await.map_err(Failure::from)?;
                let head = convert::upgraded_head(&mut response);
                Ok(Response::new(opened(Some(head), tunnel::carry(&hosted.vm, stream, parts))))
            }
            _ => Err(Failure::invalid("target", "A connection begins with where it goes").into()),
        }
    }

    type ForwardPortStream = Streamed<v1::PortForwarded>;

    async fn forward_port(
        &self,
        request: Request<v1::ForwardPortRequest>,
    ) -> Result<Response<Self::ForwardPortStream>, Status> {
        let request = request.into_inner();
        let (port, address) = (port(request.port)?, convert::socket_address(&request.address)?);
        let hosted = self.0.vm(&request.vm_id)?;
        let forward = hosted.vm.forward_port(port, address).await.map_err(of_vm(&request.vm_id))?;
        let forwarded = v1::PortForwarded { address: forward.local_addr().to_string() };
        let disposing = |_: PortForward| Status::from(Failure::from(Unavailable::Disposing));
        let held = hosted.forwards.add(forward).map_err(disposing)?;
        let held = if request.keep {
            held.keep();
            None
        } else {
            Some(held)
        };
        let vm = hosted.vm.clone();
        let end = stream::once(async move {
            let reason = vm.gone().await;
            drop(held);
            Err(Failure::from(reason).into())
        });
        Ok(Response::new(Box::pin(stream::once(async { Ok(forwarded) }).chain(end))))
    }

    async fn close_forward(
        &self,
        request: Request<v1::CloseForwardRequest>,
    ) -> Result<Response<v1::CloseForwardResponse>, Status> {
        let request = request.into_inner();
        let address = convert::socket_address(&request.address)?;
        self.0.vm(&request.vm_id)?.forwards.close(address).await;
        Ok(Response::new(v1::CloseForwardResponse {}))
    }

    async fn list_listening_ports(
        &self,
        request: Request<v1::ListListeningPortsRequest>,
    ) -> Result<Response<v1::ListListeningPortsResponse>, Status> {
        let vm_id = request.into_inner().vm_id;
        let hosted = self.0.vm(&vm_id)?;
        let ports = hosted.vm.listening_ports(true).await.map_err(of_vm(&vm_id))?;
        let ports = ports.into_iter().map(convert::listening_port).collect();
        Ok(Response::new(v1::ListListeningPortsResponse { ports }))
    }

    type WatchPortsStream = Streamed<v1::PortEvent>;

    async fn watch_ports(
        &self,
        request: Request<v1::WatchPortsRequest>,
    ) -> Result<Response<Self::WatchPortsStream>, Status> {
        let hosted = self.0.vm(&request.into_inner().vm_id)?;
        let changes = ports::watch(hosted.vm.clone());
        let events = changes.map_ok(convert::port_event).map_err(|gone| Failure::from(gone).into());
        Ok(Response::new(Box::pin(events)))
    }

    async fn set_network_policy(
        &self,
        request: Request<v1::SetNetworkPolicyRequest>,
    ) -> Result<Response<v1::SetNetworkPolicyResponse>, Status> {
        let request = request.into_inner();
        // None would be the widest there is: nobody gets it by leaving something out.
        let policy = request.policy.ok_or_else(|| Failure::invalid("policy", "A policy is needed"))?;
        let policy = crate::convert::policy::egress_policy(policy)?;
        let hosted = self.0.vm(&request.vm_id)?;
        hosted.vm.set_network_policy(policy).await.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::SetNetworkPolicyResponse {}))
    }

    type WatchNetworkStream = Streamed<v1::NetworkEvent>;

    async fn watch_network(
        &self,
        request: Request<v1::WatchNetworkRequest>,
    ) -> Result<Response<Self::WatchNetworkStream>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        Ok(Response::new(watch_network(hosted.vm.clone(), request.past_only)))
    }

    async fn get_network_stats(
        &self,
        request: Request<v1::GetNetworkStatsRequest>,
    ) -> Result<Response<v1::NetworkStats>, Status> {
        let vm_id = request.into_inner().vm_id;
        let hosted = self.0.vm(&vm_id)?;
        let stats = hosted.vm.network_stats().await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(egress::stats(stats)))
    }
}
