//! A file being written.
//!
//! ```text
//! Buffered ──more than fits a frame──► Open ──commit──► CommitWrite
//!    └──commit──► Write in one request   └──drop, error──► AbortWrite
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentos_guest_protocol::filesystem::{FileCall, FileRequest, MAX_INLINE_CONTENT_BYTES, WriteTicket};
use agentos_guest_protocol::init::Request;
use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::parse::{self, Descriptor};
use super::{FileCall as Call, FileError};
use crate::command::{Answer, CallFailure, Outcome, ProtocolError};
use crate::path::GuestPath;
use crate::pipe;
use crate::vm::{Shared, Vm};

/// A file being written. Nothing is visible before commit; dropping it aborts.
#[derive(Debug)]
pub struct FileWriter {
    vm: Vm,
    path: GuestPath,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Buffered(Vec<u8>),
    Open(Open),
    /// A write was cut short by a dropped future or an error: what is in the file is not what was asked for.
    Failed,
}

/// Init has a file for us.
#[derive(Debug)]
struct Open {
    guard: AbortGuard,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    RegularFile {
        file: Arc<OwnedFd>,
        offset: u64,
    },
    Pipe(AsyncFd<OwnedFd>),
    /// Init has stopped reading: its answer to the commit says why.
    Broken,
}

/// Removes what was written unless it is committed.
#[derive(Debug)]
struct AbortGuard {
    shared: Arc<Shared>,
    ticket: Option<WriteTicket>,
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.asks.abort(ticket);
        }
    }
}

impl FileWriter {
    pub(super) fn new(vm: Vm, path: GuestPath) -> Self {
        Self { vm, path, stage: Stage::Buffered(Vec::new()) }
    }

    /// Adds to the content. A writer whose `write` was dropped or has failed can't be committed.
    pub async fn write(&mut self, data: Bytes) -> Result<(), FileError> {
        let (mut open, held) = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Buffered(mut buffer) if buffer.len() + data.len() <= MAX_INLINE_CONTENT_BYTES => {
                buffer.extend_from_slice(&data);
                self.stage = Stage::Buffered(buffer);
                return Ok(());
            }
            Stage::Buffered(buffer) => (self.open().await?, Bytes::from(buffer)),
            Stage::Open(open) => (open, Bytes::new()),
            Stage::Failed => return Err(self.write_error(&Errno::CANCELED.into())),
        };
        for part in [held, data] {
            if let Err(error) = open.sink.write(part).await {
                self.abort(open).await;
                return Err(self.write_error(&error));
            }
        }
        self.stage = Stage::Open(open);
        Ok(())
    }

    /// Gives up what is open and waits until init has let go of it, too: whoever hears of the error may unmount at once
    /// what the file lies in.
    async fn abort(&self, Open { mut guard, sink }: Open) {
        drop(sink);
        let Some(ticket) = guard.ticket else { return };
        let request = Request::File(FileRequest::AbortWrite { ticket });
        // Where it can't be asked, the VM is gone and everything in it. Until it is, the guard stays responsible.
        if let Ok(outcome) = self.vm.begin(request, Vec::new(), parse::done).await {
            guard.ticket = None;
            // An abort that fails has nothing left to remove.
            let _ = self.vm.finish(outcome).await;
        }
    }

    /// Makes the content visible.
    pub async fn commit(self) -> Result<(), FileError> {
        let (vm, path) = (self.vm.clone(), self.path.clone());
        let outcome = self.begin_commit().await?;
        finish(&vm, &path, outcome).await
    }

    /// Sends the last request without waiting for its answer.
    pub(super) async fn begin_commit(self) -> Result<Outcome<()>, FileError> {
        let request = match self.stage {
            Stage::Failed => return Err(self.write_error(&Errno::CANCELED.into())),
            Stage::Buffered(content) => {
                FileRequest::Write { path: self.path.to_wire(), content: content.into() }
            }
            Stage::Open(mut open) => {
                let broken = matches!(open.sink, Sink::Broken);
                // Closed before the commit, as init expects: it reads a pipe to its end.
                drop(open.sink);
                let Some(ticket) = open.guard.ticket else {
                    return Err(FileError::io(&Errno::CANCELED.into(), Call::Write, &self.path));
                };
                let request = FileRequest::CommitWrite { ticket };
                let parse = move |answer: Answer| parse::done(answer).and_then(|()| refute(broken));
                let begun = self.vm.begin(Request::File(request), Vec::new(), parse).await;
                // Only now: a caller that gives up before the request is on its way has committed nothing.
                open.guard.ticket = None;
                return begun.map_err(|failure| FileError::of(failure, Call::Write, &self.path));
            }
        };
        let begun = self.vm.begin(Request::File(request), Vec::new(), parse::done).await;
        begun.map_err(|failure| FileError::of(failure, Call::Open, &self.path))
    }

    async fn open(&self) -> Result<Open, FileError> {
        let shared = Arc::clone(self.vm.shared());
        // The guard is made where the answer is parsed: an answer nobody waits for any more aborts the write.
        let parse = move |answer: Answer| {
            let (ticket, descriptor) = parse::write_opened(answer)?;
            Ok((AbortGuard { shared, ticket: Some(ticket) }, descriptor))
        };
        let request = Request::File(FileRequest::OpenWrite { path: self.path.to_wire() });
        let opened = self.vm.call(request, Vec::new(), parse).await;
        let (guard, descriptor) =
            opened.map_err(|failure| FileError::of(failure, FileCall::Open, &self.path))?;
        let sink = match descriptor {
            Descriptor::RegularFile(file) => Sink::RegularFile { file: Arc::new(file), offset: 0 },
            Descriptor::Pipe(pipe) => {
                let pipe = pipe::register(pipe, Interest::WRITABLE);
                Sink::Pipe(pipe.map_err(|error| self.write_error(&error))?)
            }
        };
        Ok(Open { guard, sink })
    }

    fn write_error(&self, error: &std::io::Error) -> FileError {
        FileError::io(error, FileCall::Write, &self.path)
    }
}

/// Waits for the answer to [`FileWriter::begin_commit`].
pub(super) async fn finish(vm: &Vm, path: &GuestPath, outcome: Outcome<()>) -> Result<(), FileError> {
    let finished: Result<(), CallFailure> = vm.finish(outcome).await;
    finished.map_err(|failure| FileError::of(failure, FileCall::Write, path))
}

/// Init can't have written all of a pipe it stopped reading.
fn refute(broken: bool) -> Result<(), ProtocolError> {
    if broken { Err(ProtocolError::WrongAnswer("the commit of a write it gave up")) } else { Ok(()) }
}

impl Sink {
    async fn write(&mut self, data: Bytes) -> std::io::Result<()> {
        match self {
            _ if data.is_empty() => Ok(()),
            Self::RegularFile { file, offset } => {
                let (file, position, len) = (Arc::clone(file), *offset, data.len() as u64);
                let written = tokio::task::spawn_blocking(move || write_at(&file, position, &data)).await;
                written.map_err(std::io::Error::other)??;
                *offset += len;
                Ok(())
            }
            Self::Pipe(pipe) => match pipe::write_all(pipe, &data).await {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    *self = Self::Broken;
                    Ok(())
                }
                written => written,
            },
            Self::Broken => Ok(()),
        }
    }
}

fn write_at(file: &OwnedFd, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(file, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                offset += written as u64;
                data = data.get(written..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
