//! What is kept of sessions: their list, their transcripts, their removal. None of it needs a VM.
//!
//! Transcripts belong to the user, not to a sidecar: every sidecar of the same `AGENTOS_HOME` shows all of them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_proto::v1;
use futures_core::Stream;
use serde_json::Value;

use crate::builder::into_future;
use crate::connection::Connection;
use crate::convert;
use crate::error::Error;
use crate::feed::{Feed, FeedError, Opening};
use crate::session::ModelKind;
use crate::session_events::SessionEvent;
use crate::session_options::PermissionPolicy;
use crate::sidecar::AgentOsSidecar;
use crate::vm::AgentOs;

/// A session of which something is kept. Sessions of older versions lack some of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StoredSession {
    /// The session's id.
    pub session_id: String,
    /// The agent.
    pub agent_type: String,
    /// The agent's version.
    pub agent_version: Option<String>,
    /// The id by which the agent knows it.
    pub agent_session_id: Option<String>,
    /// What it is about: the agent's title for it, else the beginning of the first prompt.
    pub title: Option<String>,
    /// Its working directory in the VM.
    pub cwd: Option<String>,
    /// Which model it talked to.
    pub model: ModelKind,
    /// Why it was that model.
    pub model_reason: Option<String>,
    /// The name of its VM, or the id of one without a name.
    pub vm: Option<String>,
    /// Who decided what the agent asked.
    pub permission_policy: Option<PermissionPolicy>,
    /// The other options that it was created with, an object: variables and headers by their names, without values.
    pub options: Value,
    /// When it began, in milliseconds since the epoch.
    pub created_at_ms: u64,
    /// When its last event was kept, in milliseconds since the epoch.
    pub updated_at_ms: u64,
    /// How it ended; `None` while it lives, and where its sidecar was killed.
    pub ended: Option<SessionEnd>,
    /// How many events are kept.
    pub events: u64,
    /// How many bytes their notifications have.
    pub bytes: u64,
    /// It is at work in the sidecar that was asked.
    pub is_live: bool,
}

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionEnd {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Why, in words.
    pub reason: String,
}

/// Some stored sessions, the newest first.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StoredSessionPage {
    /// The sessions.
    pub sessions: Vec<StoredSession>,
    /// What [`before`](ListStoredSessions::before) takes to get the next page; `None` after the last one.
    pub next: Option<u64>,
}

impl AgentOsSidecar {
    /// The sessions of which something is kept, live ones too; await it for the newest of them.
    #[must_use = "does nothing until awaited"]
    pub fn stored_sessions(&self) -> ListStoredSessions {
        ListStoredSessions { sidecar: self.clone(), request: v1::ListStoredSessionsRequest::default() }
    }

    /// As [`AgentOs::read_history`]: transcripts need no VM.
    #[must_use = "does nothing until awaited"]
    pub fn read_history(&self, session_id: &str) -> ReadHistory {
        ReadHistory::new(Place::Sidecar(self.clone()), session_id)
    }

    /// As [`AgentOs::delete_session`].
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`.
    pub async fn delete_session(&self, session_id: &str) -> Result<(), Error> {
        delete(&Place::Sidecar(self.clone()), session_id).await
    }
}

impl AgentOs {
    /// The stored events of a session, in order, whether it lives or not; await it for all of them, or take them one by
    /// one with [`events`](ReadHistory::events).
    ///
    /// Fails with `NotFound`: `Session not found: ID`.
    #[must_use = "does nothing until awaited"]
    pub fn read_history(&self, session_id: &str) -> ReadHistory {
        ReadHistory::new(Place::Vm(self.clone()), session_id)
    }

    /// Removes all that is kept of a session, its transcript and its files. One that lives is ended first, at once.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`.
    pub async fn delete_session(&self, session_id: &str) -> Result<(), Error> {
        delete(&Place::Vm(self.clone()), session_id).await?;
        self.forget_session(session_id);
        Ok(())
    }
}

impl AgentOs {
    /// What is kept of a session, where anything is.
    pub(crate) async fn stored_session(&self, session_id: &str) -> Result<Option<StoredSession>, Error> {
        let page = self.sidecar().stored_sessions().id_prefix(session_id).limit(1).await?;
        Ok(page.sessions.into_iter().find(|stored| stored.session_id == session_id))
    }
}

async fn delete(place: &Place, session_id: &str) -> Result<(), Error> {
    let request = v1::DeleteSessionRequest { session_id: session_id.to_owned() };
    let reply = place.connection()?.session_store().delete_session(request).await;
    reply.map_err(|status| place.failed(status))?;
    Ok(())
}

/// Whom to ask. A VM that was disposed through its handle answers nothing more.
#[derive(Debug, Clone)]
enum Place {
    Vm(AgentOs),
    Sidecar(AgentOsSidecar),
}

impl Place {
    fn connection(&self) -> Result<&Connection, Error> {
        match self {
            Self::Vm(vm) => vm.live(),
            Self::Sidecar(sidecar) => Ok(sidecar.connection()),
        }
    }

    fn failed(&self, status: tonic::Status) -> Error {
        match self {
            Self::Vm(vm) => vm.failed(status),
            Self::Sidecar(sidecar) => sidecar.failed(status),
        }
    }
}

/// A list of stored sessions; await it for a page of them.
#[derive(Debug)]
pub struct ListStoredSessions {
    sidecar: AgentOsSidecar,
    request: v1::ListStoredSessionsRequest,
}

impl ListStoredSessions {
    /// At most so many; 100 unless it is set, and never more than 1,000.
    #[must_use]
    pub fn limit(mut self, sessions: u32) -> Self {
        self.request.limit = sessions;
        self
    }

    /// Only those that follow: [`StoredSessionPage::next`] of the page before.
    #[must_use]
    pub fn before(mut self, next: u64) -> Self {
        self.request.before = next;
        self
    }

    /// Only those whose id begins with this.
    #[must_use]
    pub fn id_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.request.id_prefix = prefix.into();
        self
    }

    async fn run(self) -> Result<StoredSessionPage, Error> {
        let Self { sidecar, request } = self;
        let reply = sidecar.connection().session_store().list_stored_sessions(request).await;
        let v1::ListStoredSessionsResponse { sessions, next_before } =
            reply.map_err(|status| sidecar.failed(status))?.into_inner();
        let sessions = sessions.into_iter().map(convert::session::stored).collect::<Result<_, _>>()?;
        Ok(StoredSessionPage { sessions, next: Some(next_before).filter(|next| *next > 0) })
    }
}

into_future!(ListStoredSessions => StoredSessionPage);

/// A transcript; await it for all its events.
#[derive(Debug)]
pub struct ReadHistory {
    place: Place,
    request: v1::ReadHistoryRequest,
}

impl ReadHistory {
    fn new(place: Place, session_id: &str) -> Self {
        let session_id = session_id.to_owned();
        Self { place, request: v1::ReadHistoryRequest { session_id, since: 1, ..Default::default() } }
    }

    /// From this sequence number on; they start at 1.
    #[must_use]
    pub fn since(mut self, sequence_number: u64) -> Self {
        self.request.since = sequence_number;
        self
    }

    /// At most so many; all of them unless it is set to a number above 0.
    #[must_use]
    pub fn limit(mut self, events: u64) -> Self {
        self.request.limit = events;
        self
    }

    /// Only notifications of this method, such as `session/update`.
    #[must_use]
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.request.method = method.into();
        self
    }

    /// The events as a stream, for transcripts that are not to be held in memory.
    #[must_use]
    pub fn events(self) -> SessionHistory {
        SessionHistory { place: self.place, request: self.request, feed: Feed::Idle }
    }

    async fn run(self) -> Result<Vec<SessionEvent>, Error> {
        let mut stream = self.events();
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event?);
        }
        Ok(events)
    }
}

into_future!(ReadHistory => Vec<SessionEvent>);

/// A transcript as a stream; it ends after the last event that is kept. Nothing is read ahead but what is on its way.
pub struct SessionHistory {
    place: Place,
    request: v1::ReadHistoryRequest,
    feed: Feed<v1::SessionEvent>,
}

impl SessionHistory {
    /// The next event, or `None` after the last one. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<SessionEvent, Error>> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<SessionEvent, Error>>> {
        let Self { place, request, feed } = self;
        let item = match ready!(feed.poll_message(context, || open(place.clone(), request.clone()))) {
            Some(Ok(event)) => convert::session::event(event).map_err(Error::from),
            Some(Err(FeedError::Open(error))) => Err(error),
            Some(Err(FeedError::Broken(status))) => Err(place.failed(*status)),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(item))
    }
}

fn open(place: Place, request: v1::ReadHistoryRequest) -> Opening<v1::SessionEvent> {
    Box::pin(async move {
        let reply = place.connection()?.session_store().read_history(request).await;
        Ok(reply.map_err(|status| place.failed(status))?.into_inner())
    })
}

impl Stream for SessionHistory {
    type Item = Result<SessionEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_event(context)
    }
}

impl std::fmt::Debug for SessionHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionHistory").field("request", &self.request).finish_non_exhaustive()
    }
}
