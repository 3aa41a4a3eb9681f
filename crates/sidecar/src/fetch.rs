//! One HTTP/1.1 exchange with a server in a VM, over a socket that init has connected.
//!
//! The server is the guest's and so is every byte of its answer: heads are bounded, waiting is bounded, redirects are
//! the caller's business. Dropping the response's body ends the connection. A request may also leave HTTP behind: see
//! [`upgrade`](mod@upgrade).

mod upgrade;

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentos_proto::v1::{self, ErrorKind, fetch_request};
use bytes::Bytes;
use futures_core::Stream;
use futures_util::FutureExt;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::io::InspectWriter;
use tonic::{Status, Streaming};

pub(crate) use upgrade::upgrade;

use crate::errors::{self, Failure};

/// A server that has neither taken more of the request nor answered with a head by then never will; long polls are
/// shorter. While the caller is still to send more, nobody waits for the server.
const HEAD_DEADLINE: Duration = Duration::from_secs(120);

/// Between two pieces of a body: event streams send a sign of life more often.
const BODY_DEADLINE: Duration = Duration::from_secs(600);

const MAX_HEADERS: usize = 256;
/// Bounds the head as a whole, and one read of a body: larger buffers can come from the kernel anew, page by page, for
/// every piece.
const MAX_HEAD_BYTES: usize = 96 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("nothing from the server within {} s", HEAD_DEADLINE.as_secs())]
    NoHead,
    #[error("nothing more of the answer within {} s", BODY_DEADLINE.as_secs())]
    Stalled,
    #[error("the exchange with the server failed")]
    Exchange(#[source] hyper::Error),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let message = errors::chain(&error);
        match error {
            FetchError::NoHead | FetchError::Stalled => Self::new(ErrorKind::Timeout, "fetch", message),
            FetchError::Exchange(error) => {
                let errno = if error.is_parse() {
                    Errno::PROTO.raw_os_error()
                } else {
                    kernels_answer(&error).unwrap_or(Errno::CONNRESET.raw_os_error())
                };
                Self::system(errno, "fetch", format!("{}: {message}", agentos_vm::errno::name(errno)))
            }
        }
    }
}

/// The errno behind an error of the HTTP client, where a call on the socket failed.
fn kernels_answer(error: &hyper::Error) -> Option<i32> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(errno) = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(errno);
        }
        source = inner.source();
    }
    None
}

/// The request's body as it comes from the client.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// The first piece, received before the request is sent.
    first: Option<Bytes>,
    rest: Option<Streaming<v1::FetchRequest>>,
}

impl RequestBody {
    /// Waits for the first piece or the end: a request without a body must not announce one, many servers would wait
    /// for it or refuse it.
    pub(crate) async fn new(mut parts: Streaming<v1::FetchRequest>, method: &Method) -> Result<Self, Status> {
        let part = parts.message().await?.ok_or_else(|| Status::cancelled(GIVEN_UP))?;
        let first = body_part(part)?;
        let rest = first.is_some().then_some(parts);
        tracing::trace!(%method, has_body = rest.is_some(), "fetch");
        Ok(Self { first, rest })
    }
}

/// gRPC shows the end of a stream that was given up as a good one; a request says itself when it is complete.
const GIVEN_UP: &str = "the client gave the request up before its end";

/// A piece of the body; `None` is its end.
fn body_part(part: v1::FetchRequest) -> Result<Option<Bytes>, Failure> {
    match part.part {
        Some(fetch_request::Part::Body(data)) => Ok(Some(data)),
        Some(fetch_request::Part::End(v1::FetchRequestEnd {})) => Ok(None),
        Some(fetch_request::Part::Head(_)) | None => {
            Err(Failure::invalid("head", "After its head a request has a body alone"))
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let part = ready!(Pin::new(rest).poll_next(cx)).unwrap_or_else(|| Err(Status::cancelled(GIVEN_UP)));
        let data = part.and_then(|part| body_part(part).map_err(Status::from));
        if let Ok(None) = data {
            self.rest = None;
        }
        Poll::Ready(data.transpose().map(|data| data.map(Frame::data).map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// Whose turn it is: since when the server is waited for, or `None` while the caller is to send more.
#[derive(Debug, Clone)]
struct Turn(Arc<Mutex<Option<Instant>>>);

impl Turn {
    fn of_server(&self) {
        *self.lock() = Some(Instant::now());
    }

    fn of_caller(&self) {
        *self.lock() = None;
    }

    /// The server has taken some of the request. What is still on its way while the caller is to send more changes
    /// nothing.
    fn taken(&self) {
        if let Some(since) = &mut *self.lock() {
            *since = Instant::now();
        }
    }

    /// Resolves when the server has been waited for long enough.
    async fn overdue(&self) {
        loop {
            let since = self.lock().unwrap_or_else(Instant::now);
            if since.elapsed() >= HEAD_DEADLINE {
                return;
            }
            sleep_until(since + HEAD_DEADLINE).await;
        }
    }

    /// Held for a load and a store, which can't panic.
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body that keeps track of whose turn it is.
struct Timed<B> {
    body: B,
    turn: Turn,
}

impl<B: Body<Data = Bytes, Error = io::Error> + Unpin> Body for Timed<B> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.turn.of_server()
        } else {
            self.turn.of_caller()
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer's body; dropped, its connection goes.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    body: Incoming,
    rest: Bytes,
    connection: Connection,
}

/// What moves the exchange's bytes; dropped, the connection goes.
enum Connection {
    /// A task, while a request is still to be sent whether or not anybody reads the answer.
    Beside(AbortHandle),
    /// Whoever waits for the answer: a hand-over between threads for each piece takes longer than the piece.
    Here(Pin<Box<dyn Future<Output = ()> + Send>>),
    Done,
}

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::Here(connection) = self
            && connection.as_mut().poll(cx).is_ready()
        {
            *self = Self::Done;
        }
    }

    /// Waits for the answer's side of the exchange, which `answer` looks at.
    async fn drive<T>(&mut self, mut answer: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        poll_fn(|cx| {
            // Asked first, it lets the connection know that there is room.
            if let Poll::Ready(ready) = answer(cx) {
                return Poll::Ready(ready);
            }
            self.poll(cx);
            answer(cx)
        })
        .await
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Beside(_) => "Beside",
            Self::Here(_) => "Here",
            Self::Done => "Done",
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Self::Beside(task) = self {
            task.abort();
        }
    }
}

impl ResponseBody {
    /// The next piece of at most `limit` bytes; `None` at the end. Trailers are dropped.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Option<Bytes>, FetchError> {
        while self.rest.is_empty() {
            let Self { body, connection, .. } = self;
            let frame = connection.drive(|cx| Pin::new(&mut *body).poll_frame(cx));
            let frame = timeout(BODY_DEADLINE, frame).await.map_err(|_| FetchError::Stalled)?;
            match frame.transpose().map_err(FetchError::Exchange)? {
                Some(frame) => self.rest = frame.into_data().unwrap_or_default(),
                None => return Ok(None),
            }
        }
        Ok(Some(self.rest.split_to(self.rest.len().min(limit))))
    }
}

/// Sends the request and waits for the answer's head.
pub(crate) async fn exchange<S, B>(
    stream: S,
    request: Request<B>,
) -> Result<Response<ResponseBody>, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error = io::Error> + Send + Unpin + 'static,
{
    let (response, connection) = send(stream, request).await?;
    Ok(response.map(|body| ResponseBody { body, rest: Bytes::new(), connection }))
}

async fn send<S, B>(stream: S, request: Request<B>) -> Result<(Response<Incoming>, Connection), FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error = io::Error> + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD_BYTES);
    let turn = Turn(Arc::new(Mutex::new(Some(Instant::now()))));
    let written = turn.clone();
    let stream = InspectWriter::new(stream, move |_: &[u8]| written.taken());
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(FetchError::Exchange)?;
    // A request that asks for no upgrade gets none: what a server makes of it ends here.
    let connection = connection.with_upgrades().map(|ended| {
        if let Err(error) = ended {
            // The body's reader gets it too; a request cut short by its caller ends up here alone.
            tracing::debug!(%error, "connection to a server in a VM ended");
        }
    });
    let mut connection = if request.body().is_end_stream() {
        Connection::Here(Box::pin(connection))
    } else {
        Connection::Beside(tokio::spawn(connection).abort_handle())
    };
    let request = request.map(|body| Timed { body, turn: turn.clone() });
    let mut answer = pin!(sender.send_request(request));
    let response = tokio::select! {
        answer = connection.drive(|cx| answer.as_mut().poll(cx)) => answer.map_err(FetchError::Exchange)?,
        () = turn.overdue() => return Err(FetchError::NoHead),
    };
    Ok((response, connection))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;

    const PIECE_BYTES: usize = 64 * 1024;

    type Answer = Result<Response<ResponseBody>, FetchError>;

    /// Sends a request without a body to a server that reads its head and then does what it likes.
    async fn ask<F>(server: impl FnOnce(DuplexStream) -> F) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, mut theirs) = duplex(64 * 1024);
        let mut head = Vec::new();
        let request =
            Request::get("/").header("host", "localhost").body(RequestBody { first: None, rest: None });
        let exchange = tokio::spawn(exchange(ours, request.unwrap()));
        while !head.ends_with(b"\r\n\r\n") {
            head.push(theirs.read_u8().await.unwrap());
        }
        assert!(!String::from_utf8_lossy(&head).to_lowercase().contains("transfer-encoding"), "{head:?}");
        tokio::spawn(server(theirs));
        exchange.await.unwrap()
    }

    async fn says(text: &'static [u8]) -> Answer {
        ask(async move |mut stream| stream.write_all(text).await.unwrap()).await
    }

    #[track_caller]
    fn errno(answer: Answer) -> String {
        Failure::from(answer.expect_err("the answer was taken")).into_detail().errno
    }

    #[tokio::test]
    async fn an_answer_is_passed_on_in_pieces_of_the_wanted_size() {
        let mut answer =
            says(b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
        assert_eq!(answer.status(), 302);
        assert_eq!(answer.body_mut().next(3).await.unwrap().unwrap(), "hel");
        assert_eq!(answer.body_mut().next(3).await.unwrap().unwrap(), "lo");
        assert_eq!(answer.body_mut().next(3).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_http_is_a_protocol_error() {
        assert_eq!(errno(says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await), "EPROTO");
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_is_a_reset() {
        assert_eq!(errno(says(b"").await), "ECONNRESET");
    }

    #[tokio::test]
    async fn endless_headers_are_cut_off() {
        let answer = ask(async move |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            // Ends when the other side has had enough.
            while stream.write_all(b"x-more: and more and more\r\n").await.is_ok() {}
        });
        assert_eq!(errno(answer.await), "EPROTO");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let answer = ask(async |stream| {
            std::future::pending::<()>().await;
            drop(stream);
        });
        assert!(matches!(answer.await, Err(FetchError::NoHead)));
    }

    /// Moves the paused clock and lets everybody else see it before whoever paused goes on.
    async fn pass(pause: Duration) {
        advance(pause).await;
        for _ in 0..100 {
            yield_now().await;
        }
    }

    /// Sends an upload of this many pieces, each after a pause, to a server that reads them all and then does what
    /// it likes.
    async fn upload<F>(
        pieces: usize,
        (caller_pauses, server_pauses): (Duration, Duration),
        server: impl FnOnce(DuplexStream) -> F + Send + 'static,
    ) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, mut theirs) = duplex(PIECE_BYTES);
        let body = stream::unfold(0, move |sent| async move {
            if sent == pieces {
                return None;
            }
            pass(caller_pauses).await;
            let piece = Bytes::from_static(&[b'x'; PIECE_BYTES]);
            Some((Ok(Frame::data(piece)), sent + 1))
        });
        let request = Request::put("/").header("content-length", pieces * PIECE_BYTES);
        let request = request.body(StreamBody::new(Box::pin(body))).unwrap();
        tokio::spawn(async move {
            let mut left = pieces * PIECE_BYTES;
            let mut piece = vec![0; PIECE_BYTES];
            while left > 0 {
                let read = theirs.read(&mut piece).await.unwrap();
                assert!(read > 0, "the upload broke off with {left} bytes to come");
                left -= piece[..read].iter().filter(|byte| **byte == b'x').count();
                let share = u32::try_from(read).unwrap();
                pass(server_pauses * share / u32::try_from(piece.len()).unwrap()).await;
            }
            server(theirs).await;
        });
        exchange(ours, request).await
    }

    async fn answers(mut stream: DuplexStream) {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        // Whoever hangs up first is the other side.
        let _ = stream.read(&mut [0]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_take_as_long_as_it_makes_progress() {
        let slow = HEAD_DEADLINE * 2;
        let answer = upload(5, (slow, Duration::ZERO), answers).await;
        assert_eq!(answer.expect("the caller may take its time").status(), 200);
        let slow = HEAD_DEADLINE * 3 / 4;
        let answer = upload(20, (Duration::ZERO, slow), answers).await;
        assert_eq!(answer.expect("the server takes its time, but goes on").status(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_has_its_time_from_the_end_of_the_upload() {
        let begun = Instant::now();
        let answer = upload(5, (HEAD_DEADLINE, Duration::ZERO), async |stream| {
            std::future::pending::<()>().await;
            drop(stream);
        });
        assert!(matches!(answer.await, Err(FetchError::NoHead)));
        let waited = begun.elapsed();
        assert!(waited >= HEAD_DEADLINE * 6 && waited < HEAD_DEADLINE * 7, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        let mut answer = ask(async |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
            std::future::pending::<()>().await;
        })
        .await
        .unwrap();
        assert_eq!(answer.body_mut().next(100).await.unwrap().unwrap(), "half");
        assert!(matches!(answer.body_mut().next(100).await, Err(FetchError::Stalled)));
    }

    #[tokio::test]
    async fn dropping_an_answer_ends_its_connection() {
        let (gone, seen) = tokio::sync::oneshot::channel();
        let answer = ask(async move |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await.unwrap();
            let _ = gone.send(stream.read(&mut [0]).await.unwrap());
        });
        drop(answer.await.unwrap());
        assert_eq!(timeout(Duration::from_secs(20), seen).await.unwrap().unwrap(), 0);
    }
}
