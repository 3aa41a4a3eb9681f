//! Starting launchers.
//!
//! A launcher asks the kernel to die with its parent, and to the kernel the parent is the *thread* that forked it.
//! Tokio's threads come and go, so the process's main thread forks: [`serve_starts`] is all it does while the daemon
//! runs. [`Launchers`] is the daemon's side:
//!
//! ```text
//! Starting ── connected ──► Ready ── launcher died ──► Starting       (its VMs are failed; a pause when it was young)
//!     ├───── refused ─────► Refused ── a VM is wanted ─► Starting
//!     └─ nobody forks any more ─► Ended
//! ```
//! On a host that can't, every create tries anew: what the user cures between two tries is seen at once.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use agentos_vm::{Launcher, LauncherError};
use tokio::sync::{Notify, oneshot, watch};

/// The name by which the binary knows that it is to be the launcher.
const LAUNCHER_NAME: &str = "agentos-init";

/// A launcher that lived shorter than this is not restarted at once: something kills it each time.
const YOUNG: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);

/// Asks the main thread for a launcher on the other end of this socket.
#[derive(Debug)]
pub(crate) struct Start {
    socket: OwnedFd,
    started: oneshot::Sender<io::Result<()>>,
}

/// The main thread's loop: ends when the daemon has dropped the sending side.
pub(crate) fn serve_starts(starts: &Receiver<Start>) {
    let mut running: Option<Child> = None;
    while let Ok(Start { socket, started }) = starts.recv() {
        if let Some(child) = running.take() {
            collect(child);
        }
        let answer = spawn(socket).map(|child| running = Some(child));
        // Nobody waits for it any more when the daemon is ending.
        let _ = started.send(answer);
    }
    if let Some(child) = running.take() {
        collect(child);
    }
}

fn spawn(socket: OwnedFd) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0(LAUNCHER_NAME)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        // A group of its own: Ctrl-C in a terminal is for the sidecar, which disposes its VMs first.
        .process_group(0)
        .spawn()
}

/// The launcher has hung up, or will as soon as it sees that we have: it ends by itself. Killing makes sure.
fn collect(mut child: Child) {
    let pid = child.id();
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return tracing::debug!(pid, %status, "launcher ended"),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => break,
            Err(error) => return tracing::warn!(pid, %error, "launcher can't be waited for"),
        }
    }
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::warn!(pid, %error, "launcher can't be ended");
    }
}

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("a socket for the launcher can't be made")]
    Socket(#[source] io::Error),
    #[error("the launcher can't be started")]
    Spawn(#[source] io::Error),
    #[error("the main thread is still busy with another launcher")]
    Busy,
    #[error("the sidecar is ending")]
    Ending,
    #[error(transparent)]
    Launcher(LauncherError),
}

#[derive(Debug, Clone)]
enum Current {
    Starting,
    Ready(Launcher),
    Refused(Arc<StartError>),
    Ended,
}

/// Hands out the current launcher.
#[derive(Debug)]
pub(crate) struct Launchers {
    current: watch::Sender<Current>,
    wanted: Notify,
    starts: SyncSender<Start>,
    runtime_dir: PathBuf,
}

impl Launchers {
    pub(crate) fn new(starts: SyncSender<Start>, runtime_dir: PathBuf) -> Self {
        Self { current: watch::Sender::new(Current::Starting), wanted: Notify::new(), starts, runtime_dir }
    }

    /// The launcher, as soon as there is one or it is known that there can't be.
    pub(crate) async fn get(&self) -> Result<Launcher, Arc<StartError>> {
        let mut current = self.current.subscribe();
        if matches!(*current.borrow_and_update(), Current::Refused(_)) {
            self.wanted.notify_one();
            if current.changed().await.is_err() {
                return Err(Arc::new(StartError::Ending));
            }
        }
        let settled = current.wait_for(|current| !matches!(current, Current::Starting)).await;
        match settled.as_deref() {
            Ok(Current::Ready(launcher)) => Ok(launcher.clone()),
            Ok(Current::Refused(error)) => Err(Arc::clone(error)),
            Ok(Current::Starting | Current::Ended) | Err(_) => Err(Arc::new(StartError::Ending)),
        }
    }

    /// Keeps a launcher running for as long as this is polled.
    pub(crate) async fn keep(&self) {
        loop {
            let begun = Instant::now();
            match self.start().await {
                Ok(launcher) => {
                    self.current.send_replace(Current::Ready(launcher.clone()));
                    let death = launcher.died().await;
                    tracing::error!(%death, "the launcher is gone and its VMs with it; starting another");
                    self.current.send_replace(Current::Starting);
                    if begun.elapsed() < YOUNG {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(StartError::Ending) => {
                    self.current.send_replace(Current::Ended);
                    return;
                }
                Err(error) => {
                    tracing::error!(error = crate::errors::chain(&error), "no launcher");
                    self.current.send_replace(Current::Refused(Arc::new(error)));
                    self.wanted.notified().await;
                    self.current.send_replace(Current::Starting);
                }
            }
        }
    }

    async fn start(&self) -> Result<Launcher, StartError> {
        let (ours, theirs) = Launcher::socket_pair().map_err(StartError::Socket)?;
        let (started, answer) = oneshot::channel();
        match self.starts.try_send(Start { socket: theirs, started }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(StartError::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(StartError::Ending),
        }
        answer.await.map_err(|_| StartError::Ending)?.map_err(StartError::Spawn)?;
        Launcher::connect(ours, &self.runtime_dir).await.map_err(StartError::Launcher)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn launchers(starts: SyncSender<Start>) -> Arc<Launchers> {
        Arc::new(Launchers::new(starts, "/nonexistent".into()))
    }

    async fn refusal(launchers: &Launchers) -> Arc<StartError> {
        timeout(DEADLINE, launchers.get()).await.expect("nobody was told").expect_err("there is no launcher")
    }

    #[tokio::test]
    async fn whoever_waits_for_a_launcher_is_told_that_there_will_be_none() {
        let (starts, requests) = sync_channel(1);
        let launchers = launchers(starts);
        drop(requests);
        timeout(DEADLINE, launchers.keep()).await.expect("it has nothing to keep");
        for _ in 0..2 {
            assert!(matches!(*refusal(&launchers).await, StartError::Ending));
        }
    }

    #[tokio::test]
    async fn a_busy_main_thread_is_asked_again_when_a_vm_is_wanted() {
        let (starts, requests) = sync_channel(1);
        let (socket, _theirs) = Launcher::socket_pair().unwrap();
        let (started, _answer) = oneshot::channel();
        starts.send(Start { socket, started }).unwrap();
        let launchers = launchers(starts);
        let keeper = tokio::spawn({
            let launchers = Arc::clone(&launchers);
            async move { launchers.keep().await }
        });
        for _ in 0..2 {
            assert!(matches!(*refusal(&launchers).await, StartError::Busy));
        }
        drop(requests);
        assert!(matches!(*refusal(&launchers).await, StartError::Ending));
        timeout(DEADLINE, keeper).await.expect("it has nothing to keep").unwrap();
    }
}
