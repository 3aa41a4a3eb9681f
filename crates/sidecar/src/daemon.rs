//! From the first client to the last.
//!
//! ```text
//! bind, clean up, raise NOFILE ─► threads ─► `ready PATH` ─► Serving ── idle for linger, or a signal ──► Closing
//! Closing: no new connection, VMs disposed, clients answered ─► threads end ─► launcher ends ─► exit
//! ```
//! A client that connects just as an idle sidecar makes up its mind is still served: after the socket is gone from
//! the file system the sidecar waits until it is idle once more.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing_subscriber::EnvFilter;

use crate::SidecarError;
use crate::client::Incoming;
use crate::host::Host;
use crate::launch::{self, Start};
use crate::options::Config;
use crate::socket::Socket;
use crate::{leftovers, services};

/// Who starts a sidecar has this long to connect: enough for a loaded machine, and a starter that died meanwhile
/// leaves nothing behind for long.
const FIRST_CLIENT: Duration = Duration::from_secs(10);

/// After the socket is removed, time for a connection that was made just before to be accepted and seen.
const LAST_CLIENT: Duration = Duration::from_millis(50);

/// Answers that are on their way get this long when the daemon ends.
const DRAIN: Duration = Duration::from_millis(500);

/// The kernel's own default bound for one process (fs.nr_open).
const OPEN_FILES: u64 = 1 << 20;

/// Two threads serve hundreds of VMs: what the daemon does per call is little.
const WORKERS: usize = 2;

/// Runs on the main thread until the daemon has ended.
pub(crate) fn run(config: Config) -> Result<(), SidecarError> {
    start_log();
    raise_open_files();
    let (socket, listener) = Socket::bind(&config.socket)?;
    // Sockets of sidecars lie where their starters wanted them, those of demo models in the runtime directory.
    let beside = config.socket.parent().filter(|directory| *directory != config.runtime_dir);
    for directory in beside.into_iter().chain([config.runtime_dir.as_path()]) {
        leftovers::clean(directory, &config.runtime_dir);
    }
    // A pool's log is one file for all its sidecars; every explicit sidecar has another name.
    let own_log_of = config.pool.is_empty().then(|| config.socket.clone());
    let (starts, requests) = sync_channel(1);
    let daemon = thread::Builder::new()
        .name("agentos-daemon".to_owned())
        .spawn(move || serve(config, socket, listener, starts))
        .map_err(SidecarError::Threads)?;
    launch::serve_starts(&requests);
    daemon.join().map_err(|_| SidecarError::Panicked)??;
    if let Some(socket) = own_log_of {
        leftovers::remove_own_log(&socket);
    }
    Ok(())
}

fn serve(
    config: Config,
    socket: Socket,
    listener: StdListener,
    starts: SyncSender<Start>,
) -> Result<(), SidecarError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("agentos-worker")
        .enable_all()
        .build()
        .map_err(SidecarError::Threads)?;
    let result = runtime.block_on(serve_until_idle(config, socket, listener, starts));
    // Blocking threads may be stuck in a file of the host; nothing they do is wanted any more.
    runtime.shutdown_timeout(DRAIN);
    result
}

async fn serve_until_idle(
    config: Config,
    socket: Socket,
    listener: StdListener,
    starts: SyncSender<Start>,
) -> Result<(), SidecarError> {
    let path = config.socket.clone();
    let linger = config.linger;
    let host = Arc::new(Host::new(config, starts));
    let keeper = {
        let host = Arc::clone(&host);
        tokio::spawn(async move { host.launchers().keep().await })
    };
    let listener = UnixListener::from_std(listener).map_err(SidecarError::Threads)?;
    let incoming = Incoming::new(listener, Arc::clone(&host));
    let (close, closed) = oneshot::channel::<()>();
    let server = services::router(&host).serve_with_incoming_shutdown(incoming, async {
        // A dropped sender is a wish to close, too.
        let _ = closed.await;
    });
    let mut server = tokio::spawn(server);
    announce(&path)?;

    tokio::select! {
        () = until_idle(&host, linger.max(FIRST_CLIENT), linger) => {
            drop(socket);
            until_idle(&host, LAST_CLIENT, LAST_CLIENT).await;
        }
        name = signalled() => {
            tracing::info!(signal = name, "disposing every VM");
            drop(socket);
        }
        ended = &mut server => return served(ended),
    }
    host.close().await;
    drop(close);
    let drained = timeout(DRAIN, &mut server).await;
    server.abort();
    keeper.abort();
    // Whoever still holds the host also holds the launcher and the main thread's queue.
    let _ = keeper.await;
    drained.map_or(Ok(()), served)
}

fn served(
    ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> Result<(), SidecarError> {
    ended.map_err(|_| SidecarError::Panicked)?.map_err(SidecarError::Serve)
}

/// Resolves when the sidecar has been idle for a while without a break: `first` until any client was seen, then `linger`.
async fn until_idle(host: &Host, first: Duration, linger: Duration) {
    loop {
        // Subscribed before the look, so that no change falls between.
        let changed = host.changed();
        if !host.is_idle() {
            changed.await;
            continue;
        }
        let wait = if host.connections_seen() == 0 { first } else { linger };
        tokio::select! {
            () = sleep(wait) => return,
            // Somebody came, or came and went: the time begins anew.
            () = changed => {}
        }
    }
}

/// Resolves when somebody wants the sidecar to end. The end of the terminal it was started from is no such wish: kept
/// VMs outlive it.
async fn signalled() -> &'static str {
    // Once watched, the signal has lost its default action for good, whether or not anybody listens.
    if let Err(error) = signal(SignalKind::hangup()) {
        tracing::warn!(%error, "the sidecar ends with its terminal");
    }
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        tracing::warn!("signals can't be watched: SIGTERM ends the sidecar and its VMs at once");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// One line, then standard output leads nowhere: whoever started us may close its end of the pipe.
fn announce(path: &Path) -> Result<(), SidecarError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ready {}", path.display())
        .and_then(|()| stdout.flush())
        .and_then(|()| File::options().write(true).open("/dev/null"))
        .and_then(|null| rustix::stdio::dup2_stdout(null).map_err(io::Error::from))
        .map_err(SidecarError::Announce)
}

fn start_log() {
    // The library of the host tools' server repeats what guests say, at length and as a warning.
    let quiet = |filter: &str| EnvFilter::try_new(format!("{filter},rmcp=off"));
    let wanted = std::env::var("AGENTOS_LOG").ok().and_then(|filter| quiet(&filter).ok());
    let filter = wanted.unwrap_or_else(|| EnvFilter::new("warn,rmcp=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    if log.try_init().is_err() {
        tracing::debug!("somebody else keeps the log");
    }
}

/// Every process of a guest costs the sidecar up to three descriptors, and VMs inherit the hard limit.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let to = |maximum| Rlimit { current: maximum, maximum };
    // Only root may raise the hard limit; everybody may go up to it.
    let wanted = limit.maximum.map(|maximum| maximum.max(OPEN_FILES));
    let raised =
        setrlimit(Resource::Nofile, to(wanted)).or_else(|_| setrlimit(Resource::Nofile, to(limit.maximum)));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const LINGER: Duration = Duration::from_millis(500);

    fn host() -> Arc<Host> {
        Arc::new(Host::new(Config::under_test("blue", "/nonexistent".as_ref()), sync_channel(1).0))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sidecar_that_nobody_visits_waits_for_its_first_client_and_ends() {
        let begun = Instant::now();
        until_idle(&host(), FIRST, LINGER).await;
        assert_eq!(begun.elapsed(), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn after_its_last_client_it_lingers_only_briefly() {
        let host = host();
        let begun = Instant::now();
        let client = {
            let host = Arc::clone(&host);
            tokio::spawn(async move {
                advance(Duration::from_secs(1)).await;
                let connection = host.connected();
                sleep(Duration::from_secs(60)).await;
                drop(connection);
            })
        };
        until_idle(&host, FIRST, LINGER).await;
        client.await.unwrap();
        let expected = Duration::from_secs(61) + LINGER;
        assert!(begun.elapsed() >= expected, "{:?}", begun.elapsed());
        assert!(begun.elapsed() < expected + Duration::from_millis(50), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_only_looks_in_starts_the_linger_anew() {
        let host = host();
        drop(host.connected());
        let begun = Instant::now();
        let visitor = {
            let host = Arc::clone(&host);
            tokio::spawn(async move {
                sleep(LINGER / 2).await;
                drop(host.connected());
            })
        };
        until_idle(&host, FIRST, LINGER).await;
        visitor.await.unwrap();
        assert!(begun.elapsed() >= LINGER + LINGER / 2, "{:?}", begun.elapsed());
    }
}
