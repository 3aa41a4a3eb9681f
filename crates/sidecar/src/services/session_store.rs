//! What is kept of sessions that have ended.

use std::collections::VecDeque;
use std::sync::Arc;

use agentos_agents::Transcripts;
use agentos_agents::transcript::{Event, EventFilter, SessionFilter};
use agentos_proto::v1::{self, session_store_service_server::SessionStoreService};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::Streamed;
use super::session::{PROGRESS_QUEUED, creating};
use crate::convert::session::{prepared, session_event, stored_session};
use crate::errors::Failure;
use crate::host::Host;

/// Events read from the disk at once.
const PAGE: usize = 256;
/// Sessions listed at once, unless somebody asks for fewer or more.
const LISTED: usize = 100;
/// And never more: a session's options are as large as somebody has made them.
const MOST_LISTED: usize = 1000;

#[derive(Debug)]
pub(super) struct StoredSessions(pub(super) Arc<Host>);

/// Which events of a transcript.
pub(super) struct Filter {
    pub(super) since: u64,
    /// At most so many; 0 means all.
    pub(super) limit: u64,
    pub(super) method: Option<String>,
}

/// A transcript, page by page: one page is in memory, and the next one is read when that was taken.
pub(super) struct History {
    transcripts: Transcripts,
    session: String,
    method: Option<String>,
    /// Of the events there were when it was opened.
    newest: u64,
    /// Where the next page begins; `None` after the last one.
    next: Option<u64>,
    left: u64,
    page: VecDeque<Event>,
}

impl History {
    pub(super) async fn open(host: &Host, session: String, filter: Filter) -> Result<Self, Failure> {
        let (transcripts, stored) = host.sessions().stored(&session).await?;
        Ok(Self {
            transcripts,
            session,
            method: filter.method,
            newest: stored.events,
            next: Some(filter.since.max(1)),
            left: if filter.limit == 0 { u64::MAX } else { filter.limit },
            page: VecDeque::new(),
        })
    }

    async fn next(&mut self) -> Result<Option<Event>, Failure> {
        while self.page.is_empty() {
            let Some(since) = self.next.filter(|_| self.left > 0) else { return Ok(None) };
            let limit = usize::try_from(self.left).map_or(PAGE, |left| left.min(PAGE));
            let filter = EventFilter { since, limit, method: self.method.clone() };
            let page = self.transcripts.page(&self.session, filter).await?;
            (self.page, self.next) = (page.events.into(), page.next);
        }
        self.left = self.left.saturating_sub(1);
        Ok(self.page.pop_front())
    }

    pub(super) fn stream(self) -> Streamed<v1::SessionEvent> {
        Box::pin(stream::try_unfold(self, |mut history| async {
            let event = history.next().await?;
            Ok(event.map(|event| (session_event(&event, history.newest), history)))
        }))
    }
}

#[tonic::async_trait]
impl SessionStoreService for StoredSessions {
    type RestoreSessionStream = Streamed<v1::CreateSessionEvent>;

    async fn restore_session(
        &self,
        request: Request<v1::RestoreSessionRequest>,
    ) -> Result<Response<Self::RestoreSessionStream>, Status> {
        let v1::RestoreSessionRequest { vm_id, session_id, prepared: instructions } = request.into_inner();
        let prepared = instructions.map(prepared).unwrap_or_default();
        let (sender, progress) = mpsc::channel(PROGRESS_QUEUED);
        let host = Arc::clone(&self.0);
        let attempt = (session_id.clone(), host.sessions().next_attempt());
        let begun = v1::SessionBegun { session_id, attempt: attempt.1 };
        let work = async move { host.restore_session(vm_id, attempt, prepared, sender).await };
        Ok(Response::new(creating(begun, progress, work)))
    }

    async fn list_stored_sessions(
        &self,
        request: Request<v1::ListStoredSessionsRequest>,
    ) -> Result<Response<v1::ListStoredSessionsResponse>, Status> {
        let v1::ListStoredSessionsRequest { before, limit, id_prefix } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(0) => LISTED,
            limit => limit.unwrap_or(MOST_LISTED).min(MOST_LISTED),
        };
        // One more than is told, so that the last page knows that it is the last one.
        let filter =
            SessionFilter { before: Some(before).filter(|key| *key > 0), limit: limit + 1, id_prefix };
        let sessions = self.0.sessions();
        let mut found = sessions.transcripts().await?.list(filter).await.map_err(Failure::from)?;
        let more = found.len() > limit;
        found.truncate(limit);
        let next_before = found.last().filter(|_| more).map_or(0, |last| last.key);
        let told = found.into_iter().map(|stored| {
            let live = sessions.is_live(&stored.id);
            stored_session(stored, live)
        });
        Ok(Response::new(v1::ListStoredSessionsResponse { sessions: told.collect(), next_before }))
    }

    type ReadHistoryStream = Streamed<v1::SessionEvent>;

    async fn read_history(
        &self,
        request: Request<v1::ReadHistoryRequest>,
    ) -> Result<Response<Self::ReadHistoryStream>, Status> {
        let v1::ReadHistoryRequest { session_id, since, limit, method } = request.into_inner();
        let method = Some(method).filter(|method| !method.is_empty());
        let history = History::open(&self.0, session_id, Filter { since, limit, method }).await?;
        Ok(Response::new(history.stream()))
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        self.0.sessions().delete(&request.into_inner().session_id).await?;
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }
}
