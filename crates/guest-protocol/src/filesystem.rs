//! File calls, done by init's file threads with the rights of the VM's root, creating as the VM's user.
//!
//! Paths are absolute, normalized and free of NUL: the sidecar has checked that, init checks again.

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// Content up to this size rides in the answer; above, a descriptor does.
pub const MAX_INLINE_CONTENT_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FileRequest {
    /// Answered by [`FileResponse::Content`] or [`FileResponse::Stream`].
    Read {
        path: Bytes,
    },
    /// Content of at most [`MAX_INLINE_CONTENT_BYTES`]; parents are made; whole or not at all.
    Write {
        path: Bytes,
        content: Bytes,
    },
    /// Answered by [`FileResponse::WriteOpened`].
    OpenWrite {
        path: Bytes,
    },
    /// Makes what was written since OpenWrite visible. The sidecar has closed its descriptor.
    CommitWrite {
        ticket: WriteTicket,
    },
    /// Removes what was written since OpenWrite.
    AbortWrite {
        ticket: WriteTicket,
    },
    Mkdir {
        path: Bytes,
        recursive: bool,
    },
    /// Answered by [`FileResponse::Names`].
    ReadDir {
        path: Bytes,
    },
    /// Answered by [`FileResponse::Entries`].
    ReadDirRecursive {
        path: Bytes,
        max_depth: Option<u32>,
        exclude: Vec<Bytes>,
    },
    /// Follows links. Answered by [`FileResponse::Stat`].
    Stat {
        path: Bytes,
    },
    /// Follows links; false for absent and dangling. Answered by [`FileResponse::Exists`].
    Exists {
        path: Bytes,
    },
    Rename {
        from: Bytes,
        to: Bytes,
    },
    Delete {
        path: Bytes,
        recursive: bool,
    },
}

/// A write in progress, known to init alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriteTicket(pub u32);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileResponse {
    Done,
    Content(Bytes),
    /// Descriptor to read the content from until its end: a regular file, or a pipe that init feeds.
    /// `size_bytes` is what stat said, a hint alone.
    Stream {
        size_bytes: u64,
    },
    /// Descriptor to write the content to: a regular file, or a pipe that init drains.
    WriteOpened {
        ticket: WriteTicket,
    },
    Names(Vec<Bytes>),
    Entries(Vec<DirEntry>),
    Stat(Stat),
    Exists(bool),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Absolute.
    pub path: Bytes,
    pub file_type: FileType,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileType {
    File,
    Directory,
    Symlink,
    Other,
}

/// As statx gives it; times in nanoseconds since the epoch, ids as the VM sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    pub mode: u32,
    pub size_bytes: u64,
    pub blocks: u64,
    pub dev: u64,
    pub rdev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub birthtime_ns: i64,
}

/// `errno` is what the user is told; `call` and `path` complete the message `ENOENT: ..., open '/x'`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailure {
    pub errno: i32,
    pub call: FileCall,
    pub path: Bytes,
}

/// The call's name in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileCall {
    Open,
    Read,
    Write,
    Mkdir,
    Scandir,
    Stat,
    Rename,
    Unlink,
    Rmdir,
    Copy,
}
