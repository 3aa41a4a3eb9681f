//! A process's streams as tokio's traits, which is how agentos_agents takes an agent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_vm::process::{Output, OutputReader};
use agentos_vm::{Process, StdinError};
use bytes::Bytes;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest piece handed to the process's queue at once.
const MAX_PIECE_BYTES: usize = 64 * 1024;

/// One output stream from its beginning.
pub(super) struct OutputPipe {
    chunks: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    current: Bytes,
}

impl OutputPipe {
    pub(super) fn of(output: &Output) -> Self {
        // Attached from the first byte on, so nothing is ever discarded between two chunks.
        let next = |mut reader: OutputReader| async { Some((reader.next().await?.data, reader)) };
        Self { chunks: Box::pin(stream::unfold(output.from_offset(0), next)), current: Bytes::new() }
    }
}

impl AsyncRead for OutputPipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.chunks.as_mut().poll_next(cx)) {
                Some(chunk) => self.current = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let piece = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current.split_to(piece));
        Poll::Ready(Ok(()))
    }
}

/// The process's stdin. One piece is on its way at a time; a failure shows at the next write or flush.
pub(super) struct InputPipe {
    process: Process,
    writing: Option<BoxFuture<'static, Result<(), StdinError>>>,
}

impl InputPipe {
    pub(super) fn of(process: Process) -> Self {
        Self { process, writing: None }
    }

    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(writing) = &mut self.writing else { return Poll::Ready(Ok(())) };
        let written = ready!(writing.as_mut().poll(cx));
        self.writing = None;
        Poll::Ready(written.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)))
    }
}

impl AsyncWrite for InputPipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(cx))?;
        let piece = buf.get(..buf.len().min(MAX_PIECE_BYTES)).unwrap_or_default();
        let (process, data) = (self.process.clone(), Bytes::copy_from_slice(piece));
        self.writing = Some(Box::pin(async move { process.write_stdin(data).await }));
        // Most pieces go at once; the rest waits in `writing` for the next call.
        match self.poll_written(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(piece.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_written(cx))?;
        match self.process.close_stdin() {
            Ok(()) | Err(StdinError::Closed | StdinError::BrokenPipe) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io::Error::other(error))),
        }
    }
}
