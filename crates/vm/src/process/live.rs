//! A process of this VM that we started: what its handles, the records and the owner task share.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos_guest_protocol::process::SpawnRequest;
use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::Exit;
use crate::pump::{Pipes, Streams};
use crate::sync::lock;
use crate::vm::Shared;

#[derive(Debug)]
pub(crate) struct LiveProcess {
    pub(crate) pid: i32,
    pub(crate) kind: Kind,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) cwd: Vec<u8>,
    /// Milliseconds since the epoch.
    pub(crate) started_at_ms: u64,
    pub(crate) streams: Streams,
    /// A shell's terminal, while the shell lives. Held for taking a clone.
    pub(crate) terminal: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    /// Until then /proc shows PID 1's command line for it.
    executed: AtomicBool,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Exec,
    Spawn,
    /// An agent: its streams are a protocol of ours, so that nobody finds it by its pid.
    Supervised,
    Shell,
}

/// A validated process, ready to be asked for.
#[derive(Debug)]
pub(crate) struct SpawnPlan {
    pub(crate) request: SpawnRequest,
    pub(crate) kind: Kind,
    /// What a process of [`Kind::Spawn`] is given at once. None leaves a piped stdin open.
    pub(crate) input: Option<Bytes>,
    pub(crate) timeout: Option<Duration>,
    /// After which a process that is no [`Kind::Exec`] is given out before its program runs.
    pub(crate) patience: Option<Duration>,
}

/// A process on its way to its handle; dropped before it gets there, its group is killed.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Arc<LiveProcess>,
    /// Those of an exec: its future reads them itself.
    pub(crate) pipes: Option<Pipes>,
    pub(crate) guard: KillGuard,
}

/// Kills a process group unless it is disarmed.
#[derive(Debug)]
pub(crate) struct KillGuard {
    target: Option<(Arc<Shared>, Arc<LiveProcess>)>,
}

impl KillGuard {
    pub(crate) fn new(shared: &Arc<Shared>, process: &Arc<LiveProcess>) -> Self {
        Self { target: Some((Arc::clone(shared), Arc::clone(process))) }
    }

    pub(crate) fn disarm(&mut self) {
        self.target = None;
    }
}

impl Drop for KillGuard {
    fn drop(&mut self) {
        if let Some((shared, process)) = self.target.take()
            && process.exit().is_none()
        {
            shared.asks.kill(process);
        }
    }
}

impl LiveProcess {
    pub(crate) fn new(pid: i32, plan: &SpawnPlan, streams: Streams, started_at_ms: u64) -> Self {
        let request = &plan.request;
        Self {
            pid,
            kind: plan.kind,
            argv: request.argv.iter().map(|argument| argument.to_vec()).collect(),
            cwd: request.cwd.to_vec(),
            started_at_ms,
            streams,
            terminal: Mutex::default(),
            executed: AtomicBool::new(false),
            exit: watch::Sender::new(None),
        }
    }

    pub(crate) fn set_executed(&self) {
        self.executed.store(true, Ordering::Relaxed);
    }

    /// It has been given out, and its program does not run yet.
    pub(crate) fn is_early(&self) -> bool {
        !self.executed.load(Ordering::Relaxed) && self.exit.borrow().is_none()
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    pub(crate) fn watch_exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = exit.borrow_and_update().clone() {
                return exit;
            }
            // The sender is in `self`, so it can't be gone; were it, waiting on would be all there is to do.
            if exit.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The first exit stays.
    pub(crate) fn set_exit(&self, exit: Exit) {
        self.exit.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(exit);
            }
            first
        });
        if let Some(stdin) = &self.streams.stdin {
            stdin.break_off();
        }
        // The task that reads the terminal has its own hold on it.
        lock(&self.terminal).take();
    }

    pub(crate) fn terminal(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        lock(&self.terminal).clone()
    }
}
