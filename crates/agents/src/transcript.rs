//! Transcripts: every event of every session, in SQLite, before anyone sees it.
//!
//! One thread writes. It takes whatever appends are waiting, commits them in one transaction and only then answers
//! each of them, so a thousand events a second cost a few dozen commits. The database is in WAL mode with
//! `synchronous = NORMAL`: what was answered survives the death of the process at any moment; a power cut may take
//! the last moments, never the order. Several sidecars of one user share the file.
//!
//! Reading is done in pages on a second connection, off the async threads, and never waits for the writer.
//!
//! A session may keep [`MAX_SESSION_BYTES`]: whatever an agent does in a loop, it can't fill the disk. What would exceed
//! them is refused, which ends the session; nothing that was kept is dropped for it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

/// Appends that may wait for the writer; further ones wait in their sessions.
const QUEUE: usize = 256;
/// Appends that go into one commit at most, so that the first of them doesn't wait for a stream without an end.
const BATCH: usize = 512;
/// How long another process may hold the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A page of history ends after this much text, so that a page of large events stays small in memory.
const PAGE_BYTES: usize = 4 << 20;

/// What the events of one session may take: some hundred long turns, each word of them an event of its own.
pub const MAX_SESSION_BYTES: u64 = 512 << 20;

/// One event of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the session, from 1, without gaps.
    pub sequence: u64,
    /// The JSON-RPC notification.
    pub notification: Arc<str>,
}

/// What is kept of a session beside its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// The session.
    pub id: String,
    /// Which agent.
    pub agent_type: String,
    /// `demo` or `provider`.
    pub model: String,
    /// When it began, in ms since the epoch.
    pub created_ms: u64,
}

/// A transcript can't be written or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TranscriptError {
    /// The database can't be opened.
    #[error("opening {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The database can't be made private to its owner.
    #[error("making {}", path.display())]
    Create {
        /// The database.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// An append was refused; nothing of it is kept.
    #[error("writing a transcript")]
    Write(#[source] Arc<rusqlite::Error>),
    /// A page can't be read.
    #[error("reading a transcript")]
    Read(#[source] Arc<rusqlite::Error>),
    /// The session has kept all that it may.
    #[error("the session's transcript is full: it may hold {limit_bytes} bytes")]
    Full {
        /// The bound.
        limit_bytes: u64,
    },
    /// The writer has ended.
    #[error("the transcript writer has ended")]
    Ended,
}

impl TranscriptError {
    /// Whether there was no room: beyond the session's bound, or on the disk.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Write(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            _ => false,
        }
    }
}

/// The transcripts of one home. Cheap to clone; the writer ends with the last clone.
#[derive(Debug, Clone)]
pub struct Transcripts {
    writer: mpsc::Sender<Job>,
    reader: Arc<Mutex<Connection>>,
}

type Answer = oneshot::Sender<Result<(), TranscriptError>>;

#[derive(Debug)]
enum Work {
    Begin(SessionRecord),
    Append { session: String, events: Vec<Event> },
    Delete { session: String },
}

#[derive(Debug)]
struct Job {
    work: Work,
    answer: Answer,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS sessions (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, agent_type TEXT NOT NULL, model TEXT NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS events (
        session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE, sequence INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, notification TEXT NOT NULL, PRIMARY KEY (session, sequence)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;
";

impl Transcripts {
    /// Opens the database, making it where there is none. Blocks for a moment.
    pub fn open(path: &Path) -> Result<Self, TranscriptError> {
        let create = |source| TranscriptError::Create { path: path.to_owned(), source: Arc::new(source) };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(create)?;
        }
        // Transcripts hold whatever agents read: they are their owner's alone, from the first byte.
        let mut private = OpenOptions::new();
        private.write(true).create(true).truncate(false).mode(0o600).open(path).map_err(create)?;
        let open = |source| TranscriptError::Open { path: path.to_owned(), source: Arc::new(source) };
        let connection = connect(path).map_err(open)?;
        connection.execute_batch(SCHEMA).map_err(open)?;
        let reader = connect(path).map_err(open)?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("transcripts".to_owned())
            .spawn(move || write_all(connection, jobs))
            .map_err(create)?;
        Ok(Self { writer, reader: Arc::new(Mutex::new(reader)) })
    }

    /// Records that a session begins.
    pub async fn begin(&self, record: SessionRecord) -> Result<(), TranscriptError> {
        self.submit(Work::Begin(record)).await
    }

    /// Keeps events of a session. When this returns they are on disk, all or none of them.
    pub async fn append(&self, session: &str, events: Vec<Event>) -> Result<(), TranscriptError> {
        self.submit(Work::Append { session: session.to_owned(), events }).await
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
        let session = session.to_owned();
        self.read(move |connection| read_page(connection, &session, since, limit)).await
    }

    /// What is kept of a session, closed ones too.
    pub async fn session(&self, session: &str) -> Result<Option<SessionRecord>, TranscriptError> {
        let session = session.to_owned();
        self.read(move |connection| {
            let sql = "SELECT id, agent_type, model, created_ms FROM sessions WHERE id = ?1";
            connection.prepare_cached(sql)?.query_row(params![session], record_of).optional()
        })
        .await
    }

    /// The sessions that are kept, the newest first, at most `limit`.
    pub async fn sessions(&self, limit: usize) -> Result<Vec<SessionRecord>, TranscriptError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |connection| {
            let sql = "SELECT id, agent_type, model, created_ms FROM sessions ORDER BY key DESC LIMIT ?1";
            connection.prepare_cached(sql)?.query_map(params![limit], record_of)?.collect()
        })
        .await
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
            // Held for one query, on a thread that may block. A panic in another query leaves nothing half done.
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            query(&connection)
        });
        let read = work.await.map_err(|_| TranscriptError::Ended)?;
        read.map_err(|source| TranscriptError::Read(Arc::new(source)))
    }
}

fn record_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<SessionRecord> {
    Ok(SessionRecord {
        id: row.get(0)?,
        agent_type: row.get(1)?,
        model: row.get(2)?,
        created_ms: row.get::<_, i64>(3)?.cast_unsigned(),
    })
}

/// Now, in ms since the epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// The writer: one commit for all that waits, then all the answers.
fn write_all(mut connection: Connection, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            let Ok(job) = jobs.try_recv() else { break };
            batch.push(job);
        }
        match write_batch(&mut connection, batch.iter().map(|job| &job.work)) {
            Ok(()) => batch.into_iter().for_each(|job| answer(job, Ok(()))),
            // One session's refused event must not cost the others theirs: each on its own.
            Err(error) if batch.len() > 1 => {
                tracing::debug!(%error, "a batch of transcripts is written one by one");
                for job in batch {
                    let written = write_batch(&mut connection, std::iter::once(&job.work));
                    answer(job, written);
                }
            }
            Err(error) => {
                if let Some(job) = batch.pop() {
                    answer(job, Err(error));
                }
            }
        }
    }
}

fn answer(job: Job, written: rusqlite::Result<()>) {
    let _ = job.answer.send(written.map_err(|source| TranscriptError::Write(Arc::new(source))));
}

fn write_batch<'a>(
    connection: &mut Connection,
    batch: impl Iterator<Item = &'a Work>,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for work in batch {
        match work {
            Work::Begin(record) => begin(&transaction, record)?,
            Work::Append { session, events } => append(&transaction, session, events)?,
            Work::Delete { session } => {
                transaction.execute("DELETE FROM sessions WHERE id = ?1", params![session])?;
            }
        }
    }
    transaction.commit()
}

fn begin(connection: &Connection, record: &SessionRecord) -> rusqlite::Result<()> {
    let sql = "INSERT INTO sessions (id, agent_type, model, created_ms) VALUES (?1, ?2, ?3, ?4)";
    let created = record.created_ms.cast_signed();
    connection.prepare_cached(sql)?.execute(params![record.id, record.agent_type, record.model, created])?;
    Ok(())
}

fn append(connection: &Connection, session: &str, events: &[Event]) -> rusqlite::Result<()> {
    let sql = "SELECT key FROM sessions WHERE id = ?1";
    let key: i64 = connection.prepare_cached(sql)?.query_row(params![session], |row| row.get(0))?;
    let sql = "INSERT INTO events (session, sequence, at_ms, notification) VALUES (?1, ?2, ?3, ?4)";
    let mut insert = connection.prepare_cached(sql)?;
    let at = now_ms().cast_signed();
    for event in events {
        insert.execute(params![key, event.sequence.cast_signed(), at, &*event.notification])?;
    }
    Ok(())
}

fn read_page(
    connection: &Connection,
    session: &str,
    since: u64,
    limit: usize,
) -> rusqlite::Result<Vec<Event>> {
    let sql = "SELECT sequence, notification FROM events JOIN sessions ON events.session = sessions.key
               WHERE sessions.id = ?1 AND sequence >= ?2 ORDER BY sequence LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let since = i64::try_from(since).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![session, since, limit])?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let notification: Arc<str> = row.get_ref(1)?.as_str()?.into();
        bytes += notification.len();
        page.push(Event { sequence: row.get::<_, i64>(0)?.cast_unsigned(), notification });
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64) -> Event {
        Event { sequence, notification: format!("{{\"n\":{sequence}}}").into() }
    }

    fn record(id: &str) -> SessionRecord {
        SessionRecord {
            id: id.to_owned(),
            agent_type: "pi".to_owned(),
            model: "demo".to_owned(),
            created_ms: now_ms(),
        }
    }

    #[tokio::test]
    async fn events_come_back_in_order_after_the_database_is_opened_again() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("deep/sessions.db");
        let first = Transcripts::open(&path).unwrap();
        first.begin(record("a")).await.unwrap();
        first.append("a", (1..=3).map(event).collect()).await.unwrap();
        drop(first);

        let again = Transcripts::open(&path).unwrap();
        again.append("a", vec![event(4)]).await.unwrap();
        let all = again.history("a", 1, 100).await.unwrap();
        assert_eq!(all, (1..=4).map(event).collect::<Vec<_>>());
        assert_eq!(again.history("a", 3, 1).await.unwrap(), [event(3)]);
        assert!(again.history("b", 1, 1).await.unwrap().is_empty());
        assert_eq!(again.session("a").await.unwrap().unwrap().agent_type, "pi");
        again.begin(record("b")).await.unwrap();
        let kept: Vec<String> = again.sessions(9).await.unwrap().into_iter().map(|kept| kept.id).collect();
        assert_eq!(kept, ["b", "a"]);
    }

    #[tokio::test]
    async fn a_refused_append_leaves_the_others_of_its_batch() {
        let home = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
        transcripts.begin(record("a")).await.unwrap();
        transcripts.append("a", vec![event(1)]).await.unwrap();
        let results = tokio::join!(
            transcripts.append("a", vec![event(2)]),
            transcripts.append("a", vec![event(1)]),
            transcripts.append("unknown", vec![event(1)]),
            transcripts.append("a", vec![event(3)]),
        );
        assert!(results.0.is_ok() && results.3.is_ok(), "{results:?}");
        assert!(matches!(results.1, Err(TranscriptError::Write(_))), "a sequence number is used once");
        assert!(results.2.is_err(), "a session that never began has no events");
        assert_eq!(transcripts.history("a", 1, 9).await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn two_processes_share_one_file_and_deleting_forgets_the_events() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("s.db");
        let (one, two) = (Transcripts::open(&path).unwrap(), Transcripts::open(&path).unwrap());
        one.begin(record("a")).await.unwrap();
        two.begin(record("b")).await.unwrap();
        let (a, b) =
            tokio::join!(one.append("a", vec![event(1)]), two.append("b", (1..=500).map(event).collect()));
        a.unwrap();
        b.unwrap();
        assert_eq!(one.history("b", 1, 1000).await.unwrap().len(), 500);
        two.delete("b").await.unwrap();
        assert!(one.history("b", 1, 1000).await.unwrap().is_empty());
        assert!(one.session("b").await.unwrap().is_none());
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o077, 0, "transcripts are their owner's alone");
    }
}
