//! A launch plan, executed in a VM, and its undoing.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use agentos_agents::plan::{LaunchPlan, PlanFile, PlanMount};
use agentos_agents::{AgentExit, AgentProcess};
use agentos_vm::mount::Mounter;
use agentos_vm::spec::{MountKind, MountOptions};
use agentos_vm::{Exit, Process, ProcessSpec, Stdin, Vm};
use bytes::Bytes;
use futures_util::future::try_join_all;

use super::kept::{Archive, KeptFiles};
use super::stdio::{InputPipe, OutputPipe};
use crate::errors::Failure;
use crate::host::HostedVm;

/// A started agent. Dropped, everything of it is undone, in a task of its own.
#[derive(Debug)]
pub(super) struct Launched {
    vm: Vm,
    process: Option<Process>,
    made: Made,
    /// Whether the agent's own files of a former session were brought back.
    remembers: bool,
}

/// What a launch made in its VM for itself alone.
#[derive(Debug, Default)]
struct Made {
    mounts: Vec<String>,
    directory: Option<String>,
    /// The session's lock, held until the rest is undone: whoever takes up the session has the same directory.
    _locked: Option<Arc<KeptFiles>>,
}

impl Launched {
    /// Mounts what the plan asks for and is not there yet, writes its files, and starts the agent as a supervised
    /// process. What fails is undone when this returns.
    pub(super) async fn start(
        vm: &Vm,
        plan: &LaunchPlan,
        shared: &[PlanMount],
        archive: Option<&Archive>,
        locked: Option<Arc<KeptFiles>>,
    ) -> Result<Self, Failure> {
        let made = Made { _locked: locked, ..Made::default() };
        let mut launched = Self { vm: vm.clone(), process: None, made, remembers: false };
        match launched.execute(plan, shared, archive).await {
            Ok(()) => Ok(launched),
            Err(failure) => {
                launched.undo().await;
                Err(failure)
            }
        }
    }

    async fn execute(
        &mut self,
        plan: &LaunchPlan,
        shared: &[PlanMount],
        archive: Option<&Archive>,
    ) -> Result<(), Failure> {
        let vm = &self.vm;
        // Everything is noted before it is done: what was cut off half-way may have succeeded.
        for mount in plan.mounts.iter().filter(|mount| !shared.contains(mount)) {
            self.made.mounts.push(mount.guest_path.clone());
            mount_plan(vm, mount).await?;
        }
        if let Some(directory) = &plan.state_dir {
            self.made.directory = Some(directory.clone());
            vm.mkdir(directory.as_bytes(), true).await?;
        }
        // Before our own files, which are those of this launch.
        if let Some(archive) = archive {
            self.remembers = archive.unpack(vm, &plan.state, &mut self.process).await?;
        }
        let write = |file: &PlanFile| {
            let (path, content) = (file.guest_path.clone(), Bytes::from(file.content.clone()));
            async move { vm.write_file(path.as_bytes(), content).await }
        };
        try_join_all(plan.files.iter().map(write)).await?;
        self.process = Some(vm.spawn(process_spec(vm, plan)).await?);
        Ok(())
    }

    /// The agent as a session takes it.
    pub(super) fn agent_process(&self) -> Option<AgentProcess> {
        let process = self.process.as_ref()?;
        let (waited, killed) = (process.clone(), process.clone());
        let runtime = tokio::runtime::Handle::current();
        Some(AgentProcess {
            stdin: Box::new(InputPipe::of(process.clone())),
            stdout: Box::new(OutputPipe::of(process.stdout())),
            stderr: Box::new(OutputPipe::of(process.stderr())),
            exit: Box::pin(async move { agent_exit(&waited.wait().await) }),
            kill: Box::new(move || {
                runtime.spawn(async move { end(&killed).await });
            }),
        })
    }

    /// Whether the agent's own files of a former session were brought back.
    pub(super) fn remembers(&self) -> bool {
        self.remembers
    }

    /// An agent that reads the end of its input exits by itself.
    pub(super) fn close_stdin(&self) {
        if let Some(Err(error)) = self.process.as_ref().map(Process::close_stdin) {
            tracing::debug!(%error, "stdin of an agent is closed already");
        }
    }

    /// Waits until the agent itself has ended.
    pub(super) async fn exited(&self) {
        if let Some(process) = &self.process {
            process.wait().await;
        }
    }

    /// Ends every process of the launch and removes what was made for it. Goes on by itself where the call is dropped.
    pub(super) async fn undo(mut self) {
        let (vm, process, made) = (self.vm.clone(), self.process.take(), std::mem::take(&mut self.made));
        let undoing = tokio::spawn(async move { undo(&vm, process, made).await });
        // It fails where it panicked, and nothing more can be done then.
        let _ = undoing.await;
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let (process, made) = (self.process.take(), std::mem::take(&mut self.made));
        if process.is_none() && made.mounts.is_empty() && made.directory.is_none() {
            return;
        }
        let vm = self.vm.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { undo(&vm, process, made).await });
        }
    }
}

async fn undo(vm: &Vm, process: Option<Process>, made: Made) {
    if let Some(process) = process {
        end(&process).await;
    }
    for path in made.mounts {
        if let Err(error) = vm.unmount_fs(path.as_bytes(), Mounter::Sidecar).await {
            tracing::debug!(path, %error, "not unmounted after a session");
        }
    }
    if let Some(path) = made.directory
        && let Err(error) = vm.delete(path.as_bytes(), true).await
    {
        tracing::debug!(path, %error, "not removed after a session");
    }
}

async fn end(process: &Process) {
    if let Err(error) = process.kill_supervised().await {
        tracing::debug!(pid = process.pid(), %error, "processes of a session can't be ended");
    }
}

pub(super) fn agent_exit(exit: &Exit) -> AgentExit {
    match exit {
        Exit::Signaled(signal) => AgentExit { code: None, signal: Some(*signal) },
        other => AgentExit { code: Some(other.code()), signal: None },
    }
}

pub(super) async fn mount_plan(vm: &Vm, mount: &PlanMount) -> Result<(), Failure> {
    let source = path_bytes(&mount.host_path);
    let kind = MountKind::HostDir { source, read_only: mount.read_only, allow_sockets: true };
    let options = MountOptions { path: mount.guest_path.clone().into_bytes(), kind };
    vm.mount_fs(options, Mounter::Sidecar).await?;
    Ok(())
}

fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn process_spec(vm: &Vm, plan: &LaunchPlan) -> ProcessSpec {
    let mut env = plan.env.clone();
    let base = vm.spec().environment().get(b"PATH").map(String::from_utf8_lossy).unwrap_or_default();
    env.insert("PATH".to_owned(), plan.path(&base));
    ProcessSpec {
        argv: plan.argv.iter().map(|arg| arg.clone().into_bytes()).collect(),
        env: pairs(env),
        cwd: Some(plan.cwd.clone().into_bytes()),
        stdin: Stdin::Piped,
        timeout: None,
        patience: None,
        supervised: true,
    }
}

fn pairs(env: BTreeMap<String, String>) -> Vec<(Vec<u8>, Vec<u8>)> {
    env.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect()
}

/// Keeps a launch until its session is over, then undoes it. What the agent keeps of the session is kept meanwhile. The
/// session stays locked until the launch is undone: one that is restored in the same VM has the same directories there.
pub(super) async fn watch(
    session: agentos_agents::Session,
    launched: Launched,
    hosted: Arc<HostedVm>,
    (kept, paths): (Arc<KeptFiles>, Vec<String>),
) {
    kept.follow(&hosted.vm, &session, &paths).await;
    launched.undo().await;
    hosted.sessions.hide_instructions(session.id()).await;
    drop(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_exit_is_a_code_or_a_signal() {
        let code = agent_exit(&Exit::Exited(3));
        assert_eq!((code.code, code.signal), (Some(3), None));
        let signal = agent_exit(&Exit::Signaled(9));
        assert_eq!((signal.code, signal.signal), (None, Some(9)));
    }
}
