//! A session, from the wish to the running agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentos_agents::configuration;
use agentos_agents::model::{self, Declared, ModelChoice, ModelKind, ModelRequest, ModelWish};
use agentos_agents::plan::{self, LaunchPlan, PlanMount, PlanRequest};
use agentos_agents::session::{Former, PermissionSetup, SessionStart, StartError};
use agentos_agents::store::{InstallRecord, Installed, Progress};
use agentos_agents::transcript::SessionDetails;
use agentos_agents::{Agent, PermissionPolicy, Session, Store, Transcripts};
use agentos_proto::v1::ErrorKind;
use agentos_vm::{Launcher, Vm, VmOptions, VmSpec};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::details;
use super::kept::{Archive, KeptFiles};
use super::launch::{self, Launched};
use super::modules::{self, own_modules};
use super::restore::Restored;
use super::workspace::VmWorkspace;
use super::{Creation, McpServers, NODE_MODULES, SessionHost, blocking};
use crate::errors::{self, Failure};
use crate::host::{Host, HostedVm};
use crate::secrets::ProviderKey;
use crate::tools;

/// Running an agent once so that it leaves compiled code behind; sessions work without it, only slower.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(20);

/// A decoded wish for a session.
#[derive(Debug)]
pub(crate) struct CreateSession {
    pub(crate) vm_id: String,
    pub(crate) agent_type: String,
    /// Empty means the VM's home.
    pub(crate) cwd: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) mcp_servers: McpServers,
    pub(crate) skip_os_instructions: bool,
    pub(crate) additional_instructions: String,
    pub(crate) permissions: PermissionSetup,
    /// Absent means the VM's.
    pub(crate) model: Option<ModelWish>,
    pub(crate) may_install: bool,
    pub(crate) provider_required: bool,
    pub(crate) prepared: PreparedInstructions,
    /// The session that is brought back.
    pub(crate) restored: Option<Box<Restored>>,
}

/// How the caller hands the instructions to an agent of its own.
#[derive(Debug, Default)]
pub(crate) struct PreparedInstructions {
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
}

/// All that is decided before an agent is launched.
struct Prepared {
    plan: LaunchPlan,
    /// The plan without the agent's own memory of the session, where the other one is with it.
    afresh: Option<LaunchPlan>,
    model: ModelChoice,
    install: Option<InstallRecord>,
    env: BTreeMap<String, String>,
    transcripts: Transcripts,
}

impl Host {
    /// Creates a session. Dropping the future undoes what was begun; packages that were fetched stay.
    pub(crate) async fn create_session(
        self: Arc<Self>,
        mut creation: Creation,
        wish: CreateSession,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Session, Failure> {
        let hosted = self.vm(&wish.vm_id)?;
        let sessions = self.sessions();
        let registry = SessionHost::registry(&hosted.sessions.defaults);
        let mut agent = registry.find(&wish.agent_type)?.clone();
        agent.extra_args.extend(wish.prepared.args.iter().cloned());
        agent.env.extend(wish.prepared.env.clone());
        let agent = &agent;
        if wish.permissions.policy == PermissionPolicy::RejectAll && !agent.asks {
            return Err(unkept_promise(agent));
        }
        let mut env = hosted.sessions.defaults.env.clone();
        env.extend(wish.env.clone());
        let choice = choose_model(&hosted, &wish, agent, &env).await?;

        // The user's own modules win over the store's, which then has only to run them.
        let own = own_modules(&hosted.vm, agent).await?;
        let store = sessions.store()?;
        let installed = match own {
            Some(_) => {
                let runtime = agent.with_own_package_elsewhere();
                self.install(&store, &runtime, wish.may_install, progress).await?
            }
            None => self.install(&store, agent, wish.may_install, progress).await?,
        };
        let transcripts = sessions.transcripts().await?;
        let demo_base_url = match choice.kind {
            ModelKind::Demo => hosted.sessions.serve_demo(&hosted.vm, &sessions.demo).await?,
            ModelKind::Provider => String::new(),
        };
        let offer = hosted.tools.as_ref().map(|tools| tools.desk().offer());
        let instructions = hosted.instructions(wish.skip_os_instructions, &wish.additional_instructions);
        let host_tools = offer.map(|_| tools::server());
        let request = PlanRequest {
            agent,
            session: creation.id(),
            installed: &installed,
            node_modules: own.as_ref().map(|_| NODE_MODULES),
            adapter: own.as_ref().and_then(|own| own.adapter.as_ref()),
            home: hosted.vm.spec().home(),
            own_configuration: own_configuration(&hosted.vm, agent).await?,
            former: former_id(&wish),
            cwd: if wish.cwd.is_empty() { hosted.vm.spec().home() } else { &wish.cwd },
            env: &env,
            instructions: &instructions,
            model: &choice,
            demo_base_url: &demo_base_url,
            redirects: &ProviderKey::redirects(&hosted.sessions.defaults.keys, agent, &env),
            mcp_servers: &wish.mcp_servers,
            host_tools: host_tools.as_ref(),
            permission_policy: wish.permissions.policy,
        };
        let plan = plan::plan_session(&request)?;
        let afresh = match request.former {
            Some(_) => Some(plan::plan_session(&PlanRequest { former: None, ..request })?),
            None => None,
        };
        let (vm_id, install) = (wish.vm_id.clone(), installed.record());
        let transcripts = transcripts.clone();
        let prepared =
            Prepared { plan, afresh, model: choice, install, env, transcripts: transcripts.clone() };
        let session = self.start_session(&creation, &hosted, prepared, wish).await?;
        creation.register(session.clone(), transcripts, || Ok(self.vm(&vm_id).map(drop)?))?;
        // A task, because a caller that goes away must not cut the writing off from the lock that it is done under.
        let (host, shown) = (Arc::clone(&self), session.clone());
        let showing = tokio::spawn(async move {
            hosted.sessions.show_instructions(&hosted.vm, host.sessions(), &shown, instructions).await;
        });
        // Where it panicked there is no file, and the agent has its instructions all the same.
        let _ = showing.await;
        creation.delivered();
        Ok(session)
    }

    /// By what people know a VM.
    fn label(&self, vm_id: &str) -> String {
        let listed = self.list().into_iter().find(|listed| listed.id.as_str() == vm_id);
        listed.map(|listed| listed.name).filter(|name| !name.is_empty()).unwrap_or_else(|| vm_id.to_owned())
    }

    /// Launches the agent and takes it over. What it keeps of the session is kept from here on. One that fails over what
    /// it remembers of a former session is launched once more without that.
    async fn start_session(
        &self,
        creation: &Creation,
        hosted: &Arc<HostedVm>,
        prepared: Prepared,
        mut wish: CreateSession,
    ) -> Result<Session, Failure> {
        let (kept, former) = match wish.restored.take().map(|restored| *restored) {
            Some(Restored { kept, stored, lost_cwd, lost }) => {
                (kept, Some(Former { stored, known_through: None, lost_cwd, lost, forgotten: None }))
            }
            None => (Arc::new(KeptFiles::take(self.sessions(), creation.id()).await?), None),
        };
        let details = details::of(
            &wish,
            former.as_ref().map(|former| &former.stored),
            &prepared.plan.cwd,
            self.label(&wish.vm_id),
        );
        let start = Starting { creation, hosted, prepared: &prepared, wish: &wish, kept: &kept, details };
        let archive = match &former {
            Some(_) => kept.archive().await?,
            None => None,
        };
        let (launched, started) = start.with(&prepared.plan, archive.as_ref(), former.clone()).await?;
        let (launched, plan, started) = match (started, former, &prepared.afresh) {
            (Err(error), Some(former), Some(afresh)) if error.may_be_memory() => {
                let reason = errors::chain(&error.without_log());
                tracing::warn!(session = %creation.id(), reason, "a session goes on without its agent's memory");
                launched.undo().await;
                // The first try has left events.
                let stored = prepared.transcripts.reopen(creation.id().as_str()).await?;
                let former = Former { stored, forgotten: Some(reason), ..former };
                let (launched, started) = start.with(afresh, None, Some(former)).await?;
                (launched, afresh, started)
            }
            (started, _, _) => (launched, &prepared.plan, started),
        };
        let session = match started {
            Ok(session) => session,
            Err(error) => {
                // The session's lock is held until then.
                launched.undo().await;
                return Err(error.into());
            }
        };
        let state = plan.state.clone();
        tokio::spawn(launch::watch(session.clone(), launched, Arc::clone(hosted), (kept, state)));
        Ok(session)
    }

    /// The agent's packages, fetched where they are missing and allowed to be.
    pub(crate) async fn install(
        &self,
        store: &Store,
        agent: &Agent,
        allowed: bool,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Installed, Failure> {
        let (looked_in, looked_for) = (store.clone(), agent.clone());
        let found = blocking(move || Ok(looked_in.installed(&looked_for))).await?;
        let installed = match found {
            Some(installed) => installed,
            None if allowed => store.install(agent, progress).await?,
            None => {
                let message = format!(
                    "Agent {} is not installed and installing is switched off; to install it run: {}",
                    agent.id,
                    agent.install_command()
                );
                return Err(Failure::new(ErrorKind::AgentNotInstalled, &agent.id, message));
            }
        };
        if agent.data.warm_up.is_some() && store.needs_warm_up(&installed) {
            self.warm_up(store, agent, &installed).await;
        }
        Ok(installed)
    }

    /// Lets the agent compile itself once, in a VM that sees nothing of any user. Tried to its end once per run.
    async fn warm_up(&self, store: &Store, agent: &Agent, installed: &Installed) {
        let mut tried = self.sessions().warmed_up.lock().await;
        if !store.needs_warm_up(installed) || tried.contains(&agent.id) {
            return;
        }
        let launcher = match self.launchers().get().await {
            Ok(launcher) => launcher,
            Err(error) => {
                let reason = errors::chain(&*error);
                tracing::warn!(agent = agent.id, reason, "no launcher for a warm-up");
                return;
            }
        };
        let warmed = timeout(WARM_UP_DEADLINE, warm_up(&launcher, store, agent, installed)).await;
        // Not before: the caller of a warm-up that was cut off may have gone for reasons of its own.
        tried.insert(agent.id.clone());
        match warmed {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::warn!(
                    agent = agent.id,
                    reason = failure.message(),
                    "sessions start without a warm-up"
                );
            }
            Err(_) => tracing::warn!(agent = agent.id, "the warm-up took too long"),
        }
    }
}

/// What the tries to start one session have in common.
struct Starting<'a> {
    creation: &'a Creation,
    hosted: &'a HostedVm,
    prepared: &'a Prepared,
    wish: &'a CreateSession,
    kept: &'a Arc<KeptFiles>,
    details: SessionDetails,
}

impl Starting<'_> {
    /// One try. A launch whose agent doesn't start is to be undone; of one that fails, nothing is left.
    async fn with(
        &self,
        plan: &LaunchPlan,
        archive: Option<&Archive>,
        mut former: Option<Former>,
    ) -> Result<(Launched, Result<Session, StartError>), Failure> {
        let Self { creation, hosted, prepared, wish, kept, details } = self;
        let launched = launch(hosted, plan, archive, kept).await?;
        // An archive that can't be unpacked leaves the transcript.
        if let Some(former) = &mut former {
            let through = archive.map(|archive| archive.through);
            former.known_through = through.filter(|_| launched.remembers());
        }
        let Some(process) = launched.agent_process() else {
            launched.undo().await;
            return Err(Failure::new(ErrorKind::Internal, &wish.agent_type, "the agent has no process"));
        };
        let started = Session::start(SessionStart {
            id: creation.id().clone(),
            owner: wish.vm_id.clone(),
            attempt: creation.attempt(),
            agent_type: wish.agent_type.clone(),
            plan,
            process,
            model: prepared.model.clone(),
            install: prepared.install.clone(),
            transcripts: prepared.transcripts.clone(),
            workspace: Some(Arc::new(VmWorkspace::new(&hosted.vm, &plan.cwd, &prepared.env))),
            details: details.clone(),
            permissions: wish.permissions.clone(),
            former,
        });
        let started = started.await;
        Ok((launched, started))
    }
}

/// An agent that never asks before it acts: to take the wish would promise what nobody keeps.
fn unkept_promise(agent: &Agent) -> Failure {
    let message = format!(
        "permissionPolicy reject_all can't be kept with {0}: {0} never asks before it acts, so that there is no request \
         to reject and it would act all the same; what it may reach is what its VM may reach",
        agent.id
    );
    Failure::new(ErrorKind::Unsupported, "permissionPolicy", message)
}

/// Executes a plan in its VM. What every session of the VM needs is mounted once.
async fn launch(
    hosted: &HostedVm,
    plan: &LaunchPlan,
    archive: Option<&Archive>,
    kept: &Arc<KeptFiles>,
) -> Result<Launched, Failure> {
    let shared: Vec<PlanMount> = plan.mounts.iter().filter(|mount| mount.read_only).cloned().collect();
    hosted.sessions.mount_packages(&hosted.vm, &shared).await?;
    Launched::start(&hosted.vm, plan, &shared, archive, Some(Arc::clone(kept))).await
}

/// The id by which the agent knows the session, where it is brought back.
fn former_id(wish: &CreateSession) -> Option<&str> {
    wish.restored.as_ref()?.stored.details.agent_session_id.as_deref()
}

async fn choose_model(
    hosted: &HostedVm,
    wish: &CreateSession,
    agent: &Agent,
    env: &BTreeMap<String, String>,
) -> Result<ModelChoice, Failure> {
    let names: Vec<&str> = env.keys().map(String::as_str).collect();
    let wanted = wish.model.unwrap_or(hosted.sessions.defaults.model);
    let configured = match wanted {
        ModelWish::Auto => configured(&hosted.vm, agent, env).await?,
        ModelWish::Demo | ModelWish::Provider => None,
    };
    let keys = &hosted.sessions.defaults.keys;
    let declared: Vec<Declared<'_>> =
        keys.iter().map(|key| Declared { name: key.provider.key, host: &key.host }).collect();
    let unreachable = match keys.as_slice() {
        [] => None,
        _ => hosted.vm.network_stats().await.err().map(|error| errors::chain(&error)),
    };
    Ok(model::choose(&ModelRequest {
        wish: wanted,
        agent,
        env_names: &names,
        declared: &declared,
        unreachable: unreachable.as_deref(),
        configured: configured.as_deref(),
        provider_required: wish.provider_required,
    })?)
}

/// The file in the VM by which the agent's own configuration names a provider.
async fn configured(
    vm: &Vm,
    agent: &Agent,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>, Failure> {
    for place in &agent.configuration {
        let Some(directory) = place.directory_in(env, vm.spec().home()) else { continue };
        for (name, places) in &place.files {
            let path = format!("{directory}/{name}");
            if let Some(content) = modules::small_file(vm, &path).await?
                && configuration::names_provider(&path, &content, places)?
            {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

/// Whether the VM's user has a configuration of this agent.
async fn own_configuration(vm: &Vm, agent: &Agent) -> Result<bool, Failure> {
    let Some(place) = agent.configuration.first() else { return Ok(false) };
    let path = format!("{}/{}", vm.spec().home(), place.directory);
    Ok(vm.exists(path.as_bytes()).await?)
}

async fn warm_up(
    launcher: &Launcher,
    store: &Store,
    agent: &Agent,
    installed: &Installed,
) -> Result<(), Failure> {
    let warm_up = plan::plan_warm_up(agent, store, installed)?;
    let plan = warm_up.plan.clone();
    let warm_up = blocking(move || Ok(warm_up.prepare().map(|()| warm_up)?)).await?;
    let spec = VmSpec::validate(VmOptions::default(), &agentos_vm::Host::of(launcher))?;
    let vm = Vm::create(launcher, spec).await?;
    let ran = async {
        let launched = Launched::start(&vm, &plan, &[], None, None).await?;
        launched.close_stdin();
        launched.exited().await;
        launched.undo().await;
        Ok::<(), Failure>(())
    };
    let ran = ran.await;
    vm.dispose(Some(Duration::ZERO)).await;
    ran?;
    blocking(move || warm_up.adopt().map_err(Failure::from)).await
}
