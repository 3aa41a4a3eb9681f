//! The one thread that writes: one commit for all that waits, then all the answers.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::record::policy_name;
use super::schema::COUNT;
use super::title::{self, Title};
use super::{Event, SessionDetails, SessionRecord, TranscriptError};

/// Appends that go into one commit at most, so that the first of them doesn't wait for a stream without an end.
const BATCH: usize = 512;

#[derive(Debug)]
pub(super) enum Work {
    Begin(SessionRecord),
    Describe { session: String, details: Box<SessionDetails> },
    Append { session: String, events: Vec<Event> },
    End { session: String, why: String, at_ms: u64 },
    Reopen { session: String },
    Delete { session: String },
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) answer: oneshot::Sender<Result<(), TranscriptError>>,
}

/// Why a piece of work is not done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error("event {found} instead of {expected}")]
    Sequence { session: String, expected: u64, found: u64 },
    #[error("an unknown session")]
    UnknownSession { session: String },
}

impl From<Refusal> for TranscriptError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Database(source) => Self::Write(Arc::new(source)),
            Refusal::Sequence { session, expected, found } => Self::Sequence { session, expected, found },
            Refusal::UnknownSession { session } => Self::UnknownSession { session },
        }
    }
}

/// The writer's life; it ends with the last sender.
pub(super) fn write_all(mut connection: Connection, mut jobs: mpsc::Receiver<Job>) {
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

fn answer(job: Job, written: Result<(), Refusal>) {
    // A caller that left doesn't want it.
    let _ = job.answer.send(written.map_err(TranscriptError::from));
}

fn write_batch<'a>(
    connection: &mut Connection,
    batch: impl Iterator<Item = &'a Work>,
) -> Result<(), Refusal> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for work in batch {
        match work {
            Work::Begin(record) => begin(&transaction, record)?,
            Work::Describe { session, details } => describe(&transaction, session, details)?,
            Work::Append { session, events } => append(&transaction, session, events)?,
            Work::End { session, why, at_ms } => {
                let sql =
                    "UPDATE sessions SET ended_ms = ?2, ended_why = ?3 WHERE id = ?1 AND ended_ms IS NULL";
                transaction.prepare_cached(sql)?.execute(params![session, at_ms.cast_signed(), why])?;
            }
            Work::Reopen { session } => reopen(&transaction, session)?,
            Work::Delete { session } => {
                transaction.execute("DELETE FROM sessions WHERE id = ?1", params![session])?;
            }
        }
    }
    Ok(transaction.commit()?)
}

fn begin(connection: &Connection, record: &SessionRecord) -> Result<(), Refusal> {
    let sql = "INSERT INTO sessions (id, agent_type, model, created_ms) VALUES (?1, ?2, ?3, ?4)";
    let created = record.created_ms.cast_signed();
    connection.prepare_cached(sql)?.execute(params![record.id, record.agent_type, record.model, created])?;
    Ok(())
}

fn describe(connection: &Connection, session: &str, details: &SessionDetails) -> Result<(), Refusal> {
    let sql =
        "UPDATE sessions SET model_reason = ?2, cwd = ?3, vm = ?4, agent_session_id = ?5, agent_version = ?6,
               permission_policy = ?7, options = ?8 WHERE id = ?1";
    let policy = details.permission_policy.map(policy_name);
    let changed = connection.prepare_cached(sql)?.execute(params![
        session,
        details.model_reason,
        details.cwd,
        details.vm,
        details.agent_session_id,
        details.agent_version,
        policy,
        details.options,
    ])?;
    known(changed, session)
}

fn append(connection: &Connection, session: &str, events: &[Event]) -> Result<(), Refusal> {
    let sql =
        "SELECT key, (SELECT coalesce(max(sequence), 0) FROM events WHERE session = key), agent_session_id
               FROM sessions WHERE id = ?1";
    let read =
        |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned(), row.get(2)?));
    let Some((key, kept, own)): Option<(i64, u64, Option<String>)> =
        connection.prepare_cached(sql)?.query_row(params![session], read).optional()?
    else {
        return Err(Refusal::UnknownSession { session: session.to_owned() });
    };
    let sql = "INSERT INTO events (session, sequence, at_ms, notification) VALUES (?1, ?2, ?3, ?4)";
    let mut insert = connection.prepare_cached(sql)?;
    let (mut bytes, mut by_agent, mut by_prompt) = (0, None, None);
    for (event, expected) in events.iter().zip(kept + 1..) {
        if event.sequence != expected {
            return Err(Refusal::Sequence { session: session.to_owned(), expected, found: event.sequence });
        }
        let at = event.at_ms.cast_signed();
        insert.execute(params![key, expected.cast_signed(), at, &*event.notification])?;
        bytes += event.notification.len() as u64;
        match title::of(&event.notification, own.as_deref()) {
            Some(Title::Agent(title)) => by_agent = Some(title),
            Some(Title::Prompt(title)) => by_prompt = by_prompt.or(Some(title)),
            None => {}
        }
    }
    let Some(last) = events.last() else { return Ok(()) };
    let sql = "INSERT INTO tallies (session, events, bytes, updated_ms) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (session) DO UPDATE SET
                   events = excluded.events, bytes = bytes + excluded.bytes, updated_ms = excluded.updated_ms";
    let (sequence, at) = (last.sequence.cast_signed(), last.at_ms.cast_signed());
    connection.prepare_cached(sql)?.execute(params![key, sequence, u64::cast_signed(bytes), at])?;
    if by_agent.is_some() || by_prompt.is_some() {
        let sql = "UPDATE sessions SET title = coalesce(?2, title, ?3) WHERE key = ?1";
        connection.prepare_cached(sql)?.execute(params![key, by_agent, by_prompt])?;
    }
    Ok(())
}

/// An older agentOS that shares the file counts nothing; here the session goes on, so that the numbers must be right.
fn reopen(connection: &Connection, session: &str) -> Result<(), Refusal> {
    let sql = "UPDATE sessions SET ended_ms = NULL, ended_why = NULL WHERE id = ?1";
    known(connection.prepare_cached(sql)?.execute(params![session])?, session)?;
    let sql = format!(
        "{COUNT} WHERE id = ?1 AND NOT EXISTS (
             SELECT 1 FROM tallies WHERE session = key
                 AND events = (SELECT coalesce(max(sequence), 0) FROM events WHERE session = key)
         )"
    );
    connection.prepare_cached(&sql)?.execute(params![session])?;
    Ok(())
}

fn known(changed: usize, session: &str) -> Result<(), Refusal> {
    match changed {
        0 => Err(Refusal::UnknownSession { session: session.to_owned() }),
        _ => Ok(()),
    }
}
