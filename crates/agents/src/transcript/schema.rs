//! The schema, and the way to it from every older one.
//!
//! ```text
//! version 0 (no tables) ──► 1: sessions and events ──► 2: what listing and restoring need ──► 3: tallies
//! ```
//! All steps that a database lacks are one transaction, the version number included: an interrupted migration is none.
//! A new database takes the same way, so that the steps are walked by every test.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};

use super::TranscriptError;

/// The version this code writes.
pub(super) const VERSION: i64 = 3;
/// How long another process may hold the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon one that was turned away comes again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

const FIRST: &str = "
    CREATE TABLE IF NOT EXISTS sessions (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, agent_type TEXT NOT NULL, model TEXT NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS events (
        session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE, sequence INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, notification TEXT NOT NULL, PRIMARY KEY (session, sequence)
    ) STRICT, WITHOUT ROWID;
";

const SECOND: &str = "
    ALTER TABLE sessions ADD COLUMN model_reason TEXT;
    ALTER TABLE sessions ADD COLUMN cwd TEXT;
    ALTER TABLE sessions ADD COLUMN vm TEXT;
    ALTER TABLE sessions ADD COLUMN agent_session_id TEXT;
    ALTER TABLE sessions ADD COLUMN agent_version TEXT;
    ALTER TABLE sessions ADD COLUMN permission_policy TEXT;
    ALTER TABLE sessions ADD COLUMN options TEXT;
    ALTER TABLE sessions ADD COLUMN title TEXT;
    ALTER TABLE sessions ADD COLUMN updated_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN ended_ms INTEGER;
    ALTER TABLE sessions ADD COLUMN ended_why TEXT;
    ALTER TABLE sessions ADD COLUMN events INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET model_reason = (
        SELECT json_extract(notification, '$.params.reason') FROM events
        WHERE session = key AND sequence = 1 AND json_valid(notification)
            AND json_extract(notification, '$.method') = '_agentos/model'
            AND json_type(notification, '$.params.reason') = 'text'
    );
";

/// What changes with every event has a small row of its own: that of a session is as large as its options.
const THIRD: &str = "
    ALTER TABLE sessions DROP COLUMN updated_ms;
    ALTER TABLE sessions DROP COLUMN events;
    ALTER TABLE sessions DROP COLUMN bytes;
    CREATE TABLE tallies (
        session INTEGER PRIMARY KEY REFERENCES sessions (key) ON DELETE CASCADE, events INTEGER NOT NULL,
        bytes INTEGER NOT NULL, updated_ms INTEGER NOT NULL
    ) STRICT;
";

/// What is derived from the events, for every session; a condition may follow.
pub(super) const COUNT: &str = "
    INSERT OR REPLACE INTO tallies (session, events, bytes, updated_ms)
    SELECT key,
        (SELECT coalesce(max(sequence), 0) FROM events WHERE session = key),
        (SELECT coalesce(sum(octet_length(notification)), 0) FROM events WHERE session = key),
        coalesce((SELECT at_ms FROM events WHERE session = key ORDER BY sequence DESC LIMIT 1), created_ms)
    FROM sessions
";

/// Opens the database at this version, bringing an older one there. Of several that open a new one at once some are
/// turned away while its journal is made, without being waited for; they come again.
pub(super) fn open(path: &Path) -> Result<Connection, TranscriptError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match open_once(path) {
            Err(error) if error.is_busy() && Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
            opened => return opened,
        }
    }
}

fn open_once(path: &Path) -> Result<Connection, TranscriptError> {
    let failed = |source| TranscriptError::Open { path: path.to_owned(), source: Arc::new(source) };
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // Before anything is set: the settings below are written into the file.
    let found = version(&connection).map_err(failed)?;
    if found > VERSION {
        return Err(TranscriptError::Newer { path: path.to_owned(), found, known: VERSION });
    }
    settle(&connection).map_err(failed)?;
    if found < VERSION {
        migrate(&mut connection, |_| Ok(())).map_err(failed)?;
    }
    Ok(connection)
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// All that is missing, or nothing. `before_commit` is the last word.
fn migrate(
    connection: &mut Connection,
    before_commit: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been here while this one waited.
    let found = version(&transaction)?;
    if found >= VERSION {
        return Ok(());
    }
    if found < 1 {
        transaction.execute_batch(FIRST)?;
    }
    // Version 1 wrote its number whenever it opened a database, also one that had been brought further meanwhile.
    let has = |table: &str, column: &str| {
        let sql = "SELECT count(*) > 0 FROM pragma_table_info(?1) WHERE name = ?2";
        transaction.query_row(sql, [table, column], |row| row.get::<_, bool>(0))
    };
    if !has("sessions", "cwd")? {
        transaction.execute_batch(SECOND)?;
    }
    if !has("tallies", "session")? {
        transaction.execute_batch(THIRD)?;
    }
    transaction.execute(COUNT, [])?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    before_commit(&transaction)?;
    transaction.commit()
}

#[cfg(test)]
mod tests;
