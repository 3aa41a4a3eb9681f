//! `agentos exec`: one command in a VM, as if it ran here.
//!
//! ```text
//! spawn gate ──► both readers attached ──► gate opens, exec COMMAND ──► exit ──► what is left is printed ──► its code
//! ```
//! Output of a spawned process that nobody reads yet may be discarded, and between the start of a process and the
//! first reader a fast one can print a megabyte. So a shell stands in its place first: it prints one byte to each
//! stream, which tells us that both readers are attached, waits for a line and then becomes the command.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::time::Duration;

use agentos::{AgentOs, ErrorKind, Exit, OutputStream, Process, Stdin};
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::failure::{Failure, code_of};
use crate::guest::{AttachArgs, Guest, VmArgs};
use crate::output::pump;
use crate::read_only::ReadOnly;
use crate::signals::{SIGCONT, SIGKILL, SIGPIPE, Signals};
use crate::terminal::notice;

/// `read` takes a pipe byte by byte, so what follows the line is the command's.
const GATE: &str = "printf . && printf . >&2 && read -r _ && exec \"$@\"";
/// The same for a command without input.
const GATE_WITHOUT_STDIN: &str = "printf . && printf . >&2 && read -r _ && exec \"$@\" </dev/null";

const STDIN_CHUNK_BYTES: usize = 64 << 10;
/// Where a failed command says why.
const COMPLAINT_BYTES: usize = 4 << 10;

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:
  the command's own; 128 and the number of the signal that killed it; 124 when --timeout passed;
  125 when agentos failed and not the command; 126 and 127 when there is nothing to execute; 2 for wrong usage

Examples:
  agentos exec -- sh -c 'id; ls /'
  agentos exec --project . -- grep -rn main .
  tar c src | agentos exec -- sha256sum
  agentos exec --allow registry.npmjs.org:443 -- npm view left-pad version
  agentos exec --keep=box -- touch hello
  agentos exec --publish 8080:3000 --project . -- npm run dev
  agentos exec --loopback-exempt-port 5432 --bandwidth-limit 10m -- psql -h 127.0.0.1
  agentos exec --vm box --timeout 10 -- ls -l")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    attach: AttachArgs,
    /// Kill the command after this many seconds; the exit code is then 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Fractions are fine.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(duration) }
}

pub(crate) async fn run(args: ExecArgs) -> Result<u8, Failure> {
    let guest = Guest::create_or_attach(&args.vm, &args.attach).await?;
    let outcome = drive(&guest.vm, &args).await;
    guest.leave(outcome).await
}

async fn drive(vm: &AgentOs, args: &ExecArgs) -> Result<u8, Failure> {
    let mut signals = Signals::watch()?;
    // A command that reads must not take what the user types for the shell behind us; `agentos shell` is for that.
    let forward = !io::stdin().is_terminal();
    let process = start(vm, args, forward).await?;
    let (mut stdout, mut stderr) = (process.stdout(), process.stderr());
    let attached = async { tokio::try_join!(past_gate(&mut stdout), past_gate(&mut stderr)) };
    tokio::select! {
        attached = attached => drop(attached?),
        signal = signals.next() => {
            // In a kept VM it would wait for ever.
            let _ = process.kill().await;
            return Err(Failure::Interrupted { signal });
        }
    }
    open_gate(&process).await?;
    let stdin = tokio::spawn(feed(process.clone(), forward));
    let (exited, watch_exit) = watch::channel(false);
    let stdout = tokio::spawn(pump(stdout, tokio::io::stdout(), watch_exit.clone(), 0));
    let stderr = tokio::spawn(pump(stderr, tokio::io::stderr(), watch_exit, COMPLAINT_BYTES));
    let outcome = supervise(vm, &process, &mut signals, stdout, exited).await;
    stdin.abort();
    // A closed standard error hides nothing that could be told anywhere.
    let complaint = stderr.await;
    if let (Ok(1..), Ok(Ok(complaint))) = (&outcome, complaint) {
        let mut read_only = ReadOnly::new(&args.vm);
        read_only.look_at_text(&String::from_utf8_lossy(&complaint));
        if let Some(hint) = read_only.hint() {
            notice(&hint);
        }
    }
    outcome
}

async fn start(vm: &AgentOs, args: &ExecArgs, forward: bool) -> Result<Process, Failure> {
    let gate = if forward { GATE } else { GATE_WITHOUT_STDIN };
    let fixed = ["-c", gate, "sh"].map(OsString::from);
    let argv = fixed.into_iter().chain(args.command.iter().cloned());
    let mut spawn = vm.spawn("/bin/sh", argv).stdin(Stdin::Piped);
    if args.attach.vm.is_none() || args.vm.cwd.is_some() {
        spawn = spawn.cwd(args.vm.cwd());
    }
    if args.attach.vm.is_some() {
        spawn = spawn.envs(args.vm.env.iter().map(|env| (&env.name, &env.value)));
    }
    if let Some(timeout) = args.timeout {
        spawn = spawn.timeout(timeout);
    }
    Ok(spawn.await?)
}

/// The gate's byte: from here on the reader is attached.
async fn past_gate(stream: &mut OutputStream) -> Result<(), Failure> {
    match stream.next().await {
        Some(Err(error)) => Err(error.into()),
        // The end means that the shell is gone; how it ended tells why.
        Some(Ok(_)) | None => Ok(()),
    }
}

async fn open_gate(process: &Process) -> Result<(), Failure> {
    match process.write_stdin("\n").await {
        Err(error) if error.kind() != ErrorKind::Closed => Err(error.into()),
        _ => Ok(()),
    }
}

/// Carries our standard input to the command until either ends.
async fn feed(process: Process, forward: bool) {
    if !forward {
        let _ = process.close_stdin().await;
        return;
    }
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; STDIN_CHUNK_BYTES];
    // An unreadable input, such as a directory, is one that has ended.
    while let Ok(length @ 1..) = stdin.read(&mut buffer).await {
        if process.write_stdin(&buffer[..length]).await.is_err() {
            return;
        }
    }
    // It may be gone by now, and then its input is closed too.
    let _ = process.close_stdin().await;
}

/// Waits for the command's end and the end of its output. Signals go to the command; nobody to read what it prints
/// ends it, as a pipe would.
async fn supervise(
    vm: &AgentOs,
    process: &Process,
    signals: &mut Signals,
    mut stdout: JoinHandle<Result<Vec<u8>, Failure>>,
    exited: watch::Sender<bool>,
) -> Result<u8, Failure> {
    let mut wait = std::pin::pin!(process.wait());
    let mut printed = None;
    let mut asked_to_end = false;
    let exit: Exit = loop {
        tokio::select! {
            exit = &mut wait => break exit?,
            signal = signals.next() => {
                // Whoever asks twice means it.
                let signal = if asked_to_end { SIGKILL } else { signal };
                asked_to_end = true;
                signal_group(vm, process, signal).await;
            }
            outcome = &mut stdout, if printed.is_none() => {
                let outcome = outcome.unwrap_or(Ok(Vec::new()));
                if matches!(outcome, Err(Failure::OutputClosed)) {
                    signal_group(vm, process, SIGPIPE).await;
                }
                printed = Some(outcome);
            }
        }
    };
    exited.send_replace(true);
    match printed {
        Some(outcome) => outcome?,
        None => stdout.await.unwrap_or(Ok(Vec::new()))?,
    };
    Ok(code_of(&exit))
}

/// What a terminal does: the command and what it started get the signal. A command that left its group is on its own. One
/// that is stopped would not hear of it, so that it is woken, as shells do with what they hang up on.
async fn signal_group(vm: &AgentOs, process: &Process, signal: u8) {
    let pid = process.pid();
    let sent = vm.exec(format!("kill -{signal} -{pid} && {{ kill -{SIGCONT} -{pid}; true; }}")).await;
    if !sent.is_ok_and(|result| result.success()) {
        for signal in [signal, SIGCONT] {
            // Without an answer there is nobody left to signal.
            let _ = process.signal(i32::from(signal)).await;
        }
    }
}
