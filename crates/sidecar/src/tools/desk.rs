//! Where calls of host tools wait for the client that carries them out.
//!
//! ```text
//! call ─► allowed? fits? ─► a slot ─► ToolEvent::Call ─► the client ─► outcome
//!           │                 │            └ too late, or nobody waits: ToolEvent::Cancelled
//!           └─ refused        └ waits: of all calls so many are with the client at once
//! ```
//! The deadline of a call counts from its beginning, waiting for a slot included. A client that goes away fails all that it
//! had; what it says of a call that nobody waits for any more is dropped.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::mpsc::{self, Permit};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::ToolOffer;
use super::offer::{MAX_NAME_CHARS, Tool};

/// Calls of one VM that are with the client at once.
const CALLS_AT_ONCE: usize = 16;

/// A call has places for two events before it is sent, itself and its end, so that no client carries out a call and never
/// hears that nobody waits for it.
const WAITING_EVENTS: usize = 2 * CALLS_AT_ONCE;

/// Longer answers help no model, nor do longer reasons.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// What the client is told.
#[derive(Debug, PartialEq)]
pub(crate) enum ToolEvent {
    Call { id: u64, kit: String, tool: String, input: String },
    Cancelled { id: u64 },
}

/// What the client says of a call: JSON, or why there is none.
pub(crate) type Outcome = Result<String, String>;

/// Why a call came to nothing; whoever called reads it.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum CallError {
    #[error("there is no host tool {0}")]
    Unknown(String),
    #[error("the permissions of this VM deny the host tool {0}")]
    Denied(String),
    #[error("the input does not fit the tool's schema: {0}")]
    Input(String),
    #[error("the application that offers the host tools is not there")]
    NobodyServes,
    #[error("the application that offers the host tools has gone")]
    Gone,
    #[error("the host tool did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("{0}")]
    Failed(String),
    #[error("the host tool's answer has {0} bytes, of at most {MAX_ANSWER_BYTES}")]
    TooLong(usize),
    #[error("the host tool's answer is no JSON: {0}")]
    NoJson(String),
}

/// A second client wants to serve a VM's tools.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("a client serves the host tools of this VM already")]
    Served,
    #[error("the VM is gone")]
    Closed,
}

#[derive(Debug)]
pub(crate) struct ToolDesk {
    offer: ToolOffer,
    slots: Semaphore,
    next: AtomicU64,
    // Held for look-ups alone.
    line: Mutex<Line>,
}

/// The client, and the calls that are with it.
#[derive(Debug, Default)]
struct Line {
    events: Option<mpsc::Sender<ToolEvent>>,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    closed: bool,
}

/// A client that serves. Dropped, the calls that are with it fail.
#[derive(Debug)]
pub(crate) struct Serving(Arc<ToolDesk>);

impl ToolDesk {
    pub(crate) fn new(offer: ToolOffer) -> Self {
        let slots = Semaphore::new(CALLS_AT_ONCE);
        Self { offer, slots, next: AtomicU64::new(1), line: Mutex::default() }
    }

    pub(crate) fn offer(&self) -> &ToolOffer {
        &self.offer
    }

    /// Lets a client carry out calls from now on.
    pub(crate) fn serve(self: &Arc<Self>) -> Result<(Serving, mpsc::Receiver<ToolEvent>), ServeError> {
        let mut line = self.line();
        if line.closed {
            return Err(ServeError::Closed);
        }
        if line.events.is_some() {
            return Err(ServeError::Served);
        }
        let (events, receiver) = mpsc::channel(WAITING_EVENTS);
        line.events = Some(events);
        Ok((Serving(Arc::clone(self)), receiver))
    }

    /// The VM is gone: nobody serves it any more.
    pub(crate) fn close(&self) {
        *self.line() = Line { closed: true, ..Line::default() };
    }

    /// Has the client carry out one call, and gives its answer as models read it. Dropped, the client is told that nobody
    /// waits for it.
    pub(crate) async fn call(&self, known_as: &str, input: Value) -> Result<String, CallError> {
        let tool = self
            .offer
            .get(known_as)
            .ok_or_else(|| CallError::Unknown(known_as.chars().take(MAX_NAME_CHARS).collect()))?;
        if !tool.allowed {
            return Err(CallError::Denied(known_as.to_owned()));
        }
        tool.check(&input).map_err(CallError::Input)?;
        // What waits for its turn takes many times less room as text.
        let text = input.to_string();
        drop(input);
        match timeout(tool.timeout, self.carried_out(tool, text)).await {
            Ok(answered) => read(answered?),
            Err(_) => Err(CallError::TimedOut(tool.timeout)),
        }
    }

    async fn carried_out(&self, tool: &Tool, input: String) -> Result<Outcome, CallError> {
        // Nobody closes it.
        let _slot = self.slots.acquire().await;
        let events = self.line().events.clone().ok_or(CallError::NobodyServes)?;
        let mut places = events.reserve_many(2).await.map_err(|_| CallError::Gone)?;
        let (call, end) = places.next().zip(places.next()).ok_or(CallError::Gone)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        {
            let mut line = self.line();
            // Another client may serve by now.
            let serves = line.events.as_ref().is_some_and(|now| now.same_channel(&events));
            if !serves {
                return Err(CallError::Gone);
            }
            line.waiting.insert(id, answer);
        }
        let waiting = Waiting { desk: self, end: Some(end), id };
        call.send(ToolEvent::Call { id, kit: tool.kit.clone(), tool: tool.name.clone(), input });
        let outcome = answered.await.map_err(|_| CallError::Gone)?;
        drop(waiting);
        Ok(outcome)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Every change is one insert, one removal or one assignment.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serving {
    /// What came of a call.
    pub(crate) fn settle(&self, id: u64, outcome: Outcome) {
        let waiting = self.0.line().waiting.remove(&id);
        if waiting.is_none_or(|waiting| waiting.send(outcome).is_err()) {
            tracing::debug!(id, "nobody waits for this call of a host tool any more");
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut line = self.0.line();
        line.events = None;
        line.waiting.clear();
    }
}

/// A call that is with the client.
struct Waiting<'a> {
    desk: &'a ToolDesk,
    end: Option<Permit<'a, ToolEvent>>,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let unanswered = self.desk.line().waiting.remove(&self.id).is_some();
        if let Some(end) = self.end.take().filter(|_| unanswered) {
            end.send(ToolEvent::Cancelled { id: self.id });
        }
    }
}

/// The text for a model: a string as it is, since quotes around it would be escaped a second time, and all else as JSON,
/// which is looked at but not built up in memory.
fn read(outcome: Outcome) -> Result<String, CallError> {
    let (Ok(said) | Err(said)) = &outcome;
    if said.len() > MAX_ANSWER_BYTES {
        return Err(CallError::TooLong(said.len()));
    }
    let output = outcome.map_err(CallError::Failed)?;
    let is_text = output.trim_start().starts_with('"');
    let read = if is_text {
        serde_json::from_str(&output)
    } else {
        serde_json::from_str::<IgnoredAny>(&output).map(|_| output)
    };
    read.map_err(|error| CallError::NoJson(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::offer::tests::offer;
    use super::*;

    fn desk() -> Arc<ToolDesk> {
        Arc::new(ToolDesk::new(offer(Default::default())))
    }

    fn wait_for(what: &str) -> Value {
        json!({ "for": what })
    }

    /// The id of the call that the client is told of next.
    async fn called(events: &mut mpsc::Receiver<ToolEvent>) -> u64 {
        match events.recv().await {
            Some(ToolEvent::Call { id, kit, tool, .. }) => {
                assert_eq!((kit.as_str(), tool.as_str()), ("clock", "wait"));
                id
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_call_goes_to_the_client_and_its_outcome_comes_back() {
        let desk = desk();
        let (serving, mut events) = desk.serve().unwrap();
        for (outcome, expected) in [
            (Ok("[1]".to_owned()), Ok("[1]".to_owned())),
            (Ok(r#""a \"b\"""#.to_owned()), Ok(r#"a "b""#.to_owned())),
            (Err("no clock".to_owned()), Err(CallError::Failed("no clock".to_owned()))),
            (Err("x".repeat(MAX_ANSWER_BYTES + 1)), Err(CallError::TooLong(MAX_ANSWER_BYTES + 1))),
            (Ok("x".repeat(MAX_ANSWER_BYTES + 1)), Err(CallError::TooLong(MAX_ANSWER_BYTES + 1))),
        ] {
            let (answer, ()) = tokio::join!(desk.call("clock_wait", wait_for("it")), async {
                let id = called(&mut events).await;
                serving.settle(id + 1, Ok("of another call".to_owned()));
                serving.settle(id, outcome);
            });
            assert_eq!(answer, expected);
        }
        let (answer, ()) = tokio::join!(desk.call("clock_wait", wait_for("it")), async {
            serving.settle(called(&mut events).await, Ok("[1".to_owned()));
        });
        assert!(matches!(answer, Err(CallError::NoJson(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn what_is_wrong_never_reaches_the_client() {
        let denied = agentos_proto::v1::ToolPermissions { denied: true, rules: Vec::new() };
        let denying = Arc::new(ToolDesk::new(offer(denied)));
        let (_serving, mut events) = denying.serve().unwrap();
        let refused = denying.call("clock_wait", wait_for("it")).await;
        assert_eq!(refused, Err(CallError::Denied("clock_wait".to_owned())));

        let desk = desk();
        assert_eq!(desk.call("clock_wait", wait_for("it")).await, Err(CallError::NobodyServes));
        let (_serving, mut others) = desk.serve().unwrap();
        assert!(matches!(desk.call("clock_go", json!({})).await, Err(CallError::Unknown(_))));
        assert!(matches!(desk.call("clock_wait", json!({})).await, Err(CallError::Input(_))));
        assert!(events.try_recv().is_err() && others.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_is_taken_back() {
        let desk = desk();
        let (serving, mut events) = desk.serve().unwrap();
        let late = desk.call("clock_wait", wait_for("ever")).await;
        assert_eq!(late, Err(CallError::TimedOut(Duration::from_secs(1))));
        let id = called(&mut events).await;
        assert_eq!(events.recv().await, Some(ToolEvent::Cancelled { id }));
        serving.settle(id, Ok("null".to_owned()));
        assert!(desk.line().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_client_that_goes_fails_its_calls_and_another_may_come() {
        let desk = desk();
        let (serving, mut events) = desk.serve().unwrap();
        assert!(matches!(desk.serve(), Err(ServeError::Served)));
        let (answer, ()) = tokio::join!(desk.call("clock_wait", wait_for("it")), async {
            called(&mut events).await;
            drop(serving);
        });
        assert_eq!(answer, Err(CallError::Gone));
        let (_serving, _events) = desk.serve().unwrap();
        desk.close();
        assert!(matches!(desk.serve(), Err(ServeError::Closed)));
    }

    #[tokio::test]
    async fn a_flood_of_calls_waits_for_room() {
        let desk = desk();
        let (serving, mut events) = desk.serve().unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..3 * CALLS_AT_ONCE {
            let desk = Arc::clone(&desk);
            calls.spawn(async move { desk.call("clock_wait", wait_for("it")).await });
        }
        let mut with_the_client = Vec::new();
        for _ in 0..CALLS_AT_ONCE {
            with_the_client.push(called(&mut events).await);
        }
        assert!(events.try_recv().is_err(), "more calls than there is room for");
        for id in with_the_client {
            serving.settle(id, Ok("1".to_owned()));
        }
        for _ in 0..2 * CALLS_AT_ONCE {
            let id = called(&mut events).await;
            serving.settle(id, Ok("1".to_owned()));
        }
        assert!(calls.join_all().await.into_iter().all(|answer| answer == Ok("1".to_owned())));
    }
}
