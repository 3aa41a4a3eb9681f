//! Agent sessions: an agent at work in a VM.
//!
//! ```text
//! create_session ──► idle ──prompt──► running ──turn ends / cancel──► idle
//!                     └──close, destroy, dispose, the agent's death──► closed
//! ```
//!
//! One prompt runs at a time per session; sessions never wait for one another. What the agent said at the start (its
//! modes, options, capabilities) is kept here, so that looking it up never waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentos_proto::v1;
use serde_json::{Value, json};

use crate::convert;
use crate::convert::error::CallError;
use crate::error::{Error, JsonRpcError};
use crate::prompt::Prompting;
use crate::session_events::{self, PermissionReply, PermissionRequests, SessionEvents};
use crate::session_options::CreateSession;
use crate::session_state::{
    AgentCapabilities, AgentInfo, SessionConfigOption, SessionModeState, SessionState,
};
use crate::vm::AgentOs;

/// Which model a session talks to. Shown as `demo` and `provider`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelKind {
    /// The offline scripted model.
    Demo,
    /// A model the agent's own configuration names.
    Provider,
}

impl ModelKind {
    /// `demo` or `provider`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Provider => "provider",
        }
    }
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<str> for ModelKind {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for ModelKind {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// One session of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's id, unique across VMs and restarts.
    pub session_id: String,
    /// The agent.
    pub agent_type: String,
}

/// A JSON-RPC response of an agent, as it sent it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JsonRpcResponse {
    /// The request's id.
    pub id: Value,
    /// What it answered.
    pub result: Option<Value>,
    /// Its error. Calls that would return one fail instead; see [`Error::rpc_error`].
    pub error: Option<JsonRpcError>,
}

/// What the client keeps of a session; shared by its handles.
pub(crate) struct SessionData {
    pub(crate) id: String,
    pub(crate) agent_type: String,
    pub(crate) model: ModelKind,
    pub(crate) model_reason: String,
    /// Locked for single reads and updates only.
    pub(crate) state: Mutex<SessionState>,
}

impl SessionData {
    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what the sidecar says the agent's session is now.
    pub(crate) fn renew(&self, session_json: &str) {
        self.state().renew(&convert::session::lenient(session_json));
    }
}

/// A session with an agent. Dropping the handle leaves the session open.
#[derive(Clone)]
pub struct Session {
    vm: AgentOs,
    data: Arc<SessionData>,
}

impl AgentOs {
    /// Launches an agent: `pi`, `pi-cli`, `opencode`, `claude`, `codex`, `gemini` or one from the options. A built-in
    /// one that is missing is installed first.
    #[must_use = "does nothing until awaited"]
    pub fn create_session(&self, agent_type: impl Into<String>) -> CreateSession {
        CreateSession::new(self.clone(), agent_type.into())
    }

    /// The live sessions of the VM.
    ///
    /// # Errors
    ///
    /// When the VM cannot be asked.
    pub async fn list_sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let request = v1::ListSessionsRequest { vm_id: self.id().to_owned() };
        let reply =
            self.live()?.session().list_sessions(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().sessions.into_iter().map(convert::session::info).collect())
    }

    /// Cancels what a session is doing, closes it politely and waits for the end of all its processes. The transcript
    /// is kept.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`.
    pub async fn destroy_session(&self, session_id: &str) -> Result<(), Error> {
        self.close_session(session_id, true).await
    }

    /// A handle to a live session that was made through this VM handle.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`.
    pub fn resume_session(&self, session_id: &str) -> Result<Session, Error> {
        let known = lock(self.sessions()).get(session_id).cloned();
        let data = known.ok_or_else(|| CallError::NoSuchSession { id: session_id.to_owned() })?;
        Ok(Session { vm: self.clone(), data })
    }

    /// Brings a stored session back in this VM, whose files and mounts are those that the session should find. Its id is
    /// the former one, and its events go on where they ended.
    ///
    /// The agent goes on by its own means where it has any, with what it kept of the session; else it is told at the next
    /// prompt what was said. The event `_agentos/restored` says which (`how`: `resume`, `load` or `transcript`), whether
    /// the former working directory is gone (`lostCwd`; the session then works in the user's home), and what else it has
    /// no more (`lost`): values of its variables and tool servers are not kept. Those of the VM hold. An agent that ends or
    /// falls silent over what it kept is started once more without that; `forgotten` is the reason then.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`. `Busy` while the session is live, here or elsewhere. As `create_session`.
    pub async fn restore_session(&self, session_id: &str) -> Result<Session, Error> {
        CreateSession::restored(self.clone(), session_id.to_owned()).await
    }

    pub(crate) fn adopt_session(&self, data: Box<SessionData>) -> Session {
        let data: Arc<SessionData> = Arc::from(data);
        lock(self.sessions()).insert(data.id.clone(), Arc::clone(&data));
        Session { vm: self.clone(), data }
    }

    pub(crate) async fn close_session(&self, session_id: &str, graceful: bool) -> Result<(), Error> {
        let request = v1::CloseSessionRequest { session_id: session_id.to_owned(), graceful, attempt: None };
        let reply = self.live()?.session().close_session(request).await;
        self.forget_session(session_id);
        reply.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// Ends what came of an attempt at a session that nobody waits for any more.
    pub(crate) async fn give_up_session(&self, begun: v1::SessionBegun) -> Result<(), Error> {
        let v1::SessionBegun { session_id, attempt } = begun;
        let request = v1::CloseSessionRequest { session_id, graceful: false, attempt: Some(attempt) };
        let reply = self.live()?.session().close_session(request).await;
        reply.map(drop).map_err(|status| self.failed(status))
    }

    /// Its handles can still be used, to be told that it is gone.
    pub(crate) fn forget_session(&self, session_id: &str) {
        lock(self.sessions()).remove(session_id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// The session's id, unique across VMs and restarts.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.data.id
    }

    /// The agent.
    #[must_use]
    pub fn agent_type(&self) -> &str {
        &self.data.agent_type
    }

    /// Which model it talks to.
    #[must_use]
    pub fn model(&self) -> ModelKind {
        self.data.model
    }

    /// Why it is that model.
    #[must_use]
    pub fn model_reason(&self) -> &str {
        &self.data.model_reason
    }

    /// Asks the agent for something; await it for the reply. Dropping the future cancels the turn.
    #[must_use = "does nothing until awaited"]
    pub fn prompt(&self, prompt: impl Into<crate::Prompt>) -> Prompting {
        Prompting::new(self.vm.clone(), Arc::clone(&self.data), prompt.into())
    }

    /// Cancels what the agent is doing: the running prompt resolves with stop reason `cancelled`. Returns whether
    /// anything was running.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`.
    pub async fn cancel(&self) -> Result<bool, Error> {
        let request = v1::CancelSessionRequest { session_id: self.data.id.clone() };
        let reply = self.vm.live()?.session().cancel_session(request).await;
        Ok(reply.map_err(|status| self.vm.failed(status))?.into_inner().cancelled)
    }

    /// Ends the session and every process of it now. The transcript is kept.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Session not found: ID`.
    pub async fn close(&self) -> Result<(), Error> {
        self.vm.close_session(&self.data.id, false).await
    }

    /// Everything that happened in the session from its first event on, then what happens.
    #[must_use]
    pub fn events(&self) -> SessionEvents {
        self.events_since(1)
    }

    /// As [`events`](Self::events), from this sequence number on; they start at 1.
    #[must_use]
    pub fn events_since(&self, sequence_number: u64) -> SessionEvents {
        SessionEvents::new(self.vm.clone(), self.data.id.clone(), sequence_number)
    }

    /// What the agent asks permission for. While the stream is open the session has somebody who answers.
    #[must_use]
    pub fn permission_requests(&self) -> PermissionRequests {
        PermissionRequests::new(self.vm.clone(), self.data.id.clone())
    }

    /// Answers a request for permission by its id, which works once. For whoever can't keep the
    /// [`PermissionRequest`](crate::PermissionRequest) itself until there is an answer; see
    /// [`leave_open`](crate::PermissionRequest::leave_open).
    ///
    /// # Errors
    ///
    /// `NotFound` when it is no longer waiting: it timed out, was cancelled, or somebody else answered. `Unsupported` where
    /// the agent offers nothing that means no more than this reply; then it goes on waiting.
    pub async fn respond_permission(&self, permission_id: &str, reply: PermissionReply) -> Result<(), Error> {
        session_events::respond(&self.vm, &self.data.id, permission_id, reply).await
    }

    /// Puts the agent into one of its [`modes`](Self::modes), or sets the option by which it offers them.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the agent has neither, naming the options it has; [`Error::rpc_error`] is its answer.
    pub async fn set_mode(&self, mode_id: &str) -> Result<JsonRpcResponse, Error> {
        let has_modes = self.data.state().modes.is_some();
        if has_modes {
            return self.raw_send("session/set_mode", json!({ "modeId": mode_id })).await;
        }
        self.set_option_of("mode", mode_id).await
    }

    /// The agent's modes and the current one; `None` where it has none. Never waits.
    #[must_use]
    pub fn modes(&self) -> Option<SessionModeState> {
        self.data.state().modes.clone()
    }

    /// Selects one of the agent's models.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the agent cannot, naming the options it has; [`Error::rpc_error`] is its answer.
    pub async fn set_model(&self, model: &str) -> Result<JsonRpcResponse, Error> {
        let by_request = {
            let state = self.data.state();
            state.option_of("model").is_none() && state.has_models
        };
        if by_request {
            return self.raw_send("session/set_model", json!({ "modelId": model })).await;
        }
        self.set_option_of("model", model).await
    }

    /// Sets how much the agent reasons, where it has such an option.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the agent has none, naming the options it has.
    pub async fn set_thought_level(&self, level: &str) -> Result<JsonRpcResponse, Error> {
        self.set_option_of("thought_level", level).await
    }

    /// Sets one of the agent's [`config_options`](Self::config_options).
    ///
    /// # Errors
    ///
    /// [`Error::rpc_error`] is the agent's answer where it refuses.
    pub async fn set_config_option(&self, id: &str, value: &str) -> Result<JsonRpcResponse, Error> {
        self.raw_send("session/set_config_option", json!({ "configId": id, "value": value })).await
    }

    /// Sets the option of a category.
    async fn set_option_of(&self, category: &'static str, value: &str) -> Result<JsonRpcResponse, Error> {
        let (option, supported) = {
            let state = self.data.state();
            (state.option_of(category), state.option_ids())
        };
        match option {
            Some(id) => self.set_config_option(&id, value).await,
            None => Err(CallError::NoSuchOption { category, supported }.into()),
        }
    }

    /// The agent's configuration options and their values. Never waits.
    #[must_use]
    pub fn config_options(&self) -> Vec<SessionConfigOption> {
        self.data.state().config_options.clone()
    }

    /// What the agent said it can do. Never waits.
    #[must_use]
    pub fn capabilities(&self) -> AgentCapabilities {
        self.data.state().capabilities.clone()
    }

    /// Who the agent said it is. Never waits.
    #[must_use]
    pub fn agent_info(&self) -> Option<AgentInfo> {
        self.data.state().agent_info.clone()
    }

    /// Sends any ACP request to the agent. Methods that begin with `session/` get the agent's own id of this session where
    /// `params` name none or this one's [`id`](Self::id), but for `session/new` and `session/list`, which are about none;
    /// any other method gets it in the place of this one's id alone. A session that an agent makes of such a request, as
    /// with `session/fork`, is the agent's alone: it is named by the agent's id and prompted by another request.
    ///
    /// # Errors
    ///
    /// When the agent answers with an error: `Unsupported` for a method it does not have, else `AgentFailed`.
    /// [`Error::rpc_error`] is its answer.
    pub async fn raw_send(&self, method: &str, params: Value) -> Result<JsonRpcResponse, Error> {
        let request = v1::RawSendRequest {
            session_id: self.data.id.clone(),
            method: method.to_owned(),
            params_json: params.to_string(),
        };
        let reply =
            self.vm.live()?.session().raw_send(request).await.map_err(|status| self.vm.failed(status))?;
        let v1::RawSendResponse { response_json, session_json } = reply.into_inner();
        self.data.renew(&session_json);
        let response = convert::session::response(&response_json)?;
        match response.error {
            Some(error) => Err(CallError::Rpc { method: method.to_owned(), error }.into()),
            None => Ok(response),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.data.id)
            .field("agent_type", &self.data.agent_type)
            .field("model", &self.data.model)
            .finish_non_exhaustive()
    }
}
