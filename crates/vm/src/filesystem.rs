//! Files of a VM.
pub use agentos_guest_protocol::filesystem::{DirEntry, FileCall, FileType, Stat};
use bytes::Bytes;

use crate::path::{PathError, lossy};
use crate::vm::{Unavailable, Vm};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{}, {} '{}'", crate::errno::text(*errno), crate::filesystem::call_name(*call), lossy(path))]
    Failed { errno: i32, call: FileCall, path: Vec<u8> },
    #[error("ETIMEDOUT: file system does not answer, {call}")]
    TimedOut { call: String },
    #[error("EBUSY: too many calls wait for file systems that don't answer")]
    TooManyStuck,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl FileError {
    pub fn errno(&self) -> Option<i32> {
        todo!()
    }
}

pub(crate) fn call_name(call: FileCall) -> &'static str {
    match call {
        FileCall::Open => "open",
        FileCall::Read => "read",
        FileCall::Write => "write",
        FileCall::Mkdir => "mkdir",
        FileCall::Scandir => "scandir",
        FileCall::Stat => "stat",
        FileCall::Rename => "rename",
        FileCall::Unlink => "unlink",
        FileCall::Rmdir => "rmdir",
        FileCall::Copy => "copyfile",
    }
}

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    Whole(Bytes),
    Stream(ContentStream),
}

#[derive(Debug)]
pub struct ContentStream;

impl Content {
    /// Works for both; None at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        todo!()
    }
    pub fn size_hint(&self) -> u64 {
        todo!()
    }
}

impl ContentStream {
    pub async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        todo!()
    }
}

/// Files being read in the order asked.
#[derive(Debug)]
pub struct ReadBatch;

impl ReadBatch {
    pub async fn next(&mut self) -> Option<Result<Content, FileError>> {
        todo!()
    }
}

/// A file being written; nothing is visible before commit, dropping it aborts.
#[derive(Debug)]
pub struct FileWriter;

impl FileWriter {
    pub async fn write(&mut self, _data: Bytes) -> Result<(), FileError> {
        todo!()
    }
    pub async fn commit(self) -> Result<(), FileError> {
        todo!()
    }
}

/// Files being written one after the other; one failure never stops the rest.
#[derive(Debug)]
pub struct WriteBatch;

impl WriteBatch {
    /// Begins the next file.
    pub async fn start(&mut self, _path: &[u8]) {
        todo!()
    }
    /// More of the current file.
    pub async fn write(&mut self, _data: Bytes) {
        todo!()
    }
    /// One result per file, in order.
    pub async fn finish(self) -> Vec<Result<(), FileError>> {
        todo!()
    }
}

impl Vm {
    pub async fn read_file(&self, _path: &[u8]) -> Result<Content, FileError> {
        todo!()
    }
    pub fn read_files(&self, _paths: Vec<Vec<u8>>) -> ReadBatch {
        todo!()
    }
    pub async fn write_file(&self, _path: &[u8], _content: Bytes) -> Result<(), FileError> {
        todo!()
    }
    pub fn open_write(&self, _path: &[u8]) -> Result<FileWriter, FileError> {
        todo!()
    }
    pub fn write_batch(&self) -> WriteBatch {
        todo!()
    }
    pub async fn mkdir(&self, _path: &[u8], _recursive: bool) -> Result<(), FileError> {
        todo!()
    }
    pub async fn readdir(&self, _path: &[u8]) -> Result<Vec<Vec<u8>>, FileError> {
        todo!()
    }
    pub async fn readdir_recursive(
        &self,
        _path: &[u8],
        _max_depth: Option<u32>,
        _exclude: Vec<Vec<u8>>,
    ) -> Result<Vec<DirEntry>, FileError> {
        todo!()
    }
    pub async fn stat(&self, _path: &[u8]) -> Result<Stat, FileError> {
        todo!()
    }
    pub async fn exists(&self, _path: &[u8]) -> Result<bool, FileError> {
        todo!()
    }
    pub async fn move_path(&self, _from: &[u8], _to: &[u8]) -> Result<(), FileError> {
        todo!()
    }
    pub async fn delete(&self, _path: &[u8], _recursive: bool) -> Result<(), FileError> {
        todo!()
    }
}
