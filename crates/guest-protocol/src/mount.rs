//! Mounts of a VM.

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// A directory of the host, or one file of it, as the launcher opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDir {
    /// Absolute path on the host.
    pub source: Bytes,
    /// A regular file, seen as one. Only live.
    pub file: bool,
    pub read_only: bool,
    /// Don't refuse a directory that is or directly holds a socket or FIFO.
    pub allow_sockets: bool,
}

/// Answered by [`crate::init::Response::Done`], or [`crate::init::Response::UnmountedBusy`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountRequest {
    /// Attach the detached tree in the packet's descriptor.
    Attach {
        target: Bytes,
        /// The tree is a single file.
        file: bool,
    },
    Memory {
        target: Bytes,
        max_bytes: u64,
        read_only: bool,
    },
    Unmount {
        target: Bytes,
    },
}
