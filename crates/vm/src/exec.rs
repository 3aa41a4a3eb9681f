//! One command, from start to exit.
use std::time::Duration;

use bytes::Bytes;

use crate::process::{Exit, SignalError, SpawnError};
use crate::vm::Vm;

/// A command for `/bin/sh -c`.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    pub command: Vec<u8>,
    /// Merged over the VM's.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// None is the user's home.
    pub cwd: Option<Vec<u8>>,
    /// Given to the command, then closed; None is /dev/null.
    pub stdin: Option<Bytes>,
    pub timeout: Option<Duration>,
    /// Of each stream; what comes after is discarded. None is 64 MiB.
    pub max_output_bytes: Option<u64>,
    /// Give every chunk, also beyond `max_output_bytes`.
    pub stream_all: bool,
}

/// A running command; dropped before its exit, its process group is killed.
#[derive(Debug)]
pub struct Exec;

#[derive(Debug, Clone)]
pub enum ExecEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    Exited(ExecExit),
}

#[derive(Debug, Clone)]
pub struct ExecExit {
    pub exit: Exit,
    pub stdout_truncated: bool,
    pub stderr_truncated: bool,
}

impl Vm {
    pub async fn exec(&self, _spec: ExecSpec) -> Result<Exec, SpawnError> {
        todo!()
    }
}

impl Exec {
    pub fn pid(&self) -> i32 {
        todo!()
    }
    pub async fn next(&mut self) -> Option<ExecEvent> {
        todo!()
    }
    pub async fn kill_group(&self, _signal: i32) -> Result<(), SignalError> {
        todo!()
    }
}
