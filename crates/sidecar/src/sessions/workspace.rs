//! What agents may have their client do, done in the VM by processes of the VM's user: a file that the agent could not
//! open can't be opened through us either, and every path is resolved by the guest's own kernel view.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentos_agents::AgentExit;
use agentos_agents::session::Workspace;
use agentos_agents::session::workspace::{MAX_FILE_BYTES, Program, Terminal, Work, WorkspaceError};
use agentos_vm::process::Output;
use agentos_vm::{Exit, Process, ProcessSpec, Stdin, Vm};
use bytes::Bytes;

use super::launch::agent_exit;
use crate::errors;

/// A file that takes longer is a pipe or a mount that hangs.
const FILE_DEADLINE: Duration = Duration::from_secs(30);
/// What is kept of an error's words.
const MAX_REASON_BYTES: usize = 1024;

/// The place of one session.
#[derive(Debug, Clone)]
pub(super) struct VmWorkspace {
    vm: Vm,
    cwd: String,
    env: BTreeMap<String, String>,
}

impl VmWorkspace {
    pub(super) fn new(vm: &Vm, cwd: &str, env: &BTreeMap<String, String>) -> Self {
        Self { vm: vm.clone(), cwd: cwd.to_owned(), env: env.clone() }
    }

    /// A small program of ours, for one file.
    async fn help(&self, argv: &[&str], stdin: Stdin) -> Result<Guard, WorkspaceError> {
        let argv = argv.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        self.start(ProcessSpec { argv, stdin, timeout: Some(FILE_DEADLINE), ..ProcessSpec::default() }).await
    }

    /// Starts a process with what the session's own have, beside what it has itself.
    async fn start(&self, mut spec: ProcessSpec) -> Result<Guard, WorkspaceError> {
        let own =
            self.env.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()));
        spec.env = own.chain(spec.env).collect();
        spec.cwd.get_or_insert_with(|| self.cwd.as_bytes().to_vec());
        spec.supervised = true;
        let process = self.vm.spawn(spec).await;
        process.map(Guard).map_err(|error| WorkspaceError { message: errors::chain(&error) })
    }
}

impl Workspace for VmWorkspace {
    fn read_file(&self, path: String) -> Work<Vec<u8>> {
        let place = self.clone();
        Box::pin(async move {
            let process = place.help(&["cat", "--", &path], Stdin::Null).await?;
            let mut reader = process.0.stdout().from_offset(0);
            let mut content = Vec::new();
            while let Some(chunk) = reader.next().await {
                content.extend_from_slice(&chunk.data);
                if content.len() > MAX_FILE_BYTES {
                    let message = format!("{path} has more than {MAX_FILE_BYTES} bytes");
                    return Err(WorkspaceError { message });
                }
            }
            succeeded(&process.0).await.map(|()| content)
        })
    }

    fn write_file(&self, path: String, content: String) -> Work<()> {
        let place = self.clone();
        Box::pin(async move {
            let script = r#"mkdir -p -- "$(dirname -- "$1")" && exec cat > "$1""#;
            let stdin = Stdin::Bytes(Bytes::from(content));
            let process = place.help(&["/bin/sh", "-c", script, "sh", &path], stdin).await?;
            succeeded(&process.0).await
        })
    }

    fn run(&self, program: Program) -> Work<Arc<dyn Terminal>> {
        let place = self.clone();
        Box::pin(async move {
            let Program { argv, env, cwd, output_bytes } = program;
            let process = place
                .start(ProcessSpec {
                    argv: argv.into_iter().map(String::into_bytes).collect(),
                    env: env
                        .into_iter()
                        .map(|(name, value)| (name.into_bytes(), value.into_bytes()))
                        .collect(),
                    cwd: cwd.map(String::into_bytes),
                    ..ProcessSpec::default()
                })
                .await?;
            let kept = Kept { bytes: VecDeque::new(), limit: output_bytes, truncated: false };
            let kept = Arc::new(Mutex::new(kept));
            let readers = [process.0.stdout(), process.0.stderr()]
                .map(|output| tokio::spawn(keep(output.clone(), Arc::clone(&kept))));
            Ok(Arc::new(VmTerminal { process, kept, readers }) as Arc<dyn Terminal>)
        })
    }
}

/// Whether a helper has done its work; what it complained of otherwise.
async fn succeeded(process: &Process) -> Result<(), WorkspaceError> {
    let mut reader = process.stderr().from_offset(0);
    let mut complaint = Vec::new();
    while let Some(chunk) = reader.next().await {
        let room = MAX_REASON_BYTES.saturating_sub(complaint.len());
        complaint.extend(chunk.data.iter().take(room));
    }
    match process.wait().await {
        Exit::Exited(0) => Ok(()),
        Exit::TimedOut => {
            Err(WorkspaceError { message: format!("not done within {} s", FILE_DEADLINE.as_secs()) })
        }
        _ => Err(WorkspaceError { message: String::from_utf8_lossy(&complaint).trim().to_owned() }),
    }
}

/// A process that ends with whoever asked for it.
#[derive(Debug)]
struct Guard(Process);

impl Guard {
    fn kill(&self) {
        let process = self.0.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = process.kill_supervised().await {
                    tracing::debug!(pid = process.pid(), %error, "a program of an agent can't be ended");
                }
            });
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of a program's output.
#[derive(Debug)]
struct Kept {
    bytes: VecDeque<u8>,
    limit: usize,
    truncated: bool,
}

#[derive(Debug)]
struct VmTerminal {
    process: Guard,
    // Held for one copy, never across an await.
    kept: Arc<Mutex<Kept>>,
    readers: [tokio::task::JoinHandle<()>; 2],
}

impl VmTerminal {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terminal for VmTerminal {
    fn output(&self) -> (Vec<u8>, bool) {
        let kept = self.kept();
        (kept.bytes.iter().copied().collect(), kept.truncated)
    }

    fn exit(&self) -> Option<AgentExit> {
        self.process.0.exit().map(|exit| agent_exit(&exit))
    }

    fn exited(&self) -> Pin<Box<dyn Future<Output = AgentExit> + Send>> {
        let process = self.process.0.clone();
        Box::pin(async move { agent_exit(&process.wait().await) })
    }

    fn kill(&self) {
        self.process.kill();
    }
}

impl Drop for VmTerminal {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

async fn keep(output: Output, kept: Arc<Mutex<Kept>>) {
    let mut reader = output.from_offset(0);
    while let Some(chunk) = reader.next().await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes.extend(chunk.data.iter());
        let surplus = kept.bytes.len().saturating_sub(kept.limit);
        kept.truncated |= surplus > 0;
        kept.bytes.drain(..surplus);
    }
}
