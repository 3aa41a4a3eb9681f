//! What is kept of sessions that have ended.

use std::collections::VecDeque;
use std::sync::Arc;

use agentos_agents::Transcripts;
use agentos_agents::transcript::Event;
use agentos_proto::v1::{self, session_store_service_server::SessionStoreService};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::Streamed;
use super::session::{PROGRESS_QUEUED, creating};
use crate::convert::session::session_event;
use crate::errors::Failure;
use crate::host::Host;

/// Events read from the disk at once.
const PAGE: usize = 256;

#[derive(Debug)]
pub(super) struct StoredSessions(pub(super) Arc<Host>);

/// A transcript, page by page.
struct History {
    transcripts: Transcripts,
    session: String,
    next: u64,
    page: VecDeque<Event>,
}

impl History {
    async fn next(&mut self) -> Result<Option<Event>, Failure> {
        if self.page.is_empty() {
            self.page = self.transcripts.history(&self.session, self.next, PAGE).await?.into();
        }
        let event = self.page.pop_front();
        if let Some(event) = &event {
            self.next = event.sequence + 1;
        }
        Ok(event)
    }
}

#[tonic::async_trait]
impl SessionStoreService for StoredSessions {
    type RestoreSessionStream = Streamed<v1::CreateSessionEvent>;

    async fn restore_session(
        &self,
        request: Request<v1::RestoreSessionRequest>,
    ) -> Result<Response<Self::RestoreSessionStream>, Status> {
        let v1::RestoreSessionRequest { vm_id, session_id } = request.into_inner();
        let (sender, progress) = mpsc::channel(PROGRESS_QUEUED);
        let (host, id) = (Arc::clone(&self.0), session_id.clone());
        let work = async move { host.restore_session(vm_id, session_id, sender).await };
        Ok(Response::new(creating(id, progress, work)))
    }

    type ReadHistoryStream = Streamed<v1::SessionEvent>;

    async fn read_history(
        &self,
        request: Request<v1::ReadHistoryRequest>,
    ) -> Result<Response<Self::ReadHistoryStream>, Status> {
        let v1::ReadHistoryRequest { session_id, since } = request.into_inner();
        let transcripts = self.0.sessions().stored(&session_id).await?;
        let history = History { transcripts, session: session_id, next: since.max(1), page: VecDeque::new() };
        let events = stream::try_unfold(history, |mut history| async {
            let event = history.next().await?;
            Ok(event.map(|event| (session_event(&event), history)))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        self.0.sessions().delete(&request.into_inner().session_id).await?;
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }
}
