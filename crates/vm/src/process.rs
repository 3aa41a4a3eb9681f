//! Processes of a VM: how they are started, read, written to, waited for and listed.
//!
//! [`Vm::spawn`] returns once the program runs, or its caller's patience has ended. While it runs a task carries its output into windows that any number of
//! readers follow by offset, see [`Output`]; its exit is kept for whoever asks later. A handle that is dropped ends
//! nothing.

pub(crate) mod live;
pub(crate) mod prepare;
pub(crate) mod records;

mod error;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::init::{Request, Response};
use agentos_guest_protocol::process::{ProcessEntry, SignalScope, Stdio};
use bytes::Bytes;
use tokio::sync::oneshot;

use self::live::{Kind, LiveProcess, Running, SpawnPlan};
use self::prepare::Program;
pub use error::{ListError, SignalError, SpawnError, SpawnInput, StdinError};

use crate::command::{Answer, Call, Command, Completion, ProtocolError};
pub use crate::output::{Chunk, Output, OutputReader};
use crate::sync::lock;
use crate::vm::{GoneReason, Vm};

/// The kernel's highest signal number.
const MAX_SIGNAL: i32 = 64;

#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Not empty. `argv[0]` without a slash is searched for in PATH.
    pub argv: Vec<Vec<u8>>,
    /// Merged over the VM's.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// None is the user's home.
    pub cwd: Option<Vec<u8>>,
    pub stdin: Stdin,
    /// The process group is killed after it.
    pub timeout: Option<Duration>,
    /// How long spawn waits for the program to run; None is for as long as it takes. After that the process is given out,
    /// and should its program not run, it exits with 127 and the reason on stderr.
    pub patience: Option<Duration>,
    /// What it starts ends with it at the latest, daemons too; see [`Process::kill_supervised`].
    pub supervised: bool,
}

#[derive(Debug, Clone, Default)]
pub enum Stdin {
    /// /dev/null.
    #[default]
    Null,
    /// Written, then closed.
    Bytes(Bytes),
    Piped,
}

/// How a process ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Exit {
    Exited(i32),
    Signaled(i32),
    /// Its timeout passed, and its group was killed.
    TimedOut,
    /// Killed because the VM's memory was used up.
    OutOfMemory,
    VmGone(GoneReason),
}

impl Exit {
    /// As a shell would show it: 128+n for signals, 124 after a timeout, 137 for all else that was killed.
    pub fn code(&self) -> i32 {
        match self {
            Self::Exited(code) => *code,
            Self::Signaled(signal) => 128 + signal,
            Self::TimedOut => 124,
            Self::OutOfMemory | Self::VmGone(_) => 137,
        }
    }
}

/// A spawned process; clones share it.
#[derive(Debug, Clone)]
pub struct Process {
    pub(crate) vm: Vm,
    pub(crate) live: Arc<LiveProcess>,
}

/// A process that spawn started.
#[derive(Debug, Clone)]
pub struct SpawnedProcess {
    pub pid: i32,
    pub argv: Vec<Vec<u8>>,
    /// None while it runs.
    pub exit: Option<Exit>,
}

#[derive(Debug, Clone)]
pub struct ProcessInfo {
    pub pid: i32,
    /// 0 for processes that have no parent in the VM they could know of.
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub driver: ProcessDriver,
    pub argv: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    /// None while it runs.
    pub exit: Option<Exit>,
    /// Milliseconds since the epoch.
    pub start_time_ms: u64,
    pub exit_time_ms: Option<u64>,
}

/// What runs a process, judged by its executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessDriver {
    Native,
    Node,
    Python,
    Shell,
}

impl ProcessDriver {
    pub(crate) fn of_executable(path: &[u8]) -> Self {
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let version = |rest: &[u8]| rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
        match name {
            b"node" | b"nodejs" => Self::Node,
            b"sh" | b"bash" | b"dash" | b"zsh" | b"ash" | b"ksh" | b"fish" | b"busybox" => Self::Shell,
            name if name.strip_prefix(b"python").is_some_and(version) => Self::Python,
            name if name.strip_prefix(b"pypy").is_some_and(version) => Self::Python,
            _ => Self::Native,
        }
    }
}

impl ProcessInfo {
    /// What it will be, where /proc shows only where it comes from.
    fn show_as_wished(&mut self, process: &LiveProcess) {
        self.argv.clone_from(&process.argv);
        self.cwd.clone_from(&process.cwd);
        self.driver = ProcessDriver::of_executable(self.argv.first().map_or(&[], Vec::as_slice));
    }
}

impl Vm {
    /// Starts a program and returns once it runs, or with the end of the patience. A dropped future kills what it began. A supervised one is in no list
    /// of spawned processes.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<Process, SpawnError> {
        let (piped, input) = match spec.stdin {
            Stdin::Null => (false, None),
            Stdin::Bytes(bytes) => (true, Some(bytes)),
            Stdin::Piped => (true, None),
        };
        let program = Program { argv: spec.argv, env: spec.env, cwd: spec.cwd };
        let stdio = Stdio::Pipes { stdin: piped };
        let request = prepare::spawn_request(self.spec(), program, stdio, spec.supervised)?;
        let kind = if spec.supervised { Kind::Supervised } else { Kind::Spawn };
        let plan = SpawnPlan { request, kind, input, timeout: spec.timeout, patience: spec.patience };
        let mut running = self.start(plan).await?;
        running.guard.disarm();
        Ok(Process { vm: self.clone(), live: running.process })
    }

    /// A process of spawn, exited ones too: the last 1,024.
    pub fn process(&self, pid: i32) -> Option<Process> {
        let live = lock(&self.shared().records).find(pid)?;
        Some(Process { vm: self.clone(), live })
    }

    /// Those of spawn, in the order they were started, exited ones too: the last 1,024.
    pub fn list_processes(&self) -> Vec<SpawnedProcess> {
        lock(&self.shared().records).spawned()
    }

    /// Every process in the VM now, and the exited ones of spawn and exec for 60 s.
    pub async fn all_processes(&self) -> Result<Vec<ProcessInfo>, ListError> {
        let entries = self.call(Request::ListProcesses, Vec::new(), parse_processes).await?;
        let alive: HashSet<i32> = entries.iter().map(|entry| entry.pid).collect();
        let mut processes: Vec<_> = entries.into_iter().map(alive_info).collect();
        let mut records = lock(&self.shared().records);
        for info in &mut processes {
            if let Some(process) = records.find(info.pid).filter(|process| process.is_early()) {
                info.show_as_wished(&process);
            }
        }
        let exited = records.recently_exited(std::time::Instant::now());
        processes.extend(exited.filter(|info| !alive.contains(&info.pid)).cloned());
        Ok(processes)
    }

    pub(crate) async fn start(&self, plan: SpawnPlan) -> Result<Running, SpawnError> {
        let (started, outcome) = oneshot::channel();
        let command = Command::Spawn { plan: Box::new(plan), started };
        if self.commands().send(command).await.is_err() {
            return Err(self.unavailable().into());
        }
        outcome.await.unwrap_or_else(|_| Err(self.unavailable().into()))
    }

    pub(crate) async fn signal_live(
        &self,
        live: &Arc<LiveProcess>,
        signal: i32,
        scope: SignalScope,
    ) -> Result<(), SignalError> {
        if !(0..=MAX_SIGNAL).contains(&signal) {
            return Err(SignalError::Unknown(signal));
        }
        self.ask_about(live, Request::Signal { pid: live.pid, signal, scope }).await
    }

    /// A request about a process, a no-op once it has exited.
    async fn ask_about(&self, live: &Arc<LiveProcess>, request: Request) -> Result<(), SignalError> {
        if live.exit().is_some() {
            return Ok(());
        }
        let (completion, outcome) = Completion::new(Answer::done);
        let call = Call { request, descriptors: Vec::new(), completion };
        let command = Command::ToProcess { process: Arc::clone(live), call };
        if self.commands().send(command).await.is_err() {
            return Err(self.unavailable().into());
        }
        match outcome.await {
            Ok(outcome) => outcome.map_err(|failure| SignalError::of(live.pid, failure)),
            Err(_) => Err(self.unavailable().into()),
        }
    }
}

impl Process {
    /// The VM's own number for it.
    pub fn pid(&self) -> i32 {
        self.live.pid
    }

    pub fn argv(&self) -> &[Vec<u8>] {
        &self.live.argv
    }

    pub fn stdout(&self) -> &Output {
        &self.live.streams.stdout
    }

    pub fn stderr(&self) -> &Output {
        &self.live.streams.stderr
    }

    /// Returns when all of `data` is queued for the process; 1 MiB is queued at most. A dropped future may have queued
    /// a part.
    pub async fn write_stdin(&self, data: Bytes) -> Result<(), StdinError> {
        match &self.live.streams.stdin {
            Some(stdin) => stdin.write(data).await,
            None => Err(StdinError::NotPiped),
        }
    }

    /// The process sees the end of its input once what is queued is written. Closing twice is fine.
    pub fn close_stdin(&self) -> Result<(), StdinError> {
        match &self.live.streams.stdin {
            Some(stdin) => {
                stdin.close();
                Ok(())
            }
            None => Err(StdinError::NotPiped),
        }
    }

    pub async fn wait(&self) -> Exit {
        self.live.wait().await
    }

    /// None while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.live.exit()
    }

    /// To this process alone; a no-op once it has exited.
    pub async fn signal(&self, signal: i32) -> Result<(), SignalError> {
        self.vm.signal_live(&self.live, signal, SignalScope::Process).await
    }

    /// To the process group it leads; a no-op once it has exited.
    pub async fn kill_group(&self, signal: i32) -> Result<(), SignalError> {
        self.vm.signal_live(&self.live, signal, SignalScope::Group).await
    }

    /// Kills a supervised process with every descendant, daemons included, and returns when none is left.
    pub async fn kill_supervised(&self) -> Result<(), SignalError> {
        self.vm.ask_about(&self.live, Request::KillSupervised { pid: self.live.pid }).await
    }
}

fn parse_processes(answer: Answer) -> Result<Vec<ProcessEntry>, ProtocolError> {
    answer.without_descriptors()?;
    match answer.response {
        Response::Processes(processes) => Ok(processes),
        _ => Err(ProtocolError::WrongAnswer("a list of processes")),
    }
}

fn alive_info(entry: ProcessEntry) -> ProcessInfo {
    ProcessInfo {
        pid: entry.pid,
        ppid: entry.ppid,
        pgid: entry.pgid,
        sid: entry.sid,
        driver: ProcessDriver::of_executable(&entry.exe),
        argv: entry.argv.into_iter().map(|argument| argument.into_vec()).collect(),
        cwd: entry.cwd.into_vec(),
        exit: None,
        start_time_ms: entry.start_time_ms,
        exit_time_ms: None,
    }
}
