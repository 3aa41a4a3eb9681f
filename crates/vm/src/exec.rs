//! One command, from its start to its exit.
//!
//! No task stands between the command's pipes and its caller: [`Exec::next`] reads them itself, so the guest is held
//! back by whoever is slow to call it. The command has ended when its process has exited and what was in its pipes at
//! that moment is read; children that still hold the pipes are not waited for, and what they write is read and
//! dropped, so that they don't die of it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::process::{SignalScope, Stdio};
use bytes::{Buf, Bytes};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::command::Command;
use crate::pipe;
use crate::process::live::{KillGuard, Kind, LiveProcess, SpawnPlan};
use crate::process::prepare::{self, Program};
use crate::process::{Exit, SignalError, SpawnError};
use crate::vm::{GoneReason, Vm};
use crate::window::MAX_CHUNK_BYTES;

/// Of each stream of a command.
pub const DEFAULT_MAX_OUTPUT_BYTES: u64 = 64 * 1024 * 1024;

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
    /// Of each stream; what comes after is discarded. None is [`DEFAULT_MAX_OUTPUT_BYTES`].
    pub max_output_bytes: Option<u64>,
    /// Give every chunk, also beyond `max_output_bytes`.
    pub stream_all: bool,
}

/// A running command; dropped before its exit, its process group is killed.
#[derive(Debug)]
pub struct Exec {
    vm: Vm,
    process: Arc<LiveProcess>,
    guard: KillGuard,
    exit_watch: watch::Receiver<Option<Exit>>,
    stdin: Option<(AsyncFd<OwnedFd>, Bytes)>,
    stdout: Capture,
    stderr: Capture,
    phase: Phase,
}

/// Running → Draining → Done: output of the living, what is left in the pipes, nothing.
#[derive(Debug)]
enum Phase {
    Running,
    Draining(Exit),
    Done,
}

#[derive(Debug, Clone)]
pub enum ExecEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last.
    Exited(ExecExit),
}

#[derive(Debug, Clone)]
pub struct ExecExit {
    pub exit: Exit,
    pub stdout_truncated: bool,
    pub stderr_truncated: bool,
}

/// One stream of the command.
#[derive(Debug)]
struct Capture {
    /// None once the last writer is gone.
    pipe: Option<AsyncFd<OwnedFd>>,
    /// Bytes that may still be given out.
    budget: u64,
    stream_all: bool,
    truncated: bool,
    /// After the exit: bytes that were in the pipe when it was seen.
    left: u64,
}

impl Vm {
    /// Starts `/bin/sh -c command` and returns once the shell runs.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec, SpawnError> {
        let argv = vec![b"/bin/sh".to_vec(), b"-c".to_vec(), spec.command];
        let program = Program { argv, env: spec.env, cwd: spec.cwd };
        let stdio = Stdio::Pipes { stdin: spec.stdin.is_some() };
        let request = prepare::spawn_request(self.spec(), program, stdio, false)?;
        let plan =
            SpawnPlan { request, kind: Kind::Exec, input: None, timeout: spec.timeout, patience: None };
        let running = self.start(plan).await?;
        let Some(pipes) = running.pipes else {
            // Every exec has pipes: the plan above says so.
            return Err(crate::vm::Unavailable::Gone(GoneReason::Fault).into());
        };
        let budget = spec.max_output_bytes.unwrap_or(DEFAULT_MAX_OUTPUT_BYTES);
        let capture = |pipe| Capture::new(pipe, budget, spec.stream_all);
        Ok(Exec {
            vm: self.clone(),
            exit_watch: running.process.watch_exit(),
            process: running.process,
            guard: running.guard,
            stdin: pipes.stdin.zip(spec.stdin),
            stdout: capture(pipes.stdout),
            stderr: capture(pipes.stderr),
            phase: Phase::Running,
        })
    }
}

enum Step {
    Exited(Exit),
    Stdout(Option<Bytes>),
    Stderr(Option<Bytes>),
    Fed(bool),
}

impl Exec {
    /// The VM's own number for the shell.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// The next chunk, at last the exit, then None. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        loop {
            match &self.phase {
                Phase::Done => return None,
                Phase::Draining(exit) => {
                    let exit = exit.clone();
                    if let Some(chunk) = self.stdout.drain() {
                        return Some(ExecEvent::Stdout(chunk));
                    }
                    if let Some(chunk) = self.stderr.drain() {
                        return Some(ExecEvent::Stderr(chunk));
                    }
                    self.leave_pipes().await;
                    self.phase = Phase::Done;
                    let (stdout_truncated, stderr_truncated) = (self.stdout.truncated, self.stderr.truncated);
                    return Some(ExecEvent::Exited(ExecExit { exit, stdout_truncated, stderr_truncated }));
                }
                Phase::Running => {}
            }
            let step = tokio::select! {
                chunk = self.stdout.read(), if self.stdout.pipe.is_some() => Step::Stdout(chunk),
                chunk = self.stderr.read(), if self.stderr.pipe.is_some() => Step::Stderr(chunk),
                exit = exited(&mut self.exit_watch) => Step::Exited(exit),
                more = feed(&mut self.stdin), if self.stdin.is_some() => Step::Fed(more),
            };
            match step {
                Step::Exited(exit) => {
                    self.guard.disarm();
                    self.stdin = None;
                    self.stdout.measure();
                    self.stderr.measure();
                    self.phase = Phase::Draining(exit);
                }
                Step::Stdout(Some(chunk)) => return Some(ExecEvent::Stdout(chunk)),
                Step::Stderr(Some(chunk)) => return Some(ExecEvent::Stderr(chunk)),
                Step::Stdout(None) | Step::Stderr(None) | Step::Fed(true) => {}
                Step::Fed(false) => self.stdin = None,
            }
        }
    }

    /// To the command's process group; a no-op once the shell has exited.
    pub async fn kill_group(&self, signal: i32) -> Result<(), SignalError> {
        self.vm.signal_live(&self.process, signal, SignalScope::Group).await
    }

    /// Gives pipes that somebody still writes to into the VM's care.
    async fn leave_pipes(&mut self) {
        if self.stdout.pipe.is_none() && self.stderr.pipe.is_none() {
            return;
        }
        // Room first, so that a dropped future leaves the pipes where they are.
        if let Ok(room) = self.vm.commands().reserve().await {
            let pipes = [self.stdout.pipe.take(), self.stderr.pipe.take()];
            room.send(Command::Discard(pipes.into_iter().flatten().collect()));
        }
    }
}

async fn exited(watch: &mut watch::Receiver<Option<Exit>>) -> Exit {
    let exit = watch.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
    // The sender lives in the process this exec holds.
    exit.unwrap_or(Exit::VmGone(GoneReason::Fault))
}

/// Writes once. False when everything is written or the command reads no more.
async fn feed(stdin: &mut Option<(AsyncFd<OwnedFd>, Bytes)>) -> bool {
    let Some((pipe, rest)) = stdin.as_mut().filter(|(_, rest)| !rest.is_empty()) else { return false };
    let Ok(mut ready) = pipe.writable().await else { return false };
    match ready.try_io(|pipe| pipe::write_now(pipe.as_fd(), rest)) {
        Ok(Ok(written)) => {
            rest.advance(written.min(rest.len()));
            !rest.is_empty()
        }
        Ok(Err(_)) => false,
        Err(_would_block) => true,
    }
}

impl Capture {
    fn new(pipe: AsyncFd<OwnedFd>, budget: u64, stream_all: bool) -> Self {
        Self { pipe: Some(pipe), budget, stream_all, truncated: false, left: 0 }
    }

    /// Waits for bytes and reads once. None where there is nothing to give out.
    async fn read(&mut self) -> Option<Bytes> {
        let Some(pipe) = &self.pipe else { return std::future::pending().await };
        let mut chunk = Bytes::new();
        let read = match pipe.readable().await {
            Ok(mut ready) => ready.try_io(|pipe| read_chunk(pipe, MAX_CHUNK_BYTES, &mut chunk)),
            Err(error) => Ok(Err(error)),
        };
        match read {
            Err(_would_block) => None,
            Ok(Ok(len)) if len > 0 => self.admit(chunk),
            Ok(Ok(_) | Err(_)) => {
                self.pipe = None;
                None
            }
        }
    }

    /// The process has exited: all it wrote is in the pipe now.
    fn measure(&mut self) {
        self.left = self.pipe.as_ref().map_or(0, |pipe| pipe::available(pipe.as_fd()));
    }

    /// Reads what [`Self::measure`] saw, without waiting. None when that is all given out.
    fn drain(&mut self) -> Option<Bytes> {
        while let Some(pipe) = &self.pipe {
            let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(MAX_CHUNK_BYTES);
            let mut chunk = Bytes::new();
            // One more read where nothing is left, to learn whether anybody still writes.
            match read_chunk(pipe, limit.max(1), &mut chunk) {
                Ok(len) if len > 0 => {
                    self.left = self.left.saturating_sub(len as u64);
                    if limit == 0 {
                        return None;
                    }
                    if let Some(chunk) = self.admit(chunk) {
                        return Some(chunk);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
        None
    }

    /// Counts bytes against the budget and cuts what is beyond.
    fn admit(&mut self, mut chunk: Bytes) -> Option<Bytes> {
        let len = chunk.len() as u64;
        if len > self.budget {
            self.truncated = true;
            if !self.stream_all {
                chunk.truncate(usize::try_from(self.budget).unwrap_or(usize::MAX));
            }
        }
        self.budget = self.budget.saturating_sub(len);
        (!chunk.is_empty()).then_some(chunk)
    }
}

fn read_chunk(pipe: &AsyncFd<OwnedFd>, limit: usize, chunk: &mut Bytes) -> std::io::Result<usize> {
    pipe::read_with(pipe.as_fd(), limit, |data| *chunk = Bytes::copy_from_slice(data))
}
