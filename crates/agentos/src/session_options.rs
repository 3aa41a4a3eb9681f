//! How a session is made.

use std::collections::BTreeMap;
use std::fmt;

use agentos_proto::v1;
use tokio::sync::oneshot;

use crate::agent_config::{AgentInstructions, PreparedInstructions};
use crate::builder::into_future;
use crate::convert;
use crate::convert::error::CallError;
use crate::convert::session::CreateProgress;
use crate::error::Error;
use crate::options::ModelChoice;
use crate::session::{ModelKind, Session};
use crate::vm::AgentOs;

/// Who decides what the agent may do inside its VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PermissionPolicy {
    /// Whoever reads [`Session::permission_requests`](crate::Session::permission_requests); nobody there means no.
    #[default]
    Ask,
    /// The agent itself: the VM is the sandbox.
    AllowAll,
    /// Nobody: every request is rejected.
    RejectAll,
}

/// What happens when a built-in agent is not installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AgentInstall {
    /// It is installed, once.
    #[default]
    Auto,
    /// Creating the session fails with `AgentNotInstalled`, which names the command.
    Never,
}

/// How far an installation is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstallProgress {
    /// The package being fetched.
    pub package: String,
    /// Bytes of it so far.
    pub received_bytes: u64,
    /// Its size, where that is known.
    pub total_bytes: Option<u64>,
    /// Where on the host it is installed.
    pub place: String,
    /// Whether another installation on this host fetches it, for which this one waits.
    pub waiting: bool,
}

/// An MCP server for the agent to use.
#[derive(Clone)]
pub struct McpServer {
    pub(crate) kind: McpServerKind,
}

#[derive(Clone)]
pub(crate) enum McpServerKind {
    Local { command: String, args: Vec<String>, env: BTreeMap<String, String> },
    Remote { url: String, headers: BTreeMap<String, String> },
}

impl McpServer {
    /// A program that runs in the VM and speaks MCP on its standard input and output.
    #[must_use]
    pub fn local<A: Into<String>>(command: impl Into<String>, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { kind: McpServerKind::Local { command: command.into(), args, env: BTreeMap::new() } }
    }

    /// A server the agent reaches by URL, subject to the VM's egress policy.
    #[must_use]
    pub fn remote(url: impl Into<String>) -> Self {
        Self { kind: McpServerKind::Remote { url: url.into(), headers: BTreeMap::new() } }
    }

    /// Sets a variable of a local server. No effect on a remote one.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let McpServerKind::Local { env, .. } = &mut self.kind {
            env.insert(name.into(), value.into());
        }
        self
    }

    /// Sets a header of requests to a remote server. No effect on a local one.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let McpServerKind::Remote { headers, .. } = &mut self.kind {
            headers.insert(name.into(), value.into());
        }
        self
    }
}

/// Names of variables and headers are shown, values never: they may be secrets.
impl fmt::Debug for McpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            McpServerKind::Local { command, args, env } => f
                .debug_struct("McpServer")
                .field("command", command)
                .field("args", args)
                .field("env", &env.keys())
                .finish(),
            McpServerKind::Remote { url, headers } => {
                f.debug_struct("McpServer").field("url", url).field("headers", &headers.keys()).finish()
            }
        }
    }
}

/// An answer to requests for permission that is known beforehand. It fits all of them until it is narrowed.
///
/// Agents describe their own requests, so that a rule saves questions and is no wall: what an agent can reach is what its
/// VM can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionRule {
    pub(crate) action: RuleAction,
    pub(crate) tool_kind: Option<String>,
    pub(crate) path: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleAction {
    Allow,
    Reject,
    Ask,
}

impl PermissionRule {
    /// Requests are allowed.
    #[must_use]
    pub fn allow() -> Self {
        Self { action: RuleAction::Allow, tool_kind: None, path: None }
    }

    /// Requests are rejected.
    #[must_use]
    pub fn reject() -> Self {
        Self { action: RuleAction::Reject, ..Self::allow() }
    }

    /// Requests go to whoever reads [`Session::permission_requests`]; an exception from a rule before it.
    #[must_use]
    pub fn ask() -> Self {
        Self { action: RuleAction::Ask, ..Self::allow() }
    }

    /// Only those for tools of this kind, in ACP's words: `read`, `edit`, `delete`, `move`, `search`, `execute`,
    /// `think`, `fetch`, `other`.
    #[must_use]
    pub fn tool_kind(mut self, kind: impl Into<String>) -> Self {
        self.tool_kind = Some(kind.into());
        self
    }

    /// Only those that name paths which this pattern fits, all of them for a rule that allows, any of them for another:
    /// absolute, with `*` for a part of a name and `**` for
    /// any number of names, such as `/work/src/**`.
    #[must_use]
    pub fn path(mut self, pattern: impl Into<String>) -> Self {
        self.path = Some(pattern.into());
        self
    }
}

/// What a session is to be, in values.
#[derive(Default)]
pub(crate) struct SessionWish {
    pub(crate) agent_type: String,
    pub(crate) cwd: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) mcp_servers: Vec<McpServer>,
    pub(crate) skip_os_instructions: bool,
    pub(crate) additional_instructions: Option<String>,
    pub(crate) permission_policy: PermissionPolicy,
    pub(crate) permission_rules: Vec<PermissionRule>,
    pub(crate) model: Option<ModelChoice>,
    pub(crate) agent_install: Option<AgentInstall>,
    /// The stored session to bring back, as it was created; nothing else counts then.
    pub(crate) restored: Option<String>,
}

/// A session to make; await it for the [`Session`]. Dropping the future undoes what it began.
///
/// Fails with `NotFound` (`Unknown agent type: X`), `AgentNotInstalled`, `AgentFailed` with what the agent's log says,
/// or `NoModel` with the variables to set.
pub struct CreateSession {
    vm: AgentOs,
    wish: SessionWish,
    on_install_progress: Option<Box<dyn FnMut(InstallProgress) + Send>>,
}

impl CreateSession {
    pub(crate) fn new(vm: AgentOs, agent_type: String) -> Self {
        Self { vm, wish: SessionWish { agent_type, ..SessionWish::default() }, on_install_progress: None }
    }

    pub(crate) fn restored(vm: AgentOs, session_id: String) -> Self {
        let wish = SessionWish { restored: Some(session_id), ..SessionWish::default() };
        Self { vm, wish, on_install_progress: None }
    }

    /// The agent's working directory; the user's home by default.
    #[must_use]
    pub fn cwd(mut self, path: impl Into<String>) -> Self {
        self.wish.cwd = Some(path.into());
        self
    }

    /// Sets a variable of the agent's process.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.wish.env.insert(name.into(), value.into());
        self
    }

    /// Sets several variables of the agent's process.
    #[must_use]
    pub fn envs<K: Into<String>, V: Into<String>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        self.wish.env.extend(vars.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Gives the agent an MCP server.
    #[must_use]
    pub fn mcp_server(mut self, server: McpServer) -> Self {
        self.wish.mcp_servers.push(server);
        self
    }

    /// Leaves out the base part of the OS instructions. The VM's and the session's additional text stay.
    #[must_use]
    pub fn skip_os_instructions(mut self) -> Self {
        self.wish.skip_os_instructions = true;
        self
    }

    /// Text added to the OS instructions for this session.
    #[must_use]
    pub fn additional_instructions(mut self, text: impl Into<String>) -> Self {
        self.wish.additional_instructions = Some(text.into());
        self
    }

    /// Who decides what the agent may do; [`PermissionPolicy::Ask`] by default.
    #[must_use]
    pub fn permission_policy(mut self, policy: PermissionPolicy) -> Self {
        self.wish.permission_policy = policy;
        self
    }

    /// Answers some requests for permission by a rule, so that nobody has to be asked. Only beside
    /// [`PermissionPolicy::Ask`]; of several that fit the last one decides.
    #[must_use]
    pub fn permission_rule(mut self, rule: PermissionRule) -> Self {
        self.wish.permission_rules.push(rule);
        self
    }

    /// Which model the agent talks to; the VM's choice by default.
    #[must_use]
    pub fn model(mut self, model: ModelChoice) -> Self {
        self.wish.model = Some(model);
        self
    }

    /// Whether a missing agent may be installed; as `AGENTOS_AGENT_INSTALL` says by default, else yes.
    #[must_use]
    pub fn agent_install(mut self, install: AgentInstall) -> Self {
        self.wish.agent_install = Some(install);
        self
    }

    /// Called as an installation proceeds.
    #[must_use]
    pub fn on_install_progress(mut self, handler: impl FnMut(InstallProgress) + Send + 'static) -> Self {
        self.on_install_progress = Some(Box::new(handler));
        self
    }

    async fn run(self) -> Result<Session, Error> {
        self.vm.live()?;
        let prepared = prepared(&self.vm, &self.wish).await?;
        let (reply, answer) = tokio::sync::oneshot::channel();
        // A task of its own: when the caller goes away while the sidecar answers, somebody must be left to undo.
        tokio::spawn(self.make_for(prepared, reply));
        answer.await.map_err(|_| CallError::Incomplete { call: CALL })?
    }

    /// Makes the session for a caller that may leave at any moment.
    async fn make_for(
        self,
        prepared: Option<PreparedInstructions>,
        mut caller: oneshot::Sender<Result<Session, Error>>,
    ) {
        let vm = self.vm.clone();
        let mut making = match self.begin(prepared).await {
            Ok(making) => making,
            // Whoever has left doesn't miss it.
            Err(error) => return drop(caller.send(Err(error))),
        };
        let begun = making.begun.clone();
        let made = tokio::select! {
            () = caller.closed() => None,
            made = making.finish() => Some(made),
        };
        // Ends the call: the sidecar stops what it does for it.
        drop(making);
        let unwanted = match made {
            Some(made) => match caller.send(made) {
                Err(Ok(session)) => {
                    vm.forget_session(session.id());
                    true
                }
                Ok(()) | Err(Err(_)) => false,
            },
            None => true,
        };
        // The session may stand by now, on its way to somebody who has left.
        if unwanted && let Err(error) = vm.give_up_session(begun).await {
            tracing::debug!(%error, "closing a session nobody waited for");
        }
    }

    /// Asks for the session and waits for its id and attempt, which the sidecar tells before it does anything.
    async fn begin(self, prepared: Option<PreparedInstructions>) -> Result<Making, Error> {
        let Self { vm, wish, on_install_progress } = self;
        let connection = vm.live()?;
        let prepared = prepared.map(convert::session::prepared);
        let reply = match wish.restored.clone() {
            Some(session_id) => {
                let vm_id = vm.id().to_owned();
                let request = v1::RestoreSessionRequest { vm_id, session_id, prepared };
                connection.session_store().restore_session(request).await
            }
            None => {
                let request =
                    v1::CreateSessionRequest { prepared, ..convert::session::create_request(vm.id(), wish) };
                connection.session().create_session(request).await
            }
        };
        let reply = reply.map_err(|status| vm.failed(status))?;
        let begun = v1::SessionBegun::default();
        let mut making = Making { vm, begun, events: reply.into_inner(), on_install_progress };
        match making.next().await? {
            CreateProgress::Begun(begun) => making.begun = begun,
            _ => return Err(CallError::Incomplete { call: CALL }.into()),
        }
        Ok(making)
    }
}

/// Has the caller's own agent be told what it should know. A part of the caller's future: it ends with that.
async fn prepared(vm: &AgentOs, wish: &SessionWish) -> Result<Option<PreparedInstructions>, Error> {
    if vm.prepare().is_empty() {
        return Ok(None);
    }
    let (agent, cwd, skip, additional) = match &wish.restored {
        Some(id) => match vm.stored_session(id).await? {
            Some(stored) => {
                let additional = stored.options["additionalInstructions"].as_str().map(str::to_owned);
                let skip = stored.options["skipOsInstructions"] == true;
                (stored.agent_type, stored.cwd, skip, additional)
            }
            // The sidecar says so in its own words.
            None => return Ok(None),
        },
        None => {
            let additional = wish.additional_instructions.clone();
            (wish.agent_type.clone(), wish.cwd.clone(), wish.skip_os_instructions, additional)
        }
    };
    let Some(prepare) = vm.prepare().get(&agent) else { return Ok(None) };
    let request = v1::ReadInstructionsRequest {
        vm_id: vm.id().to_owned(),
        skip_os_instructions: skip,
        additional_instructions: additional.unwrap_or_default(),
    };
    let reply = vm.live()?.session().read_instructions(request).await;
    let text = reply.map_err(|status| vm.failed(status))?.into_inner().text;
    let prepared = prepare(AgentInstructions { vm: vm.clone(), cwd, text }).await;
    Ok(Some(prepared.map_err(|source| CallError::Preparation { agent, source })?))
}

/// The call that makes a session.
const CALL: &str = "CreateSession";

/// A session that the sidecar is making.
struct Making {
    vm: AgentOs,
    begun: v1::SessionBegun,
    events: tonic::Streaming<agentos_proto::v1::CreateSessionEvent>,
    on_install_progress: Option<Box<dyn FnMut(InstallProgress) + Send>>,
}

impl Making {
    async fn next(&mut self) -> Result<CreateProgress, Error> {
        let event = self.events.message().await.map_err(|status| self.vm.failed(status))?;
        let event = event.ok_or(CallError::Incomplete { call: CALL })?;
        Ok(convert::session::create_event(event)?)
    }

    async fn finish(&mut self) -> Result<Session, Error> {
        loop {
            match self.next().await? {
                CreateProgress::Begun(_) => {}
                CreateProgress::Install(progress) => {
                    if let Some(handler) = &mut self.on_install_progress {
                        handler(progress);
                    }
                }
                CreateProgress::Created(data) => {
                    let session = self.vm.adopt_session(data);
                    warn_of_demo(&session);
                    return Ok(session);
                }
            }
        }
    }
}

/// A demo session must never be taken for a real one; once per process is enough to be seen.
fn warn_of_demo(session: &Session) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    if session.model() == ModelKind::Demo {
        WARNED.call_once(|| {
            tracing::warn!(
                session = session.id(),
                reason = session.model_reason(),
                "this session talks to the offline demo model, which follows a script and understands little"
            );
        });
    }
}

into_future!(CreateSession => Session);

impl fmt::Debug for CreateSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateSession")
            .field("agent_type", &self.wish.agent_type)
            .field("cwd", &self.wish.cwd)
            .field("env", &self.wish.env.keys())
            .field("mcp_servers", &self.wish.mcp_servers)
            .field("permission_policy", &self.wish.permission_policy)
            .field("permission_rules", &self.wish.permission_rules)
            .field("model", &self.wish.model)
            .finish_non_exhaustive()
    }
}
