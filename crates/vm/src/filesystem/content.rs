//! What a file holds, on its way to the caller.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use agentos_guest_protocol::filesystem::FileCall;
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::FileError;
use super::parse::{Descriptor, Opened};
use crate::path::GuestPath;
use crate::pipe;
use crate::window::MAX_CHUNK_BYTES;

/// One read of a regular file: what a hop to a blocking thread costs is little beside copying this much.
const FILE_CHUNK_BYTES: usize = 256 * 1024;

/// A file's content: there already, or to be read.
#[derive(Debug)]
pub enum Content {
    Whole(Bytes),
    Stream(ContentStream),
}

#[derive(Debug)]
pub struct ContentStream {
    source: Source,
    size_bytes: u64,
    path: GuestPath,
}

#[derive(Debug)]
enum Source {
    RegularFile {
        file: Arc<OwnedFd>,
        offset: u64,
        /// A read that was begun ahead, or for a caller that gave up: the next one gets it.
        reading: Option<JoinHandle<Result<Vec<u8>, Errno>>>,
    },
    Pipe(OwnedFd),
    RegisteredPipe(AsyncFd<OwnedFd>),
    Ended,
}

impl Content {
    pub(super) fn new(opened: Opened, path: GuestPath) -> Self {
        match opened {
            Opened::Content(content) => Self::Whole(content),
            Opened::Stream { source, size_bytes } => {
                let source = match source {
                    Descriptor::RegularFile(file) => {
                        Source::RegularFile { file: Arc::new(file), offset: 0, reading: None }
                    }
                    Descriptor::Pipe(pipe) => Source::Pipe(pipe),
                };
                Self::Stream(ContentStream { source, size_bytes, path })
            }
        }
    }

    /// The next part, None at the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        match self {
            Self::Whole(content) if content.is_empty() => Ok(None),
            Self::Whole(content) => Ok(Some(std::mem::take(content))),
            Self::Stream(stream) => stream.next().await,
        }
    }

    /// What is to be expected; files change while they are read.
    pub fn size_hint(&self) -> u64 {
        match self {
            Self::Whole(content) => content.len() as u64,
            Self::Stream(stream) => stream.size_bytes,
        }
    }
}

impl ContentStream {
    /// The next part, None at the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        let read = match &mut self.source {
            Source::RegularFile { file, offset, reading } => read_file(file, offset, reading).await,
            Source::Pipe(_) | Source::RegisteredPipe(_) => self.read_pipe().await,
            Source::Ended => Ok(Bytes::new()),
        };
        match read {
            Ok(chunk) if !chunk.is_empty() => Ok(Some(chunk)),
            Ok(_) => {
                self.source = Source::Ended;
                Ok(None)
            }
            Err(error) => {
                self.source = Source::Ended;
                Err(FileError::io(&error, FileCall::Read, &self.path))
            }
        }
    }

    async fn read_pipe(&mut self) -> std::io::Result<Bytes> {
        // Registered by the first read, because only there a runtime is sure to be.
        if let Source::Pipe(_) = self.source
            && let Source::Pipe(pipe) = std::mem::replace(&mut self.source, Source::Ended)
        {
            self.source = Source::RegisteredPipe(pipe::register(pipe, Interest::READABLE)?);
        }
        let Source::RegisteredPipe(pipe) = &self.source else { return Ok(Bytes::new()) };
        loop {
            let mut chunk = Bytes::new();
            let mut ready = pipe.readable().await?;
            let read = ready.try_io(|pipe| {
                pipe::read_with(pipe.as_fd(), MAX_CHUNK_BYTES, |data| chunk = Bytes::copy_from_slice(data))
            });
            match read {
                Ok(read) => return read.map(|_| chunk),
                Err(_would_block) => {}
            }
        }
    }
}

/// Reads on while the caller is busy with what it got.
async fn read_file(
    file: &Arc<OwnedFd>,
    offset: &mut u64,
    reading: &mut Option<JoinHandle<Result<Vec<u8>, Errno>>>,
) -> std::io::Result<Bytes> {
    let read = |offset| {
        let file = Arc::clone(file);
        tokio::task::spawn_blocking(move || read_at(&file, offset))
    };
    let read_now = reading.get_or_insert_with(|| read(*offset)).await;
    *reading = None;
    let chunk = read_now.map_err(std::io::Error::other)??;
    *offset += chunk.len() as u64;
    if chunk.len() == FILE_CHUNK_BYTES {
        *reading = Some(read(*offset));
    }
    Ok(Bytes::from(chunk))
}

/// A whole chunk, or less at the end of the file.
fn read_at(file: &OwnedFd, offset: u64) -> Result<Vec<u8>, Errno> {
    let mut chunk = Vec::with_capacity(FILE_CHUNK_BYTES);
    while chunk.len() < FILE_CHUNK_BYTES {
        let position = offset + chunk.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut chunk), position) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(chunk)
}
