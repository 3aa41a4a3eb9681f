//! Files of a VM, as its root would see them. Init does the work inside; here paths are checked, content is carried and
//! errors get their words.
//!
//! Content of up to 256 KiB rides in the frames. More travels through a descriptor that init passes out: a regular
//! file, read and written by position on a blocking thread, or a pipe. The sidecar never resolves a path of the guest.

mod batch;
mod content;
mod error;
pub(crate) mod parse;
mod write;

use agentos_guest_protocol::filesystem::FileRequest;
pub use agentos_guest_protocol::filesystem::{DirEntry, FileCall, FileType, Stat};
use agentos_guest_protocol::init::Request;
use bytes::Bytes;

pub use batch::{ReadBatch, WriteBatch};
pub use content::{Content, ContentStream};
pub use error::FileError;
pub use write::FileWriter;

use crate::command::{Answer, ProtocolError};
use crate::path::GuestPath;
use crate::vm::Vm;

impl Vm {
    pub async fn read_file(&self, path: &[u8]) -> Result<Content, FileError> {
        let path = GuestPath::parse(path)?;
        let request = FileRequest::Read { path: path.to_wire() };
        let opened = self.file_call(request, parse::opened, (FileCall::Open, &path)).await?;
        Ok(Content::new(opened, path))
    }

    /// Reads many files at once; results come in the order asked, each as soon as those before it have.
    pub fn read_files(&self, paths: Vec<Vec<u8>>) -> ReadBatch {
        ReadBatch::new(self.clone(), paths)
    }

    /// Makes parents; whole or not at all for readers that open later.
    pub async fn write_file(&self, path: &[u8], content: Bytes) -> Result<(), FileError> {
        let mut writer = self.open_write(path)?;
        writer.write(content).await?;
        writer.commit().await
    }

    /// Begins to write a file in parts. Nothing is asked of the VM before there is more than fits into a frame.
    pub fn open_write(&self, path: &[u8]) -> Result<FileWriter, FileError> {
        Ok(FileWriter::new(self.clone(), GuestPath::parse(path)?))
    }

    /// Writes many files, the small ones without waiting for one another.
    pub fn write_batch(&self) -> WriteBatch {
        WriteBatch::new(self.clone())
    }

    pub async fn mkdir(&self, path: &[u8], recursive: bool) -> Result<(), FileError> {
        let path = GuestPath::parse(path)?;
        let request = FileRequest::Mkdir { path: path.to_wire(), recursive };
        self.file_call(request, parse::done, (FileCall::Mkdir, &path)).await
    }

    /// Names, sorted, without `.` and `..`.
    pub async fn readdir(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FileError> {
        let path = GuestPath::parse(path)?;
        let request = FileRequest::ReadDir { path: path.to_wire() };
        self.file_call(request, parse::names, (FileCall::Scandir, &path)).await
    }

    /// All entries below a directory, itself not among them. Depth 0 means immediate children; `exclude` are base
    /// names that are neither reported nor entered. Links are reported, never followed.
    pub async fn readdir_recursive(
        &self,
        path: &[u8],
        max_depth: Option<u32>,
        exclude: Vec<Vec<u8>>,
    ) -> Result<Vec<DirEntry>, FileError> {
        let path = GuestPath::parse(path)?;
        let exclude = exclude.into_iter().map(Into::into).collect();
        let request = FileRequest::ReadDirRecursive { path: path.to_wire(), max_depth, exclude };
        self.file_call(request, parse::entries, (FileCall::Scandir, &path)).await
    }

    /// Follows links.
    pub async fn stat(&self, path: &[u8]) -> Result<Stat, FileError> {
        let path = GuestPath::parse(path)?;
        let request = FileRequest::Stat { path: path.to_wire() };
        self.file_call(request, parse::stat, (FileCall::Stat, &path)).await
    }

    /// Follows links; false for what is absent and for links that lead nowhere.
    pub async fn exists(&self, path: &[u8]) -> Result<bool, FileError> {
        let path = GuestPath::parse(path)?;
        let request = FileRequest::Exists { path: path.to_wire() };
        self.file_call(request, parse::exists, (FileCall::Stat, &path)).await
    }

    pub async fn move_path(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let (from, to) = (GuestPath::parse(from)?, GuestPath::parse(to)?);
        let request = FileRequest::Rename { from: from.to_wire(), to: to.to_wire() };
        self.file_call(request, parse::done, (FileCall::Rename, &from)).await
    }

    /// A link is removed, never its target.
    pub async fn delete(&self, path: &[u8], recursive: bool) -> Result<(), FileError> {
        let path = GuestPath::parse(path)?;
        let request = FileRequest::Delete { path: path.to_wire(), recursive };
        self.file_call(request, parse::done, (FileCall::Unlink, &path)).await
    }

    /// `about` is what an error names where init's failure names nothing.
    async fn file_call<T: Send + 'static>(
        &self,
        request: FileRequest,
        parse: impl FnOnce(Answer) -> Result<T, ProtocolError> + Send + 'static,
        (call, path): (FileCall, &GuestPath),
    ) -> Result<T, FileError> {
        let outcome = self.call(Request::File(request), Vec::new(), parse).await;
        outcome.map_err(|failure| FileError::of(failure, call, path))
    }
}
