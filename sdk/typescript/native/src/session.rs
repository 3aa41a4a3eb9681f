//! Sessions of a VM: their life, and what is asked of their agents.

use agentos::{JsonRpcError, JsonRpcResponse, PromptResult, Session};
use napi::bindgen_prelude::Object;
use napi::{Env, Result};
use napi_derive::napi;
use serde_json::{Value, json};

use crate::failure::{thrown, wait, with_code};
use crate::listener::{OnText, Pace, TextListener};
use crate::options::SessionWish;
use crate::promise;
use crate::vm::Vm;

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
        object["error"] = error_object(error);
    }
    object
}

fn error_object(error: &JsonRpcError) -> Value {
    let mut object = json!({ "code": error.code, "message": error.message });
    if let Some(data) = &error.data {
        object["data"] = data.clone();
    }
    object
}

/// The answer, and an error that the agent answered with: also where that is our own, of what the agent can't do.
fn answered(answer: agentos::Result<JsonRpcResponse>) -> agentos::Result<String> {
    match answer {
        Ok(answer) => Ok(response(&answer).to_string()),
        Err(error) => match error.rpc_error() {
            Some(rpc) => Ok(json!({ "jsonrpc": "2.0", "id": null, "error": error_object(rpc) }).to_string()),
            None => Err(error),
        },
    }
}

/// A live session.
#[napi(object, object_from_js = false)]
pub struct SessionShape {
    pub session_id: String,
    pub agent_type: String,
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
        let session = self.session(env, &session_id)?;
        wait(env, session.close())
    }

    /// Fails where the session is none of this VM's live ones. Never waits.
    #[napi]
    pub fn resume_session(&self, env: &Env, session_id: String) -> Result<()> {
        self.session(env, &session_id).map(drop)
    }

    /// A promise of the session's id.
    #[napi]
    pub fn restore_session<'env>(&self, env: &'env Env, session_id: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { Ok(vm.restore_session(&session_id).await?.id().to_owned()) })
    }

    /// A promise of whether anything was running.
    #[napi]
    pub fn cancel_session<'env>(&self, env: &'env Env, session_id: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { vm.resume_session(&session_id)?.cancel().await })
    }

    /// A promise of nothing.
    #[napi]
    pub fn destroy_session<'env>(&self, env: &'env Env, session_id: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { vm.destroy_session(&session_id).await })
    }

    /// A promise of the agent's answer, as JSON.
    #[napi]
    pub fn set_session_mode<'env>(
        &self,
        env: &'env Env,
        session_id: String,
        mode: String,
    ) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { answered(vm.resume_session(&session_id)?.set_mode(&mode).await) })
    }

    /// A promise of the agent's answer, as JSON.
    #[napi]
    pub fn set_session_model<'env>(
        &self,
        env: &'env Env,
        session_id: String,
        model: String,
    ) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { answered(vm.resume_session(&session_id)?.set_model(&model).await) })
    }

    /// A promise of the agent's answer, as JSON.
    #[napi]
    pub fn set_session_thought_level<'env>(
        &self,
        env: &'env Env,
        session_id: String,
        level: String,
    ) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(
            env,
            async move { answered(vm.resume_session(&session_id)?.set_thought_level(&level).await) },
        )
    }

    /// A promise of the agent's answer, as JSON.
    #[napi]
    pub fn raw_send<'env>(
        &self,
        env: &'env Env,
        session_id: String,
        method: String,
        params_json: String,
    ) -> Result<Object<'env>> {
        let params: Value = serde_json::from_str(&params_json)
            .map_err(|error| with_code(env, "InvalidInput", &format!("`params` of {method}: {error}")))?;
        let vm = self.vm.clone();
        promise::of(
            env,
            async move { answered(vm.resume_session(&session_id)?.raw_send(&method, params).await) },
        )
    }
}

impl Vm {
    /// On the thread of JavaScript; never waits.
    pub(crate) fn session(&self, env: &Env, session_id: &str) -> Result<Session> {
        self.vm.resume_session(session_id).map_err(|error| thrown(env, &error))
    }
}
