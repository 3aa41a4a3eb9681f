//! Paths as users name them.

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::filesystem::{FileCall, FileFailure};
use rustix::io::Errno;

/// An absolute path without `.`, `..`, NUL, doubled or trailing slashes. It may be of any length: the kernel says
/// where it is too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestPath(Vec<u8>);

impl GuestPath {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        agentos_guest_protocol::path::clean(bytes).map(Self).map_err(|_| Errno::INVAL)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0 == b"/"
    }

    /// The parent's path and the last name; nothing for the root.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        let parent = if slash == 0 { b"/".as_slice() } else { &self.0[..slash] };
        Some((parent, &self.0[slash + 1..]))
    }

    /// Turns the kernel's answer into what the user is told.
    pub(super) fn fault(&self, call: FileCall) -> impl Fn(Errno) -> FileFailure + '_ {
        move |errno| failure(errno, call, &self.0)
    }
}

pub(super) fn failure(errno: Errno, call: FileCall, path: &[u8]) -> FileFailure {
    FileFailure { errno: errno.raw_os_error(), call, path: Bytes::from(path.to_vec()) }
}
