//! A connection as the service that the generated clients call.
//!
//! ```text
//! call ──► head and first message ──► one packet
//!             └── more to send: Upload, a task that ends with the call
//! ```
//! A call ends when its response ends or is dropped; what it still uploads then is dropped, too, and the peer is told
//! that the call was cancelled.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame};
use tokio::task::AbortHandle;
use tonic::body::Body;

use super::driver::Driver;

/// So much of a request is queued without asking what the peer can take: it is as much as any peer takes unasked, and asking costs a round through the connection's task.
const UNASKED_BYTES: usize = 64 * 1024 - 1;

#[derive(Clone)]
pub(crate) struct Transport {
    pub(super) send: SendRequest<Bytes>,
    pub(super) driver: Driver,
}

impl tower_service::Service<http::Request<Body>> for Transport {
    type Response = http::Response<Response>;
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.send.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { mut send, driver } = self.clone();
        Box::pin(async move {
            let (head, mut body) = request.into_parts();
            // Before anybody drives: what makes the body is not ours, and may take its time.
            let start = Start::of(&mut body);
            let head = http::Request::from_parts(head, ());
            let (mut response, upload) = driver.send(|| begin(&mut send, head, start, body))?;
            let upload = upload.map(|rest| Upload(tokio::spawn(rest).abort_handle()));
            // The connection lasts as long as its handles: this call's is the response.
            drop(send);
            let answered =
                poll_fn(|context| driver.poll(context, |context| Pin::new(&mut response).poll(context)));
            let (head, body) = answered.await?.into_parts();
            let body = Response { body: Some(body), data_ended: false, driver, upload };
            Ok(http::Response::from_parts(head, body))
        })
    }
}

/// What is left to send of a request.
type Rest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Queues a request with as much of its body as there is.
fn begin(
    send: &mut SendRequest<Bytes>,
    head: http::Request<()>,
    start: Start,
    body: Body,
) -> Result<(ResponseFuture, Option<Rest>), h2::Error> {
    let (response, stream) = send.send_request(head, false)?;
    let mut rest: Rest = Box::pin(upload(start, body, stream));
    // Whoever polls it next is who is woken.
    let ended = rest.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    Ok((response, (!ended).then_some(rest)))
}

/// What a request's body had when the call was made.
struct Start {
    data: Vec<Bytes>,
    next: Option<Next>,
}

impl Start {
    fn of(body: &mut Body) -> Self {
        let (mut data, mut bytes) = (Vec::new(), 0);
        while bytes <= UNASKED_BYTES {
            // Polled again with a waker that wakes.
            let polled = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
            match polled.map(Next::of) {
                Poll::Ready(Next::Data(part)) => {
                    bytes += part.len();
                    data.push(part);
                }
                Poll::Ready(end) => return Self { data, next: Some(end) },
                Poll::Pending => break,
            }
        }
        Self { data, next: None }
    }
}

/// What the peer sends back.
pub(crate) struct Response {
    /// Nothing only while this is dropped.
    body: Option<RecvStream>,
    data_ended: bool,
    driver: Driver,
    upload: Option<Upload>,
}

impl http_body::Body for Response {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        let driver = this.driver.clone();
        driver.poll(context, |context| this.receive(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(RecvStream::is_end_stream)
    }
}

impl Drop for Response {
    /// What that says to the peer goes at once, instead of through the connection's task.
    fn drop(&mut self) {
        let upload = self.upload.take();
        let body = self.body.take();
        self.driver.send(|| drop((upload, body)));
    }
}

impl Response {
    fn receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if !self.data_ended {
            match ready!(body.poll_data(context)) {
                Some(Ok(data)) => {
                    // Taken over: the peer may send as much again.
                    let released = body.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(released.map(|()| Frame::data(data))));
                }
                Some(Err(error)) if !is_end(&error) => return Poll::Ready(Some(Err(error))),
                Some(Err(_)) | None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(body.poll_trailers(context)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) if is_end(&error) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

/// A peer that has answered may reset the stream so that we send no more: an end, not a failure.
fn is_end(error: &h2::Error) -> bool {
    error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

/// The task that sends what did not go at once.
struct Upload(AbortHandle);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request's body. Whatever goes wrong is told by the response.
async fn upload(start: Start, mut body: Body, mut stream: SendStream<Bytes>) {
    let mut unasked = UNASKED_BYTES;
    for data in start.data {
        let sent = if data.len() <= unasked {
            unasked -= data.len();
            stream.send_data(data, false).ok()
        } else {
            unasked = 0;
            send_as_asked(&mut stream, data).await
        };
        if sent.is_none() {
            return;
        }
    }
    let mut next = start.next;
    loop {
        let sent = match next.take() {
            Some(Next::Data(data)) => send_as_asked(&mut stream, data).await,
            // Fails where the stream is over, and then nobody waits for this end.
            Some(Next::End) => stream.send_data(Bytes::new(), true).ok().and(None),
            Some(Next::Failed(reason)) => {
                stream.send_reset(reason);
                None
            }
            Some(Next::Reset) => None,
            None => Some(()),
        };
        if sent.is_none() {
            return;
        }
        next = Some(next_of(&mut body, &mut stream).await);
    }
}

enum Next {
    Data(Bytes),
    End,
    /// What makes the body gave up.
    Failed(Reason),
    /// The peer wants no more.
    Reset,
}

impl Next {
    fn of(frame: Option<Result<Frame<Bytes>, tonic::Status>>) -> Self {
        match frame {
            // Requests of gRPC have no trailers: those of others count as nothing.
            Some(Ok(frame)) => Self::Data(frame.into_data().unwrap_or_default()),
            Some(Err(status)) => Self::Failed(reason_of(&status)),
            None => Self::End,
        }
    }
}

/// What a body that gave up tells the peer.
fn reason_of(status: &tonic::Status) -> Reason {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        cause = error.source();
    }
    Reason::CANCEL
}

async fn next_of(body: &mut Body, stream: &mut SendStream<Bytes>) -> Next {
    poll_fn(|context| {
        if stream.poll_reset(context).is_ready() {
            return Poll::Ready(Next::Reset);
        }
        Pin::new(&mut *body).poll_frame(context).map(Next::of)
    })
    .await
}

/// Sends as much at a time as the peer takes. Nothing when the stream is over.
async fn send_as_asked(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = poll_fn(|context| stream.poll_capacity(context)).await?.ok()?;
        stream.send_data(data.split_to(capacity.min(data.len())), false).ok()?;
    }
    Some(())
}
