//! Shells: programs on a PTY of their own, with job control.
//!
//! The master comes out of the VM as a descriptor. A task reads it into a window, as with any output, and writes to it
//! what is queued; resizing is a call on it. The slave's last user gone, the master says EIO, which is the end.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::process::{SignalScope, Stdio};
use bytes::Bytes;
use rustix::io::Errno;
use rustix::termios::Winsize;

use crate::process::live::{Kind, LiveProcess, SpawnPlan};
use crate::process::prepare::{self, Program};
use crate::process::{Exit, Output, SpawnError, StdinError};
use crate::sync::lock;
use crate::vm::Vm;

const SIGHUP: i32 = 1;
const SIGKILL: i32 = 9;

/// Between SIGHUP and SIGKILL at close: a shell saves its history in less.
const HANGUP_GRACE: Duration = Duration::from_millis(250);

/// Exited shells that can still be asked for.
const MAX_EXITED: usize = 64;

#[derive(Debug, Clone)]
pub struct ShellSpec {
    /// Empty is the user's shell, as SHELL names it.
    pub argv: Vec<Vec<u8>>,
    /// Merged over the VM's; TERM is xterm-256color unless it is here.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// None is the user's home.
    pub cwd: Option<Vec<u8>>,
    pub cols: u16,
    pub rows: u16,
}

impl Default for ShellSpec {
    fn default() -> Self {
        Self { argv: Vec::new(), env: Vec::new(), cwd: None, cols: 80, rows: 24 }
    }
}

/// A shell; clones share it, and dropping them ends nothing.
#[derive(Debug, Clone)]
pub struct Shell {
    vm: Vm,
    id: Arc<str>,
    live: Arc<LiveProcess>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    #[error("EINVAL: a terminal of {cols} by {rows} has no room")]
    Size { cols: u16, rows: u16 },
    #[error("terminal is closed")]
    Closed,
    #[error("{}, resize", crate::errno::text(*errno))]
    Failed { errno: i32 },
}

/// The shells of a VM by their ids.
#[derive(Debug, Default)]
pub(crate) struct Shells {
    by_id: HashMap<Arc<str>, Arc<LiveProcess>>,
    /// In the order they were opened.
    order: Vec<Arc<str>>,
    opened: u64,
}

impl Shells {
    fn add(&mut self, live: &Arc<LiveProcess>) -> Arc<str> {
        self.opened += 1;
        let id: Arc<str> = format!("shell-{}", self.opened).into();
        self.by_id.insert(Arc::clone(&id), Arc::clone(live));
        self.order.push(Arc::clone(&id));
        self.forget_old();
        id
    }

    fn forget_old(&mut self) {
        let exited = |id: &Arc<str>| self.by_id.get(id).is_none_or(|live| live.exit().is_some());
        let excess = self.order.iter().filter(|id| exited(id)).count().saturating_sub(MAX_EXITED);
        let old: Vec<_> = self.order.iter().filter(|id| exited(id)).take(excess).cloned().collect();
        self.order.retain(|id| !old.contains(id));
        old.iter().for_each(|id| drop(self.by_id.remove(id)));
    }

    fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
        self.order.retain(|other| &**other != id);
    }
}

impl Vm {
    /// Opens a shell and returns once its program runs. A dropped future kills what it began.
    pub async fn open_shell(&self, spec: ShellSpec) -> Result<Shell, SpawnError> {
        let argv = if spec.argv.is_empty() {
            vec![self.spec().environment().get(b"SHELL").unwrap_or(b"/bin/sh").to_vec()]
        } else {
            spec.argv
        };
        let program = Program { argv, env: spec.env, cwd: spec.cwd };
        // A size of 0 means "unknown" to programs, which then take 80 by 24 themselves or divide by it.
        let stdio = Stdio::Terminal { cols: spec.cols.max(1), rows: spec.rows.max(1) };
        let request = prepare::spawn_request(self.spec(), program, stdio, false)?;
        let plan = SpawnPlan { request, kind: Kind::Shell, input: None, timeout: None, patience: None };
        let mut running = self.start(plan).await?;
        running.guard.disarm();
        let id = lock(&self.shared().shells).add(&running.process);
        Ok(Shell { vm: self.clone(), id, live: running.process })
    }

    /// An open shell, or one of the last 64 that exited.
    pub fn shell(&self, id: &str) -> Option<Shell> {
        let shells = lock(&self.shared().shells);
        let (id, live) = shells.by_id.get_key_value(id)?;
        Some(Shell { vm: self.clone(), id: Arc::clone(id), live: Arc::clone(live) })
    }
}

impl Shell {
    /// `shell-1`, `shell-2`...
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The VM's own number for the shell's program.
    pub fn pid(&self) -> i32 {
        self.live.pid
    }

    /// What the terminal shows.
    pub fn output(&self) -> &Output {
        &self.live.streams.stdout
    }

    /// Types into the terminal: returns when all of `data` is queued, 1 MiB at most.
    pub async fn write(&self, data: Bytes) -> Result<(), StdinError> {
        match &self.live.streams.stdin {
            Some(stdin) => stdin.write(data).await,
            None => Err(StdinError::NotPiped),
        }
    }

    /// The foreground process group hears of it by SIGWINCH.
    pub fn resize(&self, cols: u16, rows: u16) -> Result<(), ResizeError> {
        if cols == 0 || rows == 0 {
            return Err(ResizeError::Size { cols, rows });
        }
        let master = self.live.terminal().ok_or(ResizeError::Closed)?;
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        match rustix::termios::tcsetwinsize(master.as_fd(), size) {
            Ok(()) => Ok(()),
            Err(Errno::IO) => Err(ResizeError::Closed),
            Err(errno) => Err(ResizeError::Failed { errno: errno.raw_os_error() }),
        }
    }

    pub async fn wait(&self) -> Exit {
        self.live.wait().await
    }

    /// None while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.live.exit()
    }

    /// Hangs the shell up, kills it where it stays, and forgets it. Closing twice is fine.
    pub async fn close(&self) {
        // An error says that the VM is going, and the shell with it.
        let _ = self.vm.signal_live(&self.live, SIGHUP, SignalScope::Group).await;
        if tokio::time::timeout(HANGUP_GRACE, self.live.wait()).await.is_err() {
            let _ = self.vm.signal_live(&self.live, SIGKILL, SignalScope::Group).await;
            self.live.wait().await;
        }
        lock(&self.live.terminal).take();
        lock(&self.vm.shared().shells).remove(&self.id);
    }
}
