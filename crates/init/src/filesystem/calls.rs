//! One entry for all calls of the file API.

use std::os::fd::OwnedFd;

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileRequest, FileResponse, WriteTicket};

use super::delete::delete;
use super::list::{Selection, read_dir, read_dir_recursive};
use super::make::{exists, mkdir, stat};
use super::path::{GuestPath, failure};
use super::progress::Progress;
use super::read::read_file;
use super::rename::rename;
use super::root::Root;
use super::streams::Pumps;
use super::write::{OpenWrites, write_file};

/// A VM's files, and the writes in progress.
#[derive(Debug)]
pub(crate) struct FileSystem {
    root: Root,
    /// The root as far as no call in it can hang.
    quick: Option<Root>,
    pumps: Pumps,
    writes: OpenWrites,
}

/// An answer, with the descriptor that some answers have.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) response: FileResponse,
    pub(crate) descriptor: Option<OwnedFd>,
}

impl FileSystem {
    pub(crate) fn new(root: Root, quick: Option<Root>) -> Self {
        Self { root, quick, pumps: Pumps::default(), writes: OpenWrites::default() }
    }

    /// Does a call that only looks, where it can be done from memory: two switches between threads cost more than the
    /// call. Nothing where it can't, or has failed: whoever may wait says why.
    pub(super) fn handle_at_once(&self, request: &FileRequest) -> Option<Outcome> {
        let root = self.quick.as_ref()?;
        let path = |bytes: &[u8]| GuestPath::parse(bytes).ok();
        match request {
            FileRequest::Read { path: file } => read_file(root, &self.pumps, &path(file)?).ok(),
            FileRequest::Stat { path: file } => stat(root, &path(file)?).ok().map(Outcome::from),
            FileRequest::Exists { path: file } => exists(root, &path(file)?).ok().map(Outcome::from),
            _ => None,
        }
    }

    /// Does one call on this thread. It may hang where a file system does.
    pub(crate) fn handle(&self, request: &FileRequest, progress: &Progress) -> Result<Outcome, FileFailure> {
        let root = &self.root;
        let path =
            |bytes: &[u8]| GuestPath::parse(bytes).map_err(|errno| failure(errno, call_of(request), bytes));
        let response = match request {
            FileRequest::Read { path: file } => return read_file(root, &self.pumps, &path(file)?),
            FileRequest::OpenWrite { path: file } => {
                return self.writes.open(root, &self.pumps, &path(file)?);
            }
            FileRequest::Write { path: file, content } => write_file(root, &path(file)?, content, progress),
            FileRequest::CommitWrite { ticket } => self.writes.commit(*ticket, progress),
            FileRequest::AbortWrite { ticket } => self.writes.abort(*ticket),
            FileRequest::Mkdir { path: dir, recursive } => mkdir(root, &path(dir)?, *recursive),
            FileRequest::ReadDir { path: dir } => read_dir(root, &path(dir)?, progress),
            FileRequest::ReadDirRecursive { path: dir, max_depth, exclude } => {
                let selection = Selection { max_depth: *max_depth, exclude };
                read_dir_recursive(root, &path(dir)?, &selection, progress)
            }
            FileRequest::Stat { path: file } => stat(root, &path(file)?),
            FileRequest::Exists { path: file } => exists(root, &path(file)?),
            FileRequest::Rename { from, to } => rename(root, &path(from)?, &path(to)?, progress),
            FileRequest::Delete { path: file, recursive } => delete(root, &path(file)?, *recursive, progress),
        };
        response.map(Outcome::from)
    }

    /// For a ticket whose answer nobody waits for any more.
    pub(super) fn discard(&self, ticket: WriteTicket) {
        // A ticket that is gone already is what was wanted.
        let _ = self.writes.abort(ticket);
    }

    /// Removes the temporary files of all writes in progress.
    pub(super) fn abort_writes(&self) {
        self.writes.abort_all();
    }
}

impl Outcome {
    pub(super) fn with_descriptor(response: FileResponse, descriptor: OwnedFd) -> Self {
        Self { response, descriptor: Some(descriptor) }
    }
}

impl From<FileResponse> for Outcome {
    fn from(response: FileResponse) -> Self {
        Self { response, descriptor: None }
    }
}

/// The call that a request's message names before anything is known about its object.
pub(super) fn call_of(request: &FileRequest) -> FileCall {
    match request {
        FileRequest::Read { .. } | FileRequest::Write { .. } | FileRequest::OpenWrite { .. } => {
            FileCall::Open
        }
        FileRequest::CommitWrite { .. } | FileRequest::AbortWrite { .. } => FileCall::Write,
        FileRequest::Mkdir { .. } => FileCall::Mkdir,
        FileRequest::ReadDir { .. } | FileRequest::ReadDirRecursive { .. } => FileCall::Scandir,
        FileRequest::Stat { .. } | FileRequest::Exists { .. } => FileCall::Stat,
        FileRequest::Rename { .. } => FileCall::Rename,
        FileRequest::Delete { .. } => FileCall::Unlink,
    }
}

/// The path a request is about; for tickets it is known to the table alone.
pub(super) fn path_of(request: &FileRequest) -> &[u8] {
    match request {
        FileRequest::Read { path }
        | FileRequest::Write { path, .. }
        | FileRequest::OpenWrite { path }
        | FileRequest::Mkdir { path, .. }
        | FileRequest::ReadDir { path }
        | FileRequest::ReadDirRecursive { path, .. }
        | FileRequest::Stat { path }
        | FileRequest::Exists { path }
        | FileRequest::Rename { from: path, .. }
        | FileRequest::Delete { path, .. } => path,
        FileRequest::CommitWrite { .. } | FileRequest::AbortWrite { .. } => b"",
    }
}
