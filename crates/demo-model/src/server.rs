//! The HTTP server: accepts, routes, answers. All of its bounds are here.
//!
//! ```text
//!  run: bind ──► on_ready(address) ──► serve ──► until stdin ends (when asked) or the listener fails
//!  serve: accept ──► one task per connection, at most MAX_CONNECTIONS ──► answer (server/answer.rs)
//! ```
//!
//! Connections are joined when the server stops: none outlives `serve`. A client that leaves cancels its request, a
//! hanging or slow one included.

mod answer;
mod body;
mod passing;

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::journal::Journal;
use crate::listen::{Listen, Listener, Stream};
use passing::Passing;

/// More than any VM's agents need; a further client waits in the listener's queue.
const MAX_CONNECTIONS: usize = 256;

/// A client has this long for the headers of a request, idle connections included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Large bodies that are read or parsed at once: a parsed body takes a multiple of its bytes, so this bounds the memory.
const LARGE_BODIES_AT_ONCE: usize = 4;

/// How the model is run.
#[derive(Debug, Clone)]
pub struct Options {
    pub listen: Listen,
    /// One JSON line is appended for every request.
    pub request_log: Option<PathBuf>,
    /// End when standard input does: the parent holds the other end and need not live to say stop.
    pub exit_with_stdin: bool,
}

/// Why the model ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't listen at {listen:?}")]
    Listen {
        listen: Listen,
        #[source]
        source: io::Error,
    },
    #[error("can't open the request log {path}")]
    RequestLog {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't accept connections")]
    Accept(#[source] io::Error),
    #[error("can't watch standard input")]
    Stdin(#[source] io::Error),
}

/// Runs the model until its standard input ends (where `exit_with_stdin` asks for it) or it can't go on. `on_ready`
/// gets the address, `http://HOST:PORT` or `unix:PATH`, once connections are accepted.
pub async fn run(options: Options, on_ready: impl FnOnce(&str)) -> Result<(), Error> {
    let listener = Listener::bind(&options.listen)
        .await
        .map_err(|source| Error::Listen { listen: options.listen.clone(), source })?;
    let address =
        listener.address().map_err(|source| Error::Listen { listen: options.listen.clone(), source })?;
    let stdin = if options.exit_with_stdin { Some(stdin_end().map_err(Error::Stdin)?) } else { None };
    on_ready(&address);
    let stop = async move {
        match stdin {
            // A sender that is gone has ended too.
            Some(ended) => drop(ended.await),
            None => std::future::pending().await,
        }
    };
    serve(listener, options.request_log, stop).await
}

/// Serves this listener until `stop` is ready; every connection is closed when it returns.
pub async fn serve(
    listener: Listener,
    request_log: Option<PathBuf>,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let journal = Journal::open(request_log.as_deref())
        .await
        .map_err(|source| Error::RequestLog { path: request_log.clone().unwrap_or_default(), source })?;
    let server = Arc::new(Server::new(journal));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
            let stream = accept(&listener).await?;
            let server = Arc::clone(&server);
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                connection(stream, server).await;
                drop(slot);
            });
        }
    };
    let ended = tokio::select! {
        ended = accepting => ended,
        () = stop => Ok(()),
    };
    connections.shutdown().await;
    ended
}

/// What all connections share.
#[derive(Debug)]
struct Server {
    journal: Journal,
    passing: Passing,
    large_bodies: Semaphore,
    /// Makes ids unique within this process.
    answered: AtomicU64,
    /// Makes ids unique over processes, as agents keep conversations longer than a server lives.
    started_ms: u64,
}

impl Server {
    fn new(journal: Journal) -> Self {
        Self {
            journal,
            passing: Passing::default(),
            large_bodies: Semaphore::new(LARGE_BODIES_AT_ONCE),
            answered: AtomicU64::new(0),
            started_ms: now_ms(),
        }
    }
}

/// The next connection. A client that is gone before it was accepted, or a moment without descriptors, is not the
/// listener's end.
async fn accept(listener: &Listener) -> Result<Stream, Error> {
    /// How long to wait for a descriptor to come free.
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        match listener.accept().await {
            Ok(stream) => return Ok(stream),
            Err(error) if is_transient(&error) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(Error::Accept(error)),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::InvalidInput
    ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

async fn connection(stream: Stream, server: Arc<Server>) {
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(answer::respond(&server, request).await) }
    });
    // A client that breaks off or talks nonsense ends its own connection and nothing else.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Resolves when standard input ends. A plain thread: the runtime would wait for a blocking read at its own end.
fn stdin_end() -> io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (ended, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut ignored = [0; 256];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut ignored) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // Nobody waits any more when the server ended first.
        let _ = ended.send(());
    })?;
    Ok(receiver)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
