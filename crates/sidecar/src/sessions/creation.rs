//! A session on its way, from its id to the moment its caller has it.
//!
//! ```text
//! begin ─► Creating ── register ──► live ── delivered ──► its caller's
//!              │ closed meanwhile, VM on its way out, dropped │ dropped
//!              └──────────────────► discarded ◄───────────────┘
//! ```
//! The id is told before any work begins. A caller that goes away can therefore close the session without knowing how
//! far it had come: one that is still on its way then never becomes a live one. A discarded session was nobody's: its
//! agent is killed and its transcript forgotten.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use agentos_agents::transcript::StoredSession;
use agentos_agents::{Session, SessionId, Transcripts};
use agentos_proto::v1::ErrorKind;

use super::restore::live;
use super::{OnItsWay, SessionHost};
use crate::errors::Failure;
use crate::host::Host;

/// A session that is being made. Dropped before it is delivered, nothing of it stays.
#[derive(Debug)]
pub(crate) struct Creation {
    host: Arc<Host>,
    id: SessionId,
    attempt: u64,
    made: Option<(Session, Transcripts)>,
    /// Whether a transcript stays when the session is not delivered: that of a former session.
    is_stored: bool,
    /// Whether it is no longer among those on their way.
    is_off_the_list: bool,
}

impl Creation {
    pub(crate) fn begin(host: &Arc<Host>) -> Self {
        let (id, attempt) = (SessionId::new(), host.sessions().next_attempt());
        host.sessions().creating().insert(id.to_string(), OnItsWay { attempt, closed: false });
        Self { host: Arc::clone(host), id, attempt, made: None, is_stored: false, is_off_the_list: false }
    }

    /// A stored session that is brought back under its own id.
    pub(super) fn of_stored(host: &Arc<Host>, stored: &StoredSession, attempt: u64) -> Result<Self, Failure> {
        let id = SessionId::of(stored);
        match host.sessions().creating().entry(id.to_string()) {
            Entry::Occupied(_) => return Err(live(id.as_str())),
            Entry::Vacant(vacant) => vacant.insert(OnItsWay { attempt, closed: false }),
        };
        Ok(Self { host: Arc::clone(host), id, attempt, made: None, is_stored: true, is_off_the_list: false })
    }

    pub(crate) fn id(&self) -> &SessionId {
        &self.id
    }

    pub(crate) fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Makes the session one of the live ones, unless somebody has closed it or `vm_lives` says that its VM goes. The
    /// VM's end closes those that are live by then, so the question and the answer are one step.
    pub(super) fn register(
        &mut self,
        session: Session,
        transcripts: Transcripts,
        vm_lives: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.made = Some((session.clone(), transcripts));
        let sessions = self.host.sessions();
        let mut creating = sessions.creating();
        let id = self.id.as_str();
        self.is_off_the_list = true;
        if creating.remove(id).is_none_or(|on_its_way| on_its_way.closed) {
            let message = format!("Session {id} was closed while it was made");
            return Err(Failure::new(ErrorKind::Closed, id, message));
        }
        vm_lives()?;
        sessions.live.insert(session);
        Ok(())
    }

    /// The session is its caller's from here on.
    pub(super) fn delivered(mut self) {
        self.made = None;
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        // From then on the entry of this id is another's.
        if !self.is_off_the_list {
            self.host.sessions().creating().remove(self.id.as_str());
        }
        let Some((session, transcripts)) = self.made.take() else { return };
        let host = Arc::clone(&self.host);
        let forgotten = (!self.is_stored).then_some(transcripts);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { discard(host.sessions(), &session, forgotten).await });
        }
    }
}

async fn discard(sessions: &SessionHost, session: &Session, forgotten: Option<Transcripts>) {
    let id = session.id().as_str();
    sessions.live.remove_this(session);
    session.close(false).await;
    let Some(transcripts) = forgotten else { return };
    if let Err(error) = transcripts.delete(id).await {
        tracing::warn!(session = id, %error, "the transcript of a session that nobody has stays");
    }
    if let Err(failure) = sessions.remove_files_of(id).await {
        tracing::warn!(session = id, reason = failure.message(), "what an agent kept stays");
    }
}

#[cfg(test)]
mod tests;
