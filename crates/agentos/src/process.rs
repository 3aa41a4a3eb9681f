//! Processes: `exec` runs a shell command to its end, `spawn` starts a program and leaves it running.

use std::ffi::OsStr;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::builder::into_future;
use crate::bytes_in::{Content, GuestPath, os_bytes};
use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::options::ProcessOptions;
use crate::output::{OutputSource, OutputStream};
use crate::vm::AgentOs;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It exited by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal killed it.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// Its timeout passed and it was killed.
    TimedOut,
    /// It was killed because the VM's memory was used up.
    OutOfMemory,
    /// Its VM ended.
    VmGone {
        /// Why.
        reason: String,
    },
}

impl Exit {
    /// The code a shell would show: the process's own, 128 + the signal's number, 124 for a timeout (as `timeout` does)
    /// and 137, SIGKILL's, for what was killed with its VM or for want of memory.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Self::Exited { code } => *code,
            Self::Signaled { signal } => 128 + signal,
            Self::TimedOut => 124,
            Self::OutOfMemory | Self::VmGone { .. } => 128 + SIGKILL,
        }
    }

    /// Whether it exited by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signaled { signal } => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("timed out and was killed"),
            Self::OutOfMemory => f.write_str("killed: the memory of its VM was used up"),
            Self::VmGone { reason } => write!(f, "ended with its VM: {reason}"),
        }
    }
}

/// What a process reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdin {
    /// /dev/null.
    #[default]
    Null,
    /// These bytes, then the end.
    Bytes(Bytes),
    /// What [`Process::write_stdin`] sends, until [`Process::close_stdin`].
    Piped,
}

impl<T: Into<Content>> From<T> for Stdin {
    fn from(content: T) -> Self {
        Self::Bytes(content.into().into_bytes())
    }
}

/// What a shell command did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecResult {
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
    /// Whether output beyond the capture limit was dropped.
    pub truncated: bool,
    /// The pid it had.
    pub pid: i32,
}

impl ExecResult {
    /// The code a shell would show; see [`Exit::code`].
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.exit.code()
    }

    /// Whether the timeout ended it.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.exit == Exit::TimedOut
    }

    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit.success()
    }

    /// `stdout` as text; what is not UTF-8 shows as U+FFFD.
    #[must_use]
    pub fn stdout_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// `stderr` as text; what is not UTF-8 shows as U+FFFD.
    #[must_use]
    pub fn stderr_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}

pub(crate) type OnChunk = Box<dyn FnMut(Bytes) + Send>;

/// A shell command to run; await it for its output. Dropping the future kills its process group.
///
/// A non-zero exit is a result, not an error; so is one by the timeout, with what was printed. Output is captured also
/// where a handler watches it.
pub struct Exec {
    vm: AgentOs,
    command: Bytes,
    options: ProcessOptions,
    stdin: Stdin,
    max_output_bytes: Option<u64>,
    on_stdout: Option<OnChunk>,
    on_stderr: Option<OnChunk>,
}

impl AgentOs {
    /// Runs a command with `/bin/sh -c` in /home/user and waits for its end.
    #[must_use = "does nothing until awaited"]
    pub fn exec(&self, command: impl AsRef<OsStr>) -> Exec {
        Exec {
            vm: self.clone(),
            command: os_bytes(command),
            options: ProcessOptions::default(),
            stdin: Stdin::Null,
            max_output_bytes: None,
            on_stdout: None,
            on_stderr: None,
        }
    }

    /// Starts a program, found on the VM's `PATH`, without a shell.
    #[must_use = "does nothing until awaited"]
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Spawn {
        let mut argv = vec![os_bytes(program)];
        argv.extend(args.into_iter().map(os_bytes));
        Spawn {
            vm: self.clone(),
            argv,
            options: ProcessOptions::default(),
            stdin: Stdin::Null,
            patience: None,
            on_stdout: None,
            on_stderr: None,
        }
    }

    /// A handle to the process with this pid. Calls through it fail with `NotFound` if `spawn` did not start one.
    #[must_use]
    pub fn process(&self, pid: i32) -> Process {
        Process { vm: self.clone(), pid }
    }

    /// Sends SIGTERM to a process; does nothing once it has exited.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Process not found: PID`.
    pub async fn stop_process(&self, pid: i32) -> Result<(), Error> {
        self.process(pid).stop().await
    }

    /// Sends SIGKILL to a process; does nothing once it has exited.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Process not found: PID`.
    pub async fn kill_process(&self, pid: i32) -> Result<(), Error> {
        self.process(pid).kill().await
    }
}

/// The setters that `exec`, `spawn` and `open_shell` share.
macro_rules! process_setters {
    () => {
        /// Sets a variable of the process, over the VM's.
        #[must_use]
        pub fn env(mut self, name: impl Into<String>, value: impl AsRef<OsStr>) -> Self {
            self.options.set_env(name, value);
            self
        }

        /// Sets several variables of the process.
        #[must_use]
        pub fn envs<K: Into<String>, V: AsRef<OsStr>>(
            mut self,
            vars: impl IntoIterator<Item = (K, V)>,
        ) -> Self {
            for (name, value) in vars {
                self.options.set_env(name, value);
            }
            self
        }

        /// The working directory; the user's home by default.
        #[must_use]
        pub fn cwd(mut self, path: impl Into<GuestPath>) -> Self {
            self.options.cwd = Some(path.into());
            self
        }
    };
}
pub(crate) use process_setters;

/// The setters that `exec` and `spawn` share.
macro_rules! program_setters {
    () => {
        /// What it reads: /dev/null by default, given bytes and then the end of file, or, of `spawn` alone,
        /// [`Stdin::Piped`].
        #[must_use]
        pub fn stdin(mut self, stdin: impl Into<Stdin>) -> Self {
            self.stdin = stdin.into();
            self
        }

        /// Kills the process group after this time; the exit is then [`Exit::TimedOut`].
        #[must_use]
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.options.timeout = Some(timeout);
            self
        }

        /// Called with each piece of `stdout` as it comes, from the first byte.
        #[must_use]
        pub fn on_stdout(mut self, handler: impl FnMut(Bytes) + Send + 'static) -> Self {
            self.on_stdout = Some(Box::new(handler));
            self
        }

        /// Called with each piece of `stderr` as it comes, from the first byte.
        #[must_use]
        pub fn on_stderr(mut self, handler: impl FnMut(Bytes) + Send + 'static) -> Self {
            self.on_stderr = Some(Box::new(handler));
            self
        }
    };
}

impl Exec {
    process_setters!();
    program_setters!();

    /// The capture limit of each stream, 64 MiB unless set; what is beyond is dropped and the result `truncated`.
    #[must_use]
    pub fn max_output_bytes(mut self, bytes: u64) -> Self {
        self.max_output_bytes = Some(bytes);
        self
    }

    async fn run(self) -> Result<ExecResult, Error> {
        let Self { vm, command, options, stdin, max_output_bytes, on_stdout, on_stderr } = self;
        let stdin = match stdin {
            Stdin::Null => None,
            Stdin::Bytes(bytes) => Some(bytes),
            Stdin::Piped => return Err(CallError::PipedExec.into()),
        };
        let limit = max_output_bytes.unwrap_or(DEFAULT_CAPTURE_BYTES);
        let request = convert::process::ExecWish {
            command,
            options,
            stdin,
            max_output_bytes,
            stream_all: on_stdout.is_some() || on_stderr.is_some(),
        };
        let request = convert::process::exec_request(vm.id(), request)?;
        let reply = vm.live()?.process().exec(request).await.map_err(|status| vm.failed(status))?;
        let mut events = reply.into_inner();
        let mut stdout = Capture::new(limit, on_stdout);
        let mut stderr = Capture::new(limit, on_stderr);
        while let Some(event) = events.message().await.map_err(|status| vm.failed(status))? {
            match convert::process::exec_event(event)? {
                convert::process::ExecProgress::Stdout(chunk) => stdout.push(chunk),
                convert::process::ExecProgress::Stderr(chunk) => stderr.push(chunk),
                convert::process::ExecProgress::Exited { exit, truncated, pid } => {
                    let exit = vm.exited(exit)?;
                    let truncated = truncated || stdout.truncated || stderr.truncated;
                    let (stdout, stderr) = (stdout.finish(), stderr.finish());
                    return Ok(ExecResult { stdout, stderr, exit, truncated, pid });
                }
            }
        }
        Err(CallError::Incomplete { call: "Exec" }.into())
    }
}

/// What the sidecar captures too, so that neither side holds more than was asked for.
const DEFAULT_CAPTURE_BYTES: u64 = 64 << 20;

/// One stream of a command: shown to a watcher whole, kept up to a limit.
struct Capture {
    first: Option<Bytes>,
    rest: Vec<u8>,
    kept: u64,
    limit: u64,
    truncated: bool,
    watcher: Option<OnChunk>,
}

impl Capture {
    fn new(limit: u64, watcher: Option<OnChunk>) -> Self {
        Self { first: None, rest: Vec::new(), kept: 0, limit, truncated: false, watcher }
    }

    fn push(&mut self, chunk: Bytes) {
        let room = usize::try_from(self.limit - self.kept).unwrap_or(usize::MAX);
        self.truncated |= chunk.len() > room;
        let kept = chunk.slice(..chunk.len().min(room));
        self.kept += kept.len() as u64;
        if let Some(watcher) = &mut self.watcher {
            watcher(chunk);
        }
        // Most commands print one chunk, which is then handed on without a copy.
        match self.first.take() {
            None if self.rest.is_empty() => self.first = Some(kept),
            first => {
                self.rest.extend_from_slice(&first.unwrap_or_default());
                self.rest.extend_from_slice(&kept);
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        self.first.map_or(self.rest, Vec::from)
    }
}

into_future!(Exec => ExecResult);

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec")
            .field("command", &String::from_utf8_lossy(&self.command))
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A program to start; await it for the [`Process`]. A handler of its output is a reader like [`Process::stdout`].
///
/// Fails with `NotFound` (ENOENT) or `Permission` (EACCES) where the program cannot be run.
pub struct Spawn {
    vm: AgentOs,
    argv: Vec<Bytes>,
    options: ProcessOptions,
    stdin: Stdin,
    patience: Option<Duration>,
    on_stdout: Option<OnChunk>,
    on_stderr: Option<OnChunk>,
}

impl Spawn {
    process_setters!();
    program_setters!();

    /// Waits no longer than this for the program to run; without it, as long as the file system takes that holds the
    /// program. When the time is over the process is there all the same. Should its program not run after all, it exits
    /// with 127, and the reason is on its stderr.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    async fn run(self) -> Result<Process, Error> {
        let Self { vm, argv, options, stdin, patience, on_stdout, on_stderr } = self;
        let request = convert::process::spawn_request(vm.id(), argv, options, stdin, patience)?;
        let reply = vm.live()?.process().spawn(request).await.map_err(|status| vm.failed(status))?;
        let process = Process { vm, pid: reply.into_inner().pid };
        for (handler, stream) in [(on_stdout, process.stdout()), (on_stderr, process.stderr())] {
            if let Some(handler) = handler {
                tokio::spawn(feed(handler, stream));
            }
        }
        Ok(process)
    }
}

/// Ends with the stream, which ends with the process's output or with the VM.
async fn feed(mut handler: OnChunk, mut stream: OutputStream) {
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => handler(chunk),
            Err(error) => {
                tracing::debug!(%error, "output of a process ended");
                return;
            }
        }
    }
}

into_future!(Spawn => Process);

impl fmt::Debug for Spawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let argv: Vec<_> = self.argv.iter().map(|argument| String::from_utf8_lossy(argument)).collect();
        f.debug_struct("Spawn").field("argv", &argv).field("options", &self.options).finish_non_exhaustive()
    }
}

/// A process started by [`AgentOs::spawn`]. Dropping the handle leaves it running.
#[derive(Debug, Clone)]
pub struct Process {
    vm: AgentOs,
    pid: i32,
}

impl Process {
    /// Its pid inside the VM.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What it prints, from the first byte that is still kept. Each call is a reader of its own. While a reader is
    /// attached the process waits for it and nothing is lost; with none the last 1 MiB is kept.
    #[must_use]
    pub fn stdout(&self) -> OutputStream {
        OutputStream::new(self.vm.clone(), OutputSource::Stdout(self.pid))
    }

    /// What it complains; as [`stdout`](Self::stdout).
    #[must_use]
    pub fn stderr(&self) -> OutputStream {
        OutputStream::new(self.vm.clone(), OutputSource::Stderr(self.pid))
    }

    /// Writes to its standard input, waiting while 1 MiB is queued.
    ///
    /// # Errors
    ///
    /// `Closed` (EPIPE) when it no longer reads; `InvalidInput` when it was not started with [`Stdin::Piped`].
    pub async fn write_stdin(&self, content: impl Into<Content>) -> Result<(), Error> {
        for chunk in convert::chunks(content.into().into_bytes()) {
            let request = convert::process::write_stdin_request(self.vm.id(), self.pid, chunk);
            let reply = self.vm.live()?.process().write_stdin(request).await;
            reply.map_err(|status| self.vm.failed(status))?;
        }
        Ok(())
    }

    /// Ends its standard input.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when it was not started with [`Stdin::Piped`].
    pub async fn close_stdin(&self) -> Result<(), Error> {
        let request = convert::process::close_stdin_request(self.vm.id(), self.pid);
        self.vm.live()?.process().close_stdin(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }

    /// Waits for its end, which may be long ago.
    ///
    /// # Errors
    ///
    /// `NotFound` when the pid is not one of a spawned process.
    pub async fn wait(&self) -> Result<Exit, Error> {
        let request = convert::process::wait_request(self.vm.id(), self.pid);
        let reply = self.vm.live()?.process().wait_process(request).await;
        let reply = reply.map_err(|status| self.vm.failed(status))?.into_inner();
        self.vm.exited(convert::process::exit(reply.exit, "WaitProcess")?)
    }

    /// Sends SIGTERM to it alone; does nothing once it has exited.
    ///
    /// # Errors
    ///
    /// `NotFound` when the pid is not one of a spawned process.
    pub async fn stop(&self) -> Result<(), Error> {
        self.signal(SIGTERM).await
    }

    /// Sends SIGKILL to it alone; does nothing once it has exited.
    ///
    /// # Errors
    ///
    /// `NotFound` when the pid is not one of a spawned process.
    pub async fn kill(&self) -> Result<(), Error> {
        self.signal(SIGKILL).await
    }

    /// Sends a signal, by number, to it alone; does nothing once it has exited.
    ///
    /// # Errors
    ///
    /// `NotFound` when the pid is not one of a spawned process, `InvalidInput` for a number that is no signal.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        let request = convert::process::signal_request(self.vm.id(), self.pid, signal);
        self.vm.live()?.process().signal_process(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }
}
