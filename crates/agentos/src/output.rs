//! What processes and shells print, read by offset.
//!
//! A stream opens when it is first polled and is one reader: while it is open the guest's pipe waits for it. Where
//! bytes were discarded before anybody read, one item is an error of kind `Lagged` that names the offset at which the
//! stream goes on, and the bytes from there follow.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_proto::v1::OutputEvent;
use bytes::{Buf, Bytes};
use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::feed::{Feed, FeedError, Opening};
use crate::vm::AgentOs;

#[derive(Debug, Clone)]
pub(crate) enum OutputSource {
    Stdout(i32),
    Stderr(i32),
    Shell(String),
}

/// Output of a process or shell: a stream of chunks, exactly the bytes written, and a reader.
///
/// It ends when the last process that holds the output is gone. It can also be read with tokio's `AsyncRead`; then an
/// [`Error`] is the inner error of the `std::io::Error`. It keeps its VM alive.
pub struct OutputStream {
    vm: AgentOs,
    source: OutputSource,
    offset: u64,
    feed: Feed<OutputEvent>,
    /// Bytes that follow a gap already reported, or that a reader's buffer had no room for.
    pending: Bytes,
}

impl OutputStream {
    pub(crate) fn new(vm: AgentOs, source: OutputSource) -> Self {
        Self { vm, source, offset: 0, feed: Feed::Idle, pending: Bytes::new() }
    }

    /// Starts at this offset, counted in bytes from the first one ever printed. Only before the first read.
    #[must_use]
    pub fn from_offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// The offset of the next byte: where a later stream goes on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next chunk, or `None` at the end. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if !self.pending.is_empty() {
            let chunk = std::mem::take(&mut self.pending);
            self.offset += chunk.len() as u64;
            return Poll::Ready(Some(Ok(chunk)));
        }
        loop {
            let Self { vm, source, offset, feed, .. } = self;
            let event = match ready!(feed.poll_message(context, || open(vm.clone(), source.clone(), *offset)))
            {
                Some(Ok(event)) => event,
                Some(Err(FeedError::Open(error))) => return Poll::Ready(Some(Err(error))),
                Some(Err(FeedError::Broken(status))) => return Poll::Ready(Some(Err(vm.failed(*status)))),
                None => return Poll::Ready(None),
            };
            if event.offset > self.offset {
                let (from, next) = (self.offset, event.offset);
                self.offset = next;
                self.pending = event.data;
                return Poll::Ready(Some(Err(CallError::OutputGap { from, next }.into())));
            }
            if event.data.is_empty() {
                continue;
            }
            self.offset = event.offset + event.data.len() as u64;
            return Poll::Ready(Some(Ok(event.data)));
        }
    }
}

fn open(vm: AgentOs, source: OutputSource, from_offset: u64) -> Opening<OutputEvent> {
    Box::pin(async move {
        let connection = vm.live()?;
        let reply = match source {
            OutputSource::Shell(id) => {
                let request = convert::shell::read_request(vm.id(), id, from_offset);
                connection.shell().read_shell(request).await
            }
            OutputSource::Stdout(_) | OutputSource::Stderr(_) => {
                let request = convert::process::read_output_request(vm.id(), &source, from_offset);
                connection.process().read_output(request).await
            }
        };
        Ok(reply.map_err(|status| vm.failed(status))?.into_inner())
    })
}

impl Stream for OutputStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_chunk(context)
    }
}

impl AsyncRead for OutputStream {
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
        this.offset -= chunk.len() as u64;
        this.pending = chunk;
        Poll::Ready(Ok(()))
    }
}

impl std::fmt::Debug for OutputStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputStream")
            .field("source", &self.source)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}
