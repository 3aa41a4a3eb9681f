//! The files of a VM. Paths are absolute inside it; the sidecar never resolves them, so no link leads out.
//!
//! The file API acts with the VM root's rights and creates as the VM's user. Contents up to 1 MiB travel in one
//! message, larger ones in pieces of that size that share the caller's buffer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::builder::into_future;
use crate::bytes_in::{Content, GuestPath, lossy};
use crate::convert;
use crate::error::Error;
use crate::vm::AgentOs;

/// What `stat` reports, with links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VirtualStat {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Device the file is on.
    pub dev: u64,
    /// Device the file is, for device nodes.
    pub rdev: u64,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether it is a symbolic link. Links are followed, so only ever true where a listing says so.
    pub is_symbolic_link: bool,
    /// Last access, milliseconds since the epoch.
    pub atime_ms: i64,
    /// Last change of the content, milliseconds since the epoch.
    pub mtime_ms: i64,
    /// Last change of the metadata, milliseconds since the epoch.
    pub ctime_ms: i64,
    /// Creation, milliseconds since the epoch; 0 where the file system does not know.
    pub birthtime_ms: i64,
    /// Inode number.
    pub ino: u64,
    /// Hard links.
    pub nlink: u64,
    /// Owner, as the VM sees it.
    pub uid: u32,
    /// Group, as the VM sees it.
    pub gid: u32,
    pub(crate) atime_ns: i64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
}

impl VirtualStat {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        const TYPE_MASK: u32 = 0o170_000;
        const REGULAR: u32 = 0o100_000;
        self.mode & TYPE_MASK == REGULAR
    }

    /// Last access, to the nanosecond.
    #[must_use]
    pub fn accessed(&self) -> SystemTime {
        time(self.atime_ns)
    }

    /// Last change of the content, to the nanosecond.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        time(self.mtime_ns)
    }

    /// Last change of the metadata, to the nanosecond.
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        time(self.ctime_ns)
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let time = if ns < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// One entry of a recursive listing.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirEntry {
    /// Absolute path; bytes that are not UTF-8 show as U+FFFD.
    pub path: String,
    /// What it is; links are reported, not followed.
    pub file_type: FileType,
    /// Bytes.
    pub size: u64,
    pub(crate) raw_path: Bytes,
}

impl DirEntry {
    /// The entry's own name, exactly.
    #[must_use]
    pub fn name_bytes(&self) -> &[u8] {
        let start = self.raw_path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        &self.raw_path[start..]
    }

    /// The absolute path, exactly; every path parameter takes it.
    #[must_use]
    pub fn path_bytes(&self) -> &[u8] {
        &self.raw_path
    }
}

impl std::fmt::Debug for DirEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirEntry")
            .field("path", &self.path)
            .field("file_type", &self.file_type)
            .field("size", &self.size)
            .finish()
    }
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or FIFO.
    Other,
}

/// One file of [`AgentOs::read_files`].
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchReadResult {
    /// The path asked for; bytes that are not UTF-8 show as U+FFFD.
    pub path: String,
    /// The content, unless it failed.
    pub content: Option<Vec<u8>>,
    /// Why it failed.
    pub error: Option<Error>,
}

/// One file to write with [`AgentOs::write_files`]; `(path, content)` pairs convert into it.
#[derive(Debug, Clone)]
pub struct BatchWriteEntry {
    pub(crate) path: GuestPath,
    pub(crate) content: Content,
}

impl BatchWriteEntry {
    /// This content at this path.
    #[must_use]
    pub fn new(path: impl Into<GuestPath>, content: impl Into<Content>) -> Self {
        Self { path: path.into(), content: content.into() }
    }
}

impl<P: Into<GuestPath>, C: Into<Content>> From<(P, C)> for BatchWriteEntry {
    fn from((path, content): (P, C)) -> Self {
        Self::new(path, content)
    }
}

impl<P, C> From<&(P, C)> for BatchWriteEntry
where
    P: Clone + Into<GuestPath>,
    C: Clone + Into<Content>,
{
    fn from((path, content): &(P, C)) -> Self {
        Self::new(path.clone(), content.clone())
    }
}

/// One file of [`AgentOs::write_files`].
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchWriteResult {
    /// The path given; bytes that are not UTF-8 show as U+FFFD.
    pub path: String,
    /// Whether it was written.
    pub success: bool,
    /// Why it was not.
    pub error: Option<Error>,
}

impl AgentOs {
    /// The content of a file; links are followed inside the VM.
    ///
    /// # Errors
    ///
    /// `NotFound` (ENOENT), `InvalidInput` for a directory (EISDIR), a FIFO, socket or device (EINVAL) or a path that
    /// is not absolute and normalized.
    pub async fn read_file(&self, path: impl Into<GuestPath>) -> Result<Vec<u8>, Error> {
        let request = convert::filesystem::read_request(self.id(), path.into());
        let reply =
            self.live()?.filesystem().read_file(request).await.map_err(|status| self.failed(status))?;
        let mut chunks = reply.into_inner();
        // One piece, the usual case, is taken over without a copy where nothing else shares its buffer. The buffers of
        // more go back at once, so that the next pieces find them.
        let mut content: Option<Vec<u8>> = None;
        while let Some(chunk) = chunks.message().await.map_err(|status| self.failed(status))? {
            match &mut content {
                None => content = Some(Vec::from(chunk.data)),
                Some(content) => content.extend_from_slice(&chunk.data),
            }
        }
        Ok(content.unwrap_or_default())
    }

    /// Writes a file, creating parents. Readers that open it later see the old content or the new, never a part;
    /// owner and mode of an existing file stay. Dropping the future leaves the old file or the new one.
    ///
    /// # Errors
    ///
    /// `ReadOnly` (EROFS), `NoSpace` (ENOSPC), `InvalidInput` for a directory (EISDIR) or a bad path.
    pub async fn write_file(
        &self,
        path: impl Into<GuestPath>,
        content: impl Into<Content>,
    ) -> Result<(), Error> {
        let chunks = convert::filesystem::write_chunks(self.id(), path.into(), content.into());
        let request = tokio_stream::iter(chunks);
        self.live()?.filesystem().write_file(request).await.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// Reads many files in one round trip. Results come in the order asked; one failure never stops the rest.
    ///
    /// # Errors
    ///
    /// Only when the call as a whole failed; what is wrong with a file is in its result.
    pub async fn read_files<P: Into<GuestPath>>(
        &self,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Vec<BatchReadResult>, Error> {
        let paths: Vec<Bytes> = paths.into_iter().map(|path| path.into().into_bytes()).collect();
        let mut collected = convert::filesystem::ReadCollector::new(paths.clone());
        let request = convert::filesystem::read_files_request(self.id(), paths);
        let reply =
            self.live()?.filesystem().read_files(request).await.map_err(|status| self.failed(status))?;
        let mut chunks = reply.into_inner();
        while let Some(chunk) = chunks.message().await.map_err(|status| self.failed(status))? {
            collected.push(chunk)?;
        }
        Ok(collected.finish()?)
    }

    /// Writes many files in one round trip, each as [`write_file`](Self::write_file) does. Results come in the order
    /// given; one failure never stops the rest.
    ///
    /// # Errors
    ///
    /// Only when the call as a whole failed; what is wrong with a file is in its result.
    pub async fn write_files<E: Into<BatchWriteEntry>>(
        &self,
        entries: impl IntoIterator<Item = E>,
    ) -> Result<Vec<BatchWriteResult>, Error> {
        let entries: Vec<BatchWriteEntry> = entries.into_iter().map(Into::into).collect();
        let paths: Vec<String> = entries.iter().map(|entry| lossy(entry.path.as_bytes())).collect();
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let request = tokio_stream::iter(convert::filesystem::write_files_chunks(self.id(), entries));
        let reply =
            self.live()?.filesystem().write_files(request).await.map_err(|status| self.failed(status))?;
        Ok(convert::filesystem::write_results(paths, reply.into_inner())?)
    }

    /// Creates a directory; `.recursive()` creates parents too and accepts one that exists.
    #[must_use = "does nothing until awaited"]
    pub fn mkdir(&self, path: impl Into<GuestPath>) -> Mkdir {
        Mkdir { vm: self.clone(), path: path.into(), recursive: false }
    }

    /// The names in a directory, sorted, without `.` and `..`; bytes that are not UTF-8 show as U+FFFD.
    ///
    /// # Errors
    ///
    /// `NotFound` (ENOENT), `InvalidInput` for what is not a directory (ENOTDIR).
    pub async fn readdir(&self, path: impl Into<GuestPath>) -> Result<Vec<String>, Error> {
        Ok(self.readdir_bytes(path).await?.iter().map(|name| lossy(name)).collect())
    }

    /// As [`readdir`](Self::readdir), with the names exactly as they are.
    ///
    /// # Errors
    ///
    /// As [`readdir`](Self::readdir).
    pub async fn readdir_bytes(&self, path: impl Into<GuestPath>) -> Result<Vec<Bytes>, Error> {
        let request = convert::filesystem::readdir_request(self.id(), path.into());
        let reply = self.live()?.filesystem().readdir(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().names)
    }

    /// Everything below a directory, which is itself not in the result. `.max_depth(0)` lists immediate children,
    /// `.exclude(name)` leaves entries of that base name out and does not enter them. Links are never followed.
    #[must_use = "does nothing until awaited"]
    pub fn readdir_recursive(&self, path: impl Into<GuestPath>) -> ReaddirRecursive {
        ReaddirRecursive { vm: self.clone(), path: path.into(), max_depth: None, exclude: Vec::new() }
    }

    /// Metadata of a file or directory; links are followed.
    ///
    /// # Errors
    ///
    /// `NotFound` (ENOENT), also for a dangling link.
    pub async fn stat(&self, path: impl Into<GuestPath>) -> Result<VirtualStat, Error> {
        let request = convert::filesystem::stat_request(self.id(), path.into());
        let reply = self.live()?.filesystem().stat(request).await.map_err(|status| self.failed(status))?;
        Ok(convert::filesystem::stat(reply.into_inner())?)
    }

    /// Whether a path exists, links followed: false for absent and dangling.
    ///
    /// # Errors
    ///
    /// Never for what is absent; for a bad path, or when the VM cannot be asked.
    pub async fn exists(&self, path: impl Into<GuestPath>) -> Result<bool, Error> {
        let request = convert::filesystem::exists_request(self.id(), path.into());
        let reply = self.live()?.filesystem().exists(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().exists)
    }

    /// Renames, replacing a file. Across mounts it copies with mode, owner, times and links and then deletes; a
    /// failure leaves the source whole.
    ///
    /// # Errors
    ///
    /// `NotFound` (ENOENT), `ReadOnly` (EROFS), `InvalidInput` (EISDIR, ENOTDIR, ENOTEMPTY, EINVAL).
    pub async fn move_path(&self, from: impl Into<GuestPath>, to: impl Into<GuestPath>) -> Result<(), Error> {
        let request = convert::filesystem::move_request(self.id(), from.into(), to.into());
        self.live()?.filesystem().move_path(request).await.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// Deletes a file, a link (never its target) or an empty directory; `.recursive()` a whole tree.
    #[must_use = "does nothing until awaited"]
    pub fn delete(&self, path: impl Into<GuestPath>) -> Delete {
        Delete { vm: self.clone(), path: path.into(), recursive: false }
    }
}

/// A directory to create; await it.
///
/// Fails with `AlreadyExists` (EEXIST), `NotFound` for a missing parent (ENOENT), `ReadOnly` (EROFS).
#[derive(Debug, Clone)]
pub struct Mkdir {
    vm: AgentOs,
    path: GuestPath,
    recursive: bool,
}

impl Mkdir {
    /// Creates missing parents too and accepts a directory that exists.
    #[must_use]
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    async fn run(self) -> Result<(), Error> {
        let request = convert::filesystem::mkdir_request(self.vm.id(), self.path, self.recursive);
        self.vm.live()?.filesystem().mkdir(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }
}

into_future!(Mkdir => ());

/// Something to delete; await it.
///
/// Fails with `NotFound` (ENOENT), `InvalidInput` for a directory that is not empty (ENOTEMPTY), `Busy` for a mount
/// point (EBUSY), `ReadOnly` (EROFS).
#[derive(Debug, Clone)]
pub struct Delete {
    vm: AgentOs,
    path: GuestPath,
    recursive: bool,
}

impl Delete {
    /// Deletes a directory with everything in it.
    #[must_use]
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    async fn run(self) -> Result<(), Error> {
        let request = convert::filesystem::delete_request(self.vm.id(), self.path, self.recursive);
        self.vm.live()?.filesystem().delete(request).await.map_err(|status| self.vm.failed(status))?;
        Ok(())
    }
}

into_future!(Delete => ());

/// A recursive listing; await it for the entries.
#[derive(Debug, Clone)]
pub struct ReaddirRecursive {
    vm: AgentOs,
    path: GuestPath,
    max_depth: Option<u32>,
    exclude: Vec<Bytes>,
}

impl ReaddirRecursive {
    /// How deep to go; 0 means immediate children.
    #[must_use]
    pub fn max_depth(mut self, depth: u32) -> Self {
        self.max_depth = Some(depth);
        self
    }

    /// Leaves entries of this base name out, and does not enter them.
    #[must_use]
    pub fn exclude(mut self, name: impl Into<GuestPath>) -> Self {
        self.exclude.push(name.into().into_bytes());
        self
    }

    async fn run(self) -> Result<Vec<DirEntry>, Error> {
        let Self { vm, path, max_depth, exclude } = self;
        let request = convert::filesystem::recursive_request(vm.id(), path, max_depth, exclude);
        let reply =
            vm.live()?.filesystem().readdir_recursive(request).await.map_err(|status| vm.failed(status))?;
        let mut chunks = reply.into_inner();
        let mut entries = Vec::new();
        while let Some(chunk) = chunks.message().await.map_err(|status| vm.failed(status))? {
            entries.extend(chunk.entries.into_iter().map(convert::filesystem::dir_entry));
        }
        Ok(entries)
    }
}

into_future!(ReaddirRecursive => Vec<DirEntry>);
