//! The beginning of a session: what is said to an agent, in which order, until it is ready to work.
//!
//! ```text
//! initialize ─► session/new, or resume, or load ─► session/set_mode ─► ready
//!                  │ wants a login, and we know one of its ways
//!                  └► authenticate ─► session/new
//! ```
//! A former session is resumed where the agent can do that, else loaded: then the agent says again all that was said,
//! which is not kept a second time. Where it does neither, or has forgotten it, a new one is begun. Where it falls silent
//! over it, or ends, the start fails; whoever started it may try again without ([`StartError::may_be_memory`]).
//! This is the one place that knows a version of the protocol.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::Former;
use super::driver::Driver;
use super::error::{AgentFault, StartError};
use super::state;
use crate::plan::{AcpSetup, LaunchPlan};
use crate::transcript::{RESTORED, SessionDetails, Transcripts, context};
use crate::wire::acp;
use crate::wire::message::{Message, RpcError};

/// How long an agent may take for each step. They take from a third of a second to three; many that start at once on a
/// busy machine are slower, not for ever.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// How an agent's session was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// It is a new one.
    New,
    /// It is a former one, which the agent has taken up again.
    Resumed,
    /// It is a former one, of which the agent has told everything again.
    Loaded,
}

/// Why a step of the handshake failed.
enum Failed {
    Fault(AgentFault),
    Silent,
    Refused(RpcError),
}

impl Driver {
    /// Opens the agent's session, and keeps what is known of it then.
    pub(super) async fn greet(
        &mut self,
        plan: &LaunchPlan,
        former: Option<Former>,
        (transcripts, mut details): (&Transcripts, SessionDetails),
    ) -> Result<(), StartError> {
        let remembered = former.as_ref().filter(|former| former.forgotten.is_none());
        let known = remembered.and_then(|former| former.stored.details.agent_session_id.clone());
        let opened = self.shake_hands(&plan.cwd, &plan.acp, known.as_deref()).await?;
        let failed = |source| AgentFault::Transcript(source);
        let agent = self.shared.agent_type.clone();
        let start_error = |source| StartError::Agent { agent: agent.clone(), source };
        details.agent_session_id = Some(self.state.agent_session_id.clone()).filter(|id| !id.is_empty());
        details.agent_version = self.state.initialize["agentInfo"]["version"].as_str().map(str::to_owned);
        details.model_reason = Some(self.shared.model.reason.clone());
        let id = self.shared.id.to_string();
        let Some(former) = former else {
            return transcripts.describe(&id, details).await.map_err(failed).map_err(&start_error);
        };
        let former_id = former.stored.details.agent_session_id.as_deref();
        let since = match (opened, former.known_through) {
            (Opened::New, _) | (_, None) => 1,
            (_, Some(known)) => known + 1,
        };
        // Events of this beginning say nothing that an agent has to know.
        let context =
            context::of(transcripts, &id, since, former_id).await.map_err(failed).map_err(&start_error)?;
        let how = match opened {
            Opened::New => "transcript",
            Opened::Resumed => "resume",
            Opened::Loaded => "load",
        };
        let mut params = json!({
            "how": how, "lostCwd": former.lost_cwd, "lost": former.lost, "formerAgentSessionId": former_id,
        });
        if let Some(reason) = former.forgotten {
            params["forgotten"] = json!(reason);
        }
        self.publish(vec![acp::notification(RESTORED, &params)]).await.map_err(&start_error)?;
        // Not before the event says by which id the agent has known it so far: the new one replaces that.
        transcripts.describe(&id, details).await.map_err(failed).map_err(&start_error)?;
        self.preface = match (context, former.lost_cwd) {
            (context, Some(cwd)) => Some(format!(
                "{}The former working directory {cwd} does not exist any more; you work in {} now.",
                context.map_or_else(String::new, |context| format!("{context}\n")),
                plan.cwd
            )),
            (context, None) => context,
        };
        Ok(())
    }

    /// Speaks with an agent until it has a session. Its state is complete then.
    async fn shake_hands(
        &mut self,
        cwd: &str,
        setup: &AcpSetup,
        former: Option<&str>,
    ) -> Result<Opened, StartError> {
        let mut initialize = self.step_of("initialize", &self.introduction(setup)).await?;
        if initialize["protocolVersion"] != acp::PROTOCOL_VERSION {
            let version: String = initialize["protocolVersion"].to_string().chars().take(40).collect();
            return Err(StartError::Version { agent: self.shared.agent_type.clone(), version });
        }
        if setup.never_asks {
            state::declare_no_permissions(&mut initialize);
        }
        self.state.initialize = initialize.into();
        let mut params = setup.session.clone();
        params.insert("cwd".to_owned(), json!(cwd));
        params.insert("mcpServers".to_owned(), json!(self.tool_servers(setup)?));
        let opened = match self.reopen(former, &params).await? {
            Some(opened) => opened,
            None => self.open(&Value::Object(params), setup).await?,
        };
        if let Some(mode) = &setup.mode {
            let params = json!({ "sessionId": self.state.agent_session_id, "modeId": mode });
            let result = self.step_of("session/set_mode", &params).await?;
            self.state.agreed("session/set_mode", &params, &result);
        }
        self.client.serve(&self.state.agent_session_id);
        self.show_state();
        Ok(opened)
    }

    /// A new session.
    async fn open(&mut self, params: &Value, setup: &AcpSetup) -> Result<Opened, StartError> {
        let session = match self.call("session/new", params).await {
            Err(Failed::Refused(error)) if error.code == acp::AUTH_REQUIRED => {
                self.log_in(setup, &error).await?;
                self.step_of("session/new", params).await?
            }
            outcome => outcome.map_err(|failed| self.start_error("session/new", failed))?,
        };
        let Some(id) = session["sessionId"].as_str().filter(|id| !id.is_empty()) else {
            let agent = self.shared.agent_type.clone();
            let reason = "its answer names no session".to_owned();
            return Err(StartError::Refused { agent, method: "session/new", reason });
        };
        let id = id.to_owned();
        self.state.open(&id, session);
        Ok(Opened::New)
    }

    /// A former session, by whichever way the agent has; `None` where it has none or knows nothing of it.
    async fn reopen(
        &mut self,
        former: Option<&str>,
        params: &Map<String, Value>,
    ) -> Result<Option<Opened>, StartError> {
        let Some(former) = former else { return Ok(None) };
        let capabilities = &self.state.initialize["agentCapabilities"];
        let ways = [
            ("session/resume", capabilities["sessionCapabilities"]["resume"].is_object(), Opened::Resumed),
            ("session/load", capabilities["loadSession"] == true, Opened::Loaded),
        ];
        let mut params = params.clone();
        params.insert("sessionId".to_owned(), json!(former));
        let params = Value::Object(params);
        for (method, offered, opened) in ways {
            if !offered {
                continue;
            }
            self.replaying = true;
            let answer = self.call(method, &params).await;
            self.replaying = false;
            match answer {
                Ok(session) => {
                    self.state.open(former, session);
                    return Ok(Some(opened));
                }
                Err(Failed::Refused(error)) => {
                    tracing::debug!(method, %error, "an agent doesn't take up its former session");
                }
                Err(failed) => return Err(self.start_error(method, failed)),
            }
        }
        Ok(None)
    }

    /// The tool servers, that of the host's tools in the form that the agent takes.
    fn tool_servers<'a>(&self, setup: &'a AcpSetup) -> Result<Vec<&'a Value>, StartError> {
        let takes_http = self.state.initialize["agentCapabilities"]["mcpCapabilities"]["http"] == true;
        if !takes_http && setup.mcp_servers.iter().any(|server| server["type"] == "http") {
            return Err(StartError::NoRemoteToolServers { agent: self.shared.agent_type.clone() });
        }
        let host_tools = setup.host_tools.as_ref();
        let host_tools =
            host_tools.map(|tools| if takes_http { &tools.over_http } else { &tools.over_stdio });
        Ok(setup.mcp_servers.iter().chain(host_tools).collect())
    }

    fn introduction(&self, setup: &AcpSetup) -> Value {
        json!({
            "protocolVersion": acp::PROTOCOL_VERSION,
            "clientCapabilities": {
                "fs": { "readTextFile": setup.client_files, "writeTextFile": setup.client_files },
                "terminal": setup.client_terminals,
            },
            "clientInfo": { "name": "agentos", "title": "agentOS", "version": env!("CARGO_PKG_VERSION") },
        })
    }

    /// Logs in by the way that the agent's data names, if the agent offers it.
    async fn log_in(&mut self, setup: &AcpSetup, error: &RpcError) -> Result<(), StartError> {
        let offered = self.state.initialize["authMethods"].as_array().map(Vec::as_slice).unwrap_or_default();
        let methods: Vec<String> =
            offered.iter().filter_map(|method| method["id"].as_str()).map(str::to_owned).collect();
        match &setup.auth_method {
            Some(method) if methods.contains(method) => {
                self.step_of("authenticate", &json!({ "methodId": method })).await?;
                Ok(())
            }
            _ => Err(StartError::NotLoggedIn {
                agent: self.shared.agent_type.clone(),
                reason: error.to_string(),
                methods,
            }),
        }
    }

    async fn step_of(&mut self, method: &'static str, params: &Value) -> Result<Value, StartError> {
        self.call(method, params).await.map_err(|failed| self.start_error(method, failed))
    }

    fn start_error(&self, method: &'static str, failed: Failed) -> StartError {
        let agent = self.shared.agent_type.clone();
        match failed {
            Failed::Fault(source) => StartError::Agent { agent, source },
            Failed::Silent => StartError::NotReady { agent, waited: STEP_TIMEOUT, log: self.link.log() },
            Failed::Refused(error) => StartError::Refused { agent, method, reason: error.to_string() },
        }
    }

    /// One request and its answer. What the agent says meanwhile is kept; what it asks for is refused, as there is no
    /// session yet that it could ask in.
    async fn call(&mut self, method: &str, params: &Value) -> Result<Value, Failed> {
        let number = self.number();
        self.link.request(number, method, params).map_err(Failed::Fault)?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        let mut answer = None;
        while answer.is_none() {
            let messages = match timeout_at(deadline, self.link.read()).await {
                Ok(messages) => messages.map_err(Failed::Fault)?,
                Err(_) => return Err(Failed::Silent),
            };
            let mut events = Vec::new();
            for message in messages {
                match message {
                    Message::Response { id, outcome } if id == number && answer.is_none() => {
                        answer = Some(outcome)
                    }
                    Message::Notification(notification) if self.replaying => {
                        self.state.apply(&notification.update);
                    }
                    Message::Notification(notification) => {
                        events.push(self.on_notification(notification).map_err(Failed::Fault)?);
                    }
                    Message::Request { id, method, .. } => {
                        let error =
                            RpcError::new(acp::INVALID_REQUEST, format!("no session is open for {method}"));
                        self.link.answer(&id, &Err(error)).map_err(Failed::Fault)?;
                    }
                    _ => {}
                }
            }
            self.publish(events).await.map_err(Failed::Fault)?;
        }
        answer.unwrap_or(Ok(Value::Null)).map_err(Failed::Refused)
    }
}
