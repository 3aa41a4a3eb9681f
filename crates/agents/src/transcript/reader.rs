//! The queries, each of them bounded.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;

use super::record::SELECT;
use super::{Event, EventFilter, Page, SessionFilter, StoredSession};

/// A page of history ends after this much text, so that a page of large events stays small in memory.
const PAGE_BYTES: usize = 4 << 20;
/// And after this much was looked at in vain: other readers wait for the connection.
const SCAN_BYTES: usize = 16 << 20;

/// A page of a session's events.
pub(super) fn page(connection: &Connection, session: &str, filter: &EventFilter) -> rusqlite::Result<Page> {
    let sql =
        "SELECT sequence, at_ms, notification FROM events JOIN sessions ON events.session = sessions.key
               WHERE sessions.id = ?1 AND sequence >= ?2 ORDER BY sequence";
    let mut statement = connection.prepare_cached(sql)?;
    let since = i64::try_from(filter.since).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![session, since])?;
    let mut page = Page { events: Vec::new(), next: Some(filter.since) };
    let (mut bytes, mut scanned) = (0, 0);
    while page.events.len() < filter.limit && bytes < PAGE_BYTES && scanned < SCAN_BYTES {
        let Some(row) = rows.next()? else {
            page.next = None;
            break;
        };
        let sequence = row.get::<_, i64>(0)?.cast_unsigned();
        let notification = row.get_ref(2)?.as_str()?;
        page.next = Some(sequence.saturating_add(1));
        scanned += notification.len();
        if filter.method.as_deref().is_some_and(|method| !is(notification, method)) {
            continue;
        }
        bytes += notification.len();
        let at_ms = row.get::<_, i64>(1)?.cast_unsigned();
        page.events.push(Event { sequence, at_ms, notification: Arc::from(notification) });
    }
    Ok(page)
}

/// Whether a notification is of this method.
fn is(notification: &str, method: &str) -> bool {
    // Owned, because a method with an escape in it can't be borrowed.
    #[derive(Deserialize)]
    struct Notification {
        method: String,
    }
    serde_json::from_str::<Notification>(notification).is_ok_and(|parsed| parsed.method == method)
}

/// One session.
pub(super) fn session(connection: &Connection, id: &str) -> rusqlite::Result<Option<StoredSession>> {
    let sql = format!("{SELECT} WHERE id = ?1");
    connection.prepare_cached(&sql)?.query_row(params![id], StoredSession::of).optional()
}

/// Some sessions, the newest first.
pub(super) fn sessions(
    connection: &Connection,
    filter: &SessionFilter,
) -> rusqlite::Result<Vec<StoredSession>> {
    let sql =
        format!("{SELECT} WHERE key < ?1 AND substr(id, 1, length(?2)) = ?2 ORDER BY key DESC LIMIT ?3");
    let before = filter.before.and_then(|key| i64::try_from(key).ok()).unwrap_or(i64::MAX);
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_map(params![before, filter.id_prefix, limit], StoredSession::of)?.collect()
}
