//! Processes of a VM. Pids are the VM's own.

use serde::{Deserialize, Serialize};

use crate::Bytes;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// Not empty. `argv[0]` without a slash is searched for in the PATH of `env`.
    pub argv: Vec<Bytes>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<Bytes>,
    /// Entered with the rights of the VM's user.
    pub cwd: Bytes,
    pub stdio: Stdio,
    /// Its end is told when everything that it has started has ended too: with it, what is left is killed, daemons
    /// included.
    pub supervised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Pipes for stdout and stderr; stdin is /dev/null unless it is piped.
    Pipes { stdin: bool },
    /// A PTY as all three and as the controlling terminal.
    Terminal { cols: u16, rows: u16 },
}

/// What a new process could not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnFailure {
    pub step: SpawnStep,
    pub errno: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpawnStep {
    /// Pipes, PTY.
    Stdio,
    Fork,
    /// Session, credentials, limits, seccomp.
    Setup,
    /// Entering the working directory.
    Cwd,
    Exec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Exited(i32),
    Signaled(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalScope {
    Process,
    /// The process group the process leads.
    Group,
}

/// One process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    pub pid: i32,
    /// 0 for children of init.
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// From cmdline; a process without one (a zombie) has its comm in brackets.
    pub argv: Vec<Bytes>,
    pub cwd: Bytes,
    /// The executable's path in the VM, empty where it can't be read.
    pub exe: Bytes,
    pub zombie: bool,
    /// Milliseconds since the epoch.
    pub start_time_ms: u64,
}
