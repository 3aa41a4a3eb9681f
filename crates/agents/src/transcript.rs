//! Transcripts: every event of every session, in SQLite, before anyone sees it.
//!
//! One thread writes ([`writer`]). It takes whatever appends are waiting, commits them in one transaction and only then
//! answers each of them, so a thousand events a second cost a few dozen commits. The database is in WAL mode with
//! `synchronous = NORMAL`: what was answered survives the death of the process at any moment; a power cut may take
//! the last moments, never the order. Several sidecars of one user share the file.
//!
//! Reading ([`reader`]) is done in pages on a second connection, off the async threads, and never waits for the writer.
//! The [`schema`] has a version; an older database is brought to it, a newer one refused.
//!
//! The numbers of a session's events have no gap: the database refuses an event that doesn't follow the last one,
//! whoever brings it.
//!
//! A session may keep [`MAX_SESSION_BYTES`]: whatever an agent does in a loop, it can't fill the disk. What would exceed
//! them is refused, which ends the session; nothing that was kept is dropped for it.

pub(crate) mod context;
mod error;
mod reader;
mod record;
mod schema;
mod title;
mod writer;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

pub use error::TranscriptError;
pub use record::{SessionDetails, SessionEnd, SessionFilter, SessionRecord, StoredSession};
use writer::{Job, Work};

/// Appends that may wait for the writer; further ones wait in their sessions.
const QUEUE: usize = 256;

/// What the events of one session may take: some hundred long turns, each word of them an event of its own.
pub const MAX_SESSION_BYTES: u64 = 512 << 20;

/// The event of a prompt: `{content}`, ACP's blocks. ACP has no notification for what the user says, and none for how a
/// turn ends; without them a transcript would be half a conversation.
pub(crate) const PROMPT: &str = "_agentos/prompt";
/// The event of a session that was brought back: `{how, lostCwd, lost, formerAgentSessionId, forgotten}`.
pub(crate) const RESTORED: &str = "_agentos/restored";
/// The event of a turn that is over: `{stopReason, rejectedPermissions}`, or `{error: {kind, message}}`.
pub(crate) const TURN_END: &str = "_agentos/turn_end";

/// What an agent says in one event that is worth taking apart: a megabyte of `[0,0,…` costs sixteen when it is. Prompts,
/// whose images are large, are the user's.
const MAX_READ_BYTES: usize = 256 << 10;

/// Whether an event is read again, for a title or for an agent that has forgotten it.
fn is_worth_reading(notification: &str) -> bool {
    // No agent can say that: what it says under names of ours is kept under another one.
    let ours = || notification.starts_with(&format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{PROMPT}\","));
    notification.len() <= MAX_READ_BYTES || ours()
}

/// One event of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the session, from 1, without gaps.
    pub sequence: u64,
    /// When it was kept, in ms since the epoch.
    pub at_ms: u64,
    /// The JSON-RPC notification.
    pub notification: Arc<str>,
}

/// Which events of a session to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// From this number on.
    pub since: u64,
    /// At most so many.
    pub limit: usize,
    /// Only notifications of this method.
    pub method: Option<String>,
}

/// Some events, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Fewer than were asked for, or even none, where they are large or far apart.
    pub events: Vec<Event>,
    /// Where to go on; `None` where nothing was left.
    pub next: Option<u64>,
}

/// The transcripts of one home. Cheap to clone; the writer ends with the last clone.
#[derive(Debug, Clone)]
pub struct Transcripts {
    writer: mpsc::Sender<Job>,
    // Held for one query, on a thread that may block.
    reader: Arc<Mutex<Connection>>,
}

impl Transcripts {
    /// Opens the database, making it where there is none. Blocks for a moment; for longer where one of an older version
    /// has much to migrate.
    pub fn open(path: &Path) -> Result<Self, TranscriptError> {
        let create = |source| TranscriptError::Create { path: path.to_owned(), source: Arc::new(source) };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(create)?;
        }
        // Transcripts hold whatever agents read: they are their owner's alone, from the first byte.
        let mut private = OpenOptions::new();
        private.write(true).create(true).truncate(false).mode(0o600).open(path).map_err(create)?;
        let connection = schema::open(path)?;
        let reader = schema::open(path)?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("transcripts".to_owned())
            .spawn(move || writer::write_all(connection, jobs))
            .map_err(create)?;
        Ok(Self { writer, reader: Arc::new(Mutex::new(reader)) })
    }

    /// Records that a session begins.
    pub async fn begin(&self, record: SessionRecord) -> Result<(), TranscriptError> {
        self.submit(Work::Begin(record)).await
    }

    /// Records what has become known of a session.
    pub async fn describe(&self, session: &str, details: SessionDetails) -> Result<(), TranscriptError> {
        self.submit(Work::Describe { session: session.to_owned(), details: Box::new(details) }).await
    }

    /// Keeps events of a session, which follow the last one. When this returns they are on disk, all or none of them.
    pub async fn append(&self, session: &str, events: Vec<Event>) -> Result<(), TranscriptError> {
        self.submit(Work::Append { session: session.to_owned(), events }).await
    }

    /// Records that a session has ended, and why. The first reason counts.
    pub async fn end(&self, session: &str, why: &str) -> Result<(), TranscriptError> {
        self.submit(Work::End { session: session.to_owned(), why: why.to_owned(), at_ms: now_ms() }).await
    }

    /// Records that a session that has ended goes on, and tells what is kept of it: further events follow these.
    pub async fn reopen(&self, session: &str) -> Result<StoredSession, TranscriptError> {
        self.submit(Work::Reopen { session: session.to_owned() }).await?;
        let unknown = || TranscriptError::UnknownSession { session: session.to_owned() };
        self.session(session).await?.ok_or_else(unknown)
    }

    /// Forgets a session and its events.
    pub async fn delete(&self, session: &str) -> Result<(), TranscriptError> {
        self.submit(Work::Delete { session: session.to_owned() }).await
    }

    /// Events of a session from a sequence number on, in order: at most `limit`, fewer where they are large. An empty
    /// answer means that there are none.
    pub async fn history(
        &self,
        session: &str,
        since: u64,
        limit: usize,
    ) -> Result<Vec<Event>, TranscriptError> {
        Ok(self.page(session, EventFilter { since, limit, method: None }).await?.events)
    }

    /// A page of a session's events.
    pub async fn page(&self, session: &str, filter: EventFilter) -> Result<Page, TranscriptError> {
        let session = session.to_owned();
        self.read(move |connection| reader::page(connection, &session, &filter)).await
    }

    /// What is kept of a session, closed ones too.
    pub async fn session(&self, session: &str) -> Result<Option<StoredSession>, TranscriptError> {
        let session = session.to_owned();
        self.read(move |connection| reader::session(connection, &session)).await
    }

    /// The sessions that are kept, the newest first, at most `limit`.
    pub async fn sessions(&self, limit: usize) -> Result<Vec<StoredSession>, TranscriptError> {
        self.list(SessionFilter { limit, ..SessionFilter::default() }).await
    }

    /// Some of the sessions that are kept, the newest first.
    pub async fn list(&self, filter: SessionFilter) -> Result<Vec<StoredSession>, TranscriptError> {
        self.read(move |connection| reader::sessions(connection, &filter)).await
    }

    async fn submit(&self, work: Work) -> Result<(), TranscriptError> {
        let (answer, written) = oneshot::channel();
        self.writer.send(Job { work, answer }).await.map_err(|_| TranscriptError::Ended)?;
        written.await.map_err(|_| TranscriptError::Ended)?
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, TranscriptError> {
        let reader = Arc::clone(&self.reader);
        let work = tokio::task::spawn_blocking(move || {
            // A panic in another query leaves nothing half done.
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            query(&connection)
        });
        let read = work.await.map_err(|_| TranscriptError::Ended)?;
        read.map_err(|source| TranscriptError::Read(Arc::new(source)))
    }
}

/// Now, in ms since the epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
