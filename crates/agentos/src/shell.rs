//! Shells: processes on a PTY of the VM.

use std::ffi::OsStr;
use std::fmt;

use bytes::Bytes;

use crate::builder::into_future;
use crate::bytes_in::{Content, GuestPath, os_bytes};
use crate::convert;
use crate::error::Error;
use crate::options::ProcessOptions;
use crate::output::{OutputSource, OutputStream};
use crate::process::{Exit, process_setters};
use crate::vm::AgentOs;

/// The size of a terminal nobody has measured.
const DEFAULT_COLS: u16 = 80;
const DEFAULT_ROWS: u16 = 24;

/// What a shell runs and how big its terminal is.
#[derive(Clone)]
pub(crate) struct ShellWish {
    pub(crate) argv: Vec<Bytes>,
    pub(crate) cols: u16,
    pub(crate) rows: u16,
}

impl Default for ShellWish {
    fn default() -> Self {
        Self { argv: Vec::new(), cols: DEFAULT_COLS, rows: DEFAULT_ROWS }
    }
}

/// The setters that `open_shell` and `connect_terminal` share.
macro_rules! shell_setters {
    ($size:literal) => {
        #[doc = $size]
        #[must_use]
        pub fn size(mut self, cols: u16, rows: u16) -> Self {
            (self.wish.cols, self.wish.rows) = (cols, rows);
            self
        }

        /// Runs this program with these arguments instead of the user's login shell.
        #[must_use]
        pub fn command<A: AsRef<OsStr>>(
            mut self,
            program: impl AsRef<OsStr>,
            args: impl IntoIterator<Item = A>,
        ) -> Self {
            self.wish.argv = vec![os_bytes(program)];
            self.wish.argv.extend(args.into_iter().map(os_bytes));
            self
        }
    };
}
pub(crate) use shell_setters;

/// A shell to open; await it for the [`Shell`].
#[derive(Clone)]
pub struct OpenShell {
    vm: AgentOs,
    wish: ShellWish,
    options: ProcessOptions,
}

impl AgentOs {
    /// Opens the user's login shell, or another command, on a real PTY.
    #[must_use = "does nothing until awaited"]
    pub fn open_shell(&self) -> OpenShell {
        OpenShell { vm: self.clone(), wish: ShellWish::default(), options: ProcessOptions::default() }
    }

    /// A handle to the shell with this id. Calls through it fail with `NotFound` if there is none.
    #[must_use]
    pub fn shell(&self, shell_id: impl Into<String>) -> Shell {
        Shell { vm: self.clone(), id: shell_id.into(), pid: None }
    }

    pub(crate) async fn start_shell(&self, wish: ShellWish, options: ProcessOptions) -> Result<Shell, Error> {
        let request = convert::shell::open_request(self.id(), wish, options)?;
        let reply = self.live()?.shell().open_shell(request).await.map_err(|status| self.failed(status))?;
        let reply = reply.into_inner();
        Ok(Shell { vm: self.clone(), id: reply.shell_id, pid: Some(reply.pid) })
    }
}

impl OpenShell {
    process_setters!();
    shell_setters!("The terminal's size; 80 columns and 24 rows by default.");

    async fn run(self) -> Result<Shell, Error> {
        self.vm.start_shell(self.wish, self.options).await
    }
}

into_future!(OpenShell => Shell);

impl fmt::Debug for OpenShell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenShell").field("options", &self.options).finish_non_exhaustive()
    }
}

/// An open shell. Dropping the handle leaves it open.
#[derive(Debug, Clone)]
pub struct Shell {
    vm: AgentOs,
    id: String,
    pid: Option<i32>,
}

impl Shell {
    /// Its id: `shell-1`, `shell-2`...
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pid of the shell's process; `None` for a handle made from an id.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Types into the terminal, waiting while 1 MiB is queued.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Shell not found: ID`; `Closed` when the shell has ended.
    pub async fn write(&self, content: impl Into<Content>) -> Result<(), Error> {
        for chunk in convert::chunks(content.into().into_bytes()) {
            let request = convert::shell::write_request(self.vm.id(), &self.id, chunk);
            let reply = self.vm.live()?.shell().write_shell(request).await;
            reply.map_err(|status| self.vm.failed(status))?;
        }
        Ok(())
    }

    /// What the terminal shows, control sequences included. Each call is a reader of its own.
    #[must_use]
    pub fn data(&self) -> OutputStream {
        OutputStream::new(self.vm.clone(), OutputSource::Shell(self.id.clone()))
    }

    /// Tells the terminal its new size; the foreground process gets SIGWINCH.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Shell not found: ID`.
    pub async fn resize(&self, cols: u16, rows: u16) -> Result<(), Error> {
        let request = convert::shell::resize_request(self.vm.id(), &self.id, cols, rows);
        self.vm.live()?.shell().resize_shell(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }

    /// Waits for the shell's end.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Shell not found: ID`.
    pub async fn wait(&self) -> Result<Exit, Error> {
        let request = convert::shell::wait_request(self.vm.id(), &self.id);
        let reply = self.vm.live()?.shell().wait_shell(request).await;
        let reply = reply.map_err(|status| self.vm.failed(status))?.into_inner();
        self.vm.exited(convert::process::exit(reply.exit, "WaitShell")?)
    }

    /// Hangs up the terminal and kills the shell.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Shell not found: ID`.
    pub async fn close(&self) -> Result<(), Error> {
        let request = convert::shell::close_request(self.vm.id(), &self.id);
        self.vm.live()?.shell().close_shell(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }
}
