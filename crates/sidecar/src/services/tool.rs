//! Host tools.

use std::sync::Arc;

use agentos_proto::v1::{self, ErrorKind, serve_tools_request::Part, tool_service_server::ToolService};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::Streamed;
use crate::convert::tool;
use crate::errors::Failure;
use crate::host::Host;
use crate::tools::{Serving, ToolEvent};

#[derive(Debug)]
pub(super) struct Tools(pub(super) Arc<Host>);

/// A client that carries out calls: what comes from it, and what is told to it.
struct Conversation {
    parts: Streaming<v1::ServeToolsRequest>,
    events: mpsc::Receiver<ToolEvent>,
    serving: Serving,
}

impl Conversation {
    /// What the client is told next; none when the VM is gone or the client is.
    async fn next(&mut self) -> Result<Option<v1::ToolEvent>, Status> {
        loop {
            tokio::select! {
                event = self.events.recv() => return Ok(event.map(tool::event)),
                part = self.parts.message() => match part?.map(|request| request.part) {
                    None => return Ok(None),
                    Some(Some(Part::Outcome(outcome))) => {
                        let (id, outcome) = tool::outcome(outcome)?;
                        self.serving.settle(id, outcome);
                    }
                    Some(_) => return Err(Failure::invalid("part", "Outcomes follow the VM's id").into()),
                },
            }
        }
    }
}

#[tonic::async_trait]
impl ToolService for Tools {
    type ServeToolsStream = Streamed<v1::ToolEvent>;

    async fn serve_tools(
        &self,
        request: Request<Streaming<v1::ServeToolsRequest>>,
    ) -> Result<Response<Self::ServeToolsStream>, Status> {
        let mut parts = request.into_inner();
        let Some(Part::VmId(vm_id)) = parts.message().await?.and_then(|first| first.part) else {
            return Err(Failure::invalid("vm_id", "Serving tools begins with the VM's id").into());
        };
        let hosted = self.0.vm(&vm_id)?;
        let tools = hosted
            .tools
            .as_ref()
            .ok_or_else(|| Failure::new(ErrorKind::NotFound, &vm_id, "The VM was made without host tools"))?;
        let (serving, events) = tools.desk().serve().map_err(Failure::from)?;
        let conversation = Conversation { parts, events, serving };
        let told = stream::try_unfold(conversation, |mut conversation| async move {
            Ok(conversation.next().await?.map(|event| (event, conversation)))
        });
        Ok(Response::new(Box::pin(told)))
    }
}
