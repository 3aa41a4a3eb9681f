//! Sessions of a VM.

use agentos::{JsonRpcResponse, PromptResult, SessionEvent, SessionEvents};
use napi::bindgen_prelude::{Function, Object};
use napi::threadsafe_function::UnknownReturnValue;
use napi::{Env, Result};
use napi_derive::napi;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::failure::{thrown, wait};
use crate::listener::{Pace, TextListener};
use crate::options::SessionWish;
use crate::promise;
use crate::vm::Vm;

/// A JavaScript function that takes JSON.
type OnText<'env> = Function<'env, String, UnknownReturnValue>;

/// What is told to those who subscribe; everything else is in the transcript.
const UPDATE: &str = "session/update";

/// What the agent answered.
#[napi(object, object_from_js = false)]
pub struct PromptShape {
    pub text: String,
    pub stop_reason: String,
    pub model: &'static str,
    pub rejected_permissions: u32,
    pub response_json: String,
}

impl From<PromptResult> for PromptShape {
    fn from(result: PromptResult) -> Self {
        Self {
            text: result.text,
            stop_reason: result.stop_reason,
            model: result.model.as_str(),
            rejected_permissions: result.rejected_permissions,
            response_json: response(&result.response).to_string(),
        }
    }
}

fn response(response: &JsonRpcResponse) -> Value {
    let mut object = json!({ "jsonrpc": "2.0", "id": response.id });
    if let Some(result) = &response.result {
        object["result"] = result.clone();
    }
    if let Some(error) = &response.error {
        object["error"] = json!({ "code": error.code, "message": error.message });
        if let Some(data) = &error.data {
            object["error"]["data"] = data.clone();
        }
    }
    object
}

/// A live session.
#[napi(object, object_from_js = false)]
pub struct SessionShape {
    pub session_id: String,
    pub agent_type: String,
}

/// What a session has said so far, and the task that tells what it says from then on.
#[napi]
pub struct Subscription {
    backlog: Vec<String>,
    task: AbortHandle,
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
    /// A promise of the session's id.
    #[napi]
    pub fn create_session<'env>(
        &self,
        env: &'env Env,
        agent_type: String,
        wish: SessionWish,
        on_install_progress: Option<OnText<'_>>,
    ) -> Result<Object<'env>> {
        let pace = Pace::default();
        let mut session = wish.apply_to(self.vm.create_session(agent_type));
        if let Some(function) = on_install_progress {
            let listener = TextListener::new(&function, &pace)?;
            session = session.on_install_progress(move |step| {
                let mut progress = json!({ "package": step.package, "receivedBytes": step.received_bytes });
                if let Some(total) = step.total_bytes {
                    progress["totalBytes"] = total.into();
                }
                listener.tell(progress.to_string());
            });
        }
        promise::of(env, async move { Ok(pace.keep(session.into_future()).await?.id().to_owned()) })
    }

    #[napi]
    pub fn list_sessions(&self, env: &Env) -> Result<Vec<SessionShape>> {
        let sessions = wait(env, self.vm.list_sessions())?.into_iter();
        let shape = |session: agentos::SessionInfo| SessionShape {
            session_id: session.session_id,
            agent_type: session.agent_type,
        };
        Ok(sessions.map(shape).collect())
    }

    /// A promise of a [`PromptShape`].
    #[napi]
    pub fn prompt<'env>(&self, env: &'env Env, session_id: String, text: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(
            env,
            async move { Ok(PromptShape::from(vm.resume_session(&session_id)?.prompt(text).await?)) },
        )
    }

    #[napi]
    pub fn close_session(&self, env: &Env, session_id: String) -> Result<()> {
        let session = self.vm.resume_session(&session_id).map_err(|error| thrown(env, &error))?;
        wait(env, session.close())
    }

    /// A promise of nothing.
    #[napi]
    pub fn destroy_session<'env>(&self, env: &'env Env, session_id: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { vm.destroy_session(&session_id).await })
    }

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
        let session = self.vm.resume_session(&session_id).map_err(|error| thrown(env, &error))?;
        let pace = Pace::default();
        let told = TextListener::new(&on_event, &pace)?;
        let failed = TextListener::new(&on_failure, &pace)?;
        let history = wait(env, self.vm.read_history(&session_id))?;
        let next = history.last().map_or(1, |event| event.sequence_number + 1);
        let follow = follow(session.events_since(next), Follower { told, failed, pace });
        let task = self.keep_telling(follow)?;
        Ok(Subscription { backlog: history.iter().filter_map(update).collect(), task })
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
            Err(error) => {
                follower.failed.tell(error.to_string());
                return;
            }
        }
    }
}
