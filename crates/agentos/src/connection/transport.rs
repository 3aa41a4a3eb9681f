//! A connection as the service that the generated clients call.
//!
//! ```text
//! call ──► head and first message ──► one packet
//!             └── more to send: Upload, a task that ends with the call
//! ```
//! A call ends when its response ends or is dropped; what it still uploads then is dropped, too, and the peer is told
//! that the call was cancelled.

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

/// A first message up to this size is queued without asking what the peer can take: it is as much as any peer takes
/// unasked, and asking costs a round through the connection's task.
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
            let (mut response, upload) = driver.send(|| begin(&mut send, request))?;
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
    request: http::Request<Body>,
) -> Result<(ResponseFuture, Option<Rest>), h2::Error> {
    let (head, body) = request.into_parts();
    let ended = body.is_end_stream();
    let (response, stream) = send.send_request(http::Request::from_parts(head, ()), ended)?;
    if ended {
        return Ok((response, None));
    }
    let mut rest: Rest = Box::pin(upload(body, stream));
    // Whoever polls it next is who is woken.
    let ended = rest.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    Ok((response, (!ended).then_some(rest)))
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
async fn upload(mut body: Body, mut stream: SendStream<Bytes>) {
    let mut unasked = UNASKED_BYTES;
    loop {
        let frame = match next_frame(&mut body, &mut stream).await {
            Next::Frame(frame) => frame,
            Next::End => {
                // Fails where the stream is over, and then nobody waits for this end.
                let _ = stream.send_data(Bytes::new(), true);
                return;
            }
            Next::Failed => return stream.send_reset(Reason::INTERNAL_ERROR),
            Next::Reset => return,
        };
        // Requests of gRPC have no trailers.
        let Ok(data) = frame.into_data() else { continue };
        let sent = if data.len() <= unasked {
            stream.send_data(data, false).ok()
        } else {
            send_as_asked(&mut stream, data).await
        };
        if sent.is_none() {
            return;
        }
        unasked = 0;
    }
}

enum Next {
    Frame(Frame<Bytes>),
    End,
    /// What makes the body gave up.
    Failed,
    /// The peer wants no more.
    Reset,
}

async fn next_frame(body: &mut Body, stream: &mut SendStream<Bytes>) -> Next {
    poll_fn(|context| {
        if stream.poll_reset(context).is_ready() {
            return Poll::Ready(Next::Reset);
        }
        Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => Next::Frame(frame),
            Some(Err(_)) => Next::Failed,
            None => Next::End,
        })
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
