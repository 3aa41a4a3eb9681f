//! A session, from the wish to the running agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentos_agents::model::{self, ModelChoice, ModelKind, ModelRequest, ModelWish};
use agentos_agents::plan::{self, PlanMount, PlanRequest};
use agentos_agents::session::SessionStart;
use agentos_agents::store::{Installed, Progress};
use agentos_agents::{Agent, Session, SessionId, Store};
use agentos_proto::v1::ErrorKind;
use agentos_vm::{Launcher, Vm, VmOptions, VmSpec};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::launch::{self, Launched, mount_plan};
use super::{McpServers, NODE_MODULES, SessionHost};
use crate::errors::{self, Failure};
use crate::host::{Host, HostedVm};

/// Files by which an agent's own configuration names a provider, below the VM's home.
const CONFIGURATION: [(&str, &[&str]); 1] = [("pi", &[".pi/agent/auth.json", ".pi/agent/models.json"])];

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
    /// Absent means the VM's.
    pub(crate) model: Option<ModelWish>,
    pub(crate) may_install: bool,
    pub(crate) provider_required: bool,
}

/// What every agent is told about where it runs.
const OS_INSTRUCTIONS: &str = include_str!("instructions.md");

impl Host {
    /// Creates a session. Dropping the future undoes what was begun; packages that were fetched stay.
    pub(crate) async fn create_session(
        self: Arc<Self>,
        wish: CreateSession,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Session, Failure> {
        let hosted = self.vm(&wish.vm_id)?;
        let sessions = self.sessions();
        let registry = SessionHost::registry(&hosted.sessions);
        let agent = registry.find(&wish.agent_type)?;
        agent.launchable()?;
        let mut env = hosted.sessions.env.clone();
        env.extend(wish.env.clone());
        let choice = choose_model(&hosted, &wish, agent, &env).await?;

        let store = sessions.store()?;
        let installed = self.install(&store, agent, wish.may_install, progress).await?;
        let transcripts = sessions.transcripts().await?.clone();
        let demo_base_url = match choice.kind {
            ModelKind::Demo => sessions.demo.serve(&wish.vm_id, &hosted.vm).await?,
            ModelKind::Provider => String::new(),
        };
        let node_modules = own_modules(&hosted.vm, agent).await;
        let id = SessionId::new();
        let instructions = instructions(&hosted, &wish);
        let cwd = if wish.cwd.is_empty() { hosted.vm.spec().home() } else { &wish.cwd };
        let plan = plan::plan_session(&PlanRequest {
            agent,
            session: &id,
            home: sessions.home()?,
            installed: &installed,
            node_modules: node_modules.as_deref(),
            cwd,
            env: &env,
            instructions: &instructions,
            model: &choice,
            demo_base_url: &demo_base_url,
            mcp_servers: &wish.mcp_servers,
        })?;
        let state = StateDir::new(sessions.home()?.session_dir(&id));
        let (prepared, shown) = (plan.clone(), state.instructions());
        let directory = shown.host_path.clone();
        blocking(move || {
            prepared.prepare()?;
            write_instructions(&directory, &instructions)
        })
        .await?;

        let shared = sessions.prepare_vm(&wish.vm_id, &hosted.vm, &plan.mounts).await?;
        let launched = Launched::start(&hosted.vm, &plan, &shared).await?;
        let process = launched
            .agent_process()
            .ok_or_else(|| Failure::new(ErrorKind::Internal, &wish.agent_type, "the agent has no process"))?;
        let session = Session::start(SessionStart {
            id,
            owner: wish.vm_id.clone(),
            agent_type: agent.id.clone(),
            plan: &plan,
            process,
            model: choice,
            install: installed.record(),
            transcripts,
        })
        .await?;
        state.keep();
        sessions.show_instructions(&wish.vm_id, &hosted.vm, &shown).await;
        sessions.live.insert(session.clone());
        tokio::spawn(launch::watch(session.clone(), launched));
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
        if store.needs_warm_up(&installed) {
            self.warm_up(store, agent, &installed).await;
        }
        Ok(installed)
    }

    /// Lets the agent compile itself once, in a VM that sees nothing of any user. Tried once per run.
    async fn warm_up(&self, store: &Store, agent: &Agent, installed: &Installed) {
        let mut tried = self.sessions().warmed_up.lock().await;
        if !store.needs_warm_up(installed) || !tried.insert(agent.id.clone()) {
            return;
        }
        let Ok(launcher) = self.launchers().get().await else { return };
        let warmed = timeout(WARM_UP_DEADLINE, warm_up(&launcher, store, agent, installed)).await;
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

impl SessionHost {
    /// Mounts what every session of a VM shares, once. The answer is what needs no mount any more.
    async fn prepare_vm(
        &self,
        vm_id: &str,
        vm: &Vm,
        mounts: &[PlanMount],
    ) -> Result<Vec<PlanMount>, Failure> {
        let shared: Vec<PlanMount> = mounts.iter().filter(|mount| mount.read_only).cloned().collect();
        let mut prepared = self.prepared.lock().await;
        let done = prepared.entry(vm_id.to_owned()).or_default();
        if !done.packages {
            for mount in &shared {
                mount_plan(vm, mount).await?;
            }
            done.packages = true;
        }
        Ok(shared)
    }

    /// Shows a VM the instructions of its first session as a file. The agent has them already, so that a VM without
    /// the file is none the worse.
    async fn show_instructions(&self, vm_id: &str, vm: &Vm, mount: &PlanMount) {
        let mut prepared = self.prepared.lock().await;
        let done = prepared.entry(vm_id.to_owned()).or_default();
        if done.instructions {
            return;
        }
        match mount_plan(vm, mount).await {
            Ok(()) => done.instructions = true,
            Err(failure) => tracing::warn!(vm_id, reason = failure.message(), "no file of instructions"),
        }
    }
}

async fn choose_model(
    hosted: &HostedVm,
    wish: &CreateSession,
    agent: &Agent,
    env: &BTreeMap<String, String>,
) -> Result<ModelChoice, Failure> {
    let names: Vec<&str> = env.keys().map(String::as_str).collect();
    let configured = configured(&hosted.vm, agent).await;
    Ok(model::choose(&ModelRequest {
        wish: wish.model.unwrap_or(hosted.sessions.model),
        agent,
        env_names: &names,
        declared: &[],
        configured: configured.as_deref(),
        provider_required: wish.provider_required,
    })?)
}

/// The file in the VM by which the agent's own configuration names a provider.
async fn configured(vm: &Vm, agent: &Agent) -> Option<String> {
    let (_, files) = CONFIGURATION.iter().find(|(id, _)| *id == agent.id)?;
    for file in *files {
        let path = format!("{}/{file}", vm.spec().home());
        if vm.exists(path.as_bytes()).await.unwrap_or(false) {
            return Some(path);
        }
    }
    None
}

/// The user's own modules win over the store's where they hold the agent.
async fn own_modules(vm: &Vm, agent: &Agent) -> Option<String> {
    let package = format!("{NODE_MODULES}/{}/package.json", agent.agent_package);
    let there = vm.exists(package.as_bytes()).await.unwrap_or(false);
    there.then(|| NODE_MODULES.to_owned())
}

/// A session's directory on the host; dropped before the session stands, it is removed.
struct StateDir(Option<PathBuf>);

impl StateDir {
    fn new(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// The instructions beside the agent's own state, to be read in the VM and not changed.
    fn instructions(&self) -> PlanMount {
        let host_path = self.0.as_deref().unwrap_or(Path::new("")).join("etc");
        PlanMount { host_path, guest_path: "/etc/agentos".to_owned(), read_only: true }
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        if let Err(error) = std::fs::remove_dir_all(path) {
            tracing::debug!(path = %path.display(), %error, "state of a session that never was");
        }
    }
}

fn write_instructions(directory: &Path, text: &str) -> Result<(), Failure> {
    let file = directory.join("instructions.md");
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&file, text));
    written.map_err(|error| {
        let (path, message) = (file.to_string_lossy(), format!("writing {}: {error}", file.display()));
        match error.raw_os_error() {
            Some(errno) => Failure::system(errno, path, message),
            None => Failure::new(ErrorKind::Internal, path, message),
        }
    })
}

fn instructions(hosted: &HostedVm, wish: &CreateSession) -> String {
    let base = if wish.skip_os_instructions { "" } else { OS_INSTRUCTIONS };
    let parts = [base, &hosted.sessions.instructions, &wish.additional_instructions];
    parts.map(str::trim).into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

async fn warm_up(
    launcher: &Launcher,
    store: &Store,
    agent: &Agent,
    installed: &Installed,
) -> Result<(), Failure> {
    let warm_up = plan::plan_warm_up(agent, store, installed)?;
    let plan = warm_up.plan.clone();
    let prepared = plan.clone();
    blocking(move || prepared.prepare().map_err(Failure::from)).await?;
    let spec = VmSpec::validate(VmOptions::default(), &agentos_vm::Host::of(launcher))?;
    let vm = Vm::create(launcher, spec).await?;
    let ran = async {
        let launched = Launched::start(&vm, &plan, &[]).await?;
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

/// Small work on files of the host, off the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Failure::new(ErrorKind::Internal, "", errors::chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_never_was_leaves_no_directory() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("session");
        let state = StateDir::new(path.clone());
        write_instructions(&state.instructions().host_path, OS_INSTRUCTIONS).unwrap();
        let file = path.join("etc/instructions.md");
        assert!(std::fs::read_to_string(&file).unwrap().contains("agentOS"));
        drop(state);
        assert!(!path.exists());
        StateDir::new(path.clone()).keep();
    }
}
