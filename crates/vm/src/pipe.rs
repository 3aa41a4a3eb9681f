//! Descriptors that init passes out: checked for what they must be, then used without ever blocking a thread.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::window::MAX_CHUNK_BYTES;

thread_local! {
    /// One read buffer per thread instead of one per stream.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_CHUNK_BYTES].into_boxed_slice());
}

/// What a descriptor turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipe,
    Terminal,
    RegularFile,
    Other,
}

/// FUSE and proc answer reads as they like, a guest's own server perhaps never: not to be read by a thread of ours.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

pub(crate) fn kind(descriptor: BorrowedFd<'_>) -> Result<Kind, Errno> {
    match FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode) {
        FileType::Fifo => Ok(Kind::Pipe),
        FileType::CharacterDevice if rustix::termios::isatty(descriptor) => Ok(Kind::Terminal),
        FileType::RegularFile => match rustix::fs::fstatfs(descriptor)?.f_type {
            FUSE_SUPER_MAGIC | PROC_SUPER_MAGIC => Ok(Kind::Other),
            _ => Ok(Kind::RegularFile),
        },
        _ => Ok(Kind::Other),
    }
}

/// Registers a pipe, terminal or socket with the runtime.
#[expect(
    deprecated,
    reason = "the successor is unsafe for types that may lie about their descriptor; OwnedFd can't"
)]
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    AsyncFd::with_interest(descriptor, interest)
}

/// One read of at most `limit` bytes, shown to `take`. 0 is the end. A terminal whose other side is gone says EIO:
/// that is its end as well.
pub(crate) fn read_with(source: BorrowedFd<'_>, limit: usize, take: impl FnOnce(&[u8])) -> io::Result<usize> {
    BUFFER.with_borrow_mut(|buffer| {
        let len = limit.min(buffer.len());
        let room = buffer.get_mut(..len).unwrap_or_default();
        loop {
            match rustix::io::read(source, &mut *room) {
                Ok(read) => {
                    take(room.get(..read).unwrap_or_default());
                    return Ok(read);
                }
                Err(Errno::INTR) => {}
                Err(Errno::IO) => return Ok(0),
                Err(errno) => return Err(errno.into()),
            }
        }
    })
}

/// Writes what the kernel takes now.
pub(crate) fn write_now(target: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(target, data) {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Writes everything, waiting for room.
pub(crate) async fn write_all(target: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = target.writable().await?;
        if let Ok(written) = ready.try_io(|target| write_now(target.as_fd(), data)) {
            data = data.get(written?..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Reads and drops everything until the last writer is gone.
pub(crate) async fn discard(source: AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = source.readable().await {
        match ready.try_io(|source| read_with(source.as_fd(), MAX_CHUNK_BYTES, |_| ())) {
            Ok(Ok(0)) | Ok(Err(_)) => return,
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

/// Bytes that can be read without waiting.
pub(crate) fn available(source: BorrowedFd<'_>) -> u64 {
    rustix::io::ioctl_fionread(source).unwrap_or(0)
}
