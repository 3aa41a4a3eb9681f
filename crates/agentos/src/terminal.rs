//! The host's terminal, attached to a shell of the VM.
//!
//! ```text
//! measure ─► raw mode ─► open shell ─► pump keys, output and sizes ─► shell ends ─► restore
//! ```
//!
//! The terminal is restored by a guard's drop, so also when the future is dropped or something panics; and when
//! SIGTERM or SIGHUP asks the process to end.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use thiserror::Error as ThisError;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::builder::into_future;
use crate::bytes_in::{GuestPath, os_bytes};
use crate::error::Error;
use crate::options::ProcessOptions;
use crate::output::OutputStream;
use crate::process::{OnChunk, process_setters};
use crate::shell::{Shell, ShellWish, shell_setters};
use crate::vm::AgentOs;

/// One read of a terminal; a paste comes in several.
const READ_BYTES: usize = 16 * 1024;
/// What Ctrl-D types: the end of the input, for a shell that is fed from a pipe or file.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// What was printed before the shell's end is on its way already; longer than the trip through the sidecar.
const LAST_OUTPUT_PAUSE: Duration = Duration::from_millis(100);
const LAST_OUTPUT: Duration = Duration::from_secs(1);
const _: () = assert!(LAST_OUTPUT_PAUSE.as_millis() < LAST_OUTPUT.as_millis());

#[derive(Debug, ThisError)]
pub(crate) enum TerminalError {
    #[error("cannot {step} the terminal")]
    Terminal { step: &'static str, source: std::io::Error },
    #[error("the terminal session was ended by {signal}")]
    Signaled { signal: &'static str },
    #[error("cannot listen for signals")]
    Signals { source: std::io::Error },
}

/// A shell to attach to the host's terminal; await it for the exit code.
pub struct ConnectTerminal {
    vm: AgentOs,
    wish: ShellWish,
    options: ProcessOptions,
    on_data: Option<OnChunk>,
}

impl AgentOs {
    /// Opens a shell, attaches this process's standard input and output to it, and waits for its exit code. A terminal
    /// is put into raw mode meanwhile and its size followed; it is restored whatever happens.
    ///
    /// SIGTERM and SIGHUP restore the terminal and end the call with `Cancelled`. As with every handler of tokio's,
    /// they no longer end the process by themselves afterwards.
    #[must_use = "does nothing until awaited"]
    pub fn connect_terminal(&self) -> ConnectTerminal {
        ConnectTerminal {
            vm: self.clone(),
            wish: ShellWish::default(),
            options: ProcessOptions::default(),
            on_data: None,
        }
    }
}

impl ConnectTerminal {
    process_setters!();
    shell_setters!("The size to use where standard output is not a terminal.");

    /// Gets what the terminal shows, instead of standard output.
    #[must_use]
    pub fn on_data(mut self, handler: impl FnMut(Bytes) + Send + 'static) -> Self {
        self.on_data = Some(Box::new(handler));
        self
    }

    async fn run(self) -> Result<i32, Error> {
        let Self { vm, mut wish, mut options, on_data } = self;
        if let Some((cols, rows)) = measured() {
            (wish.cols, wish.rows) = (cols, rows);
        }
        // The programs inside draw for the terminal that is really there.
        if !options.env.contains_key("TERM")
            && let Some(term) = std::env::var_os("TERM")
        {
            options.set_env("TERM", term);
        }
        let signals = Signals::listen()?;
        let keys = Keys::open()?;
        let raw = RawMode::enter()?;
        let shell = vm.start_shell(wish, options).await?;
        let outcome = attach(&shell, keys, signals, on_data).await;
        drop(raw);
        let ended = outcome?;
        if let Some(signal) = ended {
            // Nobody is left at the terminal.
            shell.close().await?;
            return Err(TerminalError::Signaled { signal }.into());
        }
        Ok(shell.wait().await?.code())
    }
}

into_future!(ConnectTerminal => i32);

impl fmt::Debug for ConnectTerminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectTerminal").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Pumps until the shell ends (`None`) or a signal asks this process to.
async fn attach(
    shell: &Shell,
    keys: Keys,
    mut signals: Signals,
    on_data: Option<OnChunk>,
) -> Result<Option<&'static str>, Error> {
    let mut show = on_data.unwrap_or_else(|| Box::new(print));
    let mut output: OutputStream = shell.data();
    // Typing must not wait for showing, nor showing for typing: a paste into a program that prints as it reads.
    let typing = async {
        let mut keys = keys;
        while let Some(typed) = keys.next().await {
            if shell.write(typed).await.is_err() {
                break;
            }
        }
        // The shell's end is what ends the session, not the end of the input.
        std::future::pending::<()>().await;
    };
    let exited = shell.wait();
    tokio::pin!(typing, exited);
    loop {
        tokio::select! {
            () = &mut typing => {}
            exit = &mut exited => {
                exit?;
                drain(&mut output, &mut show).await;
                return Ok(None);
            }
            chunk = output.next() => match chunk {
                Some(Ok(chunk)) => show(chunk),
                Some(Err(error)) if error.resume_at().is_some() => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            },
            _ = signals.resized.recv() => {
                if let Some((cols, rows)) = measured() {
                    // A shell that has just ended has no size; its end is seen in the next round.
                    let _ = shell.resize(cols, rows).await;
                }
            }
            _ = signals.terminated.recv() => return Ok(Some("SIGTERM")),
            _ = signals.hung_up.recv() => return Ok(Some("SIGHUP")),
        }
    }
}

/// Shows what was printed before the shell ended. A process left in the background may hold the terminal and print for
/// ever, so this ends at the first pause.
async fn drain(output: &mut OutputStream, show: &mut OnChunk) {
    let drain = async {
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout(LAST_OUTPUT_PAUSE, output.next()).await {
            show(chunk);
        }
    };
    let _ = tokio::time::timeout(LAST_OUTPUT, drain).await;
}

/// A terminal takes what is printed at once; where standard output is closed there is nobody to tell.
fn print(chunk: Bytes) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(&chunk).and_then(|()| stdout.flush());
}

/// The size of the terminal at standard output, else at standard input.
fn measured() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

struct Signals {
    resized: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self, TerminalError> {
        let listen = |kind| signal(kind).map_err(|source| TerminalError::Signals { source });
        Ok(Self {
            resized: listen(SignalKind::window_change())?,
            terminated: listen(SignalKind::terminate())?,
            hung_up: listen(SignalKind::hangup())?,
        })
    }
}

/// Raw mode, as long as the value lives. Nothing to do where standard input is not a terminal.
struct RawMode {
    before: Option<(OwnedFd, Termios)>,
}

impl RawMode {
    fn enter() -> Result<Self, TerminalError> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self { before: None });
        }
        let failed = |step| move |source: Errno| TerminalError::Terminal { step, source: source.into() };
        let terminal = rustix::io::dup(&stdin).map_err(failed("duplicate"))?;
        let before = tcgetattr(&terminal).map_err(failed("read the settings of"))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw).map_err(failed("change"))?;
        Ok(Self { before: Some((terminal, before)) })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some((terminal, before)) = &self.before {
            // A terminal that is gone needs no restoring.
            let _ = tcsetattr(terminal, OptionalActions::Now, before);
        }
    }
}

/// Standard input as it is typed.
enum Keys {
    /// A terminal, pipe or socket: the kernel says when there is something to read. The descriptor stays blocking,
    /// because its mode is shared with every process that has the terminal open.
    Ready(AsyncFd<OwnedFd>),
    /// A file, which never makes a reader wait long; epoll refuses those.
    File(mpsc::Receiver<Bytes>),
    /// The end has been typed.
    Ended,
}

impl Keys {
    fn open() -> Result<Self, TerminalError> {
        let failed = |source| TerminalError::Terminal { step: "read from", source };
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        #[expect(
            deprecated,
            reason = "its successors are unsafe, and an OwnedFd keeps the promise they ask for"
        )]
        let registered = AsyncFd::try_with_interest(stdin, Interest::READABLE);
        match registered {
            Ok(ready) => Ok(Self::Ready(ready)),
            Err(refused) => {
                let (stdin, error) = refused.into_parts();
                if error.raw_os_error() != Some(Errno::PERM.raw_os_error()) {
                    return Err(failed(error));
                }
                let (send, receive) = mpsc::channel(1);
                tokio::task::spawn_blocking(move || {
                    while let Ok(Some(typed)) = read_once(stdin.as_fd()) {
                        if send.blocking_send(typed).is_err() {
                            return;
                        }
                    }
                });
                Ok(Self::File(receive))
            }
        }
    }

    /// The next bytes; the end of the input comes as Ctrl-D, once, and then `None`.
    async fn next(&mut self) -> Option<Bytes> {
        let typed = match self {
            Self::Ready(ready) => read_ready(ready).await,
            Self::File(receive) => receive.recv().await,
            Self::Ended => return None,
        };
        if typed.is_none() {
            *self = Self::Ended;
        }
        Some(typed.unwrap_or(Bytes::from_static(END_OF_TRANSMISSION)))
    }
}

async fn read_ready(input: &AsyncFd<OwnedFd>) -> Option<Bytes> {
    loop {
        let mut guard = input.readable().await.ok()?;
        // Readiness may be stale, and a read of a blocking descriptor would then hold the thread.
        let mut polled = [PollFd::new(input.get_ref(), PollFlags::IN)];
        let immediately = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut polled, Some(&immediately)) {
            Ok(0) => guard.clear_ready(),
            Ok(_) => return read_once(input.get_ref().as_fd()).ok().flatten(),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn read_once(input: BorrowedFd<'_>) -> rustix::io::Result<Option<Bytes>> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match rustix::io::read(input, &mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Some(buffer.into()));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
