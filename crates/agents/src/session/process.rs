//! An agent's process as a session sees it: three byte streams, an end, and a way to bring it about.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::error::{AgentExit, AgentFault};

/// Writes that may wait for an agent that is slow to read. One that lets more wait reads nothing any more; one that asks
/// for a few hundred things at once does.
const INPUT_QUEUE: usize = 1024;
/// What they may hold together, but for those that bring their own room. A single one may be larger: prompts carry images.
const INPUT_QUEUE_BYTES: usize = 32 << 20;
/// What is kept of an agent's stderr, for the errors that quote its end.
const LOG_BYTES: usize = 4096;

/// A running agent, wherever it runs.
pub struct AgentProcess {
    /// Its input.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its log.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Resolves when it has exited.
    pub exit: Pin<Box<dyn Future<Output = AgentExit> + Send>>,
    /// Kills it and all it has started. Doesn't block; [`AgentProcess::exit`] still says when it is done.
    pub kill: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for AgentProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentProcess").finish_non_exhaustive()
    }
}

impl AgentProcess {
    /// Kills a process that no session will own.
    pub(super) fn kill(self) {
        (self.kill)();
    }
}

/// The end of what an agent wrote that was no record.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// How much there was in all.
    written: u64,
}

impl Tail {
    pub(super) fn push(&self, bytes: &[u8]) {
        // Held for one copy, never across an await.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.written += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(LOG_BYTES)..];
        kept.bytes.extend(bytes);
        let surplus = kept.bytes.len().saturating_sub(LOG_BYTES);
        kept.bytes.drain(..surplus);
    }

    pub(super) fn text(&self) -> String {
        self.text_since(0)
    }

    /// How much was written so far.
    pub(super) fn written(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).written
    }

    /// What is kept of what was written behind this much.
    pub(super) fn text_since(&self, before: u64) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(kept.written.saturating_sub(before)).unwrap_or(usize::MAX);
        let known = kept.bytes.len().saturating_sub(new);
        let bytes: Vec<u8> = kept.bytes.iter().skip(known).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A record on its way to the agent.
struct Write {
    record: Vec<u8>,
    /// Room that was kept free for it where it was made; free again once it is written.
    room: Option<OwnedSemaphorePermit>,
}

/// A process with its input and log on tasks of their own, so that its owner can always read its output: an agent that
/// writes before it reads would otherwise wait for us while we wait for it.
pub(super) struct Pipes {
    pub(super) stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) exit: Pin<Box<dyn Future<Output = AgentExit> + Send>>,
    pub(super) log: Tail,
    input: Option<mpsc::Sender<Write>>,
    /// Bytes that wait to be written.
    waiting_bytes: Arc<AtomicUsize>,
    kill: Option<Box<dyn FnOnce() + Send>>,
    log_task: JoinHandle<()>,
    input_task: JoinHandle<()>,
}

impl Pipes {
    pub(super) fn new(process: AgentProcess) -> Self {
        let log = Tail::default();
        let (input, waiting) = mpsc::channel(INPUT_QUEUE);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        Self {
            stdout: process.stdout,
            exit: process.exit,
            input: Some(input),
            kill: Some(process.kill),
            log_task: tokio::spawn(read_log(process.stderr, log.clone())),
            input_task: tokio::spawn(write_input(process.stdin, waiting, Arc::clone(&waiting_bytes))),
            waiting_bytes,
            log,
        }
    }

    /// Queues a record for the agent. An agent that is gone takes it silently: its exit is what tells.
    pub(super) fn send(&self, record: Vec<u8>, room: Option<OwnedSemaphorePermit>) -> Result<(), AgentFault> {
        if room.is_none() {
            let bytes = record.len();
            let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
            if before > 0 && before + bytes > INPUT_QUEUE_BYTES {
                return Err(AgentFault::Deaf);
            }
        }
        match self.input.as_ref().map(|input| input.try_send(Write { record, room })) {
            Some(Err(mpsc::error::TrySendError::Full(_))) => Err(AgentFault::Deaf),
            _ => Ok(()),
        }
    }

    /// Ends the agent's input behind what is queued.
    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// Kills it; once.
    pub(super) fn kill(&mut self) {
        if let Some(kill) = self.kill.take() {
            kill();
        }
    }

    /// The log, whole: waits until it has ended, which it does with the process unless a child holds it.
    pub(super) async fn finished_log(&mut self, at_most: std::time::Duration) -> String {
        let _ = tokio::time::timeout(at_most, &mut self.log_task).await;
        self.log.text()
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        self.log_task.abort();
        self.input_task.abort();
        self.kill();
    }
}

async fn read_log(mut stderr: Box<dyn AsyncRead + Send + Unpin>, log: Tail) {
    let mut buffer = vec![0; 8 << 10];
    while let Ok(count) = stderr.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        log.push(&buffer[..count]);
    }
}

async fn write_input(
    mut stdin: Box<dyn AsyncWrite + Send + Unpin>,
    mut waiting: mpsc::Receiver<Write>,
    waiting_bytes: Arc<AtomicUsize>,
) {
    while let Some(Write { record, room }) = waiting.recv().await {
        // A write fails when the agent is gone, which its exit will say.
        if stdin.write_all(&record).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
        if room.is_none() {
            waiting_bytes.fetch_sub(record.len(), Ordering::Relaxed);
        }
    }
    let _ = stdin.shutdown().await;
}
