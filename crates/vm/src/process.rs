//! Processes of a VM.
use std::time::Duration;

use agentos_guest_protocol::process::SpawnStep;
use bytes::Bytes;

use crate::path::PathError;
use crate::vm::{GoneReason, Unavailable, Vm};

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
    /// Run below a supervisor, so that [`Process::kill_supervised`] ends daemons too.
    pub supervised: bool,
}

#[derive(Debug, Clone, Default)]
pub enum Stdin {
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
    TimedOut,
    OutOfMemory,
    VmGone(GoneReason),
}

impl Exit {
    /// As a shell would show it: 128+n for signals, 124 after a timeout, 137 for all that SIGKILL ended.
    pub fn code(&self) -> i32 {
        match self {
            Self::Exited(code) => *code,
            Self::Signaled(signal) => 128 + signal,
            Self::TimedOut => 124,
            Self::OutOfMemory | Self::VmGone(_) => 137,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    #[error("argv must not be empty")]
    EmptyArgv,
    #[error("{0} must not contain NUL")]
    Nul(SpawnInput),
    #[error("environment name is empty or contains '=': {0:?}")]
    EnvironmentName(String),
    #[error("working directory: {0}")]
    Cwd(#[source] PathError),
    /// Longer than the kernel takes; refused before anything is sent.
    #[error("E2BIG: argument list too long, spawn")]
    TooBig,
    #[error("{}, {} '{}'", crate::errno::text(*errno), crate::process::step_call(*step), object)]
    Failed { step: SpawnStep, errno: i32, object: String },
    #[error("VM does not answer")]
    NoAnswer,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnInput {
    Argument,
    Environment,
}

impl std::fmt::Display for SpawnInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Argument => "argument",
            Self::Environment => "environment",
        })
    }
}

impl SpawnError {
    pub fn errno(&self) -> Option<i32> {
        todo!()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StdinError {
    #[error("stdin of the process is not piped")]
    NotPiped,
    #[error("stdin of the process is closed")]
    Closed,
    /// The reader is gone.
    #[error("EPIPE: broken pipe, write")]
    BrokenPipe,
}

#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    #[error("unknown signal: {0}")]
    Unknown(i32),
    #[error("{}, kill {pid}", crate::errno::text(*errno))]
    Failed { pid: i32, errno: i32 },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("{}, list processes", crate::errno::text(*errno))]
    Failed { errno: i32 },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

pub(crate) fn step_call(step: SpawnStep) -> &'static str {
    match step {
        SpawnStep::Stdio => "pipe",
        SpawnStep::Fork => "fork",
        SpawnStep::Setup => "setup",
        SpawnStep::Cwd => "chdir",
        SpawnStep::Exec => "spawn",
    }
}

/// A spawned process.
#[derive(Debug, Clone)]
pub struct Process;

/// One output stream, for any number of readers.
#[derive(Debug, Clone)]
pub struct Output;

/// A reader with a position of its own. While it is attached nothing it has not read is discarded.
#[derive(Debug)]
pub struct OutputReader;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Of the first byte in the whole stream; beyond the expected one where bytes were discarded unread.
    pub offset: u64,
    pub data: Bytes,
}

impl Output {
    pub fn from_offset(&self, _offset: u64) -> OutputReader {
        todo!()
    }
}

impl OutputReader {
    /// None when the stream's last writer is gone and all is read.
    pub async fn next(&mut self) -> Option<Chunk> {
        todo!()
    }
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
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub driver: ProcessDriver,
    pub argv: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    /// None while it runs.
    pub exit: Option<Exit>,
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

impl Vm {
    pub async fn spawn(&self, _spec: ProcessSpec) -> Result<Process, SpawnError> {
        todo!()
    }
    /// Of spawn, exited ones too.
    pub fn process(&self, _pid: i32) -> Option<Process> {
        todo!()
    }
    pub fn list_processes(&self) -> Vec<SpawnedProcess> {
        todo!()
    }
    pub async fn all_processes(&self) -> Result<Vec<ProcessInfo>, ListError> {
        todo!()
    }
}

impl Process {
    pub fn pid(&self) -> i32 {
        todo!()
    }
    pub fn argv(&self) -> &[Vec<u8>] {
        todo!()
    }
    pub fn stdout(&self) -> &Output {
        todo!()
    }
    pub fn stderr(&self) -> &Output {
        todo!()
    }
    pub async fn write_stdin(&self, _data: Bytes) -> Result<(), StdinError> {
        todo!()
    }
    pub fn close_stdin(&self) -> Result<(), StdinError> {
        todo!()
    }
    pub async fn wait(&self) -> Exit {
        todo!()
    }
    pub fn exit(&self) -> Option<Exit> {
        todo!()
    }
    pub async fn signal(&self, _signal: i32) -> Result<(), SignalError> {
        todo!()
    }
    pub async fn kill_group(&self, _signal: i32) -> Result<(), SignalError> {
        todo!()
    }
    pub async fn kill_supervised(&self) -> Result<(), SignalError> {
        todo!()
    }
}
