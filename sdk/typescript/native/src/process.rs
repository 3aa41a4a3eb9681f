//! Processes of a VM.

use std::time::Duration;

use agentos::{ErrorKind, ExecResult, Exit, OutputStream, ProcessDriver, ProcessStatus};
use napi::bindgen_prelude::{Function, Object, Uint8Array};
use napi::threadsafe_function::UnknownReturnValue;
use napi::{Env, Result};
use napi_derive::napi;

use crate::failure::wait;
use crate::listener::{ChunkListener, Pace};
use crate::options::ProcessWish;
use crate::promise;
use crate::vm::Vm;

/// A JavaScript function that takes pieces of output.
type OnChunk<'env> = Function<'env, Uint8Array, UnknownReturnValue>;

/// How long the thread of JavaScript waits for a program to run: the file system that holds it may be one that this very
/// thread serves.
const SPAWN_PATIENCE: Duration = Duration::from_millis(20);

/// How a process ended; the TypeScript half gives it the public shape.
#[napi(object, object_from_js = false)]
pub struct ExitShape {
    pub kind: &'static str,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub reason: Option<String>,
}

impl From<Exit> for ExitShape {
    fn from(exit: Exit) -> Self {
        let of = |kind| Self { kind, code: None, signal: None, reason: None };
        match exit {
            Exit::Exited { code } => Self { code: Some(code), ..of("exited") },
            Exit::Signaled { signal } => Self { signal: Some(signal), ..of("signaled") },
            Exit::TimedOut => of("timedOut"),
            Exit::OutOfMemory => of("outOfMemory"),
            Exit::VmGone { reason } => Self { reason: Some(reason), ..of("vmGone") },
            other => Self { reason: Some(other.to_string()), ..of("vmGone") },
        }
    }
}

/// What a command did.
#[napi(object, object_from_js = false)]
pub struct ExecShape {
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
    pub exit: ExitShape,
    pub truncated: bool,
}

impl From<ExecResult> for ExecShape {
    fn from(result: ExecResult) -> Self {
        Self {
            exit_code: result.exit_code(),
            stdout: text(result.stdout),
            stderr: text(result.stderr),
            exit: result.exit.into(),
            truncated: result.truncated,
        }
    }
}

/// Without a copy where it is UTF-8, which output mostly is.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A process that `spawn` started, in the public shape.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct SpawnedShape {
    pub pid: i32,
    pub command: String,
    pub args: Vec<String>,
    pub running: bool,
    pub exit_code: Option<i32>,
}

impl From<agentos::SpawnedProcessInfo> for SpawnedShape {
    fn from(process: agentos::SpawnedProcessInfo) -> Self {
        let agentos::SpawnedProcessInfo { pid, command, args, running, exit_code, .. } = process;
        Self { pid, command, args, running, exit_code }
    }
}

/// Any process of the VM, in the public shape.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct ProcessShape {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub driver: &'static str,
    pub command: String,
    pub args: Vec<String>,
    pub cwd: String,
    pub status: &'static str,
    pub exit_code: Option<i32>,
    pub start_time: f64,
    pub exit_time: Option<f64>,
}

impl From<agentos::ProcessInfo> for ProcessShape {
    fn from(process: agentos::ProcessInfo) -> Self {
        Self {
            driver: match process.driver {
                ProcessDriver::Node => "node",
                ProcessDriver::Python => "python",
                ProcessDriver::Shell => "shell",
                _ => "native",
            },
            status: if process.status == ProcessStatus::Running { "running" } else { "exited" },
            start_time: milliseconds(process.start_time),
            exit_time: process.exit_time.map(milliseconds),
            pid: process.pid,
            ppid: process.ppid,
            pgid: process.pgid,
            sid: process.sid,
            command: process.command,
            args: process.args,
            cwd: process.cwd,
            exit_code: process.exit_code,
        }
    }
}

/// JavaScript counts milliseconds in the same floating point numbers, exactly for the next 285,000 years.
#[allow(clippy::cast_precision_loss, reason = "times are far below 2^53")]
fn milliseconds(since_the_epoch: u64) -> f64 {
    since_the_epoch as f64
}

#[napi]
impl Vm {
    /// A promise of an [`ExecShape`], settled when the handlers have taken all there was.
    #[napi]
    pub fn exec<'env>(
        &self,
        env: &'env Env,
        command: String,
        wish: ProcessWish,
        handlers: (Option<OnChunk<'_>>, Option<OnChunk<'_>>),
    ) -> Result<Object<'env>> {
        let pace = Pace::default();
        let mut exec = wish.apply_to_exec(self.vm.exec(command));
        if let Some(function) = handlers.0 {
            let listener = ChunkListener::new(&function, &pace)?;
            exec = exec.on_stdout(move |chunk| listener.tell(chunk));
        }
        if let Some(function) = handlers.1 {
            let listener = ChunkListener::new(&function, &pace)?;
            exec = exec.on_stderr(move |chunk| listener.tell(chunk));
        }
        promise::of(env, async move { Ok(ExecShape::from(pace.keep(exec.into_future()).await?)) })
    }

    /// Starts a program and gives its pid, once it runs or the patience has ended.
    #[napi]
    pub fn spawn(
        &self,
        env: &Env,
        argv: Vec<String>,
        wish: ProcessWish,
        handlers: (Option<OnChunk<'_>>, Option<OnChunk<'_>>),
    ) -> Result<i32> {
        let mut words = argv.into_iter();
        let program = words.next().unwrap_or_default();
        let listener = |function: Option<OnChunk<'_>>| -> Result<_> {
            let pace = Pace::default();
            Ok(function.map(|function| ChunkListener::new(&function, &pace)).transpose()?.zip(Some(pace)))
        };
        // Before the program is started: once it runs, its pid has to be told.
        let (on_stdout, on_stderr) = (listener(handlers.0)?, listener(handlers.1)?);
        let spawn = wish.apply_to_spawn(self.vm.spawn(program, words)).patience(SPAWN_PATIENCE);
        let process = wait(env, spawn.into_future())?;
        for (listener, stream) in [(on_stdout, process.stdout()), (on_stderr, process.stderr())] {
            if let Some((listener, pace)) = listener {
                self.keep_telling(feed(stream, listener, pace))?;
            }
        }
        Ok(process.pid())
    }

    #[napi]
    pub fn list_processes(&self, env: &Env) -> Result<Vec<SpawnedShape>> {
        Ok(wait(env, self.vm.list_processes())?.into_iter().map(SpawnedShape::from).collect())
    }

    #[napi]
    pub fn all_processes(&self, env: &Env) -> Result<Vec<ProcessShape>> {
        Ok(wait(env, self.vm.all_processes())?.into_iter().map(ProcessShape::from).collect())
    }

    #[napi]
    pub fn get_process(&self, env: &Env, pid: i32) -> Result<SpawnedShape> {
        Ok(wait(env, self.vm.get_process(pid))?.into())
    }

    #[napi]
    pub fn stop_process(&self, env: &Env, pid: i32) -> Result<()> {
        wait(env, self.vm.stop_process(pid))
    }

    #[napi]
    pub fn kill_process(&self, env: &Env, pid: i32) -> Result<()> {
        wait(env, self.vm.kill_process(pid))
    }
}

/// Ends with the output, which ends with the process or the VM. While the handler is slow, the process waits.
async fn feed(mut stream: OutputStream, listener: ChunkListener, pace: Pace) {
    loop {
        match pace.keep(stream.next()).await {
            Some(Ok(chunk)) => listener.tell(chunk),
            // Printed before anybody could listen, and more than is kept: the rest follows.
            Some(Err(error)) if error.kind() == ErrorKind::Lagged => {}
            // The VM is gone, and whoever uses it hears that from the calls that fail.
            Some(Err(_)) | None => return,
        }
    }
}
