//! What sessions say: to those who subscribe, and as it is kept.

use agentos::{ErrorKind, SessionEvent, SessionEvents};
use napi::bindgen_prelude::Object;
use napi::{Env, Result};
use napi_derive::napi;
use tokio::task::AbortHandle;

use crate::failure::wait;
use crate::listener::{OnText, Pace, TextListener};
use crate::options::HistoryWish;
use crate::promise;
use crate::vm::Vm;

/// What is told to those who subscribe; everything else is in the transcript.
const UPDATE: &str = "session/update";

/// How many of a session's events are given without a promise to wait for.
const AT_ONCE: u64 = 1024;

/// An event with its place in its session.
#[napi(object, object_from_js = false)]
pub struct EventShape {
    pub sequence_number: f64,
    pub notification_json: String,
}

impl From<SessionEvent> for EventShape {
    fn from(event: SessionEvent) -> Self {
        Self {
            sequence_number: number(event.sequence_number),
            notification_json: event.notification.to_string(),
        }
    }
}

/// JavaScript counts in floating point numbers, which are exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "a transcript of 512 MiB has no 2^53 events")]
fn number(sequence_number: u64) -> f64 {
    sequence_number as f64
}

/// What a session has said so far, and the task that tells what it says from then on.
#[napi]
pub struct Subscription {
    backlog: Vec<String>,
    task: AbortHandle,
}

impl Subscription {
    pub(crate) fn new(backlog: Vec<String>, task: AbortHandle) -> Self {
        Self { backlog, task }
    }
}

#[napi]
impl Subscription {
    /// The notifications before the subscription, as JSON; once.
    #[napi]
    pub fn take_backlog(&mut self) -> Vec<String> {
        std::mem::take(&mut self.backlog)
    }

    #[napi]
    pub fn end(&self) {
        self.task.abort();
    }
}

#[napi]
impl Vm {
    /// What the session said so far is in the result; `on_event` is told what follows, without a gap, and `on_failure`
    /// why there will be no more where the session has not ended.
    #[napi]
    pub fn subscribe(
        &self,
        env: &Env,
        session_id: String,
        on_event: OnText<'_>,
        on_failure: OnText<'_>,
    ) -> Result<Subscription> {
        let session = self.session(env, &session_id)?;
        let pace = Pace::default();
        let told = TextListener::new(&on_event, &pace)?;
        let failed = TextListener::new(&on_failure, &pace)?;
        let history = wait(env, self.vm.read_history(&session_id).into_future())?;
        let next = history.last().map_or(1, |event| event.sequence_number + 1);
        let follow = follow(session.events_since(next), Follower { told, failed, pace });
        let task = self.keep_telling(follow)?;
        Ok(Subscription::new(history.iter().filter_map(update).collect(), task))
    }

    /// The newest events of a live session, as far as they are wanted.
    #[napi]
    pub fn session_events(
        &self,
        env: &Env,
        session_id: String,
        wish: HistoryWish,
    ) -> Result<Vec<EventShape>> {
        self.session(env, &session_id)?;
        let stored = self.vm.sidecar().stored_sessions().id_prefix(&session_id).into_future();
        let stored = wait(env, stored)?.sessions.into_iter().find(|stored| stored.session_id == session_id);
        let first = stored.map_or(1, |stored| (stored.events + 1).saturating_sub(AT_ONCE).max(1));
        let history = wish.apply_to(self.vm.read_history(&session_id), first);
        Ok(wait(env, history.into_future())?.into_iter().map(EventShape::from).collect())
    }

    /// A promise of [`EventShape`]s.
    #[napi]
    pub fn read_history<'env>(
        &self,
        env: &'env Env,
        session_id: String,
        wish: HistoryWish,
    ) -> Result<Object<'env>> {
        let history = wish.apply_to(self.vm.read_history(&session_id), 1);
        promise::of(
            env,
            async move { Ok(history.await?.into_iter().map(EventShape::from).collect::<Vec<_>>()) },
        )
    }

    /// A promise of nothing.
    #[napi]
    pub fn delete_session<'env>(&self, env: &'env Env, session_id: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { vm.delete_session(&session_id).await })
    }
}

/// The notification, where it is one of those that are told.
fn update(event: &SessionEvent) -> Option<String> {
    (event.method() == UPDATE).then(|| event.notification.to_string())
}

/// Who is told, and how fast they listen.
struct Follower {
    told: TextListener,
    failed: TextListener,
    pace: Pace,
}

/// Ends with the session. What a slow handler has not taken yet waits in the transcript, not here.
async fn follow(mut events: SessionEvents, follower: Follower) {
    while let Some(event) = follower.pace.keep(events.next()).await {
        match event {
            Ok(event) => update(&event).into_iter().for_each(|update| follower.told.tell(update)),
            // Said once to whoever falls far behind; nothing is lost.
            Err(error) if error.kind() == ErrorKind::Lagged => {}
            Err(error) => {
                follower.failed.tell(error.to_string());
                return;
            }
        }
    }
}
