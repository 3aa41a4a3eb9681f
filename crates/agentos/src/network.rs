//! HTTP into a VM: one exchange with a server inside it, streamed both ways.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use agentos_proto::v1::{FetchRequest, FetchResponse};
use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Streaming;

use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::vm::AgentOs;

/// The body of a request or response, as an `http_body::Body` of `Bytes`.
///
/// The body of a response keeps its VM alive.
pub struct Body {
    kind: Kind,
}

enum Kind {
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>),
    /// `announced_bytes` is the server's word, and no promise.
    Response {
        vm: AgentOs,
        parts: Box<Streaming<FetchResponse>>,
        announced_bytes: usize,
    },
    Done,
}

/// What a server's announcement alone makes us ask the allocator for, at most. Memory that is never touched costs nothing.
const MOST_RESERVED_BYTES: usize = 16 * 1024 * 1024;

impl Body {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self { kind: Kind::Full(None) }
    }

    /// A body that is made while it is sent. An error of the stream aborts the exchange.
    pub fn stream<S, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self { kind: Kind::Stream(Box::pin(Chunks { stream: Box::pin(stream) })) }
    }

    /// The whole body.
    ///
    /// # Errors
    ///
    /// What broke it off.
    pub async fn into_bytes(mut self) -> Result<Bytes, Error> {
        let announced_bytes = match &self.kind {
            Kind::Response { announced_bytes, .. } => (*announced_bytes).min(MOST_RESERVED_BYTES),
            Kind::Full(_) | Kind::Stream(_) | Kind::Done => 0,
        };
        let first = match self.next_chunk().await {
            None => return Ok(Bytes::new()),
            Some(first) => first?,
        };
        let Some(second) = self.next_chunk().await else { return Ok(first) };
        // Pages that are touched once, instead of anew with each doubling.
        let mut whole = Vec::with_capacity(announced_bytes);
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&second?);
        while let Some(chunk) = self.next_chunk().await {
            whole.extend_from_slice(&chunk?);
        }
        Ok(Bytes::from(whole))
    }

    /// The whole body as text; what is not UTF-8 shows as U+FFFD.
    ///
    /// # Errors
    ///
    /// What broke it off.
    pub async fn into_text(self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.into_bytes().await?).into_owned())
    }

    /// The next piece, or `None` at the end.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    fn response(vm: AgentOs, parts: Streaming<FetchResponse>, head: &http::HeaderMap) -> Self {
        let announced = head.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let announced_bytes = announced.and_then(|length| length.parse().ok()).unwrap_or_default();
        Self { kind: Kind::Response { vm, parts: Box::new(parts), announced_bytes } }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let item = match &mut self.kind {
            Kind::Full(bytes) => bytes.take().map(Ok),
            Kind::Stream(stream) => ready!(stream.as_mut().poll_next(context)),
            Kind::Response { vm, parts, .. } => match ready!(Pin::new(&mut **parts).poll_next(context)) {
                Some(Ok(part)) => Some(convert::network::body(part).map_err(Error::from)),
                Some(Err(status)) => Some(Err(vm.failed(status))),
                None => None,
            },
            Kind::Done => None,
        };
        if !matches!(item, Some(Ok(_))) {
            self.kind = Kind::Done;
        }
        Poll::Ready(item)
    }
}

/// A caller's stream with its errors turned into ours.
struct Chunks<S> {
    stream: Pin<Box<S>>,
}

impl<S, E> Stream for Chunks<S>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.get_mut().stream.as_mut().poll_next(context));
        Poll::Ready(
            item.map(|chunk| chunk.map_err(|error| CallError::RequestBody { source: error.into() }.into())),
        )
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.get_mut().poll_chunk(context).map(|item| item.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Full(None) | Kind::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Done => SizeHint::with_exact(0),
            Kind::Stream(_) | Kind::Response { .. } => SizeHint::default(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(Some(bytes).filter(|bytes| !bytes.is_empty())) }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&[u8]> for Body {
    fn from(bytes: &[u8]) -> Self {
        Bytes::copy_from_slice(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("size_hint", &self.size_hint()).finish_non_exhaustive()
    }
}

impl AgentOs {
    /// Sends a request to the server listening on a port inside the VM and returns when its response has begun. The
    /// URL's host is ignored; redirects are not followed. Bodies are streamed. For WebSockets see
    /// [`upgrade`](Self::upgrade).
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED` where nobody listens, `InvalidInput` for a request that cannot be sent, `Cancelled` where the
    /// request's own body failed.
    pub async fn fetch(
        &self,
        port: u16,
        request: http::Request<impl Into<Body>>,
    ) -> Result<http::Response<Body>, Error> {
        let (head, body) = request.into_parts();
        let body = body.into();
        let head = convert::network::request_head(self.id(), port, &head, body.size_hint().exact());
        let failure = Arc::new(Mutex::new(None));
        let mut call = tonic::Request::new(());
        let abort = call.cancellation_handle();
        let outgoing = Outgoing {
            head: Some(head),
            body,
            failure: Arc::clone(&failure),
            abort: Some(abort),
            ended: false,
            rest: Bytes::new(),
        };
        // A body that failed explains the call's failure better than the reset it caused.
        let failed = |status| {
            let own = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            own.unwrap_or_else(|| self.failed(status))
        };
        let reply = self.live()?.network().fetch(call.map(|()| outgoing)).await.map_err(failed)?;
        let mut parts = reply.into_inner();
        let first = parts.message().await.map_err(failed)?;
        let response = convert::network::response_head(first)?;
        let body = Body::response(self.clone(), parts, response.headers());
        Ok(response.map(|()| body))
    }
}

/// The request as it goes out: its head, then its body in pieces.
struct Outgoing {
    head: Option<FetchRequest>,
    body: Body,
    rest: Bytes,
    /// Why the body broke off, for the caller.
    failure: Arc<Mutex<Option<Error>>>,
    /// Resets the call, so that the server inside sees its connection break.
    abort: Option<tonic::CancellationHandle>,
    ended: bool,
}

impl Stream for Outgoing {
    type Item = FetchRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<FetchRequest>> {
        let this = self.get_mut();
        if let Some(head) = this.head.take() {
            return Poll::Ready(Some(head));
        }
        while this.rest.is_empty() {
            match ready!(this.body.poll_chunk(context)) {
                Some(Ok(chunk)) => this.rest = chunk,
                None if this.ended || this.abort.is_none() => return Poll::Ready(None),
                None => {
                    this.ended = true;
                    return Poll::Ready(Some(convert::network::request_end()));
                }
                Some(Err(error)) => {
                    *this.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    if let Some(abort) = this.abort.take() {
                        abort.cancel();
                    }
                    // The end without its mark, should the reset come late.
                    return Poll::Ready(None);
                }
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(convert::CHUNK_BYTES));
        Poll::Ready(Some(convert::network::request_body(piece)))
    }
}
