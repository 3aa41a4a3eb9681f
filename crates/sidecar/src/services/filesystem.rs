//! Files.
//!
//! Small files are one message each way; large ones are streamed in pieces of [`MAX_CHUNK_BYTES`].

use std::collections::VecDeque;
use std::sync::Arc;

use agentos_proto::v1::{self, filesystem_service_server::FilesystemService};
use agentos_vm::filesystem::{Content, FileError, ReadBatch};
use bytes::Bytes;
use futures_util::stream;
use tonic::{Request, Response, Status, Streaming};

use super::{MAX_CHUNK_BYTES, Streamed};
use crate::convert::filesystem as convert;
use crate::errors::{Failure, of_vm};
use crate::host::Host;

/// Entries of a recursive listing in one message.
const ENTRIES_PER_MESSAGE: usize = 4096;

#[derive(Debug)]
pub(super) struct Files(pub(super) Arc<Host>);

/// A file's content in pieces that fit a message.
struct Pieces {
    content: Content,
    rest: Bytes,
}

impl Pieces {
    fn of(content: Content) -> Self {
        Self { content, rest: Bytes::new() }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        if self.rest.is_empty() {
            match self.content.next().await? {
                Some(data) => self.rest = data,
                None => return Ok(None),
            }
        }
        Ok(Some(self.rest.split_to(self.rest.len().min(MAX_CHUNK_BYTES))))
    }
}

/// The client gave the call up: gRPC shows that as the stream's end, and half a file must not pass for a whole one.
fn given_up() -> Status {
    Status::cancelled("the client gave the call up before its last message")
}

/// Files of a batch, one after the other.
struct Batch {
    vm_id: String,
    files: ReadBatch,
    index: u32,
    current: Option<Pieces>,
}

impl Batch {
    async fn next(&mut self) -> Option<v1::ReadFilesChunk> {
        let mut pieces = match self.current.take() {
            Some(pieces) => pieces,
            None => match self.files.next().await? {
                Ok(content) => Pieces::of(content),
                Err(error) => return Some(self.failed(error)),
            },
        };
        match pieces.next().await {
            Ok(Some(data)) => {
                // A file that came whole ends with its only message.
                let last = matches!(pieces.content, Content::Whole(_)) && pieces.rest.is_empty();
                let chunk = v1::ReadFilesChunk { index: self.index, data, last, error: None };
                if last {
                    self.index += 1;
                } else {
                    self.current = Some(pieces);
                }
                Some(chunk)
            }
            Ok(None) => {
                let chunk =
                    v1::ReadFilesChunk { index: self.index, data: Bytes::new(), last: true, error: None };
                self.index += 1;
                Some(chunk)
            }
            Err(error) => Some(self.failed(error)),
        }
    }

    fn failed(&mut self, error: FileError) -> v1::ReadFilesChunk {
        let error = Failure::from(error).about(&self.vm_id).into_detail();
        let chunk =
            v1::ReadFilesChunk { index: self.index, data: Bytes::new(), last: false, error: Some(error) };
        self.index += 1;
        chunk
    }
}

#[tonic::async_trait]
impl FilesystemService for Files {
    type ReadFileStream = Streamed<v1::ReadFileChunk>;

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let v1::ReadFileRequest { vm_id, path } = request.into_inner();
        let hosted = self.0.vm(&vm_id)?;
        let content = hosted.vm.read_file(&path).await.map_err(of_vm(&vm_id))?;
        let pieces = stream::try_unfold((Pieces::of(content), vm_id), |(mut pieces, vm_id)| async move {
            let data = pieces.next().await.map_err(of_vm(&vm_id))?;
            Ok(data.map(|data| (v1::ReadFileChunk { data }, (pieces, vm_id))))
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<v1::WriteFileChunk>>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?;
        let v1::WriteFileChunk { vm_id, path, data, mut last } =
            first.ok_or_else(|| Failure::invalid("path", "No file is named"))?;
        let hosted = self.0.vm(&vm_id)?;
        let mut writer = hosted.vm.open_write(&path).map_err(of_vm(&vm_id))?;
        writer.write(data).await.map_err(of_vm(&vm_id))?;
        while !last {
            let chunk = chunks.message().await?.ok_or_else(given_up)?;
            writer.write(chunk.data).await.map_err(of_vm(&vm_id))?;
            last = chunk.last;
        }
        writer.commit().await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::WriteFileResponse {}))
    }

    type ReadFilesStream = Streamed<v1::ReadFilesChunk>;

    async fn read_files(
        &self,
        request: Request<v1::ReadFilesRequest>,
    ) -> Result<Response<Self::ReadFilesStream>, Status> {
        let v1::ReadFilesRequest { vm_id, paths } = request.into_inner();
        let hosted = self.0.vm(&vm_id)?;
        let files = hosted.vm.read_files(paths.into_iter().map(Vec::from).collect());
        let batch = Batch { vm_id, files, index: 0, current: None };
        let chunks = stream::unfold(batch, |mut batch| async {
            let chunk = batch.next().await?;
            Some((Ok(chunk), batch))
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn write_files(
        &self,
        request: Request<Streaming<v1::WriteFilesChunk>>,
    ) -> Result<Response<v1::WriteFilesResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut chunk = chunks.message().await?.ok_or_else(given_up)?;
        let vm_id = std::mem::take(&mut chunk.vm_id);
        let hosted = self.0.vm(&vm_id)?;
        let mut batch = hosted.vm.write_batch();
        let mut started = false;
        loop {
            if let Some(path) = chunk.path {
                batch.start(&path).await;
                started = true;
            } else if !started && !chunk.data.is_empty() {
                return Err(Failure::invalid("path", "Data comes before the first file's path").into());
            }
            if !chunk.data.is_empty() {
                batch.write(chunk.data).await;
            }
            if chunk.last {
                break;
            }
            chunk = chunks.message().await?.ok_or_else(given_up)?;
        }
        let result = |result: Result<(), FileError>| v1::WriteFilesResult {
            error: result.err().map(|error| Failure::from(error).about(&vm_id).into_detail()),
        };
        let results = batch.finish().await.into_iter().map(result).collect();
        Ok(Response::new(v1::WriteFilesResponse { results }))
    }

    async fn mkdir(&self, request: Request<v1::MkdirRequest>) -> Result<Response<v1::MkdirResponse>, Status> {
        let v1::MkdirRequest { vm_id, path, recursive } = request.into_inner();
        self.0.vm(&vm_id)?.vm.mkdir(&path, recursive).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::MkdirResponse {}))
    }

    async fn readdir(
        &self,
        request: Request<v1::ReaddirRequest>,
    ) -> Result<Response<v1::ReaddirResponse>, Status> {
        let v1::ReaddirRequest { vm_id, path } = request.into_inner();
        let names = self.0.vm(&vm_id)?.vm.readdir(&path).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::ReaddirResponse { names: names.into_iter().map(Bytes::from).collect() }))
    }

    type ReaddirRecursiveStream = Streamed<v1::ReaddirRecursiveChunk>;

    async fn readdir_recursive(
        &self,
        request: Request<v1::ReaddirRecursiveRequest>,
    ) -> Result<Response<Self::ReaddirRecursiveStream>, Status> {
        let v1::ReaddirRecursiveRequest { vm_id, path, max_depth, exclude } = request.into_inner();
        let hosted = self.0.vm(&vm_id)?;
        let exclude = exclude.into_iter().map(Vec::from).collect();
        let entries = hosted.vm.readdir_recursive(&path, max_depth, exclude).await.map_err(of_vm(&vm_id))?;
        let chunks = stream::unfold(VecDeque::from(entries), |mut entries| async {
            if entries.is_empty() {
                return None;
            }
            let count = entries.len().min(ENTRIES_PER_MESSAGE);
            let chunk = entries.drain(..count).map(convert::dir_entry).collect();
            Some((Ok(v1::ReaddirRecursiveChunk { entries: chunk }), entries))
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        let v1::StatRequest { vm_id, path } = request.into_inner();
        let stat = self.0.vm(&vm_id)?.vm.stat(&path).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::StatResponse { stat: Some(convert::stat(stat)) }))
    }

    async fn exists(
        &self,
        request: Request<v1::ExistsRequest>,
    ) -> Result<Response<v1::ExistsResponse>, Status> {
        let v1::ExistsRequest { vm_id, path } = request.into_inner();
        let exists = self.0.vm(&vm_id)?.vm.exists(&path).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::ExistsResponse { exists }))
    }

    async fn move_path(
        &self,
        request: Request<v1::MovePathRequest>,
    ) -> Result<Response<v1::MovePathResponse>, Status> {
        let v1::MovePathRequest { vm_id, from, to } = request.into_inner();
        self.0.vm(&vm_id)?.vm.move_path(&from, &to).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::MovePathResponse {}))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let v1::DeleteRequest { vm_id, path, recursive } = request.into_inner();
        self.0.vm(&vm_id)?.vm.delete(&path, recursive).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::DeleteResponse {}))
    }
}
