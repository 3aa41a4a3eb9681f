//! The events of one live session: kept on disk first, then shown, to any number of readers.
//!
//! The last 1,024 are in memory. A reader is a position in the sequence: it takes from memory what is there, from the
//! database what is older, and waits at the end. So it may be as slow as it likes, nothing is lost and nothing comes
//! twice; for a slow one nothing is held in memory beyond a page. There is one publisher, the session's owner task, which
//! is why the sequence needs no lock of its own.
//!
//! The sequence of a session that is brought back goes on where it ended ([`EventLog::resume`]).
//!
//! The transcript is bounded. What would exceed it is not kept, so it isn't shown either: one last event says that the
//! transcript is full, and the publisher is told, who ends the session. Nothing comes behind that event, but where the
//! session is brought back nevertheless and has a little room left.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::SessionId;
use super::error::AgentFault;
use crate::transcript::{Event, MAX_SESSION_BYTES, TranscriptError, Transcripts, now_ms};
use crate::wire::acp;

/// Events kept in memory.
const RING_EVENTS: usize = 1024;
/// Events of the ring are also bounded by their size: 1,024 diffs of large files would not be small.
const RING_BYTES: usize = 8 << 20;
/// What an event costs beside its text; a flood of empty ones must find an end too.
const EVENT_BYTES: usize = 64;
/// The event of a transcript that takes no more: `{limitBytes}`.
const FULL: &str = "_agentos/transcript_full";
/// Events read from the database at once.
const PAGE_EVENTS: usize = 256;

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    bytes: usize,
    /// Of all events there were, in the database.
    kept_bytes: u64,
    /// Whether something was refused for its size.
    full: bool,
}

/// Where the sequence ends, and whether it has ended for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct End {
    last: u64,
    closed: bool,
}

/// One session's events.
#[derive(Debug)]
pub(super) struct EventLog {
    session: SessionId,
    transcripts: Transcripts,
    // Held for a few copies of Arcs, never across an await.
    ring: Mutex<Ring>,
    end: watch::Sender<End>,
    max_bytes: u64,
}

impl EventLog {
    pub(super) fn new(session: SessionId, transcripts: Transcripts) -> Self {
        Self::resume(session, transcripts, 0, 0)
    }

    /// The log of a session that goes on, of which so many events with so many bytes are kept.
    pub(super) fn resume(session: SessionId, transcripts: Transcripts, events: u64, bytes: u64) -> Self {
        let kept_bytes = bytes.saturating_add(events.saturating_mul(EVENT_BYTES as u64));
        let ring = Mutex::new(Ring { kept_bytes, ..Ring::default() });
        let end = watch::Sender::new(End { last: events, closed: false });
        Self { session, transcripts, ring, end, max_bytes: MAX_SESSION_BYTES }
    }

    /// Keeps and shows events, in order. Only the session's owner calls this, one call after the other.
    pub(super) async fn publish(&self, notifications: Vec<String>) -> Result<(), TranscriptError> {
        if notifications.is_empty() {
            return Ok(());
        }
        let new_bytes: usize = notifications.iter().map(|text| text.len() + EVENT_BYTES).sum();
        let kept_bytes = self.ring().kept_bytes.saturating_add(new_bytes as u64);
        let limit_bytes = self.max_bytes;
        let was_full = self.ring().full;
        if was_full {
            return Err(TranscriptError::Full { limit_bytes });
        }
        if kept_bytes > limit_bytes {
            if !self.says_full().await? {
                let params = serde_json::json!({ "limitBytes": limit_bytes });
                self.keep(vec![acp::notification(FULL, &params)]).await?;
            }
            self.ring().full = true;
            return Err(TranscriptError::Full { limit_bytes });
        }
        self.keep(notifications).await?;
        self.ring().kept_bytes = kept_bytes;
        Ok(())
    }

    /// Whether the last event says that the transcript is full: it may be a former life's.
    async fn says_full(&self) -> Result<bool, TranscriptError> {
        let newest = match (self.newest(), self.last()) {
            (None, last) if last > 0 => self.transcripts.history(self.session.as_str(), last, 1).await?.pop(),
            (newest, _) => newest,
        };
        // No agent can say that: what it says under names of ours is kept under another one.
        let said = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{FULL}\",");
        Ok(newest.is_some_and(|event| event.notification.starts_with(&said)))
    }

    async fn keep(&self, notifications: Vec<String>) -> Result<(), TranscriptError> {
        let (last, at_ms) = (self.end.borrow().last, now_ms());
        let numbered = notifications.into_iter().zip(last + 1..);
        let events: Vec<Event> = numbered
            .map(|(notification, sequence)| Event { sequence, at_ms, notification: notification.into() })
            .collect();
        self.transcripts.append(self.session.as_str(), events.clone()).await?;
        let last = events.last().map_or(last, |event| event.sequence);
        self.ring().extend(events);
        self.end.send_modify(|end| end.last = last);
        Ok(())
    }

    /// The number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.end.borrow().last
    }

    /// Keeps why there are no more events, and closes.
    pub(super) async fn end(&self, fault: &AgentFault) {
        let why = match fault {
            AgentFault::Closed => "closed".to_owned(),
            AgentFault::Transcript(source) => format!("{fault}: {source}"),
            fault => fault.to_string(),
        };
        if let Err(error) = self.transcripts.end(self.session.as_str(), &why).await {
            tracing::debug!(session = %self.session, %error, "the end of a session is not kept");
        }
        self.close();
    }

    /// The event that was kept last.
    pub(super) fn newest(&self) -> Option<Event> {
        self.ring().events.back().cloned()
    }

    /// No more events come.
    pub(super) fn close(&self) {
        self.end.send_modify(|end| end.closed = true);
    }

    /// Resolves when no more events come.
    pub(super) async fn closed(&self) {
        // The sender lives in `self`, so this can't fail.
        let _ = self.end.subscribe().wait_for(|end| end.closed).await;
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn extend(&mut self, events: Vec<Event>) {
        for event in events {
            self.bytes += event.notification.len();
            self.events.push_back(event);
        }
        while self.events.len() > RING_EVENTS || (self.bytes > RING_BYTES && self.events.len() > 1) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.notification.len();
        }
    }

    fn get(&self, sequence: u64) -> Option<Event> {
        let first = self.events.front()?.sequence;
        let at = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.events.get(at).cloned()
    }
}

/// A reader of one session's events, from a sequence number on. Each reader sees all of them.
#[derive(Debug)]
pub struct Events {
    log: Arc<EventLog>,
    end: watch::Receiver<End>,
    next: u64,
    page: VecDeque<Event>,
}

impl Events {
    pub(super) fn new(log: Arc<EventLog>, since: u64) -> Self {
        let end = log.end.subscribe();
        Self { log, end, next: since.max(1), page: VecDeque::new() }
    }

    /// The number of the newest event there is.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.end.borrow().last
    }

    /// The next event; `None` once the session is closed and all of them were given. A dropped call loses nothing.
    pub async fn next(&mut self) -> Option<Result<Event, TranscriptError>> {
        loop {
            // The end is looked at first: an event published after this look wakes the wait below.
            let end = *self.end.borrow_and_update();
            if let Some(event) = self.page.pop_front() {
                return Some(Ok(self.advance(event)));
            }
            if self.next <= end.last {
                let held = self.log.ring().get(self.next);
                if let Some(event) = held {
                    return Some(Ok(self.advance(event)));
                }
                let page =
                    self.log.transcripts.history(self.log.session.as_str(), self.next, PAGE_EVENTS).await;
                match page {
                    // The session was deleted under its reader.
                    Ok(page) if page.is_empty() => return None,
                    Ok(page) => self.page = page.into(),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            }
            if end.closed || self.end.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The event's successor is next.
    fn advance(&mut self, event: Event) -> Event {
        self.next = event.sequence + 1;
        event
    }
}

#[cfg(test)]
mod tests;
