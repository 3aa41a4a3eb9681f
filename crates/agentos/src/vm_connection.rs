//! Bytes both ways between this program and a server in a VM.
//!
//! ```text
//! send, AsyncWrite ──► a few parts that wait ──► sidecar ──► server
//! next, AsyncRead  ◄────────────────────────────  sidecar ◄── server
//! ```
//! Each direction waits for its own receiver alone, and ends on its own.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_proto::v1::{ConnectPortRequest, ConnectPortResponse};
use bytes::{Buf, Bytes};
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::bytes_in::Content;
use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::vm::AgentOs;

/// Parts of at most 1 MiB that wait for the sidecar to take them.
const WAITING_PARTS: usize = 4;

/// A connection to a server in a VM: a stream of what it sends, and a way to send.
///
/// It is also tokio's `AsyncRead` and `AsyncWrite`, so that what speaks a protocol over a socket, a WebSocket library
/// for instance, speaks it over this; then an [`Error`] is the inner error of the `std::io::Error`. Dropping it closes
/// the connection. It keeps its VM alive.
pub struct VmConnection {
    vm: AgentOs,
    port: u16,
    parts: Streaming<ConnectPortResponse>,
    /// What a reader's buffer had no room for.
    pending: Bytes,
    received_all: bool,
    sending: Sending,
}

/// The way to the server.
enum Sending {
    Idle(mpsc::Sender<ConnectPortRequest>),
    /// Waiting for room.
    Reserving(mpsc::Sender<ConnectPortRequest>, Reserving),
    /// We have said that nothing more comes.
    Finished,
}

type Permit = OwnedPermit<ConnectPortRequest>;
type Reserving = Pin<Box<dyn Future<Output = Result<Permit, SendError<()>>> + Send + Sync>>;

impl AgentOs {
    /// Connects to the server listening on a port inside the VM, on whichever of its addresses.
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED` where nobody listens.
    pub async fn connect(&self, port: u16) -> Result<VmConnection, Error> {
        let first = convert::network::connect_target(self.id(), port);
        Ok(self.open_connection(port, first).await?.1)
    }

    /// Sends a request that asks the server to speak another protocol from now on, which its `Upgrade` header names, and
    /// returns the server's answer and the connection once it has agreed. A WebSocket library goes on from there. What
    /// holds of [`fetch`](Self::fetch) holds of the request, whose `Connection` header is set for it.
    ///
    /// # Errors
    ///
    /// As of `fetch`; `InvalidInput` for a request without an `Upgrade` header. `EPROTO` where the server answers anything
    /// but 101; [`Error::object`] is then its status, such as `403`.
    pub async fn upgrade(
        &self,
        port: u16,
        request: http::Request<()>,
    ) -> Result<(http::Response<()>, VmConnection), Error> {
        let (head, ()) = request.into_parts();
        let first = convert::network::connect_upgrade(self.id(), port, &head);
        let (answer, connection) = self.open_connection(port, first).await?;
        Ok((convert::network::upgraded(answer)?, connection))
    }

    async fn open_connection(
        &self,
        port: u16,
        first: ConnectPortRequest,
    ) -> Result<(Option<http::Response<()>>, VmConnection), Error> {
        let (sender, waiting) = mpsc::channel(WAITING_PARTS);
        // There is room, and the receiver is right here.
        let _ = sender.try_send(first);
        let failed = |status| self.failed(status);
        let call = ReceiverStream::new(waiting);
        let reply = self.live()?.network().connect_port(call).await.map_err(failed)?;
        let mut parts = reply.into_inner();
        let answer = convert::network::connected(parts.message().await.map_err(failed)?)?;
        let connection = VmConnection {
            vm: self.clone(),
            port,
            parts,
            pending: Bytes::new(),
            received_all: false,
            sending: Sending::Idle(sender),
        };
        Ok((answer, connection))
    }
}

impl VmConnection {
    /// The next bytes from the server, or `None` at their end. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    /// Sends these bytes, waiting while the server takes none and a few MiB are on their way.
    ///
    /// # Errors
    ///
    /// `EPIPE` when the connection has ended, or [`finish`](Self::finish) was called; what [`next`](Self::next) says then
    /// may tell why.
    pub async fn send(&mut self, content: impl Into<Content>) -> Result<(), Error> {
        for chunk in convert::chunks(content.into().into_bytes()) {
            let permit = std::future::poll_fn(|context| self.poll_permit(context)).await?;
            permit.send(convert::network::connect_data(chunk));
        }
        Ok(())
    }

    /// Says that nothing more is sent; the server may go on. A connection that has ended is as finished as any.
    pub async fn finish(&mut self) {
        std::future::poll_fn(|context| self.poll_finish(context)).await;
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if !self.pending.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.pending))));
        }
        while !self.received_all {
            let part = ready!(Pin::new(&mut self.parts).poll_next(context));
            let received = match part {
                Some(Ok(part)) => convert::network::connect_received(part).map_err(Error::from),
                Some(Err(status)) => Err(self.vm.failed(status)),
                None => Ok(None),
            };
            match received {
                Ok(Some(data)) if data.is_empty() => {}
                Ok(Some(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(None) => self.received_all = true,
                Err(error) => {
                    self.received_all = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }

    /// Room for one more part.
    fn poll_permit(&mut self, context: &mut Context<'_>) -> Poll<Result<Permit, Error>> {
        let ended = || CallError::ConnectionEnded { port: self.port };
        if let Sending::Idle(sender) = &self.sending {
            match sender.clone().try_reserve_owned() {
                Ok(permit) => return Poll::Ready(Ok(permit)),
                Err(mpsc::error::TrySendError::Closed(_)) => return Poll::Ready(Err(ended().into())),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let reserving = Box::pin(sender.clone().reserve_owned());
                    self.sending = Sending::Reserving(sender.clone(), reserving);
                }
            }
        }
        let Sending::Reserving(sender, reserving) = &mut self.sending else {
            return Poll::Ready(Err(ended().into()));
        };
        let permit = ready!(reserving.as_mut().poll(context));
        let sender = sender.clone();
        self.sending = Sending::Idle(sender);
        Poll::Ready(permit.map_err(|_| CallError::ConnectionEnded { port: self.port }.into()))
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if matches!(self.sending, Sending::Finished) {
            return Poll::Ready(());
        }
        if let Ok(permit) = ready!(self.poll_permit(context)) {
            permit.send(convert::network::connect_end());
        }
        self.sending = Sending::Finished;
        Poll::Ready(())
    }
}

impl Stream for VmConnection {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_chunk(context)
    }
}

impl AsyncRead for VmConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut chunk = match ready!(this.poll_chunk(context)) {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Poll::Ready(Err(error.into())),
            None => return Poll::Ready(Ok(())),
        };
        let taken = chunk.len().min(buffer.remaining());
        buffer.put_slice(&chunk[..taken]);
        chunk.advance(taken);
        this.pending = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for VmConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let permit = ready!(self.get_mut().poll_permit(context))?;
        let taken = buffer.len().min(convert::CHUNK_BYTES);
        permit.send(convert::network::connect_data(Bytes::copy_from_slice(&buffer[..taken])));
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(context).map(Ok)
    }
}

impl fmt::Debug for VmConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmConnection").field("port", &self.port).finish_non_exhaustive()
    }
}
