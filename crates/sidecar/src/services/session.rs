//! Agents at work.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use agentos_agents::session::Prompt;
use agentos_agents::store::Progress;
use agentos_agents::{Registry, list_agents};
use agentos_proto::v1::{self, create_session_event, session_service_server::SessionService};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::Streamed;
use super::session_store::{Filter, History};
use crate::convert::session as convert;
use crate::errors::Failure;
use crate::host::Host;
use crate::sessions::{CreateSession, Creation, SessionHost};

/// Progress that nobody has read yet; beyond it the store drops some.
pub(super) const PROGRESS_QUEUED: usize = 16;

#[derive(Debug)]
pub(super) struct AgentSessions(pub(super) Arc<Host>);

/// Progress while `work` runs, then its result as the last message. Dropping the stream drops the work.
fn with_progress<T, F>(
    mut progress: mpsc::Receiver<Progress>,
    work: F,
    show: fn(Progress) -> T,
) -> Streamed<T>
where
    T: Send + 'static,
    F: Future<Output = Option<Result<T, Failure>>> + Send + 'static,
{
    let mut work: Option<Pin<Box<F>>> = Some(Box::pin(work));
    Box::pin(stream::poll_fn(move |cx| {
        use std::task::Poll;
        let Some(running) = &mut work else { return Poll::Ready(None) };
        if let Poll::Ready(Some(step)) = progress.poll_recv(cx) {
            return Poll::Ready(Some(Ok(show(step))));
        }
        let done = std::task::ready!(running.as_mut().poll(cx));
        work = None;
        Poll::Ready(done.map(|result| result.map_err(Status::from)))
    }))
}

/// The id of a session that is being made, the progress of that, then the session.
pub(super) fn creating<F>(
    begun: v1::SessionBegun,
    progress: mpsc::Receiver<Progress>,
    work: F,
) -> Streamed<v1::CreateSessionEvent>
where
    F: Future<Output = Result<agentos_agents::Session, Failure>> + Send + 'static,
{
    let event = |event| v1::CreateSessionEvent { event: Some(event) };
    let begun = event(create_session_event::Event::Begun(begun));
    let work =
        async move {
            let made = work.await;
            Some(made.map(|session| {
                event(create_session_event::Event::Created(convert::session_created(&session)))
            }))
        };
    let show = |step| v1::CreateSessionEvent {
        event: Some(create_session_event::Event::Install(convert::install_progress(step))),
    };
    Box::pin(stream::iter([Ok(begun)]).chain(with_progress(progress, work, show)))
}

fn json(name: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::invalid(name, format!("{name} is not JSON: {error}")))
}

#[tonic::async_trait]
impl SessionService for AgentSessions {
    type CreateSessionStream = Streamed<v1::CreateSessionEvent>;

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<Self::CreateSessionStream>, Status> {
        let wish = CreateSession::try_from(request.into_inner())?;
        let (sender, progress) = mpsc::channel(PROGRESS_QUEUED);
        let host = Arc::clone(&self.0);
        let creation = Creation::begin(&host);
        let begun = v1::SessionBegun { session_id: creation.id().to_string(), attempt: creation.attempt() };
        let work = async move { host.create_session(creation, wish, sender).await };
        Ok(Response::new(creating(begun, progress, work)))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let vm_id = request.into_inner().vm_id;
        self.0.vm(&vm_id)?;
        let info = |session: agentos_agents::Session| v1::SessionInfo {
            session_id: session.id().as_str().to_owned(),
            agent_type: session.agent_type().to_owned(),
        };
        let sessions = self.0.sessions().list(&vm_id).into_iter().map(info).collect();
        Ok(Response::new(v1::ListSessionsResponse { sessions }))
    }

    async fn prompt(
        &self,
        request: Request<v1::PromptRequest>,
    ) -> Result<Response<v1::PromptResponse>, Status> {
        let request = request.into_inner();
        let session = self.0.sessions().get(&request.session_id)?;
        let Value::Array(content) = json("content_json", &request.content_json)? else {
            return Err(
                Failure::invalid("content_json", "The content of a prompt is a list of blocks").into()
            );
        };
        let idle_timeout = request.idle_timeout_ms.map(Duration::from_millis);
        let timeout = request.timeout_ms.map(Duration::from_millis);
        let reply = session.prompt(Prompt { content, idle_timeout, timeout }).await.map_err(Failure::from)?;
        Ok(Response::new(v1::PromptResponse {
            text: reply.text,
            stop_reason: reply.stop_reason.to_owned(),
            model: convert::model_kind(reply.model).into(),
            rejected_permissions: reply.rejected_permissions,
            response_json: reply.response.to_string(),
            session_json: session.state().session().to_string(),
        }))
    }

    async fn cancel_session(
        &self,
        request: Request<v1::CancelSessionRequest>,
    ) -> Result<Response<v1::CancelSessionResponse>, Status> {
        let session = self.0.sessions().get(&request.into_inner().session_id)?;
        Ok(Response::new(v1::CancelSessionResponse { cancelled: session.cancel().await }))
    }

    type SessionEventsStream = Streamed<v1::SessionEvent>;

    async fn session_events(
        &self,
        request: Request<v1::SessionEventsRequest>,
    ) -> Result<Response<Self::SessionEventsStream>, Status> {
        let request = request.into_inner();
        let session = match self.0.sessions().get(&request.session_id) {
            // What is kept of a session that is over can be read on.
            Err(_) if !request.permissions_only => {
                let filter =
                    Filter { since: request.since, limit: u64::from(request.max_events), method: None };
                return Ok(Response::new(History::open(&self.0, request.session_id, filter).await?.stream()));
            }
            session => session?,
        };
        if request.permissions_only {
            // From here on, not from the first poll, the session has somebody who answers.
            let requests = session.permission_requests();
            let asked = stream::unfold((session, requests), |(session, mut requests)| async {
                let event = tokio::select! {
                    event = requests.next() => Ok(convert::session_event(&event, event.sequence)),
                    () = session.closed() => return None,
                };
                Some((event, (session, requests)))
            });
            return Ok(Response::new(Box::pin(asked)));
        }
        let events = stream::unfold(session.events(request.since), |mut events| async {
            let event = events.next().await?;
            let event = event.map_err(|error| Status::from(Failure::from(error)));
            let event = event.map(|event| convert::session_event(&event, events.newest()));
            Some((event, events))
        });
        match usize::try_from(request.max_events) {
            Ok(0) | Err(_) => Ok(Response::new(Box::pin(events))),
            Ok(most) => Ok(Response::new(Box::pin(events.take(most)))),
        }
    }

    async fn respond_permission(
        &self,
        request: Request<v1::RespondPermissionRequest>,
    ) -> Result<Response<v1::RespondPermissionResponse>, Status> {
        let request = request.into_inner();
        let session = self.0.sessions().get(&request.session_id)?;
        let reply = convert::permission_reply(request.reply())?;
        session.respond_permission(&request.permission_id, reply).await.map_err(Failure::from)?;
        Ok(Response::new(v1::RespondPermissionResponse {}))
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let v1::CloseSessionRequest { session_id, graceful, attempt } = request.into_inner();
        self.0.sessions().close_session(&session_id, attempt, graceful).await?;
        Ok(Response::new(v1::CloseSessionResponse {}))
    }

    async fn raw_send(
        &self,
        request: Request<v1::RawSendRequest>,
    ) -> Result<Response<v1::RawSendResponse>, Status> {
        let request = request.into_inner();
        let session = self.0.sessions().get(&request.session_id)?;
        let params = match request.params_json.as_str() {
            "" => Value::Null,
            text => json("params_json", text)?,
        };
        let response = session.raw_send(&request.method, params).await.map_err(Failure::from)?;
        Ok(Response::new(v1::RawSendResponse {
            response_json: response.to_string(),
            session_json: session.state().session().to_string(),
        }))
    }

    async fn read_instructions(
        &self,
        request: Request<v1::ReadInstructionsRequest>,
    ) -> Result<Response<v1::ReadInstructionsResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let text = hosted.instructions(request.skip_os_instructions, &request.additional_instructions);
        Ok(Response::new(v1::ReadInstructionsResponse { text }))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let vm_id = request.into_inner().vm_id;
        let registry = match vm_id.as_str() {
            "" => Registry::built_in(),
            vm_id => SessionHost::registry(&self.0.vm(vm_id)?.sessions.defaults),
        };
        let entries = list_agents(&registry, &self.0.sessions().store()?);
        Ok(Response::new(v1::ListAgentsResponse {
            agents: entries.into_iter().map(|entry| convert::agent_entry(entry, &registry)).collect(),
        }))
    }

    type InstallAgentStream = Streamed<v1::InstallProgress>;

    async fn install_agent(
        &self,
        request: Request<v1::InstallAgentRequest>,
    ) -> Result<Response<Self::InstallAgentStream>, Status> {
        let registry = Registry::built_in();
        let agent = registry.find(&request.into_inner().agent_type).map_err(Failure::from)?.clone();
        let store = self.0.sessions().store()?;
        let (sender, progress) = mpsc::channel(PROGRESS_QUEUED);
        let host = Arc::clone(&self.0);
        let work = async move { host.install(&store, &agent, true, sender).await.err().map(Err) };
        Ok(Response::new(with_progress(progress, work, convert::install_progress)))
    }
}
