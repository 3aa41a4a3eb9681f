//! What can be mounted in a VM.

use std::path::PathBuf;

use crate::convert;
use crate::error::Error;
use crate::vm::AgentOs;

/// Something to mount in a VM, at its creation or while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub(crate) kind: MountKind,
    pub(crate) read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountKind {
    Memory { max_bytes: u64 },
    HostDir { path: PathBuf, allow_sockets: bool },
}

impl Mount {
    /// A directory of the host, read-only unless [`read_write`](Self::read_write). A relative path is taken from this
    /// process's working directory. What the VM creates belongs on the host to the owner of the directory.
    #[must_use]
    pub fn host_dir(path: impl Into<PathBuf>) -> Self {
        Self { kind: MountKind::HostDir { path: path.into(), allow_sockets: false }, read_only: true }
    }

    /// Fresh memory, writable, empty at first and gone with the VM.
    #[must_use]
    pub fn memory() -> Self {
        Self { kind: MountKind::Memory { max_bytes: 0 }, read_only: false }
    }

    /// Lets the VM write.
    #[must_use]
    pub fn read_write(mut self) -> Self {
        self.read_only = false;
        self
    }

    /// Refuses writes with EROFS.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Accepts a host directory that is or holds a unix socket or FIFO. Through those the guest talks to processes of
    /// the host, also where the mount is read-only. No effect on memory.
    #[must_use]
    pub fn allow_sockets(mut self) -> Self {
        if let MountKind::HostDir { allow_sockets, .. } = &mut self.kind {
            *allow_sockets = true;
        }
        self
    }

    /// The size of a memory mount; half the VM's disk limit unless set. No effect on a host directory.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        if let MountKind::Memory { max_bytes } = &mut self.kind {
            *max_bytes = bytes;
        }
        self
    }
}

/// What became of a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unmounted {
    /// Somebody still uses it: it is out of sight and goes when the last user does.
    pub busy: bool,
}

impl AgentOs {
    /// Mounts something in the running VM; its processes see it at once. It hides what was there before.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a path that is not absolute and normalized or may not be a mount point, `NotFound` for a
    /// host directory that is absent, `Permission` for one that holds sockets without `allow_sockets`.
    pub async fn mount_fs(&self, path: impl Into<String>, mount: Mount) -> Result<(), Error> {
        let request = convert::mount::mount_request(self.id(), path.into(), &mount)?;
        self.live()?.mount().mount_fs(request).await.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// Takes a mount away; one that is still in use goes when its last user does, and the result says so.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where nothing of ours is mounted.
    pub async fn unmount_fs(&self, path: impl Into<String>) -> Result<Unmounted, Error> {
        let request = convert::mount::unmount_request(self.id(), path.into());
        let reply = self.live()?.mount().unmount_fs(request).await.map_err(|status| self.failed(status))?;
        Ok(convert::mount::unmounted(&reply.into_inner()))
    }
}
