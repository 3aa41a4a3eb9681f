//! What happens in a session, as streams: its events, and the agent's requests for permission.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_proto::v1;
use futures_core::Stream;
use serde_json::Value;

use crate::convert;
use crate::error::{Error, ErrorKind};
use crate::feed::{Feed, FeedError, Opening};
use crate::vm::AgentOs;

/// One event of a session.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionEvent {
    /// Its place in the session; they start at 1 and have no gaps.
    pub sequence_number: u64,
    /// The JSON-RPC notification as the agent sent it, or one of ours (`_agentos/...`).
    pub notification: Value,
}

impl SessionEvent {
    /// The notification's method, such as `session/update`.
    #[must_use]
    pub fn method(&self) -> &str {
        self.notification["method"].as_str().unwrap_or_default()
    }

    /// The notification's parameters.
    #[must_use]
    pub fn params(&self) -> &Value {
        &self.notification["params"]
    }
}

/// The events of a session: stored ones first, live ones after, none twice, none lost.
///
/// A reader may be as slow as it likes: what it has not taken yet waits in the transcript, and holds up neither the
/// agent nor other readers. A transcript has a bound, 512 MiB, at which the session ends with an error of kind
/// `NoSpace`; its last event is `_agentos/transcript_full`.
pub struct SessionEvents {
    vm: AgentOs,
    session_id: String,
    next: u64,
    permissions_only: bool,
    feed: Feed<v1::SessionEvent>,
}

impl SessionEvents {
    pub(crate) fn new(vm: AgentOs, session_id: String, since: u64) -> Self {
        Self { vm, session_id, next: since, permissions_only: false, feed: Feed::Idle }
    }

    /// The next event, or `None` when the session has ended. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<SessionEvent, Error>> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<SessionEvent, Error>>> {
        let Self { vm, session_id, next, permissions_only, feed } = self;
        let open = || open(vm.clone(), session_id.clone(), *next, *permissions_only);
        let item = match ready!(feed.poll_message(context, open)) {
            Some(Ok(event)) => {
                *next = event.sequence_number + 1;
                convert::session::event(event).map_err(Error::from)
            }
            Some(Err(FeedError::Open(error))) => Err(error),
            Some(Err(FeedError::Broken(status))) => {
                let error = vm.failed(*status);
                // The stream goes on where the sidecar says that it still can.
                if error.kind() == ErrorKind::Lagged
                    && let Some(resume) = error.resume_at()
                {
                    *next = resume;
                    *feed = Feed::Idle;
                }
                Err(error)
            }
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(item))
    }
}

fn open(vm: AgentOs, session_id: String, since: u64, permissions_only: bool) -> Opening<v1::SessionEvent> {
    Box::pin(async move {
        let request = v1::SessionEventsRequest { session_id, since, permissions_only };
        let reply = vm.live()?.session().session_events(request).await;
        Ok(reply.map_err(|status| vm.failed(status))?.into_inner())
    })
}

impl Stream for SessionEvents {
    type Item = Result<SessionEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_event(context)
    }
}

impl std::fmt::Debug for SessionEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionEvents")
            .field("session_id", &self.session_id)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

/// How to answer a request for permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PermissionReply {
    /// Yes, this time.
    Once,
    /// Yes, and to exactly the same request in this session from now on.
    Always,
    /// No.
    Reject,
}

/// Something the agent asks permission for. One that is dropped without a reply is rejected.
pub struct PermissionRequest {
    vm: AgentOs,
    session_id: String,
    permission_id: String,
    description: Option<String>,
    params: Value,
    answered: bool,
}

impl PermissionRequest {
    /// The request's id, which works once.
    #[must_use]
    pub fn permission_id(&self) -> &str {
        &self.permission_id
    }

    /// What it is for, in words.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The agent's own parameters: the tool call and the options it offers.
    #[must_use]
    pub fn params(&self) -> &Value {
        &self.params
    }

    /// Answers it.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is no longer waiting: it timed out, was cancelled, or somebody else answered.
    pub async fn reply(mut self, reply: PermissionReply) -> Result<(), Error> {
        let request = convert::session::respond_request(&self.session_id, &self.permission_id, reply);
        let mut client = self.vm.live()?.session();
        // Only when the call is under way: a future dropped before it leaves the rejection to `drop`.
        self.answered = true;
        client.respond_permission(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }
}

impl Drop for PermissionRequest {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let vm = self.vm.clone();
        let request =
            convert::session::respond_request(&self.session_id, &self.permission_id, PermissionReply::Reject);
        self.vm.sidecar().runtime().spawn(async move {
            let Ok(connection) = vm.live() else { return };
            if let Err(status) = connection.session().respond_permission(request).await {
                tracing::debug!(%status, "rejecting a dropped permission request");
            }
        });
    }
}

impl std::fmt::Debug for PermissionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PermissionRequest")
            .field("session_id", &self.session_id)
            .field("permission_id", &self.permission_id)
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

/// The agent's requests for permission, the pending one first. Ends with the session; why it ended is in
/// [`Session::events`](crate::Session::events) and in the calls that fail.
pub struct PermissionRequests {
    events: SessionEvents,
}

impl PermissionRequests {
    pub(crate) fn new(vm: AgentOs, session_id: String) -> Self {
        Self { events: SessionEvents { vm, session_id, next: 0, permissions_only: true, feed: Feed::Idle } }
    }

    /// The next request, or `None` when the session has ended. Cancellation safe.
    pub async fn next(&mut self) -> Option<PermissionRequest> {
        std::future::poll_fn(|context| self.poll_request(context)).await
    }

    fn poll_request(&mut self, context: &mut Context<'_>) -> Poll<Option<PermissionRequest>> {
        loop {
            let event = match ready!(self.events.poll_event(context)) {
                Some(Ok(event)) => event,
                Some(Err(error)) if error.kind() == ErrorKind::Lagged => continue,
                Some(Err(error)) => {
                    tracing::debug!(%error, "permission requests ended");
                    return Poll::Ready(None);
                }
                None => return Poll::Ready(None),
            };
            if let Some(asked) = convert::session::permission(event) {
                let SessionEvents { vm, session_id, .. } = &self.events;
                return Poll::Ready(Some(PermissionRequest {
                    vm: vm.clone(),
                    session_id: session_id.clone(),
                    permission_id: asked.permission_id,
                    description: asked.description,
                    params: asked.params,
                    answered: false,
                }));
            }
        }
    }
}

impl Stream for PermissionRequests {
    type Item = PermissionRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_request(context)
    }
}

impl std::fmt::Debug for PermissionRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PermissionRequests")
            .field("session_id", &self.events.session_id)
            .finish_non_exhaustive()
    }
}
